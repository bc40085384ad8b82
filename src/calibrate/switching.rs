//! What the switch and the drivers of its guests take for a frame and for an entry.
//!
//! Pairs of raw guests and a switch without optimisations live on one thread, the guests with a clock of their own: in each
//! step one guest sends so many frames, enters the switch once for all of them, and its peer is interrupted and enters
//! once to have them copied. Steps of one frame and of 64 alternate, and tell the part of an entry from that of a frame.
//!
//! The pairs take turns, and their rings together are more than a core's own cache has room for: as on a host, where no
//! VM has that to itself.

use super::figure::{Clock, Figure, median};
use crate::host::{GuestBell, ThreadHost};
use hyper_switch_dataplane::api::{
    Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, Verdict, VlanMode,
};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{
    Backend, Control, CoreContext, PortConfig, QueuePair, Switch, SwitchConfig, VmBackend,
};
use hyper_switch_pvnet::guest::doorbell::Pace;
use hyper_switch_pvnet::guest::raw::{Address, RawConfig, RawGuest};
use hyper_switch_pvnet::guest::workload::Schedule;
use hyper_switch_pvnet::guest::{GuestConfig, Hypercall, Nic, Poll};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

/// Frames of a large step: a batch of the switch.
pub(super) const BATCH: u32 = 64;

/// Steps of each size that make a batch of the measurement.
pub(super) const STEPS: usize = 64;

/// Time passes in steps of this, longer than any doorbell waits.
pub(super) const STEP_NS: u64 = 1_000_000;

/// Bytes of the frames that tell what a frame costs: Ethernet's usual most.
pub(super) const FRAME_BYTES: usize = 1_500;

/// Pairs that take turns.
pub(super) const PAIRS: usize = 4;

/// What was measured with frames of [`FRAME_BYTES`], for each of them.
pub(super) struct Switching {
    /// An entry, without its frames.
    pub(super) entry: Figure,
    /// A receiver's entry, likewise.
    pub(super) receive_entry: Figure,
    /// A frame that is switched.
    pub(super) frame: Figure,
    /// A frame that is copied, its bytes included.
    pub(super) copied: Figure,
    /// What a miss adds.
    pub(super) miss: Figure,
    /// The sending guest's part.
    pub(super) send: Figure,
    /// The receiving guest's part.
    pub(super) receive: Figure,
}

/// Measures on the core that it is called on.
pub(super) fn measure(batches: usize) -> Switching {
    let clock = Clock::new();
    let [mut one, mut many] = [1, BATCH].map(|frames| Pairs::new(FRAME_BYTES, frames, Lookup::Hits));
    let mut missing = Pairs::new(FRAME_BYTES, 1, Lookup::Misses);
    let rounds: Vec<_> =
        (0..batches).map(|_| [one.batch(&clock), many.batch(&clock), missing.batch(&clock)]).collect();
    let figure = |of: fn(&[Step; 3]) -> f64| Figure::of(rounds.iter().map(of).collect());
    Switching {
        entry: figure(|[one, many, _]| one.transmit_ns - slope(one.transmit_ns, many.transmit_ns)),
        receive_entry: figure(|[one, many, _]| one.receive_ns - slope(one.receive_ns, many.receive_ns)),
        frame: figure(|[one, many, _]| slope(one.transmit_ns, many.transmit_ns)),
        copied: figure(|[one, many, _]| slope(one.receive_ns, many.receive_ns)),
        miss: figure(|[one, _, missing]| missing.transmit_ns + missing.answer_ns - one.transmit_ns),
        send: figure(|[_, many, _]| many.sender_ns / f64::from(BATCH)),
        receive: figure(|[_, many, _]| many.receiver_ns / f64::from(BATCH)),
    }
}

/// What one frame of `frame_bytes` costs the switch from ring to ring, in entries of as many as [`frames_at_once`] of
/// that size, with its share of both entries.
pub(super) fn ring_to_ring(frame_bytes: usize, batches: usize) -> Figure {
    let clock = Clock::new();
    let frames = frames_at_once(frame_bytes);
    let mut pairs = Pairs::new(frame_bytes, frames, Lookup::Hits);
    let mut batch = || {
        let step = pairs.batch(&clock);
        (step.transmit_ns + step.receive_ns) / f64::from(frames)
    };
    Figure::of((0..batches).map(|_| batch()).collect())
}

