//! `hyper-switch pair` as a user runs it: real TCP between VMs, through the switch of a process of its own. The
//! report is held against itself and against what must be true of any run; no speed is.
//!
//! What needs root is ignored aloud without it.

use hyper_switch::cli::{Arch, Workload};
use hyper_switch::experiment::{ExperimentReport, Metric, PointReport};
use hyper_switch::report::{PairReport, VmReport, WorkloadReport};
use libtest_mimic::{Arguments, Completion, Trial};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// A user without rights: `nobody`.
const NOBODY: u32 = 65_534;

fn main() -> ExitCode {
    let always = || None;
    let trials = [
        (
            "a_stream_and_requests_cross_the_switch",
            always as fn() -> Option<&'static str>,
            stream_and_rr as fn(),
        ),
        ("two_pairs_talk_at_once", always, two_pairs),
        ("datagrams_cross_the_switch", always, datagrams),
        ("bare_frames_cross_the_switch", always, raw),
        ("bare_frames_keep_their_rate", always, paced),
        ("entries_cost_what_they_are_said_to", always, entry_cost),
        ("contenders_carry_every_workload", always, contenders),
        ("the_report_is_made_for_reading", always, readable),
        ("a_matrix_leaves_files_and_figures", always, matrix),
        ("a_matrix_shows_where_it_is_and_can_be_interrupted", always, matrix_interrupted),
        ("an_interruption_leaves_a_report", always, interrupted),
        ("namespaces_talk_over_taps", no_taps, taps),
        ("taps_without_root_are_refused_with_advice", no_root, refused),
    ];
    let trials = trials.map(|(name, missing, test)| {
        Trial::ignorable_test(name, move || {
            Ok(match missing() {
                Some(missing) => Completion::ignored_with(format!("skipped: {missing}")),
                None => {
                    test();
                    Completion::Completed
                }
            })
        })
    });
    // One at a time: a measurement takes all cores that there are.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn no_root() -> Option<&'static str> {
    (!geteuid().is_root()).then_some("needs root")
}

fn no_taps() -> Option<&'static str> {
    no_root().or_else(|| (!Path::new("/dev/net/tun").exists()).then_some("needs /dev/net/tun"))
}

fn pair(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyper-switch"));
    command.arg("pair").args(arguments.split_whitespace()).env_remove("RUST_LOG");
    command
}

/// Runs `pair --json` and answers its report, which holds what any report must.
fn measure(arguments: &str) -> PairReport {
    let output = pair(arguments).arg("--json").output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    assert_eq!(complaint, "", "nobody watches a script");
    let report: PairReport = serde_json::from_slice(&output.stdout).unwrap();
    for workload in &report.workloads {
        let names: Vec<_> = workload.vms.iter().map(|vm| vm.name.as_str()).collect();
        let expected = (0..report.pairs).flat_map(|pair| [format!("a{pair}"), format!("b{pair}")]);
        assert_eq!(names, expected.collect::<Vec<_>>());
        for vm in &workload.vms {
            check(report.arch, vm);
        }
    }
    report
}

/// One copy a packet, or two by the contenders, each with its header of 12 bytes; and nobody is silent.
fn check(arch: Arch, vm: &VmReport) {
    assert!(vm.tx.frames > 0 && vm.rx.frames > 0, "{vm:?}");
    let twice = u64::from(arch != Arch::HyperSwitch);
    assert_eq!(vm.copies, vm.rx.frames + twice * vm.tx.frames, "{vm:?}");
    assert_eq!(vm.copied_bytes, vm.rx.bytes + twice * vm.tx.bytes + 12 * vm.copies, "{vm:?}");
    assert!(vm.transmit_calls > 0, "{vm:?}");
}

fn workloads<const N: usize>(report: &PairReport) -> [&WorkloadReport; N] {
    report.workloads.iter().collect::<Vec<_>>().try_into().expect("as many workloads as were asked for")
}

/// Payload bytes that were measured, as the report has them.
fn payload_bytes(workload: &WorkloadReport) -> f64 {
    workload.throughput_gbps.unwrap() * 1e9 / 8.0 * workload.seconds
}

