//! Devices against the real kernel: TAPs, packet sockets and what lies behind them, in network
//! namespaces that vanish with the test. Nothing here touches an interface of the machine.
//!
//! What a test cannot have on this machine (root, `/dev/net/tun`, `ip`) it says, and is counted as
//! ignored. Every wait is for a condition, with a deadline that only a failure reaches.

mod needs;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use hyper_switch_pvnet::device::{Device, DeviceFault, PullSlot, PushError, PushFrame};
use hyper_switch_pvnet::header::{F_NEEDS_CSUM, GsoType, Offloads, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::namespace::{Interface, Namespace, NamespaceError};
use hyper_switch_pvnet::packet::{PacketError, PacketSocket};
use hyper_switch_pvnet::tap::{Tap, TapError};
use hyper_switch_pvnet::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use libtest_mimic::Arguments;
use needs::{Need, iproute2, namespaces, tun};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take before the test has failed.
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let trials = needs::trials([
        ("a_sockets_datagram_is_pulled_and_answered", KERNEL, tap_datagram),
        ("tcp_between_two_taps_travels_in_gso_frames", KERNEL, tap_tcp),
        ("a_persistent_tap_is_opened_with_and_without_multi_queue", IP, tap_persistent),
        ("a_tap_that_cannot_be_had_says_why", KERNEL, tap_errors),
        ("a_tap_refuses_impossible_frames_and_goes_on", KERNEL, tap_refuses),
        ("a_tap_that_is_down_recovers_and_one_deleted_is_gone", IP, tap_down_and_gone),
        ("a_packet_socket_keeps_tags_and_offloads", KERNEL, packet_keeps_frames),
        ("tags_and_segmentation_cross_a_veth", IP, packet_veth),
        ("a_packet_socket_puts_back_what_a_vlan_device_tags", VLAN, packet_vlan_device),
        ("a_packet_socket_sees_only_what_the_interface_receives", KERNEL, packet_ignores_outgoing),
        ("an_interface_that_cannot_be_attached_says_why", KERNEL, packet_errors),
        ("a_packet_socket_refuses_impossible_frames_and_goes_on", KERNEL, packet_refuses),
        ("a_packet_socket_that_is_down_recovers_and_one_removed_is_gone", KERNEL, packet_down_and_gone),
        ("what_needs_a_capability_says_so", KERNEL, not_permitted),
        ("a_namespace_is_apart_and_shows_panics", KERNEL, namespace_apart),
    ]);
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

const KERNEL: &[Need] = &[namespaces, tun];
const IP: &[Need] = &[namespaces, tun, iproute2];
const VLAN: &[Need] = &[namespaces, tun, iproute2, vlan_devices];

fn vlan_devices() -> Option<String> {
    let error = inside(&quiet_namespace(), || {
        ip("link add left type veth peer name right").unwrap();
        ip("link add link left name left.7 type vlan id 7").err()
    })?;
    Some(format!("needs the kernel's VLAN devices, module 8021q ({error})"))
}

// --- TAP ---------------------------------------------------------------------------------------

/// Holds: what a socket sends comes out of `pull` with the checksum left to do and the header saying
/// where, and what is pushed reaches the socket. By: a broadcast, which needs no neighbour, and an
/// answer to the sender's own address.
fn tap_datagram() {
    let namespace = quiet_namespace();
    let (tap, socket) = inside(&namespace, || {
        let tap = tap_up("vm0", Some([10, 0, 0, 1]));
        let socket = UdpSocket::bind("10.0.0.1:4000").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        (tap, socket)
    });
    assert_eq!((tap.name(), tap.offloads()), ("vm0", Offloads::ALL), "this kernel has every offload");
    socket.send_to(b"out of the namespace", "10.0.0.255:5000").unwrap();

    let (header, frame) = pull_until(&tap, |_, frame| udp_payload(frame).is_some());
    assert_eq!(udp_payload(&frame).unwrap(), b"out of the namespace");
    let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = parsed.transport else { panic!("no UDP: {parsed:?}") };
    assert_eq!((udp.source_port(), udp.destination_port()), (4000, 5000));
    assert_eq!((header.needs_csum(), header.csum_start, header.csum_offset), (true, 34, 6));

    let sender: [u8; 6] = frame[6..12].try_into().unwrap();
    let answer = udp_frame([2, 0, 0, 0, 0, 2], sender, [10, 0, 0, 2], [10, 0, 0, 1], b"into it");
    push(&tap, &VnetHdr::default(), &answer).unwrap();
    let mut received = [0; 64];
    let (bytes, from) = socket.recv_from(&mut received).unwrap();
    assert_eq!((&received[..bytes], from.to_string().as_str()), (&b"into it"[..], "10.0.0.2:5000"));
}

/// Holds: two kernels' TCP runs over two TAPs tied together by pull and push alone, loses no byte and
/// uses segmentation. By: 16 MiB of a pattern, compared at the far end, and the frames as they pass.
fn tap_tcp() {
    const STREAM_BYTES: usize = 16 << 20;
    let (left, right) = (quiet_namespace(), quiet_namespace());
    let left_tap = inside(&left, || tap_up("vm0", Some([10, 0, 0, 1])));
    let right_tap = inside(&right, || tap_up("vm0", Some([10, 0, 0, 2])));
    let pattern: Vec<u8> = (0..STREAM_BYTES).map(|at| (at % 65_521) as u8).collect();
    let done = AtomicBool::new(false);

    let (received, (longest, segmented)) = thread::scope(|scope| {
        let relay = scope.spawn(|| relay(&left_tap, &right_tap, &done));
        let listener = inside(&right, || TcpListener::bind("10.0.0.2:6000").unwrap());
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut received = Vec::with_capacity(STREAM_BYTES);
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let address = "10.0.0.2:6000".parse().unwrap();
        let mut stream = inside(&left, || TcpStream::connect_timeout(&address, DEADLINE).unwrap());
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&pattern).unwrap();
        drop(stream);
        let received = receiver.join().unwrap();
        done.store(true, Ordering::Relaxed);
        (received, relay.join().unwrap())
    });

    assert!(received == pattern, "{} of {STREAM_BYTES} bytes, or other ones", received.len());
    assert!(longest > 1514 && segmented > 0, "longest frame {longest}, {segmented} GSO frames");
}

