//! The sender's side of an entry: frames off the ring, keys, lookups, and a batch in two passes.
//!
//! First pass: every frame of the batch is looked up and its outputs noted. Second pass: each receiver is
//! visited once; what is for it is put into its internal receive queue in one step, and it is told at most
//! once. A device is its own receive context, so what is for a device is written in this pass.

use super::deliver::PushScratch;
use super::{CoreContext, Entry, Visit};
use crate::action::Action;
use crate::action::edit::{Header, edit};
use crate::api::{DropReason, PortId, Upcall, UpcallId, UpcallReason, Verdict};
use crate::claim::Word;
use crate::flow::cache::ExactMatchCache;
use crate::flow::table::{Decision, Flow, FlowIndex, FlowTable};
use crate::frame::{FrameRef, NO_EDIT, waited_ms};
use crate::host::{Host, Work};
use crate::key::extract::{Layout, extract};
use crate::key::train::Train;
use crate::key::usual::{self, START_BYTES, START_WORDS};
use crate::key::{FlowKey, HEADER_BYTES};
use crate::lanes::{Enabled, MAX_LANES};
use crate::port::{Asked, Held, Port, PortFault, Source, TxSide};
use crate::sync::atomic::Ordering;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::num::NonZeroU64;
use core::ops::Range;
use hyper_switch_pvnet::device::PullSlot;
use hyper_switch_pvnet::header::{VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::ring::device::{DeviceQueue, RingFault, Segments};
use hyper_switch_pvnet::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};

/// The most frames in a batch: enough to spread the cost of a visit, few enough to stay in the first-level cache.
pub(crate) const BATCH: usize = 64;

/// The most frames that one entry takes off a ring, so that a sender that never stops does not hold its core.
const BUDGET: u32 = 512;

/// The most outputs that one flow's actions may have.
pub(super) const MAX_OUTPUTS: usize = 512;

const PREFIX: u32 = VNET_HDR_BYTES as u32;

/// Frames longer than this are pulled from a device a few at a time, to stay in the second-level cache between
/// being read and being written.
const LARGE_FRAME_BYTES: u32 = 16 * 1024;
const LARGE_FRAME_BATCH: usize = 4;

/// The frames of one batch: slots of the sender, and what the first pass learns of them. Frames in a row that have the
/// same key are a [train](Train), which has that key once.
pub(crate) struct Batch {
    len: usize,
    slots: [u16; BATCH],
    bytes: [u32; BATCH],
    trains: usize,
    /// The first frame of each train, and the end of the last train.
    firsts: [u16; BATCH + 1],
    /// Which trains have no key and no hash yet: a bit each. They are of one frame.
    unkeyed: u64,
    hashes: [u64; BATCH],
    /// Where the cache remembers the flow to be.
    guesses: [FlowIndex; BATCH],
    keys: [FlowKey; BATCH],
    /// What tells whether a frame is of the last train, if that has a key; and the key's hash.
    last: (Train, u64),
}

const _: () = assert!(BATCH <= u64::BITS as usize, "a batch has a bit for each of its trains");

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            len: 0,
            slots: [0; BATCH],
            bytes: [0; BATCH],
            trains: 0,
            firsts: [0; BATCH + 1],
            unkeyed: 0,
            hashes: [0; BATCH],
            guesses: [FlowIndex(0); BATCH],
            keys: [FlowKey::ZERO; BATCH],
            last: (Train::NONE, 0),
        }
    }
}

/// A receiver of the batch, and how many of its frames are for it.
struct Receiver {
    port: PortId,
    count: usize,
}

/// What the first pass noted for the second.
pub(crate) struct Outputs {
    /// Each frame for one receiver, in the order of the batch.
    frames: Vec<FrameRef>,
    /// The receiver of the first of them, and of all, unless `ports` has those of each.
    first: PortId,
    ports: Vec<PortId>,
    /// The same frames, sorted by receiver; those of each in the order of the batch.
    sorted: Vec<FrameRef>,
    receivers: Vec<Receiver>,
    /// For each port, its place in `receivers` plus one.
    places: Box<[u16]>,
    /// The outputs of one frame, until all its actions are known to apply: the port and the edited header.
    staged: Vec<(PortId, u16)>,
}

impl Outputs {
    pub(super) fn new(ports: usize) -> Outputs {
        Outputs {
            frames: Vec::with_capacity(BATCH + MAX_OUTPUTS),
            first: PortId(0),
            ports: Vec::with_capacity(BATCH + MAX_OUTPUTS),
            sorted: Vec::with_capacity(BATCH + MAX_OUTPUTS),
            receivers: Vec::with_capacity(BATCH + MAX_OUTPUTS),
            places: vec![0; ports].into(),
            staged: Vec::with_capacity(MAX_OUTPUTS),
        }
    }

    #[inline]
    fn add(&mut self, port: PortId, frame: FrameRef) {
        if port != self.first || !self.ports.is_empty() {
            self.part(port);
        }
        self.frames.push(frame);
    }

    /// Notes the receiver of the frame that is added next, where not all have the same one.
    #[cold]
    fn part(&mut self, port: PortId) {
        if self.frames.is_empty() {
            self.first = port;
        } else {
            self.ports.resize(self.frames.len().max(self.ports.len()), self.first);
            self.ports.push(port);
        }
    }

    fn room(&self) -> usize {
        self.frames.capacity() - self.frames.len()
    }

