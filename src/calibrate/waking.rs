//! What threads pay to wake each other up, to fall asleep, to take turns on a core, for a claim and for a timer; and how long it
//! takes until who was woken runs.

use super::core::on_core;
use super::figure::{Clock, Figure, median, nanoseconds};
use crate::exit::Failure;
use crate::host::{GuestBell, now};
use crossbeam_channel::bounded;
use hyper_switch_pvnet::priority::run_only_when_idle;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Times that a thread is woken up in a batch.
const WAKES: u32 = 64;

/// How long a thread has been about to sleep before it is woken up: until it sleeps, though its core, which has nothing else
/// to do, does not yet; and until that sleeps, too.
pub(super) const JUST_ASLEEP: Duration = Duration::from_micros(2);
pub(super) const ASLEEP: Duration = Duration::from_micros(50);

/// Times between them at which it is looked whether the core sleeps, in microseconds; for so many batches less.
const DOZES_US: [u64; 9] = [3, 4, 6, 8, 10, 12, 16, 24, 32];
const FEWER: usize = 8;

/// Times that a core is handed over in a batch.
const TURNS: u32 = 256;

/// Times in a batch that a thread wakes one up that is to have its core, and what it does before: for how long, and how many
/// bytes it touches, a burst of frames.
const PREEMPTIONS: u32 = 16;
const BURST: Duration = Duration::from_micros(20);
const BURST_BYTES: usize = 64 * 1_500;

/// How long a guest without a stack sleeps at most: it arms a timer each time.
const GREETING: Duration = Duration::from_secs(1);

/// Interrupts that are taken in a batch.
const INTERRUPTS: u32 = 256;

/// Timers that fire in a batch, and how far ahead each is set.
const TIMERS: u32 = 32;
pub(super) const TIMER: Duration = Duration::from_micros(50);

/// What waking a thread up came to.
pub(super) struct Waking {
    /// For the one who wakes.
    pub(super) notify: Figure,
    /// From there until the woken thread runs.
    pub(super) latency: Figure,
}

/// How the core of a thread that is woken up is shared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// As a VM's.
    Usual,
    /// As an idle worker's: it gives way to everybody.
    Idle,
}

/// What passes between the two threads.
#[derive(Default)]
struct Alarm {
    /// How often the sleeper said that it falls asleep.
    asleep: AtomicU32,
    /// How often it was woken up.
    rung: AtomicU32,
    /// When it last ran again.
    ran_ns: AtomicU64,
    /// It has ended.
    gone: AtomicBool,
}

/// Wakes a thread on core `to` up from core `from`, each time so long after it has been about to sleep.
fn wake(from: usize, to: usize, class: Class, asleep: Duration, batches: usize) -> Result<Waking, Failure> {
    let alarm = &Alarm::default();
    thread::scope(|scope| {
        let sleeper = on_core(scope, to, move || {
            let slept = sleep(alarm, class, batches as u32 * WAKES);
            alarm.gone.store(true, Ordering::Release);
            slept
        });
        let thread = sleeper.thread();
        let ringer =
            on_core(scope, from, move || (0..batches).map(|_| ring(alarm, &thread, asleep)).collect());
        let rung: Option<Vec<(f64, f64)>> = ringer.join()?;
        let refused = |error: Errno| Failure::from_io("cannot run as idle workers do", &error.into());
        sleeper.join()?.map_err(refused)?;
        let (notify, latency) = rung.expect("who sleeps does so to the end").into_iter().unzip();
        Ok(Waking { notify: Figure::of(notify), latency: Figure::of(latency) })
    })
}

/// How threads on core `to` are woken up from core `from`.
pub(super) struct Wakings {
    /// A VM's whose core sleeps, and one that has just fallen asleep.
    pub(super) late: Waking,
    pub(super) soon: Waking,
    /// From when it falls asleep until its core does; nothing if that makes no difference to who wakes it up.
    pub(super) fall_asleep: Figure,
    /// An idle worker's whose core sleeps.
    pub(super) idle: Waking,
}