/// How many frames of that size the guests send at once: no more than their rings have buffers.
pub(super) fn frames_at_once(frame_bytes: usize) -> u32 {
    ((1 << 20) / frame_bytes.next_power_of_two()).clamp(16, BATCH as usize) as u32
}

/// What one frame more takes.
fn slope(one_ns: f64, many_ns: f64) -> f64 {
    (many_ns - one_ns) / f64::from(BATCH - 1)
}

/// Whether frames find a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    Hits,
    Misses,
}

/// What a step took, its parts apart.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Taking and answering upcalls.
    answer_ns: f64,
    sender_ns: f64,
    transmit_ns: f64,
    receive_ns: f64,
    receiver_ns: f64,
}

/// A guest's way into the switch, and the time that was spent there.
struct Way<'a> {
    switch: &'a Switch,
    cx: &'a mut CoreContext,
    host: &'a ThreadHost,
    bell: &'a GuestBell,
    port: PortId,
    clock: &'a Clock,
    transmit_ns: f64,
    receive_ns: f64,
    copied: u32,
}

impl Hypercall for Way<'_> {
    fn transmit(&mut self) {
        let begin = Instant::now();
        self.switch.transmit(self.cx, self.host, self.port);
        self.transmit_ns += self.clock.since(begin);
    }

    fn receive(&mut self) {
        let begin = Instant::now();
        let entered = self.switch.receive(self.cx, self.host, self.port);
        self.receive_ns += self.clock.since(begin);
        self.copied += entered.copied;
    }

    fn take_interrupt(&mut self) -> bool {
        self.bell.take()
    }
}

/// Pairs of guests that take turns.
struct Pairs(Vec<Pair>);

impl Pairs {
    /// Pairs of the same kind, see [`Pair::new`].
    fn new(frame_bytes: usize, frames: u32, lookup: Lookup) -> Pairs {
        Pairs((0..PAIRS).map(|_| Pair::new(frame_bytes, frames, lookup, Optimisations::NONE)).collect())
    }

    /// What a step takes, the median of many for each of its parts.
    fn batch(&mut self, clock: &Clock) -> Step {
        let steps: Vec<Step> = (0..STEPS)
            .map(|number| {
                let pair = &mut self.0[number % PAIRS];
                let (step, copied) = pair.step(clock);
                assert_eq!(copied, pair.frames, "each step carries its frames");
                step
            })
            .collect();
        let part = |of: fn(&Step) -> f64| median(steps.iter().map(of).collect());
        Step {
            answer_ns: part(|step| step.answer_ns),
            sender_ns: part(|step| step.sender_ns),
            transmit_ns: part(|step| step.transmit_ns),
            receive_ns: part(|step| step.receive_ns),
            receiver_ns: part(|step| step.receiver_ns),
        }
    }
}

/// Two guests on a switch.
pub(super) struct Pair {
    pub(super) switch: Arc<Switch>,
    control: Control,
    pub(super) host: ThreadHost,
    /// Who sends, and who receives.
    pub(super) ends: [End; 2],
    frames: u32,
    now_ns: u64,
}

/// A guest, with what is its own on the switch.
pub(super) struct End {
    guest: RawGuest,
    port: PortId,
    bell: Arc<GuestBell>,
    cx: CoreContext,
}

/// What a guest's look for work took, its entries apart, and how many frames one of them copied.
struct Look {
    guest_ns: f64,
    transmit_ns: f64,
    receive_ns: f64,
    copied: u32,
}

impl End {
    /// Looks for work until there is none.
    fn look(&mut self, switch: &Switch, host: &ThreadHost, clock: &Clock, now_ns: u64) -> Look {
        let End { guest, port, bell, cx } = self;
        let mut way =
            Way { switch, cx, host, bell, port: *port, clock, transmit_ns: 0.0, receive_ns: 0.0, copied: 0 };
        let begin = Instant::now();
        while guest.poll(now_ns, &mut way).expect("the switch keeps the rules") == Poll::Busy {}
        let guest_ns = clock.since(begin) - way.transmit_ns - way.receive_ns;
        let Way { transmit_ns, receive_ns, copied, .. } = way;
        Look { guest_ns, transmit_ns, receive_ns, copied }
    }

    /// Likewise, in the step of this number; answers what all of it took.
    pub(super) fn step(&mut self, switch: &Switch, host: &ThreadHost, clock: &Clock, number: u64) -> f64 {
        let Look { guest_ns, transmit_ns, receive_ns, .. } = self.look(switch, host, clock, number * STEP_NS);
        guest_ns + transmit_ns + receive_ns
    }
}

