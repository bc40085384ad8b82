//! What it costs to know a thread's run state: a read, and what the watcher adds to every context switch of the
//! machine.
//!
//! The switch is that of two threads on one core that hand each other a byte through two pipes. It is timed
//! without the watcher, with it, and with both threads watched, in turns within one run; of each the shortest time is
//! printed with its ratio to the first (1.0: nothing added), as that is not interrupted even on a busy machine.
//!
//! `cargo bench -p hyper-switch-pvnet --bench run_state`

use criterion::{Criterion, criterion_group, criterion_main};
use hyper_switch_pvnet::sched::{WatchedThread, Watcher};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::atomic::{AtomicU64, Ordering};
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
    group.bench_function("read", |b| b.iter(|| black_box(&here).state()));
    group.finish();
    reads(&here);
    drop((here, watcher));
    switches();
}

/// Times a read beside what it could not do without, and what it does without, and prints the shortest of many
/// turns: they are short enough that hardly any is interrupted, however busy the machine is.
fn reads(here: &WatchedThread) {
    const TURNS: usize = 10_000;
    const READS: u32 = 1000;
    let word = AtomicU64::new(1);
    let known = || u32::from(black_box(here).state().alive().is_some());
    let load = || black_box(&word).load(Ordering::Relaxed) as u32;
    let call = || u32::from(tid() != 0);
    let ways: [(&str, &dyn Fn() -> Duration); 3] = [
        ("a load from memory", &|| turn(READS, load)),
        ("a read of a run state", &|| turn(READS, known)),
        ("a system call", &|| turn(READS, call)),
    ];
    let mut shortest = [Duration::MAX; 3];
    for _ in 0..TURNS {
        for ((_, way), shortest) in ways.iter().zip(&mut shortest) {
            *shortest = way().min(*shortest);
        }
    }
    let times = shortest.map(|time| time.as_secs_f64() * 1e9 / f64::from(READS));
    println!("shortest of {TURNS} turns of {READS}:");
    for ((what, _), time_ns) in ways.iter().zip(times) {
        println!("{what:>24}: {time_ns:8.2} ns, ratio {:.2}", time_ns / times[0]);
    }
}

/// The time of a turn, in which each of so many reads answers 1.
fn turn(reads: u32, read: impl Fn() -> u32) -> Duration {
    let start = Instant::now();
    let mut sum = 0;
    for _ in 0..reads {
        sum += read();
    }
    let time = start.elapsed();
    assert_eq!(sum, reads);
    time
}

criterion_group!(benches, bench);
criterion_main!(benches);

/// Times the switch in each of the three ways, in turns, and prints the shortest turn of each.
fn switches() {
    const TURNS: usize = 51;
    const PARTS: usize = 40;
    const ROUNDS: u32 = 50;
    let mut pair = Pair::start();
    let mut shortest = [Duration::MAX; 3];
    let mut time = |way: usize, pair: &mut Pair| {
        for _ in 0..PARTS {
            shortest[way] = pair.time(ROUNDS).min(shortest[way]);
        }
    };
    for _ in 0..TURNS {
        time(0, &mut pair);
        let watcher = Watcher::get().expect("it was had before");
        time(1, &mut pair);
        let watched = pair.tids.map(|tid| watcher.watch(tid).expect("it is there"));
        time(2, &mut pair);
        assert!(watched.iter().all(|thread| thread.state().alive().is_some()), "{watched:?}");
    }
    println!("a context switch, shortest of {} times {ROUNDS} rounds:", TURNS * PARTS);
    // A round is a byte there and one back: two switches.
    let times = shortest.map(|time| time.as_secs_f64() * 1e9 / f64::from(2 * ROUNDS));
    for (how, time_ns) in ["without the watcher", "nobody watched", "both threads watched"].iter().zip(times)
    {
        println!("{how:>24}: {time_ns:8.1} ns, ratio {:.3}", time_ns / times[0]);
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
