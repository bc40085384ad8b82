//! A front-end's session: what it said so far, and what follows from it. A state machine without I/O: it takes
//! messages, and answers replies and effects.
//!
//! # Which rings run
//!
//! A ring runs as soon as its size, its addresses and its kick are known, memory and features are set, and it
//! is enabled; without `PROTOCOL_FEATURES` it is enabled from the start ("Ring states"). Nothing depends on the
//! order in which that is said: QEMU enables rings before it sets features. A ring keeps running when it is
//! disabled later; whoever switches its lane then gives nothing to it, and discards what it sends. It is stopped
//! by `GET_VRING_BASE`, by a reset, and by status 0.
//!
//! A driver that knows no VIRTIO 1 has rings that never run, as its frames' headers are others. It is often firmware,
//! behind which a driver comes that does, so it is no fault.
//!
//! Two rings that run are a *lane*: queue `2n` receives, queue `2n + 1` transmits. [`Session::lanes`] is what
//! is to run now; effects say when to look. Rings that are stopped must first be let go, so a reply to what
//! stops them waits for [`Session::stopped`].
//!
//! # What is refused
//!
//! A front-end that lies or breaks the protocol ends its session by a [`SessionFault`]; if it waits for an
//! acknowledgement, [`Session::refusal`] is sent first. What is only not possible (an MTU, a write to the
//! configuration space) is acknowledged as failed if that was asked for, and else ignored. So is a request that
//! is not known, or not offered, if the front-end wants an acknowledgement; if not, it may wait for a reply of
//! a kind that nobody here knows, and the session ends. What is offered is served whether or not the front-end
//! said that it takes it: the specification has several requests depend on what the back-end offers alone.

use super::event::{EventFault, EventFd};
use super::features::{Features, ProtocolFeatures};
use super::inflight::{InflightFault, InflightRegion};
use super::memory::{MAX_REGIONS, MapFault, MemoryTable};
use super::message::{
    ConfigRange, Fds, Header, InflightDescription, MAX_CONFIG_BYTES, Message, MessageFault, Reply, Request,
    VringFd, VringState,
};
use super::vring::Vring;
use crate::mem::GuestMemory;
use crate::ring::QueueAddrs;
use core::ops::Range;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The most queue pairs of a port.
pub const MAX_PAIRS: u16 = 8;
/// MTUs that a network may have: what IPv4 asks for at least (RFC 791), and what the field holds.
const MTUS: core::ops::RangeInclusive<u64> = 68..=65_535;
/// The link is up (VIRTIO 1.2, clause 5.1.4, `VIRTIO_NET_S_LINK_UP`).
const LINK_UP: u16 = 1;
/// Live migration may write what a guest may not (`VHOST_USER_SET_CONFIG`, flags).
const CONFIG_MIGRATION: u32 = 1;

/// What a port offers its front-end.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Of what a port can do ([`Features::ALL`]), what this one does.
    pub features: Features,
    /// Queue pairs, from 1 to [`MAX_PAIRS`].
    pub queue_pairs: u16,
    /// MTU in bytes, for a front-end that has none of its own.
    pub mtu: u16,
    /// The VM's address, for a front-end that has none of its own.
    pub mac: Option<[u8; 6]>,
}

impl Default for Offer {
    /// One pair and everything that a port can do.
    fn default() -> Offer {
        Offer { features: Features::ALL, queue_pairs: 1, mtu: 1500, mac: None }
    }
}

impl Offer {
    fn features(&self) -> Features {
        let several = self.queue_pairs > 1;
        let features = self.features.without(if several { Features(0) } else { Features::MQ });
        let features = features.without(if self.mac.is_some() { Features(0) } else { Features::MAC });
        Features(features.0 & Features::ALL.0)
    }
}