impl Pair {
    /// A pair whose one guest sends so many `frames` of `frame_bytes` in each step.
    pub(super) fn new(frame_bytes: usize, frames: u32, lookup: Lookup, optimisations: Optimisations) -> Pair {
        let config = SwitchConfig { max_ports: 2, cores: 2, optimisations, ..SwitchConfig::default() };
        let (switch, mut control) = Switch::new(config);
        let contexts =
            [0, 1].map(|core| switch.core_context(CoreId(core)).expect("nobody else has the context"));
        let [a, b] = [0, 1].map(|number| {
            let GuestConfig { mac, ip, .. } = GuestConfig::numbered(number);
            Address { mac, ip }
        });
        let guest = |own, peer| RawConfig { own, peer, frame_bytes, batching: Some(Pace::default()) };
        let per_s = NonZeroU64::new(u64::from(frames) * 1_000_000_000 / STEP_NS);
        let sender = RawGuest::sender(guest(a, b), Schedule::at_rate(per_s));
        let sender = sender.expect("a raw guest of a size that is known to be right");
        let receiver = RawGuest::receiver(guest(b, a)).expect("as the other");
        let ports = [("sender", sender.nic()), ("receiver", receiver.nic())]
            .map(|(name, nic)| control.attach(port(name, nic)).expect("there is room for two ports"));
        if lookup == Lookup::Hits {
            for (id, [from, to]) in [ports, [ports[1], ports[0]]].into_iter().enumerate() {
                let key = FlowKey { in_port: from.0.into(), ..FlowKey::ZERO };
                let mask = FlowKey { in_port: u32::MAX, ..FlowKey::ZERO };
                let actions = [Action::Output(to)].into();
                let flow = FlowSpec { id: FlowId(id as u64 + 1), matches: Match::new(key, mask), actions };
                control.install(&flow, Nanos(1)).expect("there is room for two flows");
            }
        }
        let bells = [(); 2].map(|()| Arc::new(GuestBell::of_this_thread()));
        let host = ThreadHost::of_guests(&bells);
        let parts = [sender, receiver].into_iter().zip(ports).zip(bells).zip(contexts);
        let mut ends = parts.map(|(((guest, port), bell), cx)| End { guest, port, bell, cx });
        let mut end = || ends.next().expect("there are two of each");
        let mut pair = Pair { switch, control, host, ends: [end(), end()], frames, now_ns: 1 };
        let clock = Clock::new();
        // Until the guests have greeted each other, and caches and buffers are warm.
        for _ in 0..STEPS {
            pair.step(&clock);
        }
        pair
    }

    /// One sends, the other receives. Answers what it took and how many frames came.
    fn step(&mut self, clock: &Clock) -> (Step, u32) {
        self.now_ns += STEP_NS;
        let Pair { switch, control, host, ends, now_ns, .. } = self;
        let ports = [ends[0].port, ends[1].port];
        let mut answer_ns = 0.0;
        let [sent, received] = ends.each_mut().map(|end| {
            let look = end.look(switch, host, clock, *now_ns);
            let begin = Instant::now();
            while let Some(upcall) = control.next_upcall() {
                let to = if upcall.key.in_port == u32::from(ports[0].0) { ports[1] } else { ports[0] };
                let verdict = Verdict::Execute([Action::Output(to)].into());
                control.resolve(&mut end.cx, &*host, upcall.id, verdict);
            }
            answer_ns += clock.since(begin);
            look
        });
        let step = Step {
            answer_ns,
            sender_ns: sent.guest_ns,
            transmit_ns: sent.transmit_ns,
            receive_ns: received.receive_ns,
            receiver_ns: received.guest_ns,
        };
        (step, received.copied)
    }
}

fn port(name: &str, nic: &Nic) -> PortConfig {
    PortConfig { name: name.to_owned(), vlan: VlanMode::Transparent, backend: Backend::Vm(rings(nic)) }
}

/// A guest's rings as a switch sees them.
pub(super) fn rings(nic: &Nic) -> VmBackend {
    VmBackend {
        queues: vec![QueuePair::new(nic.memory(), nic.tx_layout(), nic.rx_layout(), nic.queue_features())],
        mergeable: true,
        offloads: nic.offloads(),
    }
}
