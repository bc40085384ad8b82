//! Latency at low load: single frames between two vhost-user NICs, from the moment that the sender shows a frame to the
//! switch until the receiver has it in hand; and what the switch's processor time is meanwhile, and without any frame.
//!
//! Hyper-Switch, whose worker sleeps, beside Open vSwitch with DPDK, whose poll-mode thread never does, each on core 1. The
//! bench is both NICs' driver, on core 0: one that sleeps until it is interrupted, and one that polls. Each point is
//! the median of runs in turn. Frames are asserted to come whole and in order, and Hyper-Switch's all. A table,
//! `latency.csv` and figures are left in `target/vhost-latency`; without Open vSwitch, which needs root, they are of
//! Hyper-Switch alone. What a sleeping switch cannot be faster than, a bare wake-up, is printed beside.
//!
//! `cargo bench --bench vhost_latency`

mod front_end;
mod huge_pages;
mod nic;
mod ovs;
mod system;
mod trial;
mod wake;

use hyper_switch::host::pin_to;
use hyper_switch::plot::{Bars, Value};
use hyper_switch::table::{Column, Table};
use std::fmt::Write;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use system::System;
use trial::{Driver, Load, Pair};

/// Runs of each point.
const RUNS: usize = 3;
/// Frames a second, and how many of them a run has.
const RATES: [(u32, u64); 4] = [(100, 60), (1_000, 500), (10_000, 3_000), (50_000, 15_000)];
const SIZES: [usize; 2] = [64, 1500];
const DRIVERS: [Driver; 2] = [Driver::Sleeps, Driver::Polls];
/// How long a switch is left alone to see what it does then.
const IDLE: Duration = Duration::from_secs(1);
/// The most of a core that an idle Hyper-Switch may take, in percent.
const IDLE_BOUND: f64 = 0.1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    HyperSwitch,
    Ovs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::HyperSwitch => "hyper-switch",
            Kind::Ovs => "OVS-DPDK",
        }
    }

    fn start(self) -> System {
        match self {
            Kind::HyperSwitch => System::hyper_switch(),
            Kind::Ovs => ovs::start(),
        }
    }
}

fn name(driver: Driver) -> &'static str {
    match driver {
        Driver::Sleeps => "sleeps",
        Driver::Polls => "polls",
    }
}

/// What one run showed.
struct Run {
    p50_us: f64,
    p99_us: f64,
    cpu_percent: f64,
    lost: u64,
}

/// One system's runs.
struct Measured {
    kind: Kind,
    idle_percent: Vec<f64>,
    points: Vec<(Load, Vec<Run>)>,
}

impl Measured {
    fn new(kind: Kind) -> Measured {
        let loads = DRIVERS.into_iter().flat_map(|driver| {
            SIZES.into_iter().flat_map(move |frame_bytes| {
                RATES.map(|(rate, _)| (Load { driver, frame_bytes, rate }, Vec::new()))
            })
        });
        Measured { kind, idle_percent: Vec::new(), points: loads.collect() }
    }

    /// Starts the switch, and has one run of each point.
    fn run(&mut self) {
        println!("{} runs", self.kind.name());
        let mut system = self.kind.start();
        let sockets = system.accept();
        on_core_0(|| {
            let mut pair = Pair::new(sockets);
            let (_, idle_percent) = with_cpu(&system, || thread::sleep(IDLE));
            self.idle_percent.push(idle_percent);
            for (load, runs) in &mut self.points {
                let (_, frames) =
                    RATES[RATES.iter().position(|(rate, _)| *rate == load.rate).expect("a rate")];
                let (took, cpu_percent) = with_cpu(&system, || pair.run(*load, frames));
                let [p50_us, p99_us] = [50, 99].map(|percent| quantile_us(&took, percent));
                let lost = frames - took.len() as u64;
                runs.push(Run { p50_us, p99_us, cpu_percent, lost });
            }
        });
    }

