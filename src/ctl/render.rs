//! Answers as tables for people.

use super::protocol::Answer;
use super::status::{CoreStatus, Drops, FlowStatus, MacStatus, PortState, PortStatus, StatsReport};
use crate::table::{Column, Table, bytes, count, span};
use crate::vm::qemu::RingFormat;
use std::time::Duration;

/// The answer as text that ends with a newline.
pub fn render(answer: &Answer) -> String {
    match answer {
        Answer::Ports(ports) => render_ports(ports),
        Answer::Flows(flows) => render_flows(flows),
        Answer::Macs(macs) => render_macs(macs),
        Answer::Stats(stats) => render_stats(stats),
    }
}

/// The ports, and under them why those that are down are.
pub fn render_ports(ports: &[PortStatus]) -> String {
    let mut table = Table::new([
        Column::right("id"),
        Column::left("port"),
        Column::left("device"),
        Column::left("state"),
        Column::left("vlan"),
        Column::left("vm"),
        Column::right("tx frames"),
        Column::right("tx bytes"),
        Column::right("tx drops"),
        Column::right("rx frames"),
        Column::right("rx bytes"),
        Column::right("rx drops"),
        Column::right("queued"),
        Column::right("in flight"),
        Column::right("upcalls"),
        Column::right("work"),
    ]);
    let mut reasons = String::new();
    for port in ports {
        let state = match &port.state {
            PortState::Up => "up",
            PortState::Down { reason } => {
                reasons.push_str(&format!("{} is down: {reason}\n", port.name));
                "down"
            }
        };
        table.row([
            port.id.to_string(),
            port.name.clone(),
            format!("{}:{}", port.kind, port.device),
            state.to_owned(),
            port.vlan.to_string(),
            port.vm.to_string(),
            count(port.tx.frames),
            bytes(port.tx.bytes),
            count(port.tx.drops.total()),
            count(port.rx.frames),
            bytes(port.rx.bytes),
            count(port.rx.drops.total()),
            count(port.queued),
            count(port.in_flight),
            count(port.upcalls),
            span(Duration::from_nanos(port.tx.work_ns.saturating_add(port.rx.work_ns))),
        ]);
    }
    format!("{table}{reasons}{}", render_vmms(ports))
}

/// The VMMs of vhost-user ports, and what ended the last sessions; nothing if there are no such ports.
fn render_vmms(ports: &[PortStatus]) -> String {
    let vmms: Vec<_> = ports.iter().filter_map(|port| Some((&port.name, port.vmm.as_ref()?))).collect();
    if vmms.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        Column::left("port"),
        Column::left("vmm"),
        Column::left("rings"),
        Column::right("pairs"),
        Column::left("vm sends"),
        Column::left("vm receives"),
        Column::right("sessions"),
        Column::right("faults"),
    ]);
    let mut ends = String::new();
    for (name, vmm) in vmms {
        let dash = || "-".to_owned();
        let list = |names: &Vec<String>| if names.is_empty() { "plain".to_owned() } else { names.join("+") };
        let rings = vmm.rings.as_ref();
        table.row([
            name.clone(),
            if vmm.present { "present" } else { "absent" }.to_owned(),
            rings.map_or_else(dash, |rings| format_name(rings.format).to_owned()),
            rings.map_or_else(dash, |rings| rings.queue_pairs.to_string()),
            rings.map_or_else(dash, |rings| list(&rings.sends)),
            rings.map_or_else(dash, |rings| list(&rings.receives)),
            count(vmm.sessions),
            count(vmm.faults),
        ]);
        for (what, why) in [("session ended", &vmm.last_end), ("ring fault", &vmm.last_ring_fault)] {
            if let Some(why) = why {
                ends.push_str(&format!("last {what} of {name}: {why}\n"));
            }
        }
    }
    format!("\n{table}{ends}")
}

fn format_name(format: RingFormat) -> &'static str {
    match format {
        RingFormat::Split => "split",
        RingFormat::Packed => "packed",
    }
}

fn render_flows(flows: &[FlowStatus]) -> String {
    if flows.is_empty() {
        return "no flows: nothing has been sent lately\n".to_owned();
    }
    let mut table = Table::new([
        Column::right("id"),
        Column::right("packets"),
        Column::right("bytes"),
        Column::right("idle"),
        Column::right("age"),
        Column::left("match"),
        Column::left("actions"),
    ]);
    for flow in flows {
        let idle = flow.idle_ms.map_or("never used".to_owned(), |ms| span(Duration::from_millis(ms)));
        table.row([
            flow.id.to_string(),
            count(flow.packets),
            bytes(flow.bytes),
            idle,
            span(Duration::from_millis(flow.age_ms)),
            flow.matches.clone(),
            if flow.actions.is_empty() { "drop".to_owned() } else { flow.actions.clone() },
        ]);
    }
    table.to_string()
}