/// Passes frames between two TAPs until `done`. Answers the longest frame's bytes and how many frames
/// were to be segmented.
fn relay(left: &Tap, right: &Tap, done: &AtomicBool) -> (usize, usize) {
    let mut slots = Slots::new(32);
    let (mut longest, mut segmented) = (0, 0);
    let started = Instant::now();
    while !done.load(Ordering::Relaxed) && started.elapsed() < 2 * DEADLINE {
        wait(&[left, right], Duration::from_millis(20));
        for (from, to) in [(left, right), (right, left)] {
            let count = from.pull(&mut slots.slots).unwrap();
            let parts: Vec<_> = slots.slots[..count].iter().map(|s| [s.buffer.first(s.bytes)]).collect();
            let frames: Vec<_> = parts.iter().map(|parts| PushFrame { parts }).collect();
            let mut outcomes = vec![Err(PushError::Full); count];
            to.push(&frames, &mut outcomes);
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            for at in 0..count {
                let (header, frame) = slots.frame(at);
                longest = longest.max(frame.len());
                segmented += usize::from(header.gso == GsoType::Tcp4);
            }
        }
    }
    (longest, segmented)
}

/// Holds: a TAP that someone made beforehand is opened, whichever way it was made.
fn tap_persistent() {
    let namespace = quiet_namespace();
    inside(&namespace, || {
        ip("tuntap add dev one mode tap").unwrap();
        ip("tuntap add dev many mode tap multi_queue").unwrap();
        for name in ["one", "many"] {
            let tap = Tap::open(name).unwrap();
            Interface::named(name).unwrap().up().unwrap();
            assert_eq!(push(&tap, &VnetHdr::default(), &tagless_frame(60)), Ok(()), "{name}");
        }
    });
}

/// Holds: each way not to get a TAP has its own error, and the message names the interface.
fn tap_errors() {
    let namespace = quiet_namespace();
    inside(&namespace, || {
        let held = Tap::open("held").unwrap();
        assert!(matches!(Tap::open("held"), Err(TapError::Busy(name)) if name == "held"));
        drop(held);
        Tap::open("held").expect("free again, as the first file is closed");
        assert!(matches!(Tap::open("lo"), Err(TapError::NotTap(name)) if name == "lo"));
        for name in ["", "tap%d", "a/b", "longer-than-fifteen"] {
            let error = Tap::open(name).unwrap_err();
            assert!(matches!(&error, TapError::Name(said) if said == name), "{error:?}");
            assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
        }
    });
}

