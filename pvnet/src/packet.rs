//! A packet socket: an Ethernet interface that someone else owns, taken over from the outside.
//!
//! This is how a TAP that QEMU, Firecracker or Cloud Hypervisor opened itself becomes a port, and so
//! do a veth and a NIC. The switch sees what the interface receives (for a VMM's TAP: what its guest
//! transmits) and sends out of the interface. Give the interface no address and no bridge, or the
//! kernel's own stack answers the same frames too; and turn off a NIC's LRO (`ethtool -K NIC lro off`),
//! as for any forwarding.
//!
//! Three things differ from a TAP's file, and all three stay in this file:
//! - Before Linux 6.5 the header has 10 bytes (no `num_buffers`); frames carry 12 here all the same.
//! - The kernel takes the outermost VLAN tag out of a frame that it receives and tells of it beside
//!   the frame. It is put back, and what the header says of offsets moves with it.
//! - An interface that goes down and one that is removed look alike to the socket (`ENETDOWN`). The
//!   former is a link that is down, the latter a device that is gone; see `PacketSocket::is_removed`.

use crate::device::{Device, DeviceFault, PullSlot, PushError, PushFrame};
use crate::header::{Offloads, VNET_HDR_BYTES, VnetHdr};
use crate::mem::Segment;
use crate::sys::{self, FRAME_PARTS, InterfaceRequest, PartSlot};
use core::mem::{MaybeUninit, size_of};
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::ffi::{c_int, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

// The kernel reads and writes this header in its own byte order; VIRTIO 1.x is little endian.
const _: () = assert!(cfg!(target_endian = "little"), "packet sockets are for little-endian machines");

/// Frames that one system call moves at most.
const BATCH_FRAMES: usize = 32;
/// Parts of frames that one system call sends at most.
const BATCH_PARTS: usize = 2 * FRAME_PARTS;
/// Memory that frames may wait in, for each direction. The kernel charges a 64 KiB frame about twice.
const SOCKET_BUFFER_BYTES: c_int = 8 << 20;
/// A `virtio_net_hdr` without `num_buffers` (VIRTIO 0.9.5, and what `PACKET_VNET_HDR` means).
const LEGACY_HDR_BYTES: u32 = 10;
/// Destination and source address: what a VLAN tag stands behind (IEEE 802.1Q, clause 9.4).
const MACS_BYTES: usize = 12;
/// A VLAN tag: its protocol and its control information.
const TAG_BYTES: usize = 4;
/// `ETH_P_8021Q`: the protocol of a tag of which the kernel does not tell it.
const TPID_8021Q: u16 = 0x8100;

/// Why an interface cannot be attached, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// There is no such interface in this network namespace.
    #[error("there is no interface {0:?} in this network namespace: `ip link` lists those that are")]
    NoInterface(String),
    /// The process may not open packet sockets.
    #[error("not permitted to attach to {0}: run as root or with CAP_NET_RAW")]
    NotPermitted(String),
    /// The interface carries something other than Ethernet frames, or is the loopback.
    #[error("interface {name} is no Ethernet interface (hardware type {hardware}): choose another")]
    NotEthernet {
        /// The interface.
        name: String,
        /// Its hardware type (`ARPHRD_*`).
        hardware: u16,
    },
    /// A step that should not fail did; kernels before 4.20 lack some.
    #[error("packet socket on {name}: {step} failed")]
    Setup {
        /// The interface.
        name: String,
        /// The system call or the socket option.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An interface, attached. It is promiscuous while this lives and otherwise left as it is.
///
/// A pushed frame that is not to be segmented may be as long as the interface's MTU, its Ethernet
/// header and one 802.1Q tag; a longer one is [`PushError::Refused`], as is one with an 802.1ad tag that
/// exceeds the MTU. Frames of two tags want an MTU that leaves room for them.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    index: c_int,
    /// 12, or 10 where the kernel has no `PACKET_VNET_HDR_SZ`.
    header_bytes: u32,
    offloads: Offloads,
    gone: AtomicBool,
}

impl PacketSocket {
    /// Attaches to the Ethernet interface `name` of the calling thread's network namespace, up or not.
    /// Frames that others on this machine send out of it are not seen.
    pub fn attach(name: &str) -> Result<PacketSocket, PacketError> {
        let failed =
            |step| move |errno: Errno| PacketError::Setup { name: name.into(), step, source: errno.into() };
        // Protocol 0 receives nothing, so no other interface's frames come in before the bind.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).map_err(
                |errno| match errno {
                    Errno::PERM | Errno::ACCESS => PacketError::NotPermitted(name.into()),
                    errno => failed("socket")(errno),
                },
            )?;

        let no_interface = || PacketError::NoInterface(name.into());
        let mut request = InterfaceRequest::named(name).ok_or_else(no_interface)?;
        request.ask(socket.as_fd(), libc::SIOCGIFHWADDR as c_ulong).map_err(|_| no_interface())?;
        if request.hardware() != libc::ARPHRD_ETHER {
            return Err(PacketError::NotEthernet { name: name.into(), hardware: request.hardware() });
        }
        request.ask(socket.as_fd(), libc::SIOCGIFINDEX as c_ulong).map_err(|_| no_interface())?;
        let index = request.number();

        let set = |option, value: c_int| sys::set_option(socket.as_fd(), libc::SOL_PACKET, option, &value);
        // The kernels that let the header's size be chosen (6.5) also know UDP segmentation (6.2).
        let everything = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
        let (header_bytes, offloads) = match set(libc::PACKET_VNET_HDR_SZ, VNET_HDR_BYTES as c_int) {
            Ok(()) => (VNET_HDR_BYTES as u32, everything | Offloads::USO),
            Err(_) => {
                set(libc::PACKET_VNET_HDR, 1).map_err(failed("PACKET_VNET_HDR"))?;
                (LEGACY_HDR_BYTES, everything)
            }
        };
        set(libc::PACKET_AUXDATA, 1).map_err(failed("PACKET_AUXDATA"))?;
        set(libc::PACKET_IGNORE_OUTGOING, 1).map_err(failed("PACKET_IGNORE_OUTGOING"))?;
        for (force, ask) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            // More than the system's bound takes CAP_NET_ADMIN; without it, as much as is allowed.
            sys::set_option(socket.as_fd(), libc::SOL_SOCKET, force, &SOCKET_BUFFER_BYTES)
                .or_else(|_| sys::set_option(socket.as_fd(), libc::SOL_SOCKET, ask, &SOCKET_BUFFER_BYTES))
                .map_err(failed("SO_RCVBUF, SO_SNDBUF"))?;
        }

        let attached = PacketSocket { socket, index, header_bytes, offloads, gone: AtomicBool::new(false) };
        attached.promiscuous(libc::PACKET_ADD_MEMBERSHIP).map_err(failed("PACKET_MR_PROMISC"))?;
        attached.bind().map_err(failed("bind"))?;
        Ok(attached)
    }

    /// Whether the interface is up and has a carrier. Fails once the interface is gone.
    pub fn link_up(&self) -> io::Result<bool> {
        // By index, as an interface may be renamed.
        let mut request = InterfaceRequest::indexed(self.index);
        request.ask(self.as_fd(), libc::SIOCGIFNAME as c_ulong)?;
        request.ask(self.as_fd(), libc::SIOCGIFFLAGS as c_ulong)?;
        let up = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(request.flags() & up == up)
    }

    fn bind(&self) -> Result<(), Errno> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: self.index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads as many bytes as the address has.
        let answer = unsafe { libc::bind(self.socket.as_raw_fd(), ptr::from_ref(&address).cast(), bytes) };
        sys::check(answer as isize).map(drop)
    }

    /// Adds or drops (`PACKET_{ADD,DROP}_MEMBERSHIP`) a count of the interface's promiscuity.
    fn promiscuous(&self, option: c_int) -> Result<(), Errno> {
        let membership = libc::packet_mreq {
            mr_ifindex: self.index,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        sys::set_option(self.as_fd(), libc::SOL_PACKET, option, &membership)
    }

    /// Whether the interface is removed, asked when the socket says that the interface is down.
    ///
    /// A removal first takes the interface down, and the socket tells of that alone: who looks at the
    /// interface then may still see it, and nothing wakes him when it is gone. But the kernel does both
    /// under one lock (RTNL), which a membership takes too; so this question waits the removal out.
    fn is_removed(&self) -> bool {
        match self.promiscuous(libc::PACKET_ADD_MEMBERSHIP) {
            Ok(()) => {
                // Cannot fail: it takes back the count just added.
                let _ = self.promiscuous(libc::PACKET_DROP_MEMBERSHIP);
                false
            }
            Err(errno) => errno == Errno::NODEV,
        }
    }

    /// Receives into the first of `slots`, as many as one system call takes. Answers how many of them
    /// hold a frame, those first, and whether there may be more.
    fn receive(&self, slots: &mut [PullSlot]) -> Result<(usize, bool), Errno> {
        let count = slots.len().min(BATCH_FRAMES);
        let mut parts = [[PartSlot::uninit(); 2]; BATCH_FRAMES];
        let mut controls = [MaybeUninit::<Control>::uninit(); BATCH_FRAMES];
        let mut messages = [MaybeUninit::<libc::mmsghdr>::uninit(); BATCH_FRAMES];
        for (((slot, parts), control), message) in
            slots.iter().zip(&mut parts).zip(&mut controls).zip(&mut messages)
        {
            let (header, frame) = split_header(slot.buffer, self.header_bytes);
            parts[0].write(sys::part(header));
            // Room is left for a tag to be put back.
            parts[1].write(sys::part(frame.first(frame.len().saturating_sub(TAG_BYTES as u32))));
            let message = message.write(message_of(parts));
            message.msg_hdr.msg_control = control.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: the first `count` messages were written above and name buffers that are the switch's
        // own to be written, by the device's contract, and arrays that outlive the call.
        let mut receive = || unsafe {
            let first = messages.as_mut_ptr().cast();
            libc::recvmmsg(self.socket.as_raw_fd(), first, count as c_uint, 0, ptr::null_mut())
        };
        let received = retry_on_intr(|| sys::check(receive() as isize))?;

        let mut filled = 0;
        for at in 0..received {
            // SAFETY: the kernel went on from the values that were written above.
            let message = unsafe { messages[at].assume_init_ref() };
            let bytes = (message.msg_len + VNET_HDR_BYTES as u32).saturating_sub(self.header_bytes);
            // A frame longer than any that the switch carries (BIG TCP) came cut off, and one without
            // addresses is none: neither is worth a slot.
            let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            if !whole || (bytes as usize) < VNET_HDR_BYTES + MACS_BYTES {
                continue;
            }
            slots.swap(filled, at);
            let slot = &mut slots[filled];
            slot.bytes = bytes;
            if self.header_bytes == LEGACY_HDR_BYTES {
                // SAFETY: the slot has room for the header, of which the kernel wrote all but this.
                unsafe { slot.buffer.skip(LEGACY_HDR_BYTES).write(&[0; 2]) };
            }
            // SAFETY: the control message was initialised as far as `msg_controllen` tells.
            if let Some(tag) = unsafe { Control::tag(&controls[at], &message.msg_hdr) } {
                // SAFETY: the frame has its addresses, and room for the tag was kept.
                unsafe { restore_tag(slot, tag) };
            }
            filled += 1;
        }
        Ok((filled, received == count))
    }

    /// Sends the first of `frames`, as many as fit one system call, and answers how many went. The
    /// error is the first frame's.
    fn send(&self, frames: &[PushFrame<'_>]) -> Result<usize, PushError> {
        let mut parts = [PartSlot::uninit(); BATCH_PARTS];
        let mut messages = [MaybeUninit::<libc::mmsghdr>::uninit(); BATCH_FRAMES];
        let mut free = &mut parts[..];
        let mut count = 0;
        for (frame, message) in frames.iter().zip(&mut messages) {
            let Some(used) = self.gather(frame, free) else { break };
            let (own, rest) = free.split_at_mut(used);
            message.write(message_of(own));
            free = rest;
            count += 1;
        }
        if count == 0 {
            return Err(PushError::Refused);
        }
        // SAFETY: the first `count` messages were written above, and name arrays that outlive the call
        // and memory that the switch vouches for by the device's contract; the kernel only reads it.
        let mut send = || unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr().cast(), count as c_uint, 0)
        };
        retry_on_intr(|| sys::check(send() as isize)).map_err(sys::push_error)
    }

    /// The parts of a frame as the socket takes them, header first.
    fn gather(&self, frame: &PushFrame<'_>, into: &mut [PartSlot]) -> Option<usize> {
        let bound = into.len().min(FRAME_PARTS);
        let (&first, rest) = frame.parts.split_first()?;
        let (header, behind) = match self.header_bytes {
            LEGACY_HDR_BYTES => split_header(first, LEGACY_HDR_BYTES),
            _ => (first, Segment::EMPTY),
        };
        let parts = [header, behind].into_iter().filter(|part| !part.is_empty());
        sys::gather(parts.chain(rest.iter().copied()), &mut into[..bound])
    }
}

