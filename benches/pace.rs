//! The parameters of batching, swept: what throughput and latency each delay and each count give, of the switch's
//! notifications and of the VMs' doorbells, to hold the defaults (`policy/notification.rs`, `guest/doorbell.rs`) against.
//!
//! Throughput is of raw frames of 1500 bytes between four pairs where an entry costs 1 us, latency of requests between two
//! VMs that share core 0; medians of runs in turn, so that whatever changes on the machine meanwhile changes for all. Batching is swept in
//! the basic form and with preemptive copy, where the interrupt alone is put off. Figures and a table are left in
//! `target/pace`.
//!
//! `cargo bench --bench pace`

use hyper_switch::cli::{Arch, Backend, Paces, PairOptions, Workload};
use hyper_switch::optimisations::OptimisationSet;
use hyper_switch::pair;
use hyper_switch::plot::{Lines, Value};
use hyper_switch::report::WorkloadReport;
use hyper_switch_dataplane::policy::notification;
use hyper_switch_pvnet::guest::doorbell;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

/// Runs of each point.
const RUNS: usize = 3;
const DELAYS_US: [u64; 6] = [5, 10, 20, 50, 100, 200];
const COUNTS: [u32; 4] = [16, 32, 64, 128];

/// Which of the two pairs of parameters is swept; the other stays as it is by default.
#[derive(Clone, Copy)]
enum Swept {
    Notification,
    Doorbell,
}

impl Swept {
    fn name(self) -> &'static str {
        match self {
            Swept::Notification => "notification",
            Swept::Doorbell => "doorbell",
        }
    }

    fn paces(self, delay_us: u64, count: u32) -> Paces {
        let delay = Duration::from_micros(delay_us);
        match self {
            Swept::Notification => {
                Paces { notification: notification::Pace { delay, count }, ..Paces::default() }
            }
            Swept::Doorbell => {
                let delay_ns = delay_us * 1_000;
                Paces { doorbell: doorbell::Pace { delay_ns, count }, ..Paces::default() }
            }
        }
    }
}

fn measure(workload: Workload, set: OptimisationSet, paces: Paces) -> WorkloadReport {
    let is_raw = workload == Workload::Raw;
    let options = PairOptions {
        backend: Backend::Inprocess,
        workloads: vec![workload],
        archs: vec![Arch::HyperSwitch],
        optimisations: vec![set],
        pairs: vec![if is_raw { 4 } else { 1 }],
        repeat: 1,
        report: None,
        duration: Duration::from_millis(300),
        json: true,
        seed: 1,
        frame_bytes: 1500,
        rate_per_s: None,
        entry_cost_ns: if is_raw { 1_000 } else { 0 },
        // Where the scheduler places the two decides more of their latency than any parameter.
        cores: (!is_raw).then(|| "0".parse().expect("a list of cores")),
        paces,
    };
    let report = pair::run(&options).expect("the pairs are measured");
    assert!(!report.interrupted, "the sweep was interrupted");
    report.workloads.into_iter().next().expect("one workload was asked for")
}

fn value(mut runs: Vec<f64>) -> Value {
    runs.sort_by(f64::total_cmp);
    Value { low: runs[0], middle: runs[runs.len() / 2], high: runs[runs.len() - 1] }
}

fn main() {
    // `cargo test --benches` runs benches, too, and this one has nothing to test.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../pace");
    fs::create_dir_all(&folder).expect("the folder is made");
    let mut table = "swept,optimisations,delay_us,count,gbps,p50_us,p99_us\n".to_owned();
    for swept in [Swept::Notification, Swept::Doorbell] {
        for set in ["batch", "preempt,batch"] {
            sweep(swept, set, &folder, &mut table);
        }
    }
    fs::write(folder.join("pace.csv"), table).expect("the table is written");
    println!("figures and pace.csv are in {}", folder.display());
}

fn sweep(swept: Swept, set: &str, folder: &Path, table: &mut String) {
    let optimisations = set.parse().expect("a set of optimisations");
    let points: Vec<_> =
        COUNTS.iter().flat_map(|count| DELAYS_US.map(|delay_us| (*count, delay_us))).collect();
    let mut runs = vec![[const { Vec::new() }; 3]; points.len()];
    for _ in 0..RUNS {
        for ((count, delay_us), [gbps, p50_us, p99_us]) in points.iter().zip(&mut runs) {
            let paces = swept.paces(*delay_us, *count);
            gbps.extend(measure(Workload::Raw, optimisations, paces).throughput_gbps);
            let requests = measure(Workload::Rr, optimisations, paces);
            p50_us.extend(requests.p50_us);
            p99_us.extend(requests.p99_us);
        }
    }
    let values: Vec<_> = runs.into_iter().map(|runs| runs.map(value)).collect();
    for ((count, delay_us), [gbps, p50_us, p99_us]) in points.iter().zip(&values) {
        let (name, [gbps, p50_us, p99_us]) = (swept.name(), [gbps, p50_us, p99_us].map(|of| of.middle));
        println!(
            "{name} ({set}), {delay_us:3} us, {count:3} frames: {gbps:6.1} Gb/s, p50 {p50_us:5.1} us, p99 {p99_us:5.1} us"
        );
        writeln!(table, "{name},\"{set}\",{delay_us},{count},{gbps},{p50_us},{p99_us}")
            .expect("a string takes all");
    }
    for (index, axis, what) in
        [(0, "net throughput (Gb/s)", "throughput"), (1, "median latency (us)", "latency")]
    {
        let line = |count: &u32| {
            let of_count = points.iter().zip(&values).filter(|((other, _), _)| other == count);
            (
                format!("{count} frames"),
                of_count.map(|((_, us), values)| (*us as f64, values[index])).collect(),
            )
        };
        let lines = Lines {
            title: format!("{} pace with {set}", swept.name()),
            x_axis: "delay (us)".to_owned(),
            y_axis: axis.to_owned(),
            series: COUNTS.iter().map(line).collect(),
            marks: vec![],
        };
        let name = format!("{}-{}-{what}.svg", swept.name(), set.replace(',', "-"));
        fs::write(folder.join(name), lines.to_svg()).expect("the figure is written");
    }
}
