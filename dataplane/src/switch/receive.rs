//! The receiver's side of an entry: what waits in the internal queue is copied into the receive ring.

use super::deliver::{Finisher, View};
use super::{CoreContext, Entry, Visit};
use crate::api::{DropReason, PortId};
use crate::claim::Word;
use crate::frame::{Frame, FrameRef, NO_EDIT};
use crate::host::{Host, Work};
use crate::port::{Cutting, Port, PortFault, Sink};
use crate::sync::atomic::{Ordering, fence};
use arrayvec::ArrayVec;
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::ring::device::{DeviceQueue, RingFault, Segments};

/// Frames copied before their senders get their buffers back.
const BATCH: usize = 64;

/// The most frames that one entry copies.
const BUDGET: u32 = 1024;

/// Room for an entry's copies.
#[derive(Default)]
pub(super) struct CopyScratch {
    chains: Chains,
    finisher: Finisher,
}

/// Receive buffers taken for one frame.
#[derive(Default)]
struct Chains {
    segments: Segments,
    /// Each chain's head and how many bytes it holds.
    heads: ArrayVec<(u16, u32), { hyper_switch_pvnet::ring::device::MAX_SEGMENTS }>,
}

impl Chains {
    /// Puts the chains back on offer.
    fn put_back(&self, queue: &mut DeviceQueue) {
        self.heads.iter().rev().for_each(|(head, _)| queue.unpop(*head));
    }
}

/// What was copied: a frame of so many bytes, the bytes written for it, and whether it was finished first.
struct Copied {
    frame_bytes: u32,
    written: u32,
    finished: bool,
}