fn check_stream(stream: &WorkloadReport) {
    assert_eq!((stream.workload, stream.transactions_per_s, stream.p50_us), (Workload::Stream, None, None));
    let arrived: u64 = stream.vms.iter().filter(|vm| vm.name.starts_with('b')).map(|vm| vm.rx.bytes).sum();
    // What the receivers' stacks were handed holds the payload that was measured.
    assert!(payload_bytes(stream) > 0.0 && payload_bytes(stream) < arrived as f64, "{stream:?}");
}

fn check_rr(rr: &WorkloadReport) {
    assert_eq!((rr.workload, rr.throughput_gbps), (Workload::Rr, None));
    let [p50, p99, max] = [rr.p50_us, rr.p99_us, rr.max_us].map(Option::unwrap);
    assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{rr:?}");
    let requests: u64 = rr.vms.iter().filter(|vm| vm.name.starts_with('a')).map(|vm| vm.tx.frames).sum();
    let transactions = rr.transactions_per_s.unwrap() * rr.seconds;
    assert!(transactions > 0.0 && transactions < requests as f64, "{rr:?}");
    let dropped: u64 = rr.vms.iter().map(|vm| vm.tx.drops.total() + vm.rx.drops.total()).sum();
    assert_eq!(dropped, 0, "a question at a time overruns nobody: {rr:?}");
}

/// Holds that the defaults are a stream and then requests, that what is reported is consistent, and that the VMs
/// entered the switch and were notified. By one pair in one process.
fn stream_and_rr() {
    let report = measure("--duration 1 --seed 7");
    assert_eq!((report.backend.as_str(), report.pairs, report.seed), ("inprocess", 1, 7));
    assert!(!report.interrupted);
    let [stream, rr] = workloads(&report);
    check_stream(stream);
    check_rr(rr);
    assert!(stream.seconds >= 1.0 && rr.seconds >= 1.0, "{report:?}");
    for vm in stream.vms.iter().chain(&rr.vms) {
        assert!(vm.receive_calls > 0 && vm.notifications > 0, "{vm:?}");
    }
    let receiver = &stream.vms[1].rx;
    assert!(receiver.bytes / receiver.frames > 1_514, "segmentation frames cross whole: {receiver:?}");
}

/// Holds that two pairs run side by side and that each gets its own data. The streams have different seeds, so
/// that one that went to the other pair would end the command as corrupt.
fn two_pairs() {
    let report = measure("--duration 0.5 --pairs 2");
    let [stream, rr] = workloads(&report);
    check_stream(stream);
    check_rr(rr);
    assert_eq!((report.pairs, stream.vms.len()), (2, 4));
}

/// Holds that datagrams arrive, that their size is what was asked for, and that every frame that was not
/// delivered is a drop with a reason, or was under way at the end.
fn datagrams() {
    let report = measure("--workload udp --frame-bytes 200 --duration 0.5");
    let [udp] = workloads(&report);
    check_packets(udp);
    let [_, b] = &udp.vms[..] else { panic!("{udp:?}") };
    let datagrams = udp.transactions_per_s.unwrap() * udp.seconds;
    assert!(datagrams > 0.0 && datagrams <= b.rx.frames as f64, "{udp:?}");
    assert!((payload_bytes(udp) / datagrams - 158.0).abs() < 1e-6, "{udp:?}");
    assert!(b.rx.bytes <= 200 * b.rx.frames && b.rx.bytes >= 200 * (b.rx.frames - 2), "{udp:?}");
}

/// What is numbered comes in order, and what is lost was dropped for a reason. What the sender sent and the receiver did
/// not get was dropped, or was under way at the end.
fn check_packets(workload: &WorkloadReport) {
    let (lost, reordered) = (workload.lost.unwrap(), workload.reordered.unwrap());
    assert_eq!(reordered, 0, "{workload:?}");
    let [a, b] = &workload.vms[..] else { panic!("{workload:?}") };
    let dropped: u64 = a.tx.drops.total() + b.rx.drops.total();
    assert!(lost <= dropped, "{workload:?}");
    let under_way = a.tx.frames.checked_sub(b.rx.frames + dropped).unwrap();
    assert!(under_way <= 1024, "more than rings and queues take: {workload:?}");
}

