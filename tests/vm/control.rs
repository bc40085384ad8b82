//! What a guest's driver takes from its NIC, the format of its rings and the MTU, and what it asks of it by the control
//! queue: another address, VLANs, more or fewer queues.

use crate::world::{SOON, lossless_ports, must, negotiated};
use hyper_switch::vm::guest::Guest;
use hyper_switch::vm::rig::{ADDRESSES, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

/// Feature bits of a NIC (VIRTIO 1.2, clauses 5.1.3 and 6): the MTU, commands, filters for VLANs, several queues, another
/// address, the packed ring.
const MTU: usize = 3;
const CTRL_VQ: usize = 17;
const CTRL_VLAN: usize = 19;
const MQ: usize = 22;
const CTRL_MAC_ADDR: usize = 23;
const RING_PACKED: usize = 34;

/// Bytes of headers before an echo request's payload.
const IP_AND_ICMP_BYTES: u16 = 20 + 8;

/// The other address that a guest gives itself.
const OTHER: &str = "52:54:00:77:00:99";

/// An MTU that a driver takes only if its NIC says so, in bytes.
pub const LARGE_MTU: u16 = 9_000;

/// Holds: the guests' rings have the format that was asked for.
pub fn is_packed(rig: &mut Rig) {
    for guest in &mut rig.guests {
        assert!(negotiated(guest, RING_PACKED));
    }
}

/// Holds: guests take the MTU that their NICs tell them, and packets of that size pass whole.
pub fn mtu(rig: &mut Rig) {
    for guest in &mut rig.guests {
        assert!(negotiated(guest, MTU));
        assert_eq!(must(guest.run("cat /sys/class/net/eth0/mtu", SOON)), LARGE_MTU.to_string());
    }
    let [a, _] = &mut rig.guests;
    must(scenario::reach(a, ADDRESSES[1]));
    let before = lossless_ports(rig);
    let payload_bytes = LARGE_MTU - IP_AND_ICMP_BYTES;
    let ping = format!("ping -c 3 -W 5 -s {payload_bytes} {}", ADDRESSES[1]);
    must(rig.guests[0].run(&ping, SOON));
    for (before, after) in before.iter().zip(lossless_ports(rig)) {
        let (frames, bytes) = (after.tx.frames - before.tx.frames, after.tx.bytes - before.tx.bytes);
        // A guest may have asked for an address meanwhile.
        assert!(bytes / frames > u64::from(LARGE_MTU) / 2, "packets are whole: {after:?}");
    }
}

/// Holds: with one queue of two and with both again, traffic passes.
pub fn queues(rig: &mut Rig) {
    let [a, b] = &mut rig.guests;
    assert!(negotiated(a, MQ));
    for queues in [1, 2] {
        must(a.run(&format!("ethtool -L eth0 combined {queues}"), SOON));
        let rings = must(a.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l", SOON));
        assert_eq!(rings.trim(), queues.to_string());
        must(scenario::reach(a, ADDRESSES[1]));
        for _ in 0..4 {
            // A connection each, which the switch may put on any queue.
            must(scenario::stream(b, a, ADDRESSES[0], Duration::from_millis(200)));
        }
    }
}

/// Holds: a guest that takes another address, also while its link is up, is found at it; and guests reach each other
/// inside of a VLAN as outside.
pub fn address_and_vlans(rig: &mut Rig) {
    for guest in &mut rig.guests {
        for feature in [CTRL_VQ, CTRL_VLAN, CTRL_MAC_ADDR] {
            assert!(negotiated(guest, feature), "feature {feature}");
        }
    }
    let [a, b] = &mut rig.guests;
    must(scenario::reach(a, ADDRESSES[1]));
    must(a.run(&format!("ip link set eth0 address {OTHER}"), SOON));
    // Who knew the old one asks again.
    must(b.run("ip neigh flush dev eth0", SOON));
    must(scenario::reach(b, ADDRESSES[0]));
    let known = must(b.run("ip neigh show dev eth0", SOON));
    assert!(known.contains(OTHER), "{known}");

    in_vlan(a, "10.78.0.1/24");
    in_vlan(b, "10.78.0.2/24");
    must(scenario::reach(a, "10.78.0.2"));
    must(scenario::stream(a, b, "10.78.0.2", Duration::from_secs(1)));
}

fn in_vlan(guest: &mut Guest, address: &str) {
    let commands = [
        "ip link add link eth0 name eth0.5 type vlan id 5".to_owned(),
        format!("ip addr add {address} dev eth0.5"),
        "ip link set eth0.5 up".to_owned(),
    ];
    must(guest.run(&commands.join(" && "), SOON));
}
