//! The host's part for one VMM: it carries out on the switch what a session says, as the daemon does, and holds each answer
//! and each effect against what was said.

use super::super::support::{Bench, TestVm};
use hyper_switch_dataplane::api::PortId;
use hyper_switch_dataplane::{Backend, ExchangeError, Map, QueuePair, VmBackend};
use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction};
use hyper_switch_pvnet::ring::{Position, QueueLayout, QueueSizeError, RingFormat};
use hyper_switch_pvnet::vhost_user::features::{Features, ProtocolFeatures};
use hyper_switch_pvnet::vhost_user::message::{Fds, HEADER_BYTES, Header, Message, Reply};
use hyper_switch_pvnet::vhost_user::session::{Effect, LaneSetup, Offer, QueueSetup, Session};
use hyper_switch_pvnet::vhost_user::socket::Connection;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

/// Requests that are answered whether or not an acknowledgement was asked for ("Front-end message types").
const QUESTIONS: [u32; 8] = [1, 11, 15, 17, 24, 31, 36, 40];
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_INFLIGHT_FD: u32 = 31;
/// A reply's version and that it is one.
const REPLY_FLAGS: u32 = 5;

/// The VMM is not served any more.
#[derive(Debug)]
pub struct Over;

/// The switch, the port, and a VM that talks with the one behind it.
pub struct Switch {
    pub bench: Bench,
    pub port: PortId,
    pub victim: TestVm,
}

/// A VMM that is served.
pub struct Host {
    pub session: Session,
    connection: Connection,
    queue_pairs: u16,
    /// The queue pairs that are connected, with the numbers of their lanes.
    pub connected: Vec<(LaneSetup, PortId)>,
    /// Whether acknowledgements were negotiated.
    acks: bool,
    /// The file of the last in-flight region that was made.
    pub inflight: Option<OwnedFd>,
    /// Bytes that were answered.
    pub answered: usize,
    /// All memory that there was.
    memories: Vec<Weak<GuestMemory>>,
}

impl Host {
    pub fn new(offer: Offer, socket: OwnedFd) -> Host {
        Host {
            queue_pairs: offer.queue_pairs,
            session: Session::new(offer).unwrap(),
            connection: Connection::new(socket),
            connected: Vec::new(),
            acks: false,
            inflight: None,
            answered: 0,
            memories: Vec::new(),
        }
    }

    /// Does all that has arrived.
    pub fn serve(&mut self, switch: &mut Switch) -> Result<(), Over> {
        loop {
            self.session.check_memory().map_err(|_| Over)?;
            self.connection.flush().map_err(|_| Over)?;
            let Some((message, fds)) = self.connection.recv().map_err(|_| Over)? else { return Ok(()) };
            self.hear(switch, &message, fds)?;
        }
    }

    fn hear(&mut self, switch: &mut Switch, message: &Message, fds: Fds) -> Result<(), Over> {
        let before = State::of(&self.session);
        let handled = self.session.handle(message, fds).and_then(|handled| {
            self.session.check_memory()?;
            Ok(handled)
        });
        let Ok(handled) = handled else {
            let refusal = self.session.refusal(&message.header);
            assert_eq!(refusal.is_some(), self.wants_ack(&message.header), "{message:?}");
            refusal.map_or(Ok(()), |refusal| self.send(&message.header, refusal))?;
            return Err(Over);
        };
        if message.header.request == SET_PROTOCOL_FEATURES {
            let bits = u64::from_ne_bytes(message.payload.as_slice().try_into().unwrap());
            self.acks = ProtocolFeatures(bits).has(ProtocolFeatures::REPLY_ACK);
        }
        self.memories.push(Arc::downgrade(&self.session.memory()));
        State::of(&self.session).assert_follows(&before, handled.effect);
        self.assert_lanes();
        let reply = match handled.effect {
            Effect::None | Effect::Announce(_) | Effect::Mtu(_) => handled.reply,
            Effect::Stop => {
                assert!(handled.reply.is_none(), "{message:?}");
                let bases = self.disconnect(switch);
                let reply = self.session.stopped(bases);
                self.connect(switch)?;
                reply
            }
            Effect::Lanes => {
                let bases = self.disconnect(switch);
                assert!(self.session.stopped(bases).is_none());
                self.connect(switch)?;
                handled.reply
            }
            Effect::Enabled => {
                let enabled = |(at, lane): (usize, LaneSetup)| u8::from(lane.enabled) << at;
                let enabled = self.session.lanes().into_iter().enumerate().map(enabled).sum();
                let Bench { host, control, cx, .. } = &mut switch.bench;
                assert!(control.set_lanes(cx, host, switch.port, enabled));
                handled.reply
            }
            Effect::Memory => {
                self.exchange(switch)?;
                handled.reply
            }
            Effect::Events { pair } => {
                assert!(self.connected.iter().any(|(lane, _)| lane.pair == pair));
                handled.reply
            }
        };
        let due = QUESTIONS.contains(&message.header.request) || self.wants_ack(&message.header);
        assert_eq!(reply.is_some(), due, "{message:?}");
        reply.map_or(Ok(()), |reply| self.send(&message.header, reply))
    }