/// The `virtio_net_hdr` of a frame that asks for nothing, in one buffer.
const PLAIN_IN_ONE_BUFFER: [u8; VNET_HDR_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Why a frame was not copied.
enum CopyError {
    /// The receiver has too few buffers now: the frame waits.
    NoBuffers,
    /// The frame cannot be had by this receiver.
    Drop(DropReason),
    /// The receiver broke its ring.
    Fault(RingFault),
}

impl From<RingFault> for CopyError {
    fn from(fault: RingFault) -> CopyError {
        CopyError::Fault(fault)
    }
}

impl<'a, H: Host> Entry<'a, H> {
    /// Everything that is to be done on a receiver's side.
    pub(super) fn serve_receiver(&mut self, cx: &mut CoreContext, port: &Port, word: Word) {
        port.rx.run(word, |sink, word| {
            if word.has(Word::EXCHANGE)
                && let Sink::Ring { queue, .. } = sink
            {
                port.exchange.serve_rx(queue);
            }
            if let Sink::Ring { queue, mergeable, cutting } = sink
                && port.is_up()
            {
                if self.move_on(cx, port) {
                    // What was to go on here begins anew elsewhere.
                    *cutting = Cutting::default();
                }
                if word.has(Word::SERVE)
                    && let Err(fault) = self.fill(cx, port, queue, *mergeable, cutting)
                {
                    self.fail(port, PortFault::RxRing(fault));
                    self.discard(cx, port, DropReason::RxFault, |_, _| true);
                }
                // Also when nothing was copied now: it may have been put off.
                self.interrupt(port, queue);
            }
            if !port.is_up() {
                self.discard(cx, port, DropReason::PortDown, |_, _| true);
            } else if word.has(Word::EXPIRE) {
                let overdue = |entry: &Self, waited_ms| entry.is_overdue(waited_ms);
                if self.discard(cx, port, DropReason::RxStalled, overdue)
                    && let Sink::Ring { cutting, .. } = sink
                {
                    *cutting = Cutting::default();
                }
                let mut oldest = [0];
                port.waiting.peek(&mut oldest);
                if let Some(frame) = FrameRef::from_word(oldest[0]) {
                    self.arm_for_patience(port, frame.waited_ms(self.now_ms));
                }
            }
        });
    }

    /// Copies until nothing waits, the buffers are used up, or the budget is.
    fn fill(
        &mut self,
        cx: &mut CoreContext,
        port: &Port,
        queue: &mut DeviceQueue,
        mergeable: bool,
        cutting: &mut Cutting,
    ) -> Result<(), RingFault> {
        let mut left = BUDGET;
        let mut words = [0; BATCH];
        loop {
            let count = port.waiting.peek(&mut words);
            if count == 0 {
                // The wish must be seen before the queue is looked at once more: see `announce`.
                port.wants_notice.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if port.waiting.peek(&mut words[..1]) == 0 {
                    return Ok(());
                }
                port.wants_notice.store(false, Ordering::Relaxed);
                continue;
            }
            let (copied, stopped) = self.copy_batch(cx, port, queue, mergeable, cutting, &words[..count]);
            port.shares.taken(&words[..copied]);
            self.entered.copied += copied as u32;
            match stopped {
                None => {}
                Some(CopyError::Fault(fault)) => return Err(fault),
                // The driver's next buffers come with a kick; if some came just now, on with it.
                Some(_) if queue.enable_kicks()? => {}
                Some(_) => return Ok(()),
            }
            left = left.saturating_sub(count as u32);
            if left == 0 {
                match self.visit {
                    Visit::Transmit(vm) | Visit::Receive(vm) if vm == port.id => self.entered.more = true,
                    _ => {
                        port.wants_notice.store(true, Ordering::Relaxed);
                        self.leave_rest(port);
                    }
                }
                return Ok(());
            }
        }
    }

    /// Copies the frames of `words`, publishes them to the receiver together, and gives the senders their
    /// buffers back. Answers how many frames are done with, and why it stopped before the end.
    fn copy_batch(
        &mut self,
        cx: &mut CoreContext,
        port: &Port,
        queue: &mut DeviceQueue,
        mergeable: bool,
        cutting: &mut Cutting,
        words: &[u64],
    ) -> (usize, Option<CopyError>) {
        let counters = self.port_counters(port);
        // Plain frames are counted by what was written for them, all others one by one.
        let mut plain_written = 0;
        let (mut others, mut others_copied, mut others_bytes, mut others_written) = (0, 0, 0, 0);
        let mut done = 0;
        let mut stopped = None;
        let mut sender = Sender::default();
        for word in words {
            let frame = FrameRef::from_word(*word).expect("entries of the queue are references");
            let from = self.sender(cx, &mut sender, frame.port());
            let slot = from.frames.slot(frame.slot());
            // SAFETY: the reference in the queue stands for a copy that is this core's to make.
            if let Some(written) = unsafe { copy_plain(self.host, queue, slot.frame(), frame) } {
                plain_written += u64::from(written);
                self.host.spent(Work::Copied { from: from.id, to: port.id, bytes: written });
            } else {
                match copy_any(self.host, &mut cx.copy, queue, mergeable, cutting, port, from, frame) {
                    Ok(copied) => {
                        others_copied += 1;
                        others_bytes += u64::from(copied.frame_bytes);
                        others_written += u64::from(copied.written);
                        self.host.spent(Work::Copied { from: from.id, to: port.id, bytes: copied.written });
                        if copied.finished {
                            counters.rx.finished.add(1);
                        }
                    }
                    Err(CopyError::Drop(reason)) => counters.drop_rx(reason, 1),
                    Err(stop) => {
                        stopped = Some(stop);
                        break;
                    }
                }
                others += 1;
            }
            done += 1;
            if slot.copied() {
                sender.slots.push(frame.slot());
            }
        }
        if planted!(DoubleCompletion)
            && stopped.is_some()
            && let Some(last) = sender.slots.last().copied()
        {
            sender.slots.push(last);
        }
        port.waiting.take(done);
        queue.publish();
        let plain = (done - others) as u64;
        counters.rx.frames.add(plain + others_copied);
        counters.rx.bytes.add(plain_written - plain * VNET_HDR_BYTES as u64 + others_bytes);
        counters.rx.copies.add(plain + others_copied);
        counters.rx.copied_bytes.add(plain_written + others_written);
        self.complete_all(cx, &mut sender);
        (done, stopped)
    }

    /// The sender `id`. If it is another than the last one, that one's buffers go back to it first.
    #[inline]
    fn sender(&mut self, cx: &mut CoreContext, sender: &mut Sender<'a>, id: PortId) -> &'a Port {
        match sender.port {
            Some(port) if port.id == id => port,
            _ => {
                self.complete_all(cx, sender);
                let port = self.switch.port(id).expect("a sender stays while its frames are in flight");
                sender.port = Some(port);
                port
            }
        }
    }

    fn complete_all(&mut self, cx: &mut CoreContext, sender: &mut Sender<'a>) {
        if let (Some(port), false) = (sender.port, sender.slots.is_empty()) {
            self.complete(cx, port, &sender.slots);
            sender.slots.clear();
        }
    }

    /// Moves what waits for a lane that is disabled to the enabled ones. Answers whether there was any.
    #[inline]
    fn move_on(&mut self, cx: &mut CoreContext, port: &Port) -> bool {
        let mut moved = false;
        while !port.is_enabled() && self.move_batch(cx, port) {
            moved = true;
        }
        moved
    }

    #[cold]
    fn move_batch(&mut self, cx: &mut CoreContext, port: &Port) -> bool {
        let mut words = [0; BATCH];
        let count = port.waiting.peek(&mut words);
        port.waiting.take(count);
        port.shares.taken(&words[..count]);
        let mut sender = Sender::default();
        for frame in words[..count].iter().filter_map(|word| FrameRef::from_word(*word)) {
            let from = self.sender(cx, &mut sender, frame.port());
            let lane = port.lanes.enabled().lane(from.frames.hash(frame.slot()));
            let reason = match lane.and_then(|lane| self.switch.port(port.lanes.numbers()[lane])) {
                None => DropReason::PortAbsent,
                Some(lane) if lane.take_in(frame.port(), &[frame]) == 1 => {
                    self.announce(lane);
                    continue;
                }
                Some(_) => DropReason::RxQueueFull,
            };
            self.port_counters(port).drop_rx(reason, 1);
            if from.frames.copied(frame.slot()) {
                sender.slots.push(frame.slot());
            }
        }
        self.complete_all(cx, &mut sender);
        count > 0
    }

    /// Drops waiting frames, from the first on, as long as `drops` says so of how long one has waited. Answers
    /// whether any was dropped.
    fn discard(
        &mut self,
        cx: &mut CoreContext,
        port: &Port,
        reason: DropReason,
        drops: impl Fn(&Self, u16) -> bool,
    ) -> bool {
        let mut words = [0; BATCH];
        let mut any = false;
        loop {
            let count = port.waiting.peek(&mut words);
            let frames = words[..count].iter().filter_map(|word| FrameRef::from_word(*word));
            let done = frames.take_while(|frame| drops(self, frame.waited_ms(self.now_ms))).count();
            if done == 0 {
                return any;
            }
            any = true;
            port.waiting.take(done);
            port.shares.taken(&words[..done]);
            let counted = if planted!(UncountedDrop) && done > 1 { done - 1 } else { done };
            self.port_counters(port).drop_rx(reason, counted as u64);
            let mut sender = Sender::default();
            for frame in words[..done].iter().filter_map(|word| FrameRef::from_word(*word)) {
                if self.sender(cx, &mut sender, frame.port()).frames.copied(frame.slot()) {
                    sender.slots.push(frame.slot());
                }
            }
            self.complete_all(cx, &mut sender);
        }
    }
}

/// The sender of the last frame, as runs of frames have the same one, and those of its frames whose last copy was
/// just made.
#[derive(Default)]
struct Sender<'a> {
    port: Option<&'a Port>,
    slots: ArrayVec<u16, BATCH>,
}

/// The one copy of the usual frame, which asks for nothing and is sent as it came, into one buffer of the usual ring that
/// has room for it, without its payload if the host says so. Answers the bytes written; for any other frame, ring or buffer
/// nothing is done.
///
/// # Safety
/// `frame` stands for a copy that the caller is to make, of `whole`.
#[inline(always)]
unsafe fn copy_plain<H: Host>(
    host: &H,
    queue: &mut DeviceQueue,
    whole: &Frame,
    frame: FrameRef,
) -> Option<u32> {
    let is_plain = whole.vnet.asks_nothing() && whole.segments <= 1 && frame.edit() == NO_EDIT;
    if !is_plain {
        return None;
    }
    let queue = queue.as_split()?;
    let total = whole.bytes + VNET_HDR_BYTES as u32;
    let (head, buffer) = queue.pop_single(total)?;
    // SAFETY: the buffer was translated just now and is long enough; the frame is in flight (all writes).
    unsafe {
        // A driver that uses its buffers again often has the same bytes there. A store would take the line from its core.
        if buffer.load() != PLAIN_IN_ONE_BUFFER {
            buffer.write(&PLAIN_IN_ONE_BUFFER);
        }
        let at = buffer.from(VNET_HDR_BYTES as u32);
        write_header(at, core::slice::from_raw_parts(whole.header, whole.header_bytes.into()));
        if whole.segments != 0 && host.copies_payload() {
            whole.payload.copy_to(at.from(whole.header_bytes.into()));
        }
        if planted!(CopyPastEnd) {
            let words = total.next_multiple_of(8).min(buffer.len());
            buffer.from(total).write(&[0; 8][..(words - total) as usize]);
        }
    }
    queue.push_used(head, total);
    Some(total)
}

/// The copy of any frame, likewise.
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "the frame, and the parts of where it goes, borrowed apart")]
fn copy_any<H: Host>(
    host: &H,
    scratch: &mut CopyScratch,
    queue: &mut DeviceQueue,
    mergeable: bool,
    cutting: &mut Cutting,
    port: &Port,
    from: &Port,
    frame: FrameRef,
) -> Result<Copied, CopyError> {
    // SAFETY: as for `copy_plain`, whose caller's word it is.
    let mut view = unsafe { View::new(from, frame) }.for_receiver(port.offloads);
    let finished = !port.offloads.accept(&view.vnet);
    let written = if finished {
        copy_finished(scratch, queue, mergeable, cutting, port, &view)?
    } else {
        if !host.copies_payload() {
            view.payload = &[];
        }
        copy(&mut scratch.chains, queue, mergeable, &view)?
    };
    Ok(Copied { frame_bytes: view.bytes, written, finished })
}

