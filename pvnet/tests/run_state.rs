//! Run state against the real scheduler: threads that run, block, are preempted, woken and end, and what the
//! watcher says of them; and what a driver's wish for interrupts says instead.
//!
//! Threads are held by conditions, not by time: a thread's *truth* is what its own memory shows. One whose counter
//! moves between two looks ran in between; one that has said that it waits, and has not been released, waits.
//! What a test cannot have on this machine (rights, a second core) it says, and is counted as ignored.

mod needs;

use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::QueueAddrs;
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction, QueueFeatures};
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue};
use hyper_switch_pvnet::run_state::Observed;
use hyper_switch_pvnet::sched::{Process, ThreadState, WatchError, WatchThreadError, WatchedThread, Watcher};
use libtest_mimic::Arguments;
use needs::Need;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a condition may take before the test has failed.
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let trials = needs::trials([
        ("a_thread_is_seen_to_block_and_to_run", WATCH, blocks_and_runs),
        ("two_threads_on_one_core_are_seen_preempted_in_turn", WATCH, preempted),
        ("a_woken_thread_without_a_core_does_not_block", WATCH, woken),
        ("a_thread_that_ended_is_seen_so_and_cannot_be_watched", WATCH, ended),
        ("a_slot_that_was_another_threads_says_nothing_of_it", WATCH, slots_are_reused),
        ("one_thread_may_be_watched_twice", WATCH, watched_twice),
        ("threads_of_another_process_are_seen", WATCH, another_process),
        ("the_watcher_is_one_and_leaves_nothing", WATCH, one_watcher),
        ("the_watcher_agrees_with_the_threads_own_truth", TWO_CORES, agreement),
        ("the_drivers_wish_agrees_with_the_drivers_own_truth", &[], suppression),
        ("without_rights_the_watcher_says_what_it_needs", ROOT, not_permitted),
    ]);
    let mut arguments = Arguments::from_args();
    // Each test has the cores for itself.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

const WATCH: &[Need] = &[watching];
const TWO_CORES: &[Need] = &[watching, two_cores];
const ROOT: &[Need] = &[root];

fn watching() -> Option<String> {
    Watcher::get().err().map(|error| error.to_string())
}

fn two_cores() -> Option<String> {
    let cores = cores().len();
    (cores < 2).then(|| format!("needs two cores to run on, there is {cores}"))
}

fn root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "needs root, to give it up".into())
}

/// Holds: a thread is seen blocked while it is parked, running on its core while it spins, and blocked
/// again. By: one thread that does as it is told.
fn blocks_and_runs() {
    let core = cores()[0];
    let subject = Subject::start(core);
    let watched = subject.watch();
    for _ in 0..100 {
        until("the thread blocks", || watched.state() == BLOCKED);
        subject.run();
        until("the thread runs", || watched.state() == running_on(core));
        subject.block();
    }
}

/// Holds: of two threads that spin on one core each is seen running there and seen preempted. (A wake-up for another
/// core takes effect a little after the call, so that either may still be seen blocked at first.)
fn preempted() {
    let core = cores()[0];
    let subjects = [Subject::start(core), Subject::start(core)];
    let watched = subjects.each_ref().map(Subject::watch);
    for subject in &subjects {
        subject.run();
    }
    for watched in &watched {
        until("the thread runs", || watched.state() == running_on(core));
        until("the other has its core", || watched.state() == PREEMPTED);
        until("the thread runs again", || watched.state() == running_on(core));
    }
}

/// Holds: a thread that was woken, but has no core yet, is seen ready and not blocked. By: a thread of the batch
/// class, which does not take the core from the one that wakes it.
fn woken() {
    let core = cores()[0];
    let subject = Subject::start_with(core, || {
        let batch = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameter lives until the call is over.
        assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const batch) }, 0);
    });
    let watched = subject.watch();
    on_core(core, || {
        until("it is woken and has not run yet", || {
            until("the thread blocks", || watched.state() == BLOCKED);
            let before = subject.count();
            subject.run();
            let state = watched.state();
            let ran = subject.count() != before;
            subject.block();
            assert!(ran || state == PREEMPTED, "it was woken, and is {state:?}");
            !ran
        });
    });
}