    /// Sorts what was noted by receiver, and forgets the notes.
    fn sort(&mut self) {
        self.sorted.clear();
        if self.ports.is_empty() {
            // The usual batch: one receiver.
            if !self.frames.is_empty() {
                self.receivers.push(Receiver { port: self.first, count: self.frames.len() });
                core::mem::swap(&mut self.sorted, &mut self.frames);
            }
            return;
        }
        for port in &self.ports {
            let place = &mut self.places[usize::from(port.0)];
            if *place == 0 {
                self.receivers.push(Receiver { port: *port, count: 0 });
                *place = self.receivers.len() as u16;
            }
            self.receivers[usize::from(*place) - 1].count += 1;
        }
        // From here on a place is where the port's next frame goes.
        let mut start = 0;
        for receiver in &self.receivers {
            self.places[usize::from(receiver.port.0)] = start;
            start += receiver.count as u16;
        }
        self.sorted.resize(self.frames.len(), self.frames[0]);
        for (frame, port) in self.frames.drain(..).zip(self.ports.drain(..)) {
            let place = &mut self.places[usize::from(port.0)];
            self.sorted[usize::from(*place)] = frame;
            *place += 1;
        }
        for receiver in &self.receivers {
            self.places[usize::from(receiver.port.0)] = 0;
        }
    }
}

/// What the frames of a batch come to, counted once.
#[derive(Default)]
struct Taken {
    frames: u64,
    bytes: u64,
    /// The device filled every buffer that it was given: it may have more.
    is_full: bool,
}

impl<'a, H: Host> Entry<'a, H> {
    /// Everything that is to be done on a sender's side: buffers come back, verdicts are carried out, and,
    /// if asked, its ring is switched.
    pub(super) fn serve_sender(&mut self, cx: &mut CoreContext, port: &Port, word: Word) {
        port.tx.run(word, |tx, word| self.work_for_sender(cx, port, tx, word));
    }

    /// The work of a word, with the claim. Words that other cores left come here too, whoever has the claim.
    fn work_for_sender(&mut self, cx: &mut CoreContext, port: &Port, tx: &mut TxSide, word: Word) {
        self.collect_completed(port, tx);
        if word.has(Word::EXCHANGE)
            && let Source::Ring(queue) = &mut tx.source
        {
            // SAFETY: this core has the claim on the port's transmit side.
            unsafe { port.exchange.serve_tx(queue, &port.frames) };
        }
        if !port.is_up() {
            self.drop_held(port, tx, true, DropReason::PortDown);
        }
        self.apply_verdicts(cx, port, tx);
        if word.has(Word::EXPIRE) {
            self.drop_held(port, tx, false, DropReason::UpcallTimeout);
        }
        if word.has(Word::SERVE) && port.is_up() {
            self.switch_source(cx, port, tx);
        }
        port.held.store(tx.held.len(), Ordering::Relaxed);
        self.publish_completed(port, tx);
    }

    /// Gives the buffers in `slots` back to the sender `port`, from any core.
    pub(super) fn complete(&mut self, cx: &mut CoreContext, port: &Port, slots: &[u16]) {
        // Not counted as an entry: the sender asked for nothing.
        let mut direct = slots;
        let done = port.tx.run(Word::COMPLETE, |tx, word| {
            give_back_all(port, tx, core::mem::take(&mut direct));
            self.host.spent(Work::Completed { of: port.id, frames: slots.len() as u32 });
            self.work_for_sender(cx, port, tx, word);
        });
        if !done {
            // Another core has the claim. The word that was left may already be served, before the slots are in
            // the queue; so they are put there first and word is left again.
            let words = slots.iter().map(|slot| NonZeroU64::MIN.saturating_add(u64::from(*slot)));
            let put = port.completed.put(words);
            debug_assert_eq!(put, slots.len(), "there is a place for every slot");
            self.serve_sender(cx, port, Word::COMPLETE);
        }
    }

    fn collect_completed(&mut self, port: &Port, tx: &mut TxSide) {
        let mut slots = [0; BATCH];
        loop {
            let count = port.completed.peek(&mut slots);
            if count == 0 {
                return;
            }
            for slot in &slots[..count] {
                give_back(port, tx, (*slot - 1) as u16);
            }
            port.completed.take(count);
        }
    }

    fn publish_completed(&mut self, port: &Port, tx: &mut TxSide) {
        if let Source::Ring(queue) = &mut tx.source {
            queue.publish();
            if queue.wants_interrupt() {
                self.notify_of_buffers(port);
            }
        }
    }

    /// Switches what waits at the source, batch by batch.
    fn switch_source(&mut self, cx: &mut CoreContext, port: &Port, tx: &mut TxSide) {
        let mut left = BUDGET;
        if let Source::Ring(queue) = &mut tx.source {
            queue.disable_kicks();
        }
        loop {
            let (taken, fault) = match &mut tx.source {
                Source::Ring(_) => self.take_from_ring(cx, port, tx),
                Source::Device { .. } => self.take_from_device(&mut cx.batch, port, tx),
            };
            if cx.batch.len > 0 {
                self.switch_batch(cx, port, tx);
            }
            if taken.frames > 0 {
                self.host.spent(Work::Switched { from: port.id, frames: taken.frames as u32 });
            }
            let counters = self.port_counters(port);
            counters.tx.frames.add(taken.frames);
            counters.tx.bytes.add(taken.bytes);
            self.entered.frames += taken.frames as u32;
            if let Some(fault) = fault {
                return self.fail(port, fault);
            }
            match &mut tx.source {
                // A device is pulled once an entry: its host watches it, and comes back for what it left.
                Source::Device { .. } => return self.entered.more |= taken.is_full,
                // Whoever polls comes back without a kick.
                Source::Ring(_) if taken.frames == 0 && self.visit == Visit::Poll(port.id) => return,
                Source::Ring(_)
                    if planted!(ForgottenKick) && taken.frames == 0 && self.visit == Visit::Idle =>
                {
                    return;
                }
                Source::Ring(queue) if taken.frames == 0 => match queue.enable_kicks() {
                    Ok(false) => return,
                    Ok(true) => queue.disable_kicks(),
                    Err(fault) => return self.fail(port, PortFault::TxRing(fault)),
                },
                Source::Ring(_) => {}
            }
            left = left.saturating_sub(taken.frames as u32);
            if left == 0 {
                match self.visit {
                    Visit::Transmit(vm) | Visit::Poll(vm) if vm == port.id => self.entered.more = true,
                    _ => {
                        port.unserved.store(true, Ordering::Release);
                        self.leave_rest(port);
                    }
                }
                return;
            }
        }
    }

