//! The last step of a packet's way: out of its sender's memory, into a receive ring or a device.

use super::Entry;
use crate::api::DropReason;
use crate::frame::{FrameRef, NO_EDIT};
use crate::host::Host;
use crate::port::{Port, PortFault};
use alloc::boxed::Box;
use alloc::vec;
use arrayvec::ArrayVec;
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::device::{Device, PushError, PushFrame};
use hyper_switch_pvnet::header::{F_NEEDS_CSUM, GsoType, Offloads, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::offload::{self, MAX_HEADER_BYTES, Segmenter, sum};
use hyper_switch_pvnet::ring::device::MAX_SEGMENTS;

/// A frame as one receiver is to get it.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) vnet: VnetHdr,
    pub(super) header: &'a [u8],
    pub(super) payload: &'a [Segment],
    /// Bytes of header and payload.
    pub(super) bytes: u32,
}

impl<'a> View<'a> {
    /// The frame for a receiver with these offloads: whoever takes no partial checksums is not told that a
    /// complete one was verified either (VIRTIO 1.2, clause 5.1.6.4.1).
    #[inline]
    pub(super) fn for_receiver(mut self, offloads: Offloads) -> View<'a> {
        if !offloads.contains(Offloads::CSUM) {
            self.vnet.flags &= F_NEEDS_CSUM;
        }
        self
    }

    /// What `frame`, one of `sender`'s in flight, is to its receiver.
    ///
    /// # Safety
    /// The caller holds the copy of the frame that `frame` stands for.
    #[inline(always)]
    pub(super) unsafe fn new(sender: &'a Port, frame: FrameRef) -> View<'a> {
        let (frames, slot) = (&sender.frames, frame.slot());
        // SAFETY: the caller's word; an edit that a reference names is the frame's own.
        unsafe {
            let (whole, payload) = (frames.frame(slot), frames.payload(slot));
            if frame.edit() == NO_EDIT {
                return View { vnet: whole.vnet, header: frames.header(slot), payload, bytes: whole.bytes };
            }
            let edited = frames.edited(frame.edit());
            let header = edited.header.bytes();
            let bytes = whole.bytes - u32::from(whole.header_bytes) + header.len() as u32;
            View { vnet: edited.vnet, header, payload, bytes }
        }
    }

    /// Copies the frame's bytes from `at` on, as many as `into` has, which are not more than there are.
    fn read(&self, at: u32, into: &mut [u8]) {
        let header = Segment::new(self.header.as_ptr().cast_mut(), self.header.len() as u32);
        let (mut before, mut into) = (at, into);
        for part in core::iter::once(&header).chain(self.payload) {
            let rest = part.skip(before);
            before -= part.len() - rest.len();
            let (now, later) = into.split_at_mut(into.len().min(rest.len() as usize));
            // SAFETY: the header is borrowed, and the frame is in flight, so its sender's memory is there.
            unsafe { rest.read(now) };
            into = later;
        }
        debug_assert!(into.is_empty(), "a view has as many bytes as it says");
    }
}

/// Room for a frame that must be finished before it is handed over.
pub(super) struct Finisher {
    frame: Box<[u8]>,
}

impl Default for Finisher {
    fn default() -> Finisher {
        Finisher { frame: vec![0; MAX_FRAME_BYTES + 2 * 4].into() }
    }
}

impl Finisher {
    /// Hands `emit` what a receiver that takes only the offloads `accept` is to get of `view`: each frame's
    /// header, first bytes, and remaining bytes. If it is to be cut, the first `done` cuts are left out. This is the
    /// one place where a payload is copied twice. `emit` answers whether to go on.
    #[cold]
    pub(super) fn finish(
        &mut self,
        view: &View<'_>,
        accept: Offloads,
        done: u32,
        mut emit: impl FnMut(&VnetHdr, &[u8], &[u8]) -> bool,
    ) -> Result<(), DropReason> {
        if view.vnet.gso == GsoType::None {
            let frame = self.frame.get_mut(..view.bytes as usize).ok_or(DropReason::TooLong)?;
            view.read(0, frame);
            let mut vnet = view.vnet;
            offload::finish(frame, &mut vnet).map_err(|_| DropReason::OffloadImpossible)?;
            emit(&vnet, frame, &[]);
            return Ok(());
        }
        let mut head = [0; MAX_HEADER_BYTES];
        let head = &mut head[..MAX_HEADER_BYTES.min(view.bytes as usize)];
        view.read(0, head);
        let cuts = Segmenter::new(head, view.bytes, &view.vnet);
        let mut cuts = cuts.map_err(|_| DropReason::OffloadImpossible)?;
        cuts.skip(done);
        while let Some(mut cut) = cuts.next_cut() {
            let payload = self.frame.get_mut(..cut.payload.len()).ok_or(DropReason::TooLong)?;
            view.read(cut.payload.start, payload);
            if !accept.contains(Offloads::CSUM) {
                cut.finish(sum(payload));
            }
            if !emit(&cut.header, cut.headers, payload) {
                break;
            }
        }
        Ok(())
    }
}

/// Frames that are handed to a device in one call.
const PUSH_BATCH: usize = 64;
/// Their parts, all together.
const PUSH_PARTS: usize = 4 * PUSH_BATCH;