/// Holds: frames that the kernel cannot take are refused one by one and cost the TAP nothing. By: a
/// batch of them with good frames between; what a packet socket sees on the other side is the good.
fn tap_refuses() {
    let namespace = quiet_namespace();
    let (tap, other_side) = inside(&namespace, || {
        let tap = tap_up("vm0", None);
        (tap, PacketSocket::attach("vm0").unwrap())
    });
    refuses(&tap, &other_side);
}

/// Holds: a TAP whose link is down says so and works again when it is up; one that is deleted is gone
/// for both directions, and waiting for it ends.
fn tap_down_and_gone() {
    let namespace = quiet_namespace();
    let tap = inside(&namespace, || tap_up("vm0", None));
    let interface = inside(&namespace, || Interface::named("vm0").unwrap());
    let frame = tagless_frame(60);
    assert_eq!(push(&tap, &VnetHdr::default(), &frame), Ok(()));

    interface.down().unwrap();
    assert_eq!(push(&tap, &VnetHdr::default(), &frame), Err(PushError::LinkDown));
    assert_eq!(tap.pull(&mut Slots::new(4).slots), Ok(0));
    interface.up().unwrap();
    assert_eq!(push(&tap, &VnetHdr::default(), &frame), Ok(()));

    inside(&namespace, || ip("link delete vm0").unwrap());
    assert!(wait(&[&tap], DEADLINE), "a deleted TAP wakes who waits for it");
    assert_eq!(tap.pull(&mut Slots::new(4).slots), Err(DeviceFault::Gone));
    assert_eq!(push(&tap, &VnetHdr::default(), &frame), Err(PushError::Fault(DeviceFault::Gone)));
}

// --- Packet socket -----------------------------------------------------------------------------

/// Holds: a frame that a VMM's guest transmits comes out of `pull` as it was, and one that is pushed
/// comes to the guest as it was: untagged, tagged, tagged twice, with a checksum to do, and to be
/// segmented. By: a TAP that the test holds as a VMM does, so the kernel takes the outer tag out on
/// the one way.
fn packet_keeps_frames() {
    let namespace = quiet_namespace();
    let (vmm, port) = inside(&namespace, || {
        let vmm = tap_up("vm0", None);
        (vmm, PacketSocket::attach("vm0").unwrap())
    });
    assert_eq!(port.offloads(), Offloads::ALL, "this kernel has every offload");
    assert!(port.link_up().unwrap());

    let (dot1q, dot1ad) = ([0x81, 0, 0x60, 7], [0x88, 0xa8, 0, 9]);
    for tags in [vec![], vec![dot1q], vec![dot1ad, dot1q]] {
        let l4 = 14 + 20 + 4 * tags.len() as u16;
        let plain = (VnetHdr::default(), tagged(&tagless_frame(60), &tags));
        // A lone 802.1Q tag may exceed the MTU, two may not.
        let longest = if tags.len() == 2 { 1514 - 4 * tags.len() } else { 1514 };
        let full = (VnetHdr::default(), tagged(&tagless_frame(longest), &tags));
        let unfinished =
            VnetHdr { flags: F_NEEDS_CSUM, csum_start: l4, csum_offset: 16, ..VnetHdr::default() };
        let partial = (unfinished, tagged(&tcp_frame(100), &tags));
        let segments = VnetHdr { gso: GsoType::Tcp4, gso_size: 1400, hdr_len: l4 + 20, ..unfinished };
        let large = (segments, tagged(&tcp_frame(60_000), &tags));
        for (header, frame) in [plain, full, partial, large] {
            for (from, to) in [(&vmm as &dyn Waitable, &port as &dyn Waitable), (&port, &vmm)] {
                assert_eq!(push(from, &header, &frame), Ok(()), "{} bytes with {tags:x?}", frame.len());
                let (seen, arrived) = pull_until(to, |_, _| true);
                assert!(
                    arrived == frame,
                    "{} bytes with {tags:x?} became {:x?}",
                    frame.len(),
                    &arrived[..26]
                );
                let offsets = |h: VnetHdr| (h.needs_csum(), h.gso, h.gso_size, h.csum_start, h.csum_offset);
                assert_eq!(offsets(seen), offsets(header), "{tags:x?}");
                if header.gso != GsoType::None {
                    assert_eq!(seen.hdr_len, header.hdr_len, "{tags:x?}");
                }
            }
        }
    }
}

