//! What the devices share of Linux: requests on an interface, socket options, and the parts of a frame
//! as the kernel gathers them.
//!
//! Frames lie in memory that is named by address ([`Segment`]), often a guest's, so reads and writes
//! go through libc, whose calls take addresses. The kernel copies with fault handling: a guest that
//! unmapped its own memory makes such a call fail with `EFAULT`, and nothing worse.

use crate::device::{DeviceFault, PushError};
use crate::mem::Segment;
use core::mem::{MaybeUninit, size_of};
use rustix::io::Errno;
use std::ffi::{c_int, c_short, c_ulong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most parts of one pushed frame: 64 KiB of payload in pages of 4 KiB that start unaligned, the
/// headers in switch memory, and two to spare. A frame in more parts is refused.
pub(crate) const FRAME_PARTS: usize = 68;

/// A place for one part of a frame, filled by [`gather`].
pub(crate) type PartSlot = MaybeUninit<libc::iovec>;

/// Writes `segments` to the front of `into` as the kernel takes them, and answers how many there are.
/// `None` if there are none or `into` is too short.
pub(crate) fn gather(segments: impl IntoIterator<Item = Segment>, into: &mut [PartSlot]) -> Option<usize> {
    let mut used = 0;
    for segment in segments {
        into.get_mut(used)?.write(part(segment));
        used += 1;
    }
    (used > 0).then_some(used)
}

/// A segment as the kernel takes it.
pub(crate) fn part(segment: Segment) -> libc::iovec {
    libc::iovec { iov_base: segment.as_ptr().cast(), iov_len: segment.len() as usize }
}

/// The outcome of a call that answers -1 and an `errno`, or else a count.
pub(crate) fn check(answer: isize) -> Result<usize, Errno> {
    usize::try_from(answer).map_err(|_| last_errno())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// What an error of a frame's write means. The network stack answers most of them for one frame only,
/// and what a guest's header provokes is among those; so whatever is not known to be the device's is
/// laid to the frame. A device that is broken in a way not listed says so when it is next read.
pub(crate) fn push_error(errno: Errno) -> PushError {
    match errno {
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => PushError::Full,
        // A TAP whose interface is down answers EIO, a packet socket ENETDOWN.
        Errno::IO | Errno::NETDOWN => PushError::LinkDown,
        Errno::BADFD | Errno::NODEV | Errno::NXIO | Errno::BADF => PushError::Fault(device_fault(errno)),
        _ => PushError::Refused,
    }
}

/// What an error means that is not about one frame.
pub(crate) fn device_fault(errno: Errno) -> DeviceFault {
    match errno {
        // A TAP's file outlives its interface as EBADFD, a packet socket as ENXIO.
        Errno::BADFD | Errno::NODEV | Errno::NXIO => DeviceFault::Gone,
        errno => DeviceFault::System(errno.raw_os_error()),
    }
}

/// Sets a socket option whose value is a plain C value.
pub(crate) fn set_option<T: Copy>(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    value: &T,
) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes from `value` as it has.
    let answer = unsafe {
        let value: *const c_void = core::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, value, size_of::<T>() as libc::socklen_t)
    };
    check(answer as isize).map(drop)
}

/// An `ifreq`: the request and the answer of everything that is asked of an interface by ioctl.
#[derive(Clone, Copy)]
pub(crate) struct InterfaceRequest(libc::ifreq);