    fn take_from_ring(
        &mut self,
        cx: &mut CoreContext,
        port: &Port,
        tx: &mut TxSide,
    ) -> (Taken, Option<PortFault>) {
        let Source::Ring(queue) = &mut tx.source else { unreachable!("the caller matched") };
        let CoreContext { batch, cache, .. } = cx;
        let batch = &mut **batch;
        batch.clear();
        let mut taken = Taken::default();
        let outcome = queue.available().and_then(|available| {
            let count = usize::from(available).min(BATCH);
            while (taken.frames as usize) < count {
                let first = batch.len;
                let left = count - taken.frames as usize;
                let declined = batch.take_plain_frames(&self.switch.table, cache, port, queue, left);
                let bytes = &batch.bytes[first..batch.len];
                taken.frames += bytes.len() as u64;
                taken.bytes += bytes.iter().map(|bytes| u64::from(*bytes)).sum::<u64>();
                if bytes.len() < left {
                    if let Some(head) = declined {
                        queue.unpop(head);
                    }
                    taken.bytes += u64::from(self.take_any(batch, port, queue)?);
                    taken.frames += 1;
                }
            }
            Ok(())
        });
        (taken, outcome.err().map(PortFault::TxRing))
    }

    /// Takes the next frame off the ring, whatever it is like. Answers its bytes.
    #[inline(never)]
    fn take_any(
        &mut self,
        batch: &mut Batch,
        port: &Port,
        queue: &mut DeviceQueue,
    ) -> Result<u32, RingFault> {
        let head = queue.pop()?;
        if !port.frames.is_free(head) {
            return Err(RingFault::HeadInUse(head));
        }
        let mut segments = Segments::new();
        let bytes = queue.walk(head, &mut segments)?;
        if let Err(reason) = take_frame(batch, port, head, bytes, &segments) {
            self.port_counters(port).drop_tx(reason);
            queue.push_used(head, 0);
        }
        Ok(bytes.saturating_sub(PREFIX))
    }

    fn take_from_device(
        &mut self,
        batch: &mut Batch,
        port: &Port,
        tx: &mut TxSide,
    ) -> (Taken, Option<PortFault>) {
        let Source::Device { device, buffers, free, batch: size } = &mut tx.source else {
            unreachable!("the caller matched")
        };
        batch.clear();
        let mut taken = Taken::default();
        let mut slots = [PullSlot { buffer: Segment::EMPTY, bytes: 0 }; BATCH];
        let count = (*size).min(free.len());
        for (place, slot) in slots.iter_mut().zip(free.iter().rev().take(count)) {
            place.buffer = buffers.slot(*slot);
        }
        let pulled = match device.pull(&mut slots[..count]) {
            Ok(pulled) => pulled.min(count),
            Err(fault) => return (taken, Some(PortFault::Device(fault))),
        };
        taken.is_full = count > 0 && pulled == count;
        let mut longest = 0;
        let keep = free.len() - pulled;
        // The slots that were filled are on top of the stack, the first one topmost.
        let mut filled = [0; BATCH];
        for (place, slot) in filled.iter_mut().zip(free.drain(keep..).rev()) {
            *place = slot;
        }
        for (slot, place) in filled[..pulled].iter().zip(&slots) {
            taken.frames += 1;
            taken.bytes += u64::from(place.bytes.saturating_sub(VNET_HDR_BYTES as u32));
            longest = longest.max(place.bytes);
            if let Err(reason) = take_buffer(batch, port, *slot, place.buffer.first(place.bytes)) {
                self.port_counters(port).drop_tx(reason);
                free.push(*slot);
            }
        }
        // Grown as long as pulls come back full, so that a lone packet is not followed by a fruitless read.
        *size = match longest {
            _ if pulled < count => (*size).max(2) / 2,
            LARGE_FRAME_BYTES.. => LARGE_FRAME_BATCH,
            _ => (*size * 2).min(BATCH),
        };
        (taken, None)
    }