    fn value(&self, load: Load, of: impl Fn(&Run) -> f64) -> Value {
        let (_, runs) =
            self.points.iter().find(|(other, _)| *other == load).expect("all points are measured");
        value(runs.iter().map(of))
    }
}

/// Does something on a thread of its own on core 0, with exact timers: a switch that this one starts would inherit both.
fn on_core_0(act: impl FnOnce() + Send) {
    let pinned = || {
        pin_to(0).expect("this thread is pinned");
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).expect("exact timers");
        act();
    };
    thread::scope(|scope| scope.spawn(pinned).join()).expect("the run went well");
}

/// The time that so many percent of these, shortest first, take at most.
fn quantile_us(took_ns: &[u64], percent: usize) -> f64 {
    took_ns[(took_ns.len() - 1) * percent / 100] as f64 / 1e3
}

/// Does something; answers also how much of a core the switch took meanwhile, in percent.
fn with_cpu<T>(system: &System, act: impl FnOnce() -> T) -> (T, f64) {
    let (began, before) = (Instant::now(), system.processor_time());
    let outcome = act();
    let took = system.processor_time() - before;
    (outcome, 100.0 * took.as_secs_f64() / began.elapsed().as_secs_f64())
}

/// The median, between the extremes.
fn value(runs: impl Iterator<Item = f64>) -> Value {
    let mut runs: Vec<f64> = runs.collect();
    runs.sort_by(f64::total_cmp);
    Value { low: runs[0], middle: runs[runs.len() / 2], high: runs[runs.len() - 1] }
}

fn main() {
    // `cargo test --benches` runs benches, too, and this one has nothing to test.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    if thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        return println!(
            "skipped: one core is for the switch and another for the NICs, and there is but one"
        );
    }
    let mut systems = vec![Measured::new(Kind::HyperSwitch)];
    match ovs::missing() {
        None => systems.push(Measured::new(Kind::Ovs)),
        Some(reason) => println!("skipped: Open vSwitch with DPDK: {reason}"),
    }
    let mut wakes = RATES.map(|_| Vec::<[f64; 2]>::new());
    for _ in 0..RUNS {
        systems.iter_mut().for_each(Measured::run);
        on_core_0(|| {
            for ((rate, frames), runs) in RATES.iter().zip(&mut wakes) {
                let took = wake::wakes(*rate, *frames);
                runs.push([50, 99].map(|percent| quantile_us(&took, percent)));
            }
        });
    }

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../vhost-latency");
    fs::create_dir_all(&folder).expect("the folder is made");
    let write = |name: &str, content: String| {
        fs::write(folder.join(name), content).expect("a file is written");
    };
    println!("{}", table(&systems));
    write("latency.csv", csv(&systems));
    for frame_bytes in SIZES {
        for driver in DRIVERS {
            let of = |quantile| latency(&systems, driver, frame_bytes, quantile).to_svg();
            let name = name(driver);
            write(&format!("latency-{frame_bytes}-{name}-p50.svg"), of(("p50", |run| run.p50_us)));
            write(&format!("latency-{frame_bytes}-{name}-p99.svg"), of(("p99", |run| run.p99_us)));
        }
        write(&format!("cpu-{frame_bytes}.svg"), cpu(&systems, frame_bytes).to_svg());
    }
    for ((rate, _), runs) in RATES.iter().zip(wakes) {
        let [p50, p99] = [0, 1].map(|of| value(runs.iter().map(|run| run[of])).middle);
        println!("a bare wake-up on the other core, {rate} a second: p50 {p50:.1} us, p99 {p99:.1} us");
    }
    println!("figures and latency.csv are in {}", folder.display());
    for system in &systems {
        let idle = value(system.idle_percent.iter().copied());
        let lost: u64 = system.points.iter().flat_map(|(_, runs)| runs).map(|run| run.lost).sum();
        println!("{}: idle, {:.3} % of a core; {lost} frames lost", system.kind.name(), idle.middle);
        if system.kind == Kind::HyperSwitch {
            assert!(idle.middle < IDLE_BOUND, "an idle switch sleeps");
            assert_eq!(lost, 0, "nothing is lost at low load");
        }
    }
}

