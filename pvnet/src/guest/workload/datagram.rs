//! Numbered UDP datagrams, as fast as they are taken: what the switch lost, and what it put out of order.

use super::{Schedule, Sequence, Workload, WorkloadError};
use crate::guest::Stack;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;
use smoltcp::wire::IpEndpoint;
use std::net::SocketAddrV4;

/// Bytes of the number that a datagram starts with.
const NUMBER_BYTES: usize = 8;
/// Bytes of an IPv4 and a UDP header.
const HEADER_BYTES: usize = 28;
/// Datagrams that the sender's socket holds: what one poll sends.
const SEND_DATAGRAMS: usize = 64;
/// Datagrams that the receiver's socket holds: more than a receive ring brings in one poll, so that what is
/// lost was lost on the way.
const RECEIVE_DATAGRAMS: usize = 512;
/// Bytes that the receiver's socket holds.
const RECEIVE_BYTES: usize = 1 << 20;

fn buffer(datagrams: usize, bytes: usize) -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; datagrams], vec![0; bytes])
}

/// Sends datagrams.
pub struct DatagramSender {
    socket: SocketHandle,
    remote: IpEndpoint,
    datagram_bytes: usize,
    limit: Option<u64>,
    schedule: Schedule,
    sent: u64,
    /// When the next datagram may be sent, if that is not yet.
    due_ns: Option<u64>,
}

impl DatagramSender {
    /// Sends `limit` datagrams of `datagram_bytes` payload each to `remote`, or without end.
    ///
    /// # Errors
    /// An address that cannot be sent to; a datagram without room for its number or longer than the MTU allows.
    pub fn new(
        stack: &mut Stack,
        remote: SocketAddrV4,
        datagram_bytes: usize,
        limit: Option<u64>,
    ) -> Result<DatagramSender, WorkloadError> {
        if remote.ip().is_unspecified() || remote.port() == 0 {
            return Err(WorkloadError::Unaddressable);
        }
        let max = stack.mtu_bytes().saturating_sub(HEADER_BYTES);
        if !(NUMBER_BYTES..=max).contains(&datagram_bytes) {
            return Err(WorkloadError::DatagramBytes { bytes: datagram_bytes, max });
        }
        let mut socket =
            udp::Socket::new(buffer(1, 0), buffer(SEND_DATAGRAMS, SEND_DATAGRAMS * datagram_bytes));
        socket.bind(stack.dynamic_port()).map_err(|_| WorkloadError::Unaddressable)?;
        let socket = stack.sockets.add(socket);
        let schedule = Schedule::saturating();
        Ok(DatagramSender {
            socket,
            remote: remote.into(),
            datagram_bytes,
            limit,
            schedule,
            sent: 0,
            due_ns: None,
        })
    }

    /// The same, sending as `schedule` has it instead of as fast as it goes.
    pub fn paced(self, schedule: Schedule) -> DatagramSender {
        DatagramSender { schedule, ..self }
    }

    /// Datagrams given to the stack so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

impl Workload for DatagramSender {
    fn poll(&mut self, now_ns: u64, stack: &mut Stack) -> bool {
        let socket = stack.sockets.get_mut::<udp::Socket<'_>>(self.socket);
        let before = self.sent;
        self.due_ns = None;
        while self.limit != Some(self.sent) {
            self.due_ns = self.schedule.next_ns(now_ns, self.sent);
            if self.due_ns.is_some() {
                break;
            }
            let Ok(payload) = socket.send(self.datagram_bytes, self.remote) else { break };
            payload[..NUMBER_BYTES].copy_from_slice(&self.sent.to_be_bytes());
            self.sent += 1;
        }
        self.sent != before
    }

    fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }
}

/// Receives datagrams and counts.
pub struct DatagramReceiver {
    socket: SocketHandle,
    sequence: Sequence,
    malformed: u64,
}

impl DatagramReceiver {
    /// Receives on `port`.
    ///
    /// # Errors
    /// Port 0.
    pub fn new(stack: &mut Stack, port: u16) -> Result<DatagramReceiver, WorkloadError> {
        let mut socket = udp::Socket::new(buffer(RECEIVE_DATAGRAMS, RECEIVE_BYTES), buffer(1, 0));
        socket.bind(port).map_err(|_| WorkloadError::Unaddressable)?;
        let socket = stack.sockets.add(socket);
        Ok(DatagramReceiver { socket, sequence: Sequence::default(), malformed: 0 })
    }

    /// What came, was lost and came late.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Datagrams too short for a number.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

impl Workload for DatagramReceiver {
    fn poll(&mut self, _: u64, stack: &mut Stack) -> bool {
        let socket = stack.sockets.get_mut::<udp::Socket<'_>>(self.socket);
        let mut busy = false;
        while let Ok((payload, _)) = socket.recv() {
            busy = true;
            match payload.first_chunk().copied().map(u64::from_be_bytes) {
                Some(number) => self.sequence.note(number),
                None => self.malformed += 1,
            }
        }
        busy
    }
}
