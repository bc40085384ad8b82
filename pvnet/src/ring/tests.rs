//! The driver side against the device side: whatever the two do in whatever order, chains come back as a
//! plain queue of tokens says, descriptors are never lost, and neither side sleeps through work: in both formats.
use super::device::{DeviceQueue, Direction, QueueFeatures, Segments};
use super::driver::{DriverFeatures, DriverQueue, Full, IndirectTables, Used};
use super::*;
use crate::mem::{GuestMemory, MemoryFault};
use crate::run_state::Observed;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use proptest::prelude::*;

const MEMORY_BYTES: usize = 0x2_0000;
const TABLES: IndirectTables = IndirectTables { addr: 0x8000, entries: 3 };
const BUFFERS: u64 = 0x1_8000;

/// What a queue is like.
#[derive(Clone, Copy, Debug)]
struct Kind {
    format: RingFormat,
    size: u16,
    event_idx: bool,
    indirect: bool,
}

impl Kind {
    /// Both formats, each notified by index and by flag.
    fn all() -> impl Iterator<Item = Kind> {
        [(RingFormat::Split, 8), (RingFormat::Packed, 7), (RingFormat::Packed, 8)].into_iter().flat_map(
            |(format, size)| [false, true].map(|event_idx| Kind { format, size, event_idx, indirect: false }),
        )
    }

    fn any() -> impl Strategy<Value = Kind> {
        let queue = prop_oneof![
            prop_oneof![Just(4_u16), Just(8), Just(256)].prop_map(|size| (RingFormat::Split, size)),
            prop_oneof![Just(4_u16), Just(5), Just(7), Just(8), Just(256)]
                .prop_map(|size| (RingFormat::Packed, size)),
        ];
        (queue, any::<bool>(), any::<bool>()).prop_map(|((format, size), event_idx, indirect)| Kind {
            format,
            size,
            event_idx,
            indirect,
        })
    }

    fn features(self) -> QueueFeatures {
        QueueFeatures { event_idx: self.event_idx, indirect: self.indirect }
    }

    fn pair(self) -> (DriverQueue<u32>, DeviceQueue) {
        self.pair_in(Arc::new(GuestMemory::anonymous(MEMORY_BYTES)))
    }

    fn pair_in(self, memory: Arc<GuestMemory>) -> (DriverQueue<u32>, DeviceQueue) {
        let Kind { format, size, event_idx, indirect } = self;
        let features = DriverFeatures { event_idx, indirect: indirect.then_some(TABLES) };
        let addrs = QueueAddrs::contiguous(0, size);
        let driver = DriverQueue::with_format(format, &memory, size, addrs, features).unwrap();
        let device = DeviceQueue::new(memory, driver.layout(), Direction::Writable, self.features());
        (driver, device)
    }
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
    /// The same, if it is one buffer.
    TakeSingle,
    /// The device takes up to so many chains and puts them back.
    PutBack(usize),
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
        2 => Just(Operation::Take),
        2 => Just(Operation::TakeSingle),
        1 => (1..=3_usize).prop_map(Operation::PutBack),
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
    kind: Kind,
    free: u16,
    added: VecDeque<Modelled>,
    offered: VecDeque<Modelled>,
    held: Vec<(u16, Modelled)>,
    returned: VecDeque<Modelled>,
    /// How many more returned entries must wake the driver, while it sleeps.
    asleep: Option<u16>,
    /// Chains were offered since the device last looked.
    unseen: bool,
    device_asleep: bool,
    /// Chains were offered since the device fell asleep, and it was not kicked.
    kick_due: bool,
    tokens: u32,
    /// What the driver was given back, token and bytes.
    seen: Vec<(u32, u32)>,
}

