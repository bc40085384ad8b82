//! The control socket's path: where it is, and who may have it.
//!
//! A daemon owns its path by holding a lock (`flock`) on `PATH.lock` for as long as it lives. Only the holder
//! touches what is at the path: it takes a dead daemon's socket over, it never removes anything that is
//! not a socket, and it removes its own at the end. The kernel gives the lock back however the daemon dies.
//! The lock file itself stays: removing it would let two processes lock two files of the same name.

use super::{client, protocol::Answer, protocol::Query};
use crate::exit::{Failure, FailureKind};
use rustix::fs::{self, FileType, FlockOperation, Mode, OFlags};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a daemon of root's listens by default. Its folder is made if it is not there.
pub const ROOT_PATH: &str = "/run/hyper-switch/ctl.sock";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The default path: [`ROOT_PATH`] for root, `$XDG_RUNTIME_DIR/hyper-switch.sock` for others, or
/// `/tmp/hyper-switch-UID.sock` where that variable is not set.
pub fn default_path() -> PathBuf {
    let uid = rustix::process::geteuid();
    default_path_of(uid.is_root(), uid.as_raw(), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

fn default_path_of(root: bool, uid: u32, runtime_dir: Option<PathBuf>) -> PathBuf {
    // The XDG base directory specification has relative paths ignored.
    match runtime_dir.filter(|dir| dir.is_absolute()) {
        _ if root => PathBuf::from(ROOT_PATH),
        Some(dir) => dir.join("hyper-switch.sock"),
        None => PathBuf::from(format!("/tmp/hyper-switch-{uid}.sock")),
    }
}

/// A control socket that listens. Dropped, it is gone from the file system.
#[derive(Debug)]
pub struct CtlSocket {
    path: PathBuf,
    listener: UnixListener,
    /// What tells our socket from one that somebody put in its place.
    identity: (u64, u64),
    /// Held for life; released after [`CtlSocket::drop`] has removed the socket.
    _lock: OwnedFd,
}

impl CtlSocket {
    /// Claims `path` and listens there, for this user only (mode 0600).
    ///
    /// # Errors
    /// [`FailureKind::InUse`] if a daemon lives there or something that is no socket is in the way;
    /// [`FailureKind::NotPermitted`] or [`FailureKind::Runtime`] if the system refuses.
    pub fn bind(path: &Path) -> Result<CtlSocket, Failure> {
        let shown = path.display();
        let address = address(path)?;
        let cannot = |what: &str, error: io::Error| {
            Failure::from_io(format_args!("cannot {what} the control socket {shown}"), &error)
                .with_help("choose another path with --ctl PATH")
        };
        if let Some(folder) = path.parent().filter(|_| path == Path::new(ROOT_PATH)) {
            std::fs::create_dir_all(folder).map_err(|e| cannot("make the folder of", e))?;
        }

        let lock = lock_file(path).map_err(|e| cannot("lock", e))?;
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(path)),
            Err(error) => return Err(cannot("lock", error.into())),
        }
        match fs::lstat(path) {
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(cannot("look at", error.into())),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                let message = format!("{shown} is in the way of the control socket: it is no socket");
                return Err(Failure::new(FailureKind::InUse, message)
                    .with_help("move it away, or choose another path with --ctl PATH"));
            }
            // We have the lock, so whoever answers is no daemon that follows these rules; but alive.
            Ok(_) => match dial(path, client::TIMEOUT) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::info!("taking over the control socket {shown} of a daemon that is gone");
                    fs::unlink(path).map_err(|e| cannot("take over", e.into()))?;
                }
                _ => return Err(in_use(path)),
            },
        }

        let listener = listen(&address).map_err(|e| cannot("listen on", e.into()))?;
        let stat = fs::lstat(path).map_err(|e| cannot("look at", e.into()))?;
        let identity = (stat.st_dev, stat.st_ino);
        Ok(CtlSocket { path: path.to_owned(), listener, identity, _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts are made here; it does not block.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for CtlSocket {
    fn drop(&mut self) {
        // Errors are of no use here: what cannot be removed is taken over by the next daemon.
        if fs::lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity) {
            let _ = fs::unlink(&self.path);
        }
    }
}

fn address(path: &Path) -> Result<SocketAddrUnix, Failure> {
    SocketAddrUnix::new(path).map_err(|_| {
        let (shown, bytes) = (path.display(), path.as_os_str().len());
        let message = format!("{shown} cannot be a socket's path: it has {bytes} bytes, 107 are allowed");
        Failure::new(FailureKind::Usage, message).with_help("choose a shorter path with --ctl PATH")
    })
}

fn lock_file(path: &Path) -> io::Result<OwnedFd> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    // NOFOLLOW: in a folder that others can write to, the name may be a trap.
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(fs::open(lock_path, flags, Mode::RUSR | Mode::WUSR)?)
}