/// Holds: a thread's end is seen, and then it cannot be watched any more, nor can what was never a thread.
fn ended() {
    let watcher = Watcher::get().unwrap();
    let subject = Subject::start(cores()[0]);
    let (watched, tid) = (subject.watch(), subject.tid);
    drop(subject);
    until("the end is seen", || watched.state() == ThreadState::Exited);
    drop(watched);
    for tid in [tid, 0, u32::MAX] {
        let refused = watcher.watch(tid);
        assert!(matches!(refused, Err(WatchThreadError::NoThread(no)) if no == tid), "{tid}: {refused:?}");
    }
}

/// Holds: however often slots go from thread to thread, a newly watched one is seen as it is at once. By: more
/// threads than there are slots, one after the other, each watched while it is known to block.
fn slots_are_reused() {
    let _at_work = Watcher::get().unwrap();
    let subjects = [Subject::start(cores()[0]), Subject::start(cores()[0])];
    for subject in &subjects {
        let watched = subject.watch();
        until("the thread blocks", || watched.state() == BLOCKED);
    }
    for turn in 0..2 * hyper_switch_pvnet::sched::CAPACITY as usize {
        assert_eq!(subjects[turn % 2].watch().state(), BLOCKED, "turn {turn}");
    }
}

/// Holds: a thread that two watch goes on to be seen when one of them has gone.
fn watched_twice() {
    let core = cores()[0];
    let subject = Subject::start(core);
    let (first, second) = (subject.watch(), subject.watch());
    until("the thread blocks", || first.state() == BLOCKED);
    assert_eq!(second.state(), BLOCKED);
    drop(first);
    subject.run();
    until("the thread runs", || second.state() == running_on(core));
}

/// Holds: threads of a process that is not ours are found and seen. By: `cat`, which blocks for its input, ends
/// with it, and is gone then.
fn another_process() {
    let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::open(cat.id()).unwrap();
    let watcher = Watcher::get().unwrap();
    let watched: Vec<WatchedThread> =
        process.threads().unwrap().into_iter().map(|tid| watcher.watch(tid).unwrap()).collect();
    let together = || Observed::together(watched.iter().filter_map(|thread| thread.state().alive()));
    until("it blocks", || together() == Some(Observed::Blocked));
    drop(cat.stdin.take());
    until("nothing of it lives", || together().is_none());
    cat.wait().unwrap();
    assert!(process.threads().is_err());
}

