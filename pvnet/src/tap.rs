//! A TAP: an Ethernet interface of the kernel whose other end is a file.
//!
//! What the kernel sends out of the interface is read here, one frame a read(2), and what is written
//! here the kernel receives. Header and offloads are those of a VIRTIO 1.x device (12 bytes, little
//! endian), so a segmentation packet crosses between a VM and the kernel whole, and no header is
//! rewritten on the way.
//!
//! A TAP that another program has open (a VMM, say) is not opened a second time but attached from the
//! interface's side, see [`crate::packet`].
//!
//! | the kernel answers | when | here |
//! | --- | --- | --- |
//! | `EAGAIN` to a read | nothing waits, or the interface is down | no frame |
//! | `EINVAL` to a read | the frame has a segmentation that VIRTIO cannot say; it is discarded | the next frame |
//! | `EAGAIN`, `ENOBUFS`, `ENOMEM` to a write | its memory is short | [`PushError::Full`] |
//! | `EIO` to a write | the interface is down | [`PushError::LinkDown`] |
//! | `EBADFD` to either | the interface was deleted | [`DeviceFault::Gone`] |
//! | `EINVAL`, `EMSGSIZE`, `EFAULT` to a write | header, length or memory are impossible | [`PushError::Refused`] |

use crate::device::{Device, DeviceFault, PullSlot, PushError, PushFrame};
use crate::header::{Offloads, VNET_HDR_BYTES};
use crate::sys::{self, FRAME_PARTS, InterfaceRequest, PartSlot};
use rustix::io::{Errno, retry_on_intr};
use std::ffi::{c_int, c_uint, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Why a TAP cannot be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("{0:?} cannot name an interface: give 1 to 15 visible characters, none of them '/', ':' or '%'")]
    Name(String),
    /// The kernel offers no TAPs here.
    #[error("/dev/net/tun cannot be opened: load the module `tun`, or give the container that device")]
    NoDriver(#[source] io::Error),
    /// The process may not make or open this TAP.
    #[error(
        "not permitted to open TAP {0}: run as root or with CAP_NET_ADMIN, or let root give it to you \
         (`ip tuntap add dev {0} mode tap user USER`)"
    )]
    NotPermitted(String),
    /// Another open file holds the TAP.
    #[error(
        "TAP {0} is held by another process: stop that one, choose another name, or attach to the \
         interface with a packet socket"
    )]
    Busy(String),
    /// The interface of this name is not a TAP.
    #[error(
        "interface {0} exists and is not a TAP: choose another name, or attach to it with a packet socket"
    )]
    NotTap(String),
    /// A step that should not fail did; kernels before 3.17 lack some.
    #[error("TAP {name}: {step} failed")]
    Setup {
        /// The interface.
        name: String,
        /// The ioctl.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One queue of a TAP, open.
///
/// The file is what a TAP belongs to: it works from every thread, whichever network namespace the
/// interface was opened in or moved to. A TAP that [`Tap::open`] created vanishes with the file.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    offloads: Offloads,
}

