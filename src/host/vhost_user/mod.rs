//! Ports of vhost-user: VMs of other processes, whose VMM hands their memory and rings over on a Unix socket.
//!
//! ```text
//!   VMM ── socket ──> port's thread ── service ──> switch     rings come, go, move in memory
//!    |                 (session)                     ^
//!   VM ─── kick ─────> worker ───────────────────────+        frames
//!    ^──── call ──────────────────────── host <──────+        interrupts
//! ```
//!
//! Each port has a thread, which has nothing to do but while the VMM talks: it waits for a VMM (`endpoint`), then carries
//! out what that says (`attendance`), and waits for the next when it is gone. The port keeps its number, name and counters
//! meanwhile. A VMM that says nothing, or half of something, holds up its own port's thread and nobody else.

mod attendance;
mod endpoint;
mod standing;

use super::service::ServiceHandle;
use super::worker::Workers;
use crate::port_spec::VhostUser;
use attendance::{Attendance, End};
use endpoint::Endpoint;
pub use endpoint::EndpointError;
use hyper_switch_dataplane::api::PortId;
use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::session::Offer;
use standing::Standing;
pub use standing::{VmmRings, VmmStanding};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A port's thread. Dropped, it ends, and the port has no VM any more.
pub(super) struct VhostUserPort {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    standing: Standing,
}

impl VhostUserPort {
    /// Serves VMMs on the socket of `spec` for `port`, which was reserved.
    ///
    /// # Errors
    /// The socket's path cannot be had, or the system gives us no thread.
    pub(super) fn start(
        spec: &VhostUser,
        name: &str,
        port: PortId,
        service: ServiceHandle,
        workers: Workers,
    ) -> Result<VhostUserPort, EndpointError> {
        let stop = Arc::new(EventFd::new().map_err(io::Error::from)?);
        let endpoint = Endpoint::new(spec, stop.clone())?;
        let offer = Offer { queue_pairs: spec.queues.get(), ..Offer::default() };
        let standing = Standing::default();
        standing.update(|now| now.waits_for = endpoint.waits_for().to_owned());
        let attendance =
            Attendance::new(port, name.to_owned(), offer, stop.clone(), service, workers, standing.clone());
        let life = Life { endpoint, attendance, name: name.to_owned(), standing: standing.clone() };
        let thread = std::thread::Builder::new().name(format!("vhost-{port}"));
        let thread = thread.spawn(move || life.live())?;
        Ok(VhostUserPort { stop, thread: Some(thread), standing })
    }

    /// How it stands with the VMM.
    pub(super) fn standing(&self) -> VmmStanding {
        self.standing.now()
    }
}

impl Drop for VhostUserPort {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// The thread's own side.
struct Life {
    endpoint: Endpoint,
    attendance: Attendance,
    name: String,
    standing: Standing,
}

impl Life {
    fn live(mut self) {
        while let Some(socket) = self.endpoint.next_vmm() {
            tracing::info!(port = %self.name, "a VMM is there");
            self.standing.update(|now| {
                now.is_present = true;
                now.sessions += 1;
            });
            let fault = match self.attend(socket) {
                End::Stopped => return,
                End::Closed => {
                    tracing::info!(port = %self.name, "the VMM is gone; waiting for the next");
                    None
                }
                End::Fault(fault) => {
                    tracing::error!(port = %self.name, %fault, "the VMM's session is over; the others forward on");
                    Some(fault.to_string())
                }
            };
            let waits_for = self.endpoint.waits_for();
            self.standing.update(|now| {
                now.is_present = false;
                now.waits_for = match &fault {
                    Some(fault) => format!("{fault}; {waits_for}"),
                    None => waits_for.to_owned(),
                };
                now.faults += u64::from(fault.is_some());
                now.last_end = Some(fault.unwrap_or_else(|| "the VMM closed its connection".to_owned()));
            });
        }
    }

    fn attend(&mut self, socket: OwnedFd) -> End {
        let end = self.attendance.attend(socket);
        self.attendance.disconnect();
        end
    }
}
