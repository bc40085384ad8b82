//! What it costs to know a thread's run state: a read, and what the watcher adds to every context switch of the
//! machine.
//!
//! The switch is that of two threads on one core that hand each other a byte through two pipes. It is timed
//! without the watcher, with it, and with both threads watched, in turns of a few milliseconds within one run; the
//! medians are printed with their ratio to the first (1.0: nothing added). Every round is checked to have switched.
//!
//! `cargo bench -p hyper-switch-pvnet --bench run_state`

use criterion::{Criterion, criterion_group, criterion_main};
use hyper_switch_pvnet::run_state::Observed;
use hyper_switch_pvnet::sched::{ThreadState, WatchedThread, Watcher};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

fn bench(c: &mut Criterion) {
    let watcher = match Watcher::get() {
        Ok(watcher) => watcher,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let here = watcher.watch(tid()).expect("this thread is there");
    let mut group = c.benchmark_group("run state");
    // A thread that reads its own state runs, wherever it was moved meanwhile.
    group.bench_function("read", |b| b.iter(|| black_box(&here).state()));
    assert!(matches!(here.state(), ThreadState::Alive(Observed::Running { .. })), "{:?}", here.state());
    group.finish();
    drop((here, watcher));
    switches();
}

criterion_group!(benches, bench);
criterion_main!(benches);

/// Times the switch in each of the three ways, in turns, and prints the medians.
fn switches() {
    const TURNS: usize = 101;
    const ROUNDS: u32 = 1000;
    let mut pair = Pair::start();
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..TURNS {
        times[0].push(pair.time(ROUNDS));
        let watcher = Watcher::get().expect("it was had before");
        times[1].push(pair.time(ROUNDS));
        let watched: Vec<WatchedThread> =
            pair.tids.iter().map(|tid| watcher.watch(*tid).expect("it is there")).collect();
        times[2].push(pair.time(ROUNDS));
        assert_eq!(watched[1].state(), ThreadState::Alive(Observed::Blocked), "it waits for the next byte");
    }
    let medians = times.map(|mut times| {
        times.sort_unstable();
        // A round is a byte there and one back: two switches.
        times[TURNS / 2].as_secs_f64() * 1e9 / f64::from(2 * ROUNDS)
    });
    println!("a context switch, median of {TURNS} turns of {ROUNDS} rounds:");
    for (how, time_ns) in
        ["without the watcher", "nobody watched", "both threads watched"].iter().zip(medians)
    {
        println!("{how:>24}: {time_ns:8.1} ns, ratio {:.3}", time_ns / medians[0]);
    }
}

/// This thread and another on the same core, which sends back what it is sent.
struct Pair {
    tids: [u32; 2],
    there: Option<PipeWriter>,
    back: PipeReader,
    echo: Option<JoinHandle<()>>,
}

impl Pair {
    fn start() -> Pair {
        let allowed = sched_getaffinity(None).expect("it can be asked");
        let mut core = CpuSet::new();
        core.set((0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)).expect("we run somewhere"));
        sched_setaffinity(None, &core).expect("this core is allowed");

        let (mut far, there) = pipe().expect("a pipe");
        let (back, mut answer) = pipe().expect("a pipe");
        let (tell, told) = mpsc::channel();
        // A thread starts on the core of the one that starts it.
        let echo = thread::spawn(move || {
            tell.send(tid()).expect("it is waited for");
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() {
                answer.write_all(&byte).expect("it is read");
            }
        });
        let echo_tid = told.recv().expect("it starts");
        Pair { tids: [tid(), echo_tid], there: Some(there), back, echo: Some(echo) }
    }

    fn time(&mut self, rounds: u32) -> Duration {
        let there = self.there.as_mut().expect("open until the end");
        let start = Instant::now();
        for round in 0..rounds {
            let mut byte = [round as u8];
            there.write_all(&byte).expect("it is read");
            self.back.read_exact(&mut byte).expect("it answers");
            assert_eq!(byte, [round as u8]);
        }
        start.elapsed()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.there = None;
        if let Some(echo) = self.echo.take() {
            echo.join().expect("it ends when its pipe does");
        }
    }
}

fn tid() -> u32 {
    gettid().as_raw_nonzero().get() as u32
}