/// A front-end lied, or broke the protocol, or the system would not do what it asked for. Its session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each field is named in the message")]
pub enum SessionFault {
    /// No front-end may send it, whatever came before.
    #[error(transparent)]
    Message(#[from] MessageFault),
    /// Its memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MapFault),
    /// The same of its in-flight region.
    #[error(transparent)]
    Inflight(#[from] InflightFault),
    /// What it sent for events is not for events.
    #[error(transparent)]
    Event(#[from] EventFault),
    /// It took features that it was not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// The same of protocol features.
    #[error("protocol features {0:#x} were not offered")]
    ProtocolFeatures(u64),
    /// It changed features of rings that run.
    #[error("features were changed while rings run")]
    FeaturesInUse,
    /// There is no such queue.
    #[error("queue {index} of {queues}")]
    NoSuchQueue { index: u32, queues: u16 },
    /// A split ring's size is not a power of two, or any is out of bounds.
    #[error("queue {queue}: a ring of {size} entries")]
    RingSize { queue: u16, size: u32 },
    /// The ring cannot stand there.
    #[error("queue {queue}: a base of {base:#x}")]
    RingBase { queue: u16, base: u32 },
    /// Logging, the one flag, was not offered.
    #[error("queue {queue}: address flags {flags:#x}")]
    RingFlags { queue: u16, flags: u32 },
    /// A part of a ring, named by its user address, is not in memory.
    #[error("queue {queue}: ring part at user address {addr:#x} is not in memory")]
    RingOutsideMemory { queue: u16, addr: u64 },
    /// A ring's size, place or base was changed while it runs.
    #[error("queue {queue} was changed while it runs")]
    RingRuns { queue: u16 },
    /// The ring would have to be polled for ever, which this switch does not do.
    #[error("queue {queue} has no kick")]
    NoKick { queue: u16 },
    /// Neither enabled nor disabled.
    #[error("queue {queue}: {value} neither enables nor disables")]
    Enable { queue: u16, value: u32 },
    /// A device's status has eight bits.
    #[error("status {0:#x}")]
    Status(u64),
    /// Not known, or not offered.
    #[error("request {0} is not known here")]
    UnknownRequest(u32),
    /// A file was truncated and a page that it lost was touched.
    #[error("a file with memory was truncated")]
    MemoryLost,
}

/// What the host is to do about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Stop all lanes, then call [`Session::stopped`]: the front-end waits for it.
    Stop,
    /// [`Session::lanes`] are others than before. Those that ran are to be stopped, and [`Session::stopped`]
    /// called, before it is asked where each begins.
    Lanes,
    /// Lanes are enabled or disabled, and nothing else about them is new.
    Enabled,
    /// The lanes' guest addresses are what they were, in other memory: [`Session::memory`].
    Memory,
    /// A lane's eventfds are others. The driver may wait already for what the new call would have told it.
    Events {
        /// The pair.
        pair: u16,
    },
    /// The guest's MTU is to be this, in bytes.
    Mtu(u16),
    /// The guest moved here: tell the network, as it cannot (`VHOST_USER_SEND_RARP`).
    Announce([u8; 6]),
}

/// What a message came to.
#[derive(Debug)]
pub struct Handled {
    /// What to send. None of [`Effect::Stop`], whose reply comes from [`Session::stopped`].
    pub reply: Option<Reply>,
    /// What to do, best before the reply is sent.
    pub effect: Effect,
}

/// A queue that is to run.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// Entries.
    pub size: u16,
    /// Guest addresses, in [`Session::memory`]. Alignment is not checked.
    pub addrs: QueueAddrs,
    /// Where it begins, as in `SET_VRING_BASE`.
    pub base: u32,
    /// Readable when the driver kicks.
    pub kick: Arc<EventFd>,
    /// The driver's interrupt; none if it polls.
    pub call: Option<Arc<EventFd>>,
    /// To be signalled at a fault.
    pub err: Option<Arc<EventFd>>,
    /// Its number.
    pub queue: u16,
    /// Where its chains in flight are to be recorded, if the front-end keeps a record.
    pub inflight: Option<Arc<InflightRegion>>,
}

/// A queue pair that is to run.
#[derive(Clone, Debug)]
pub struct LaneSetup {
    /// Which.
    pub pair: u16,
    /// The queue that the VM receives from.
    pub rx: QueueSetup,
    /// The queue that the VM transmits into.
    pub tx: QueueSetup,
    /// Whether frames are given to it. If not, what it sends is to be discarded.
    pub enabled: bool,
}

/// What is due when the lanes have stopped.
#[derive(Clone, Copy)]
enum Owed {
    /// Say where a queue stands.
    Base { request: u32, queue: u16 },
    /// Say that they did.
    Ack,
    /// Forget all that is known of rings, and say so.
    Reset,
}

/// What a request came to.
enum Outcome {
    Reply(Reply),
    Done(Effect),
    /// Not possible, and no harm.
    Refused,
    /// Lanes run that must be stopped first. Acknowledged then, if that was asked for.
    Stopping(Owed),
}

/// One front-end's session.
pub struct Session {
    offer: Offer,
    features: Option<Features>,
    protocol: ProtocolFeatures,
    mtu: u16,
    status: u8,
    memory: MemoryTable,
    rings: Vec<Vring>,
    inflight: Option<Arc<InflightRegion>>,
    /// What is due when the lanes have stopped, and the request that is acknowledged then, if one is.
    owed: Option<(Owed, Option<u32>)>,
    lost: Arc<EventFd>,
}

impl Session {
    /// A session in which nothing was said.
    ///
    /// # Panics
    /// If the offer has no queue pairs or too many.
    pub fn new(offer: Offer) -> Result<Session, Errno> {
        assert!((1..=MAX_PAIRS).contains(&offer.queue_pairs), "{} queue pairs", offer.queue_pairs);
        let lost = Arc::new(EventFd::new()?);
        Ok(Session {
            features: None,
            protocol: ProtocolFeatures::default(),
            mtu: offer.mtu,
            status: 0,
            memory: MemoryTable::empty(lost.clone()),
            rings: (0..2 * offer.queue_pairs).map(|_| Vring::default()).collect(),
            inflight: None,
            owed: None,
            offer,
            lost,
        })
    }

