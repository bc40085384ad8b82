//! One byte there and one byte back over TCP: the round trip's latency.

use super::{Status, Workload, WorkloadError, after_receiving, connect, listen, tcp_socket};
use crate::guest::Stack;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::net::SocketAddrV4;

/// Bytes are few, so buffers are small.
const BUFFER_BYTES: usize = 4096;

fn socket_without_delay() -> tcp::Socket<'static> {
    let mut socket = tcp_socket(BUFFER_BYTES, BUFFER_BYTES);
    socket.set_nagle_enabled(false);
    socket
}

/// Sends a byte, waits for it to come back, and sends the next.
pub struct RequestClient<R> {
    socket: SocketHandle,
    record: R,
    limit: Option<u64>,
    completed: u64,
    /// When the request went out that is under way.
    asked_ns: Option<u64>,
    status: Status,
}

impl<R: FnMut(u64)> RequestClient<R> {
    /// Connects to the [`EchoServer`] at `remote` and makes `limit` requests, or without end. `record` is called
    /// with the nanoseconds of each round trip: from the poll that sent the byte to the poll that has it back.
    ///
    /// # Errors
    /// An address that cannot be connected to.
    pub fn new(
        stack: &mut Stack,
        remote: SocketAddrV4,
        limit: Option<u64>,
        record: R,
    ) -> Result<RequestClient<R>, WorkloadError> {
        let socket = connect(stack, socket_without_delay(), remote)?;
        Ok(RequestClient { socket, record, limit, completed: 0, asked_ns: None, status: Status::Running })
    }

    /// Round trips made.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Done after the last answer; broken also by an answer that is not what was sent.
    pub fn status(&self) -> Status {
        self.status
    }
}

impl<R: FnMut(u64)> Workload for RequestClient<R> {
    fn poll(&mut self, now_ns: u64, stack: &mut Stack) -> bool {
        if self.status != Status::Running {
            return false;
        }
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        if !socket.is_open() {
            self.status = Status::Broken;
            return false;
        }
        let mut busy = false;
        if let Some(asked_ns) = self.asked_ns {
            let mut answer = [0];
            if socket.recv_slice(&mut answer) != Ok(1) {
                return false;
            }
            if answer[0] != self.completed as u8 {
                socket.abort();
                self.status = Status::Broken;
                return true;
            }
            (self.record)(now_ns.saturating_sub(asked_ns));
            self.completed += 1;
            self.asked_ns = None;
            busy = true;
        }
        if self.limit == Some(self.completed) {
            socket.close();
            self.status = Status::Done;
        } else if socket.can_send() && socket.send_slice(&[self.completed as u8]) == Ok(1) {
            self.asked_ns = Some(now_ns);
            busy = true;
        }
        busy
    }
}

/// Sends every byte back.
pub struct EchoServer {
    socket: SocketHandle,
    echoed_bytes: u64,
    status: Status,
}

impl EchoServer {
    /// Waits for a client on `port`.
    ///
    /// # Errors
    /// Port 0.
    pub fn new(stack: &mut Stack, port: u16) -> Result<EchoServer, WorkloadError> {
        let socket = listen(stack, socket_without_delay(), port)?;
        Ok(EchoServer { socket, echoed_bytes: 0, status: Status::Running })
    }

    /// Bytes sent back so far.
    pub fn echoed_bytes(&self) -> u64 {
        self.echoed_bytes
    }

    /// Done once the client closed the connection.
    pub fn status(&self) -> Status {
        self.status
    }
}

impl Workload for EchoServer {
    fn poll(&mut self, _: u64, stack: &mut Stack) -> bool {
        if self.status != Status::Running {
            return false;
        }
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let before = self.echoed_bytes;
        let mut bytes = [0; 64];
        let end = loop {
            let room = bytes.len().min(socket.send_capacity() - socket.send_queue());
            match socket.recv_slice(&mut bytes[..room]) {
                Ok(0) => break None,
                Ok(count) => match socket.send_slice(&bytes[..count]) {
                    Ok(sent) => self.echoed_bytes += sent as u64,
                    Err(_) => break None,
                },
                Err(end) => break Some(end),
            }
        };
        self.status = after_receiving(socket, end);
        self.echoed_bytes != before || self.status == Status::Done
    }
}
