//! The driver side of the split virtqueue: a VM's own end of its ring (VIRTIO 1.2, clause 2.7.13).
//!
//! ```text
//!   add, add, add ──> publish ──> (the device works) ──> pop_used, pop_used, pop_used
//!   fills descriptors   one index     "kick me?"            token and bytes of each chain,
//!   and avail entries   for all       is its answer         descriptors free again
//! ```
//!
//! The driver keeps everything that it must rely on in memory of its own: which descriptors are free,
//! how they are linked, which chains are out and how many bytes each may return. The shared descriptor
//! table is written and never read back. So a device that lies is found out ([`DeviceLied`]) and can
//! make the driver do nothing else. Nothing here allocates after [`DriverQueue::new`].
//!
//! Sleeping without losing a wake-up takes both sides' full fence (clause 2.7.10). The driver's half:
//!
//! 1. [`enable_interrupts`](DriverQueue::enable_interrupts), which fences and looks at the used index again;
//! 2. if that answers `true`, entries came in the meantime, without an interrupt: take them, do not sleep;
//! 3. otherwise sleep: the next entry will interrupt.

use super::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, NO_NOTIFY};
use super::{QueueAddrs, QueueLayout, QueueSizeError};
use crate::mem::GuestMemory;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::iter;
use core::sync::atomic::{Ordering, fence};

/// What driver and device agreed on for one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverFeatures {
    /// Notifications by index instead of by flag (`VIRTIO_F_EVENT_IDX`, clause 2.7.10).
    pub event_idx: bool,
    /// Chains of more than one buffer go in a table of their own (`VIRTIO_F_INDIRECT_DESC`, clause 2.7.5.3).
    pub indirect: Option<IndirectTables>,
}

/// Where a queue's indirect tables lie: one table for each descriptor of the ring, behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndirectTables {
    /// Guest address of the first table.
    pub addr: u64,
    /// Descriptors in each table. A chain with more buffers goes into the ring's own descriptors.
    pub entries: u16,
}

impl IndirectTables {
    /// Bytes of guest memory that the tables of a queue of `size` descriptors take.
    pub fn bytes(entries: u16, size: u16) -> u64 {
        u64::from(DESC_BYTES) * u64::from(entries) * u64::from(size)
    }
}

/// The queue has fewer free descriptors than the chain needs. It gives the chain's token back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too few free descriptors in the queue")]
pub struct Full<T>(pub T);

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used<T> {
    /// What was given to [`DriverQueue::add`] with the chain.
    pub token: T,
    /// Bytes that the device says it wrote; at most what the chain has room for.
    pub bytes: u32,
}

/// The device put something impossible in the used ring. The queue stays as it was and says the same
/// again; its owner gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceLied {
    /// More chains came back than are out.
    #[error("the device returned {returned} chains of {outstanding} outstanding")]
    UsedIndex {
        /// How far the used index moved.
        returned: u16,
        /// Chains that were published and have not come back.
        outstanding: u16,
    },
    /// There is no such descriptor.
    #[error("the device returned chain {id} of a queue of {size}")]
    NoSuchChain {
        /// The head that the device named.
        id: u32,
        /// Descriptors in the queue.
        size: u16,
    },
    /// The descriptor heads no chain that is out.
    #[error("the device returned chain {id}, which is not outstanding")]
    NotOutstanding {
        /// The head that the device named.
        id: u16,
    },
    /// More bytes than the chain's buffers hold.
    #[error("the device says it wrote {bytes} bytes into chain {id}, which has room for {room}")]
    TooLong {
        /// The head that the device named.
        id: u16,
        /// Bytes that the device says it wrote.
        bytes: u32,
        /// Bytes that the chain's device-writable buffers hold.
        room: u32,
    },
}

/// A chain that is out, filed under its head.
#[derive(Clone, Copy)]
struct Chain<T> {
    token: T,
    /// The last of the ring descriptors that it occupies; itself the head, if there is only one.
    tail: u16,
    /// How many ring descriptors it occupies.
    descriptors: u16,
    /// Bytes that the device may write.
    room: u32,
}

