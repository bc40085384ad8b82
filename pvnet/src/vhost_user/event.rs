//! An eventfd of the front-end's: a kick (VM to switch), a call (switch to VM) or word of an error.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Why a file descriptor cannot be waited for or signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventFault {
    /// Whatever else it is, reading or writing it might block the switch for ever.
    #[error("a file descriptor for events is no eventfd")]
    NotAnEventfd,
    /// The system would not say what it is.
    #[error("a file descriptor for events: {0}")]
    System(Errno),
}

/// The offset by which `preadv2` reads what has none.
const NO_OFFSET: u64 = u64::MAX;
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// An eventfd on which nobody here waits, whatever its other owners do with it.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// An eventfd of our own.
    pub fn new() -> Result<EventFd, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(EventFd)
    }

    /// The eventfd that a front-end sent, which is made not to block: its waiting would be ours.
    ///
    /// The file description is the front-end's as well, and it may make it block again. So that is not relied upon.
    pub fn adopt(fd: OwnedFd) -> Result<EventFd, EventFault> {
        let kind = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
        if kind.map_err(EventFault::System)?.as_bytes() != b"anon_inode:[eventfd]" {
            return Err(EventFault::NotAnEventfd);
        }
        let flags = fcntl_getfl(&fd).map_err(EventFault::System)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(EventFault::System)?;
        Ok(EventFd(fd))
    }

    /// Wakes whoever waits for it. A counter that is full has been signalled and not yet looked at, and is left alone.
    ///
    /// Linux has no write to an eventfd that does not block unless the file description says so. One that was made to
    /// block, and is filled in the moment between the look and the write, holds up the caller until it is read.
    pub fn signal(&self) {
        let mut room = [PollFd::new(&self.0, PollFlags::OUT)];
        if poll(&mut room, Some(&NO_TIME)) == Ok(1) {
            // There is nothing to be done about a front-end that broke its own eventfd.
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }

    /// Forgets signals until now, and says whether there were any.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        let into = &mut [IoSliceMut::new(&mut count)];
        preadv2(&self.0, into, NO_OFFSET, ReadWriteFlags::NOWAIT).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    //! Signals arrive, and nothing but an eventfd is taken for one.
    use super::*;

    #[test]
    fn only_an_eventfd_is_adopted() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for fd in [reader, writer, std::fs::File::open("/dev/null").unwrap().into()] {
            assert_eq!(EventFd::adopt(fd).unwrap_err(), EventFault::NotAnEventfd);
        }
        let blocking = eventfd(0, EventfdFlags::empty()).unwrap();
        let event = EventFd::adopt(blocking).unwrap();
        assert!(!event.drain());
        event.signal();
        event.signal();
        assert!(event.drain());
        assert!(!event.drain());
    }

    #[test]
    fn nobody_waits_for_one_that_blocks() {
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let event = EventFd::adopt(theirs.try_clone().unwrap()).unwrap();
        let flags = fcntl_getfl(&theirs).unwrap();
        fcntl_setfl(&theirs, flags & !OFlags::NONBLOCK).unwrap();
        assert!(!event.drain(), "there is nothing, and it is not waited for");
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal();
        assert!(event.drain() && !event.drain());
    }
}
