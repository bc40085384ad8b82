//! What a TCP segment or a datagram is made of, and what becomes of it when it is finished or cut: built anew by
//! etherparse each time, which knows nothing of the switch.

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, TcpHeader, VlanId,
};
use hyper_switch_pvnet::header::{F_NEEDS_CSUM, GsoType, Offloads, VnetHdr};

/// A frame, before it is known how far it is finished.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Of VLAN 100, and of 200 outside of it.
    pub vlan_tags: usize,
    pub v6: bool,
    /// IPv4 options of 8 bytes, or IPv6's hop-by-hop and destination options of 8 bytes each.
    pub ip_options: bool,
    pub udp: bool,
    /// Bytes of TCP options.
    pub tcp_options: usize,
    pub fin_psh: bool,
    pub cwr: bool,
    pub sequence: u32,
    pub identification: u16,
    pub payload: Vec<u8>,
}

/// What a sender leaves to whoever comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Nothing,
    /// The L4 checksum.
    Checksum,
    /// Frames of so many bytes of payload, and their checksums.
    Cuts(u16),
}

impl Shape {
    /// Payload that has no two equal runs next to each other.
    pub fn tcp(payload_bytes: usize) -> Shape {
        Shape {
            vlan_tags: 0,
            v6: false,
            ip_options: false,
            udp: false,
            tcp_options: 0,
            fin_psh: false,
            cwr: false,
            // Both wrap within a few cuts.
            sequence: u32::MAX - 2000,
            identification: u16::MAX - 1,
            payload: (0..payload_bytes).map(|at| ((at * 31) >> 3) as u8).collect(),
        }
    }

    pub fn udp(payload_bytes: usize) -> Shape {
        Shape { udp: true, ..Shape::tcp(payload_bytes) }
    }

    /// Where the L4 header starts.
    fn l4(&self) -> usize {
        let options = match (self.ip_options, self.v6) {
            (false, _) => 0,
            (true, false) => 8,
            (true, true) => 16,
        };
        14 + 4 * self.vlan_tags + if self.v6 { 40 } else { 20 } + options
    }