/// A virtqueue, seen by the driver. `T` is what a chain is known by.
///
/// All indices run freely modulo 2^16: `used <= published <= filled` and `told <= published`, never further apart
/// than the size; `told` may fall behind `used`.
pub struct DriverQueue<T> {
    layout: QueueLayout,
    event_idx: bool,
    indirect: Option<(IndirectTables, *mut u8)>,
    /// For a free descriptor the next free one, for one in a chain the next of the chain.
    next: Box<[u16]>,
    chains: Box<[Option<Chain<T>>]>,
    free_head: u16,
    free: u16,
    /// Chains put into the available ring.
    filled: u16,
    /// Chains that the device has been shown.
    published: u16,
    /// Chains for which it was found out whether the device wants a kick.
    told: u16,
    /// Chains taken back.
    used: u16,
    /// Keeps the rings and the tables mapped.
    _memory: Arc<GuestMemory>,
}

// SAFETY: the table address is accessed only through `&mut self`, and `_memory`, which is Send and Sync, keeps
// it mapped, whichever thread that is.
unsafe impl<T: Send> Send for DriverQueue<T> {}

impl<T: Copy> DriverQueue<T> {
    /// A queue of `size` descriptors at `addrs` in `memory`, with its rings initialised (clause 2.7.2). The
    /// device is to be told of it only afterwards.
    ///
    /// # Errors
    /// A size that is not a power of two, parts that are not aligned, parts or indirect tables outside `memory`.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        addrs: QueueAddrs,
        features: DriverFeatures,
    ) -> Result<Self, QueueSizeError> {
        let layout = QueueLayout::new(memory, size, addrs)?;
        let indirect = match features.indirect {
            None => None,
            Some(tables) => {
                let bytes = IndirectTables::bytes(tables.entries, size);
                let bytes =
                    u32::try_from(bytes).map_err(|_| crate::mem::MemoryFault { addr: tables.addr, bytes })?;
                Some((tables, memory.translate_whole(tables.addr, bytes)?.as_ptr()))
            }
        };
        for word in [layout.avail_flags(), layout.avail_idx(), layout.used_event()] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [layout.used_flags(), layout.used_idx(), layout.avail_event()] {
            word.store(0, Ordering::Relaxed);
        }
        Ok(DriverQueue {
            layout,
            event_idx: features.event_idx,
            indirect,
            next: (1..size).chain(iter::once(0)).collect(),
            chains: iter::repeat_n(None, size.into()).collect(),
            free_head: 0,
            free: size,
            filled: 0,
            published: 0,
            told: 0,
            used: 0,
            _memory: memory.clone(),
        })
    }

    /// Where the queue lies: what its device side is made from.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// Descriptors that are free.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Chains that the device has been shown and has not given back, as far as [`pop_used`](Self::pop_used) knows.
    pub fn outstanding(&self) -> u16 {
        self.published.wrapping_sub(self.used)
    }

    /// Puts a chain into the ring: buffers (guest address, bytes) that the device reads, then buffers that it
    /// writes (clause 2.7.4.2). The device sees it after [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Full`] when the descriptors do not suffice; nothing has changed then.
    ///
    /// # Panics
    /// If there is no buffer at all.
    #[inline]
    pub fn add(&mut self, out: &[(u64, u32)], in_: &[(u64, u32)], token: T) -> Result<(), Full<T>> {
        let buffers = out.len() + in_.len();
        assert!(buffers > 0, "a chain has at least one buffer");
        let indirect =
            self.indirect.filter(|(tables, _)| buffers > 1 && buffers <= usize::from(tables.entries));
        let descriptors = if indirect.is_some() { 1 } else { buffers };
        if descriptors > usize::from(self.free) {
            return Err(Full(token));
        }

        let head = self.free_head;
        let chain = out.iter().map(|b| (b, 0)).chain(in_.iter().map(|b| (b, DESC_WRITE)));
        let tail = match indirect {
            Some((tables, host)) => self.fill_indirect(head, tables, host, chain, buffers),
            None => self.fill_direct(head, chain, descriptors),
        };
        // The device cannot return more than a u32 counts, so neither is there room for more.
        let room = in_.iter().fold(0_u32, |room, &(_, bytes)| room.saturating_add(bytes));
        let descriptors = descriptors as u16;
        self.free_head = self.next[usize::from(tail)];
        self.free -= descriptors;
        self.chains[usize::from(head)] = Some(Chain { token, tail, descriptors, room });
        self.layout.avail_entry(self.filled).store(head.to_le(), Ordering::Relaxed);
        self.filled = self.filled.wrapping_add(1);
        Ok(())
    }

    /// Fills `count` free descriptors of the ring from `head` on; answers the last.
    #[inline]
    fn fill_direct<'b>(
        &self,
        head: u16,
        chain: impl Iterator<Item = (&'b (u64, u32), u16)>,
        count: usize,
    ) -> u16 {
        let (mut index, mut tail) = (head, head);
        for (at, (&(addr, len), flags)) in chain.enumerate() {
            let next = self.next[usize::from(index)];
            let link = if at + 1 < count { DESC_NEXT } else { 0 };
            let descriptor = Desc { addr, len, flags: flags | link, next: if link == 0 { 0 } else { next } };
            // SAFETY: every index in `next` is below the size, `_memory` keeps the table, and the descriptor is
            // free, so the device has no business with it.
            unsafe { descriptor.store(self.layout.desc, index) };
            tail = index;
            index = next;
        }
        tail
    }

    /// Fills the table that belongs to `head` and points `head` to it; answers `head`, the only one used.
    #[inline]
    fn fill_indirect<'b>(
        &self,
        head: u16,
        tables: IndirectTables,
        host: *mut u8,
        chain: impl Iterator<Item = (&'b (u64, u32), u16)>,
        count: usize,
    ) -> u16 {
        let offset = IndirectTables::bytes(tables.entries, head);
        let table = host.wrapping_add(offset as usize);
        for (at, (&(addr, len), flags)) in chain.enumerate() {
            let (link, next) = if at + 1 < count { (DESC_NEXT, at as u16 + 1) } else { (0, 0) };
            // SAFETY: `new` found room for `size` tables of `entries` descriptors, `head` is below the size and
            // `at` below `count`, which `add` held against `entries`; the table is free, as its descriptor is.
            unsafe { Desc { addr, len, flags: flags | link, next }.store(table, at as u16) };
        }
        let len = count as u32 * DESC_BYTES;
        let pointer = Desc { addr: tables.addr + offset, len, flags: DESC_INDIRECT, next: 0 };
        // SAFETY: as for a direct descriptor.
        unsafe { pointer.store(self.layout.desc, head) };
        head
    }

    /// Shows the device all chains added since the last call, and tells whether it wants a kick for them
    /// (clauses 2.7.13.3 and 2.7.13.4).
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.offer();
        self.wants_kick()
    }

    /// Shows the device all chains added since the last call, as [`publish`](Self::publish) does, but leaves for
    /// later whether it wants a kick. Answers for how many chains that is left.
    #[inline]
    pub fn offer(&mut self) -> u16 {
        if self.filled != self.published {
            // Release: whoever sees the index sees the descriptors and the ring's entries.
            self.layout.avail_idx().store(self.filled.to_le(), Ordering::Release);
            self.published = self.filled;
        }
        self.published.wrapping_sub(self.told)
    }

    /// Whether the device wants a kick for what it was shown since this was last asked, and has not seen by now.
    /// At least once in 2^16 chains it is to be asked.
    #[inline]
    pub fn wants_kick(&mut self) -> bool {
        if self.told == self.published {
            return false;
        }
        // The index must be out before the device's wish is read, or both may go to sleep.
        fence(Ordering::SeqCst);
        let (new, old) = (self.published, self.told);
        self.told = new;
        let (event, flags) = (self.layout.avail_event(), self.layout.used_flags());
        QueueLayout::wants_event(self.event_idx, event, flags, new, old)
    }

    /// Whether the device has given back a chain that [`pop_used`](Self::pop_used) has not taken.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.device_used() != self.used
    }

    /// Takes the next chain that the device is done with, if there is one (clause 2.7.14).
    ///
    /// # Errors
    /// [`DeviceLied`] when the entry cannot be true; the queue is then of no more use.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<Used<T>>, DeviceLied> {
        let returned = self.device_used().wrapping_sub(self.used);
        if returned == 0 {
            return Ok(None);
        }
        let outstanding = self.outstanding();
        if returned > outstanding {
            return Err(DeviceLied::UsedIndex { returned, outstanding });
        }
        let (id, bytes) = self.layout.load_used(self.used);
        let size = self.layout.size();
        let id =
            u16::try_from(id).ok().filter(|&id| id < size).ok_or(DeviceLied::NoSuchChain { id, size })?;
        let slot = &mut self.chains[usize::from(id)];
        let Some(Chain { token, tail, descriptors, room }) = *slot else {
            return Err(DeviceLied::NotOutstanding { id });
        };
        if bytes > room {
            return Err(DeviceLied::TooLong { id, bytes, room });
        }
        *slot = None;
        self.next[usize::from(tail)] = self.free_head;
        self.free_head = id;
        self.free += descriptors;
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used { token, bytes }))
    }

    /// Asks for an interrupt at the next used entry. Answers `true` when entries are there already: they
    /// will not interrupt, so the caller takes them before it sleeps.
    #[inline]
    #[must_use = "entries that came in the meantime do not interrupt"]
    pub fn enable_interrupts(&mut self) -> bool {
        self.set_interrupt_after(1)
    }

    /// Asks for an interrupt once `entries` more are used: at least 1, at most the queue's size. Answers `true`
    /// when so many are there already. Without event index the device can only be asked for the next one.
    #[inline]
    #[must_use = "entries that came in the meantime do not interrupt"]
    pub fn set_interrupt_after(&mut self, entries: u16) -> bool {
        let entries = if self.event_idx { entries.clamp(1, self.layout.size()) } else { 1 };
        if self.event_idx {
            let event = self.used.wrapping_add(entries - 1);
            self.layout.used_event().store(event.to_le(), Ordering::Relaxed);
        } else {
            self.layout.avail_flags().store(0, Ordering::Relaxed);
        }
        // The wish must be out before the index is read again, or both may go to sleep.
        fence(Ordering::SeqCst);
        self.device_used().wrapping_sub(self.used) >= entries
    }

    /// Asks for no interrupts. It is a hint: with event index one may still come every 65,536 entries, and one
    /// that is under way comes anyway (clause 2.7.7).
    #[inline]
    pub fn disable_interrupts(&mut self) {
        if self.event_idx {
            let passed = self.used.wrapping_sub(1);
            self.layout.used_event().store(passed.to_le(), Ordering::Relaxed);
        } else {
            self.layout.avail_flags().store(NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// The device's used index. Acquire: its entries, and what it wrote to the buffers, come with it.
    #[inline]
    fn device_used(&self) -> u16 {
        u16::from_le(self.layout.used_idx().load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    //! The driver side against the device side: whatever the two do in whatever order, chains come back as a
    //! plain queue of tokens says, descriptors are never lost, and neither side sleeps through work. Then the
    //! driver side against a device that lies, one lie a test.
    use super::*;
    use crate::ring::device::{DeviceQueue, Direction, QueueFeatures, Segments};
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const SIZE: u16 = 8;
    const TABLES: IndirectTables = IndirectTables { addr: 0x1000, entries: 3 };
    const BUFFERS: u64 = 0x2000;

    fn pair(event_idx: bool, indirect: bool) -> (DriverQueue<u32>, DeviceQueue) {
        let memory = Arc::new(GuestMemory::anonymous(0x4000));
        let addrs = QueueAddrs::contiguous(0, SIZE);
        let features = DriverFeatures { event_idx, indirect: indirect.then_some(TABLES) };
        let driver = DriverQueue::new(&memory, SIZE, addrs, features).unwrap();
        let features = QueueFeatures { event_idx, indirect };
        let device = DeviceQueue::new(memory, driver.layout, Direction::Writable, features);
        (driver, device)
    }

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        /// The driver adds a chain of so many buffers.
        Add(usize),
        /// The driver shows what it added, and leaves for later whether to kick.
        Offer,
        Publish,
        PopUsed,
        /// The driver goes to sleep, to be woken after so many used entries.
        Sleep(u16),
        /// The device takes the next chain on offer.
        Take,
        /// The device gives back one of the chains that it holds, in any order.
        GiveBack(usize),
        /// The device goes to sleep, unless something was offered since it last looked.
        DeviceSleep,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            3 => (1..=4_usize).prop_map(Operation::Add),
            1 => Just(Operation::Offer),
            2 => Just(Operation::Publish),
            3 => Just(Operation::PopUsed),
            1 => (1..=3_u16).prop_map(Operation::Sleep),
            3 => Just(Operation::Take),
            3 => any::<usize>().prop_map(Operation::GiveBack),
            1 => Just(Operation::DeviceSleep),
        ]
    }

    /// A chain as the model knows it: its token, its buffers, and the ring descriptors that it costs.
    #[derive(Clone, Copy, Debug)]
    struct Modelled {
        token: u32,
        buffers: usize,
        cost: u16,
    }

    /// Both sides of a queue, and beside them the queues of tokens that they must agree with.
    struct Model {
        driver: DriverQueue<u32>,
        device: DeviceQueue,
        event_idx: bool,
        indirect: bool,
        free: u16,
        added: VecDeque<Modelled>,
        offered: VecDeque<Modelled>,
        held: Vec<(u16, Modelled)>,
        returned: VecDeque<Modelled>,
        /// How many more returned entries must wake the driver, while it sleeps.
        asleep: Option<usize>,
        /// Chains were offered since the device last looked.
        unseen: bool,
        device_asleep: bool,
        /// Chains were offered since the device fell asleep, and it was not kicked.
        kick_due: bool,
        tokens: u32,
    }

    impl Model {
        fn new(event_idx: bool, indirect: bool) -> Model {
            let (driver, device) = pair(event_idx, indirect);
            Model {
                driver,
                device,
                event_idx,
                indirect,
                free: SIZE,
                added: VecDeque::new(),
                offered: VecDeque::new(),
                held: Vec::new(),
                returned: VecDeque::new(),
                asleep: None,
                unseen: false,
                device_asleep: false,
                kick_due: false,
                tokens: 0,
            }
        }

        fn apply(&mut self, operation: Operation) {
            match operation {
                Operation::Add(buffers) => self.add(buffers),
                Operation::Offer => {
                    self.driver.offer();
                    self.offered();
                }
                Operation::Publish => {
                    let kick = self.driver.publish();
                    self.offered();
                    if self.kick_due {
                        assert!(kick, "the device sleeps and is not kicked");
                        (self.kick_due, self.device_asleep) = (false, false);
                    }
                    assert!(!self.driver.wants_kick(), "to ask is to tell");
                }
                Operation::PopUsed => {
                    let expected = self.returned.pop_front();
                    let used = self.driver.pop_used().unwrap();
                    assert_eq!(used.map(|u| (u.token, u.bytes)), expected.map(|c| (c.token, c.token % 7)));
                    self.free += expected.map_or(0, |c| c.cost);
                }
                Operation::Sleep(entries) => {
                    let wake_at = if self.event_idx { usize::from(entries) } else { 1 };
                    let ready = self.driver.set_interrupt_after(entries);
                    assert_eq!(ready, self.returned.len() >= wake_at);
                    self.asleep = (!ready).then(|| wake_at - self.returned.len());
                }
                Operation::Take => self.take(),
                Operation::GiveBack(pick) => self.give_back(pick),
                Operation::DeviceSleep => {
                    let news = self.device.enable_kicks().unwrap();
                    assert_eq!(news, self.unseen);
                    self.unseen = false;
                    (self.kick_due, self.device_asleep) = (false, !news);
                }
            }
            assert_eq!(self.driver.free(), self.free);
            let out = self.offered.len() + self.held.len() + self.returned.len();
            assert_eq!(usize::from(self.driver.outstanding()), out);
            assert_eq!(self.driver.has_used(), !self.returned.is_empty());
        }

        fn offered(&mut self) {
            self.kick_due |= self.device_asleep && !self.added.is_empty();
            self.unseen |= !self.added.is_empty();
            self.offered.append(&mut self.added);
        }

        fn add(&mut self, buffers: usize) {
            let chain: Vec<_> = (0..buffers as u64).map(|at| (BUFFERS + 64 * at, 32 + at as u32)).collect();
            let single = self.indirect && buffers <= usize::from(TABLES.entries);
            let cost = if single { 1 } else { buffers as u16 };
            let token = self.tokens;
            self.tokens += 1;
            if cost > self.free {
                assert_eq!(self.driver.add(&[], &chain, token), Err(Full(token)));
            } else {
                assert_eq!(self.driver.add(&[], &chain, token), Ok(()));
                self.free -= cost;
                self.added.push_back(Modelled { token, buffers, cost });
            }
        }

        fn take(&mut self) {
            assert_eq!(usize::from(self.device.refresh().unwrap()), self.offered.len());
            self.unseen = false;
            let Some(chain) = self.offered.pop_front() else { return };
            let head = self.device.pop().unwrap();
            let mut segments = Segments::new();
            self.device.walk(head, &mut segments).unwrap();
            let lengths: Vec<u32> = segments.iter().map(|s| s.len()).collect();
            assert_eq!(lengths, (0..chain.buffers as u32).map(|at| 32 + at).collect::<Vec<_>>());
            self.held.push((head, chain));
        }

        fn give_back(&mut self, pick: usize) {
            if self.held.is_empty() {
                return;
            }
            let (head, chain) = self.held.swap_remove(pick % self.held.len());
            self.device.push_used(head, chain.token % 7);
            self.device.publish();
            let interrupt = self.device.wants_interrupt();
            self.returned.push_back(chain);
            self.asleep = match self.asleep {
                Some(1) => {
                    assert!(interrupt, "the driver sleeps and is not woken");
                    None
                }
                Some(more) => Some(more - 1),
                None => None,
            };
        }
    }

    proptest! {
        #[test]
        fn driver_and_device_agree_with_a_queue_of_tokens(
            event_idx: bool,
            indirect: bool,
            operations in prop::collection::vec(operation(), 0..400),
        ) {
            let mut model = Model::new(event_idx, indirect);
            for operation in operations {
                model.apply(operation);
            }
        }
    }

    /// Holds that the free-running indices survive their wrap: more chains than 2^16 go round one queue.
    #[test]
    fn indices_wrap() {
        for event_idx in [false, true] {
            let mut model = Model::new(event_idx, false);
            for _ in 0..70_000 / 3 {
                for operation in [Operation::DeviceSleep, Operation::Sleep(3)] {
                    model.apply(operation);
                }
                for _ in 0..3 {
                    model.apply(Operation::Add(1));
                }
                model.apply(Operation::Publish);
                for _ in 0..3 {
                    model.apply(Operation::Take);
                    model.apply(Operation::GiveBack(0));
                }
                assert_eq!(model.asleep, None);
                for _ in 0..3 {
                    model.apply(Operation::PopUsed);
                }
            }
            assert!(model.driver.used < 60_000, "the indices wrapped");
        }
    }

    /// Holds that an interrupt which was put off is asked for again, unless the driver has looked meanwhile.
    #[test]
    fn an_interrupt_that_is_put_off_is_wanted_later() {
        for event_idx in [false, true] {
            let (mut driver, mut device) = pair(event_idx, false);
            let arrive = |driver: &mut DriverQueue<u32>, device: &mut DeviceQueue| {
                driver.add(&[], &[(BUFFERS, 1)], 0).unwrap();
                driver.publish();
                device.refresh().unwrap();
                let head = device.pop().unwrap();
                device.push_used(head, 1);
                device.publish();
                device.wants_interrupt()
            };
            for number in 1..=3 {
                assert!(arrive(&mut driver, &mut device));
                assert_eq!(device.told(), number);
                device.put_off_interrupt();
            }
            assert!(device.wants_interrupt() && !device.wants_interrupt(), "told once");
            while driver.pop_used().unwrap().is_some() {}
            assert!(!driver.enable_interrupts());
            assert!(arrive(&mut driver, &mut device));
            device.put_off_interrupt();
            assert!(driver.pop_used().unwrap().is_some());
            assert!(!driver.enable_interrupts());
            // By its event a driver says how far it has looked; a flag says only what it wants.
            assert_eq!(device.wants_interrupt(), !event_idx);
        }
    }

    /// Holds that a driver which asked for silence is left alone, both by event index and by flag.
    #[test]
    fn disabled_interrupts_stay_away() {
        for event_idx in [false, true] {
            let (mut driver, mut device) = pair(event_idx, false);
            driver.disable_interrupts();
            for token in 0..100 {
                driver.add(&[], &[(BUFFERS, 1)], token).unwrap();
                driver.publish();
                device.refresh().unwrap();
                let head = device.pop().unwrap();
                device.push_used(head, 1);
                device.publish();
                assert!(!device.wants_interrupt());
                assert_eq!(driver.pop_used(), Ok(Some(Used { token, bytes: 1 })));
            }
        }
    }

    /// One chain of 100 bytes under head 0, published: what the lies are told about.
    fn one_outstanding() -> (DriverQueue<u32>, DeviceQueue) {
        let (mut driver, mut device) = pair(true, false);
        driver.add(&[], &[(BUFFERS, 100)], 5).unwrap();
        driver.publish();
        assert_eq!((device.refresh(), device.pop()), (Ok(1), Ok(0)));
        (driver, device)
    }

    #[test]
    fn a_used_index_that_jumps() {
        let (mut driver, _) = one_outstanding();
        for jump in [2, SIZE, SIZE + 1, u16::MAX] {
            driver.layout.used_idx().store(jump.to_le(), Ordering::Relaxed);
            let lie = DeviceLied::UsedIndex { returned: jump, outstanding: 1 };
            assert_eq!(driver.pop_used(), Err(lie));
        }
    }

    #[test]
    fn a_used_chain_that_does_not_exist_or_is_not_out() {
        let (mut driver, device) = one_outstanding();
        driver.layout.used_idx().store(1_u16.to_le(), Ordering::Relaxed);
        for id in [u32::from(SIZE), 0x1_0000, u32::MAX] {
            // The used ring's entry takes a 16-bit head; a liar writes the word's upper half as well.
            let entry = (u64::from(id) | 100 << 32).to_le();
            // SAFETY: the first used entry lies 4 bytes into the used ring, which the queue keeps mapped.
            unsafe { driver.layout.used.add(4).cast::<u64>().write_unaligned(entry) };
            assert_eq!(driver.pop_used(), Err(DeviceLied::NoSuchChain { id, size: SIZE }));
        }
        device_returns(device, 1, 0);
        assert_eq!(driver.pop_used(), Err(DeviceLied::NotOutstanding { id: 1 }));
        assert_eq!(driver.pop_used(), Err(DeviceLied::NotOutstanding { id: 1 }), "a lie stays a lie");
    }

    #[test]
    fn more_bytes_than_the_chain_has_room_for() {
        let (mut driver, device) = one_outstanding();
        device_returns(device, 0, 101);
        assert_eq!(driver.pop_used(), Err(DeviceLied::TooLong { id: 0, bytes: 101, room: 100 }));
    }

    fn device_returns(mut device: DeviceQueue, head: u16, bytes: u32) {
        device.push_used(head, bytes);
        device.publish();
    }

    /// Holds that a queue or its tables outside of memory are refused, not touched.
    #[test]
    fn parts_outside_memory_are_refused() {
        let memory = Arc::new(GuestMemory::anonymous(0x1000));
        let new = |addr, features| {
            DriverQueue::<u32>::new(&memory, SIZE, QueueAddrs::contiguous(addr, SIZE), features).err()
        };
        let fault = |addr, bytes| Some(QueueSizeError::Memory(crate::mem::MemoryFault { addr, bytes }));
        assert_eq!(new(0x1000, DriverFeatures::default()), fault(0x1000, 128));
        let indirect = Some(TABLES);
        assert_eq!(new(0, DriverFeatures { event_idx: true, indirect }), fault(0x1000, 3 * 16 * 8));
    }
}
