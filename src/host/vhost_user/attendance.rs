//! A VMM is attended to: its session, and what follows from it in the switch.

use super::super::lane::LaneWires;
use super::super::service::ServiceHandle;
use super::super::worker::Workers;
use super::standing::{Standing, VmmRings};
use hyper_switch_dataplane::api::PortId;
use hyper_switch_dataplane::{AttachError, Backend, Map, QueuePair, VmBackend};
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction};
use hyper_switch_pvnet::ring::inflight::InflightError;
use hyper_switch_pvnet::ring::{Position, PositionError, QueueLayout, QueueSizeError, RingFormat};
use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::message::{Fds, Message};
use hyper_switch_pvnet::vhost_user::session::{Effect, LaneSetup, Offer, QueueSetup, Session, SessionFault};
use hyper_switch_pvnet::vhost_user::socket::{Connection, SocketFault};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Why a VMM is no longer attended to.
pub(super) enum End {
    /// The port is to stop.
    Stopped,
    /// The VMM closed its connection.
    Closed,
    /// It broke the protocol, or what it asked for cannot be had.
    Fault(Fault),
}

/// What ended a session against the VMM's will.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Session(#[from] SessionFault),
    #[error(transparent)]
    Socket(#[from] SocketFault),
    #[error("queue pair {pair}: {fault}")]
    Ring { pair: u16, fault: RingSetupFault },
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("the system: {0}")]
    System(#[from] Errno),
}