    fn header_bytes(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + self.tcp_options }
    }

    fn ip(&self) -> IpHeaders {
        if self.v6 {
            let ip =
                Ipv6Header { hop_limit: 9, source: [0xfd; 16], destination: [7; 16], ..Default::default() };
            let padding = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).unwrap();
            let options = self.ip_options.then_some(padding);
            let extensions = Ipv6Extensions {
                hop_by_hop_options: options.clone(),
                destination_options: options,
                ..Default::default()
            };
            return IpHeaders::Ipv6(ip, extensions);
        }
        let mut ip = Ipv4Header::new(0, 9, IpNumber::TCP, [192, 0, 2, 1], [198, 51, 100, 200]).unwrap();
        ip.identification = self.identification;
        if self.ip_options {
            ip.options = Ipv4Options::from([1; 8]);
        }
        IpHeaders::Ipv4(ip, Default::default())
    }

    /// The frame with every checksum complete.
    pub fn complete(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let vlan = |id| VlanId::try_new(id).unwrap();
        let ip = match self.vlan_tags {
            0 => ethernet.ip(self.ip()),
            1 => ethernet.single_vlan(vlan(100)).ip(self.ip()),
            _ => ethernet.double_vlan(vlan(200), vlan(100)).ip(self.ip()),
        };
        let mut frame = Vec::new();
        if self.udp {
            ip.udp(49_152, 443).write(&mut frame, &self.payload).unwrap();
        } else {
            let mut tcp = TcpHeader::new(49_152, 443, self.sequence, 8192);
            tcp.set_options_raw(&vec![1; self.tcp_options]).unwrap();
            (tcp.ack, tcp.fin, tcp.psh, tcp.cwr) = (true, self.fin_psh, self.fin_psh, self.cwr);
            ip.tcp_header(tcp).write(&mut frame, &self.payload).unwrap();
        }
        assert_eq!(frame.len(), self.header_bytes() + self.payload.len());
        frame
    }

    /// The frame with the pseudo-header's sum where the checksum goes, and the header that says so.
    fn partial(&self) -> (VnetHdr, Vec<u8>) {
        let mut frame = self.complete();
        let (protocol, csum_offset) = if self.udp { (17, 6) } else { (6, 16) };
        let pseudo = match self.ip() {
            IpHeaders::Ipv4(ip, _) => Sum16BitWords::new().add_4bytes(ip.source).add_4bytes(ip.destination),
            IpHeaders::Ipv6(ip, _) => Sum16BitWords::new().add_16bytes(ip.source).add_16bytes(ip.destination),
        };
        let l4_bytes = (frame.len() - self.l4()) as u16;
        let pseudo = pseudo.add_2bytes([0, protocol]).add_2bytes(l4_bytes.to_be_bytes());
        let field = self.l4() + usize::from(csum_offset);
        frame[field..field + 2].copy_from_slice(&(!pseudo.ones_complement()).to_ne_bytes());
        let csum_start = self.l4() as u16;
        (VnetHdr { flags: F_NEEDS_CSUM, csum_start, csum_offset, ..VnetHdr::PLAIN }, frame)
    }

    /// The frame as it is sent by whoever leaves `ask` to others.
    pub fn sent(&self, ask: Ask) -> (VnetHdr, Vec<u8>) {
        let (vnet, frame) = match ask {
            Ask::Nothing => return (VnetHdr::PLAIN, self.complete()),
            Ask::Checksum | Ask::Cuts(_) => self.partial(),
        };
        let Ask::Cuts(gso_size) = ask else { return (vnet, frame) };
        let gso = match (self.udp, self.v6) {
            (true, _) => GsoType::UdpL4,
            (false, true) => GsoType::Tcp6,
            (false, false) => GsoType::Tcp4,
        };
        (VnetHdr { gso, gso_size, ecn: self.cwr, hdr_len: self.header_bytes() as u16, ..vnet }, frame)
    }

    /// What has to be negotiated for the frame to cross unfinished.
    pub fn needs(&self, ask: Ask) -> Offloads {
        let cuts = match (self.udp, self.v6) {
            (true, _) => Offloads::USO,
            (false, true) => Offloads::TSO6,
            (false, false) => Offloads::TSO4,
        };
        match ask {
            Ask::Nothing => Offloads::NONE,
            Ask::Checksum => Offloads::CSUM,
            Ask::Cuts(_) if self.cwr => Offloads::CSUM | cuts | Offloads::ECN,
            Ask::Cuts(_) => Offloads::CSUM | cuts,
        }
    }

    /// What a receiver with the offloads `accept` is to get.
    pub fn received(&self, ask: Ask, accept: Offloads) -> Vec<(VnetHdr, Vec<u8>)> {
        let checksum = if accept.contains(Offloads::CSUM) { Ask::Checksum } else { Ask::Nothing };
        match ask {
            _ if accept.contains(self.needs(ask)) => vec![self.sent(ask)],
            Ask::Nothing | Ask::Checksum => vec![self.sent(checksum)],
            Ask::Cuts(gso_size) => self.cuts(gso_size.into()).iter().map(|cut| cut.sent(checksum)).collect(),
        }
    }

    /// The frames that it stands for (RFC 9293, 3.8.6.3's segments; RFC 3168, 6.1.2, for CWR).
    fn cuts(&self, cut_bytes: usize) -> Vec<Shape> {
        let count = self.payload.len().div_ceil(cut_bytes);
        let cut = |(index, payload): (usize, &[u8])| Shape {
            payload: payload.to_vec(),
            sequence: self.sequence.wrapping_add((index * cut_bytes) as u32),
            identification: self.identification.wrapping_add(index as u16),
            cwr: self.cwr && index == 0,
            fin_psh: self.fin_psh && index + 1 == count,
            ..self.clone()
        };
        self.payload.chunks(cut_bytes).enumerate().map(cut).collect()
    }
}
