//! The processors that VMs of this process share: which VMs are awake on which, and whose idle worker sleeps.
//!
//! A VM's thread says when it blocks, and where it runs when it wakes; whoever wakes it counts it as awake at once, since
//! it is about to run. A core is idle when its idle worker sleeps, no VM is awake that ran there last, and fewer
//! VMs are awake than there are cores: as many would fill all of them, wherever they ran last. So an idle worker, which
//! gets only what is left over, is not asked where nothing is left over.
//!
//! A core whose wake-up was not worth it is passed over for a while ([`next_pause`]).

use super::now;
use hyper_switch_dataplane::host::{CoreId, CoreSet};
use hyper_switch_dataplane::policy::offload::next_pause;
use rustix::thread::sched_getcpu;
use rustix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Thread};

/// Cores that can have idle workers: as many as the switch can tell apart in a set.
const LIMIT: usize = CoreSet::CAPACITY as usize;

/// The processors, and who is awake on them.
pub(super) struct Cores {
    /// The kernel's number of each.
    cpus: Box<[usize]>,
    /// Which core a processor is; those that are none are told apart no further.
    numbers: Box<[u16]>,
    awake: AtomicU32,
    /// Of them, those that ran last on each core; at the end those elsewhere.
    awake_on: Box<[AtomicU32]>,
    /// The cores whose idle workers sleep and have not been woken.
    asleep: [AtomicU64; LIMIT / 64],
    bells: Box<[IdleBell]>,
}

/// How an idle worker is woken, and what came of it.
#[derive(Default)]
struct IdleBell {
    rung: AtomicBool,
    thread: OnceLock<Thread>,
    /// When it was last woken, in nanoseconds.
    woken_ns: AtomicU64,
    /// How long it took to wake up. Its own, as the rest.
    waking_ns: AtomicU64,
    /// The worker's processor time when it began to work then.
    began_cpu_ns: AtomicU64,
    /// How often it was passed over after its last wake-up; 0 if that was worth it.
    pause: AtomicU32,
    /// How often it is still to be passed over; counted by those who do.
    passes: AtomicU32,
}

impl Cores {
    /// The processors that the kernel numbers so, ascending. Those beyond what a [`CoreSet`] holds are left out.
    pub(super) fn new(mut cpus: Vec<usize>) -> Cores {
        cpus.truncate(LIMIT);
        let mut numbers = vec![cpus.len() as u16; cpus.last().map_or(0, |last| last + 1)];
        for (number, cpu) in cpus.iter().enumerate() {
            numbers[*cpu] = number as u16;
        }
        Cores {
            numbers: numbers.into(),
            awake: AtomicU32::new(0),
            awake_on: (0..=cpus.len()).map(|_| AtomicU32::new(0)).collect(),
            asleep: Default::default(),
            bells: cpus.iter().map(|_| IdleBell::default()).collect(),
            cpus: cpus.into(),
        }
    }

    /// The kernel's number of each, in the order of our own.
    pub(super) fn cpus(&self) -> &[usize] {
        &self.cpus
    }

    /// Where the calling thread runs.
    pub(super) fn here(&self) -> CoreId {
        let elsewhere = self.cpus.len() as u16;
        CoreId(self.numbers.get(sched_getcpu()).copied().unwrap_or(elsewhere))
    }

    /// A VM that ran last on `core` wakes up.
    pub(super) fn awoke(&self, core: CoreId) {
        self.awake.fetch_add(1, Ordering::Relaxed);
        self.awake_on[usize::from(core.0)].fetch_add(1, Ordering::Relaxed);
    }

    /// A VM that ran last on `core` blocks, or is gone.
    pub(super) fn blocked(&self, core: CoreId) {
        self.awake.fetch_sub(1, Ordering::Relaxed);
        self.awake_on[usize::from(core.0)].fetch_sub(1, Ordering::Relaxed);
    }

    /// A VM that is awake was on one core and is on the other.
    pub(super) fn moved(&self, from: CoreId, to: CoreId) {
        self.awake_on[usize::from(from.0)].fetch_sub(1, Ordering::Relaxed);
        self.awake_on[usize::from(to.0)].fetch_add(1, Ordering::Relaxed);
    }

    /// The cores that are idle, as seen from one that is not.
    pub(super) fn idle(&self) -> CoreSet {
        if self.awake.load(Ordering::Relaxed) as usize >= self.cpus.len() {
            return CoreSet::EMPTY;
        }
        let asleep = CoreSet::from_words(self.asleep.iter().map(|word| word.load(Ordering::Relaxed)));
        let taken = |core: &CoreId| self.awake_on[usize::from(core.0)].load(Ordering::Relaxed) > 0;
        let passed = |core: &CoreId| taken(core) || self.bells[usize::from(core.0)].is_passed_over();
        let idle = asleep.iter().filter(passed).fold(asleep, CoreSet::without);
        // Whoever asks may have been moved since it woke.
        if idle.is_empty() { idle } else { idle.without(self.here()) }
    }