/// The one copy: takes receive buffers for a frame and writes it there. Answers the bytes written.
#[inline]
fn copy(
    chains: &mut Chains,
    queue: &mut DeviceQueue,
    mergeable: bool,
    view: &View<'_>,
) -> Result<u32, CopyError> {
    let total = view.bytes + VNET_HDR_BYTES as u32;
    if queue.available()? == 0 {
        return Err(CopyError::NoBuffers);
    }
    let Some((head, buffer)) = queue.pop_single(total) else {
        return copy_scattered(chains, queue, mergeable, view);
    };
    // SAFETY: the buffer was translated just now and is long enough; the frame is in flight (all writes).
    unsafe {
        buffer.write(&view.vnet.encode(1));
        let mut at = buffer.from(VNET_HDR_BYTES as u32);
        write_header(at, view.header);
        at = at.from(view.header.len() as u32);
        for segment in view.payload {
            segment.copy_to(at);
            at = at.from(segment.len());
        }
    }
    queue.push_used(head, total);
    Ok(total)
}

/// A frame for a chain of several buffers, or for several chains (VIRTIO 1.2, clause 5.1.6.4).
#[inline(never)]
fn copy_scattered(
    chains: &mut Chains,
    queue: &mut DeviceQueue,
    mergeable: bool,
    view: &View<'_>,
) -> Result<u32, CopyError> {
    let total = view.bytes + VNET_HDR_BYTES as u32;
    chains.segments.clear();
    chains.heads.clear();
    let mut holds: u32 = 0;
    while holds < total {
        let taken = chains.heads.len();
        if chains.heads.is_full() || (taken > 0 && !mergeable) {
            chains.put_back(queue);
            return Err(CopyError::Drop(DropReason::RxTooLong));
        }
        if queue.available()? == 0 && queue.refresh()? == 0 {
            chains.put_back(queue);
            return Err(CopyError::NoBuffers);
        }
        let head = queue.pop()?;
        let bytes = match queue.walk(head, &mut chains.segments) {
            // Honest buffers, but in too many pieces for one frame.
            Err(RingFault::ChainTooLong) if taken > 0 => {
                queue.unpop(head);
                chains.put_back(queue);
                return Err(CopyError::Drop(DropReason::RxTooLong));
            }
            bytes => bytes?,
        };
        chains.heads.push((head, bytes));
        holds = holds.saturating_add(bytes);
    }
    Scatter::new(&chains.segments).write(&view.vnet.encode(chains.heads.len() as u16), view);
    let mut left = total;
    for (head, bytes) in &chains.heads {
        let used = left.min(*bytes);
        queue.push_used(*head, used);
        left -= used;
    }
    Ok(total)
}