    /// Carries out what a message asks for. After a fault the session is over, whatever it says then.
    ///
    /// # Panics
    /// If [`Session::stopped`] is due.
    pub fn handle(&mut self, message: &Message, fds: Fds) -> Result<Handled, SessionFault> {
        assert!(self.owed.is_none(), "lanes are to be stopped before the next message");
        let header = message.header;
        let request = message.request(fds)?;
        let outcome = self.carry_out(request, message)?;
        // Asked now, as the message that negotiates acknowledgements may want one.
        let ack = self.wants_ack(&header).then_some(header.request);
        let handled = |reply, effect| Ok(Handled { reply, effect });
        match outcome {
            Outcome::Reply(reply) => handled(Some(reply), Effect::None),
            Outcome::Done(effect) => handled(ack.map(|request| Reply::ack(request, true)), effect),
            Outcome::Refused => handled(ack.map(|request| Reply::ack(request, false)), Effect::None),
            Outcome::Stopping(owed) => {
                self.owed = Some((owed, ack));
                handled(None, Effect::Stop)
            }
        }
    }

    /// The lanes have stopped, each of these queues at this base; no frame of theirs is in flight. Answers what
    /// the front-end waits for, if it does. Lanes that are still to run are in [`Session::lanes`].
    pub fn stopped(&mut self, bases: impl IntoIterator<Item = (u16, u32)>) -> Option<Reply> {
        for (queue, base) in bases {
            if let Some(ring) = self.rings.get_mut(usize::from(queue)) {
                ring.keep_base(base);
            }
        }
        let (owed, ack) = self.owed.take()?;
        match owed {
            Owed::Base { request, queue } => return Some(self.base_reply(request, queue)),
            Owed::Ack => {}
            Owed::Reset => self.forget_rings(),
        }
        ack.map(|request| Reply::ack(request, true))
    }

    /// What a front-end is told whose message was a fault, if it waits to be told.
    pub fn refusal(&self, header: &Header) -> Option<Reply> {
        self.wants_ack(header).then(|| Reply::ack(header.request, false))
    }

    fn wants_ack(&self, header: &Header) -> bool {
        header.needs_reply() && self.protocol.has(ProtocolFeatures::REPLY_ACK)
    }

    /// The lanes that are to run now, by their pairs' numbers.
    pub fn lanes(&self) -> Vec<LaneSetup> {
        (0..self.offer.queue_pairs)
            .filter_map(|pair| {
                let Range { start: rx, .. } = queues_of(pair);
                Some(LaneSetup {
                    pair,
                    rx: self.queue_setup(rx)?,
                    tx: self.queue_setup(rx + 1)?,
                    enabled: self.pair_is_enabled(pair),
                })
            })
            .collect()
    }

    fn queue_setup(&self, queue: u16) -> Option<QueueSetup> {
        let ring = &self.rings[usize::from(queue)];
        let (size, addrs) = ring.running?;
        let packed = self.features().packed();
        Some(QueueSetup {
            size,
            addrs,
            base: ring.base(packed),
            kick: ring.kick.clone()?,
            call: ring.call.clone(),
            err: ring.err.clone(),
            queue,
            // Features that came after it may be of the other format.
            inflight: self.inflight.clone().filter(|region| region.is_packed() == packed),
        })
    }

