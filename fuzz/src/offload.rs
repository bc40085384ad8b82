//! The packet header and offloads in software: what a receiver gets that lacks some.
//!
//! Input: a `virtio_net_hdr`, a set of offloads, and a frame.
//!
//! - A receiver that takes the frame's offloads gets it as it is. Any other gets only what it takes.
//! - What is cut has the frame's payload, in order, and no cut more than `gso_size` of it.
//! - Neither writes where the switch has read: every frame that comes out has the key of the one that went in.
//! - A partial checksum that was the pseudo-header's sum becomes the one that etherparse computes.

use super::input::Input;
use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use hyper_switch_dataplane::api::{FlowKey, PortId};
use hyper_switch_dataplane::key::{HEADER_BYTES, Malformed, extract};
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::header::{GsoType, Offloads, VnetHdr};
use hyper_switch_pvnet::offload::{Segmenter, segment_into};

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let Ok(vnet) = VnetHdr::decode(&input.array()) else { return };
    let accept = offloads(input.u8());
    let frame = input.run(MAX_FRAME_BYTES);
    // The switch asks this first; whoever does not finds out later.
    let possible = vnet.check(frame.len() as u32).is_ok();
    let mut sent = Vec::new();
    let outcome = segment_into(frame, &vnet, accept, &mut |frame, vnet| sent.push((frame.to_vec(), vnet)));
    if accept.accept(&vnet) {
        assert_eq!(sent, [(frame.to_vec(), vnet)]);
        return;
    }
    if outcome.is_err() {
        assert!(sent.is_empty(), "a frame that is refused was not begun");
        return;
    }
    assert!(possible, "what is finished could be true");
    if vnet.gso != GsoType::None {
        assert_cuts(frame, &vnet, &sent);
    }
    let key = key(frame);
    let partial_was_right = pseudo_header_sum(frame, &vnet).is_some_and(|sum| {
        let field = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset);
        frame.get(field..field + 2) == Some(&sum)
    });
    for (frame, vnet) in &sent {
        assert!(accept.accept(vnet) && vnet.check(frame.len() as u32).is_ok(), "{vnet:?}");
        assert_eq!(self::key(frame), key);
        if partial_was_right && !vnet.needs_csum() {
            assert_checksum(frame);
        }
    }
}

/// A set of offloads, one a bit.
pub fn offloads(bits: u8) -> Offloads {
    const EACH: [Offloads; 5] =
        [Offloads::CSUM, Offloads::TSO4, Offloads::TSO6, Offloads::ECN, Offloads::USO];
    let chosen = EACH.iter().enumerate().filter(|(at, _)| bits >> at & 1 != 0);
    chosen.fold(Offloads::NONE, |set, (_, offload)| set | *offload)
}

fn key(frame: &[u8]) -> Result<FlowKey, Malformed> {
    let mut key = FlowKey::ZERO;
    let window = &frame[..frame.len().min(HEADER_BYTES)];
    extract(window, frame.len() as u32, PortId(0), 0, &mut key).map(|_| key)
}

fn assert_cuts(frame: &[u8], vnet: &VnetHdr, sent: &[(Vec<u8>, VnetHdr)]) {
    let mut segmenter = Segmenter::new(frame, frame.len() as u32, vnet).expect("it was cut just now");
    assert_eq!(segmenter.remaining() as usize, sent.len());
    let header_bytes = segmenter.next_cut().expect("at least one").headers.len();
    let mut payload = &frame[header_bytes..];
    for (cut, _) in sent {
        let (part, rest) = payload.split_at(payload.len().min(vnet.gso_size.into()));
        assert_eq!(&cut[header_bytes..], part);
        payload = rest;
    }
    assert!(payload.is_empty());
}

/// What the checksum's field holds while it is partial, by etherparse, if the frame is a whole TCP segment or datagram and the
/// checksum is its own. A routing header, behind which there is another destination, is not looked at, nor is a datagram of length
/// 0, which etherparse takes for as long as the packet, but sums up as 0.
fn pseudo_header_sum(frame: &[u8], vnet: &VnetHdr) -> Option<[u8; 2]> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (offset, l4) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (16, tcp.slice()),
        TransportSlice::Udp(udp) if udp.length() != 0 => (6, udp.slice()),
        _ => return None,
    };
    let l4_start = l4.as_ptr() as usize - frame.as_ptr() as usize;
    let whole = l4_start + l4.len() == frame.len();
    if !whole || (usize::from(vnet.csum_start), vnet.csum_offset) != (l4_start, offset) {
        return None;
    }
    let protocol = if offset == 6 { 17 } else { 6 };
    let mut sum = Sum16BitWords::new().add_2bytes([0, protocol]).add_4bytes((l4.len() as u32).to_be_bytes());
    let sum = match packet.net? {
        NetSlice::Ipv4(ip) => sum.add_4bytes(ip.header().source()).add_4bytes(ip.header().destination()),
        NetSlice::Ipv6(ip) if ip.extensions().is_empty() => {
            sum.add_16bytes(ip.header().source()).add_16bytes(ip.header().destination())
        }
        _ => return None,
    };
    Some((!sum.ones_complement()).to_ne_bytes())
}

fn assert_checksum(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("what was cut is a packet");
    let computed = match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            (tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()), tcp.checksum())
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            (udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()), udp.checksum())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            (tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()), tcp.checksum())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            (udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()), udp.checksum())
        }
        (net, transport) => panic!("{net:?}, {transport:?}"),
    };
    assert_eq!(computed.0, Ok(computed.1));
}
