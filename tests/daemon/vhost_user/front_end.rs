//! A front-end of the tests' own: messages byte by byte, honest or not, on a socket whose every wait has a deadline.

use crate::world::{DEADLINE, eventually};
use rustix::io::dup;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// The one version, and that an acknowledgement is wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

/// One message to be sent.
pub struct Message {
    pub request: u32,
    pub flags: u32,
    /// Bytes of payload, as the header says.
    pub size: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    pub fn new(request: u32, payload: Vec<u8>) -> Message {
        Message { request, flags: VERSION, size: payload.len() as u32, payload, fds: Vec::new() }
    }

    pub fn numbers(request: u32, values: &[u64]) -> Message {
        Message::new(request, values.iter().flat_map(|value| value.to_ne_bytes()).collect())
    }

    pub fn state(request: u32, index: u32, number: u32) -> Message {
        Message::new(request, [index, number].map(u32::to_ne_bytes).concat())
    }

    pub fn with(mut self, fd: impl AsFd) -> Message {
        self.fds.push(dup(fd).unwrap());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let head = [self.request, self.flags, self.size].map(u32::to_ne_bytes);
        [head.as_flattened(), &self.payload].concat()
    }
}

/// A front-end's end of its socket.
pub struct FrontEnd(UnixStream);

impl FrontEnd {
    /// Connects to a port's socket, as soon as that is there.
    pub fn connect(path: &Path) -> FrontEnd {
        FrontEnd::on(eventually("the port's socket is there", || UnixStream::connect(path).ok()))
    }

    /// On a connection that the port made.
    pub fn on(stream: UnixStream) -> FrontEnd {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        FrontEnd(stream)
    }

    /// Sends a message, and fails if the port hung up.
    pub fn try_tell(&self, message: &Message) -> std::io::Result<()> {
        self.send(&message.bytes(), &message.fds)
    }

    pub fn tell(&self, message: &Message) {
        self.try_tell(message).unwrap();
    }

    /// Sends bytes; the file descriptors go with the first of them.
    pub fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        // Small messages go out whole or not at all.
        let sent = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, bytes.len());
        Ok(())
    }

    /// Sends a message and waits until it has been carried out.
    pub fn order(&self, mut message: Message) {
        message.flags |= NEED_REPLY;
        let request = message.request;
        assert_eq!(self.ask(&message).0, 0_u64.to_ne_bytes(), "request {request} was not carried out");
    }

    /// Sends a message and answers what came back: the payload, and the file descriptor that came with it.
    pub fn ask(&self, message: &Message) -> (Vec<u8>, Option<OwnedFd>) {
        self.tell(message);
        let (head, fd) = self.receive(12);
        let words: Vec<u32> =
            head.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words[..2], [message.request, VERSION | 1 << 2], "the reply's request and flags");
        let mut payload = vec![0; words[2] as usize];
        (&self.0).read_exact(&mut payload).unwrap();
        (payload, fd)
    }

    /// As [`FrontEnd::ask`], for a number.
    pub fn ask_number(&self, request: u32) -> u64 {
        u64::from_ne_bytes(self.ask(&Message::new(request, Vec::new())).0.try_into().unwrap())
    }

    fn receive(&self, bytes: usize) -> (Vec<u8>, Option<OwnedFd>) {
        let mut buffer = vec![0; bytes];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = received.expect("an answer").bytes;
        assert!(received > 0, "the port hung up instead of an answer");
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (&self.0).read_exact(&mut buffer[received..]).unwrap();
        (buffer, fd)
    }

    /// Waits until the port has hung up, whatever it says before.
    pub fn wait_until_hung_up(&self) {
        let mut buffer = [0; 4096];
        while !matches!((&self.0).read(&mut buffer), Ok(0)) {}
    }
}