fn render_macs(macs: &[MacStatus]) -> String {
    if macs.is_empty() {
        return "no MAC addresses: nothing has been learned yet\n".to_owned();
    }
    let mut table =
        Table::new([Column::right("vlan"), Column::left("mac"), Column::left("port"), Column::right("age")]);
    for entry in macs {
        let vlan = if entry.vlan == 0 { "-".to_owned() } else { entry.vlan.to_string() };
        let age = span(Duration::from_millis(entry.age_ms));
        table.row([vlan, entry.mac.clone(), entry.port.clone(), age]);
    }
    table.to_string()
}

/// Totals, cores, and why frames were dropped.
pub fn render_stats(stats: &StatsReport) -> String {
    let mut totals = Table::new([
        Column::left(""),
        Column::right("frames"),
        Column::right("bytes"),
        Column::right("drops"),
        Column::right("work"),
    ]);
    for (direction, traffic) in [("tx", &stats.tx), ("rx", &stats.rx)] {
        let drops = count(traffic.drops.total());
        let work = span(Duration::from_nanos(traffic.work_ns));
        totals.row([direction.to_owned(), count(traffic.frames), bytes(traffic.bytes), drops, work]);
    }
    format!(
        "hyper-switch {}, pid {}, up {}: {} ports, {} flows, {} MAC addresses\n\n{totals}\n{}\n{}",
        stats.version,
        stats.pid,
        span(Duration::from_millis(stats.uptime_ms)),
        count(stats.ports),
        count(stats.flows),
        count(stats.macs),
        render_cores(&stats.cores),
        render_drops(&stats.drops()),
    )
}

fn render_cores(cores: &[CoreStatus]) -> String {
    let mut table = Table::new([
        Column::right("core"),
        Column::right("entries"),
        Column::right("transmit"),
        Column::right("receive"),
        Column::right("idle"),
        Column::right("cache hits"),
        Column::right("megaflow hits"),
        Column::right("misses"),
    ]);
    for core in cores {
        table.row([
            core.core.to_string(),
            count(core.entries),
            count(core.transmit_calls),
            count(core.receive_calls),
            count(core.idle_calls),
            count(core.cache_hits),
            count(core.megaflow_hits),
            count(core.misses),
        ]);
    }
    table.to_string()
}

