//! The guests' kernel: a file `vmlinuz-VERSION` and the folder of its modules. Found, or fetched as a Debian package.

use super::process::output_of;
use crate::exit::{Failure, FailureKind};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on Debian's newest kernel for virtual machines.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The compressed image.
    pub image: PathBuf,
    /// Its version, as its modules have it.
    pub version: String,
    /// The folder of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel whose image is at `path`. Its modules are where a package or an installation has them: beside `boot/`,
    /// in `lib/modules/VERSION` or `usr/lib/modules/VERSION`.
    ///
    /// # Errors
    /// There is no such file, its name has no version, or its modules are not there.
    pub fn at(path: &Path) -> Result<Kernel, Failure> {
        let failure = |message: String| Failure::new(FailureKind::Runtime, message).with_help(advice());
        fs::File::open(path).map_err(|error| {
            Failure::from_io(format_args!("cannot read the kernel {}", path.display()), &error)
        })?;
        let version = version(path)
            .ok_or_else(|| failure(format!("{} is not named vmlinuz-VERSION", path.display())))?;
        let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let places = absolute.ancestors().skip(2).take(1).chain([Path::new("/")]);
        let mut folders = places.flat_map(|root| {
            ["lib/modules", "usr/lib/modules"].map(|folder| root.join(folder).join(&version))
        });
        let modules = folders.find(|folder| folder.join("kernel").is_dir()).ok_or_else(|| {
            failure(format!("the modules of {} are neither beside it nor in /lib/modules", path.display()))
        })?;
        Ok(Kernel { image: path.to_owned(), version, modules })
    }

    /// The newest kernel in the cache, else the newest of this machine that may be read.
    ///
    /// # Errors
    /// There is none; the help says how to get one.
    pub fn find() -> Result<Kernel, Failure> {
        let folders = [cache().ok().map(|cache| cache.join("kernel/boot")), Some(PathBuf::from("/boot"))];
        let found = folders.into_iter().flatten().flat_map(|folder| images(&folder));
        found.filter_map(|image| Kernel::at(&image).ok()).next().ok_or_else(|| {
            Failure::new(FailureKind::Runtime, "there is no Linux kernel for the guests").with_help(advice())
        })
    }

    /// Fetches Debian's newest kernel for virtual machines into the cache, in place of what is there. Nothing is
    /// installed.
    ///
    /// # Errors
    /// This is no Debian, apt knows no such package, or it cannot be had.
    pub fn fetch() -> Result<Kernel, Failure> {
        let depends = output_of(Command::new("apt-cache").args(["depends", PACKAGE]))?;
        let depends = String::from_utf8_lossy(&depends);
        let package = dependency(&depends).ok_or_else(|| {
            Failure::new(FailureKind::Runtime, format!("apt knows no package {PACKAGE}"))
                .with_help("`apt-get update` as root reads what there is")
        })?;
        let cache = cache()?;
        let (download, unpacked) = (cache.join("download"), cache.join("kernel"));
        for folder in [&download, &unpacked] {
            let emptied = fs::remove_dir_all(folder).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            });
            emptied.and_then(|()| fs::create_dir_all(folder)).map_err(|error| {
                Failure::from_io(format_args!("cannot make an empty {}", folder.display()), &error)
            })?;
        }
        output_of(Command::new("apt-get").args(["download", package]).current_dir(&download))?;
        let packages = fs::read_dir(&download).into_iter().flatten().flatten().map(|entry| entry.path());
        for package in packages {
            output_of(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))?;
        }
        // The package is not wanted again.
        let _ = fs::remove_dir_all(&download);
        Kernel::find()
    }
}

/// The folder for what takes long to get: `$XDG_CACHE_HOME/hyper-switch`, or `~/.cache/hyper-switch`.
///
/// # Errors
/// The environment names neither.
pub fn cache() -> Result<PathBuf, Failure> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // The XDG base directory specification has relative paths ignored.
    let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    folder.map(|folder| folder.join("hyper-switch")).ok_or_else(|| {
        Failure::new(FailureKind::Runtime, "there is no folder for a cache")
            .with_help("set HOME or XDG_CACHE_HOME")
    })
}

/// How to get a kernel.
fn advice() -> String {
    format!(
        "`hyper-switch vm --fetch` does this on Debian, in a folder of its own and without root:\n      \
         apt-get download $(apt-cache depends {PACKAGE} | sed -n 's/.*Depends: //p')\n      \
         dpkg-deb -x linux-image-*.deb kernel\n      \
         then name it with --kernel kernel/boot/vmlinuz-*"
    )
}

/// The kernels in a folder, the newest first.
fn images(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut images: Vec<PathBuf> = entries.filter(|path| version(path).is_some()).collect();
    images.sort_by_key(|path| std::cmp::Reverse(version(path).map(|version| numbers(&version))));
    images
}

fn version(image: &Path) -> Option<String> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned)
}

/// The numbers in a version, which order it: 6.10 is newer than 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The first package that `apt-cache depends` names.
fn dependency(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that the newest kernel comes first, that modules are found beside it, and that what lacks either is
    /// refused with the reason.
    #[test]
    fn kernels_are_found_with_their_modules() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("boot");
        fs::create_dir_all(&boot).unwrap();
        for name in ["vmlinuz-6.9.0-1-test", "vmlinuz-6.10.0-1-test", "config-6.10.0-1-test", "vmlinuz"] {
            fs::write(boot.join(name), "").unwrap();
        }
        assert_eq!(images(&boot), ["6.10", "6.9"].map(|v| boot.join(format!("vmlinuz-{v}.0-1-test"))));
        let image = boot.join("vmlinuz-6.9.0-1-test");
        let modules = folder.path().join("usr/lib/modules/6.9.0-1-test");
        fs::create_dir_all(modules.join("kernel")).unwrap();
        let expected = Kernel { image: image.clone(), version: "6.9.0-1-test".into(), modules };
        assert_eq!(Kernel::at(&image), Ok(expected));
        for (name, part) in [
            ("vmlinuz-6.10.0-1-test", "are neither beside it nor in /lib/modules"),
            ("vmlinuz", "is not named vmlinuz-VERSION"),
            ("vmlinuz-1", "No such file"),
        ] {
            let failure = Kernel::at(&boot.join(name)).unwrap_err();
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    /// The kernel's package is the first one that the package without a version depends on.
    #[test]
    fn the_package_is_read_from_apt() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(dependency(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("N: no packages found\n"), None);
    }
}
