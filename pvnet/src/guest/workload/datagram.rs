//! Numbered UDP datagrams, as fast as they are taken: what the switch lost, and what it put out of order.

use super::{Workload, WorkloadError};
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
    sent: u64,
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
        Ok(DatagramSender { socket, remote: remote.into(), datagram_bytes, limit, sent: 0 })
    }

    /// Datagrams given to the stack so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

impl Workload for DatagramSender {
    fn poll(&mut self, _: u64, stack: &mut Stack) -> bool {
        let socket = stack.sockets.get_mut::<udp::Socket<'_>>(self.socket);
        let before = self.sent;
        while self.limit != Some(self.sent) {
            let Ok(payload) = socket.send(self.datagram_bytes, self.remote) else { break };
            payload[..NUMBER_BYTES].copy_from_slice(&self.sent.to_be_bytes());
            self.sent += 1;
        }
        self.sent != before
    }
}

/// Receives datagrams and counts.
pub struct DatagramReceiver {
    socket: SocketHandle,
    received: u64,
    reordered: u64,
    malformed: u64,
    /// One more than the highest number that came.
    expected: u64,
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
        Ok(DatagramReceiver { socket, received: 0, reordered: 0, malformed: 0, expected: 0 })
    }

    /// Datagrams that came with a number.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Of those, datagrams that came after one with a higher number; a second copy counts here as well.
    pub fn reordered(&self) -> u64 {
        self.reordered
    }

    /// Numbers up to the highest one that did not come. A second copy of one hides the loss of another.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.received)
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
            let Some(number) = payload.first_chunk().copied().map(u64::from_be_bytes) else {
                self.malformed += 1;
                continue;
            };
            self.received += 1;
            if number < self.expected {
                self.reordered += 1;
            }
            self.expected = self.expected.max(number.saturating_add(1));
        }
        busy
    }
}