/// Why a ring cannot be where the VMM says that it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingSetupFault {
    #[error(transparent)]
    Layout(#[from] QueueSizeError),
    #[error(transparent)]
    Position(#[from] PositionError),
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

/// One port's way of attending to VMMs.
pub(super) struct Attendance {
    port: PortId,
    name: String,
    offer: Offer,
    stop: Arc<EventFd>,
    service: ServiceHandle,
    workers: Workers,
    standing: Standing,
    /// The queue pairs that are connected to the switch, with the numbers of their lanes.
    connected: Vec<(LaneSetup, PortId)>,
}

impl Attendance {
    pub(super) fn new(
        port: PortId,
        name: String,
        offer: Offer,
        stop: Arc<EventFd>,
        service: ServiceHandle,
        workers: Workers,
        standing: Standing,
    ) -> Attendance {
        Attendance { port, name, offer, stop, service, workers, standing, connected: Vec::new() }
    }

    /// Attends to the VMM on `socket` until that is over.
    pub(super) fn attend(&mut self, socket: OwnedFd) -> End {
        match self.converse(socket) {
            Ok(end) => end,
            Err(Fault::Socket(SocketFault::Closed)) => End::Closed,
            Err(fault) => End::Fault(fault),
        }
    }

    fn converse(&mut self, socket: OwnedFd) -> Result<End, Fault> {
        let mut session = Session::new(self.offer.clone())?;
        let mut connection = Connection::new(socket);
        let lost = session.lost_event();
        loop {
            let writable = if connection.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(&lost, PollFlags::IN),
                PollFd::new(&connection, PollFlags::IN | writable),
            ];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [stop, lost, _] = fds.map(|fd| !fd.revents().is_empty());
            if stop {
                return Ok(End::Stopped);
            }
            if lost {
                session.check_memory()?;
            }
            connection.flush()?;
            // One message at a time, so that a VMM that never stops talking does not keep us from stopping.
            if let Some((message, fds)) = connection.recv()? {
                self.hear(&mut session, &mut connection, &message, fds)?;
            }
        }
    }

    fn hear(
        &mut self,
        session: &mut Session,
        connection: &mut Connection,
        message: &Message,
        fds: Fds,
    ) -> Result<(), Fault> {
        let handled = session.handle(message, fds).and_then(|handled| {
            // What is wrong with its memory may have shown itself in what it asked for.
            session.check_memory().map(|()| handled)
        });
        let handled = match handled {
            Ok(handled) => handled,
            Err(fault) => {
                if let Some(refusal) = session.refusal(&message.header) {
                    connection.send(refusal)?;
                }
                return Err(fault.into());
            }
        };
        match handled.effect {
            Effect::None => {}
            Effect::Stop => {
                let bases = self.disconnect();
                let reply = session.stopped(bases);
                self.connect(session)?;
                if let Some(reply) = reply {
                    connection.send(reply)?;
                }
            }
            Effect::Lanes => {
                let bases = self.disconnect();
                session.stopped(bases);
                self.connect(session)?;
            }
            Effect::Enabled => self.enable(session),
            Effect::Memory => self.exchange(session)?,
            Effect::Events { pair } => self.rewire(session, pair),
            // Asked for after a live migration, which is not offered: a network learns by the VM's first frame.
            Effect::Announce(_) => {}
            Effect::Mtu(bytes) => tracing::info!(port = %self.name, bytes, "the VM's MTU"),
        }
        if let Some(reply) = handled.reply {
            connection.send(reply)?;
        }
        Ok(())
    }

    /// Connects the queue pairs that are to run to the switch.
    fn connect(&mut self, session: &Session) -> Result<(), Fault> {
        let lanes = session.lanes();
        if lanes.is_empty() {
            return Ok(());
        }
        let queues = lanes
            .iter()
            .map(|lane| queue_pair(session, lane).map_err(|fault| Fault::Ring { pair: lane.pair, fault }));
        let features = session.features();
        let backend = Backend::Vm(VmBackend {
            queues: queues.collect::<Result<_, _>>()?,
            mergeable: features.mergeable(),
            offloads: features.guest_offloads(),
        });
        let port = self.port;
        let wires: Vec<_> = lanes.iter().map(LaneWires::of).collect();
        let wired = wires.clone();
        // None: the switch is stopping.
        let Some(numbers) = self.service.ask(move |service| service.connect(port, backend, wired)) else {
            return Ok(());
        };
        let numbers = numbers?;
        tracing::info!(port = %self.name, queue_pairs = lanes.len(), packed = features.packed(), "the VM's rings are connected");
        let rings = VmmRings {
            queue_pairs: lanes.len() as u16,
            packed: features.packed(),
            sends: features.host_offloads(),
            receives: features.guest_offloads(),
        };
        self.standing.update(|now| now.rings = Some(rings));
        for (number, wires) in numbers.iter().zip(wires) {
            self.workers.watch_lane(*number, wires);
        }
        self.connected = lanes.into_iter().zip(numbers).collect();
        Ok(())
    }

    /// Disconnects what is connected, and answers at which base each queue stands. Nothing of the VM's is in use then.
    pub(super) fn disconnect(&mut self) -> Vec<(u16, u32)> {
        if self.connected.is_empty() {
            return Vec::new();
        }
        self.standing.update(|now| now.rings = None);
        let connected = std::mem::take(&mut self.connected);
        for (_, number) in &connected {
            self.workers.forget_lane(*number);
        }
        let queues = self.service.disconnect(self.port);
        let bases = connected.iter().zip(&queues).flat_map(|((lane, _), queues)| {
            let rx = 2 * lane.pair;
            [(rx, queues.rx.position().0), (rx + 1, queues.tx.position().0)]
        });
        bases.collect()
    }

    /// Has frames go to the pairs that are enabled now.
    fn enable(&mut self, session: &Session) {
        let enabled =
            session.lanes().iter().zip(0..).fold(0, |set, (lane, bit)| set | u8::from(lane.enabled) << bit);
        let port = self.port;
        self.service.ask(move |service| service.set_lanes(port, enabled));
    }

    /// Has the rings go on in the memory as it is now. The VMM hears no more until nothing of what was before is in use,
    /// so that it cannot have us map ever more.
    fn exchange(&mut self, session: &Session) -> Result<(), Fault> {
        let map = |lane: &LaneSetup| {
            let layout = |queue| layout(session, queue);
            let map = layout(&lane.tx)
                .and_then(|tx| Ok(Map { memory: session.memory(), tx, rx: layout(&lane.rx)? }));
            map.map_err(|fault| Fault::Ring { pair: lane.pair, fault: fault.into() })
        };
        let maps: Vec<_> = session.lanes().iter().map(map).collect::<Result<_, _>>()?;
        if let Err(error) = self.service.exchange(self.port, maps) {
            // Only if the port has no such rings, and then there is nothing to be exchanged.
            tracing::debug!(port = %self.name, %error, "the VM's memory is not exchanged");
        }
        Ok(())
    }

    /// Uses the eventfds of a pair that are new.
    fn rewire(&mut self, session: &Session, pair: u16) {
        let lanes = session.lanes();
        let Some(lane) = lanes.iter().find(|lane| lane.pair == pair) else { return };
        let Some((_, number)) = self.connected.iter().find(|(lane, _)| lane.pair == pair) else { return };
        let (number, wires) = (*number, LaneWires::of(lane));
        let wired = wires.clone();
        self.service.ask(move |service| service.wire(number, wired));
        // The driver may wait already for what it would have been told by the new call, or have kicked the old kick.
        wires.tx.interrupt();
        wires.rx.interrupt();
        self.workers.watch_lane(number, wires);
    }
}

fn layout(session: &Session, queue: &QueueSetup) -> Result<QueueLayout, QueueSizeError> {
    let format = if session.features().packed() { RingFormat::Packed } else { RingFormat::Split };
    QueueLayout::with_format(format, &session.memory(), queue.size, queue.addrs)
}

fn queue_pair(session: &Session, lane: &LaneSetup) -> Result<QueuePair, RingSetupFault> {
    let queue = |setup: &QueueSetup, direction| -> Result<DeviceQueue, RingSetupFault> {
        let (memory, layout) = (session.memory(), layout(session, setup)?);
        let features = session.features().queue_features();
        let record =
            setup.inflight.as_ref().map(|region| region.record(setup.queue, setup.size)).transpose()?;
        match record.flatten() {
            Some(record) => Ok(DeviceQueue::recorded(memory, layout, direction, features, record)),
            None => Ok(DeviceQueue::resume(memory, layout, direction, features, Position(setup.base))?),
        }
    };
    Ok(QueuePair {
        tx: queue(&lane.tx, Direction::Readable)?,
        rx: queue(&lane.rx, Direction::Writable)?,
        enabled: lane.enabled,
    })
}