impl Device for PacketSocket {
    fn pull(&self, slots: &mut [PullSlot]) -> Result<usize, DeviceFault> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(DeviceFault::Gone);
        }
        let mut filled = 0;
        while filled < slots.len() {
            match self.receive(&mut slots[filled..]) {
                Ok((more, true)) => filled += more,
                Ok((more, false)) => return Ok(filled + more),
                Err(Errno::AGAIN) => break,
                // A frame whose segmentation VIRTIO cannot say: the kernel has discarded it.
                Err(Errno::INVAL) => {}
                // The socket says this once; the answer has to last.
                Err(Errno::NETDOWN) if self.is_removed() => {
                    self.gone.store(true, Ordering::Relaxed);
                    return if filled == 0 { Err(DeviceFault::Gone) } else { Ok(filled) };
                }
                Err(Errno::NETDOWN) => break,
                Err(errno) if filled == 0 => return Err(sys::device_fault(errno)),
                Err(_) => break,
            }
        }
        Ok(filled)
    }

    fn push(&self, frames: &[PushFrame<'_>], outcomes: &mut [Result<(), PushError>]) {
        let total = frames.len().min(outcomes.len());
        let mut done = 0;
        while done < total {
            match self.send(&frames[done..total]) {
                Ok(sent) => {
                    outcomes[done..done + sent].fill(Ok(()));
                    done += sent;
                }
                Err(error @ (PushError::LinkDown | PushError::Fault(_))) => {
                    if error == PushError::Fault(DeviceFault::Gone) {
                        self.gone.store(true, Ordering::Relaxed);
                    }
                    outcomes[done..total].fill(Err(error));
                    return;
                }
                Err(error) => {
                    outcomes[done] = Err(error);
                    done += 1;
                }
            }
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}

impl AsFd for PacketSocket {
    /// The socket, for waiting on: readable when a frame waits, in error when the link goes down. That
    /// an interface is removed which was down before wakes nobody: the next push finds it gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The first `header_bytes` of a segment that starts with a header of 12, and what lies behind the 12.
fn split_header(segment: Segment, header_bytes: u32) -> (Segment, Segment) {
    (segment.first(header_bytes), segment.skip(VNET_HDR_BYTES as u32))
}

/// A message made of `parts`, to or from whom the socket is bound to.
fn message_of(parts: &mut [PartSlot]) -> libc::mmsghdr {
    // SAFETY: an mmsghdr is plain data, for which zeroes (no address, no control data) are a value.
    let mut message: libc::mmsghdr = unsafe { core::mem::zeroed() };
    message.msg_hdr.msg_iov = parts.as_mut_ptr().cast();
    message.msg_hdr.msg_iovlen = parts.len() as _;
    message
}

/// What the kernel tells beside a frame: one control message, `PACKET_AUXDATA`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    auxdata: libc::tpacket_auxdata,
}

impl Control {
    /// The VLAN tag that the kernel took out of the frame, as it stood there.
    ///
    /// # Safety
    /// `control` is what the kernel was given to fill for `message`.
    unsafe fn tag(control: &MaybeUninit<Control>, message: &libc::msghdr) -> Option<[u8; TAG_BYTES]> {
        let told = core::mem::offset_of!(Control, auxdata) + size_of::<libc::tpacket_auxdata>();
        if told > message.msg_controllen as _ {
            return None;
        }
        // SAFETY: the kernel wrote header and data; the rest is padding.
        let Control { header, auxdata } = unsafe { control.assume_init_ref() };
        if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA)
            || auxdata.tp_status & libc::TP_STATUS_VLAN_VALID == 0
        {
            return None;
        }
        let tpid = match auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID {
            0 => TPID_8021Q,
            _ => auxdata.tp_vlan_tpid,
        };
        let ([a, b], [c, d]) = (tpid.to_be_bytes(), auxdata.tp_vlan_tci.to_be_bytes());
        Some([a, b, c, d])
    }
}

/// Puts `tag` back behind the frame's addresses.
///
/// The contract of a slot fixes where the frame starts, so what moves is all that lies behind the
/// addresses: within the cache, at a small part of the price of the system call that brought it there.
///
/// # Safety
/// The slot holds a header and at least a frame's addresses, and has room for the tag.
unsafe fn restore_tag(slot: &mut PullSlot, tag: [u8; TAG_BYTES]) {
    const TAG_AT: usize = VNET_HDR_BYTES + MACS_BYTES;
    let place = slot.buffer.skip(TAG_AT as u32);
    let mut header = [0; VNET_HDR_BYTES];
    // SAFETY: the caller vouches for the slot's bytes and for the room behind them.
    unsafe {
        place.first(slot.bytes - TAG_AT as u32).copy_to(place.skip(TAG_BYTES as u32));
        place.write(&tag);
        slot.buffer.read(&mut header);
    }
    slot.bytes += TAG_BYTES as u32;
    // A header that cannot be read is none that the switch would take either.
    if let Ok(mut vnet) = VnetHdr::decode(&header) {
        if vnet.needs_csum() {
            vnet.csum_start = vnet.csum_start.saturating_add(TAG_BYTES as u16);
        }
        if vnet.hdr_len != 0 {
            vnet.hdr_len = vnet.hdr_len.saturating_add(TAG_BYTES as u16);
        }
        // SAFETY: as above.
        unsafe { slot.buffer.write(&vnet.encode(0)) };
    }
}

#[cfg(test)]
mod tests {
    //! What the tests against the kernel do not reach: the 10-byte header of older kernels, batches of
    //! more than one system call, and a tag put back into the longest frame that its slot was made for.
    use super::*;
    use crate::MAX_FRAME_BYTES;
    use crate::header::{F_NEEDS_CSUM, GsoType};
    use std::os::unix::net::UnixDatagram;

    /// A socket that keeps datagrams apart is as good as a packet socket to all but `attach`.
    fn over(socket: UnixDatagram, header_bytes: u32) -> PacketSocket {
        socket.set_nonblocking(true).unwrap();
        let (offloads, gone) = (Offloads::NONE, AtomicBool::new(false));
        PacketSocket { socket: socket.into(), index: 0, header_bytes, offloads, gone }
    }

    /// A header with every byte but `num_buffers` taken, and a frame that tells its number.
    fn numbered(number: u8) -> [u8; 40] {
        let mut memory = [number; 40];
        memory[..VNET_HDR_BYTES].copy_from_slice(&[1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]);
        memory
    }

    /// Holds: a batch longer than one system call arrives whole and in order, however its frames are
    /// cut, and a frame in too many parts costs itself alone; with either header, of which an older
    /// kernel sees the first 10 bytes and `pull` makes 12 again.
    #[test]
    fn batches_cross_with_either_header() {
        const FRAMES: usize = 3 * BATCH_FRAMES;
        for header_bytes in [LEGACY_HDR_BYTES, VNET_HDR_BYTES as u32] {
            let (left, right) = UnixDatagram::pair().unwrap();
            let tapped = right.try_clone().unwrap();
            let (left, right) = (over(left, header_bytes), over(right, header_bytes));

            let mut memory: Vec<_> = (0..FRAMES as u8).map(numbered).collect();
            let parts = |(at, memory): (usize, &mut [u8; 40])| -> Vec<Segment> {
                let whole = Segment::new(memory.as_mut_ptr(), 40);
                let cut = [whole.first(VNET_HDR_BYTES as u32 + (at % 3) as u32)];
                let rest = (cut[0].len()..40).map(|at| whole.skip(at).first(1));
                cut.into_iter().chain(rest).collect()
            };
            let mut parts: Vec<_> = memory.iter_mut().enumerate().map(parts).collect();
            parts[50] = vec![parts[50][0]; FRAME_PARTS + 1];
            let frames: Vec<_> = parts.iter().map(|parts| PushFrame { parts }).collect();
            let mut outcomes = vec![Err(PushError::Full); FRAMES];
            left.push(&frames, &mut outcomes);
            let expected: Vec<_> =
                (0..FRAMES).map(|at| if at == 50 { Err(PushError::Refused) } else { Ok(()) }).collect();
            assert_eq!(outcomes, expected);

            let mut raw = [0; 64];
            let bytes = tapped.recv(&mut raw).unwrap();
            assert_eq!(bytes, header_bytes as usize + 28, "the first frame, as the kernel takes it");
            assert_eq!(raw[..10], numbered(0)[..10]);

            let mut memory = vec![[0xa5; 64]; FRAMES];
            let slot = |m: &mut [u8; 64]| PullSlot { buffer: Segment::new(m.as_mut_ptr(), 64), bytes: 0 };
            let mut slots: Vec<_> = memory.iter_mut().map(slot).collect();
            assert_eq!(right.pull(&mut slots), Ok(FRAMES - 2));
            for (slot, number) in slots.iter().zip((1..FRAMES as u8).filter(|&number| number != 50)) {
                let mut frame = [0; 40];
                // SAFETY: the slot lies in `memory` and has 64 bytes.
                unsafe { slot.buffer.read(&mut frame) };
                assert_eq!((slot.bytes, frame), (40, numbered(number)));
            }
            assert_eq!(right.pull(&mut slots), Ok(0));
        }
    }

    /// Holds: a frame cut off at the end of its slot is left out, and the ones around it move up.
    #[test]
    fn a_frame_that_does_not_fit_is_left_out() {
        let (left, right) = UnixDatagram::pair().unwrap();
        for bytes in [40, 65, 41] {
            left.send(&vec![bytes as u8; bytes]).unwrap();
        }
        let mut memory = [[0; 64]; 3];
        let mut slots = memory
            .each_mut()
            .map(|memory| PullSlot { buffer: Segment::new(memory.as_mut_ptr(), 64), bytes: 0 });
        assert_eq!(over(right, VNET_HDR_BYTES as u32).pull(&mut slots), Ok(2));
        assert_eq!((slots[0].bytes, slots[1].bytes), (40, 41));
    }

    #[test]
    fn a_tag_goes_behind_the_addresses_and_moves_the_offsets() {
        let mut memory = vec![0xee; VNET_HDR_BYTES + MAX_FRAME_BYTES];
        let before = VnetHdr {
            flags: F_NEEDS_CSUM,
            gso: GsoType::Tcp4,
            ecn: true,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        memory[..VNET_HDR_BYTES].copy_from_slice(&before.encode(0));
        let untagged: Vec<u8> = (0..MAX_FRAME_BYTES - TAG_BYTES).map(|at| (at % 251) as u8).collect();
        memory[VNET_HDR_BYTES..][..untagged.len()].copy_from_slice(&untagged);
        let buffer = Segment::new(memory.as_mut_ptr(), memory.len() as u32);
        let mut slot = PullSlot { buffer, bytes: (VNET_HDR_BYTES + untagged.len()) as u32 };
        // SAFETY: the slot is filled but for the four bytes that the tag takes.
        unsafe { restore_tag(&mut slot, [0x88, 0xa8, 0x60, 0x07]) };

        assert_eq!(slot.bytes as usize, memory.len());
        let (header, frame) = memory.split_at(VNET_HDR_BYTES);
        let after = VnetHdr::decode(header.try_into().unwrap()).unwrap();
        assert_eq!(after, VnetHdr { hdr_len: 58, csum_start: 38, ..before });
        assert_eq!(frame[..12], untagged[..12]);
        assert_eq!(frame[12..16], [0x88, 0xa8, 0x60, 0x07]);
        assert_eq!(frame[16..], untagged[12..]);
    }
}
