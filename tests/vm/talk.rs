//! What guests send each other.

use crate::world::{lossless_ports, must, negotiated};
use hyper_switch::vm::rig::{ADDRESSES, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

const STREAM: Duration = Duration::from_secs(1);

/// Feature bits of a NIC (VIRTIO 1.2, clause 5.1.3): segments of what the driver is sent, and of what it sends, are cut
/// by others.
const GUEST_TSO4: usize = 7;
const HOST_TSO4: usize = 11;

/// The longest frame of TCP without segmentation offload.
const MAX_SEGMENT_BYTES: u64 = 1_514;

/// Datagrams that are sent, and how many a second.
const DATAGRAMS: (u64, u64) = (10_000, 2_000);

/// Holds: guests find each other; a ping is answered each time; TCP passes both ways, cut by nobody; each request is
/// answered; no datagram of those sent at an even rate is lost or late; and the switch counts all that and drops nothing.
pub fn all(rig: &mut Rig) {
    let [a, b] = &mut rig.guests;
    for guest in [&mut *a, &mut *b] {
        assert!(negotiated(guest, HOST_TSO4) && negotiated(guest, GUEST_TSO4));
    }
    must(scenario::reach(a, ADDRESSES[1]));
    let ping = must(scenario::ping(a, ADDRESSES[1]));
    assert_eq!(ping.received, ping.sent);

    let (datagrams, per_s) = DATAGRAMS;
    let received = must(scenario::datagrams(a, b, ADDRESSES[1], datagrams, per_s));
    assert_eq!((received.lost, received.reordered), (Some(0), Some(0)));
    let asked = must(scenario::requests(a, b, ADDRESSES[1], STREAM));
    assert!(asked.transactions_per_s > Some(0.0), "{asked:?}");

    let before = lossless_ports(rig);
    let [a, b] = &mut rig.guests;
    must(scenario::stream(a, b, ADDRESSES[1], STREAM));
    must(scenario::stream(b, a, ADDRESSES[0], STREAM));
    for (before, after) in before.iter().zip(lossless_ports(rig)) {
        let frames = after.tx.frames - before.tx.frames;
        let bytes = after.tx.bytes - before.tx.bytes;
        assert!(bytes / frames > MAX_SEGMENT_BYTES, "frames cross whole: {after:?}");
    }
}