    fn wants_ack(&self, header: &Header) -> bool {
        self.acks && header.needs_reply()
    }

    fn send(&mut self, asked: &Header, reply: Reply) -> Result<(), Over> {
        let mut words = reply.bytes[..HEADER_BYTES].chunks(4);
        let mut word = || u32::from_ne_bytes(words.next().unwrap().try_into().unwrap());
        let head = [word(), word(), word()];
        assert_eq!(head, [asked.request, REPLY_FLAGS, (reply.bytes.len() - HEADER_BYTES) as u32]);
        if let Some(file) = &reply.fd {
            assert_eq!(asked.request, GET_INFLIGHT_FD);
            self.inflight = Some(file.try_clone().unwrap());
        }
        self.answered += reply.bytes.len();
        self.connection.send(reply).map_err(|_| Over)
    }

    /// Whether all answers are in the socket.
    pub fn has_answered(&self) -> bool {
        !self.connection.wants_to_write()
    }

    /// A lane that is to run has queues of its own, in memory, by a driver of VIRTIO 1.
    fn assert_lanes(&self) {
        let lanes = self.session.lanes();
        assert!(lanes.is_sorted_by(|a, b| a.pair < b.pair));
        for lane in &lanes {
            assert!(lane.pair < self.queue_pairs);
            assert_eq!([lane.rx.queue, lane.tx.queue], [2 * lane.pair, 2 * lane.pair + 1]);
            assert!(self.session.features().has(Features::VERSION_1));
            for queue in [&lane.rx, &lane.tx] {
                let layout = self.layout(queue);
                assert!(matches!(layout, Ok(_) | Err(QueueSizeError::Unaligned(_))), "{layout:?} {queue:?}");
            }
        }
    }

    fn layout(&self, queue: &QueueSetup) -> Result<QueueLayout, QueueSizeError> {
        QueueLayout::with_format(self.format(), &self.session.memory(), queue.size, queue.addrs)
    }

    /// The format of its rings.
    pub fn format(&self) -> RingFormat {
        if self.session.features().packed() { RingFormat::Packed } else { RingFormat::Split }
    }

    fn queue(&self, setup: &QueueSetup, direction: Direction) -> Result<DeviceQueue, Over> {
        let (memory, layout) = (self.session.memory(), self.layout(setup).map_err(|_| Over)?);
        let features = self.session.features().queue_features();
        let record = setup.inflight.as_ref().map(|region| region.record(setup.queue, setup.size));
        Ok(match record.transpose().map_err(|_| Over)?.flatten() {
            Some(record) => DeviceQueue::recorded(memory, layout, direction, features, record),
            None => DeviceQueue::resume(memory, layout, direction, features, Position(setup.base)).unwrap(),
        })
    }

    fn connect(&mut self, switch: &mut Switch) -> Result<(), Over> {
        let lanes = self.session.lanes();
        if lanes.is_empty() {
            return Ok(());
        }
        let queues = lanes.iter().map(|lane| {
            let (tx, rx) =
                (self.queue(&lane.tx, Direction::Readable)?, self.queue(&lane.rx, Direction::Writable)?);
            Ok(QueuePair { tx, rx, enabled: lane.enabled })
        });
        let features = self.session.features();
        let backend = Backend::Vm(VmBackend {
            queues: queues.collect::<Result<_, Over>>()?,
            mergeable: features.mergeable(),
            offloads: features.guest_offloads(),
        });
        switch.bench.control.connect(switch.port, backend).unwrap();
        self.connected = lanes.into_iter().zip(switch.bench.control.lanes(switch.port)).collect();
        Ok(())
    }