    /// What the front-end took; nothing before it did.
    pub fn features(&self) -> Features {
        self.features.unwrap_or_default()
    }

    /// The guest's memory as it is now.
    pub fn memory(&self) -> Arc<GuestMemory> {
        self.memory.memory()
    }

    /// Readable when memory may have become lost: [`Session::check_memory`].
    pub fn lost_event(&self) -> impl AsFd + use<> {
        self.lost.clone()
    }

    /// Whether all memory is there, after [`Session::lost_event`]. It may have been memory that is no longer
    /// the session's.
    pub fn check_memory(&self) -> Result<(), SessionFault> {
        self.lost.drain();
        let lost = self.memory.is_lost() || self.inflight.as_ref().is_some_and(|region| region.is_lost());
        if lost { Err(SessionFault::MemoryLost) } else { Ok(()) }
    }

    fn carry_out(&mut self, request: Request, message: &Message) -> Result<Outcome, SessionFault> {
        let code = message.header.request;
        let number = |value| Outcome::Reply(Reply::number(code, value));
        Ok(match request {
            Request::GetFeatures => number(self.offer.features().0),
            Request::SetFeatures(features) => Outcome::Done(self.set_features(Features(features))?),
            Request::GetProtocolFeatures => number(ProtocolFeatures::ALL.0),
            Request::SetProtocolFeatures(features) => {
                let beyond = features & !ProtocolFeatures::ALL.0;
                if beyond != 0 {
                    return Err(SessionFault::ProtocolFeatures(beyond));
                }
                self.protocol = ProtocolFeatures(features);
                Outcome::Done(Effect::None)
            }
            Request::SetOwner => Outcome::Done(Effect::None),
            // "Either ignore this message, or use it to disable all rings": Cloud Hypervisor sends it when its guest
            // reboots, and its rings' memory is not rings' for a while.
            Request::ResetOwner => {
                self.rings.iter_mut().for_each(|ring| ring.enabled = false);
                self.stop(0..self.queues(), Owed::Ack)
            }
            // The memory stays: a front-end that configures slots sends no more than what changed since.
            Request::ResetDevice => {
                (self.features, self.inflight, self.status) = (None, None, 0);
                let outcome = self.stop(0..self.queues(), Owed::Reset);
                if matches!(outcome, Outcome::Done(_)) {
                    self.forget_rings();
                }
                outcome
            }

            Request::SetMemTable(table) => self.set_memory(self.memory.replaced(table)?)?,
            // Up to version 8.0, QEMU asks for both once for each queue pair.
            Request::AddMemReg(region, _) if self.memory.has(region) => Outcome::Done(Effect::None),
            Request::AddMemReg(region, file) => self.set_memory(self.memory.with(region, &file)?)?,
            Request::RemMemReg(region) => match self.memory.without(region) {
                Some(memory) => self.set_memory(memory)?,
                None => Outcome::Done(Effect::None),
            },
            Request::GetMaxMemSlots => number(MAX_REGIONS as u64),

            Request::SetVringNum(VringState { index, num }) => {
                let queue = self.queue(index)?;
                self.ring(queue).set_size(queue, num)?;
                Outcome::Done(self.start(queue)?)
            }
            Request::SetVringAddr(addrs) => {
                let queue = self.queue(addrs.index)?;
                self.ring(queue).set_addrs(queue, addrs)?;
                Outcome::Done(self.start(queue)?)
            }
            Request::SetVringBase(VringState { index, num }) => {
                let queue = self.queue(index)?;
                self.ring(queue).set_base(queue, num)?;
                Outcome::Done(Effect::None)
            }
            Request::GetVringBase(VringState { index, .. }) => {
                let queue = self.queue(index)?;
                let outcome = self.stop(queue..queue + 1, Owed::Base { request: code, queue });
                match outcome {
                    Outcome::Done(_) => Outcome::Reply(self.base_reply(code, queue)),
                    outcome => outcome,
                }
            }
            Request::SetVringKick(VringFd { index, fd }) => {
                let queue = self.queue(index.into())?;
                let kick = EventFd::adopt(fd.ok_or(SessionFault::NoKick { queue })?)?;
                self.ring(queue).kick = Some(Arc::new(kick));
                self.events_changed(queue)?
            }
            Request::SetVringCall(VringFd { index, fd }) => {
                let queue = self.queue(index.into())?;
                self.ring(queue).call = fd.map(EventFd::adopt).transpose()?.map(Arc::new);
                self.events_changed(queue)?
            }
            Request::SetVringErr(VringFd { index, fd }) => {
                let queue = self.queue(index.into())?;
                self.ring(queue).err = fd.map(EventFd::adopt).transpose()?.map(Arc::new);
                self.events_changed(queue)?
            }
            Request::SetVringEnable(VringState { index, num }) => {
                let queue = self.queue(index)?;
                Outcome::Done(self.enable(queue, num)?)
            }
            // Front-ends differ in what they count: QEMU its pairs, Cloud Hypervisor and others its queues. The
            // number of queues has none stop too early, and an index that is too high is a fault.
            Request::GetQueueNum => number(self.queues().into()),

            Request::GetInflightFd(asked) => self.create_inflight(asked, message)?,
            Request::SetInflightFd(description, file) => {
                self.check_shape(description)?;
                let packed = self.features().packed();
                let region = InflightRegion::map(description, &file, packed, &self.lost)?;
                self.inflight = Some(Arc::new(region));
                Outcome::Done(if self.lanes().is_empty() { Effect::None } else { Effect::Lanes })
            }

            Request::SendRarp(mac) => Outcome::Done(Effect::Announce(mac)),
            Request::NetSetMtu(mtu) if MTUS.contains(&mtu) => {
                self.mtu = mtu as u16;
                Outcome::Done(Effect::Mtu(self.mtu))
            }
            Request::NetSetMtu(_) => Outcome::Refused,
            Request::GetConfig(range) => {
                let space = self.config_space();
                let end = range.offset.checked_add(range.size);
                let content = end.and_then(|end| space.get(range.offset as usize..end as usize));
                Outcome::Reply(Reply::config(code, range, content))
            }
            // All of it is the device's. A front-end that was migrated here brings what it was told before.
            Request::SetConfig(ConfigRange { flags: CONFIG_MIGRATION, .. }) => Outcome::Done(Effect::None),
            Request::SetConfig(_) => Outcome::Refused,

            Request::GetStatus => number(self.status.into()),
            Request::SetStatus(status) => {
                self.status = u8::try_from(status).map_err(|_| SessionFault::Status(status))?;
                if self.status != 0 {
                    return Ok(Outcome::Done(Effect::None));
                }
                self.stop(0..self.queues(), Owed::Ack)
            }

            Request::Other if self.wants_ack(&message.header) => Outcome::Refused,
            Request::Other => return Err(SessionFault::UnknownRequest(code)),
        })
    }

