//! The control socket's path: where it is, and who may have it.

use super::{client, protocol::Answer, protocol::Query};
use crate::exit::{Failure, FailureKind};
use crate::owned_socket::{BindError, OwnedSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where a daemon of root's listens by default. Its folder is made if it is not there.
pub const ROOT_PATH: &str = "/run/hyper-switch/ctl.sock";

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
pub struct CtlSocket(OwnedSocket);

impl CtlSocket {
    /// Claims `path` and listens there, for this user only (mode 0600).
    ///
    /// # Errors
    /// [`FailureKind::InUse`] if a daemon lives there or something that is no socket is in the way;
    /// [`FailureKind::NotPermitted`] or [`FailureKind::Runtime`] if the system refuses.
    pub fn bind(path: &Path) -> Result<CtlSocket, Failure> {
        let shown = path.display();
        if let Some(folder) = path.parent().filter(|_| path == Path::new(ROOT_PATH)) {
            std::fs::create_dir_all(folder).map_err(|error| cannot("make the folder of", path, &error))?;
        }
        OwnedSocket::bind(path).map(CtlSocket).map_err(|error| match error {
            BindError::PathLength(_) => {
                Failure::new(FailureKind::Usage, format!("{shown} cannot be a socket's path: {error}"))
                    .with_help("choose a shorter path with --ctl PATH")
            }
            BindError::InUse => in_use(path),
            BindError::NoSocket => {
                let message = format!("{shown} is in the way of the control socket: {error}");
                Failure::new(FailureKind::InUse, message)
                    .with_help("move it away, or choose another path with --ctl PATH")
            }
            BindError::System(what, error) => cannot(what, path, &error),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Accepts are made here; it does not block.
    pub(super) fn listener(&self) -> &UnixListener {
        self.0.listener()
    }
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::from_io(format_args!("cannot {what} the control socket {}", path.display()), error)
        .with_help("choose another path with --ctl PATH")
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
    use std::os::unix::net::UnixStream;
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
