//! Kernel modules, each after those that it depends on. A module names those itself (`depends=` in its `.modinfo`
//! section), so neither depmod's index nor kmod is needed.

use super::process::output_of;
use crate::exit::{Failure, FailureKind};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module as the kernel loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The object file, not compressed.
    pub object: Vec<u8>,
}

/// The modules called `names` of those under `folder`, and all that they depend on, in an order in which they can be
/// loaded. One that has no file is taken for a part of the kernel itself.
///
/// # Errors
/// A file cannot be read or decompressed.
pub fn load_order(folder: &Path, names: &[&str]) -> Result<Vec<Module>, Failure> {
    let mut files = HashMap::new();
    collect(folder, &mut files).map_err(|error| {
        Failure::from_io(format_args!("cannot read the modules in {}", folder.display()), &error)
    })?;
    let mut order = Vec::new();
    for name in names {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

/// Adds a module behind those that it depends on, unless it is there already.
fn add(name: &str, files: &HashMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<(), Failure> {
    // A file is taken out of what the modules that depend on it find, so that a circle ends.
    let Some(path) = files.get(name).filter(|_| order.iter().all(|module| module.name != name)) else {
        return Ok(());
    };
    let object = read(path)?;
    let mut others = files.clone();
    others.remove(name);
    for needed in depends(&object) {
        add(&needed, &others, order)?;
    }
    order.push(Module { name: name.to_owned(), object });
    Ok(())
}

/// The modules under a folder by name. The kernel's tools take `-` and `_` for the same.
fn collect(folder: &Path, into: &mut HashMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Links lead to the kernel's sources.
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), into)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            into.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// A module's object file, decompressed.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => {
            return fs::read(path)
                .map_err(|error| Failure::from_io(format_args!("cannot read {}", path.display()), &error));
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            let message = format!("{} is compressed in a way that is not known here", path.display());
            return Err(Failure::new(FailureKind::Runtime, message));
        }
    };
    output_of(Command::new(tool).arg("-dc").arg(path))
}

/// The modules that one depends on, as it says itself.
fn depends(object: &[u8]) -> Vec<String> {
    let tags = object.split(|byte| *byte == 0);
    let mut listed = tags.filter_map(|tag| std::str::from_utf8(tag.strip_prefix(b"depends=")?).ok());
    let names = listed.next().unwrap_or_default().split(',');
    names.filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that each module comes once and behind those that it needs, whatever the folder, the spelling and the
    /// compression; that one without a file, as one in the kernel, is left out; and that a circle ends.
    #[test]
    fn modules_come_behind_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, depends: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("ELF\0license=GPL\0depends={depends}\0name=x\0")).unwrap();
            path
        };
        write("drivers/net/card.ko", "bus-ring,core,built_in");
        write("drivers/bus-ring.ko", "core");
        let core = write("core.ko", "");
        write("left.ko", "right");
        write("right.ko", "left");
        assert!(Command::new("gzip").arg(core).status().unwrap().success());
        let names = |names: &[&str]| -> Vec<String> {
            load_order(folder.path(), names).unwrap().into_iter().map(|module| module.name).collect()
        };
        assert_eq!(names(&["card", "core", "none"]), ["core", "bus_ring", "card"]);
        assert_eq!(names(&["left"]), ["right", "left"]);
        let order = load_order(folder.path(), &["core"]).unwrap();
        assert_eq!(order[0].object, b"ELF\0license=GPL\0depends=\0name=x\0");
    }
}