/// Holds: tags and segmentation pass from one attached veth end to the other.
fn packet_veth() {
    let namespace = quiet_namespace();
    let (left, right) = inside(&namespace, veth);
    let segments = VnetHdr {
        flags: F_NEEDS_CSUM,
        gso: GsoType::Tcp4,
        ecn: false,
        hdr_len: 58,
        gso_size: 1400,
        csum_start: 38,
        csum_offset: 16,
    };
    let large = tagged(&tcp_frame(30_000), &[[0x81, 0, 0, 8]]);
    push(&left, &segments, &large).unwrap();
    assert_eq!(pull_until(&right, |_, frame| frame.len() > 1514), (segments, large));
}

/// Holds: a tag that never was in the frame's bytes (a VLAN device leaves it to its veth) is in what
/// `pull` gives.
fn packet_vlan_device() {
    let namespace = quiet_namespace();
    let (_left, right) = inside(&namespace, || {
        let ends = veth();
        ip("link add link left name left.7 type vlan id 7").unwrap();
        Interface::named("left.7").unwrap().set_ipv4([10, 7, 0, 1].into(), 24).unwrap();
        Interface::named("left.7").unwrap().up().unwrap();
        let socket = UdpSocket::bind("10.7.0.1:4000").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"in VLAN 7", "10.7.0.255:5000").unwrap();
        ends
    });
    let (header, frame) = pull_until(&right, |_, frame| udp_payload(frame).is_some());
    assert_eq!((&frame[12..16], udp_payload(&frame)), (&[0x81, 0, 0, 7][..], Some(&b"in VLAN 7"[..])));
    assert!(!header.needs_csum() || header.csum_start == 38, "{header:?}");
}

/// The two ends of a veth in the calling thread's namespace, both up and attached. Frames of 60 bytes
/// may still wait at the right one.
fn veth() -> (PacketSocket, PacketSocket) {
    ip("link add left type veth peer name right").unwrap();
    for name in ["left", "right"] {
        Interface::named(name).unwrap().up().unwrap();
    }
    let ends = (PacketSocket::attach("left").unwrap(), PacketSocket::attach("right").unwrap());
    // The kernel swallows what is sent before it has noticed, on a thread of its own, that both are up.
    let started = Instant::now();
    loop {
        push(&ends.0, &VnetHdr::default(), &tagless_frame(60)).unwrap();
        if wait(&[&ends.1], Duration::from_millis(10)) {
            return ends;
        }
        assert!(started.elapsed() < DEADLINE, "the veth carries nothing");
    }
}

/// Holds: what another socket of the machine sends out of the interface is not pulled. By: a datagram
/// that the VMM's side has seen leave, and then a frame from there, which must be the first pulled.
fn packet_ignores_outgoing() {
    let namespace = quiet_namespace();
    let (vmm, port, socket) = inside(&namespace, || {
        let vmm = tap_up("vm0", Some([10, 0, 0, 1]));
        let port = PacketSocket::attach("vm0").unwrap();
        let socket = UdpSocket::bind("10.0.0.1:4000").unwrap();
        socket.set_broadcast(true).unwrap();
        (vmm, port, socket)
    });
    socket.send_to(b"outgoing", "10.0.0.255:5000").unwrap();
    pull_until(&vmm, |_, frame| udp_payload(frame) == Some(b"outgoing"));
    let marker = tagless_frame(77);
    push(&vmm, &VnetHdr::default(), &marker).unwrap();
    assert_eq!(pull_until(&port, |_, _| true).1, marker);
}