/// Measures all of it.
pub(super) fn wakings(from: usize, to: usize, batches: usize) -> Result<Wakings, Failure> {
    let usual = |asleep, batches| wake(from, to, Class::Usual, asleep, batches);
    let (late, soon) = (usual(ASLEEP, batches)?, usual(JUST_ASLEEP, batches)?);
    let between_ns = (late.notify.median_ns + soon.notify.median_ns) / 2.0;
    let (mut awake, mut asleep) = (JUST_ASLEEP, ASLEEP);
    for doze in DOZES_US.map(Duration::from_micros) {
        if usual(doze, batches.div_ceil(FEWER))?.notify.median_ns > between_ns {
            asleep = doze;
            break;
        }
        awake = doze;
    }
    let is_told_apart = late.notify.low_ns > soon.notify.high_ns;
    let fall_asleep = if is_told_apart { nanoseconds((awake + asleep) / 2) } else { 0.0 };
    let idle = wake(from, to, Class::Idle, ASLEEP, batches)?;
    Ok(Wakings { late, soon, fall_asleep: Figure::of(vec![fall_asleep]), idle })
}

/// Sleeps until it is woken up, so many times.
fn sleep(alarm: &Alarm, class: Class, times: u32) -> Result<(), Errno> {
    if class == Class::Idle {
        run_only_when_idle()?;
    }
    for number in 1..=times {
        alarm.asleep.store(number, Ordering::Release);
        while alarm.rung.load(Ordering::Acquire) != number {
            thread::park();
        }
        alarm.ran_ns.store(now().0, Ordering::Release);
    }
    Ok(())
}

/// Wakes the sleeper up, a batch. Answers what that took, and how long it was until it ran; nothing if there is no sleeper.
fn ring(alarm: &Alarm, sleeper: &Thread, asleep: Duration) -> Option<(f64, f64)> {
    let clock = Clock::new();
    let (mut notify, mut latency) = (Vec::new(), Vec::new());
    for _ in 0..WAKES {
        let number = alarm.rung.load(Ordering::Relaxed) + 1;
        while alarm.asleep.load(Ordering::Acquire) != number {
            if alarm.gone.load(Ordering::Acquire) {
                return None;
            }
            spin_loop();
        }
        let settling = Instant::now();
        while settling.elapsed() < asleep {
            spin_loop();
        }
        let (begin_ns, begin) = (now().0, Instant::now());
        alarm.rung.store(number, Ordering::Release);
        sleeper.unpark();
        notify.push(clock.since(begin));
        let ran_ns = loop {
            match alarm.ran_ns.load(Ordering::Acquire) {
                ran_ns if ran_ns >= begin_ns => break ran_ns,
                _ => spin_loop(),
            }
        };
        latency.push((ran_ns - begin_ns) as f64);
    }
    Some((median(notify), median(latency)))
}

/// What it takes a core to leave a thread that wakes another one up, have that one fall asleep again, and go on with the
/// first: that is, the call by which it wakes, where the scheduler gives the core to the one who wakes up. Nothing if it
/// never does.
pub(super) fn preemptions(core: usize, batches: usize) -> Result<Option<Figure>, Failure> {
    let (ran, ended) = (&AtomicU32::new(0), &AtomicBool::new(false));
    thread::scope(|scope| {
        let (tell, told) = bounded(1);
        let sleeper = on_core(scope, core, move || {
            let bell = Arc::new(GuestBell::of_this_thread());
            // Who wakes it is there, or says why not.
            let _ = tell.send(bell.clone());
            while !ended.load(Ordering::Acquire) {
                bell.wait(Some(GREETING));
                bell.take();
                ran.fetch_add(1, Ordering::Release);
            }
        });
        let waker = on_core(scope, core, move || {
            let Ok(bell) = told.recv() else { return Vec::new() };
            let mut memory = vec![0_u8; BURST_BYTES];
            let mut times = Vec::with_capacity(batches);
            let ring = || {
                let (before, begin) = (ran.load(Ordering::Acquire), Instant::now());
                bell.ring();
                let took = nanoseconds(begin.elapsed());
                (ran.load(Ordering::Acquire) != before).then_some(took)
            };
            for _ in 0..batches {
                let batch: Vec<_> = (0..PREEMPTIONS)
                    .filter_map(|number| {
                        work(&mut memory, number as u8);
                        ring()
                    })
                    .collect();
                if !batch.is_empty() {
                    times.push(median(batch));
                }
            }
            ended.store(true, Ordering::Release);
            bell.ring();
            times
        });
        let times = waker.join();
        ended.store(true, Ordering::Release);
        sleeper.join()?;
        Ok(Some(times?).filter(|times| !times.is_empty()).map(Figure::of))
    })
}

/// Does what a guest does before it wakes another: so much that the scheduler prefers the one who slept, with as much of the
/// caches as a burst of frames takes.
fn work(memory: &mut [u8], stamp: u8) {
    let begin = Instant::now();
    while begin.elapsed() < BURST {
        black_box(&mut *memory).fill(stamp);
    }
}