    /// The two passes over the batch.
    #[inline(never)]
    fn switch_batch(&mut self, cx: &mut CoreContext, port: &Port, tx: &mut TxSide) {
        let switch = self.switch;
        let table = &switch.table;
        let CoreContext { batch, cache, outputs, push, .. } = cx;
        let batch = &mut **batch;
        if batch.unkeyed != 0 {
            self.extract_keys(batch, cache, port, tx);
        }
        let trains = batch.trains.min(BATCH);
        for (guess, hash) in batch.guesses[..trains].iter_mut().zip(&batch.hashes[..trains]) {
            *guess = cache.guess(*hash);
            table.prefetch(*guess);
            crate::prefetch(self.counters.flows.as_ptr().wrapping_add(guess.0 as usize));
        }
        batch.firsts[trains] = batch.len as u16;
        let stamp = FrameRef::new(port.id, 0, NO_EDIT, self.now_ms);
        let mut hits = 0;
        let mut end = 0;
        for train in 0..trains {
            let mut frames = end..usize::from(batch.firsts[train + 1]);
            end = frames.end;
            let (hash, key) = (batch.hashes[train], &batch.keys[train]);
            // Behind a packet of the same flow that waits, these wait too.
            let waits = !tx.asked.is_empty() && tx.asked.contains(&Asked { hash, for_flow: true });
            let flow = match table.covering(batch.guesses[train], key) {
                Some(flow) if !waits => {
                    hits += frames.len() as u64;
                    flow
                }
                _ => match self.find_or_hold(cache, port, tx, batch, train, &mut frames) {
                    Some(flow) => flow,
                    None => continue,
                },
            };
            let mut bytes = 0;
            let packets = frames.len() as u64;
            match flow.decision() {
                Decision::Single(to) => {
                    for (slot, frame_bytes) in batch.slots[frames.clone()].iter().zip(&batch.bytes[frames]) {
                        bytes += u64::from(*frame_bytes);
                        // Its one copy was noted when the frame was taken.
                        outputs.add(to, stamp.with_slot(*slot));
                    }
                }
                Decision::Program(program) => {
                    for (slot, frame_bytes) in batch.slots[frames.clone()].iter().zip(&batch.bytes[frames]) {
                        bytes += u64::from(*frame_bytes);
                        // The batch's single outputs come on top, and are not checked one by one.
                        if program.outputs + BATCH > outputs.room() {
                            self.dispatch(outputs, push, port, tx);
                        }
                        self.execute(outputs, port, tx, (*slot, key, hash), &program.actions);
                    }
                }
            }
            self.count_flow(flow.index, packets, bytes);
        }
        self.counters.activity.cache_hits.add(hits);
        self.dispatch(outputs, push, port, tx);
    }

