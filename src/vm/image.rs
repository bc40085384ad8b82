//! The guests' file system: an archive in memory that a kernel unpacks (initramfs). It holds busybox, this very program for
//! the workloads, `ethtool` where this machine has it, the modules that a virtio NIC needs, and `init.sh`.

use super::kernel::Kernel;
use super::modules;
use super::process::output_of;
use crate::exit::{Failure, FailureKind};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules that a guest asks for. A kernel that has one built in has no file of it.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "8021q"];

/// Makes the archive for guests with this kernel; `busybox` and `program`, which is `hyper-switch`, are where those are.
///
/// # Errors
/// A program, a library or a module cannot be read.
pub fn image(kernel: &Kernel, busybox: &Path, program: &Path) -> Result<Vec<u8>, Failure> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp"] {
        archive.folder(Path::new(folder));
    }
    archive.file("init", include_bytes!("init.sh"));
    archive.program("busybox", busybox)?;
    archive.program("hyper-switch", program)?;
    if let Some(ethtool) = find_program("ethtool") {
        archive.program("ethtool", &ethtool)?;
    }
    let mut order = String::new();
    for module in modules::load_order(&kernel.modules, &MODULES)? {
        archive.file(format!("modules/{}.ko", module.name), &module.object);
        order.push_str(&format!("{}.ko\n", module.name));
    }
    archive.file("modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// Where busybox is.
///
/// # Errors
/// It is on no search path; the help says how to get it.
pub fn find_busybox() -> Result<PathBuf, Failure> {
    find_program("busybox").ok_or_else(|| {
        Failure::new(FailureKind::Runtime, "there is no busybox for the guests")
            .with_help("on Debian, `apt-get install busybox-static` as root; or name one with --busybox PATH")
    })
}

/// Where a program is, on the search path or among root's programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// An archive in the format that the kernel calls newc.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    /// What is in it; the archive holds folders before what is in them, and everything once.
    paths: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a folder and those that it is in.
    fn folder(&mut self, path: &Path) {
        let folders: Vec<&Path> = path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        for folder in folders.into_iter().rev() {
            self.entry(folder, ModeFileType::Directory, &[]);
        }
    }

    /// Adds a file that may be executed, and the folders that it is in.
    fn file(&mut self, path: impl AsRef<Path>, content: &[u8]) {
        let path = path.as_ref();
        self.folder(path.parent().unwrap_or(Path::new("")));
        self.entry(path, ModeFileType::Regular, content);
    }

    /// Adds a program of this machine as `bin/NAME`, and where they are here the libraries that it needs.
    fn program(&mut self, name: &str, program: &Path) -> Result<(), Failure> {
        let mut files = vec![(Path::new("bin").join(name), program.to_owned())];
        files.extend(libraries(program).into_iter().map(|library| {
            let inside = library.strip_prefix("/").unwrap_or(&library).to_owned();
            (inside, library)
        }));
        for (inside, here) in files {
            let content = fs::read(&here)
                .map_err(|error| Failure::from_io(format_args!("cannot read {}", here.display()), &error))?;
            self.file(inside, loaded(&content));
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, kind: ModeFileType, content: &[u8]) {
        if !self.paths.insert(path.to_owned()) {
            return;
        }
        let bytes = u32::try_from(content.len()).expect("a file for a guest is smaller than 4 GiB");
        let entry = Builder::new(&path.to_string_lossy()).mode(0o755).set_mode_file_type(kind);
        let write = || -> io::Result<()> {
            let mut writer = entry.ino(self.paths.len() as u32).nlink(1).write(&mut self.bytes, bytes);
            writer.write_all(content)?;
            writer.finish().map(drop)
        };
        write().expect("memory takes all that is written");
    }

    fn finish(self) -> Vec<u8> {
        trailer(self.bytes).expect("memory takes all that is written")
    }
}

/// The libraries that a program of this machine needs, the dynamic linker among them. A static program has none.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = output_of(Command::new("ldd").arg(program)).unwrap_or_default();
    libraries_in(&String::from_utf8_lossy(&listed))
}

/// The paths in what `ldd` prints: `name => /path (address)`, or `/path (address)` of the linker.
fn libraries_in(listed: &str) -> Vec<PathBuf> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// The part of a program or library (ELF, 64 bits, little-endian) that is loaded, from the file's start on. What is behind
/// it, in a debug build six sevenths, would only fill the guest's memory. The whole of any other file.
fn loaded(file: &[u8]) -> &[u8] {
    loaded_bytes(file).and_then(|bytes| file.get(..bytes)).unwrap_or(file)
}

/// The end of the last loadable segment in the file (System V ABI, "Program Header").
fn loaded_bytes(file: &[u8]) -> Option<usize> {
    const LOADABLE: u32 = 1;
    let u64_at = |at: usize| Some(u64::from_le_bytes(*file.get(at..)?.first_chunk()?));
    let u16_at = |at: usize| Some(u16::from_le_bytes(*file.get(at..)?.first_chunk()?));
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64_at(32)?).ok()?;
    let (header_bytes, headers) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let mut end = 0;
    for index in 0..headers {
        let header = table.checked_add(index * header_bytes)?;
        let kind = u32::from_le_bytes(*file.get(header..)?.first_chunk()?);
        if kind == LOADABLE {
            let segment_end =
                u64_at(header.checked_add(8)?)?.checked_add(u64_at(header.checked_add(32)?)?)?;
            end = end.max(usize::try_from(segment_end).ok()?);
        }
    }
    (end > 0).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    /// Holds that folders come before what is in them, each thing once, with its content. By: reading the archive.
    #[test]
    fn an_archive_can_be_unpacked_in_order() {
        let mut archive = Archive::default();
        archive.file("lib/x/a.so", b"abc");
        archive.file("lib/x/a.so", b"abc");
        archive.file("lib/b", b"");
        archive.folder(Path::new("lib"));
        archive.folder(Path::new("dev"));
        let bytes = archive.finish();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
        let folder = |name: &str| (name.to_owned(), 0o40_755, vec![]);
        let file = |name: &str, content: &[u8]| (name.to_owned(), 0o100_755, content.to_vec());
        let expected =
            [folder("lib"), folder("lib/x"), file("lib/x/a.so", b"abc"), file("lib/b", b""), folder("dev")];
        assert_eq!(found, expected);
    }

    /// The paths of libraries and of the linker are read, what has no file is left out.
    #[test]
    fn libraries_are_read_from_ldd() {
        let listed =
            "\tlinux-vdso.so.1 (0x00007f30)\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\t/lib64/ld.so (0x2)\n";
        assert_eq!(libraries_in(listed), ["/lib/libc.so.6", "/lib64/ld.so"].map(PathBuf::from));
    }

    /// Holds that a program still runs when only the part that is loaded is left of it, that this is less than all of
    /// it, and that what is no program, or a broken one, stays whole.
    #[test]
    fn a_program_runs_without_what_is_not_loaded() {
        let whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        let part = loaded(&whole);
        assert!(part.len() < whole.len());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        // Copied, it has the rights to be executed; then it is cut.
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(part.len() as u64).unwrap();
        let listed = output_of(Command::new(&path).arg("--list")).unwrap();
        assert!(String::from_utf8_lossy(&listed).contains("a_program_runs_without_what_is_not_loaded"));
        for other in [&b"#!/bin/sh\n"[..], &whole[..40], &whole[..100]] {
            assert_eq!(loaded(other), other);
        }
    }
}
