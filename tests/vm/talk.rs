//! What guests send each other.

use crate::world::{GUEST_TSO4, HOST_TSO4, RING_PACKED, lossless_ports, must, negotiated, rig};
use hyper_switch::vm::qemu::RingFormat;
use hyper_switch::vm::rig::{ADDRESSES, Backend, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

const STREAM: Duration = Duration::from_secs(2);

/// The longest frame of TCP without segmentation offload.
const MAX_SEGMENT_BYTES: u64 = 1_514;

/// Datagrams that are sent, and how many a second.
const DATAGRAMS: (u64, u64) = (10_000, 2_000);

pub fn on_taps() {
    talk(rig(Backend::Tap, RingFormat::Split, 1));
}

pub fn on_vhost_user() {
    talk(rig(Backend::VhostUser, RingFormat::Split, 1));
}

pub fn in_packed_rings() {
    let mut rig = rig(Backend::VhostUser, RingFormat::Packed, 1);
    for guest in &mut rig.guests {
        assert!(negotiated(guest, RING_PACKED));
    }
    talk(rig);
}

/// Holds: guests find each other; a ping is answered each time; TCP passes both ways, cut by nobody; each request is
/// answered; no datagram of those sent at an even rate is lost or late; and the switch counts all that and drops nothing.
fn talk(mut rig: Rig) {
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

    let before = lossless_ports(&rig);
    let [a, b] = &mut rig.guests;
    must(scenario::stream(a, b, ADDRESSES[1], STREAM));
    must(scenario::stream(b, a, ADDRESSES[0], STREAM));
    for (before, after) in before.iter().zip(lossless_ports(&rig)) {
        let frames = after.tx.frames - before.tx.frames;
        let bytes = after.tx.bytes - before.tx.bytes;
        assert!(bytes / frames > MAX_SEGMENT_BYTES, "frames cross whole: {after:?}");
    }
}