    /// The flow for those frames of a train that are not to wait, if the cache does not remember it or some wait already.
    /// The others are held, and no longer among its `frames`.
    #[inline]
    fn find_or_hold(
        &mut self,
        cache: &mut ExactMatchCache,
        port: &Port,
        tx: &mut TxSide,
        batch: &Batch,
        train: usize,
        frames: &mut Range<usize>,
    ) -> Option<Flow<'a>> {
        let (hash, key) = (batch.hashes[train], &batch.keys[train]);
        while frames.start < frames.end {
            let waits = tx.asked.contains(&Asked { hash, for_flow: true });
            if !waits && let Some(flow) = self.find_in_table(cache, key, hash, frames.len()) {
                return Some(flow);
            }
            let slot = batch.slots[frames.start];
            self.hold(port, tx, slot, key, hash, (!waits).then_some(UpcallReason::Miss));
            frames.start += 1;
        }
        None
    }

    /// Makes the keys of those frames of the batch that have none yet. Frames without a key are dropped from it.
    ///
    /// That is done when all headers are copied, not for each behind its copy: a load of bytes that two stores
    /// have just written waits until both have left the core.
    #[inline(never)]
    fn extract_keys(&mut self, batch: &mut Batch, cache: &ExactMatchCache, port: &Port, tx: &mut TxSide) {
        let trains = batch.trains.min(BATCH);
        batch.firsts[trains] = batch.len as u16;
        (batch.len, batch.trains) = (0, 0);
        for from in 0..trains {
            let frames = batch.frames(from);
            let to = batch.trains;
            if batch.unkeyed >> from & 1 == 0 {
                batch.hashes[to] = batch.hashes[from];
                batch.keys.swap(to, from);
            } else {
                let (slot, bytes) = (batch.slots[frames.start], batch.bytes[frames.start]);
                // SAFETY: this core has the claim on the sender's transmit side.
                let header = unsafe { port.frames.header(slot) };
                let key = &mut batch.keys[to];
                if let Err(malformed) = extract(header, bytes, port.in_port, 0, key) {
                    self.drop_frame(port, tx, slot, malformed.into());
                    continue;
                }
                let hash = self.switch.table.hash(key);
                batch.hashes[to] = hash;
                port.frames.slot(slot).set_hash(hash);
                cache.prefetch(hash);
            }
            batch.firsts[to] = batch.len as u16;
            batch.slots.copy_within(frames.clone(), batch.len);
            batch.bytes.copy_within(frames.clone(), batch.len);
            batch.len += frames.len();
            batch.trains += 1;
        }
    }

    /// The flow in the table for so many frames of a key; if there is none, the first of them missed.
    fn find_in_table(
        &self,
        cache: &mut ExactMatchCache,
        key: &FlowKey,
        hash: u64,
        frames: usize,
    ) -> Option<Flow<'a>> {
        let found = self.switch.table.find(key);
        match found {
            Some(flow) => {
                self.counters.activity.table_hits.add(frames as u64);
                cache.insert(hash, flow.index);
            }
            None => self.counters.activity.misses.add(1),
        }
        found
    }

    #[inline]
    fn count_flow(&self, index: FlowIndex, packets: u64, bytes: u64) {
        let flow = &self.counters.flows[index.0 as usize];
        flow.packets.add(packets);
        flow.bytes.add(bytes);
        flow.used.set(self.now.0);
    }

    /// Applies a flow's actions to one frame: all of them, or none and a counted drop.
    fn execute(
        &mut self,
        outputs: &mut Outputs,
        port: &Port,
        tx: &mut TxSide,
        (slot, key, hash): (u16, &FlowKey, u64),
        actions: &[Action],
    ) {
        let mut program = Program { edited: None, edit: NO_EDIT };
        outputs.staged.clear();
        for action in actions {
            let step = match action {
                Action::Output(to) => program.output(&mut outputs.staged, port, tx, slot, *to),
                Action::Controller if outputs.staged.is_empty() => {
                    return self.hold(port, tx, slot, key, hash, Some(UpcallReason::Action));
                }
                // Copies are on their way already: the packet cannot wait for a verdict as well.
                Action::Controller => Ok(()),
                rewrite => program.rewrite(port, slot, *rewrite),
            };
            if let Err(reason) = step {
                return self.drop_frame(port, tx, slot, reason);
            }
        }
        if outputs.staged.is_empty() {
            return self.drop_frame(port, tx, slot, DropReason::FlowDrop);
        }
        let copies = outputs.staged.len() as u32;
        port.frames.set_copies(slot, copies);
        self.port_counters(port).tx.replicated.add(u64::from(copies) - 1);
        for at in 0..outputs.staged.len() {
            let (to, edit) = outputs.staged[at];
            outputs.add(to, FrameRef::new(port.id, slot, edit, self.now_ms));
        }
    }

    /// The second pass: each receiver is visited once.
    fn dispatch(&mut self, outputs: &mut Outputs, push: &mut PushScratch, port: &Port, tx: &mut TxSide) {
        outputs.sort();
        let mut start = 0;
        for Receiver { port: to, count } in outputs.receivers.drain(..) {
            self.visit(push, port, tx, to, &outputs.sorted[start..start + count]);
            start += count;
        }
    }

    fn visit(&mut self, push: &mut PushScratch, port: &Port, tx: &mut TxSide, to: PortId, run: &[FrameRef]) {
        let count = run.len();
        let counters = self.port_counters(port);
        let (receiver, enabled) = match self.receiver(to) {
            Ok(found) => found,
            Err(reason) => {
                for frame in run {
                    counters.drop_tx(reason);
                    finish_copy(port, tx, frame.slot());
                }
                return;
            }
        };
        counters.tx.forwarded.add(count as u64);
        self.port_counters(receiver).rx.offered.add(count as u64);
        if let Some(device) = &receiver.device {
            self.push(push, port, receiver, &**device, run);
            run.iter().for_each(|frame| finish_copy(port, tx, frame.slot()));
            return;
        }
        match enabled {
            Enabled::FIRST => self.queue(port, tx, receiver, run),
            _ => run.chunks(BATCH).for_each(|run| self.spread(port, tx, receiver, enabled, run)),
        }
    }

    /// The first lane of the port that frames are for, if they can go there, and the lanes that they can go by.
    #[inline]
    fn receiver(&self, to: PortId) -> Result<(&'a Port, Enabled), DropReason> {
        let found = self.switch.port(to);
        // A further lane's number is no port's.
        if let Some(receiver) = found.filter(|receiver| receiver.lane == 0 && receiver.is_up()) {
            let enabled = receiver.lanes.enabled();
            if !enabled.is_empty() {
                return Ok((receiver, enabled));
            }
        }
        Err(self.switch.why_not(to, found))
    }

    /// Puts a run of frames into the internal receive queues of the enabled lanes, each flow's into the same one.
    #[inline(never)]
    fn spread(&mut self, port: &Port, tx: &mut TxSide, receiver: &Port, enabled: Enabled, run: &[FrameRef]) {
        let mut parts: [ArrayVec<FrameRef, BATCH>; MAX_LANES] = Default::default();
        for frame in run {
            let lane = enabled.lane(port.frames.hash(frame.slot())).expect("a lane is enabled");
            parts[lane].push(*frame);
        }
        for (lane, part) in receiver.lanes.numbers().iter().zip(&parts).filter(|(_, part)| !part.is_empty()) {
            let lane = self.switch.port(*lane).expect("lanes stay while their port is up");
            self.queue(port, tx, lane, part);
        }
    }

    /// Puts a run of frames into the internal receive queue of a lane.
    #[inline]
    fn queue(&mut self, port: &Port, tx: &mut TxSide, receiver: &Port, run: &[FrameRef]) {
        let taken = receiver.take_in(port.id, run);
        if taken < run.len() {
            self.port_counters(receiver).drop_rx(DropReason::RxQueueFull, (run.len() - taken) as u64);
            let kept = taken + usize::from(planted!(LeakedBuffer) && taken > 0);
            run[kept..].iter().for_each(|frame| finish_copy(port, tx, frame.slot()));
        }
        self.announce(receiver);
    }

    /// Lets a frame wait for the control plane, with an upcall of its own or behind another's.
    #[cold]
    fn hold(
        &mut self,
        port: &Port,
        tx: &mut TxSide,
        slot: u16,
        key: &FlowKey,
        hash: u64,
        reason: Option<UpcallReason>,
    ) {
        if tx.held.len() == tx.held.capacity() {
            return self.drop_frame(port, tx, slot, DropReason::UpcallQueueFull);
        }
        let by_action = reason == Some(UpcallReason::Action);
        let mut held = Held { slot, hash, upcall: None, by_action, since_ms: self.now_ms };
        if let Some(reason) = reason {
            let number = tx.next_upcall;
            // SAFETY: this core has the claim on the sender's transmit side.
            let (frame, header) = unsafe { (port.frames.frame(slot), port.frames.header(slot)) };
            let upcall = Upcall {
                id: UpcallId { port: port.id, number },
                reason,
                key: *key,
                header: header.iter().copied().collect(),
                frame_bytes: frame.bytes,
            };
            if tx.asked.len() == tx.asked.capacity() || port.upcalls.push(upcall).is_err() {
                return self.drop_frame(port, tx, slot, DropReason::UpcallQueueFull);
            }
            tx.asked.push(Asked { hash, for_flow: !by_action });
            tx.next_upcall = number.wrapping_add(1);
            held.upcall = Some(number);
            self.port_counters(port).tx.upcalls.add(1);
            self.entered.upcalls = true;
            self.host.spent(Work::Missed { from: port.id });
        }
        tx.held.push_back(held);
        self.arm_for_patience(port, 0);
    }

    /// Carries out what the control plane has decided.
    fn apply_verdicts(&mut self, cx: &mut CoreContext, port: &Port, tx: &mut TxSide) {
        let CoreContext { cache, outputs, push, .. } = cx;
        while let Some((number, verdict)) = port.verdicts.pop() {
            // A packet that is no longer there waited too long, and its drop was counted.
            let Some(head) = tx.held.iter().find(|held| held.upcall == Some(number)) else { continue };
            let (hash, alone) = (head.hash, head.by_action);
            tx.answered(Asked { hash, for_flow: !alone });
            for _ in 0..tx.held.len() {
                let Some(held) = tx.held.pop_front() else { break };
                if held.upcall != Some(number) && (alone || held.hash != hash || held.by_action) {
                    tx.held.push_back(held);
                    continue;
                }
                self.release(cache, outputs, push, port, tx, held, &verdict);
            }
        }
        self.dispatch(outputs, push, port, tx);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a context, borrowed apart")]
    fn release(
        &mut self,
        cache: &mut ExactMatchCache,
        outputs: &mut Outputs,
        push: &mut PushScratch,
        port: &Port,
        tx: &mut TxSide,
        held: Held,
        verdict: &Verdict,
    ) {
        let (slot, hash) = (held.slot, held.hash);
        // SAFETY: this core has the claim on the sender's transmit side.
        let (frame, header) = unsafe { (port.frames.frame(slot), port.frames.header(slot)) };
        let bytes = frame.bytes;
        let mut key = FlowKey::ZERO;
        if let Err(malformed) = extract(header, bytes, port.in_port, 0, &mut key) {
            return self.drop_frame(port, tx, slot, malformed.into());
        }
        if outputs.room() < MAX_OUTPUTS {
            self.dispatch(outputs, push, port, tx);
        }
        match verdict {
            Verdict::Drop => self.drop_frame(port, tx, slot, DropReason::ControlPlane),
            Verdict::Execute(actions) => self.execute(outputs, port, tx, (slot, &key, hash), actions),
            Verdict::Retry => {
                // One before it may have missed again, and so asked again: then it waits behind that one, even
                // if the flow has come meanwhile. No other of its flow has an upcall of its own.
                let behind = tx.asked.contains(&Asked { hash, for_flow: true });
                let found = if behind { None } else { self.find_in_table(cache, &key, hash, 1) };
                if let Some(flow) = found {
                    self.count_flow(flow.index, 1, bytes.into());
                    let single;
                    let actions = match flow.decision() {
                        Decision::Single(to) => {
                            single = [Action::Output(to)];
                            &single[..]
                        }
                        Decision::Program(program) => &program.actions,
                    };
                    return self.execute(outputs, port, tx, (slot, &key, hash), actions);
                }
                self.hold(port, tx, slot, &key, hash, (!behind).then_some(UpcallReason::Miss));
                // Its patience goes on.
                if let Some(again) = tx.held.back_mut().filter(|again| again.slot == slot) {
                    again.since_ms = held.since_ms;
                }
            }
        }
    }

    /// Drops held frames: all of them, or those that have waited too long and what waits behind those.
    fn drop_held(&mut self, port: &Port, tx: &mut TxSide, all: bool, reason: DropReason) {
        let overdue =
            |entry: &Self, held: &Held| all || entry.is_overdue(waited_ms(held.since_ms, entry.now_ms));
        while let Some(at) = tx.held.iter().position(|held| overdue(self, held)) {
            let (hash, alone) = (tx.held[at].hash, tx.held[at].by_action);
            let first = tx.held.remove(at).expect("it was just found");
            tx.answered(Asked { hash, for_flow: !alone });
            self.drop_frame(port, tx, first.slot, reason);
            // Nobody will ask for them any more; and packets to come must not wait behind them.
            for _ in 0..if alone { 0 } else { tx.held.len() } {
                match tx.held.pop_front() {
                    Some(held) if held.hash == hash && !held.by_action => {
                        self.drop_frame(port, tx, held.slot, reason);
                    }
                    Some(held) => tx.held.push_back(held),
                    None => break,
                }
            }
        }
        let oldest = tx.held.iter().map(|held| waited_ms(held.since_ms, self.now_ms)).max();
        if let Some(waited_ms) = oldest {
            self.arm_for_patience(port, waited_ms);
        }
    }

    #[cold]
    fn drop_frame(&mut self, port: &Port, tx: &mut TxSide, slot: u16, reason: DropReason) {
        self.port_counters(port).drop_tx(reason);
        port.frames.set_copies(slot, 0);
        give_back(port, tx, slot);
    }
}

