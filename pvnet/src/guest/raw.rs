//! Guests without a TCP/IP stack: one sends bare frames through its driver, the other counts them. What they cost
//! is what the switch costs, since a guest touches no more of a frame than its headers and its number.
//!
//! ```text
//!   Ethernet 14 | IPv4 20 | UDP 8 | number 8 | whatever the buffer held
//! ```
//!
//! The receiver speaks first: a greeting, by which a learning switch knows where it is. The sender answers with its
//! first frame, and with all others when it is greeted again, which the receiver does on that first frame: so a switch
//! has learned both ways before it is flooded. From then on the receiver greets once a second, lest it be forgotten. A
//! saturating sender sends until it has no transmit buffer left, and blocks until the
//! switch gives some back.

use super::doorbell::Pace;
use super::driver::Driver;
use super::workload::{Schedule, Sequence};
use super::{GuestCounters, Hypercall, Nic, NicConfig, NicConfigError, NicFault, Poll};
use crate::header::{Offloads, VNET_HDR_BYTES};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// Bytes that a frame may have, without the frame check sequence: from the minimum of Ethernet (IEEE 802.3-2018,
/// clause 3.2.7) to a power of two that an IPv4 packet still fills.
pub const FRAME_BYTES: RangeInclusive<usize> = 60..=65_536;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const HEADER_BYTES: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;
/// Bytes of the headers and the number.
const TOUCHED_BYTES: usize = HEADER_BYTES + 8;

const UDP_PORT: u16 = 5001;
const TTL: u8 = 64;

/// From one greeting to the next, and from a lost one to the next try: often enough that no switch forgets the receiver.
const GREET_EVERY_NS: u64 = 1_000_000_000;

/// Frames that one poll sends at most, so that what came is looked at now and then.
pub const BURST: usize = 64;

/// Buffers of each ring are as many as these bytes hold, within [`SLOTS`]: what a core keeps in its cache.
const RING_BYTES: usize = 1 << 20;
const SLOTS: RangeInclusive<usize> = 16..=256;

/// One end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Unicast.
    pub mac: [u8; 6],
    /// Unicast.
    pub ip: Ipv4Addr,
}

/// What a raw guest is.
#[derive(Clone, Copy, Debug)]
pub struct RawConfig {
    /// Its own address.
    pub own: Address,
    /// Whom it talks to.
    pub peer: Address,
    /// Bytes of each frame that is sent, of [`FRAME_BYTES`].
    pub frame_bytes: usize,
    /// As in [`NicConfig::batching`].
    pub batching: Option<Pace>,
}

impl RawConfig {
    /// The interface of both ends.
    pub fn nic(&self) -> NicConfig {
        let slots = (RING_BYTES / self.frame_bytes.next_power_of_two()).clamp(*SLOTS.start(), *SLOTS.end());
        // All receive buffers together take the largest frame that there is, since a switch may send it.
        let rx_buffer_bytes = (VNET_HDR_BYTES + self.frame_bytes).max(512);
        NicConfig {
            offloads: Offloads::NONE,
            mtu_bytes: (self.frame_bytes - ETHERNET_BYTES).max(576) as u16,
            rx_slots: slots as u16,
            rx_buffer_bytes: rx_buffer_bytes as u32,
            tx_slots: slots as u16,
            batching: self.batching,
            ..NicConfig::default()
        }
    }

    /// The start of a frame of `bytes` to the peer, with the number 0.
    fn template(&self, bytes: usize) -> [u8; TOUCHED_BYTES] {
        let mut template = [0; TOUCHED_BYTES];
        let mut frame = EthernetFrame::new_unchecked(&mut template[..]);
        frame.set_src_addr(EthernetAddress(self.own.mac));
        frame.set_dst_addr(EthernetAddress(self.peer.mac));
        frame.set_ethertype(EthernetProtocol::Ipv4);
        let packet_bytes = bytes - ETHERNET_BYTES;
        let ip = Ipv4Repr {
            src_addr: self.own.ip,
            dst_addr: self.peer.ip,
            next_header: IpProtocol::Udp,
            payload_len: packet_bytes - IPV4_BYTES,
            hop_limit: TTL,
        };
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        // The rest of the datagram is not in the template, so it is written behind the header by hand.
        let mut datagram = UdpPacket::new_unchecked(&mut template[ETHERNET_BYTES + IPV4_BYTES..]);
        datagram.set_src_port(UDP_PORT);
        datagram.set_dst_port(UDP_PORT);
        datagram.set_len((packet_bytes - IPV4_BYTES) as u16);
        // IPv4 lets a datagram go without a checksum (RFC 768).
        datagram.set_checksum(0);
        template
    }
}

/// What a raw guest does beside counting what comes.
enum Role {
    /// Sends one frame when the peer has greeted, and all others when it has greeted again.
    Sender { schedule: Schedule },
    /// Greets, next at this time.
    Receiver { greet_ns: u64 },
}

/// A VM in this process that sends and receives frames itself.
pub struct RawGuest {
    driver: Driver,
    role: Role,
    frame_bytes: usize,
    template: [u8; TOUCHED_BYTES],
    /// How frames from the peer begin.
    from_peer: [u8; ETHERNET_BYTES],
    sent: u64,
    sequence: Sequence,
}

