//! What the threads of the contenders take for a frame, as `hyper-switch pair --arch` runs them.
//!
//! As in `switching`, pairs of raw guests and their switch live on one core: in each step one guest of each pair sends so many
//! frames, the switch takes them and gives them to the others. Steps of one frame and of a ring full of them alternate: what
//! a frame more takes is a frame's, with its share of the batches that it goes in.
//!
//! A worker has slept before it works, and its core has been another thread's meanwhile; so has a domain's, as the VMs that it
//! interrupts take it. So the core is handed over to another thread and back before. What that takes again and again, one time
//! at once after the other, is charged where the core changes over and is not counted here; what it takes beside that, as
//! caches hold frames and not the scheduler, is.

use super::figure::{Clock, Figure, median};
use super::switching::{FRAME_BYTES, PAIRS, STEP_NS, STEPS, rings};
use super::waking::Mate;
use crate::exit::Failure;
use crate::host::GuestBell;
use crate::pair::{Contender, Relay, by_hand};
use hyper_switch_pvnet::guest::doorbell::Pace;
use hyper_switch_pvnet::guest::raw::{Address, RawConfig, RawGuest};
use hyper_switch_pvnet::guest::workload::Schedule;
use hyper_switch_pvnet::guest::{GuestConfig, Hypercall, Poll};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

/// Frames of a large step: as many as a guest's ring has room for, which one fills that sends as fast as it can.
pub(super) const RING: u32 = 256;

/// What was measured with frames of [`FRAME_BYTES`], the copy included.
pub(super) struct Relaying {
    /// A frame that is taken from its sender and left to its receiver.
    pub(super) taken: Figure,
    /// A frame that is given to its receiver.
    pub(super) given: Figure,
}

/// Measures on `core`.
pub(super) fn measure(core: usize, contender: Contender, batches: usize) -> Result<Relaying, Failure> {
    Mate::beside(core, |mate| {
        let clock = Clock::new();
        let [mut one, mut many] = [1, RING].map(|frames| Host::new(contender, frames, mate));
        let rounds: Vec<_> = (0..batches).map(|_| [one.batch(&clock), many.batch(&clock)]).collect();
        let figure = |of: fn(&Step) -> f64| {
            let slope = |[one, many]: &[Step; 2]| (of(many) - of(one)) / f64::from(RING - 1);
            Figure::of(rounds.iter().map(slope).collect())
        };
        Relaying { taken: figure(|step| step.take_ns), given: figure(|step| step.give_ns) }
    })
}

/// What a step took for each pair, its parts apart.
#[derive(Clone, Copy, Default)]
struct Step {
    take_ns: f64,
    give_ns: f64,
}

/// Pairs of guests, and a contender between them.
struct Host<'a> {
    contender: Contender,
    relay: Box<dyn Relay>,
    pairs: Vec<[End; 2]>,
    frames: u32,
    now_ns: u64,
    mate: &'a Mate,
}

/// A guest, and its way into the switch.
struct End {
    guest: RawGuest,
    way: Box<dyn Hypercall>,
}

impl End {
    fn poll(&mut self, now_ns: u64) {
        let End { guest, way } = self;
        while guest.poll(now_ns, &mut **way).expect("the contenders keep the rules") == Poll::Busy {}
    }
}

impl Host<'_> {
    /// Pairs whose one guest sends so many `frames` in each step.
    fn new(contender: Contender, frames: u32, mate: &Mate) -> Host<'_> {
        let address = |number: usize| {
            let GuestConfig { mac, ip, .. } = GuestConfig::numbered(number as u16);
            Address { mac, ip }
        };
        let per_s = NonZeroU64::new(u64::from(frames) * 1_000_000_000 / STEP_NS);
        let guest = |number: usize| {
            let (own, peer) = (address(number), address(number ^ 1));
            let config = RawConfig { own, peer, frame_bytes: FRAME_BYTES, batching: Some(Pace::default()) };
            let guest = if number.is_multiple_of(2) {
                RawGuest::sender(config, Schedule::at_rate(per_s))
            } else {
                RawGuest::receiver(config)
            };
            guest.expect("a raw guest of a size that is known to be right")
        };
        let guests: Vec<_> = (0..2 * PAIRS).map(guest).collect();
        let bell = || Arc::new(GuestBell::of_this_thread());
        let vms = guests.iter().map(|guest| (rings(guest.nic()), bell())).collect();
        let (relay, ways) = by_hand(contender, vms, &bell());
        let mut ends = guests.into_iter().zip(ways).map(|(guest, way)| End { guest, way });
        let pairs = (0..PAIRS).map(|_| [(); 2].map(|()| ends.next().expect("two for each pair"))).collect();
        let mut host = Host { contender, relay, pairs, frames, now_ns: 1, mate };
        let clock = Clock::new();
        // Until the guests have greeted each other, and caches and buffers are warm.
        for _ in 0..STEPS {
            host.step(&clock);
        }
        host
    }

    /// What a step takes, the median of several for each of its parts.
    fn batch(&mut self, clock: &Clock) -> Step {
        let steps: Vec<Step> = (0..STEPS / PAIRS)
            .map(|_| {
                let (step, came) = self.step(clock);
                assert_eq!(came, PAIRS as u64 * u64::from(self.frames), "each step carries its frames");
                step
            })
            .collect();
        let part = |of: fn(&Step) -> f64| median(steps.iter().map(of).collect());
        Step { take_ns: part(|step| step.take_ns), give_ns: part(|step| step.give_ns) }
    }

    /// One guest of each pair sends, the other receives. Answers what that took and how many frames came.
    fn step(&mut self, clock: &Clock) -> (Step, u64) {
        self.now_ns += STEP_NS;
        let Host { contender, relay, pairs, now_ns, mate, .. } = self;
        let came =
            |pairs: &[[End; 2]]| pairs.iter().map(|[_, to]| to.guest.sequence().received()).sum::<u64>();
        let before = came(pairs);
        pairs.iter_mut().for_each(|[from, _]| from.poll(*now_ns));
        let (hand_over_ns, mut step) = (mate.usual_ns(clock), Step::default());
        let mut is_busy = true;
        while is_busy {
            is_busy = false;
            for pair in 0..PAIRS {
                let begin = Instant::now();
                mate.hand_over();
                // A worker goes on until there is nothing; the domain takes a batch from each VM and then gives.
                while relay.take(2 * pair) {
                    is_busy = true;
                    if *contender == Contender::DriverDomain {
                        break;
                    }
                }
                step.take_ns += (clock.since(begin) - hand_over_ns) / PAIRS as f64;
            }
            for pair in 0..PAIRS {
                let begin = Instant::now();
                let mut without_ns = 0.0;
                if *contender == Contender::Vhost {
                    mate.hand_over();
                    without_ns = hand_over_ns;
                }
                while relay.give(2 * pair + 1) {
                    is_busy = true;
                    if *contender == Contender::DriverDomain {
                        break;
                    }
                }
                step.give_ns += (clock.since(begin) - without_ns) / PAIRS as f64;
            }
        }
        pairs.iter_mut().for_each(|[_, to]| to.poll(*now_ns));
        // What they say, or ask to be told, comes before the next step.
        for vm in (0..2 * PAIRS).rev() {
            while relay.turn(vm) {}
        }
        (step, came(pairs) - before)
    }
}