    /// Wakes the idle worker of `core`.
    pub(super) fn wake(&self, core: CoreId) {
        let number = usize::from(core.0);
        if let Some(bell) = self.bells.get(number) {
            self.asleep[number / 64].fetch_and(!(1 << (number % 64)), Ordering::Relaxed);
            bell.woken_ns.store(now().0, Ordering::Relaxed);
            bell.rung.store(true, Ordering::Release);
            if let Some(thread) = bell.thread.get() {
                thread.unpark();
            }
        }
    }

    /// Sleeps until the next wake-up of `core`, whose idle worker is the calling thread.
    pub(super) fn sleep(&self, core: CoreId) {
        let number = usize::from(core.0);
        let bell = &self.bells[number];
        bell.thread.get_or_init(thread::current);
        bell.weigh();
        self.asleep[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
        // A wake-up that comes before we sleep is remembered by `park`; others than ours may be, too.
        while !bell.rung.swap(false, Ordering::Acquire) {
            thread::park();
        }
        let waking_ns = now().0.saturating_sub(bell.woken_ns.load(Ordering::Relaxed));
        bell.waking_ns.store(waking_ns, Ordering::Relaxed);
        bell.began_cpu_ns.store(cpu_ns(), Ordering::Relaxed);
    }
}

/// Processor time of the calling thread so far, in nanoseconds.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl IdleBell {
    fn is_passed_over(&self) -> bool {
        // Two that pass it over at once may count as one.
        let passes = self.passes.load(Ordering::Relaxed);
        if passes > 0 {
            self.passes.store(passes - 1, Ordering::Relaxed);
        }
        passes > 0
    }

    /// Decides what the wake-up was worth that ends now.
    fn weigh(&self) {
        let work_ns = cpu_ns().saturating_sub(self.began_cpu_ns.load(Ordering::Relaxed));
        let waking_ns = self.waking_ns.load(Ordering::Relaxed);
        let pause = next_pause(self.pause.load(Ordering::Relaxed), waking_ns, work_ns);
        self.pause.store(pause, Ordering::Relaxed);
        self.passes.store(pause, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    //! What makes a core idle, clause by clause. The test's own thread runs on processors that are none of these.
    use super::*;

    fn asleep(cores: &Cores) -> Vec<u16> {
        cores.idle().iter().map(|core| core.0).collect()
    }

    #[test]
    fn a_core_is_idle_when_nobody_wants_it() {
        let cores = Cores::new(vec![5000, 5001, 5003]);
        assert_eq!((cores.here(), asleep(&cores)), (CoreId(3), vec![]), "no idle worker sleeps yet");
        cores.asleep[0].store(0b111, Ordering::Relaxed);
        assert_eq!(asleep(&cores), [0, 1, 2]);
        cores.awoke(CoreId(1));
        assert_eq!(asleep(&cores), [0, 2]);
        cores.awoke(CoreId(1));
        assert_eq!(asleep(&cores), [0, 2], "two share a core as long as nobody moves them");
        cores.awoke(CoreId(3));
        assert_eq!(asleep(&cores), [0; 0], "as many as there are cores will take all of them");
        cores.blocked(CoreId(1));
        cores.moved(CoreId(1), CoreId(2));
        assert_eq!(asleep(&cores), [0, 1]);
        cores.wake(CoreId(0));
        assert_eq!(asleep(&cores), [1], "who is woken has work");
    }

    #[test]
    fn a_core_is_passed_over_so_often() {
        let cores = Cores::new(vec![5000]);
        cores.asleep[0].store(1, Ordering::Relaxed);
        cores.bells[0].passes.store(2, Ordering::Relaxed);
        assert_eq!([(); 4].map(|()| asleep(&cores).len()), [0, 0, 1, 1]);
    }

    #[test]
    fn a_wake_up_before_the_sleep_counts() {
        let cores = Cores::new(vec![7]);
        cores.wake(CoreId(0));
        cores.sleep(CoreId(0));
        cores.wake(CoreId(9));
    }

    #[test]
    fn cores_beyond_a_set_are_left_out() {
        let cores = Cores::new((0..LIMIT + 72).collect());
        assert_eq!(cores.cpus().len(), LIMIT);
        for number in 0..LIMIT {
            cores.asleep[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        assert!(cores.idle().len() >= LIMIT - 1, "all but where this thread runs");
    }
}