/// Holds: each way not to attach has its own error; an interface that is down is attached all the same.
fn packet_errors() {
    let namespace = quiet_namespace();
    inside(&namespace, || {
        for name in ["absent", "", "a/b", "longer-than-fifteen"] {
            let error = PacketSocket::attach(name).unwrap_err();
            assert!(matches!(&error, PacketError::NoInterface(said) if said == name), "{error:?}");
        }
        let loopback = PacketSocket::attach("lo").unwrap_err();
        assert!(matches!(loopback, PacketError::NotEthernet { hardware: 772, .. }), "{loopback:?}");

        let vmm = Tap::open("vm0").unwrap();
        let port = PacketSocket::attach("vm0").unwrap();
        assert!(!port.link_up().unwrap());
        assert_eq!(port.pull(&mut Slots::new(4).slots), Ok(0));
        Interface::named("vm0").unwrap().up().unwrap();
        let frame = tagless_frame(60);
        push(&vmm, &VnetHdr::default(), &frame).unwrap();
        assert_eq!(pull_until(&port, |_, _| true).1, frame);
    });
}

/// Holds: as for the TAP; and a frame longer than the MTU is refused too.
fn packet_refuses() {
    let namespace = quiet_namespace();
    let (vmm, port) = inside(&namespace, || {
        let vmm = tap_up("vm0", None);
        Interface::named("vm0").unwrap().set_mtu_bytes(1000).unwrap();
        assert_eq!(Interface::named("vm0").unwrap().mtu_bytes().unwrap(), 1000);
        (vmm, PacketSocket::attach("vm0").unwrap())
    });
    assert_eq!(push(&port, &VnetHdr::default(), &tagless_frame(1015)), Err(PushError::Refused));
    assert_eq!(push(&port, &VnetHdr::default(), &tagless_frame(1014)), Ok(()));
    pull_until(&vmm, |_, frame| frame.len() == 1014);
    refuses(&port, &vmm);
}

/// Holds: a link that goes down is no fault and comes back; an interface that its VMM takes away with
/// it is gone for both directions, and waiting for it ends.
fn packet_down_and_gone() {
    let namespace = quiet_namespace();
    let (vmm, port, interface) = inside(&namespace, || {
        let vmm = tap_up("vm0", None);
        (vmm, PacketSocket::attach("vm0").unwrap(), Interface::named("vm0").unwrap())
    });
    let frame = tagless_frame(60);
    interface.down().unwrap();
    assert!(wait(&[&port], DEADLINE), "a link that goes down wakes who waits");
    assert_eq!(port.pull(&mut Slots::new(4).slots), Ok(0));
    assert_eq!(push(&port, &VnetHdr::default(), &frame), Err(PushError::LinkDown));
    assert!(!port.link_up().unwrap());

    interface.up().unwrap();
    push(&vmm, &VnetHdr::default(), &frame).unwrap();
    assert_eq!(pull_until(&port, |_, _| true).1, frame);

    thread::scope(|scope| {
        // Whoever waits is woken midway through the removal, and must not take it for a link that is down.
        let waiting = scope.spawn(|| {
            assert!(wait(&[&port], DEADLINE), "a removed interface wakes who waits");
            port.pull(&mut Slots::new(4).slots)
        });
        drop(vmm);
        assert_eq!(waiting.join().unwrap(), Err(DeviceFault::Gone));
    });
    assert_eq!(port.pull(&mut Slots::new(4).slots), Err(DeviceFault::Gone), "for good");
    assert_eq!(push(&port, &VnetHdr::default(), &frame), Err(PushError::Fault(DeviceFault::Gone)));
    assert!(port.link_up().is_err());
}

// --- Namespaces and rights ----------------------------------------------------------------------

/// Holds: without capabilities each of the three says that it is not permitted. By: a thread that gives
/// up its own.
fn not_permitted() {
    let namespace = quiet_namespace();
    inside(&namespace, || {
        let mut capabilities = rustix::thread::capabilities(None).unwrap();
        capabilities.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        assert!(matches!(Tap::open("vm0"), Err(TapError::NotPermitted(name)) if name == "vm0"));
        assert!(matches!(PacketSocket::attach("vm0"), Err(PacketError::NotPermitted(name)) if name == "vm0"));
        assert!(matches!(Namespace::new(), Err(NamespaceError::NotPermitted)));
    });
}

/// Holds: an interface made inside is seen inside alone, by threads that are started there too; and a
/// panic inside is a panic of who waits for it.
fn namespace_apart() {
    let interfaces = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let before = interfaces();
    let namespace = quiet_namespace();
    let _tap = inside(&namespace, || Tap::open("apart").unwrap());
    assert_eq!(interfaces(), before, "nothing of it shows outside");
    let seen = namespace.spawn("inside", interfaces).unwrap().join().unwrap();
    assert!(seen.contains("apart:") && seen.contains("lo:"), "{seen}");
    let panic = std::panic::catch_unwind(|| namespace.run(|| std::panic::resume_unwind(Box::new(7_u8))));
    assert_eq!(panic.err().and_then(|panic| panic.downcast().ok()), Some(Box::new(7_u8)));
}