    /// Disconnects what is connected. Answers at which base each queue stands.
    pub fn disconnect(&mut self, switch: &mut Switch) -> Vec<(u16, u32)> {
        let connected = std::mem::take(&mut self.connected);
        if connected.is_empty() {
            return Vec::new();
        }
        assert!(switch.bench.control.disconnect(switch.port));
        let gone = (0..8).find_map(|_| {
            // Frames of the VM may wait for the other one.
            switch.bench.receive(&switch.victim);
            switch.victim.received();
            switch.bench.carry_on().gone.pop()
        });
        let queues = gone.expect("nothing of the VM's is in use").queues;
        assert_eq!(queues.len(), connected.len());
        let bases = connected.iter().zip(queues).flat_map(|((lane, _), queues)| {
            [(lane.rx.queue, queues.rx.position().0), (lane.tx.queue, queues.tx.position().0)]
        });
        bases.collect()
    }

    fn exchange(&self, switch: &mut Switch) -> Result<(), Over> {
        let map = |lane: &LaneSetup| -> Result<Map, QueueSizeError> {
            Ok(Map { memory: self.session.memory(), tx: self.layout(&lane.tx)?, rx: self.layout(&lane.rx)? })
        };
        let maps = self.session.lanes().iter().map(map).collect::<Result<Vec<_>, _>>();
        let (maps, Bench { host, control, cx, .. }) = (maps.map_err(|_| Over)?, &mut switch.bench);
        let exchanged: Result<(), ExchangeError> = control.exchange(cx, host, switch.port, &maps);
        exchanged.unwrap();
        Ok(())
    }

    /// The VMM is gone. Answers whether all of its memory is.
    pub fn leave(mut self, switch: &mut Switch) -> bool {
        self.disconnect(switch);
        let memories = std::mem::take(&mut self.memories);
        drop(self);
        memories.iter().all(|memory| memory.strong_count() == 0)
    }
}

/// What of a session effects tell.
struct State {
    memory: *const GuestMemory,
    lanes: Vec<LaneSetup>,
}

impl State {
    fn of(session: &Session) -> State {
        State { memory: Arc::as_ptr(&session.memory()), lanes: session.lanes() }
    }

    /// Nothing else has changed since `before` than an effect tells.
    fn assert_follows(&self, before: &State, effect: Effect) {
        if matches!(effect, Effect::Stop | Effect::Lanes) {
            return;
        }
        let same = |what: fn(&LaneSetup) -> String, but: Option<u16>| {
            let of = |state: &State| -> Vec<String> {
                state.lanes.iter().filter(|lane| Some(lane.pair) != but).map(what).collect()
            };
            assert_eq!(of(self), of(before), "{effect:?}");
        };
        same(places, None);
        let rewired = if let Effect::Events { pair } = effect { Some(pair) } else { None };
        same(wires, rewired);
        if effect != Effect::Enabled {
            same(|lane| lane.enabled.to_string(), None);
        }
        if effect != Effect::Memory && !self.lanes.is_empty() {
            assert_eq!(self.memory, before.memory, "{effect:?}");
        }
    }
}

/// Where a lane's rings are and where they begin.
fn places(lane: &LaneSetup) -> String {
    let place = |queue: &QueueSetup| {
        let QueueSetup { size, addrs, base, queue, inflight, .. } = queue;
        format!("{queue} {size} {addrs:?} {base} {:?}", inflight.as_ref().map(Arc::as_ptr))
    };
    format!("{} {} {}", lane.pair, place(&lane.rx), place(&lane.tx))
}

/// By what it is told, and tells.
fn wires(lane: &LaneSetup) -> String {
    let ends = |queue: &QueueSetup| {
        let QueueSetup { kick, call, err, .. } = queue;
        let optional = [call, err].map(|event| event.as_ref().map(Arc::as_ptr));
        format!("{:?} {optional:?}", Arc::as_ptr(kick))
    };
    format!("{} {} {}", lane.pair, ends(&lane.rx), ends(&lane.tx))
}
