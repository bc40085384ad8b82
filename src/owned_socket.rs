//! A Unix socket's path, owned: who listens there, and that nobody else does.
//!
//! The owner holds a lock (`flock`) on `PATH.lock` for as long as it lives. Only the holder touches what is at the path: it
//! takes a dead owner's socket over, it never removes anything that is not a socket, and it removes its own at the
//! end. The kernel gives the lock back however the owner dies. The lock file itself stays: removing it would let two
//! processes lock two files of the same name.

use rustix::fs::{self, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// How long a process at the path has to accept when it is asked whether it lives.
const PROBE_TIME: Duration = Duration::from_secs(2);

/// Why a path cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel has no room for it.
    #[error("it has {0} bytes, 107 are allowed")]
    PathLength(usize),
    /// A living process listens there.
    #[error("another process listens there")]
    InUse,
    /// What is there is no socket.
    #[error("it is no socket")]
    NoSocket,
    /// The system refuses.
    #[error("cannot {0} it: {1}")]
    System(&'static str, io::Error),
}

/// A socket that listens. Dropped, it is gone from the file system.
#[derive(Debug)]
pub struct OwnedSocket {
    path: PathBuf,
    listener: UnixListener,
    /// What tells our socket from one that somebody put in its place.
    identity: (u64, u64),
    /// Held for life; released after [`OwnedSocket::drop`] has removed the socket.
    _lock: OwnedFd,
}

impl OwnedSocket {
    /// Claims `path` and listens there, for this user only (mode 0600).
    ///
    /// # Errors
    /// The path is too long, taken, or refused by the system.
    pub fn bind(path: &Path) -> Result<OwnedSocket, BindError> {
        let cannot = |what| move |error: Errno| BindError::System(what, error.into());
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::PathLength(path.as_os_str().len()))?;
        let lock = lock_file(path).map_err(cannot("lock"))?;
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BindError::InUse),
            Err(error) => return Err(cannot("lock")(error)),
        }
        match fs::lstat(path) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(cannot("look at")(error)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(BindError::NoSocket);
            }
            // We have the lock, so whoever answers follows other rules; but lives.
            Ok(_) => match dial(path, PROBE_TIME) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::info!("taking over the socket {} of a process that is gone", path.display());
                    fs::unlink(path).map_err(cannot("take over"))?;
                }
                _ => return Err(BindError::InUse),
            },
        }
        let listener = listen(&address).map_err(cannot("listen on"))?;
        let stat = fs::lstat(path).map_err(cannot("look at"))?;
        let identity = (stat.st_dev, stat.st_ino);
        Ok(OwnedSocket { path: path.to_owned(), listener, identity, _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts are made here; it does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        // Errors are of no use here: what cannot be removed is taken over by the next owner.
        if fs::lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity) {
            let _ = fs::unlink(&self.path);
        }
    }
}

fn lock_file(path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    // NOFOLLOW: in a folder that others can write to, the name may be a trap.
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fs::open(lock_path, flags, Mode::RUSR | Mode::WUSR)
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
///
/// # Errors
/// Nobody is there, or the system refuses.
pub fn dial(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(timeout))?;
    // Bounds connect(2) too, which waits while the backlog is full.
    stream.set_write_timeout(Some(timeout))?;
    net::connect(&stream, &address)?;
    Ok(stream)
}