impl Model {
    fn new(kind: Kind) -> Model {
        let (driver, device) = kind.pair();
        Model {
            driver,
            device,
            kind,
            free: kind.size,
            added: VecDeque::new(),
            offered: VecDeque::new(),
            held: Vec::new(),
            returned: VecDeque::new(),
            asleep: None,
            unseen: false,
            device_asleep: false,
            kick_due: false,
            tokens: 0,
            seen: Vec::new(),
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
                let used = self.driver.pop_used().unwrap().map(|used| (used.token, used.bytes));
                assert_eq!(used, expected.map(|chain| (chain.token, chain.token % 7)));
                self.seen.extend(used);
                self.free += expected.map_or(0, |c| c.cost);
            }
            Operation::Sleep(entries) => {
                let wake_at = if self.kind.event_idx { entries } else { 1 };
                let ready = self.driver.set_interrupt_after(entries);
                let returned = self.returned.iter().map(|chain| self.entries(chain)).sum();
                assert_eq!(ready, returned >= wake_at);
                self.asleep = wake_at.checked_sub(returned).filter(|more| *more > 0);
            }
            Operation::Take => self.take(),
            Operation::TakeSingle => self.take_single(),
            Operation::PutBack(chains) => self.put_back(chains),
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

    /// Used entries that a chain makes.
    fn entries(&self, chain: &Modelled) -> u16 {
        if self.kind.format == RingFormat::Packed { chain.cost } else { 1 }
    }

    fn offered(&mut self) {
        self.kick_due |= self.device_asleep && !self.added.is_empty();
        self.unseen |= !self.added.is_empty();
        self.offered.append(&mut self.added);
    }

    fn add(&mut self, buffers: usize) {
        let chain: Vec<_> = (0..buffers as u64).map(|at| (BUFFERS + 64 * at, 32 + at as u32)).collect();
        let single = self.kind.indirect && buffers <= usize::from(TABLES.entries);
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
        self.hold(head, chain);
    }

    /// The device took a chain: it is awake, whatever it asked for when it went to sleep.
    fn hold(&mut self, head: u16, chain: Modelled) {
        self.held.push((head, chain));
        (self.kick_due, self.device_asleep) = (false, false);
    }

    fn take_single(&mut self) {
        if !self.device.has_next() {
            return;
        }
        let chain = self.offered[0];
        assert_eq!(self.device.pop_single(33), None, "the first buffer of each is shorter");
        let single = self.device.pop_single(32);
        assert_eq!(single.map(|(_, segment)| segment.len()), (chain.buffers == 1).then_some(32));
        if let Some((head, _)) = single {
            self.offered.pop_front();
            self.hold(head, chain);
        }
    }

    fn put_back(&mut self, chains: usize) {
        let mut heads = Vec::new();
        while heads.len() < chains && self.device.has_next() {
            heads.push(self.device.pop().unwrap());
        }
        heads.iter().rev().for_each(|head| self.device.unpop(*head));
        assert_eq!(self.device.has_next(), !heads.is_empty());
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
        let entries = self.entries(&chain);
        self.asleep = self.asleep.and_then(|more| {
            assert!(interrupt || more > entries, "the driver sleeps and is not woken");
            more.checked_sub(entries).filter(|more| *more > 0)
        });
    }
}

proptest! {
    #[test]
    fn driver_and_device_agree_with_a_queue_of_tokens(
        kind in Kind::any(),
        operations in prop::collection::vec(operation(), 0..400),
    ) {
        let mut model = Model::new(kind);
        for operation in operations {
            model.apply(operation);
        }
    }
}

proptest! {
    #[test]
    fn both_formats_do_the_same(
        size in prop_oneof![Just(4_u16), Just(8), Just(32)],
        event_idx: bool,
        indirect: bool,
        operations in prop::collection::vec(operation(), 0..400),
    ) {
        let [split, packed] = [RingFormat::Split, RingFormat::Packed].map(|format| {
            let mut model = Model::new(Kind { format, size, event_idx, indirect });
            operations.iter().for_each(|operation| model.apply(*operation));
            (model.seen, model.driver.free(), model.driver.outstanding(), model.held.len())
        });
        prop_assert_eq!(split, packed);
    }
}

/// A word in a ring that may be true, or anything.
fn word() -> impl Strategy<Value = u16> {
    // Whose a packed descriptor is, with each direction and with a chain that goes on; small numbers; anything.
    let flags = (0..8_u16, prop_oneof![Just(0x80_u16), Just(0x8000), Just(0)]);
    prop_oneof![4 => flags.prop_map(|(low, high)| low | high), 2 => 0..16_u16, 1 => any::<u16>()]
}

proptest! {
    /// Whatever is written into a ring, a device that goes on as long as there is no fault comes to no harm, and neither
    /// takes more chains than there are nor finds a buffer outside of memory.
    #[test]
    fn any_memory_is_chains_or_a_fault(
        kind in Kind::any(),
        words in prop::collection::vec((0..128_u64, word()), 0..400),
    ) {
        let memory = Arc::new(GuestMemory::anonymous(0x1_8000));
        let (_, mut device) = Kind { indirect: false, ..kind }.pair_in(memory.clone());
        let (mut held, mut segments) = (Vec::new(), Segments::new());
        for (at, word) in words {
            // SAFETY: the memory is mapped, and nobody else looks.
            unsafe { memory.translate_whole(2 * at, 2).unwrap().write(&word.to_le_bytes()) };
            let Ok(available) = device.refresh() else { break };
            prop_assert!(available <= kind.size);
            if available > 0 {
                let single = if word & 1 == 0 { None } else { device.pop_single(1) };
                let Ok(head) = single.map_or_else(|| device.pop(), |(head, _)| Ok(head)) else { break };
                segments.clear();
                if device.walk(head, &mut segments).is_err() {
                    break;
                }
                prop_assert!(head < kind.size && segments.iter().all(|segment| segment.len() <= 0x1_8000));
                held.push(head);
            }
            if word & 2 != 0 && let Some(head) = held.pop() {
                device.push_used(head, 1);
                device.publish();
            }
            device.wants_interrupt();
            device.suppression();
            if device.enable_kicks().is_err() {
                break;
            }
        }
    }
}

/// Holds that the free-running indices survive their wrap: more chains than 2^16 go round one queue.
#[test]
fn indices_wrap() {
    for kind in Kind::all() {
        let mut model = Model::new(kind);
        for _ in 0..=70_000 / 3 {
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
        assert!(model.tokens > 1 << 16, "the indices wrapped");
    }
}

/// Holds that an interrupt which was put off is asked for again, unless the driver has looked meanwhile.
#[test]
fn an_interrupt_that_is_put_off_is_wanted_later() {
    for kind in Kind::all() {
        let (mut driver, mut device) = kind.pair();
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
        assert_eq!(device.wants_interrupt(), !kind.event_idx);
    }
}

/// Holds that a driver which asked for silence is left alone, both by event index and by flag.
#[test]
fn disabled_interrupts_stay_away() {
    for kind in Kind::all() {
        let (mut driver, mut device) = kind.pair();
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

/// Holds that several chains that are given back show at once, and not before they are published.
#[test]
fn a_batch_shows_at_once() {
    for kind in Kind::all() {
        let (mut driver, mut device) = kind.pair();
        for token in 0..30 {
            for part in 0..3 {
                let chain = [(BUFFERS, 1), (BUFFERS, 1)];
                driver.add(&[], &chain[..1 + part % 2], 3 * token + part as u32).unwrap();
                assert_eq!(device.refresh(), Ok(0), "not offered yet");
            }
            assert_eq!(driver.offer(), 3);
            driver.wants_kick();
            assert_eq!(device.available(), Ok(3));
            let heads: [u16; 3] = std::array::from_fn(|_| device.pop().unwrap());
            assert!(!device.has_next());
            device.push_used(heads[1], 2);
            device.push_used_all(&[heads[2], heads[0]]);
            assert!(!driver.has_used(), "not published yet");
            device.publish();
            let used = [(1, 2), (2, 0), (0, 0)];
            for (part, bytes) in used {
                assert_eq!(driver.pop_used(), Ok(Some(Used { token: 3 * token + part, bytes })));
            }
            assert_eq!(driver.pop_used(), Ok(None));
        }
    }
}

/// Holds that a queue goes on where another device has left it, in another map of the same memory, wherever that is.
#[test]
fn a_queue_begins_where_it_was_left() {
    for kind in Kind::all() {
        let Kind { format, size, event_idx, .. } = kind;
        let memory = Arc::new(GuestMemory::anonymous(MEMORY_BYTES));
        let features = DriverFeatures { event_idx, indirect: None };
        let addrs = QueueAddrs::contiguous(0, size);
        let mut driver = DriverQueue::with_format(format, &memory, size, addrs, features).unwrap();
        let layout = driver.layout();
        let mut device = DeviceQueue::new(memory.clone(), layout, Direction::Writable, kind.features());
        let start = if format == RingFormat::Packed { Position::PACKED_START } else { Position::SPLIT_START };
        assert_eq!(device.position(), start);
        for token in 0..100 {
            driver.add(&[], &[(BUFFERS, 1), (BUFFERS, 1)], token).unwrap();
            driver.add(&[], &[(BUFFERS, 1)], 1000).unwrap();
            driver.publish();
            assert_eq!(device.refresh(), Ok(2));
            let old = device.set_memory(memory.clone(), layout);
            assert!(Arc::ptr_eq(&old, &memory));
            for token in [token, 1000] {
                let head = device.pop().unwrap();
                device.push_used(head, 1);
                device.publish();
                // One that was offered and not taken is offered to who comes after.
                let position = device.position();
                if let (RingFormat::Packed, Position(bits)) = (format, position) {
                    assert_eq!(bits & 0xffff, bits >> 16, "all that was taken was completed");
                }
                let resume = |position| {
                    DeviceQueue::resume(
                        memory.clone(),
                        layout,
                        Direction::Writable,
                        kind.features(),
                        position,
                    )
                };
                device = resume(position).unwrap();
                assert_eq!(device.refresh(), Ok(u16::from(token != 1000)));
                assert_eq!(driver.pop_used(), Ok(Some(Used { token, bytes: 1 })));
                if format == RingFormat::Packed {
                    let beyond = Position(u32::from(size));
                    assert_eq!(resume(beyond).err(), Some(PositionError { slot: size, size }));
                }
            }
        }
    }
}

/// Holds that the driver's wish is read alike in both formats: a driver that sleeps waits, one that does not polls.
#[test]
fn suppression_tells_who_waits() {
    for kind in Kind::all() {
        let (mut driver, mut device) = kind.pair();
        for token in 0..100 {
            assert!(!driver.enable_interrupts());
            assert_eq!(device.suppression().observed(), Observed::Blocked);
            driver.disable_interrupts();
            assert_eq!(device.suppression().observed(), Observed::Running { core: None });
            driver.add(&[], &[(BUFFERS, 1)], token).unwrap();
            driver.publish();
            device.refresh().unwrap();
            let head = device.pop().unwrap();
            device.push_used(head, 1);
            device.publish();
            assert!(!device.wants_interrupt());
            assert!(driver.pop_used().unwrap().is_some());
        }
    }
}

/// Holds that a queue or its tables outside of memory, or of a size or at a place that cannot be, are refused, not
/// touched.
#[test]
fn parts_that_cannot_be_are_refused() {
    let memory = Arc::new(GuestMemory::anonymous(0x1000));
    let new = |format, addrs, size, features| {
        DriverQueue::<u32>::with_format(format, &memory, size, addrs, features).err()
    };
    let fault = |addr, bytes| Some(QueueSizeError::Memory(MemoryFault { addr, bytes }));
    let plain = DriverFeatures::default();
    for format in [RingFormat::Split, RingFormat::Packed] {
        let at = |addr| QueueAddrs::contiguous(addr, 8);
        assert_eq!(new(format, at(0x1000), 8, plain), fault(0x1000, 128));
        let tables = DriverFeatures { indirect: Some(TABLES), ..plain };
        assert_eq!(new(format, at(0), 8, tables), fault(TABLES.addr, 3 * 16 * 8));
        let unaligned = |addrs, addr| {
            assert_eq!(new(format, addrs, 8, plain), Some(QueueSizeError::Unaligned(addr)));
        };
        unaligned(QueueAddrs { desc: 8, ..at(0) }, 8);
        unaligned(QueueAddrs { avail: 0x201, ..at(0) }, 0x201);
        unaligned(QueueAddrs { used: 0x202, ..at(0) }, 0x202);
    }
    let sized = |format, size| new(format, QueueAddrs::contiguous(0, 8), size, plain);
    for size in [0, 3, 40_000] {
        assert_eq!(sized(RingFormat::Split, size), Some(QueueSizeError::Size(size)));
    }
    for size in [0, 32_769, u16::MAX] {
        assert_eq!(sized(RingFormat::Packed, size), Some(QueueSizeError::PackedSize(size)));
    }
    assert_eq!(sized(RingFormat::Packed, 7), None);
}
