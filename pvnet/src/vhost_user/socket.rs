//! Messages on a Unix stream socket, without ever blocking: a message may arrive a byte at a time, and a
//! front-end may never read what is answered.

use super::message::{Fds, HEADER_BYTES, Header, MAX_FDS, Message, MessageFault, Reply};
use arrayvec::ArrayVec;
use core::mem::MaybeUninit;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Answers that may wait for the front-end to read them. It has to read one before it can want the next, but for
/// those that it asked for in advance.
const MAX_WAITING: usize = 16;

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each field is named in the message")]
pub enum SocketFault {
    /// The front-end went, between two messages.
    #[error("the front-end closed its connection")]
    Closed,
    /// It went in the middle of one.
    #[error("the front-end closed its connection {have} bytes into a message")]
    ClosedWithin { have: usize },
    /// More file descriptors than a message may have.
    #[error("more than {MAX_FDS} file descriptors with a message")]
    TooManyFds,
    /// This process has as many open as it may, and was not given all that came.
    #[error("file descriptors of a message were lost, as too many are open")]
    FdsLost,
    /// It asks and does not listen.
    #[error("{MAX_WAITING} answers that the front-end does not read")]
    Unread,
    /// The message is none.
    #[error(transparent)]
    Message(#[from] MessageFault),
    /// The socket's own trouble.
    #[error("vhost-user socket: {0}")]
    System(Errno),
}

/// One front-end's connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// What has arrived of the header.
    head: ArrayVec<u8, HEADER_BYTES>,
    /// The message behind it, with what has arrived of its payload.
    message: Option<Message>,
    fds: Fds,
    waiting: VecDeque<Reply>,
    /// Bytes of the first of those that went out.
    sent: usize,
}

impl Connection {
    /// The connection on a connected stream socket. The socket need not be non-blocking.
    pub fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            head: ArrayVec::new(),
            message: None,
            fds: Fds::new(),
            waiting: VecDeque::new(),
            sent: 0,
        }
    }

    /// The next message and its file descriptors, or `None` if it has not arrived whole.
    ///
    /// No byte is read beyond the message's end, so that file descriptors are known to be its own: the kernel
    /// hands them out with the bytes that they were sent with.
    pub fn recv(&mut self) -> Result<Option<(Message, Fds)>, SocketFault> {
        loop {
            let missing = match &self.message {
                None => HEADER_BYTES - self.head.len(),
                Some(message) => message.header.size as usize - message.payload.len(),
            };
            if missing == 0
                && let Some(message) = self.message.take()
            {
                self.head.clear();
                return Ok(Some((message, core::mem::take(&mut self.fds))));
            }
            if missing == 0 {
                let head = self.head.as_slice().try_into().expect("the header is whole");
                self.message = Some(Message { header: Header::parse(head)?, payload: ArrayVec::new() });
            } else if !self.read(missing)? {
                return Ok(None);
            }
        }
    }

    /// Reads at most `missing` bytes of the header or of the payload. Answers whether there were any.
    fn read(&mut self, missing: usize) -> Result<bool, SocketFault> {
        let mut bytes = [0; super::message::MAX_PAYLOAD_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut into = [IoSliceMut::new(&mut bytes[..missing])];
        let received = loop {
            match recvmsg(&self.socket, &mut into, &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(self.closed()),
                Err(errno) => return Err(SocketFault::System(errno)),
                Ok(received) => break received,
            }
        };
        // All are taken, so that what is not kept is closed.
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let mut too_many = false;
        for fd in rights.flatten() {
            too_many |= self.fds.try_push(fd).is_err();
        }
        let cut = received.flags.contains(ReturnFlags::CTRUNC);
        if too_many || cut && self.fds.is_full() {
            return Err(SocketFault::TooManyFds);
        }
        if cut {
            return Err(SocketFault::FdsLost);
        }
        if received.bytes == 0 {
            return Err(self.closed());
        }
        let arrived = &bytes[..received.bytes];
        match &mut self.message {
            None => self.head.try_extend_from_slice(arrived),
            Some(message) => message.payload.try_extend_from_slice(arrived),
        }
        .expect("no more is read than is missing");
        Ok(true)
    }

    fn closed(&self) -> SocketFault {
        let have = self.head.len() + self.message.as_ref().map_or(0, |message| message.payload.len());
        if have == 0 { SocketFault::Closed } else { SocketFault::ClosedWithin { have } }
    }

    /// Answers, or has the answer wait until the front-end reads.
    pub fn send(&mut self, reply: Reply) -> Result<(), SocketFault> {
        if self.waiting.len() == MAX_WAITING {
            return Err(SocketFault::Unread);
        }
        self.waiting.push_back(reply);
        self.flush()
    }

    /// Whether answers wait for room in the socket: then [`Connection::flush`] is due when it can be written.
    pub fn wants_to_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes what waits, as far as there is room.
    pub fn flush(&mut self) -> Result<(), SocketFault> {
        while let Some(reply) = self.waiting.front() {
            let rest = &reply.bytes[self.sent..];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // A file descriptor goes with the first byte.
            let fd = reply.fd.as_ref().filter(|_| self.sent == 0).map(|fd| [fd.as_fd()]);
            if let Some(fd) = &fd {
                let fits = control.push(SendAncillaryMessage::ScmRights(fd));
                debug_assert!(fits, "there is room for one");
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(bytes) => {
                    self.sent += bytes;
                    if self.sent == reply.bytes.len() {
                        self.waiting.pop_front();
                        self.sent = 0;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(self.closed()),
                Err(errno) => return Err(SocketFault::System(errno)),
            }
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