/// Holds that bare frames of every size arrive, in order, whole, and that the report tells whose processor time it took.
fn raw() {
    for bytes in [64, 1_500, 65_536] {
        let report = measure(&format!("--workload raw --frame-bytes {bytes} --duration 0.3"));
        let [raw] = workloads(&report);
        check_packets(raw);
        let frames = raw.transactions_per_s.unwrap() * raw.seconds;
        assert!((payload_bytes(raw) / frames - bytes as f64).abs() < 1e-6, "{raw:?}");
        let [_, b] = &raw.vms[..] else { panic!("{raw:?}") };
        assert!(frames <= b.rx.frames as f64 && b.rx.bytes == bytes * b.rx.frames, "{raw:?}");
        let elapsed_ns = raw.switching.as_ref().unwrap().elapsed_ns;
        assert!(raw.vms.iter().all(|vm| (1..=elapsed_ns).contains(&vm.cpu_ns.unwrap())), "{raw:?}");
    }
}

/// Holds that a paced sender never sends more than its rate allows, with bare frames and with datagrams.
fn paced() {
    for workload in ["raw", "udp"] {
        let report = measure(&format!("--workload {workload} --rate 2000 --duration 0.3"));
        let [paced] = workloads(&report);
        check_packets(paced);
        let due = paced.switching.as_ref().unwrap().elapsed_ns as f64 * 2_000.0 / 1e9;
        // Beside what is paced: the first one, and the resolution of addresses.
        assert!((paced.vms[0].tx.frames as f64) < due + 5.0, "{paced:?}");
    }
}

/// Holds that no VM makes more entries than there is time for at their price. For free there would be several times
/// as many.
fn entry_cost() {
    let report = measure("--workload rr --entry-cost 50000 --duration 0.3");
    assert_eq!(report.entry_cost_ns, 50_000);
    let [rr] = workloads(&report);
    let elapsed_ns = rr.switching.as_ref().unwrap().elapsed_ns;
    for vm in &rr.vms {
        assert!((vm.transmit_calls + vm.receive_calls) * 50_000 <= elapsed_ns, "{rr:?}");
    }
}

/// Holds that the two architectures that are compared with carry all that this switch does, for two pairs at a time,
/// each to whom it is for; and that what is their own is counted: threads that are woken, and a domain's entries.
fn contenders() {
    for arch in [Arch::DriverDomain, Arch::Vhost] {
        for workload in ["stream", "rr", "udp", "raw"] {
            let arguments = format!("--arch {} --workload {workload} --pairs 2 --duration 0.3", arch.name());
            let report = measure(&arguments);
            assert_eq!(report.arch, arch);
            let [measured] = workloads(&report);
            match measured.workload {
                Workload::Stream => check_stream(measured),
                Workload::Rr => check_rr(measured),
                Workload::Udp | Workload::Raw => {
                    let dropped: u64 = measured.vms.iter().map(|vm| vm.rx.drops.total()).sum();
                    assert!(measured.lost.unwrap() <= dropped, "{measured:?}");
                    assert_eq!(measured.reordered, Some(0));
                }
            }
            let switching = measured.switching.as_ref().unwrap();
            assert!(switching.wakeups > 0 && switching.cpu_ns > 0, "{measured:?}");
            assert_eq!(switching.entries > 0, arch == Arch::DriverDomain, "{measured:?}");
        }
    }
}

/// Holds that the tables say what the workloads came to, and that a script without `--json` is shown signs of
/// life apart from them, on standard error.
fn readable() {
    let output = pair("--duration 1.1").output().unwrap();
    let [tables, signs] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    for part in [
        "1 pair (inprocess), hyper-switch, entry cost 0 ns, seed 1\n",
        "transactions/s",
        "\nstream:\nvm ",
        "\nrr:\nvm ",
        "\na packet ",
    ] {
        assert!(tables.contains(part), "{part}: {tables}");
    }
    assert!(signs.starts_with("stream: 1 of 1.1 s, ") && signs.contains(" Gb/s\n"), "{signs}");
}

/// Holds that SIGINT ends a measurement early, with what was measured until then and no more workloads. Sent
/// once the first sign of life has come, without which the test waits for its whole time.
fn interrupted() {
    let mut child = pair("--duration 60").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut sign = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut sign).unwrap();
    assert!(sign.starts_with("stream: 1 of 60 s, "), "{sign}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut tables = String::new();
    child.stdout.as_mut().unwrap().read_to_string(&mut tables).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        tables.starts_with("1 pair (inprocess), hyper-switch, entry cost 0 ns, seed 1, interrupted\n"),
        "{tables}"
    );
    assert!(tables.contains("\nstream:\n") && !tables.contains("\nrr:\n"), "{tables}");
}

