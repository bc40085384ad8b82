//! What the guests measured, and what the switch counted of it.

use super::qemu::{Accel, RingFormat};
use super::rig::Backend;
use super::scenario::Ping;
use super::workload::Measured;
use crate::ctl::render;
use crate::ctl::status::{Drops, PortStatus};
use crate::report::measured;
use crate::table::{Column, Table, bytes, count};
use serde::{Deserialize, Serialize};

/// What `vm` measured. Printed as it is with `--json`, else as tables by [`GuestsReport::render`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestsReport {
    /// The version of the guests' kernel.
    pub kernel: String,
    /// Who executed the guests' instructions.
    pub accel: Accel,
    /// How guests and switch were joined.
    pub backend: Backend,
    /// The format of the guests' rings.
    pub ring: RingFormat,
    /// Pairs of rings of each guest.
    pub queues: u16,
    /// The MTU in bytes that guests were told, if they were.
    pub mtu: Option<u16>,
    /// What came of a ping from `a` to `b`.
    pub ping: Ping,
    /// The workloads, in the order in which they ran.
    pub workloads: Vec<Between>,
    /// What the switch counted for each port, all of it together.
    pub ports: Vec<PortStatus>,
}

/// A workload between two guests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Between {
    /// The guest that sent first.
    pub from: String,
    /// The other one.
    pub to: String,
    /// What it came to.
    #[serde(flatten)]
    pub measured: Measured,
}

impl GuestsReport {
    /// The report as text that ends with a newline.
    pub fn render(&self) -> String {
        let accel = match self.accel {
            Accel::Kvm => "under KVM",
            Accel::Tcg => "translated by QEMU (TCG)",
        };
        let backend = match self.backend {
            Backend::VhostUser => "vhost-user",
            Backend::VhostUserClient => "vhost-user with sockets of QEMU's",
            Backend::Tap => "TAP and packet sockets",
        };
        let ring = match self.ring {
            RingFormat::Split => "split",
            RingFormat::Packed => "packed",
        };
        let mtu = self.mtu.map_or(String::new(), |mtu| format!(", MTU {mtu}"));
        let pairs = if self.queues == 1 { "pair" } else { "pairs" };
        let Ping { sent, received, min_ms, avg_ms, max_ms } = self.ping;
        let mut text = format!(
            "2 guests with Linux {}, {accel}, on {backend}; {ring} ring, {} queue {pairs}{mtu}\n\
             ping: {received} of {sent} answered; round trip {min_ms:.3} ms at least, {avg_ms:.3} ms on average, \
             {max_ms:.3} ms at most\n\n",
            self.kernel, self.queues
        );
        text.push_str(&self.results().to_string());
        text.push('\n');
        let mut drops = Drops::default();
        let mut table = Table::new(
            ["port", "tx packets", "tx bytes", "bytes a packet", "rx packets", "rx bytes", "drops"]
                .map(|title| if title == "port" { Column::left(title) } else { Column::right(title) }),
        );
        for PortStatus { name, tx, rx, .. } in &self.ports {
            drops.add(&tx.drops);
            drops.add(&rx.drops);
            table.row([
                name.clone(),
                count(tx.frames),
                bytes(tx.bytes),
                count(tx.bytes.checked_div(tx.frames).unwrap_or(0)),
                count(rx.frames),
                bytes(rx.bytes),
                count(tx.drops.total() + rx.drops.total()),
            ]);
        }
        text.push_str(&table.to_string());
        text.push_str(&render::render_drops(&drops));
        text
    }

    fn results(&self) -> Table<9> {
        let mut table = Table::new([
            Column::left("workload"),
            Column::left("way"),
            Column::right("seconds"),
            Column::right("Gb/s"),
            Column::right("transactions/s"),
            Column::right("p50 us"),
            Column::right("p99 us"),
            Column::right("max us"),
            Column::right("lost"),
        ]);
        for Between { from, to, measured: of } in &self.workloads {
            table.row([
                of.workload.name().to_owned(),
                format!("{from} to {to}"),
                format!("{:.1}", of.seconds),
                measured(of.throughput_gbps, 3),
                of.transactions_per_s.map_or("-".to_owned(), |rate| count(rate.round() as u64)),
                measured(of.p50_us, 1),
                measured(of.p99_us, 1),
                measured(of.max_us, 1),
                of.lost.map_or("-".to_owned(), count),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Workload;
    use crate::ctl::status::{PortState, Traffic, VlanStatus, VmStatus};

    /// The whole report as a person sees it, and as a script reads it back.
    #[test]
    fn guests_are_reported() {
        let nothing = Measured {
            workload: Workload::Stream,
            seconds: 5.0,
            throughput_gbps: None,
            transactions_per_s: None,
            p50_us: None,
            p99_us: None,
            max_us: None,
            lost: None,
            reordered: None,
        };
        let between = |measured| Between { from: "a".into(), to: "b".into(), measured };
        let port = PortStatus {
            id: 1,
            name: "a".into(),
            kind: "packet".into(),
            device: "packet:hs0".into(),
            state: PortState::Up,
            vlan: VlanStatus::Transparent,
            vm: VmStatus::default(),
            vmm: None,
            tx: Traffic { frames: 1_000, bytes: 30_000_000, ..Traffic::default() },
            rx: Traffic::default(),
            in_flight: 0,
            queued: 0,
            upcalls: 1,
        };
        let report = GuestsReport {
            kernel: "6.1.0".into(),
            accel: Accel::Tcg,
            backend: Backend::Tap,
            ring: RingFormat::Split,
            queues: 1,
            mtu: Some(9000),
            ping: Ping { sent: 10, received: 10, min_ms: 0.5, avg_ms: 1.0, max_ms: 2.0 },
            workloads: vec![
                between(Measured { throughput_gbps: Some(1.25), ..nothing.clone() }),
                between(Measured {
                    workload: Workload::Rr,
                    transactions_per_s: Some(1_234.5),
                    p50_us: Some(700.0),
                    p99_us: Some(1_500.25),
                    max_us: Some(2_000.0),
                    ..nothing
                }),
            ],
            ports: vec![port],
        };
        let expected = "\
2 guests with Linux 6.1.0, translated by QEMU (TCG), on TAP and packet sockets; split ring, 1 queue pair, MTU 9000
ping: 10 of 10 answered; round trip 0.500 ms at least, 1.000 ms on average, 2.000 ms at most

workload  way     seconds   Gb/s  transactions/s  p50 us  p99 us  max us  lost
stream    a to b      5.0  1.250               -       -       -       -     -
rr        a to b      5.0      -           1,235   700.0  1500.2  2000.0     -

port  tx packets  tx bytes  bytes a packet  rx packets  rx bytes  drops
a          1,000   30.0 MB          30,000           0       0 B      0
no drops
";
        assert_eq!(report.render(), expected);
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#"{"from":"a","to":"b","workload":"stream","seconds":5.0,"#), "{json}");
        assert_eq!(serde_json::from_str::<GuestsReport>(&json).unwrap(), report);
    }
}