/// The actions of one packet, as far as they were applied.
struct Program {
    /// The header as rewritten so far.
    edited: Option<(Header, Layout, VnetHdr)>,
    /// The edited header's place in the pool, once an output uses it.
    edit: u16,
}

impl Program {
    fn output(
        &mut self,
        staged: &mut Vec<(PortId, u16)>,
        port: &Port,
        tx: &mut TxSide,
        slot: u16,
        to: PortId,
    ) -> Result<(), DropReason> {
        if let (NO_EDIT, Some((header, _, vnet))) = (self.edit, &self.edited) {
            self.edit = tx.free_edits.pop().ok_or(DropReason::EditsExhausted)?;
            // SAFETY: this core has the claim on the sender's transmit side, the edit was free, and the frame's
            // references are published after its actions were all applied.
            unsafe { port.frames.add_edit(slot, self.edit, *header, *vnet) };
        }
        staged.push((to, self.edit));
        Ok(())
    }

    fn rewrite(&mut self, port: &Port, slot: u16, action: Action) -> Result<(), DropReason> {
        if self.edited.is_none() {
            // SAFETY: this core has the claim on the sender's transmit side.
            let (frame, header) = unsafe { (port.frames.frame(slot), port.frames.header(slot)) };
            let mut key = FlowKey::ZERO;
            let layout = extract(header, frame.bytes, port.in_port, 0, &mut key)?;
            self.edited = Some((Header::new(header), layout, frame.vnet));
        }
        let (header, layout, vnet) = self.edited.as_mut().expect("it was just made");
        self.edit = NO_EDIT;
        edit(&[action], header, layout, vnet).map_err(|_| DropReason::BadEdit)
    }
}