/// A frame for a receiver that does not take it as it is. Cuts that find no buffers follow the others when there are some.
#[cold]
fn copy_finished(
    scratch: &mut CopyScratch,
    queue: &mut DeviceQueue,
    mergeable: bool,
    cutting: &mut Cutting,
    port: &Port,
    view: &View<'_>,
) -> Result<u32, CopyError> {
    let CopyScratch { chains, finisher } = scratch;
    let mut failed = None;
    let finished = finisher.finish(view, port.offloads, cutting.cuts, |vnet, head, tail| {
        let bytes = (head.len() + tail.len()) as u32;
        let tail = [Segment::new(tail.as_ptr().cast_mut(), tail.len() as u32)];
        let payload = if tail[0].is_empty() { &[] } else { &tail[..] };
        match copy(chains, queue, mergeable, &View { vnet: *vnet, header: head, payload, bytes }) {
            Ok(bytes) => {
                cutting.cuts += 1;
                cutting.written += bytes;
            }
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    });
    if let (Ok(()), Some(CopyError::NoBuffers)) = (&finished, &failed) {
        return Err(CopyError::NoBuffers);
    }
    let Cutting { written, .. } = core::mem::take(cutting);
    finished.map_err(CopyError::Drop)?;
    failed.map_or(Ok(written), Err)
}

/// Writes a header of known small sizes without a call.
///
/// # Safety
/// `to` is mapped writable and has at least as many bytes.
#[inline]
unsafe fn write_header(to: Segment, header: &[u8]) {
    // SAFETY: the caller's word; each piece lies within the header.
    unsafe {
        match (header.first_chunk::<64>(), header.last_chunk::<64>()) {
            // Two pieces that overlap where one would not do, each of a length that the compiler knows. A header
            // with tags pushed is longer than both together, and so is a frame that was finished.
            (Some(first), Some(last)) if header.len() <= 2 * 64 => {
                to.write(first);
                if header.len() > 64 {
                    to.from(header.len() as u32 - 64).write(last);
                }
            }
            _ => to.write(header),
        }
    }
}

/// Writes on through segments.
struct Scatter<'a> {
    segments: &'a [Segment],
    at: Segment,
}

impl<'a> Scatter<'a> {
    fn new(segments: &'a [Segment]) -> Scatter<'a> {
        Scatter { segments, at: Segment::EMPTY }
    }

    /// The segments hold all of it, as the caller has counted.
    fn write(&mut self, vnet: &[u8], view: &View<'_>) {
        let own = |bytes: &[u8]| Segment::new(bytes.as_ptr().cast_mut(), bytes.len() as u32);
        for from in [own(vnet), own(view.header)].iter().chain(view.payload) {
            let mut from = *from;
            while !from.is_empty() {
                if self.at.is_empty() {
                    let Some((next, rest)) = self.segments.split_first() else { return };
                    (self.at, self.segments) = (*next, rest);
                    continue;
                }
                let piece = from.first(self.at.len());
                // SAFETY: the receive buffers were translated just now, and the frame is in flight.
                unsafe { piece.copy_to(self.at) };
                from = from.skip(piece.len());
                self.at = self.at.skip(piece.len());
            }
        }
    }
}