/// Holds: all who ask have the same watcher; when the last of them goes, its programs, maps and events go too;
/// and then another can be had.
fn one_watcher() {
    let ours = || {
        let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links
            .filter(|link| ["bpf", "perf_event"].iter().any(|kind| link.to_string_lossy().contains(kind)))
            .count()
    };
    for _ in 0..3 {
        assert_eq!(ours(), 0);
        let (first, second) = (Watcher::get().unwrap(), Watcher::get().unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(ours(), 4, "two maps and two events");
    }
}

/// Holds: in at least 9 of 10 looks the watcher says what the thread was doing. Prints how often, for each state.
///
/// By: two threads on one core, looked at from another. *Running* and *preempted*: one's counter moves between
/// two looks, so it had the core meanwhile, and the other, which spins too, had not. *Blocked*: the thread said
/// that it waits, and was not released. A look during which the truth cannot be told is left out.
fn agreement() {
    const LOOKS: u64 = 500_000;
    let (theirs, here) = (cores()[0], cores()[1]);
    let subjects = [Subject::start(theirs), Subject::start(theirs)];
    let watched = subjects.each_ref().map(Subject::watch);
    let [mut running, mut preempted, mut blocked] = [Agreement::default(); 3];
    on_core(here, || {
        for subject in &subjects {
            subject.run();
        }
        until("enough looks at threads that spin", || {
            for _ in 0..LOOKS / 100 {
                let before = subjects.each_ref().map(Subject::count);
                let states = watched.each_ref().map(WatchedThread::state);
                let after = subjects.each_ref().map(Subject::count);
                match [before[0] != after[0], before[1] != after[1]] {
                    // Both: the core changed hands meanwhile. Neither: somebody else has it.
                    [true, true] | [false, false] => {}
                    [first, _] => {
                        let [runs, waits] = if first { states } else { [states[1], states[0]] };
                        running.count(runs == running_on(theirs));
                        preempted.count(waits == PREEMPTED);
                    }
                }
            }
            running.looks >= LOOKS
        });
        let ([subject, other], watched) = (&subjects, &watched[0]);
        other.block();
        until("enough looks at a thread that waits", || {
            subject.block();
            until("the thread says that it waits", || subject.waits());
            for _ in 0..LOOKS / 20 {
                blocked.count(watched.state() == BLOCKED);
            }
            let before = subject.count();
            subject.run();
            until("it goes on", || subject.count() != before);
            blocked.looks >= LOOKS
        });
    });
    for (state, agreement) in [("running", running), ("preempted", preempted), ("blocked", blocked)] {
        agreement.hold("bpf", state);
    }
}

/// Holds: in at least 9 of 10 looks the driver's wish for interrupts says whether the driver polls or waits.
/// Prints how often.
///
/// By: a driver on a thread of its own, which polls its ring for a while after the last entry, asks for an
/// interrupt and waits for it, with and without event index; looked at by the device beside its work.
fn suppression() {
    const LOOKS: u64 = 100_000;
    for event_idx in [true, false] {
        let (mut device, driver) = Driver::start(event_idx);
        let (mut polls, mut waits) = (Agreement::default(), Agreement::default());
        let mut interrupts = 0;
        let mut look = |device: &DeviceQueue| {
            let before = driver.polls.load(SeqCst);
            let observed = device.suppression().observed();
            if driver.polls.load(SeqCst) == before {
                let (agreement, truth) = match before {
                    true => (&mut polls, Observed::Running { core: None }),
                    false => (&mut waits, Observed::Blocked),
                };
                agreement.count(observed == truth);
            }
            polls.looks >= LOOKS && waits.looks >= LOOKS
        };
        until("enough looks at the driver", || {
            if driver.deliver(&mut device) {
                // From the interrupt on it waits no longer, though it may not have come so far.
                interrupts += 1;
                until("the driver is awake", || driver.woken.load(SeqCst) == interrupts);
            }
            (0..1000).any(|_| look(&device))
        });
        drop(driver);
        let source = if event_idx { "event index" } else { "flags" };
        polls.hold(source, "polls");
        waits.hold(source, "waits");
    }
}

/// Holds: without rights there is no watcher, and the reason names what would help. By: a thread that gives its
/// capabilities up.
fn not_permitted() {
    let refused = thread::spawn(|| {
        let mut capabilities = rustix::thread::capabilities(None).unwrap();
        capabilities.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        Watcher::get().map(drop)
    });
    let error = refused.join().unwrap().unwrap_err();
    assert!(matches!(error, WatchError::NotPermitted { .. }), "{error:?}");
    assert!(error.to_string().contains("CAP_BPF and CAP_PERFMON"), "{error}");
}

// --- What the tests share -----------------------------------------------------------------------

const BLOCKED: ThreadState = ThreadState::Alive(Observed::Blocked);
const PREEMPTED: ThreadState = ThreadState::Alive(Observed::Preempted);

fn running_on(core: usize) -> ThreadState {
    ThreadState::Alive(Observed::Running { core: Some(core as u16) })
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        // Where there is one core, what is waited for needs it.
        thread::yield_now();
    }
}

/// The cores that this process may run on.
fn cores() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
}

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).unwrap();
}

/// Does `work` on this core; then this thread may go where it might before.
fn on_core(core: usize, work: impl FnOnce()) {
    let before = sched_getaffinity(None).unwrap();
    pin(core);
    work();
    sched_setaffinity(None, &before).unwrap();
}

/// How often what was seen was the truth.
#[derive(Clone, Copy, Default)]
struct Agreement {
    agreed: u64,
    looks: u64,
}

impl Agreement {
    fn count(&mut self, agreed: bool) {
        self.looks += 1;
        self.agreed += u64::from(agreed);
    }

    fn hold(self, source: &str, state: &str) {
        let Agreement { agreed, looks } = self;
        let percent = 100.0 * agreed as f64 / looks as f64;
        println!("{source}: {state} was seen in {agreed} of {looks} looks ({percent:.2} %)");
        assert!(agreed * 10 >= looks * 9, "{source}, {state}: {agreed} of {looks}");
    }
}