/// Each reason that happened, with its count and what it means.
pub fn render_drops(drops: &Drops) -> String {
    if drops.total() == 0 {
        return "no drops\n".to_owned();
    }
    let mut table =
        Table::new([Column::left("drops for"), Column::right("frames"), Column::left("which means")]);
    for (name, frames) in drops.by_count() {
        let meaning = Drops::reason(name).map_or("a reason of a newer daemon", |reason| reason.explain());
        table.row([name.to_owned(), count(frames), meaning.to_owned()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::status::{RingsStatus, Traffic, VlanStatus, VmSource, VmState, VmStatus, VmmStatus};
    use super::*;
    use hyper_switch_dataplane::api::DropReason;

    fn traffic(frames: u64, bytes: u64, drops: &[(DropReason, u64)]) -> Traffic {
        Traffic { frames, bytes, drops: drops.iter().copied().collect(), work_ns: 1_500_000_000 }
    }

    /// Ports line up, numbers to the right, and a port that is down says why.
    #[test]
    fn ports_are_a_table() {
        let web = PortStatus {
            id: 0,
            name: "web".into(),
            kind: "tap".into(),
            device: "hp0".into(),
            state: PortState::Up,
            vlan: VlanStatus::Access { vid: 10 },
            vm: VmStatus { source: VmSource::Bpf, state: Some(VmState::Blocked), core: None },
            vmm: None,
            tx: traffic(1_234_567, 1_500_000_000, &[(DropReason::Truncated, 2)]),
            rx: traffic(3, 180, &[]),
            in_flight: 1,
            queued: 64,
            upcalls: 2,
        };
        let up = PortStatus {
            id: 11,
            name: "up".into(),
            kind: "packet".into(),
            device: "eth1".into(),
            state: PortState::Down { reason: "the interface is gone".into() },
            vlan: VlanStatus::Trunk { vids: vec![10, 20] },
            vm: VmStatus::default(),
            vmm: None,
            tx: Traffic::default(),
            rx: Traffic::default(),
            in_flight: 0,
            queued: 0,
            upcalls: 0,
        };
        let expected = "\
id  port  device       state  vlan         vm             tx frames  tx bytes  tx drops  rx frames  rx bytes  rx drops  queued  in flight  upcalls   work
 0  web   tap:hp0      up     access 10    blocked (bpf)  1,234,567   1.50 GB         2          3     180 B         0      64          1        2  3.0 s
11  up    packet:eth1  down   trunk 10+20  unknown                0       0 B         0          0       0 B         0       0          0        0   0 ms
up is down: the interface is gone
";
        assert_eq!(render(&Answer::Ports(vec![web, up])), expected);
    }

    /// Under the ports are the VMMs of those that have them: what was negotiated, and why it went wrong last.
    #[test]
    fn vmms_are_a_table() {
        let offloads = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let running = VmmStatus {
            present: true,
            rings: Some(RingsStatus {
                queue_pairs: 4,
                format: RingFormat::Packed,
                sends: offloads(&["csum", "tso4"]),
                receives: offloads(&[]),
            }),
            sessions: 3,
            faults: 2,
            last_end: Some("features 0x8000000000000000 were not offered".into()),
            last_ring_fault: Some("transmit ring: chain 7 offered while in use".into()),
        };
        let port = |name: &str, vmm| PortStatus {
            id: 0,
            name: name.into(),
            kind: "vhost-user".into(),
            device: "/run/a".into(),
            state: PortState::Up,
            vlan: VlanStatus::Transparent,
            vm: VmStatus::default(),
            vmm,
            tx: Traffic::default(),
            rx: Traffic::default(),
            in_flight: 0,
            queued: 0,
            upcalls: 0,
        };
        let ports = [port("a", Some(running)), port("b", Some(VmmStatus::default())), port("c", None)];
        let expected = "
port  vmm      rings   pairs  vm sends   vm receives  sessions  faults
a     present  packed      4  csum+tso4  plain               3       2
b     absent   -           -  -          -                   0       0
last session ended of a: features 0x8000000000000000 were not offered
last ring fault of a: transmit ring: chain 7 offered while in use
";
        assert!(render_ports(&ports).ends_with(expected), "{}", render_ports(&ports));
    }

    /// A flow without actions drops, and one that was never used says so.
    #[test]
    fn flows_are_a_table() {
        let flow = |id, actions: &str, idle_ms| FlowStatus {
            id,
            matches: "in_port=1,eth_type=0x0800".into(),
            actions: actions.into(),
            packets: 10,
            bytes: 1_000,
            idle_ms,
            age_ms: 61_000,
        };
        let flows = vec![flow(1, "output:2", Some(20)), flow(2, "", None)];
        let expected = "\
id  packets    bytes        idle     age  match                      actions
 1       10  1.00 kB       20 ms  1m 01s  in_port=1,eth_type=0x0800  output:2
 2       10  1.00 kB  never used  1m 01s  in_port=1,eth_type=0x0800  drop
";
        assert_eq!(render(&Answer::Flows(flows)), expected);
        assert_eq!(render(&Answer::Flows(vec![])), "no flows: nothing has been sent lately\n");
    }

    /// Addresses that belong to no VLAN show a dash for it.
    #[test]
    fn macs_are_a_table() {
        let mac = |vlan, mac: &str| MacStatus { vlan, mac: mac.into(), port: "web".into(), age_ms: 1_500 };
        let macs = vec![mac(0, "02:00:00:00:00:01"), mac(10, "02:00:00:00:00:02")];
        let expected = "\
vlan  mac                port    age
   -  02:00:00:00:00:01  web   1.5 s
  10  02:00:00:00:00:02  web   1.5 s
";
        assert_eq!(render(&Answer::Macs(macs)), expected);
    }

    /// Every drop is explained once, the most frequent first, also one that only a newer daemon knows.
    #[test]
    fn stats_explain_the_drops() {
        let mut stats = StatsReport {
            pid: 42,
            version: "0.1.0".into(),
            uptime_ms: 90_061_000,
            ports: 2,
            flows: 1_024,
            macs: 2,
            tx: traffic(12, 720, &[(DropReason::Truncated, 1)]),
            rx: traffic(10, 600, &[(DropReason::RxQueueFull, 2)]),
            cores: vec![CoreStatus {
                core: 3,
                entries: 9,
                transmit_calls: 5,
                receive_calls: 4,
                ..CoreStatus::default()
            }],
        };
        stats.rx.drops.add(&serde_json::from_str(r#"{"gremlins": 1}"#).unwrap());
        let expected = "\
hyper-switch 0.1.0, pid 42, up 1d 01h 01m: 2 ports, 1,024 flows, 2 MAC addresses

    frames  bytes  drops   work
tx      12  720 B      1  1.5 s
rx      10  600 B      3  1.5 s

core  entries  transmit  receive  idle  cache hits  megaflow hits  misses
   3        9         5        4     0           0              0       0

drops for      frames  which means
rx_queue_full       2  The receiver's internal queue is full.
gremlins            1  a reason of a newer daemon
truncated           1  The frame is shorter than an Ethernet header.
";
        assert_eq!(render(&Answer::Stats(stats)), expected);
        assert_eq!(render_drops(&Drops::default()), "no drops\n");
    }
}
