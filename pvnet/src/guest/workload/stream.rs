//! One TCP stream, as fast as the connection takes it, of bytes that the receiver knows.

use super::{Status, Workload, WorkloadError, after_receiving, connect, listen, tcp_socket};
use crate::guest::Stack;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::net::SocketAddrV4;

/// The pattern's period: prime, so that bytes lost, doubled or moved by any round number are seen.
const PERIOD_BYTES: usize = 65_521;

/// What both ends of a stream must agree on, and how large their windows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Which bytes are sent.
    pub seed: u64,
    /// Bytes of the socket's buffer, and so of the window: 64 KiB to 1 GiB.
    pub window_bytes: usize,
}

impl Default for StreamConfig {
    /// A window of 1 MiB: sixteen of the largest segments, which fills a ring and still fits a cache.
    fn default() -> StreamConfig {
        StreamConfig { seed: 1, window_bytes: 1 << 20 }
    }
}

/// The bytes of a stream: those that a seed gives, over and over.
pub struct Pattern(Box<[u8]>);

impl Pattern {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Pattern {
        // xorshift64* never leaves the state 0, so it does not start there.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15).max(1);
        let mut byte = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
        };
        Pattern((0..PERIOD_BYTES).map(|_| byte()).collect())
    }

    /// The stream from `offset` on: some bytes of it, at least one and at most `bytes`.
    pub fn run(&self, offset: u64, bytes: usize) -> &[u8] {
        let at = (offset % PERIOD_BYTES as u64) as usize;
        &self.0[at..(at + bytes).min(PERIOD_BYTES)]
    }

    /// Fills `into` with the stream from `offset` on.
    fn fill(&self, mut offset: u64, mut into: &mut [u8]) {
        while !into.is_empty() {
            let run = self.run(offset, into.len());
            let (now, later) = into.split_at_mut(run.len());
            now.copy_from_slice(run);
            offset += run.len() as u64;
            into = later;
        }
    }

    /// Whether `bytes` are the stream from `offset` on.
    pub fn matches(&self, mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let run = self.run(offset, bytes.len());
            let (now, later) = bytes.split_at(run.len());
            if now != run {
                return false;
            }
            offset += run.len() as u64;
            bytes = later;
        }
        true
    }
}

/// Sends a stream.
pub struct StreamSender {
    socket: SocketHandle,
    pattern: Pattern,
    limit_bytes: Option<u64>,
    sent_bytes: u64,
    status: Status,
}

impl StreamSender {
    /// Connects to `remote` and sends `limit_bytes`, or without end.
    ///
    /// # Errors
    /// An address that cannot be connected to.
    pub fn new(
        stack: &mut Stack,
        remote: SocketAddrV4,
        limit_bytes: Option<u64>,
        config: StreamConfig,
    ) -> Result<StreamSender, WorkloadError> {
        let socket = connect(stack, tcp_socket(4096, config.window_bytes), remote)?;
        let pattern = Pattern::new(config.seed);
        Ok(StreamSender { socket, pattern, limit_bytes, sent_bytes: 0, status: Status::Running })
    }

    /// Bytes given to TCP so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Done once the receiver acknowledged everything.
    pub fn status(&self) -> Status {
        self.status
    }
}

impl Workload for StreamSender {
    fn poll(&mut self, _: u64, stack: &mut Stack) -> bool {
        if self.status != Status::Running {
            return false;
        }
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let before = self.sent_bytes;
        while socket.can_send() {
            let left = self.limit_bytes.map_or(u64::MAX, |limit| limit - self.sent_bytes);
            if left == 0 {
                break;
            }
            let sent = socket.send(|room| {
                let bytes = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.pattern.fill(self.sent_bytes, &mut room[..bytes]);
                (bytes, bytes)
            });
            self.sent_bytes += sent.map_or(0, |bytes| bytes as u64);
        }
        let complete = self.limit_bytes == Some(self.sent_bytes);
        // smoltcp 0.14.0 does not always send a FIN again that went out with data and was lost; one that goes out
        // alone, behind acknowledged data, it does.
        if complete && socket.may_send() && socket.send_queue() == 0 {
            socket.close();
        }
        self.status = match socket.state() {
            // The receiver's own FIN and the acknowledgement of ours: all bytes have arrived.
            tcp::State::FinWait2 | tcp::State::TimeWait if complete => Status::Done,
            tcp::State::Closed => Status::Broken,
            _ => Status::Running,
        };
        self.sent_bytes != before
    }
}

/// Receives a stream and holds every byte against the pattern.
pub struct StreamReceiver {
    socket: SocketHandle,
    pattern: Pattern,
    received_bytes: u64,
    corrupt_at: Option<u64>,
    status: Status,
}

impl StreamReceiver {
    /// Waits for a sender on `port`.
    ///
    /// # Errors
    /// Port 0.
    pub fn new(stack: &mut Stack, port: u16, config: StreamConfig) -> Result<StreamReceiver, WorkloadError> {
        let socket = listen(stack, tcp_socket(config.window_bytes, 4096), port)?;
        let pattern = Pattern::new(config.seed);
        Ok(StreamReceiver { socket, pattern, received_bytes: 0, corrupt_at: None, status: Status::Running })
    }

    /// Bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Where the first run of bytes starts that is not what was sent, if there is one.
    pub fn corrupt_at(&self) -> Option<u64> {
        self.corrupt_at
    }

    /// Done once the sender closed the stream.
    pub fn status(&self) -> Status {
        self.status
    }
}

impl Workload for StreamReceiver {
    fn poll(&mut self, _: u64, stack: &mut Stack) -> bool {
        if self.status != Status::Running {
            return false;
        }
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let before = self.received_bytes;
        let end = loop {
            let received = socket.recv(|bytes| {
                let intact = self.pattern.matches(self.received_bytes, bytes);
                (bytes.len(), (bytes.len() as u64, intact))
            });
            match received {
                Ok((0, _)) => break None,
                Ok((bytes, intact)) => {
                    if !intact {
                        self.corrupt_at.get_or_insert(self.received_bytes);
                    }
                    self.received_bytes += bytes;
                }
                Err(end) => break Some(end),
            }
        };
        self.status = after_receiving(socket, end);
        self.received_bytes != before || self.status == Status::Done
    }
}
