//! A tracepoint of the kernel: its number, and where the fields of its record are.
//!
//! Both are the running kernel's own and are read from tracefs, as the layout has changed and will again.

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

/// Where tracefs is mounted on most machines.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why a tracepoint's description makes no sense to us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The record has no such field.
    #[error("its record has no field {0}")]
    NoField(&'static str),
    /// A field has a size that no program of ours can load.
    #[error(
        "its field {name} has {bytes} bytes at offset {offset}, where 4 or 8 that are aligned were expected"
    )]
    FieldShape {
        /// The field.
        name: &'static str,
        /// Its size.
        bytes: u16,
        /// Its place in the record.
        offset: u16,
    },
    /// Its number is none.
    #[error("its id is {0:?}, which is no number")]
    Id(String),
}

/// A field of a tracepoint's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) offset: u16,
    pub(super) bytes: u16,
}

/// A tracepoint's number and the description of its record.
#[derive(Clone, Debug)]
pub(super) struct Tracepoint {
    pub(super) id: u64,
    format: String,
}

impl Tracepoint {
    /// Reads what tracefs says about `name`, as in `sched/sched_switch`.
    pub(super) fn read(tracefs: &OwnedFd, name: &str) -> io::Result<Result<Tracepoint, FormatError>> {
        let read = |file: &str| -> io::Result<String> {
            let path = format!("events/{name}/{file}");
            let mut text = String::new();
            let file = openat(tracefs, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            File::from(file).read_to_string(&mut text)?;
            Ok(text)
        };
        let (id, format) = (read("id")?, read("format")?);
        let id = id.trim();
        Ok(match id.parse() {
            Ok(id) => Ok(Tracepoint { id, format }),
            Err(_) => Err(FormatError::Id(id.to_owned())),
        })
    }

    /// Where `name` is in the record.
    pub(super) fn field(&self, name: &'static str) -> Result<Field, FormatError> {
        let field = self.format.lines().find_map(|line| parse_field(line, name));
        match field.ok_or(FormatError::NoField(name))? {
            field @ Field { offset, bytes: 4 | 8 } if offset.is_multiple_of(field.bytes) => Ok(field),
            Field { offset, bytes } => Err(FormatError::FieldShape { name, bytes, offset }),
        }
    }
}

/// The field of a line such as `field:pid_t prev_pid; offset:24; size:4; signed:1;`, if it is called `name`.
fn parse_field(line: &str, name: &str) -> Option<Field> {
    let mut parts = line.split(';').map(str::trim);
    let declared = parts.next()?.strip_prefix("field:")?;
    if declared.split_whitespace().next_back()? != name {
        return None;
    }
    let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let bytes = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    Some(Field { offset, bytes })
}

/// The root of tracefs: where it is mounted, or else a mount of our own that no one sees and that goes with the
/// descriptor.
///
/// # Errors
/// There is no tracefs, and we may not mount it.
pub(super) fn tracefs() -> io::Result<OwnedFd> {
    for path in MOUNTS {
        if let Ok(root) = open_mounted(path) {
            return Ok(root);
        }
    }
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// The directory at `path` if it is tracefs: the place to mount it on is there and empty where it is not.
fn open_mounted(path: &str) -> Result<OwnedFd, Errno> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(rustix::fs::CWD, path, directory, Mode::empty())?;
    openat(&root, "events/sched", directory, Mode::empty())?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    //! The kernel's own text is read field by field, and what does not fit is said.
    use super::*;

    const SWITCH: &str = "name: sched_switch\nID: 372\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;\n\
        \tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;\n\
        \tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;\n\
        \tfield:int odd;\toffset:42;\tsize:4;\tsigned:1;\n\n\
        print fmt: \"prev_pid=%d\", REC->prev_pid\n";

    #[test]
    fn fields_are_where_the_kernel_says() {
        let tracepoint = Tracepoint { id: 372, format: SWITCH.into() };
        assert_eq!(tracepoint.field("prev_pid"), Ok(Field { offset: 24, bytes: 4 }));
        assert_eq!(tracepoint.field("prev_state"), Ok(Field { offset: 32, bytes: 8 }));
        assert_eq!(tracepoint.field("pid"), Err(FormatError::NoField("pid")), "no part of another name");
        assert_eq!(
            tracepoint.field("common_type"),
            Err(FormatError::FieldShape { name: "common_type", bytes: 2, offset: 0 })
        );
        assert_eq!(
            tracepoint.field("odd"),
            Err(FormatError::FieldShape { name: "odd", bytes: 4, offset: 42 })
        );
    }

    #[test]
    fn broken_lines_are_no_fields() {
        for line in ["", "field:", "field:int a", "field:int a; offset:x; size:4;", "field:int a; size:4;"] {
            assert_eq!(parse_field(line, "a"), None, "{line:?}");
        }
    }
}
