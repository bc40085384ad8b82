//! Workloads: what a guest does with its network. Each is a state machine over smoltcp sockets, polled with
//! its guest; none has a thread or reads a clock.
//!
//! | workload | sends | checks |
//! | --- | --- | --- |
//! | [`StreamSender`], [`StreamReceiver`] | one TCP connection, as fast as it takes | every byte, against a pattern from a seed |
//! | [`RequestClient`], [`EchoServer`] | one byte there and back over TCP | the byte; the time of each round trip is reported |
//! | [`DatagramSender`], [`DatagramReceiver`] | numbered UDP datagrams | how many came, were lost, came late |

mod datagram;
mod request;
mod schedule;
mod sequence;
mod stream;

pub use datagram::{DatagramReceiver, DatagramSender};
pub use request::{EchoServer, RequestClient};
pub use schedule::Schedule;
pub use sequence::Sequence;
pub use stream::{Pattern, StreamConfig, StreamReceiver, StreamSender};

use super::Stack;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::IpEndpoint;
use std::net::SocketAddrV4;

/// Something that a guest does with its sockets.
pub trait Workload {
    /// Goes on at `now_ns`, without blocking. Answers whether there was anything to do.
    fn poll(&mut self, now_ns: u64, stack: &mut Stack) -> bool;

    /// When it is to be polled again even if nothing happens in the stack, in nanoseconds, if ever.
    fn due_ns(&self) -> Option<u64> {
        None
    }
}

/// A guest that only answers what the stack answers by itself.
impl Workload for () {
    fn poll(&mut self, _: u64, _: &mut Stack) -> bool {
        false
    }
}

impl<W: Workload + ?Sized> Workload for Box<W> {
    fn poll(&mut self, now_ns: u64, stack: &mut Stack) -> bool {
        (**self).poll(now_ns, stack)
    }

    fn due_ns(&self) -> Option<u64> {
        (**self).due_ns()
    }
}

/// Several at a time.
impl<W: Workload> Workload for Vec<W> {
    fn poll(&mut self, now_ns: u64, stack: &mut Stack) -> bool {
        let mut busy = false;
        for work in self {
            busy |= work.poll(now_ns, stack);
        }
        busy
    }

    fn due_ns(&self) -> Option<u64> {
        self.iter().filter_map(Workload::due_ns).min()
    }
}

/// How far a workload over a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It goes on, or waits for its peer to appear.
    Running,
    /// It did all that it was to do, and so did its peer.
    Done,
    /// The connection broke before that.
    Broken,
}

/// Why a workload cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// The remote address is unspecified, or a port is 0.
    #[error("the address cannot be used")]
    Unaddressable,
    /// A datagram has no room for its number, or does not fit into one packet: smoltcp does not fragment here.
    #[error("a datagram of {bytes} bytes is not between 8 and {max}")]
    DatagramBytes {
        /// What was asked for.
        bytes: usize,
        /// What the MTU has room for.
        max: usize,
    },
}

/// A TCP socket that connects to `remote`.
fn connect(
    stack: &mut Stack,
    mut socket: tcp::Socket<'static>,
    remote: SocketAddrV4,
) -> Result<SocketHandle, WorkloadError> {
    let port = stack.dynamic_port();
    let remote = IpEndpoint::from(remote);
    socket.connect(stack.context(), remote, port).map_err(|_| WorkloadError::Unaddressable)?;
    Ok(stack.sockets.add(socket))
}

/// A TCP socket that waits for a peer on `port`.
fn listen(
    stack: &mut Stack,
    mut socket: tcp::Socket<'static>,
    port: u16,
) -> Result<SocketHandle, WorkloadError> {
    socket.listen(port).map_err(|_| WorkloadError::Unaddressable)?;
    Ok(stack.sockets.add(socket))
}

/// How far a receiving end has come that took all there was, and at `end` no more came: its peer closed, and it does
/// too; or the connection broke.
fn after_receiving(socket: &mut tcp::Socket<'_>, end: Option<tcp::RecvError>) -> Status {
    if end == Some(tcp::RecvError::Finished) {
        socket.close();
        Status::Done
    } else if socket.is_open() {
        Status::Running
    } else {
        Status::Broken
    }
}

fn tcp_socket(rx_bytes: usize, tx_bytes: usize) -> tcp::Socket<'static> {
    tcp::Socket::new(tcp::SocketBuffer::new(vec![0; rx_bytes]), tcp::SocketBuffer::new(vec![0; tx_bytes]))
}
