//! What is printed at the end: of `pair`, what was measured; of `run`, what the switch did.

use crate::cli::{Arch, Workload};
use crate::ctl::render;
use crate::ctl::status::{PortStatus, StatsReport, Traffic};
use crate::table::{Column, Table, bytes, count};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What `pair` measured. Printed as it is with `--json`, else as tables by [`PairReport::render`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// What the VMs were: `inprocess` or `tap`.
    pub backend: String,
    /// What carried their frames.
    pub arch: Arch,
    /// What each entry into the hypervisor, and each interrupt taken, cost beside the work done there: nanoseconds
    /// that the thread spun.
    pub entry_cost_ns: u64,
    /// Pairs that talked at the same time.
    pub pairs: u16,
    /// The seed of all that was random.
    pub seed: u64,
    /// A signal ended the measurement before its time.
    pub interrupted: bool,
    /// The workloads, in the order in which they ran.
    pub workloads: Vec<WorkloadReport>,
}

/// What one workload measured, all pairs together. Values that a workload does not measure are `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// What the VMs did.
    pub workload: Workload,
    /// How long it was measured, in seconds.
    pub seconds: f64,
    /// Payload that arrived, in 10^9 bits a second; of `raw`, whole frames.
    pub throughput_gbps: Option<f64>,
    /// Of `raw`: what a bare `memcpy` of such frames does on one core of this machine, in 10^9 bits a second.
    pub memcpy_gbps: Option<f64>,
    /// Requests that were answered, a second; of `udp` and `raw`, packets that arrived, a second.
    pub transactions_per_s: Option<f64>,
    /// The median of the time from a request to its answer, in microseconds.
    pub p50_us: Option<f64>,
    /// The time within which 99 of 100 requests were answered, in microseconds.
    pub p99_us: Option<f64>,
    /// The longest time that a request took, in microseconds.
    pub max_us: Option<f64>,
    /// Of `udp` and `raw` in this process: packets that did not arrive, of all that were sent from the first to the
    /// last that arrived, before and after the measurement too.
    pub lost: Option<u64>,
    /// Of these workloads, packets that arrived behind a later one.
    pub reordered: Option<u64>,
    /// What each VM cost.
    pub vms: Vec<VmReport>,
    /// What the switch's own threads cost, where it is known.
    pub switching: Option<SwitchingReport>,
}

/// What the switch's own threads did between the start and the end of all VMs: workers, the driver domain, the control
/// plane. What VMs' threads did in the switch is in their own reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchingReport {
    /// From the start to the end, in nanoseconds: what the processor times of this and of the VMs are parts of.
    pub elapsed_ns: u64,
    /// Processor time, in nanoseconds.
    pub cpu_ns: u64,
    /// Entries into the hypervisor, as a driver domain makes them.
    pub entries: u64,
    /// Times that one of these threads was woken, or told before it slept; of this switch, for an idle core or a timer.
    pub wakeups: u64,
}

/// What one VM did while a workload ran, and what the switch did for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// The name of its port.
    pub name: String,
    /// What it sent.
    pub tx: Traffic,
    /// What it received.
    pub rx: Traffic,
    /// Entries by its thread to send: hypercalls; elsewhere than in this process, entries into the switch.
    pub transmit_calls: u64,
    /// Entries by its thread to receive, or to say that there are buffers again.
    pub receive_calls: u64,
    /// Virtual interrupts that it was sent.
    pub notifications: u64,
    /// Packets that were copied into its memory, and by a contender also those out of it.
    pub copies: u64,
    /// Bytes of these.
    pub copied_bytes: u64,
    /// Processor time of its thread, in nanoseconds, what it did in the switch included; where it has one here.
    pub cpu_ns: Option<u64>,
}

impl VmReport {
    /// Nanoseconds for which cores worked for the VM in the switch, its own in its hypercalls or others in its stead.
    /// Nothing is known of contenders.
    pub fn work_ns(&self) -> Option<u64> {
        Some(self.tx.work_ns + self.rx.work_ns).filter(|ns| *ns > 0)
    }
}

/// A number to one, two or three decimals, or a dash.
pub(crate) fn measured(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// Processor time in seconds.
fn seconds(ns: u64) -> String {
    format!("{:.2} s", ns as f64 / 1e9)
}

impl fmt::Display for SwitchingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SwitchingReport { elapsed_ns, cpu_ns, entries, wakeups } = *self;
        let [cpu, elapsed] = [cpu_ns, elapsed_ns].map(seconds);
        let [entries, wakeups] = [entries, wakeups].map(count);
        write!(f, "switching threads: cpu {cpu} in {elapsed}, {entries} entries, {wakeups} wake-ups")
    }
}