impl Tap {
    /// Opens the TAP `name` of the calling thread's network namespace, or creates it there. It is not
    /// brought up: whose interface it is decides that.
    ///
    /// A TAP that was made persistent (`ip tuntap add`) is taken as it is, with or without
    /// `multi_queue`. One with `multi_queue` that another process uses too is shared with it: the
    /// kernel then spreads flows over both, and has no word for it.
    pub fn open(name: &str) -> Result<Tap, TapError> {
        let mut request = InterfaceRequest::named(name).ok_or_else(|| TapError::Name(name.into()))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => TapError::NotPermitted(name.into()),
            _ => TapError::NoDriver(error),
        })?;

        let mut attach = |queues: c_int| {
            request.set_flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues);
            request.ask(file.as_fd(), libc::TUNSETIFF as c_ulong)
        };
        // The kernel says EINVAL when an existing TAP was made with the other choice of multi_queue.
        let attached = match attach(0) {
            Err(Errno::INVAL) => attach(libc::IFF_MULTI_QUEUE),
            attached => attached,
        };
        attached.map_err(|errno| match errno {
            Errno::PERM => TapError::NotPermitted(name.into()),
            // E2BIG: every queue that a TAP can have is open.
            Errno::BUSY | Errno::TOOBIG => TapError::Busy(name.into()),
            Errno::INVAL => TapError::NotTap(name.into()),
            errno => TapError::Setup { name: name.into(), step: "TUNSETIFF", source: errno.into() },
        })?;

        let set = |step, request: c_ulong, value: c_int| {
            // SAFETY: each of the requests below reads one int.
            let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw const value) };
            sys::check(answer as isize).map_err(|errno| TapError::Setup {
                name: name.into(),
                step,
                source: errno.into(),
            })
        };
        set("TUNSETVNETHDRSZ", libc::TUNSETVNETHDRSZ as c_ulong, VNET_HDR_BYTES as c_int)?;
        set("TUNSETVNETLE", libc::TUNSETVNETLE as c_ulong, 1)?;

        let offloads = negotiate(&file);
        Ok(Tap { file, name: name.into(), offloads })
    }

    /// The interface's name, as it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes one frame straight from where its parts lie, by way of `parts`.
    fn write(&self, frame: &PushFrame<'_>, parts: &mut [PartSlot]) -> Result<(), PushError> {
        let count = sys::gather(frame.parts.iter().copied(), parts).ok_or(PushError::Refused)?;
        // SAFETY: `gather` filled that many parts, and by the device's contract the switch vouches for
        // the memory that they name; the kernel only reads it.
        let write = || unsafe { libc::writev(self.file.as_raw_fd(), parts.as_ptr().cast(), count as c_int) };
        retry_on_intr(|| sys::check(write())).map(drop).map_err(sys::push_error)
    }
}

/// Has the kernel hand over frames unfinished, as far as it can, and answers how far that is. What it
/// hands over it also takes: the header's vocabulary grew in both directions at once.
fn negotiate(file: &File) -> Offloads {
    const TCP: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6; // Linux 6.2; both or neither
    let tcp = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
    for (flags, offloads) in [(TCP | UDP, tcp | Offloads::USO), (TCP, tcp)] {
        // SAFETY: TUNSETOFFLOAD takes its flags by value and touches no memory.
        let answer = unsafe {
            libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as c_ulong as _, c_ulong::from(flags))
        };
        if answer == 0 {
            return offloads;
        }
    }
    Offloads::NONE
}

impl Device for Tap {
    fn pull(&self, slots: &mut [PullSlot]) -> Result<usize, DeviceFault> {
        let mut filled = 0;
        while let Some(slot) = slots.get_mut(filled) {
            let into = sys::part(slot.buffer);
            // SAFETY: by the device's contract the slot's buffer is the switch's own to be written.
            let read = || unsafe { libc::read(self.file.as_raw_fd(), into.iov_base, into.iov_len) };
            match retry_on_intr(|| sys::check(read())) {
                Ok(bytes) => {
                    slot.bytes = bytes as u32;
                    filled += 1;
                }
                Err(Errno::AGAIN) => break,
                // The kernel has discarded that frame, so this ends with its queue.
                Err(Errno::INVAL) => {}
                Err(errno) if filled == 0 => return Err(sys::device_fault(errno)),
                // Whatever it is lasts: the next pull meets it again, and has nothing to lose by it.
                Err(_) => break,
            }
        }
        Ok(filled)
    }

    fn push(&self, frames: &[PushFrame<'_>], outcomes: &mut [Result<(), PushError>]) {
        let mut parts = [PartSlot::uninit(); FRAME_PARTS];
        let mut outcomes = outcomes.iter_mut();
        for (frame, outcome) in frames.iter().zip(&mut outcomes) {
            *outcome = self.write(frame, &mut parts);
            if let Err(error @ (PushError::LinkDown | PushError::Fault(_))) = *outcome {
                // The rest would fare the same.
                outcomes.for_each(|later| *later = Err(error));
                return;
            }
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}

impl AsFd for Tap {
    /// The file, for waiting on: readable when a frame waits, in error when the interface is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