// --- What the tests share -----------------------------------------------------------------------

/// Pushes impossible frames with possible ones between them; those alone come out of `other_side`.
fn refuses(device: &dyn Waitable, other_side: &dyn Waitable) {
    let tcp = tcp_frame(400);
    let partial = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..VnetHdr::default() };
    let segments = VnetHdr { gso: GsoType::Tcp4, gso_size: 100, hdr_len: 54, ..partial };
    let unknown = {
        let mut raw = segments.encode(0);
        raw[1] = 0x77;
        raw
    };
    let impossible: Vec<(&str, [u8; VNET_HDR_BYTES], &[u8])> = vec![
        ("an unknown gso_type", unknown, &tcp),
        ("gso_size 0", VnetHdr { gso_size: 0, ..segments }.encode(0), &tcp),
        ("TCP segmentation of a frame without TCP", segments.encode(0), &tcp[..40]),
        ("a checksum beyond the frame", VnetHdr { csum_start: 60_000, ..partial }.encode(0), &tcp),
        ("a checksum field beyond the frame", VnetHdr { csum_offset: 60_000, ..partial }.encode(0), &tcp),
        ("hdr_len beyond the frame", VnetHdr { hdr_len: 60_000, ..partial }.encode(0), &tcp),
        ("a frame without an Ethernet header", VnetHdr::default().encode(0), &tcp[..MIN_FRAME_BYTES - 1]),
        ("no frame", VnetHdr::default().encode(0), &[]),
    ];
    let good = tagless_frame(99);
    let good_parts = parts_of(&VnetHdr::default().encode(0), &good, 2);
    for (what, header, frame) in &impossible {
        let bad_parts = parts_of(header, frame, 1);
        assert_eq!(push_between(device, &good_parts, &bad_parts), Err(PushError::Refused), "{what}");
    }

    let bytes = vec![0; 200];
    let shreds = parts_of(&[0; VNET_HDR_BYTES], &bytes, 69);
    assert_eq!(push_between(device, &good_parts, &shreds), Err(PushError::Refused), "too many parts");
    assert_eq!(push_between(device, &good_parts, &Parts::default()), Err(PushError::Refused), "no parts");
    // The first page is mapped for nobody: a guest whose memory was taken away looks like this.
    let mut unmapped = parts_of(&[0; VNET_HDR_BYTES], &tcp, 1);
    unmapped.segments.push(Segment::new(std::ptr::without_provenance_mut(64), 64));
    assert_eq!(push_between(device, &good_parts, &unmapped), Err(PushError::Refused), "unmapped memory");

    for _ in 0..2 * (impossible.len() + 3) {
        assert!(pull_until(other_side, |_, _| true).1 == good, "only good frames pass");
    }
}

/// Pushes the frame `between` in one batch with two good ones around it, and answers what became of it.
fn push_between(device: &dyn Waitable, good: &Parts, between: &Parts) -> Result<(), PushError> {
    let frames = [good, between, good].map(|parts| PushFrame { parts: &parts.segments });
    let mut outcomes = [Err(PushError::Full); 3];
    device.push(&frames, &mut outcomes);
    assert_eq!((outcomes[0], outcomes[2]), (Ok(()), Ok(())), "the good frames pass");
    outcomes[1]
}

/// A device that can be waited for.
trait Waitable: Device + AsFd {}
impl<D: Device + AsFd> Waitable for D {}

/// Waits until one of `devices` has something to say. Answers whether one has.
fn wait(devices: &[&dyn Waitable], at_most: Duration) -> bool {
    let mut fds: Vec<_> = devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
    poll(&mut fds, Some(&Timespec::try_from(at_most).unwrap())).unwrap() > 0
}