/// Holds that each point of a matrix is measured as often as asked for, that the files of the report say the same as
/// standard output, and that they are what their names say. By both numbers of pairs and two sets of optimisations.
fn matrix() {
    let folder = tempfile::tempdir().unwrap();
    // A folder that has to be made.
    let out = folder.path().join("some/report");
    let arguments =
        "--workload stream --pairs 1,2 --optimisations each --repeat 2 --duration 0.3 --seed 3 --json";
    let output = pair(arguments).arg("--report").arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: ExperimentReport = serde_json::from_slice(&output.stdout).unwrap();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(serde_json::from_str::<ExperimentReport>(&read("results.json")).unwrap(), report);
    assert!(report.complete && report.command.contains("--optimisations each"), "{report:?}");
    assert_eq!((report.repeat, report.seed, report.points.len()), (2, 3, 2 * 8));
    for PointReport { point, metrics } in &report.points {
        assert!([1, 2].contains(&point.pairs), "{point}");
        let present =
            [Metric::Throughput, Metric::Entries, Metric::Notifications, Metric::Copies, Metric::Loss];
        for metric in present {
            let spread = metrics.get(&metric).unwrap_or_else(|| panic!("{point} lacks {metric:?}"));
            assert!(spread.min <= spread.median && spread.median <= spread.max, "{point}: {spread:?}");
            assert_eq!(spread.samples.len(), 2, "{point}: {metric:?}");
        }
        assert!(metrics[&Metric::Throughput].min > 0.0, "{point}");
        assert_eq!((metrics[&Metric::Copies].min, metrics[&Metric::Copies].max), (1.0, 1.0), "{point}");
        assert!(!metrics.contains_key(&Metric::P50), "{point}");
    }
    assert_eq!(read("results.csv").lines().count(), 1 + report.points.len());
    for name in ["index.html", "stream-throughput_gbps.svg", "stream-ablation-throughput_gbps.svg"] {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let text = read(name);
        roxmltree::Document::parse_with_options(&text, options).expect(name);
    }
}

/// Holds that people are shown where it is and how long it still takes, and that SIGINT ends it; a run that it cuts
/// short does not count, so that here nothing is left to report.
fn matrix_interrupted() {
    let mut command = pair("--workload rr --pairs 1,2 --duration 60 --repeat 3");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut sign = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut sign).unwrap();
    assert!(sign.starts_with("1/6, 6m 00s left: rr, hyper-switch (all), 1 pair: 1 of 60 s, "), "{sign}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "the only run was cut off: {said}");
    assert!(said.ends_with("error: interrupted before anything was measured\n"), "{said}");
}

/// Holds the same of kernels' TCP/IP in namespaces behind TAPs: all three workloads.
fn taps() {
    let report = measure("--backend tap --duration 0.5 --pairs 2");
    assert_eq!(report.backend, "tap");
    let [stream, rr] = workloads(&report);
    check_stream(stream);
    check_rr(rr);
    let report = measure("--backend tap --workload udp --duration 0.5");
    let [udp] = workloads(&report);
    assert!(udp.transactions_per_s.unwrap() > 0.0, "{udp:?}");
}

/// Holds that TAPs without rights are refused with what is missing and what does without, and the documented exit
/// code; and that the other backend indeed does without. By running as a user without rights.
fn refused() {
    // A copy, as the folder of the build may be closed to others.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let program = folder.path().join("hyper-switch");
    fs::copy(env!("CARGO_BIN_EXE_hyper-switch"), &program).unwrap();
    rustix::fs::chmod(folder.path(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).uid(NOBODY).gid(NOBODY).env_remove("RUST_LOG").current_dir("/");
        command.output().unwrap()
    };
    let output = run(&["pair", "--backend", "tap", "--duration", "0.1"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(4), &b""[..]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: `pair --backend tap` needs root, or the capabilities"), "{said}");
    assert!(said.contains("\nhelp: `pair --backend inprocess` measures the same"), "{said}");
    let output = run(&["pair", "--workload", "rr", "--duration", "0.1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