/// Room for describing frames to a device.
pub(super) struct PushScratch {
    vnets: [[u8; VNET_HDR_BYTES]; PUSH_BATCH],
    parts: ArrayVec<Segment, { PUSH_PARTS + MAX_SEGMENTS + 2 }>,
    /// For each frame: where its parts end, and its bytes.
    frames: ArrayVec<(u16, u32), PUSH_BATCH>,
    finisher: Finisher,
}

impl Default for PushScratch {
    fn default() -> PushScratch {
        PushScratch {
            vnets: [[0; VNET_HDR_BYTES]; PUSH_BATCH],
            parts: ArrayVec::new(),
            frames: ArrayVec::new(),
            finisher: Finisher::default(),
        }
    }
}

impl PushScratch {
    fn add(&mut self, view: &View<'_>) {
        let vnet = &mut self.vnets[self.frames.len()];
        *vnet = view.vnet.encode(0);
        self.parts.push(Segment::new(vnet.as_mut_ptr(), VNET_HDR_BYTES as u32));
        let header = Segment::new(view.header.as_ptr().cast_mut(), view.header.len() as u32);
        match view.payload {
            // A frame that lies whole in a device's buffer.
            [payload] if header.skip(header.len()).as_ptr() == payload.as_ptr() => {
                self.parts.push(Segment::new(header.as_ptr(), header.len() + payload.len()));
            }
            payload => {
                self.parts.push(header);
                self.parts.extend(payload.iter().copied());
            }
        }
        self.frames.push((self.parts.len() as u16, view.bytes));
    }

    fn is_full(&self) -> bool {
        self.frames.is_full() || self.parts.len() >= PUSH_PARTS
    }
}

impl<H: Host> Entry<'_, H> {
    /// Writes the frames of a run to a device, straight from their sender's memory.
    pub(super) fn push(
        &mut self,
        scratch: &mut PushScratch,
        sender: &Port,
        receiver: &Port,
        device: &dyn Device,
        run: &[FrameRef],
    ) {
        for frame in run {
            // SAFETY: this entry has noted the copy and not made it yet.
            let view = unsafe { View::new(sender, *frame) }.for_receiver(receiver.offloads);
            if receiver.offloads.accept(&view.vnet) {
                scratch.add(&view);
                if scratch.is_full() {
                    self.flush(scratch, receiver, device);
                }
                continue;
            }
            self.flush(scratch, receiver, device);
            self.push_finished(scratch, receiver, device, &view);
        }
        self.flush(scratch, receiver, device);
    }

    fn flush(&mut self, scratch: &mut PushScratch, receiver: &Port, device: &dyn Device) {
        if scratch.frames.is_empty() {
            return;
        }
        let mut outcomes = [Ok(()); PUSH_BATCH];
        let mut frames = ArrayVec::<PushFrame<'_>, PUSH_BATCH>::new();
        let mut start = 0;
        for (end, _) in &scratch.frames {
            frames.push(PushFrame { parts: &scratch.parts[start..usize::from(*end)] });
            start = usize::from(*end);
        }
        device.push(&frames, &mut outcomes[..frames.len()]);
        drop(frames);
        for ((_, bytes), outcome) in scratch.frames.iter().zip(outcomes) {
            self.count_pushed(receiver, *bytes, bytes + VNET_HDR_BYTES as u32, outcome);
        }
        scratch.frames.clear();
        scratch.parts.clear();
    }

    /// Counts a frame of `bytes` for which so many were `written`, or why it was not.
    fn count_pushed(&mut self, receiver: &Port, bytes: u32, written: u32, outcome: Result<(), PushError>) {
        let counters = self.port_counters(receiver);
        let reason = match outcome {
            Ok(()) => {
                counters.rx.frames.add(1);
                counters.rx.bytes.add(bytes.into());
                counters.rx.copies.add(1);
                counters.rx.copied_bytes.add(written.into());
                return;
            }
            Err(PushError::Full) => DropReason::DeviceFull,
            Err(PushError::LinkDown) => DropReason::DeviceLinkDown,
            Err(PushError::Refused) => DropReason::DeviceRefused,
            Err(PushError::Fault(fault)) => {
                self.fail(receiver, PortFault::Device(fault));
                DropReason::PortDown
            }
        };
        counters.drop_rx(reason, 1);
    }

    #[cold]
    fn push_finished(
        &mut self,
        scratch: &mut PushScratch,
        receiver: &Port,
        device: &dyn Device,
        view: &View<'_>,
    ) {
        let mut outcome = Ok(());
        let mut written = 0;
        let finished = scratch.finisher.finish(view, receiver.offloads, 0, |vnet, head, tail| {
            let mut vnet = vnet.encode(0);
            let mut parts = ArrayVec::<Segment, 3>::new();
            parts.push(Segment::new(vnet.as_mut_ptr(), VNET_HDR_BYTES as u32));
            for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
                parts.push(Segment::new(part.as_ptr().cast_mut(), part.len() as u32));
            }
            written += parts.iter().map(|part| part.len()).sum::<u32>();
            device.push(&[PushFrame { parts: &parts }], core::slice::from_mut(&mut outcome));
            outcome.is_ok()
        });
        match finished {
            Ok(()) => {
                if outcome.is_ok() {
                    self.port_counters(receiver).rx.finished.add(1);
                }
                self.count_pushed(receiver, view.bytes, written, outcome);
            }
            Err(reason) => self.port_counters(receiver).drop_rx(reason, 1),
        }
    }
}
