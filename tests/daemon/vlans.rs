//! VLANs: who hears whom, and with which tag.

use crate::world::{Daemon, Guest, Place, Wire, eventually};

/// Where UDP and its payload start in a frame without a tag.
const UDP_AT: usize = 14 + 20;
const PAYLOAD_AT: usize = UDP_AT + 8;

/// Holds: two access ports of different VLANs do not hear each other, not even a broadcast; a trunk hears each
/// under its tag, speaks to each under its tag, and what it sends without one, or under another, is dropped and
/// counted. By: the kernel's UDP broadcasts at the access ports, and the bytes on the wire of the trunk.
pub fn access_and_trunk() {
    let place = Place::new();
    let daemon =
        Daemon::start(&place, &["tap:hp0,access=10", "tap:hp1,access=20", "tap:hp2,name=up,trunk=10+20"]);
    let (ten, twenty) = (Guest::take(&place, "hp0", 1), Guest::take(&place, "hp1", 2));
    let trunk = Guest::take(&place, "hp2", 3);
    let wire = trunk.inside(|| Wire::attach("hp2"));
    let heard = |port: &str| daemon.port(port).rx.frames;

    let mut said = Vec::new();
    for (guest, tag) in [(&ten, [0x81, 0, 0, 10]), (&twenty, [0x81, 0, 0, 20])] {
        let text = guest.interface.as_bytes();
        guest.udp(4000).send_to(text, "10.0.0.255:5000").unwrap();
        let (header, frame) = wire.pull_until(|frame| frame.ends_with(text));
        assert_eq!(frame[12..16], tag);
        assert_eq!(frame.len(), 4 + PAYLOAD_AT + text.len());
        // The kernel leaves the checksum to the receiver; where that is has moved by the tag.
        assert_eq!((header.needs_csum(), usize::from(header.csum_start)), (true, 4 + UDP_AT));
        said.push(frame);
    }
    assert_eq!((heard("hp0"), heard("hp1")), (0, 0), "neither hears the other");
    let places = [(10, ten.mac.clone(), "hp0".to_owned()), (20, twenty.mac.clone(), "hp1".into())];
    assert_eq!(daemon.places(), places);

    // What one said comes to the other from a third station, without a UDP checksum (RFC 768: then it is 0).
    for frame in &mut said {
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 3]);
        frame[4 + UDP_AT + 6..][..2].fill(0);
    }
    let [mut from_ten, mut from_twenty] = <[Vec<u8>; 2]>::try_from(said).unwrap();
    from_ten[12..16].copy_from_slice(&[0x81, 0, 0, 20]);
    from_twenty[12..16].copy_from_slice(&[0x81, 0, 0, 10]);
    for (guest, frame, text) in [(&ten, &from_twenty, b"hp1"), (&twenty, &from_ten, b"hp0")] {
        let socket = guest.udp(5000);
        wire.push(frame);
        let mut heard = [0; 16];
        let bytes = socket.recv(&mut heard).unwrap();
        assert_eq!(&heard[..bytes], text);
    }
    assert_eq!((heard("hp0"), heard("hp1")), (1, 1), "each hears its own, once");

    wire.push(&[&from_ten[..12], &[0x81, 0, 0, 30], &from_ten[16..]].concat());
    wire.push(&[&from_ten[..12], &from_ten[16..]].concat());
    eventually("both frames are dropped", || {
        let drops = daemon.port("up").tx.drops;
        (drops.by_count() == [("flow_drop", 2)]).then_some(())
    });
    assert_eq!(daemon.port("up").tx.frames, 4, "what was dropped was sent all the same");
    assert_eq!((heard("hp0"), heard("hp1")), (1, 1));
}