impl PairReport {
    /// The report as text that ends with a newline: results first, then what each VM cost, then the drops.
    pub fn render(&self) -> String {
        let pairs = if self.pairs == 1 { "pair" } else { "pairs" };
        let interrupted = if self.interrupted { ", interrupted" } else { "" };
        let mut text = format!(
            "{} {pairs} ({}), {}, entry cost {} ns, seed {}{interrupted}\n\n",
            self.pairs,
            self.backend,
            self.arch.name(),
            self.entry_cost_ns,
            self.seed
        );
        text.push_str(&self.results().to_string());
        for workload in &self.workloads {
            let all = workload.total();
            text.push_str(&format!("\n{}:\n{}", workload.workload.name(), workload.costs(&all)));
            let mut drops = all.tx.drops;
            drops.add(&all.rx.drops);
            text.push_str(&render::render_drops(&drops));
            if let Some(switching) = &workload.switching {
                text.push_str(&format!("{switching}\n"));
            }
        }
        text
    }

    fn results(&self) -> Table<9> {
        let mut table = Table::new([
            Column::left("workload"),
            Column::right("seconds"),
            Column::right("Gb/s"),
            Column::right("memcpy Gb/s"),
            Column::right("transactions/s"),
            Column::right("p50 us"),
            Column::right("p99 us"),
            Column::right("max us"),
            Column::right("lost"),
        ]);
        for workload in &self.workloads {
            // A rate is not negative; the conversion saturates in any case.
            let rate = workload.transactions_per_s.map_or("-".to_owned(), |rate| count(rate.round() as u64));
            table.row([
                workload.workload.name().to_owned(),
                measured(Some(workload.seconds), 1),
                measured(workload.throughput_gbps, 2),
                measured(workload.memcpy_gbps, 2),
                rate,
                measured(workload.p50_us, 1),
                measured(workload.p99_us, 1),
                measured(workload.max_us, 1),
                workload.lost.map_or("-".to_owned(), count),
            ]);
        }
        table
    }
}

impl WorkloadReport {
    /// All VMs together.
    pub fn total(&self) -> VmReport {
        let mut all = VmReport { name: "all".to_owned(), ..VmReport::default() };
        for vm in &self.vms {
            all.tx.add(&vm.tx);
            all.rx.add(&vm.rx);
            all.transmit_calls += vm.transmit_calls;
            all.receive_calls += vm.receive_calls;
            all.notifications += vm.notifications;
            all.copies += vm.copies;
            all.copied_bytes += vm.copied_bytes;
            all.cpu_ns = all.cpu_ns.zip(vm.cpu_ns).map(|(all, vm)| all + vm).or(vm.cpu_ns);
        }
        all
    }

    /// A row for each VM, their sum, and the sum for each packet that arrived.
    fn costs(&self, all: &VmReport) -> Table<13> {
        let mut table = Table::new([
            Column::left("vm"),
            Column::right("tx packets"),
            Column::right("tx bytes"),
            Column::right("rx packets"),
            Column::right("rx bytes"),
            Column::right("drops"),
            Column::right("tx calls"),
            Column::right("rx calls"),
            Column::right("notified"),
            Column::right("copies"),
            Column::right("copied"),
            Column::right("cpu"),
            Column::right("work"),
        ]);
        let row = |name: &str,
                   vm: &VmReport,
                   number: &dyn Fn(u64) -> String,
                   amount: &dyn Fn(u64) -> String,
                   time: &dyn Fn(u64) -> String| {
            [
                name.to_owned(),
                number(vm.tx.frames),
                amount(vm.tx.bytes),
                number(vm.rx.frames),
                amount(vm.rx.bytes),
                number(vm.tx.drops.total().saturating_add(vm.rx.drops.total())),
                number(vm.transmit_calls),
                number(vm.receive_calls),
                number(vm.notifications),
                number(vm.copies),
                amount(vm.copied_bytes),
                vm.cpu_ns.map_or("-".to_owned(), time),
                vm.work_ns().map_or("-".to_owned(), time),
            ]
        };
        for vm in self.vms.iter().chain([all]) {
            table.row(row(&vm.name, vm, &count, &bytes, &seconds));
        }
        let packets = all.rx.frames;
        if packets > 0 {
            let ratio = |sum: u64| format!("{:.2}", sum as f64 / packets as f64);
            table.row(row("a packet", all, &ratio, &|sum| bytes(sum / packets), &|sum| {
                format!("{} ns", sum / packets)
            }));
        }
        table
    }
}

