//! A port's end of its socket: the switch waits for VMMs there, or looks for one.

use crate::owned_socket::{BindError, OwnedSocket, dial};
use crate::port_spec::{SocketRole, VhostUser};
use hyper_switch_pvnet::vhost_user::event::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to find a VMM that makes the socket itself.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long a VMM may take to accept.
const ACCEPT_TIME: Duration = Duration::from_secs(1);

/// Why a port cannot have its socket.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Its path.
    #[error(transparent)]
    Path(#[from] BindError),
    /// A thread or a file descriptor.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// A port's end of its socket.
pub(super) struct Endpoint {
    path: PathBuf,
    /// None if the VMM makes the socket.
    listening: Option<OwnedSocket>,
    stop: Arc<EventFd>,
}

impl Endpoint {
    pub(super) fn new(spec: &VhostUser, stop: Arc<EventFd>) -> Result<Endpoint, EndpointError> {
        let path = PathBuf::from(spec.path.as_str());
        let listening = match spec.role {
            SocketRole::Server => Some(OwnedSocket::bind(&path)?),
            SocketRole::Client => None,
        };
        Ok(Endpoint { path, listening, stop })
    }

    /// What the port waits for while no VMM is there.
    pub(super) fn waits_for(&self) -> &'static str {
        match self.listening {
            Some(_) => "waiting for a VMM to connect",
            None => "waiting for the VMM's socket",
        }
    }

    /// The connection of the next VMM; none if the port is to stop before one is there. A VMM that comes while another
    /// is served waits.
    pub(super) fn next_vmm(&self) -> Option<OwnedFd> {
        loop {
            let found = match &self.listening {
                Some(socket) => socket.listener().accept().map(|(stream, _)| stream),
                None => dial(&self.path, ACCEPT_TIME),
            };
            match found {
                Ok(stream) => return Some(stream.into()),
                // Nobody is there, or no longer; or we have no file descriptor left, which is no reason to give up.
                Err(error) => tracing::trace!(path = %self.path.display(), %error, "no VMM yet"),
            }
            if self.is_told_to_stop() {
                return None;
            }
        }
    }

    /// Waits until it is worth another look.
    fn is_told_to_stop(&self) -> bool {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        if let Some(socket) = &self.listening {
            fds.push(PollFd::from_borrowed_fd(socket.listener().as_fd(), PollFlags::IN));
        }
        let pause = Timespec::try_from(LOOK_EVERY).ok().filter(|_| self.listening.is_none());
        match poll(&mut fds, pause.as_ref()) {
            Ok(_) | Err(Errno::INTR) => !fds[0].revents().is_empty(),
            // Without poll(2) there is nothing to be done.
            Err(_) => true,
        }
    }
}