impl RawGuest {
    /// A guest that sends as `schedule` has it, once its peer has greeted.
    ///
    /// # Errors
    /// An interface that cannot be had.
    ///
    /// # Panics
    /// If a frame is not of [`FRAME_BYTES`].
    pub fn sender(config: RawConfig, schedule: Schedule) -> Result<RawGuest, NicConfigError> {
        RawGuest::new(config, config.frame_bytes, Role::Sender { schedule })
    }

    /// A guest that greets its peer and counts what comes from it.
    ///
    /// # Errors
    /// An interface that cannot be had.
    ///
    /// # Panics
    /// If a frame is not of [`FRAME_BYTES`].
    pub fn receiver(config: RawConfig) -> Result<RawGuest, NicConfigError> {
        RawGuest::new(config, *FRAME_BYTES.start(), Role::Receiver { greet_ns: 0 })
    }

    fn new(config: RawConfig, frame_bytes: usize, role: Role) -> Result<RawGuest, NicConfigError> {
        assert!(FRAME_BYTES.contains(&config.frame_bytes), "frames of {} bytes", config.frame_bytes);
        let mut from_peer = [0; ETHERNET_BYTES];
        from_peer[..6].copy_from_slice(&config.own.mac);
        from_peer[6..12].copy_from_slice(&config.peer.mac);
        from_peer[12..].copy_from_slice(&u16::from(EthernetProtocol::Ipv4).to_be_bytes());
        Ok(RawGuest {
            driver: Driver::new(Nic::new(config.nic())?),
            role,
            frame_bytes,
            template: config.template(frame_bytes),
            from_peer,
            sent: 0,
            sequence: Sequence::default(),
        })
    }

    /// The interface: memory and rings for the switch, and its counters.
    pub fn nic(&self) -> &Nic {
        &self.driver.nic
    }

    /// Entries and interrupts so far.
    pub fn counters(&self) -> GuestCounters {
        self.driver.counters
    }

    /// Frames that were sent, greetings included.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// What came from the peer.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// As [`Guest::poll`](super::Guest::poll).
    ///
    /// # Errors
    /// The switch broke the rules of the rings. The guest is then dead and says the same again.
    pub fn poll(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) -> Result<Poll, NicFault> {
        self.driver.wake(hypercall);
        let received = self.receive()?;
        let sent = self.send(now_ns, hypercall)?;
        self.driver.publish(now_ns, hypercall);
        if received || sent || !self.driver.park(now_ns, hypercall) {
            return Ok(Poll::Busy);
        }
        // Without a buffer it is the switch that says when to go on.
        let starved = self.driver.nic.is_tx_starved();
        let until_ns = if starved { None } else { self.due(now_ns).err().flatten() };
        Ok(Poll::Idle { until_ns })
    }

    /// Takes all that came, and answers whether anything did.
    fn receive(&mut self) -> Result<bool, NicFault> {
        let mut any = false;
        while let Some(frame) = self.driver.nic.next_frame()? {
            any = true;
            // What a switch floods before it has learned is not for us.
            let Some((touched, _)) = frame.split_first_chunk::<TOUCHED_BYTES>() else { continue };
            let (headers, number) = touched.split_at(HEADER_BYTES);
            if !headers.starts_with(&self.from_peer) {
                continue;
            }
            let number = number.try_into().expect("what is touched ends with the number");
            self.sequence.note(u64::from_be_bytes(number));
            if let (Role::Receiver { greet_ns }, 1) = (&mut self.role, self.sequence.received()) {
                *greet_ns = 0;
            }
        }
        Ok(any)
    }

    /// Sends what is due, a burst at most, and answers whether anything was.
    fn send(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) -> Result<bool, NicFault> {
        self.driver.nic.reclaim()?;
        for sent in 0..BURST {
            if self.due(now_ns).is_err() {
                return Ok(sent > 0);
            }
            let (template, number) = (&self.template, self.sent);
            let taken = self.driver.nic.send(self.frame_bytes, |frame| {
                frame[..HEADER_BYTES].copy_from_slice(&template[..HEADER_BYTES]);
                frame[HEADER_BYTES..TOUCHED_BYTES].copy_from_slice(&number.to_be_bytes());
            })?;
            if !taken {
                return Ok(sent > 0);
            }
            self.sent += 1;
            if let Role::Receiver { greet_ns } = &mut self.role {
                *greet_ns = now_ns.saturating_add(GREET_EVERY_NS);
            }
            self.driver.announce_each(now_ns, hypercall);
        }
        Ok(true)
    }

    /// Whether a frame is due; if not, when one will be, if time alone makes it so.
    fn due(&mut self, now_ns: u64) -> Result<(), Option<u64>> {
        let wait_ns = match &mut self.role {
            Role::Sender { .. } if self.sequence.received() <= self.sent.min(1) => return Err(None),
            Role::Sender { schedule } => schedule.next_ns(now_ns, self.sent),
            Role::Receiver { greet_ns } => (*greet_ns > now_ns).then_some(*greet_ns),
        };
        wait_ns.map_or(Ok(()), |at| Err(Some(at)))
    }
}