fn listen(address: &SocketAddrUnix) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The mode of the unbound socket becomes that of its file, so that there is no moment at which
    // somebody else could connect (unix(7): binding applies the umask to it).
    fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Connects to `path`. Every later read, write, and the connecting itself, takes `timeout` at most.
pub(super) fn dial(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(timeout))?;
    // Bounds connect(2) too, which waits while the backlog is full.
    stream.set_write_timeout(Some(timeout))?;
    net::connect(&stream, &address)?;
    Ok(stream)
}

/// The failure to claim a path that a living process has.
fn in_use(path: &Path) -> Failure {
    let shown = path.display();
    let who = match client::ask(path, Query::Stats) {
        Ok(Answer::Stats(stats)) => format!("another hyper-switch (pid {}) has", stats.pid),
        _ => "another process has".to_owned(),
    };
    Failure::new(FailureKind::InUse, format!("{who} the control socket {shown}"))
        .with_help("stop it, or give this switch a socket of its own with --ctl PATH")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use tempfile::TempDir;

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    /// The default depends on who asks; a relative folder is ignored.
    #[test]
    fn the_default_path_depends_on_the_user() {
        let run = Some(PathBuf::from("/run/user/7"));
        assert_eq!(default_path_of(true, 0, run.clone()), Path::new(ROOT_PATH));
        assert_eq!(default_path_of(false, 7, run), Path::new("/run/user/7/hyper-switch.sock"));
        let fallback = Path::new("/tmp/hyper-switch-7.sock");
        assert_eq!(default_path_of(false, 7, None), fallback);
        assert_eq!(default_path_of(false, 7, Some("here".into())), fallback);
    }

    /// The socket is there for its owner only while it lives, and gone afterwards.
    #[test]
    fn a_socket_comes_and_goes() {
        let folder = folder();
        let path = folder.path().join("s");
        let socket = CtlSocket::bind(&path).unwrap();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
        CtlSocket::bind(&path).unwrap();
    }

    /// What a killed daemon leaves behind, a socket that nobody listens on, is taken over.
    #[test]
    fn a_stale_socket_is_taken_over() {
        let folder = folder();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = CtlSocket::bind(&path).unwrap();
        assert!(UnixStream::connect(socket.path()).is_ok());
    }

    /// A socket on which somebody listens is left alone, also when that is no daemon with a lock.
    #[test]
    fn a_living_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let other = UnixListener::bind(&path).unwrap();
        // Whoever asks it is hung up on, so that the test need not wait for a timeout.
        let hang_up = std::thread::spawn(move || {
            for _ in 0..2 {
                drop(other.accept().unwrap());
            }
        });
        let failure = CtlSocket::bind(&path).unwrap_err();
        hang_up.join().unwrap();
        assert_eq!(failure.kind, FailureKind::InUse);
        assert_eq!(failure.message, format!("another process has the control socket {}", path.display()));
        assert!(path.exists());
    }

    /// A file that is no socket is never removed.
    #[test]
    fn a_file_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("notes");
        std::fs::write(&path, "dear diary").unwrap();
        let failure = CtlSocket::bind(&path).unwrap_err();
        assert_eq!(failure.kind, FailureKind::InUse);
        assert!(
            failure.message.ends_with("is in the way of the control socket: it is no socket"),
            "{failure}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "dear diary");
    }

    /// At its end a daemon does not remove a socket that somebody put in the place of its own.
    #[test]
    fn a_successor_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let socket = CtlSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    /// A path that cannot be is refused with what is wrong with it.
    #[test]
    fn impossible_paths_are_refused() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let failure = CtlSocket::bind(&long).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.message.ends_with("it has 125 bytes, 107 are allowed"), "{failure}");

        let folder = folder();
        let failure = CtlSocket::bind(&folder.path().join("no/such/folder")).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Runtime);
        assert!(failure.message.contains("No such file or directory"), "{failure}");
    }
}
