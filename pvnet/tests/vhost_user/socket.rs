//! The connection: messages in pieces, connections that end anywhere, front-ends that send rubbish or do not read.

use crate::OpenFds;
use crate::vmm::*;
use hyper_switch_pvnet::vhost_user::features::Features;
use hyper_switch_pvnet::vhost_user::message::MessageFault;
use hyper_switch_pvnet::vhost_user::session::{Effect, Offer, Session, SessionFault};
use hyper_switch_pvnet::vhost_user::socket::{Connection, SocketFault};
use proptest::prelude::*;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

const FEATURES: u64 = Features::VERSION_1.0 | Features::PROTOCOL_FEATURES.0;

/// How a session ended.
#[derive(Debug, PartialEq)]
enum End {
    Socket(SocketFault),
    Session(SessionFault),
}

/// A switch with one front-end.
struct Switch {
    connection: Connection,
    session: Session,
}

impl Switch {
    /// And the front-end's end.
    fn new() -> (Switch, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session = Session::new(Offer::default()).unwrap();
        (Switch { connection: Connection::new(ours.into()), session }, theirs)
    }

    /// Does all that has arrived.
    fn run(&mut self) -> Result<(), End> {
        while let Some((message, fds)) = self.connection.recv().map_err(End::Socket)? {
            let handled = self.session.handle(&message, fds).map_err(End::Session)?;
            let reply = match handled.effect {
                Effect::Stop => self.session.stopped([(0, 0), (1, 0)]),
                _ => handled.reply,
            };
            reply.map_or(Ok(()), |reply| self.connection.send(reply)).map_err(End::Socket)?;
        }
        Ok(())
    }
}

/// Sends bytes, with file descriptors at the first of them. Answers how many went.
fn send(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> Result<usize, Errno> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_message(socket: &UnixStream, sent: &Sent) {
    let bytes = sent.bytes();
    assert_eq!(send(socket, &bytes, &sent.fds), Ok(bytes.len()));
}

#[test]
fn a_handshake_may_arrive_a_byte_at_a_time() {
    let fds = OpenFds::count();
    let vmm = Vmm::new();
    let (mut switch, socket) = Switch::new();
    for sent in vmm.handshake(FEATURES) {
        for (at, byte) in sent.bytes().into_iter().enumerate() {
            send(&socket, &[byte], if at == 0 { &sent.fds } else { &[] }).unwrap();
            switch.run().unwrap();
        }
    }
    assert_eq!(switch.session.lanes().len(), 1);
    drop((vmm, switch, socket));
    fds.assert_none_left();
}

#[test]
fn a_connection_may_end_at_every_byte() {
    let fds = OpenFds::count();
    let bytes: usize = Vmm::new().handshake(FEATURES).iter().map(|sent| sent.bytes().len()).sum();
    for end in 0..=bytes {
        let (mut switch, socket) = Switch::new();
        let mut left = end;
        for sent in Vmm::new().handshake(FEATURES) {
            let bytes = sent.bytes();
            let first = bytes.len().min(left);
            if first > 0 {
                send(&socket, &bytes[..first], &sent.fds).unwrap();
            }
            if first < bytes.len() {
                break;
            }
            left -= first;
        }
        drop(socket);
        // What is left begins a message that has no end, unless the last was whole.
        let fault = if left == 0 || end == bytes {
            SocketFault::Closed
        } else {
            SocketFault::ClosedWithin { have: left }
        };
        assert_eq!(switch.run(), Err(End::Socket(fault)), "after {end} bytes");
        drop(switch);
        fds.assert_none_left();
    }
}

#[test]
fn a_header_is_checked_before_its_payload_is_waited_for() {
    let _fds = OpenFds::count();
    let header = |flags: u32, size: u32| [GET_FEATURES, flags, size].map(u32::to_ne_bytes).concat();
    let request = GET_FEATURES;
    for (bytes, fault) in [
        (header(1, 269), MessageFault::PayloadBytes { request, bytes: 269 }),
        (header(1, u32::MAX), MessageFault::PayloadBytes { request, bytes: u32::MAX as usize }),
        (header(2, 0), MessageFault::Version { request, flags: 2 }),
        (header(5, 0), MessageFault::UnaskedReply { request }),
    ] {
        let (mut switch, socket) = Switch::new();
        send(&socket, &bytes, &[]).unwrap();
        assert_eq!(switch.run(), Err(End::Socket(SocketFault::Message(fault))));
    }
}

#[test]
fn more_file_descriptors_than_a_message_may_have_are_closed() {
    let fds = OpenFds::count();
    for (first, second) in [(9, 0), (8, 1), (16, 16)] {
        let (mut switch, socket) = Switch::new();
        let events = |count| (0..count).map(|_| event()).collect::<Vec<_>>();
        send(&socket, &[1, 0, 0, 0], &events(first)).unwrap();
        if second > 0 {
            send(&socket, &[1, 0, 0, 0], &events(second)).unwrap();
        }
        assert_eq!(switch.run(), Err(End::Socket(SocketFault::TooManyFds)));
        drop((switch, socket));
        fds.assert_none_left();
    }
}

#[test]
fn file_descriptors_that_this_process_may_not_have_are_missed() {
    let fds = OpenFds::count();
    let (mut switch, socket) = Switch::new();
    send(&socket, &[1, 0, 0, 0], &[event(), event()]).unwrap();
    // All numbers below the next are taken, so that there is one left.
    let next = event().as_raw_fd() as u64;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(next + 1), ..limit }).unwrap();
    let end = switch.run();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(end, Err(End::Socket(SocketFault::FdsLost)));
    drop((switch, socket));
    fds.assert_none_left();
}

