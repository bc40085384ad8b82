//! What a guest's driver asks of its NIC, by the control queue where there is one: another address, VLANs, more or fewer
//! queues.

use crate::world::{SOON, must, negotiated, rig};
use hyper_switch::vm::guest::Guest;
use hyper_switch::vm::qemu::RingFormat;
use hyper_switch::vm::rig::{ADDRESSES, Backend, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

/// Feature bits of a NIC (VIRTIO 1.2, clause 5.1.3): commands, filters for VLANs, several queues, another address.
const CTRL_VQ: usize = 17;
const CTRL_VLAN: usize = 19;
const MQ: usize = 22;
const CTRL_MAC_ADDR: usize = 23;

/// The other address that a guest gives itself.
const OTHER: &str = "52:54:00:77:00:99";

pub fn on_taps() {
    let mut rig = rig(Backend::Tap, RingFormat::Split, 1);
    address_and_vlans(&mut rig);
}

/// Holds, beside what `address_and_vlans` does: with one queue of two and with both again, traffic passes.
pub fn on_vhost_user() {
    let mut rig = rig(Backend::VhostUser, RingFormat::Split, 2);
    address_and_vlans(&mut rig);
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
fn address_and_vlans(rig: &mut Rig) {
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