    fn queues(&self) -> u16 {
        2 * self.offer.queue_pairs
    }

    /// A queue that exists.
    fn queue(&self, index: u32) -> Result<u16, SessionFault> {
        let queues = self.queues();
        let queue = u16::try_from(index).ok().filter(|&queue| queue < queues);
        queue.ok_or(SessionFault::NoSuchQueue { index, queues })
    }

    fn ring(&mut self, queue: u16) -> &mut Vring {
        &mut self.rings[usize::from(queue)]
    }

    fn is_enabled(&self, queue: u16) -> bool {
        let always = self.features.is_some_and(|features| !features.has(Features::PROTOCOL_FEATURES));
        always || self.rings[usize::from(queue)].enabled
    }

    fn pair_is_enabled(&self, pair: u16) -> bool {
        queues_of(pair).all(|queue| self.is_enabled(queue))
    }

    /// Whether both of a queue's pair run.
    fn in_lane(&self, queue: u16) -> bool {
        queues_of(queue / 2).all(|queue| self.rings[usize::from(queue)].running.is_some())
    }

    /// Has a queue run if it can. Answers [`Effect::Lanes`] if its pair is a lane thereby.
    fn start(&mut self, queue: u16) -> Result<Effect, SessionFault> {
        let Some(features) = self.features.filter(|features| features.has(Features::VERSION_1)) else {
            return Ok(Effect::None);
        };
        if !self.is_enabled(queue) {
            return Ok(Effect::None);
        }
        let ring = &mut self.rings[usize::from(queue)];
        let started = ring.start(queue, features.packed(), &self.memory)?;
        Ok(if started && self.in_lane(queue) { Effect::Lanes } else { Effect::None })
    }

    /// The same of all queues.
    fn start_all(&mut self) -> Result<Effect, SessionFault> {
        let mut effect = Effect::None;
        for queue in 0..self.queues() {
            if self.start(queue)? == Effect::Lanes {
                effect = Effect::Lanes;
            }
        }
        Ok(effect)
    }

