//! A trial: one workload between all pairs at once, as everybody sees it who takes part.
//!
//! ```text
//!   threads of the VMs                         the thread that watches
//!   count what arrives ------- probes -------> is every pair up? does something arrive?
//!   go on until <------------- stop ---------- the time is over, or something is wrong
//! ```
//!
//! Measured is what arrives between two instants: the first when every pair is up, which takes the resolution of
//! addresses, the learning of the switch and the handshake out; the second when the time is over. Nothing here
//! waits without a deadline.

use crate::cli::Workload;
use crate::exit::{Failure, FailureKind};
use crate::host::GuestBell;
use crate::progress::Progress;
use crate::table::span;
use hdrhistogram::Histogram;
use hyper_switch_pvnet::guest::workload::Sequence;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The port that servers listen on.
pub(super) const SERVER_PORT: u16 = 5001;

/// Bytes of an Ethernet, an IPv4 and a UDP header, in front of a datagram's payload.
const UDP_HEADERS_BYTES: usize = 14 + 20 + 8;

/// How long is waited for what should come at once: longer than TCP takes to try again a few times.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at whether all pairs talk.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Between two looks while it is measured: enough for the eye, and little beside what an idle switch uses.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// The longest round trip that is told apart from longer ones: none is longer than our patience.
const LONGEST_NS: u64 = PATIENCE.as_nanos() as u64;

/// Significant decimal digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// One workload between all pairs.
pub(super) struct Trial {
    pub(super) workload: Workload,
    pub(super) duration: Duration,
    /// Seeds whatever is random.
    pub(super) seed: u64,
    /// Bytes of each frame of [`Workload::Udp`] and [`Workload::Raw`].
    pub(super) frame_bytes: usize,
    /// Packets of these two that each pair sends a second; without it, as many as go.
    pub(super) rate_per_s: Option<NonZeroU64>,
    probes: Box<[Probe]>,
    measuring: AtomicBool,
    stopping: AtomicBool,
    /// How long nothing may arrive at a pair.
    patience: Duration,
    /// Who may sleep without a deadline of its own when it is time to stop.
    sleepers: Mutex<Vec<Arc<GuestBell>>>,
}

/// What arrived at one pair: payload bytes of a stream, answers, or datagrams. On cache lines of its own, as the
/// threads of other pairs write to theirs.
#[repr(align(128))]
struct Probe {
    arrived: AtomicU64,
    sequence: Mutex<Option<Sequence>>,
    latencies_ns: Mutex<Histogram<u64>>,
}

/// One end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Begins: connects, sends, asks.
    Client,
    /// Waits for the client.
    Server,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// A VM of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vm {
    /// Counted from 0.
    pub(super) pair: usize,
    pub(super) side: Side,
}

impl Vm {
    /// The VM's number, from 0, among all of the trial.
    pub(super) fn number(self) -> usize {
        2 * self.pair + usize::from(self.side == Side::Server)
    }

    /// The VM with that number.
    pub(super) fn numbered(number: usize) -> Vm {
        let side = if number.is_multiple_of(2) { Side::Client } else { Side::Server };
        Vm { pair: number / 2, side }
    }

    /// The name of the VM's port: `a0` talks to `b0`.
    pub(super) fn name(self) -> String {
        let side = if self.side == Side::Client { 'a' } else { 'b' };
        format!("{side}{}", self.pair)
    }
}

/// What was measured.
pub(super) struct Measured {
    /// From the first instant to the second.
    pub(super) elapsed: Duration,
    /// What arrived between the two, at all pairs: bytes, answers or datagrams, as the workload has it.
    pub(super) arrived: u64,
}

/// Stops its trial when it goes, however that comes.
pub(super) struct StopOnDrop<'t>(pub(super) &'t Trial);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        // A bell that joins later is of a thread that finds the trial stopped before it sleeps.
        self.0.sleepers().iter().for_each(|bell| bell.ring());
    }
}

impl Trial {
    pub(super) fn new(
        workload: Workload,
        pairs: u16,
        duration: Duration,
        seed: u64,
        frame_bytes: usize,
        rate_per_s: Option<NonZeroU64>,
    ) -> Trial {
        let probe = || {
            let histogram = Histogram::new_with_bounds(1, LONGEST_NS, LATENCY_DIGITS);
            let latencies_ns = Mutex::new(histogram.expect("the bounds are constants that suit each other"));
            Probe { arrived: AtomicU64::new(0), sequence: Mutex::default(), latencies_ns }
        };
        Trial {
            workload,
            duration,
            seed,
            frame_bytes,
            rate_per_s,
            probes: (0..pairs).map(|_| probe()).collect(),
            measuring: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            patience: PATIENCE,
            sleepers: Mutex::default(),
        }
    }

    /// The VMs in the order of their numbers.
    pub(super) fn vms(&self) -> impl ExactSizeIterator<Item = Vm> + use<> {
        (0..2 * self.probes.len()).map(Vm::numbered)
    }