fn table(systems: &[Measured]) -> Table<8> {
    let mut table = Table::new([
        Column::left("driver"),
        Column::right("bytes"),
        Column::right("frames/s"),
        Column::left("switch"),
        Column::right("p50 us"),
        Column::right("p99 us"),
        Column::right("p50/OVS's"),
        Column::right("CPU %"),
    ]);
    for &(load, _) in &systems[0].points {
        let ovs = systems.iter().find(|system| system.kind == Kind::Ovs);
        let ovs = ovs.map(|ovs| ovs.value(load, |run| run.p50_us).middle);
        for system in systems {
            let [p50, p99, cpu] = [
                system.value(load, |run| run.p50_us),
                system.value(load, |run| run.p99_us),
                system.value(load, |run| run.cpu_percent),
            ]
            .map(|value| value.middle);
            table.row([
                name(load.driver).to_owned(),
                load.frame_bytes.to_string(),
                load.rate.to_string(),
                system.kind.name().to_owned(),
                format!("{p50:.1}"),
                format!("{p99:.1}"),
                ovs.map_or_else(String::new, |ovs| format!("{:.2}", p50 / ovs)),
                format!("{cpu:.2}"),
            ]);
        }
    }
    table
}

fn csv(systems: &[Measured]) -> String {
    let mut csv = "switch,driver,frame_bytes,frames_per_s,run,p50_us,p99_us,cpu_percent,lost\n".to_owned();
    for system in systems {
        let switch = system.kind.name();
        for (run, cpu) in system.idle_percent.iter().enumerate() {
            writeln!(csv, "{switch},,,0,{run},,,{cpu},").expect("a string takes all");
        }
        for (Load { driver, frame_bytes, rate }, runs) in &system.points {
            for (run, Run { p50_us, p99_us, cpu_percent, lost }) in runs.iter().enumerate() {
                let driver = name(*driver);
                writeln!(
                    csv,
                    "{switch},{driver},{frame_bytes},{rate},{run},{p50_us},{p99_us},{cpu_percent},{lost}"
                )
                .expect("a string takes all");
            }
        }
    }
    csv
}

fn latency(
    systems: &[Measured],
    driver: Driver,
    frame_bytes: usize,
    (quantile, of): (&str, fn(&Run) -> f64),
) -> Bars {
    let series = systems.iter().map(|system| {
        let bar = |(rate, _)| Some(system.value(Load { driver, frame_bytes, rate }, of));
        (system.kind.name().to_owned(), RATES.map(bar).to_vec())
    });
    Bars {
        title: format!("Latency of single frames of {frame_bytes} bytes, the driver {}", name(driver)),
        x_axis: "frames/s".to_owned(),
        y_axis: format!("one way, {quantile} (us)"),
        groups: RATES.map(|(rate, _)| rate.to_string()).to_vec(),
        series: series.collect(),
    }
}

fn cpu(systems: &[Measured], frame_bytes: usize) -> Bars {
    let series = systems.iter().flat_map(|system| {
        DRIVERS.map(|driver| {
            let idle = value(system.idle_percent.iter().copied());
            let loaded = RATES.map(|(rate, _)| {
                Some(system.value(Load { driver, frame_bytes, rate }, |run| run.cpu_percent))
            });
            let bars = std::iter::once(Some(idle)).chain(loaded);
            (format!("{}, {}", system.kind.name(), name(driver)), bars.collect())
        })
    });
    Bars {
        title: format!("The switch's processor time, frames of {frame_bytes} bytes"),
        x_axis: "frames/s".to_owned(),
        y_axis: "of a core (%)".to_owned(),
        groups: std::iter::once("none".to_owned()).chain(RATES.map(|(rate, _)| rate.to_string())).collect(),
        series: series.collect(),
    }
}
