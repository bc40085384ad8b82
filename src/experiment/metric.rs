//! What is measured at each point of an experiment, and how it came out over the repeats.

use crate::report::WorkloadReport;
use serde::{Deserialize, Serialize};

/// A quantity that is measured. What a workload does not measure, it has no value of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Metric {
    /// Payload that arrived.
    Throughput,
    /// What a bare copy of the same frames does on one core.
    Memcpy,
    /// Payload that arrived by the cores that all CPU time used comes to: of VMs and of threads that only switch.
    ThroughputPerCore,
    /// Requests answered, or frames that arrived, a second.
    Transactions,
    /// The time within which half of the requests were answered.
    P50,
    /// The time within which 99 of 100 requests were answered.
    P99,
    /// Entries into the hypervisor, by VMs and by a driver domain, for each packet that was delivered.
    Entries,
    /// Virtual interrupts of VMs for each packet that was delivered.
    Notifications,
    /// Times that a thread of the switch was woken for each packet that was delivered.
    Wakeups,
    /// Copies for each packet that was delivered.
    Copies,
    /// CPU time of the VMs' threads, in seconds a second; what they do in the switch is part of it.
    VmCpu,
    /// CPU time of threads that only switch, in seconds a second.
    SwitchingCpu,
    /// Packets that did not arrive, of those that were sent; where packets have no numbers, those that were dropped.
    Loss,
}

impl Metric {
    /// All metrics, in the order of a table's columns.
    pub const ALL: [Metric; 13] = [
        Metric::Throughput,
        Metric::Memcpy,
        Metric::ThroughputPerCore,
        Metric::Transactions,
        Metric::P50,
        Metric::P99,
        Metric::Entries,
        Metric::Notifications,
        Metric::Wakeups,
        Metric::Copies,
        Metric::VmCpu,
        Metric::SwitchingCpu,
        Metric::Loss,
    ];

    /// Its name for programs: a key of JSON, a column of CSV.
    pub fn key(self) -> &'static str {
        self.about().0
    }

    /// The head of its column in a table.
    pub fn title(self) -> &'static str {
        self.about().1
    }

    /// What stands at its axis, with the unit.
    pub fn axis(self) -> &'static str {
        self.about().2
    }

    /// Decimals that are shown of it.
    pub fn decimals(self) -> usize {
        self.about().3
    }

    fn about(self) -> (&'static str, &'static str, &'static str, usize) {
        match self {
            Metric::Throughput => ("throughput_gbps", "Gb/s", "net throughput (Gb/s)", 2),
            Metric::Memcpy => ("memcpy_gbps", "memcpy", "memcpy on one core (Gb/s)", 2),
            Metric::ThroughputPerCore => {
                ("throughput_gbps_per_core", "Gb/s/core", "net throughput a core used (Gb/s)", 2)
            }
            Metric::Transactions => ("transactions_per_s", "per s", "transactions or packets a second", 0),
            Metric::P50 => ("p50_us", "p50 us", "latency, median (µs)", 1),
            Metric::P99 => ("p99_us", "p99 us", "latency, 99th percentile (µs)", 1),
            Metric::Entries => ("entries_per_packet", "entries", "entries a packet", 3),
            Metric::Notifications => ("notifications_per_packet", "notified", "notifications a packet", 3),
            Metric::Wakeups => {
                ("wakeups_per_packet", "wake-ups", "wake-ups of switching threads a packet", 3)
            }
            Metric::Copies => ("copies_per_packet", "copies", "copies a packet", 2),
            Metric::VmCpu => ("vm_cpu_cores", "VM cores", "CPU time of VMs (cores)", 2),
            Metric::SwitchingCpu => {
                ("switching_cpu_cores", "switch cores", "CPU time for switching (cores)", 2)
            }
            Metric::Loss => ("loss_percent", "loss %", "packets lost (%)", 2),
        }
    }

    /// Its value in one run.
    pub fn of(self, run: &WorkloadReport) -> Option<f64> {
        let all = run.total();
        let switching = run.switching.as_ref();
        let a_packet = |number: u64| (all.rx.frames > 0).then(|| number as f64 / all.rx.frames as f64);
        let cores = |cpu_ns: u64| {
            let elapsed_ns = switching?.elapsed_ns;
            (elapsed_ns > 0).then(|| cpu_ns as f64 / elapsed_ns as f64)
        };
        match self {
            Metric::Throughput => run.throughput_gbps,
            Metric::Memcpy => run.memcpy_gbps,
            Metric::ThroughputPerCore => {
                let cores = cores(all.cpu_ns? + switching?.cpu_ns).filter(|cores| *cores > 0.0)?;
                Some(run.throughput_gbps? / cores)
            }
            Metric::Transactions => run.transactions_per_s,
            Metric::P50 => run.p50_us,
            Metric::P99 => run.p99_us,
            Metric::Entries => {
                let others = switching.map_or(0, |switching| switching.entries);
                a_packet(all.transmit_calls + all.receive_calls + others)
            }
            Metric::Notifications => a_packet(all.notifications),
            Metric::Wakeups => a_packet(switching?.wakeups),
            Metric::Copies => a_packet(all.copies),
            Metric::VmCpu => cores(all.cpu_ns?),
            Metric::SwitchingCpu => cores(switching?.cpu_ns),
            Metric::Loss => {
                let dropped = all.tx.drops.total().saturating_add(all.rx.drops.total());
                let lost = run.lost.unwrap_or(dropped);
                (all.tx.frames > 0).then(|| 100.0 * lost as f64 / all.tx.frames as f64)
            }
        }
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> String {
        metric.key().to_owned()
    }
}