/// What it takes a core to go from one thread to another when the first one wakes the other up and falls asleep.
pub(super) fn naps(core: usize, batches: usize) -> Result<Figure, Failure> {
    Mate::beside(core, |mate| {
        let batch = || {
            let begin = Instant::now();
            // There and back.
            (0..TURNS / 2).for_each(|_| mate.hand_over());
            nanoseconds(begin.elapsed()) / f64::from(TURNS)
        };
        // Until the other thread is there.
        batch();
        Figure::of((0..batches).map(|_| batch()).collect())
    })
}

/// Another thread on this one's core, which gives it back whenever it is handed over to it.
pub(super) struct Mate {
    own: Arc<GuestBell>,
    other: Arc<GuestBell>,
}

impl Mate {
    /// Does `work` on `core`, where there is a mate.
    ///
    /// # Errors
    /// The core is not there, or not for us.
    pub(super) fn beside<T: Send>(core: usize, work: impl FnOnce(&Mate) -> T + Send) -> Result<T, Failure> {
        let ended = &AtomicBool::new(false);
        thread::scope(|scope| {
            let (tell_own, own) = bounded::<Arc<GuestBell>>(1);
            let (tell_other, other) = bounded::<Arc<GuestBell>>(1);
            let mate = on_core(scope, core, move || {
                let bell = Arc::new(GuestBell::of_this_thread());
                let _ = tell_other.send(bell.clone());
                let Ok(own) = own.recv() else { return };
                while !ended.load(Ordering::Acquire) {
                    bell.wait(Some(GREETING));
                    if bell.take() {
                        own.ring();
                    }
                }
            });
            let here = on_core(scope, core, move || {
                let own = Arc::new(GuestBell::of_this_thread());
                // Who is to be told is there, or says why not.
                let _ = tell_own.send(own.clone());
                let mate = Mate { own, other: other.recv().ok()? };
                let done = work(&mate);
                ended.store(true, Ordering::Release);
                mate.other.ring();
                Some(done)
            });
            let done = here.join();
            mate.join()?;
            Ok(done?.expect("the mate is there, or has said why not"))
        })
    }

    /// Lets the mate have the core, until it gives it back.
    pub(super) fn hand_over(&self) {
        self.other.ring();
        while !self.own.take() {
            self.own.wait(Some(GREETING));
        }
    }

    /// What that takes when it has just been done.
    pub(super) fn usual_ns(&self, clock: &Clock) -> f64 {
        self.hand_over();
        let begin = Instant::now();
        self.hand_over();
        clock.since(begin)
    }
}

/// Processor time of a thread that sleeps for [`TIMER`] and is woken up by nothing else.
pub(super) fn timer(batches: usize) -> Figure {
    let batch = || {
        let begin_ns = thread_cpu_ns();
        for _ in 0..TIMERS {
            thread::park_timeout(TIMER);
        }
        (thread_cpu_ns() - begin_ns) as f64 / f64::from(TIMERS)
    };
    Figure::of((0..batches).map(|_| batch()).collect())
}

/// What an interrupt costs a VM of this process that is awake, which looks at a flag.
pub(super) struct Interrupting {
    /// For the one who sets it.
    pub(super) notify: Figure,
    /// For the VM, which takes it.
    pub(super) take: Figure,
}

/// Measures both on the core that it is called on.
pub(super) fn interrupt(batches: usize) -> Interrupting {
    let bells: Vec<_> = (0..INTERRUPTS).map(|_| GuestBell::of_this_thread()).collect();
    let each = |work: fn(&GuestBell)| {
        let begin = Instant::now();
        bells.iter().for_each(|bell| work(black_box(bell)));
        nanoseconds(begin.elapsed()) / f64::from(INTERRUPTS)
    };
    let batch = |_| (each(GuestBell::ring), each(|bell| assert!(bell.take(), "a bell that was rung")));
    let (notify, take) = (0..batches).map(batch).unzip();
    Interrupting { notify: Figure::of(notify), take: Figure::of(take) }
}

/// What it takes to take a claim and to let it go, with a fence between: on the core that it is called on, whose the line is.
pub(super) fn claim(batches: usize) -> Figure {
    let word = AtomicU32::new(0);
    let batch = || {
        let begin = Instant::now();
        for _ in 0..TURNS {
            black_box(&word).fetch_or(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            black_box(&word).swap(0, Ordering::AcqRel);
        }
        nanoseconds(begin.elapsed()) / f64::from(TURNS)
    };
    Figure::of((0..batches).map(|_| batch()).collect())
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
