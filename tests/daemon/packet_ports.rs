//! `packet:` ports, on interfaces that somebody else made.

use crate::traffic::{echo, stream};
use crate::world::{Daemon, Guest, Place, Vmm};

const STREAM_BYTES: usize = 16 << 20;

/// Holds: TAPs that two VMMs own become ports; datagrams and TCP pass both ways, in GSO frames.
pub fn vmm() {
    let place = Place::new();
    let _vmms = [Vmm::start(&place, "vm0", "eth0"), Vmm::start(&place, "vm1", "eth1")];
    let daemon = Daemon::start(&place, &["packet:vm0", "packet:vm1"]);
    let (left, right) = (Guest::take(&place, "eth0", 1), Guest::take(&place, "eth1", 2));
    both_ways(&daemon, &left, &right);
    daemon.wait_until_idle();
}

/// Holds: the same of veths whose other ends are in the guests.
pub fn veth() {
    let place = Place::new();
    for n in [0, 1] {
        place.ip(&format!("link add host{n} type veth peer name eth{n}"));
        place.ip(&format!("link set host{n} up"));
    }
    let daemon = Daemon::start(&place, &["packet:host0", "packet:host1"]);
    let (left, right) = (Guest::take(&place, "eth0", 1), Guest::take(&place, "eth1", 2));
    both_ways(&daemon, &left, &right);
}

fn both_ways(daemon: &Daemon, left: &Guest, right: &Guest) {
    echo(left, right, 20);
    for (from, to) in [(left, right), (right, left)] {
        stream(from, to, STREAM_BYTES);
    }
    for port in daemon.ports() {
        assert_eq!(port.kind, "packet");
        assert!(port.tx.bytes > STREAM_BYTES as u64, "{port:?}");
        assert!(port.tx.bytes / port.tx.frames > 1514, "frames cross whole: {port:?}");
        assert_eq!(port.tx.drops.total() + port.rx.drops.total(), 0, "{port:?}");
    }
}