/// A thread on one core that spins or blocks as it is told; at first it blocks. It ends with this.
struct Subject {
    tid: u32,
    order: Arc<Order>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Order {
    run: AtomicBool,
    end: AtomicBool,
    /// Its own word: it is about to block, or does.
    waits: AtomicBool,
    /// Turns of its loop. They are a running thread's proof.
    turns: AtomicU64,
}

impl Subject {
    fn start(core: usize) -> Subject {
        Subject::start_with(core, || ())
    }

    fn start_with(core: usize, first: impl FnOnce() + Send + 'static) -> Subject {
        let (order, (tell, told)) = (Arc::new(Order::default()), mpsc::channel());
        let its = order.clone();
        let thread = thread::spawn(move || {
            pin(core);
            first();
            tell.send(gettid().as_raw_nonzero().get() as u32).unwrap();
            while !its.end.load(SeqCst) {
                if its.run.load(SeqCst) {
                    its.turns.fetch_add(1, SeqCst);
                    continue;
                }
                its.waits.store(true, SeqCst);
                while !its.run.load(SeqCst) && !its.end.load(SeqCst) {
                    thread::park();
                }
                its.waits.store(false, SeqCst);
            }
        });
        Subject { tid: told.recv().unwrap(), order, thread: Some(thread) }
    }

    fn watch(&self) -> WatchedThread {
        Watcher::get().unwrap().watch(self.tid).unwrap()
    }

    fn run(&self) {
        self.order.run.store(true, SeqCst);
        self.wake();
    }

    fn block(&self) {
        self.order.run.store(false, SeqCst);
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    fn count(&self) -> u64 {
        self.order.turns.load(SeqCst)
    }

    fn waits(&self) -> bool {
        self.order.waits.load(SeqCst)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.order.end.store(true, SeqCst);
        self.wake();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

/// A driver on a thread of its own, which takes what its receive ring brings. It ends with this.
struct Driver {
    /// Its own word: it polls its ring. Else it waits for an interrupt, or is about to.
    polls: Arc<AtomicBool>,
    /// Interrupts that it took.
    woken: Arc<AtomicU64>,
    interrupt: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    fn start(event_idx: bool) -> (DeviceQueue, Driver) {
        const SLOTS: u16 = 64;
        /// Looks at an empty ring before the driver gives up, as a budget of NAPI's.
        const PATIENCE: usize = 1000;
        let memory = Arc::new(GuestMemory::anonymous(1 << 16));
        let addrs = QueueAddrs::contiguous(0, SLOTS);
        let features = DriverFeatures { event_idx, indirect: None };
        let mut queue = DriverQueue::<()>::new(&memory, SLOTS, addrs, features).unwrap();
        let features = QueueFeatures { event_idx, indirect: false };
        let device = DeviceQueue::new(memory.clone(), queue.layout(), Direction::Writable, features);

        queue.disable_interrupts();
        let polls = Arc::new(AtomicBool::new(true));
        let woken = Arc::new(AtomicU64::new(0));
        let (its, wakes) = (polls.clone(), woken.clone());
        let (interrupt, interrupted) = mpsc::channel();
        let thread = thread::spawn(move || {
            loop {
                let mut empty = 0;
                while empty < PATIENCE {
                    empty += 1;
                    while queue.pop_used().unwrap().is_some() {
                        empty = 0;
                    }
                    while queue.add(&[], &[(1 << 15, 64)], ()).is_ok() {}
                    queue.publish();
                }
                if queue.enable_interrupts() {
                    queue.disable_interrupts();
                    continue;
                }
                its.store(false, SeqCst);
                if interrupted.recv().is_err() {
                    return;
                }
                queue.disable_interrupts();
                its.store(true, SeqCst);
                wakes.fetch_add(1, SeqCst);
            }
        });
        (device, Driver { polls, woken, interrupt: Some(interrupt), thread: Some(thread) })
    }

    /// Uses one buffer, if there is one, and interrupts the driver if it wants that. Answers whether it did.
    fn deliver(&self, device: &mut DeviceQueue) -> bool {
        if device.refresh().unwrap() == 0 {
            return false;
        }
        let head = device.pop().unwrap();
        device.push_used(head, 64);
        device.publish();
        let wanted = device.wants_interrupt();
        if let (true, Some(line)) = (wanted, &self.interrupt) {
            line.send(()).unwrap();
        }
        wanted
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.interrupt = None;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}