impl InterfaceRequest {
    /// A request about the interface `name`. `None` if no interface can have that name, or if it
    /// would be a template (`tap%d`) that the kernel completes.
    pub(crate) fn named(name: &str) -> Option<InterfaceRequest> {
        let bytes = name.as_bytes();
        let possible = !bytes.is_empty()
            && bytes.len() < libc::IFNAMSIZ
            && !matches!(bytes, b"." | b"..")
            && bytes.iter().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(byte));
        let mut request = InterfaceRequest::unnamed();
        for (to, &from) in request.0.ifr_name.iter_mut().zip(bytes) {
            *to = from as libc::c_char;
        }
        possible.then_some(request)
    }

    /// A request about the interface of this index, for `SIOCGIFNAME`.
    pub(crate) fn indexed(index: c_int) -> InterfaceRequest {
        let mut request = InterfaceRequest::unnamed();
        request.0.ifr_ifru.ifru_ifindex = index;
        request
    }

    fn unnamed() -> InterfaceRequest {
        // SAFETY: an ifreq is plain data, for which zeroes are a value.
        InterfaceRequest(unsafe { core::mem::zeroed() })
    }

    /// Has the kernel carry out `request`, one that takes an `ifreq` (`SIOC[GS]IF*`, `TUNSETIFF`).
    pub(crate) fn ask(&mut self, fd: BorrowedFd<'_>, request: c_ulong) -> Result<(), Errno> {
        // SAFETY: each of those requests reads and writes one ifreq, of which this is an exclusive borrow.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut self.0) } as isize).map(drop)
    }

    /// The number that `SIOCGIFINDEX` or `SIOCGIFMTU` answered with.
    pub(crate) fn number(&self) -> c_int {
        // SAFETY: the union is zeroed or written whole, and every byte pattern is a number.
        unsafe { self.0.ifr_ifru.ifru_ifindex }
    }

    /// Sets the number that `SIOCSIFMTU` takes.
    pub(crate) fn set_number(&mut self, number: c_int) {
        self.0.ifr_ifru.ifru_ifindex = number;
    }

    /// The interface's flags, as `SIOCGIFFLAGS` answered.
    pub(crate) fn flags(&self) -> c_int {
        // SAFETY: as for `number`.
        c_int::from(unsafe { self.0.ifr_ifru.ifru_flags })
    }

    /// Sets the flags that `SIOCSIFFLAGS` and `TUNSETIFF` take, which are 16 bits.
    pub(crate) fn set_flags(&mut self, flags: c_int) {
        self.0.ifr_ifru.ifru_flags = flags as c_short;
    }

    /// The hardware type (`ARPHRD_*`), as `SIOCGIFHWADDR` answered.
    pub(crate) fn hardware(&self) -> u16 {
        // SAFETY: as for `number`.
        unsafe { self.0.ifr_ifru.ifru_hwaddr.sa_family }
    }

    /// Sets the address that `SIOCSIFADDR` and `SIOCSIFNETMASK` take.
    pub(crate) fn set_ipv4(&mut self, address: std::net::Ipv4Addr) {
        // A sockaddr_in: two bytes of port, then the address.
        let mut data = [0; 14];
        for (to, from) in data[2..].iter_mut().zip(address.octets()) {
            *to = from as libc::c_char;
        }
        self.0.ifr_ifru.ifru_addr =
            libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
    }
}

#[cfg(test)]
mod tests {
    //! Names that no interface can have are refused before the kernel sees them, and the errors that a
    //! frame can provoke are never laid to the device.
    use super::*;

    #[test]
    fn impossible_names_make_no_request() {
        for name in ["", ".", "..", "a/b", "a b", "a:b", "tap%d", "sixteen-letters-", "näm"] {
            assert!(InterfaceRequest::named(name).is_none(), "{name:?}");
        }
        for name in ["lo", "fifteen-letters", "eth0.100", "br-lan"] {
            assert!(InterfaceRequest::named(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn only_a_lost_device_is_a_fault() {
        for errno in [Errno::INVAL, Errno::MSGSIZE, Errno::FAULT, Errno::TOOBIG, Errno::PERM] {
            assert_eq!(push_error(errno), PushError::Refused, "{errno}");
        }
        assert_eq!(push_error(Errno::BADFD), PushError::Fault(DeviceFault::Gone));
        assert_eq!(push_error(Errno::NXIO), PushError::Fault(DeviceFault::Gone));
        assert_eq!(push_error(Errno::BADF), PushError::Fault(DeviceFault::System(libc::EBADF)));
    }

    #[test]
    fn a_frame_in_no_parts_or_too_many_is_not_gathered() {
        let segment = Segment::new(core::ptr::dangling_mut(), 1);
        let mut parts = [PartSlot::uninit(); FRAME_PARTS];
        assert_eq!(gather([], &mut parts), None);
        assert_eq!(gather([segment; FRAME_PARTS], &mut parts), Some(FRAME_PARTS));
        assert_eq!(gather([segment; FRAME_PARTS + 1], &mut parts), None);
    }
}