/// One copy of a frame is done with, on the core that has the claim on its sender's transmit side.
#[inline]
fn finish_copy(port: &Port, tx: &mut TxSide, slot: u16) {
    if port.frames.copied(slot) {
        give_back(port, tx, slot);
    }
}

/// As [`give_back`], for several.
fn give_back_all(port: &Port, tx: &mut TxSide, slots: &[u16]) {
    if let Source::Ring(queue) = &mut tx.source
        && tx.free_edits.len() == port.frames.edits()
    {
        // The usual frames: from a ring, and as they came, since none of the sender's is edited.
        return queue.push_used_all(slots);
    }
    for slot in slots {
        give_back(port, tx, *slot);
    }
}

/// Gives a frame's slot back: the chain to the VM, the buffer to the device, edited headers to their pool.
#[inline]
fn give_back(port: &Port, tx: &mut TxSide, slot: u16) {
    // SAFETY: this core has the claim on the sender's transmit side, and no copy of the frame is outstanding.
    let mut edit = unsafe { port.frames.frame(slot) }.first_edit;
    while edit != NO_EDIT {
        tx.free_edits.push(edit);
        // SAFETY: as above; the chain of edits is the frame's own.
        edit = unsafe { port.frames.edited(edit) }.next;
    }
    match &mut tx.source {
        Source::Ring(queue) => queue.push_used(slot, 0),
        Source::Device { free, .. } => free.push(slot),
    }
}

/// Copies a frame's header out of the buffers that the VM put the frame in, checks it, and adds the frame to the
/// batch.
#[inline(never)]
fn take_frame(
    batch: &mut Batch,
    port: &Port,
    slot: u16,
    bytes: u32,
    segments: &[Segment],
) -> Result<(), DropReason> {
    let frame_bytes = frame_bytes(bytes)?;
    let header_bytes = frame_bytes.min(HEADER_BYTES as u32);
    let mut raw = [0; VNET_HDR_BYTES];
    // SAFETY: the slot is free and this core has the claim on the sender's transmit side.
    let header = &mut unsafe { port.frames.header_mut(slot) }[..header_bytes as usize];
    let mut cursor = Cursor { segments, skipped: 0 };
    cursor.read(&mut raw);
    cursor.read(header);
    let payload: Segments = cursor.remaining().collect();
    add_frame(batch, port, slot, frame_bytes, &raw, header, &payload)
}

#[inline(never)]
fn add_frame(
    batch: &mut Batch,
    port: &Port,
    slot: u16,
    bytes: u32,
    raw: &[u8; VNET_HDR_BYTES],
    header: &[u8],
    payload: &[Segment],
) -> Result<(), DropReason> {
    let vnet = VnetHdr::decode(raw).map_err(|_| DropReason::BadVnetHdr)?;
    vnet.check(bytes).map_err(|_| DropReason::BadVnetHdr)?;
    batch.add(port, slot, bytes);
    // SAFETY: the slot is free and this core has the claim on the sender's transmit side.
    unsafe { port.frames.fill(slot, bytes, vnet, header, payload) };
    Ok(())
}

/// Adds a frame that a device left in a buffer of the switch's own to the batch: nothing is copied.
fn take_buffer(batch: &mut Batch, port: &Port, slot: u16, buffer: Segment) -> Result<(), DropReason> {
    let frame_bytes = frame_bytes(buffer.len())?;
    let mut raw = [0; VNET_HDR_BYTES];
    // SAFETY: the buffer is the switch's own and long enough, as was just checked.
    unsafe { buffer.read(&mut raw) };
    let start = buffer.skip(VNET_HDR_BYTES as u32);
    let header = start.first(HEADER_BYTES as u32);
    let payload = start.skip(header.len());
    let payload = if payload.is_empty() { &[][..] } else { core::slice::from_ref(&payload) };
    // SAFETY: the device is done with the buffer, and nobody writes it before the slot is free again.
    let header = unsafe { core::slice::from_raw_parts(header.as_ptr(), header.len() as usize) };
    add_frame(batch, port, slot, frame_bytes, &raw, header, payload)
}