/// What `run` prints after a clean stop, as text that ends with a newline.
pub fn run_summary(stats: &StatsReport, ports: &[PortStatus]) -> String {
    format!("{}\n{}", render::render_stats(stats), render::render_ports(ports))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::status::Drops;
    use hyper_switch_dataplane::api::DropReason;

    fn report() -> PairReport {
        let traffic =
            |frames, bytes| Traffic { frames, bytes, drops: Drops::default(), work_ns: 600_000_000 };
        let mut receiver = VmReport {
            name: "b0".into(),
            rx: traffic(60_000, 3_900_000_000),
            receive_calls: 12,
            notifications: 4_100,
            copies: 60_000,
            copied_bytes: 3_900_000_000,
            cpu_ns: Some(3_000_000_000),
            ..VmReport::default()
        };
        receiver.rx.drops.count(DropReason::RxQueueFull, 3);
        let sender = VmReport {
            name: "a0".into(),
            tx: traffic(60_003, 3_900_000_195),
            transmit_calls: 950,
            cpu_ns: Some(4_500_000_000),
            ..VmReport::default()
        };
        PairReport {
            backend: "inprocess".into(),
            arch: Arch::HyperSwitch,
            entry_cost_ns: 1_000,
            pairs: 1,
            seed: 1,
            interrupted: false,
            workloads: vec![
                WorkloadReport {
                    workload: Workload::Stream,
                    seconds: 5.0,
                    throughput_gbps: Some(6.24),
                    memcpy_gbps: None,
                    transactions_per_s: None,
                    p50_us: None,
                    p99_us: None,
                    max_us: None,
                    lost: Some(4),
                    reordered: Some(0),
                    vms: vec![sender, receiver],
                    switching: Some(SwitchingReport {
                        elapsed_ns: 5_100_000_000,
                        cpu_ns: 20_000_000,
                        entries: 0,
                        wakeups: 12,
                    }),
                },
                WorkloadReport {
                    workload: Workload::Rr,
                    seconds: 5.0,
                    throughput_gbps: None,
                    memcpy_gbps: None,
                    transactions_per_s: Some(123_456.7),
                    p50_us: Some(7.96),
                    p99_us: Some(21.0),
                    max_us: Some(1_250.4),
                    lost: None,
                    reordered: None,
                    vms: vec![],
                    switching: None,
                },
            ],
        }
    }

    /// The whole report as a person sees it: what a workload did not measure is a dash, the last row is what a
    /// packet cost, and drops are explained under the VMs that had them.
    #[test]
    fn a_pair_is_reported() {
        let mut report = report();
        report.workloads[1].vms.push(VmReport { name: "a0".into(), ..VmReport::default() });
        let expected = "\
1 pair (inprocess), hyper-switch, entry cost 1000 ns, seed 1

workload  seconds  Gb/s  memcpy Gb/s  transactions/s  p50 us  p99 us  max us  lost
stream        5.0  6.24            -               -       -       -       -     4
rr            5.0     -            -         123,457     8.0    21.0  1250.4     -

stream:
vm        tx packets  tx bytes  rx packets  rx bytes  drops  tx calls  rx calls  notified  copies   copied        cpu      work
a0            60,003   3.90 GB           0       0 B      0       950         0         0       0      0 B     4.50 s    0.60 s
b0                 0       0 B      60,000   3.90 GB      3         0        12     4,100  60,000  3.90 GB     3.00 s    0.60 s
all           60,003   3.90 GB      60,000   3.90 GB      3       950        12     4,100  60,000  3.90 GB     7.50 s    1.20 s
a packet        1.00   65.0 kB        1.00   65.0 kB   0.00      0.02      0.00      0.07    1.00  65.0 kB  125000 ns  20000 ns
drops for      frames  which means
rx_queue_full       3  The receiver's internal queue is full.
switching threads: cpu 0.02 s in 5.10 s, 0 entries, 12 wake-ups

rr:
vm   tx packets  tx bytes  rx packets  rx bytes  drops  tx calls  rx calls  notified  copies  copied  cpu  work
a0            0       0 B           0       0 B      0         0         0         0       0     0 B    -     -
all           0       0 B           0       0 B      0         0         0         0       0     0 B    -     -
no drops
";
        assert_eq!(report.render(), expected);
    }

    /// Scripts read the same report from JSON, with the names of the fields as they are in the type.
    #[test]
    fn a_report_survives_json() {
        let json = serde_json::to_string(&report()).unwrap();
        assert!(
            json.contains(r#""workload":"stream","seconds":5.0,"throughput_gbps":6.24,"memcpy_gbps":null,"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<PairReport>(&json).unwrap(), report());
    }

    /// A switch that did nothing says so in full sentences, and lists its ports all the same.
    #[test]
    fn a_run_is_summed_up() {
        let summary = run_summary(&StatsReport { version: "0.1.0".into(), ..StatsReport::default() }, &[]);
        assert!(summary.starts_with("hyper-switch 0.1.0, pid 0, up 0 ms: 0 ports"), "{summary}");
        assert!(summary.contains("no drops\n"), "{summary}");
        assert!(summary.contains("id  port  device"), "{summary}");
    }
}