/// Pulls until a frame is the wanted one.
fn pull_until(device: &dyn Waitable, wanted: impl Fn(&VnetHdr, &[u8]) -> bool) -> (VnetHdr, Vec<u8>) {
    let mut slots = Slots::new(1);
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        wait(&[device], DEADLINE.saturating_sub(started.elapsed()));
        if device.pull(&mut slots.slots).unwrap() == 1 {
            let (header, frame) = slots.frame(0);
            if wanted(&header, frame) {
                return (header, frame.to_vec());
            }
        }
    }
    panic!("no such frame came within {DEADLINE:?}");
}

/// Pushes one frame: the header and the first bytes in one part, the rest in another.
fn push(device: &dyn Waitable, header: &VnetHdr, frame: &[u8]) -> Result<(), PushError> {
    let parts = parts_of(&header.encode(0), frame, 2);
    let mut outcome = [Err(PushError::Full)];
    device.push(&[PushFrame { parts: &parts.segments }], &mut outcome);
    outcome[0]
}

/// A frame in memory of its own, cut into parts.
#[derive(Default)]
struct Parts {
    segments: Vec<Segment>,
    _memory: Box<[u8]>,
}

/// `header` and `frame` in `count` parts: the first ends a byte behind the header, all but the last
/// of the others have one byte.
fn parts_of(header: &[u8; VNET_HDR_BYTES], frame: &[u8], count: usize) -> Parts {
    let mut memory: Box<[u8]> = [header, frame].concat().into();
    let mut rest = Segment::new(memory.as_mut_ptr(), memory.len() as u32);
    let mut segments = Vec::new();
    for at in 1..count {
        let bytes = if at == 1 { VNET_HDR_BYTES as u32 + 1 } else { 1 };
        segments.push(rest.first(bytes));
        rest = rest.skip(bytes);
    }
    segments.push(rest);
    Parts { segments, _memory: memory }
}

/// Memory for frames to be pulled into.
struct Slots {
    slots: Vec<PullSlot>,
    _memory: Vec<Box<[u8]>>,
}

impl Slots {
    fn new(count: usize) -> Slots {
        let mut memory = vec![vec![0xa5; VNET_HDR_BYTES + MAX_FRAME_BYTES].into_boxed_slice(); count];
        let slot = |bytes: &mut Box<[u8]>| PullSlot {
            buffer: Segment::new(bytes.as_mut_ptr(), bytes.len() as u32),
            bytes: 0,
        };
        Slots { slots: memory.iter_mut().map(slot).collect(), _memory: memory }
    }

    /// A slot's frame and the header in front of it, which has to be one that the switch takes.
    fn frame(&self, at: usize) -> (VnetHdr, &[u8]) {
        let slot = self.slots[at];
        // SAFETY: the slot lies in `_memory`, which nobody writes while `self` is borrowed.
        let filled = unsafe { std::slice::from_raw_parts(slot.buffer.as_ptr(), slot.bytes as usize) };
        let (raw, frame) = filled.split_first_chunk().expect("a header");
        let header = VnetHdr::decode(raw).unwrap();
        header.check(frame.len() as u32).unwrap();
        (header, frame)
    }
}

fn quiet_namespace() -> Namespace {
    let namespace = Namespace::new().unwrap();
    namespace.disable_ipv6().unwrap();
    namespace
}

fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    namespace.run(work).unwrap()
}

/// A TAP of the calling thread's namespace, up.
fn tap_up(name: &str, address: Option<[u8; 4]>) -> Tap {
    let tap = Tap::open(name).unwrap();
    let interface = Interface::named(name).unwrap();
    if let Some(address) = address {
        interface.set_ipv4(address.into(), 24).unwrap();
    }
    interface.up().unwrap();
    tap
}

/// Runs `ip` in the calling thread's namespace; the error is what it printed.
fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| complaint.trim().into())
}

/// `bytes` of Ethernet frame with an EtherType for local experiments (IEEE 802), which no stack answers.
fn tagless_frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend((frame.len()..bytes).map(|at| at as u8));
    frame
}

fn tcp_frame(payload_bytes: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
        .tcp(1000, 2000, 1, 4096);
    let payload: Vec<u8> = (0..payload_bytes).map(|at| (at % 251) as u8).collect();
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).unwrap();
    frame
}

fn udp_frame(from: [u8; 6], to: [u8; 6], source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from, to).ipv4(source, destination, 64).udp(5000, 4000);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// The frame with `tags` behind its addresses, outermost first.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Udp(udp) => Some(udp.payload()),
        _ => None,
    }
}