fn frame_bytes(bytes: u32) -> Result<u32, DropReason> {
    let frame_bytes = bytes.saturating_sub(VNET_HDR_BYTES as u32);
    if frame_bytes < MIN_FRAME_BYTES as u32 {
        return Err(DropReason::Truncated);
    }
    if frame_bytes > MAX_FRAME_BYTES as u32 {
        return Err(DropReason::TooLong);
    }
    Ok(frame_bytes)
}

impl Batch {
    fn clear(&mut self) {
        (self.len, self.trains, self.unkeyed, self.last.0) = (0, 0, 0, Train::NONE);
    }

    fn add(&mut self, port: &Port, slot: u16, bytes: u32) {
        let at = self.len;
        // In flight from here on: a ring that offers the same head again in this batch is found out.
        port.frames.set_copies(slot, 1);
        self.slots[at] = slot;
        self.bytes[at] = bytes;
        self.len = at + 1;
        self.begin_unkeyed(at);
    }

    /// The frame at `at` begins a train without a key.
    #[inline]
    fn begin_unkeyed(&mut self, at: usize) {
        self.unkeyed |= 1 << self.trains;
        self.firsts[self.trains] = at as u16;
        self.trains += 1;
        self.last.0 = Train::NONE;
    }

    /// The places of a train's frames, once the end of the last train is known.
    #[inline]
    fn frames(&self, train: usize) -> Range<usize> {
        usize::from(self.firsts[train])..usize::from(self.firsts[train + 1])
    }

    /// Takes frames off the ring as long as there are some and [`Batch::take_plain`] takes them, `count` at the most.
    /// Answers the head of the one that it did not take, if it was popped.
    #[inline(never)]
    fn take_plain_frames(
        &mut self,
        table: &FlowTable,
        cache: &ExactMatchCache,
        port: &Port,
        queue: &mut DeviceQueue,
        count: usize,
    ) -> Option<u16> {
        let bytes = PREFIX + START_BYTES as u32;
        if let Some(queue) = queue.as_split() {
            return self.take_popped(table, cache, port, count, || queue.pop_single(bytes));
        }
        self.take_popped(table, cache, port, count, || queue.pop_single(bytes))
    }

    #[inline(always)]
    fn take_popped(
        &mut self,
        table: &FlowTable,
        cache: &ExactMatchCache,
        port: &Port,
        count: usize,
        mut pop: impl FnMut() -> Option<(u16, Segment)>,
    ) -> Option<u16> {
        for _ in 0..count {
            let (head, buffer) = pop()?;
            if !self.take_plain(table, cache, port, head, buffer) {
                return Some(head);
            }
        }
        None
    }

    /// Adds the frame in `buffer`, which has room for a `virtio_net_hdr` and [`START_BYTES`], if its slot is free and
    /// nothing is asked for it; with its key and hash, if it is a [usual](usual) one. Otherwise nothing is done.
    #[inline(always)]
    fn take_plain(
        &mut self,
        table: &FlowTable,
        cache: &ExactMatchCache,
        port: &Port,
        slot: u16,
        buffer: Segment,
    ) -> bool {
        let frame = buffer.from(PREFIX);
        let at = self.len;
        if frame.len() > MAX_FRAME_BYTES as u32 || at >= BATCH {
            return false;
        }
        // SAFETY: the buffer is mapped and long enough for both.
        let (vnet, start) = unsafe { (buffer.load(), frame.load::<START_BYTES>()) };
        let start: [u64; START_WORDS] = zerocopy::transmute!(start);
        if !VnetHdr::is_plain_start(vnet) {
            return false;
        }
        // SAFETY: this core has the claim on the sender's transmit side, and the port keeps the VM's memory.
        let Some(place) = (unsafe { port.frames.fill_plain(slot, frame, start) }) else { return false };
        (self.slots[at], self.bytes[at]) = (slot, frame.len());
        self.len = at + 1;
        if self.last.0.has(start, frame.len()) {
            place.set_hash(self.last.1);
            return true;
        }
        match usual::key_line(start, frame.len(), port.in_port) {
            Some(line) => {
                let hash = table.hash_line(&line);
                cache.prefetch(hash);
                place.set_hash(hash);
                self.last = (Train::of(start), hash);
                // There are no more trains than frames: said so that it is not asked at each place.
                let train = self.trains.min(at);
                self.firsts[train] = at as u16;
                self.hashes[train] = hash;
                self.keys[train].set_line(line);
                self.trains = train + 1;
            }
            None => self.begin_unkeyed(at),
        }
        true
    }
}

/// Reads on through segments: for the rare frame whose headers lie in several.
struct Cursor<'a> {
    segments: &'a [Segment],
    skipped: u32,
}

impl Cursor<'_> {
    fn read(&mut self, mut into: &mut [u8]) {
        while let ([first, rest @ ..], false) = (self.segments, into.is_empty()) {
            let from = first.skip(self.skipped).first(into.len() as u32);
            let (now, later) = into.split_at_mut(from.len() as usize);
            // SAFETY: the port keeps its memory; the segment is as long as `now`.
            unsafe { from.read(now) };
            into = later;
            self.skipped += from.len();
            if self.skipped == first.len() {
                (self.segments, self.skipped) = (rest, 0);
            }
        }
    }

    fn remaining(&self) -> impl Iterator<Item = Segment> + '_ {
        let first = self.segments.first().map(|first| first.skip(self.skipped));
        first.into_iter().chain(self.segments.iter().skip(1).copied()).filter(|segment| !segment.is_empty())
    }
}