#[test]
fn a_front_end_that_does_not_read_is_left() {
    let fds = OpenFds::count();
    let (mut switch, socket) = Switch::new();
    let question = Sent::new(GET_FEATURES, []);
    let end = loop {
        send_message(&socket, &question);
        if let Err(end) = switch.run() {
            break end;
        }
    };
    assert_eq!(end, End::Socket(SocketFault::Unread));
    assert!(switch.connection.wants_to_write());
    drop((switch, socket));
    fds.assert_none_left();
}

#[test]
fn answers_that_waited_arrive_whole_and_in_order() {
    use std::io::Read;
    let _fds = OpenFds::count();
    let (mut switch, mut socket) = Switch::new();
    let mut asked = 0;
    while !switch.connection.wants_to_write() {
        send_message(&socket, &Sent::state(GET_VRING_BASE, asked % 2, 0));
        switch.run().unwrap();
        asked += 1;
    }
    for answer in 0..asked {
        let mut reply = [0; 20];
        socket.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], [(answer % 2).to_ne_bytes(), [0; 4]].concat());
        switch.connection.flush().unwrap();
    }
    assert!(!switch.connection.wants_to_write());
}

/// Rubbish in pieces, or messages that have a chance of being carried out.
fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, u8)>> {
    let message = (0_u32..45, 0_u32..16, prop::collection::vec(any::<u8>(), 0..60), any::<bool>()).prop_map(
        |(request, flags, mut payload, number)| {
            if number {
                payload.resize(8, 0);
                payload[1..].fill(0);
            }
            let sent = Sent { request, flags: flags & !3 & !4 | 1, payload, fds: Vec::new() };
            sent.bytes()
        },
    );
    let rubbish = prop::collection::vec(any::<u8>(), 1..80);
    prop::collection::vec(
        (prop_oneof![8 => message, 1 => rubbish], prop_oneof![3 => Just(0), 2 => 1..4_u8]),
        1..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_do_harm(pieces in pieces(), from in 0_usize..17) {
        let fds = OpenFds::count();
        let (mut switch, socket) = Switch::new();
        // Into a session as it is after some of a handshake.
        for sent in Vmm::new().handshake(FEATURES).iter().take(from) {
            send_message(&socket, sent);
        }
        for (bytes, count) in &pieces {
            let sent: Vec<_> = (0..*count).map(|at| if at % 2 == 0 { event() } else { memory(4096) }).collect();
            send(&socket, bytes, &sent).unwrap();
            if switch.run().is_err() {
                break;
            }
        }
        drop((switch, socket));
        fds.assert_none_left();
    }
}