    /// Has these queues run no more, until the next kick is set for each. What is owed is so only if the host
    /// has lanes to stop.
    fn stop(&mut self, queues: Range<u16>, owed: Owed) -> Outcome {
        let live = queues.clone().any(|queue| self.in_lane(queue));
        for queue in queues {
            let ring = self.ring(queue);
            (ring.running, ring.kick) = (None, None);
        }
        if live { Outcome::Stopping(owed) } else { Outcome::Done(Effect::None) }
    }

    fn forget_rings(&mut self) {
        self.rings.iter_mut().for_each(|ring| *ring = Vring::default());
    }

    fn base_reply(&self, request: u32, queue: u16) -> Reply {
        let base = self.rings[usize::from(queue)].base(self.features().packed());
        Reply::vring_state(request, VringState { index: queue.into(), num: base })
    }

    fn set_features(&mut self, features: Features) -> Result<Effect, SessionFault> {
        let beyond = features.without(self.offer.features());
        if beyond != Features(0) {
            return Err(SessionFault::Features(beyond.0));
        }
        if self.features == Some(features) {
            return Ok(Effect::None);
        }
        if self.rings.iter().any(|ring| ring.running.is_some()) {
            return Err(SessionFault::FeaturesInUse);
        }
        self.features = Some(features);
        self.start_all()
    }

    fn set_memory(&mut self, memory: MemoryTable) -> Result<Outcome, SessionFault> {
        let packed = self.features().packed();
        let mut moved = false;
        for (queue, ring) in (0..).zip(&mut self.rings) {
            moved |= ring.relocate(queue, packed, &memory)?;
        }
        self.memory = memory;
        let live = !self.lanes().is_empty();
        let started = self.start_all()? == Effect::Lanes;
        Ok(Outcome::Done(match (live, moved || started) {
            (_, true) => Effect::Lanes,
            (true, false) => Effect::Memory,
            (false, false) => Effect::None,
        }))
    }

    fn events_changed(&mut self, queue: u16) -> Result<Outcome, SessionFault> {
        let live = self.in_lane(queue);
        let started = self.start(queue)?;
        Ok(Outcome::Done(if live { Effect::Events { pair: queue / 2 } } else { started }))
    }

    fn enable(&mut self, queue: u16, value: u32) -> Result<Effect, SessionFault> {
        let enabled = match value {
            0 => false,
            1 => true,
            value => return Err(SessionFault::Enable { queue, value }),
        };
        let pair = queue / 2;
        let before = self.pair_is_enabled(pair);
        self.ring(queue).enabled = enabled;
        if self.in_lane(queue) {
            let changed = self.pair_is_enabled(pair) != before;
            return Ok(if changed { Effect::Enabled } else { Effect::None });
        }
        self.start(queue)
    }

    fn create_inflight(
        &self,
        asked: InflightDescription,
        message: &Message,
    ) -> Result<Outcome, SessionFault> {
        self.check_shape(asked)?;
        let packed = self.features().packed();
        let (region, file) = InflightRegion::create(asked.queues, asked.queue_size, packed)?;
        let asked_bytes = message.payload.len();
        Ok(Outcome::Reply(Reply::inflight(message.header.request, region, asked_bytes, file)))
    }

    fn check_shape(&self, description: InflightDescription) -> Result<(), SessionFault> {
        let InflightDescription { queues, queue_size, .. } = description;
        let possible = (1..=self.queues()).contains(&queues) && (1..=32_768).contains(&queue_size);
        if possible { Ok(()) } else { Err(InflightFault::Shape { queues, queue_size }.into()) }
    }

    /// The device's configuration space (VIRTIO 1.2, clause 5.1.4): address, status, pairs, MTU, and zeros for
    /// what belongs to features that are not offered.
    fn config_space(&self) -> [u8; MAX_CONFIG_BYTES] {
        let mut space = [0; MAX_CONFIG_BYTES];
        space[..6].copy_from_slice(&self.offer.mac.unwrap_or_default());
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&self.offer.queue_pairs.to_le_bytes());
        space[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        space
    }
}

/// The receiving and the transmitting queue of a pair (VIRTIO 1.2, clause 5.1.2).
fn queues_of(pair: u16) -> Range<u16> {
    2 * pair..2 * pair + 2
}
