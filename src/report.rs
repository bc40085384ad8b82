//! What is printed at the end: of `pair`, what was measured; of `run`, what the switch did.

use crate::cli::Workload;
use crate::ctl::render;
use crate::ctl::status::{PortStatus, StatsReport, Traffic};
use crate::table::{Column, Table, bytes, count};
use serde::{Deserialize, Serialize};

/// What `pair` measured. Printed as it is with `--json`, else as tables by [`PairReport::render`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// What the VMs were: `inprocess` or `tap`.
    pub backend: String,
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
    /// Payload that arrived, in 10^9 bits a second.
    pub throughput_gbps: Option<f64>,
    /// Requests that were answered, a second; of `udp`, datagrams that arrived, a second.
    pub transactions_per_s: Option<f64>,
    /// The median of the time from a request to its answer, in microseconds.
    pub p50_us: Option<f64>,
    /// The time within which 99 of 100 requests were answered, in microseconds.
    pub p99_us: Option<f64>,
    /// The longest time that a request took, in microseconds.
    pub max_us: Option<f64>,
    /// What each VM cost.
    pub vms: Vec<VmReport>,
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
    /// Entries into the switch to send.
    pub transmit_calls: u64,
    /// Entries into the switch to receive.
    pub receive_calls: u64,
    /// Virtual interrupts that it was sent.
    pub notifications: u64,
    /// Packets that were copied into its memory.
    pub copies: u64,
    /// Bytes of these.
    pub copied_bytes: u64,
}

/// A number to one, two or three decimals, or a dash.
fn measured(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

impl PairReport {
    /// The report as text that ends with a newline: results first, then what each VM cost, then the drops.
    pub fn render(&self) -> String {
        let pairs = if self.pairs == 1 { "pair" } else { "pairs" };
        let interrupted = if self.interrupted { ", interrupted" } else { "" };
        let mut text =
            format!("{} {pairs} ({}), seed {}{interrupted}\n\n", self.pairs, self.backend, self.seed);
        text.push_str(&self.results().to_string());
        for workload in &self.workloads {
            let all = workload.total();
            text.push_str(&format!("\n{}:\n{}", workload.workload.name(), workload.costs(&all)));
            let mut drops = all.tx.drops;
            drops.add(&all.rx.drops);
            text.push_str(&render::render_drops(&drops));
        }
        text
    }

    fn results(&self) -> Table<7> {
        let mut table = Table::new([
            Column::left("workload"),
            Column::right("seconds"),
            Column::right("Gb/s"),
            Column::right("transactions/s"),
            Column::right("p50 us"),
            Column::right("p99 us"),
            Column::right("max us"),
        ]);
        for workload in &self.workloads {
            // A rate is not negative; the conversion saturates in any case.
            let rate = workload.transactions_per_s.map_or("-".to_owned(), |rate| count(rate.round() as u64));
            table.row([
                workload.workload.name().to_owned(),
                measured(Some(workload.seconds), 1),
                measured(workload.throughput_gbps, 2),
                rate,
                measured(workload.p50_us, 1),
                measured(workload.p99_us, 1),
                measured(workload.max_us, 1),
            ]);
        }
        table
    }
}

impl WorkloadReport {
    /// All VMs together.
    fn total(&self) -> VmReport {
        let mut all = VmReport { name: "all".to_owned(), ..VmReport::default() };
        for vm in &self.vms {
            all.tx.add(&vm.tx);
            all.rx.add(&vm.rx);
            all.transmit_calls += vm.transmit_calls;
            all.receive_calls += vm.receive_calls;
            all.notifications += vm.notifications;
            all.copies += vm.copies;
            all.copied_bytes += vm.copied_bytes;
        }
        all
    }

    /// A row for each VM, their sum, and the sum for each packet that arrived.
    fn costs(&self, all: &VmReport) -> Table<11> {
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
        ]);
        let row =
            |name: &str, vm: &VmReport, number: &dyn Fn(u64) -> String, amount: &dyn Fn(u64) -> String| {
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
                ]
            };
        for vm in self.vms.iter().chain([all]) {
            table.row(row(&vm.name, vm, &count, &bytes));
        }
        let packets = all.rx.frames;
        if packets > 0 {
            let ratio = |sum: u64| format!("{:.2}", sum as f64 / packets as f64);
            table.row(row("a packet", all, &ratio, &|sum| bytes(sum / packets)));
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
        let traffic = |frames, bytes| Traffic { frames, bytes, drops: Drops::default() };
        let mut receiver = VmReport {
            name: "b0".into(),
            rx: traffic(60_000, 3_900_000_000),
            receive_calls: 12,
            notifications: 4_100,
            copies: 60_000,
            copied_bytes: 3_900_000_000,
            ..VmReport::default()
        };
        receiver.rx.drops.count(DropReason::RxQueueFull, 3);
        let sender = VmReport {
            name: "a0".into(),
            tx: traffic(60_003, 3_900_000_195),
            transmit_calls: 950,
            ..VmReport::default()
        };
        PairReport {
            backend: "inprocess".into(),
            pairs: 1,
            seed: 1,
            interrupted: false,
            workloads: vec![
                WorkloadReport {
                    workload: Workload::Stream,
                    seconds: 5.0,
                    throughput_gbps: Some(6.24),
                    transactions_per_s: None,
                    p50_us: None,
                    p99_us: None,
                    max_us: None,
                    vms: vec![sender, receiver],
                },
                WorkloadReport {
                    workload: Workload::Rr,
                    seconds: 5.0,
                    throughput_gbps: None,
                    transactions_per_s: Some(123_456.7),
                    p50_us: Some(7.96),
                    p99_us: Some(21.0),
                    max_us: Some(1_250.4),
                    vms: vec![],
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
1 pair (inprocess), seed 1

workload  seconds  Gb/s  transactions/s  p50 us  p99 us  max us
stream        5.0  6.24               -       -       -       -
rr            5.0     -         123,457     8.0    21.0  1250.4

stream:
vm        tx packets  tx bytes  rx packets  rx bytes  drops  tx calls  rx calls  notified  copies   copied
a0            60,003   3.90 GB           0       0 B      0       950         0         0       0      0 B
b0                 0       0 B      60,000   3.90 GB      3         0        12     4,100  60,000  3.90 GB
all           60,003   3.90 GB      60,000   3.90 GB      3       950        12     4,100  60,000  3.90 GB
a packet        1.00   65.0 kB        1.00   65.0 kB   0.00      0.02      0.00      0.07    1.00  65.0 kB
drops for      frames  which means
rx_queue_full       3  The receiver's internal queue is full.

rr:
vm   tx packets  tx bytes  rx packets  rx bytes  drops  tx calls  rx calls  notified  copies  copied
a0            0       0 B           0       0 B      0         0         0         0       0     0 B
all           0       0 B           0       0 B      0         0         0         0       0     0 B
no drops
";
        assert_eq!(report.render(), expected);
    }

    /// Scripts read the same report from JSON, with the names of the fields as they are in the type.
    #[test]
    fn a_report_survives_json() {
        let json = serde_json::to_string(&report()).unwrap();
        assert!(json.contains(r#""workload":"stream","seconds":5.0,"throughput_gbps":6.24,"#), "{json}");
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