impl TryFrom<String> for Metric {
    type Error = String;

    fn try_from(key: String) -> Result<Metric, String> {
        let found = Metric::ALL.into_iter().find(|metric| metric.key() == key);
        found.ok_or_else(|| format!("`{key}` is no metric"))
    }
}

/// How a metric came out over the repeats: their median, and between what they were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle of the samples by size; of an even number, the mean of the middle two.
    pub median: f64,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
    /// What each repeat measured, in the order in which they ran.
    pub samples: Vec<f64>,
}

impl Spread {
    /// The spread of what the repeats measured; none if nothing was.
    pub fn of(samples: Vec<f64>) -> Option<Spread> {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[upper]) / 2.0;
        Some(Spread { median, min, max, samples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Workload;
    use crate::report::{SwitchingReport, VmReport};
    use hyper_switch_dataplane::api::DropReason;

    /// Holds that a median is the middle of odd and even numbers of samples, whatever their order, and that nothing
    /// has none.
    #[test]
    fn a_spread_has_its_median() {
        assert_eq!(Spread::of(vec![]), None);
        for (samples, median, min, max) in [
            (vec![3.0], 3.0, 3.0, 3.0),
            (vec![9.0, 1.0, 2.0], 2.0, 1.0, 9.0),
            (vec![4.0, 1.0], 2.5, 1.0, 4.0),
        ] {
            let expected = Spread { median, min, max, samples: samples.clone() };
            assert_eq!(Spread::of(samples), Some(expected));
        }
    }

    /// Holds what each metric is of a run, against numbers that are easily divided; and that of a run in which
    /// nothing was delivered nothing is said a packet.
    #[test]
    fn a_run_has_its_metrics() {
        let mut run = WorkloadReport {
            workload: Workload::Stream,
            seconds: 2.0,
            throughput_gbps: Some(8.0),
            memcpy_gbps: None,
            transactions_per_s: None,
            p50_us: None,
            p99_us: None,
            max_us: None,
            lost: None,
            reordered: None,
            switching: None,
            vms: vec![VmReport::default(), VmReport::default()],
        };
        assert_eq!(Metric::Entries.of(&run), None);
        assert_eq!(Metric::Loss.of(&run), None);
        assert_eq!((Metric::VmCpu.of(&run), Metric::ThroughputPerCore.of(&run)), (None, None));
        let [a, b] = &mut run.vms[..] else { unreachable!() };
        (a.tx.frames, a.transmit_calls) = (200, 30);
        (b.rx.frames, b.receive_calls, b.notifications, b.copies) = (100, 20, 10, 100);
        b.rx.drops.count(DropReason::RxQueueFull, 50);
        a.tx.drops.count(DropReason::RxQueueFull, 50);
        (a.cpu_ns, b.cpu_ns) = (Some(1_000), Some(500));
        run.switching = Some(SwitchingReport { elapsed_ns: 1_000, cpu_ns: 500, entries: 50, wakeups: 25 });
        for (metric, value) in [
            (Metric::Throughput, Some(8.0)),
            (Metric::Transactions, None),
            (Metric::ThroughputPerCore, Some(4.0)),
            (Metric::Entries, Some(1.0)),
            (Metric::Notifications, Some(0.1)),
            (Metric::Wakeups, Some(0.25)),
            (Metric::Copies, Some(1.0)),
            (Metric::VmCpu, Some(1.5)),
            (Metric::SwitchingCpu, Some(0.5)),
            (Metric::Loss, Some(50.0)),
        ] {
            assert_eq!(metric.of(&run), value, "{metric:?}");
        }
        run.lost = Some(20);
        assert_eq!(Metric::Loss.of(&run), Some(10.0), "what the receiver misses counts, where it knows");
    }

    /// Holds that a metric is found by its key, and that no two share one.
    #[test]
    fn a_metric_is_known_by_its_key() {
        for metric in Metric::ALL {
            assert_eq!(Metric::try_from(metric.key().to_owned()), Ok(metric));
        }
        assert!(Metric::try_from("speed".to_owned()).is_err());
    }
}