    /// The seed of one pair's data.
    pub(super) fn pair_seed(&self, pair: usize) -> u64 {
        // An odd constant keeps the seeds of neighbouring runs and pairs apart.
        self.seed.wrapping_add((pair as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Bytes of a datagram's payload.
    pub(super) fn datagram_bytes(&self) -> usize {
        self.frame_bytes.saturating_sub(UDP_HEADERS_BYTES)
    }

    /// Whether the VMs are to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Has `bell` rung when the trial stops.
    pub(super) fn wake_at_stop(&self, bell: Arc<GuestBell>) {
        self.sleepers().push(bell);
    }

    fn sleepers(&self) -> MutexGuard<'_, Vec<Arc<GuestBell>>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how much has arrived at `pair` since the beginning. For the one thread of the pair that counts.
    pub(super) fn arrived(&self, pair: usize, total: u64) {
        self.probes[pair].arrived.store(total, Ordering::Relaxed);
    }

    /// Says what became of the numbered packets of `pair`, from the first to the last.
    pub(super) fn ended_with(&self, pair: usize, sequence: Sequence) {
        *lock(&self.probes[pair].sequence) = Some(sequence);
    }

    /// Numbered packets of all pairs that were lost, and those that came out of order, if packets are numbered.
    pub(super) fn lost_and_reordered(&self) -> Option<(u64, u64)> {
        let sequences = self.probes.iter().map(|probe| *lock(&probe.sequence));
        sequences.fold(None, |sum, sequence| {
            let (lost, reordered) = sum.unwrap_or_default();
            sequence.map(|one| (lost + one.lost(), reordered + one.reordered())).or(sum)
        })
    }

    /// Notes how long an answer took, if that is being measured.
    pub(super) fn answered_in(&self, pair: usize, latency_ns: u64) {
        if self.measuring.load(Ordering::Relaxed) {
            lock(&self.probes[pair].latencies_ns).saturating_record(latency_ns);
        }
    }

    /// The latencies of all pairs together, in nanoseconds.
    pub(super) fn latencies_ns(&self) -> Histogram<u64> {
        let mut sum = lock(&self.probes[0].latencies_ns).clone();
        for probe in &self.probes[1..] {
            sum.add(&*lock(&probe.latencies_ns)).expect("all have the same bounds");
        }
        sum
    }

    /// Watches the trial from its start to the end of its time, or until `interrupted`, and shows how it goes.
    /// Answers what was measured; nothing if it was interrupted before that began.
    ///
    /// # Errors
    /// Nothing arrives at some pair, or `ended` says that a VM is there no longer.
    pub(super) fn watch(
        &self,
        interrupted: &AtomicBool,
        ended: impl Fn() -> bool,
        progress: &mut Progress,
    ) -> Result<Option<Measured>, Failure> {
        let mut last = vec![(0, Instant::now()); self.probes.len()];
        while last.iter().any(|(arrived, _)| *arrived == 0) {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.look(&mut last, &ended, LOOK_EVERY)?;
        }

        self.measuring.store(true, Ordering::Relaxed);
        let (start, before) = (Instant::now(), self.totals());
        loop {
            let left = self.duration.saturating_sub(start.elapsed());
            self.look(&mut last, &ended, left.min(SHOW_EVERY))?;
            let (elapsed, now) = (start.elapsed(), self.totals());
            let arrived = now.iter().zip(&before).map(|(now, before)| now - before);
            let measured = Measured { elapsed, arrived: arrived.clone().sum() };
            let is_interrupted = interrupted.load(Ordering::Relaxed);
            if elapsed < self.duration && !is_interrupted {
                progress.update(elapsed, &self.in_words(&measured));
                continue;
            }
            self.measuring.store(false, Ordering::Relaxed);
            // Less than our patience, it may still have been all the time that there was.
            return match arrived.enumerate().find(|(_, arrived)| *arrived == 0) {
                Some((pair, _)) if !is_interrupted => Err(silence(pair, self.duration)),
                _ => Ok(Some(measured)),
            };
        }
    }

    /// Lets some time pass and looks whether something arrived at every pair within our patience.
    fn look(
        &self,
        last: &mut [(u64, Instant)],
        ended: &impl Fn() -> bool,
        pause: Duration,
    ) -> Result<(), Failure> {
        std::thread::sleep(pause);
        if ended() {
            return Err(Failure::new(FailureKind::Runtime, "a VM ended before its time"));
        }
        for ((pair, probe), (seen, since)) in self.probes.iter().enumerate().zip(last) {
            let arrived = probe.arrived.load(Ordering::Relaxed);
            if arrived != *seen {
                (*seen, *since) = (arrived, Instant::now());
            } else if since.elapsed() >= self.patience {
                return Err(silence(pair, self.patience));
            }
        }
        Ok(())
    }

    /// What has arrived at each pair since the beginning.
    fn totals(&self) -> Vec<u64> {
        self.probes.iter().map(|probe| probe.arrived.load(Ordering::Relaxed)).collect()
    }

    fn in_words(&self, measured: &Measured) -> String {
        let rate = measured.per_second();
        match self.workload {
            Workload::Stream => format!("{:.2} Gb/s", rate * 8.0 / 1e9),
            Workload::Rr => format!("{rate:.0} transactions/s"),
            Workload::Udp => format!("{rate:.0} datagrams/s"),
            Workload::Raw => format!("{rate:.0} packets/s"),
        }
    }
}

impl Measured {
    /// What arrived, a second.
    pub(super) fn per_second(&self) -> f64 {
        match self.elapsed.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.arrived as f64 / seconds,
        }
    }
}

fn silence(pair: usize, time: Duration) -> Failure {
    let [client, server] = [Side::Client, Side::Server].map(|side| Vm { pair, side }.name());
    let message = format!("nothing arrived between {client} and {server} for {}", span(time));
    Failure::new(FailureKind::Runtime, message)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    /// Longer than any of these tests takes, unless it fails.
    const LONG: Duration = Duration::from_secs(60);

    fn trial(pairs: u16, duration: Duration) -> Trial {
        Trial::new(Workload::Rr, pairs, duration, 1, 60, None)
    }

    fn watch(trial: &Trial, interrupted: bool, ended: bool) -> Result<Option<Measured>, Failure> {
        let mut progress = Progress::start("test", trial.duration, true);
        trial.watch(&AtomicBool::new(interrupted), || ended, &mut progress)
    }

    /// Holds that a trial in which nothing arrives at one pair ends, and names that pair. The other is up.
    #[test]
    fn silence_ends_a_trial() {
        let trial = Trial { patience: Duration::from_millis(1), ..trial(2, LONG) };
        trial.arrived(0, 1);
        let failure = watch(&trial, false, false).map(|_| ()).unwrap_err();
        assert_eq!(failure.message, "nothing arrived between a1 and b1 for 1 ms");
        trial.arrived(1, 1);
        let failure = watch(&trial, false, false).map(|_| ()).unwrap_err();
        assert_eq!(
            failure.message, "nothing arrived between a0 and b0 for 1 ms",
            "that it was up is not enough"
        );
    }

    /// Holds that a VM that ends before its time ends the trial.
    #[test]
    fn a_vm_that_ends_ends_the_trial() {
        let failure = watch(&trial(1, LONG), false, true).map(|_| ()).unwrap_err();
        assert_eq!(failure.message, "a VM ended before its time");
    }

    /// Holds that an interruption before every pair is up measures nothing, and a later one what came until then.
    #[test]
    fn an_interruption_ends_the_trial() {
        let trial = trial(2, LONG);
        trial.arrived(0, 1);
        assert!(watch(&trial, true, false).unwrap().is_none());
        trial.arrived(1, 1);
        // Nobody sees the pairs come up between two looks, so the interruption has to come behind the first.
        let interrupted = AtomicBool::new(false);
        let looked = || {
            interrupted.store(true, Ordering::Relaxed);
            false
        };
        let mut progress = Progress::start("test", LONG, true);
        assert!(trial.watch(&interrupted, looked, &mut progress).unwrap().is_some());
    }

    /// Holds that what arrived before the measurement is not part of it. By a measurement in which nothing more
    /// came, which is a failure, as our patience is not all that counts.
    #[test]
    fn what_came_before_does_not_count() {
        let trial = trial(1, Duration::from_millis(1));
        trial.answered_in(0, 7_000);
        trial.arrived(0, 1_000);
        let failure = watch(&trial, false, false).map(|_| ()).unwrap_err();
        assert_eq!(failure.message, "nothing arrived between a0 and b0 for 1 ms");
        assert!(trial.latencies_ns().is_empty());
    }

    /// Holds that what arrives during the measurement is counted, with its latency. An answer comes with each look,
    /// so that their number is known.
    #[test]
    fn what_arrives_in_time_is_measured() {
        let trial = trial(1, Duration::from_millis(1));
        let answers = AtomicU64::new(0);
        let look = || {
            trial.answered_in(0, 7_000);
            trial.arrived(0, answers.fetch_add(1, Ordering::Relaxed) + 1);
            false
        };
        let mut progress = Progress::start("test", LONG, true);
        let measured = trial.watch(&AtomicBool::new(false), look, &mut progress).unwrap().unwrap();
        assert_eq!(trial.latencies_ns().count_at(7_000), measured.arrived);
        assert!(measured.arrived > 0 && measured.elapsed >= trial.duration);
        assert_eq!(measured.arrived + 1, answers.into_inner(), "the first brought the pair up");
    }

    /// Holds that stopping wakes who sleeps without a deadline, or is about to.
    #[test]
    fn stopping_wakes_sleepers() {
        let trial = trial(1, LONG);
        thread::scope(|scope| {
            let (asleep, sleeping) = mpsc::channel();
            let trial = &trial;
            let sleep = move || {
                let bell = Arc::new(GuestBell::of_this_thread());
                trial.wake_at_stop(bell.clone());
                asleep.send(()).unwrap();
                while !trial.is_stopping() {
                    bell.wait(None);
                    bell.take();
                }
            };
            let sleeper = scope.spawn(sleep);
            sleeping.recv().unwrap();
            drop(StopOnDrop(trial));
            sleeper.join().unwrap();
        });
    }
}
