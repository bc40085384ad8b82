//! The megaflow table: flows in places that never move, and one hash table of places for each mask.
//!
//! ```text
//!   subtables (one a mask)          places
//!   mask A: [ tag|3 ][  0  ][ tag|0 ] ---> 0: live  match, actions
//!   mask B: [ tag|1 ]                      1: live
//!                                          2: dead, reused once every core has left
//! ```
//!
//! Many cores read; one writer, [`FlowWriter`], changes. Readers are inside an [epoch](crate::epoch).
//!
//! Protocol of a place: the writer fills it and then sets `live` with release; a reader loads `live` with
//! acquire and then reads. To remove a flow the writer clears `live` and may fill the place again only after
//! an epoch has passed, when no reader can still be reading what it held. Actions alone are changed by
//! replacing the pointer to them; the old ones are freed after an epoch.
//!
//! Limits: the number of flows and of masks is fixed when the table is made. Each mask is one more probe in
//! the worst case, so the bound on masks bounds what a tuple-space explosion (CVE-2019-25076) can cost.

use super::hash::Hasher;
use crate::action::Action;
use crate::api::{FlowId, FlowSpec, InstallError, Nanos, PortId};
use crate::epoch::{Epoch, Epochs};
use crate::key::{FlowKey, Match};
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Published, UnsafeCell, Zeros};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::mem::offset_of;
use core::ptr;
use hashbrown::HashMap;

/// A flow's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowIndex(pub(crate) u32);

/// A flow's actions, and what the fast path wants to know of them without reading them.
pub(crate) struct Program {
    pub(crate) actions: Arc<[Action]>,
    pub(crate) outputs: usize,
}

impl Program {
    fn new(actions: Arc<[Action]>) -> *mut Published<Program> {
        let outputs = actions.iter().filter(|a| matches!(a, Action::Output(_) | Action::Controller)).count();
        Published::publish(Program { actions, outputs })
    }
}

/// In [`Place::single`]: the program must be read.
const SEE_PROGRAM: u32 = u32::MAX;

/// One place.
#[repr(C, align(64))]
struct Place {
    live: AtomicBool,
    /// The port, if the program is one output and nothing else: the fast path then reads no program.
    single: AtomicU32,
    program: AtomicPtr<Published<Program>>,
    /// Whether the mask has bits in the second cache line; without, that line is never touched.
    is_cold: UnsafeCell<bool>,
    matches: UnsafeCell<Match>,
}

impl Place {
    /// A place that matches nothing and has no program: zeros.
    fn dead() -> Place {
        Place {
            live: AtomicBool::new(false),
            single: AtomicU32::new(0),
            program: AtomicPtr::default(),
            is_cold: UnsafeCell::new(false),
            matches: UnsafeCell::new(Match::new(FlowKey::ZERO, FlowKey::ZERO)),
        }
    }
}

/// What is to be done with a packet that hit.
pub(crate) enum Decision<'a> {
    /// Out of one port, as it is.
    Single(PortId),
    /// As the program says.
    Program(&'a Program),
}

/// A flow that a lookup found, for as long as the epoch lasts.
#[derive(Clone, Copy)]
pub(crate) struct Flow<'a> {
    /// Its place, as the cache remembers it and counters are kept by it.
    pub(crate) index: FlowIndex,
    place: &'a Place,
}

impl<'a> Flow<'a> {
    /// What the flow does.
    #[inline]
    pub(crate) fn decision(self) -> Decision<'a> {
        match self.place.single.load(Ordering::Acquire) {
            SEE_PROGRAM => {
                // SAFETY: a place that was live in this epoch has a program, freed only after the epoch.
                Decision::Program(unsafe { &*self.place.program.load(Ordering::Acquire) })
            }
            port => Decision::Single(PortId(port as u16)),
        }
    }
}

/// One mask's hash table: open addressing, linear probing.
struct Subtable {
    mask: FlowKey,
    /// The words in which the mask has a bit.
    words: ArrayVec<u8, 16>,
    cells: AtomicPtr<Published<Cells>>,
}

/// Each cell: upper half of the masked hash, and the place plus one. 0 is empty; a lower half of 0 is a
/// removed entry, which a search passes over.
struct Cells(Box<[AtomicU64]>);

impl Cells {
    fn new(size: usize) -> *mut Published<Cells> {
        Published::publish(Cells((0..size).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Subtable {
    /// # Safety
    /// The caller is inside an epoch, or is the one writer.
    #[inline]
    unsafe fn cells(&self) -> &[AtomicU64] {
        // SAFETY: cells are freed only after an epoch, by the writer.
        &unsafe { &*self.cells.load(Ordering::Acquire) }.0
    }
}

/// What the readers see.
pub(crate) struct FlowTable {
    hasher: Hasher,
    /// Places are not made: they are there.
    places: Zeros<Place>,
    /// Places that ever held a flow: the first ones.
    used: AtomicU32,
    subtables: Box<[AtomicPtr<Published<Subtable>>]>,
    /// Subtables in use: the first ones.
    masks: AtomicUsize,
}

// SAFETY: places are shared as the protocol in the module head says; all else is atomic or immutable.
unsafe impl Sync for FlowTable {}
// SAFETY: the table owns what its pointers reach.
unsafe impl Send for FlowTable {}

impl FlowTable {
    #[inline]
    fn find_place(&self, index: FlowIndex) -> Option<&Place> {
        self.places.get(index.0 as usize)
    }

    fn place(&self, index: FlowIndex) -> &Place {
        self.find_place(index).expect("a flow that is installed has a place")
    }

    pub(crate) fn new(max_flows: usize, max_masks: usize, seed: u64) -> FlowTable {
        FlowTable {
            hasher: Hasher::new(seed),
            // SAFETY: zeros are a dead place, which is aligned to a cache line and owns nothing; what programs come to be
            // in places is freed with the table.
            places: unsafe { Zeros::new(max_flows, Place::dead) },
            used: AtomicU32::new(0),
            subtables: (0..max_masks).map(|_| AtomicPtr::default()).collect(),
            masks: AtomicUsize::new(0),
        }
    }

    /// The hash of a packet's key, for the cache.
    #[inline]
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.key(key)
    }

    /// As [`FlowTable::hash`], of a key with this first cache line and nothing in the second.
    #[inline(always)]
    pub(crate) fn hash_line(&self, line: &[u64; 8]) -> u64 {
        self.hasher.line(line)
    }

    /// Masks in use.
    pub(crate) fn masks(&self) -> usize {
        self.masks.load(Ordering::Relaxed)
    }

    /// Starts the loads of a flow's match.
    #[inline]
    pub(crate) fn prefetch(&self, index: FlowIndex) {
        let at = self.places.as_ptr().wrapping_add(index.0 as usize).cast::<u8>();
        crate::prefetch(at);
        crate::prefetch(at.wrapping_add(offset_of!(Place, matches) + offset_of!(Match, key)));
        crate::prefetch(at.wrapping_add(offset_of!(Place, matches) + offset_of!(Match, mask)));
    }

    /// The flow at `index`, if it is live and covers `key`.
    #[inline]
    pub(crate) fn covering(&self, index: FlowIndex, key: &FlowKey) -> Option<Flow<'_>> {
        let place = self.find_place(index)?;
        if !place.live.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: a live place is not written; see the module head.
        let (matches, is_cold) = unsafe { (&*place.matches.get(), *place.is_cold.get()) };
        let covers = matches.covers_line::<0>(key) && (!is_cold || matches.covers_line::<8>(key));
        covers.then_some(Flow { index, place })
    }

    /// The live flow for `key`, mask by mask.
    pub(crate) fn find(&self, key: &FlowKey) -> Option<Flow<'_>> {
        let count = self.masks.load(Ordering::Acquire);
        for subtable in &self.subtables[..count] {
            // SAFETY: a subtable, once published, is freed only after an epoch.
            let Some(subtable) = (unsafe { subtable.load(Ordering::Acquire).as_ref() }) else { continue };
            let hash = self.hasher.masked(key.words(), subtable.mask.words(), &subtable.words);
            if let Some(flow) = self.probe(subtable, hash, key) {
                return Some(flow);
            }
        }
        None
    }

    #[inline]
    fn probe(&self, subtable: &Subtable, hash: u64, key: &FlowKey) -> Option<Flow<'_>> {
        // SAFETY: readers are inside an epoch.
        let cells = unsafe { subtable.cells() };
        // The table is never full: the writer keeps a quarter of the cells empty.
        for step in 0..cells.len() {
            let cell = cells[(hash as usize).wrapping_add(step) & (cells.len() - 1)].load(Ordering::Acquire);
            if cell == 0 {
                return None;
            }
            if cell >> 32 == hash >> 32
                && cell as u32 != 0
                && let Some(flow) = self.covering(FlowIndex(cell as u32 - 1), key)
            {
                return Some(flow);
            }
        }
        None
    }
}

impl Drop for FlowTable {
    fn drop(&mut self) {
        for index in 0..self.used.load(Ordering::Relaxed) {
            free(self.place(FlowIndex(index)).program.load(Ordering::Relaxed));
        }
        for subtable in &self.subtables {
            free(subtable.load(Ordering::Relaxed));
        }
    }
}

impl Drop for Subtable {
    fn drop(&mut self) {
        free(self.cells.load(Ordering::Relaxed));
    }
}

fn free<T>(pointer: *mut Published<T>) {
    if !pointer.is_null() {
        // SAFETY: every pointer in the table comes from Box and is freed by its one owner.
        drop(unsafe { Box::from_raw(pointer) });
    }
}

/// What a writer keeps of a flow.
struct Installed {
    index: FlowIndex,
    installed: Nanos,
}

/// Something replaced, to be freed or reused after an epoch.
enum Retired {
    Place(FlowIndex),
    Program(*mut Published<Program>),
    Subtable(*mut Published<Subtable>),
    Cells(*mut Published<Cells>),
}

/// How many cells of a subtable are taken, for growing in time.
#[derive(Default)]
struct Fill {
    live: usize,
    removed: usize,
}

/// The one writer of a [`FlowTable`].
pub(crate) struct FlowWriter {
    max_flows: usize,
    flows: HashMap<FlowId, Installed, FixedState>,
    fills: Vec<Fill>,
    free: Vec<FlowIndex>,
    retired: Vec<(Epoch, Retired)>,
}

/// Flow ids are the control plane's own counter, nothing that an attacker chooses.
#[derive(Clone, Default)]
pub(crate) struct FixedState;

impl core::hash::BuildHasher for FixedState {
    type Hasher = IdHasher;
    fn build_hasher(&self) -> IdHasher {
        IdHasher(0)
    }
}

/// Spreads a 64-bit id.
pub(crate) struct IdHasher(u64);

impl core::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

// SAFETY: the pointers that wait to be freed are owned by this value alone.
unsafe impl Send for FlowWriter {}

impl FlowWriter {
    pub(crate) fn new(max_flows: usize) -> FlowWriter {
        FlowWriter {
            max_flows,
            flows: HashMap::with_hasher(FixedState),
            fills: Vec::new(),
            free: Vec::new(),
            retired: Vec::new(),
        }
    }

    /// Flows installed.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Installs a flow and answers its place.
    pub(crate) fn install(
        &mut self,
        table: &FlowTable,
        epochs: &Epochs,
        spec: &FlowSpec,
        now: Nanos,
    ) -> Result<FlowIndex, InstallError> {
        if self.flows.contains_key(&spec.id) {
            return Err(InstallError::DuplicateId(spec.id));
        }
        let mut mask = spec.matches.mask;
        if planted!(WrongMask) && spec.id.0.is_multiple_of(3) {
            mask.eth_dst[5] &= !1;
        }
        let matches = Match::new(spec.matches.key, mask);
        let existing = (0..table.masks()).find(|at| self.subtable(table, *at).mask == matches.mask);
        if let Some(at) = existing {
            let subtable = self.subtable(table, at);
            let hash = table.hasher.masked(matches.key.words(), matches.mask.words(), &subtable.words);
            if let Some(flow) = table.probe(subtable, hash, &matches.key) {
                return Err(InstallError::Exists(self.id_at(flow.index)));
            }
        } else if table.masks() == table.subtables.len() {
            return Err(InstallError::TooManyMasks(table.masks()));
        }
        if self.flows.len() == self.max_flows {
            return Err(InstallError::TableFull(self.max_flows));
        }
        let index = self.take_place(table, epochs).ok_or(InstallError::TableFull(self.max_flows))?;
        let at = existing.unwrap_or_else(|| self.add_subtable(table, matches.mask));

        let place = table.place(index);
        // SAFETY: the place is dead and its epoch has passed: nobody reads it.
        unsafe {
            *place.matches.get_mut() = matches;
            *place.is_cold.get_mut() = matches.mask.words()[8..].iter().any(|word| *word != 0);
        }
        place.program.store(Program::new(spec.actions.clone()), Ordering::Release);
        place.single.store(single(&spec.actions), Ordering::Release);
        place.live.store(true, Ordering::Release);
        self.insert_cell(table, epochs, at, index, &matches.key);
        self.flows.insert(spec.id, Installed { index, installed: now });
        Ok(index)
    }

    /// Gives a flow other actions. Answers whether the flow is there.
    pub(crate) fn modify(
        &mut self,
        table: &FlowTable,
        epochs: &Epochs,
        id: FlowId,
        actions: &Arc<[Action]>,
    ) -> bool {
        self.reclaim(table, epochs);
        let Some(flow) = self.flows.get(&id) else { return false };
        let place = table.place(flow.index);
        // The program first: a reader that is sent to it by `single` finds the new one.
        let old = place.program.swap(Program::new(actions.clone()), Ordering::AcqRel);
        let are_single = |was| was != SEE_PROGRAM && single(actions) != SEE_PROGRAM;
        if !planted!(SkippedBarrier) || !are_single(place.single.load(Ordering::Relaxed)) {
            place.single.store(single(actions), Ordering::Release);
        }
        self.retired.push((epochs.advance(), Retired::Program(old)));
        true
    }

    /// Removes a flow. Answers its place, which is reused only after an epoch.
    pub(crate) fn remove(&mut self, table: &FlowTable, epochs: &Epochs, id: FlowId) -> Option<FlowIndex> {
        self.reclaim(table, epochs);
        let Installed { index, .. } = self.flows.remove(&id)?;
        let place = table.place(index);
        place.live.store(false, Ordering::Release);
        // SAFETY: the writer itself reads what it wrote; the place is not reused yet.
        let matches = unsafe { *place.matches.get() };
        let at = (0..table.masks()).find(|at| self.subtable(table, *at).mask == matches.mask);
        let at = at.expect("an installed flow's mask has a subtable");
        self.remove_cell(table, at, index, &matches);
        if self.fills[at].live == 0 {
            self.remove_subtable(table, epochs, at);
        }
        self.retired.push((epochs.advance(), Retired::Place(index)));
        Some(index)
    }

    /// All flows: id, place, when installed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, FlowIndex, Nanos)> + '_ {
        self.flows.iter().map(|(id, flow)| (*id, flow.index, flow.installed))
    }

    /// An installed flow's match and actions.
    pub(crate) fn spec(&self, table: &FlowTable, id: FlowId) -> Option<FlowSpec> {
        let place = table.place(self.flows.get(&id)?.index);
        // SAFETY: the writer alone writes places and programs, and this is the writer.
        let (matches, program) = unsafe { (*place.matches.get(), &*place.program.load(Ordering::Acquire)) };
        Some(FlowSpec { id, matches, actions: program.actions.clone() })
    }

    /// Frees and makes reusable what no core can see any more.
    pub(crate) fn reclaim(&mut self, table: &FlowTable, epochs: &Epochs) {
        let passed = self.retired.iter().take_while(|(epoch, _)| epochs.passed(*epoch)).count();
        for (_, retired) in self.retired.drain(..passed) {
            match retired {
                Retired::Place(index) => {
                    let place = table.place(index);
                    free(place.program.swap(ptr::null_mut(), Ordering::AcqRel));
                    self.free.push(index);
                }
                Retired::Program(program) => free(program),
                Retired::Subtable(subtable) => free(subtable),
                Retired::Cells(cells) => free(cells),
            }
        }
    }

    fn id_at(&self, index: FlowIndex) -> FlowId {
        let found = self.flows.iter().find(|(_, flow)| flow.index == index);
        *found.expect("a live place belongs to an installed flow").0
    }

    fn subtable<'a>(&self, table: &'a FlowTable, at: usize) -> &'a Subtable {
        // SAFETY: the writer alone replaces subtables, and the first `masks` are there.
        unsafe { &*table.subtables[at].load(Ordering::Acquire) }
    }

    fn take_place(&mut self, table: &FlowTable, epochs: &Epochs) -> Option<FlowIndex> {
        self.reclaim(table, epochs);
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        // Places that wait for an epoch count as taken, so there may be none although a flow just went.
        let index = FlowIndex(table.used.load(Ordering::Relaxed));
        table.find_place(index)?;
        table.used.store(index.0 + 1, Ordering::Relaxed);
        Some(index)
    }

    fn add_subtable(&mut self, table: &FlowTable, mask: FlowKey) -> usize {
        let at = table.masks();
        let words = (0..16u8).filter(|word| mask.words()[usize::from(*word)] != 0).collect();
        let subtable = Subtable { mask, words, cells: AtomicPtr::new(Cells::new(16)) };
        table.subtables[at].store(Published::publish(subtable), Ordering::Release);
        table.masks.store(at + 1, Ordering::Release);
        self.fills.push(Fill::default());
        at
    }

    /// Takes an empty subtable out; the last one moves to its place. A reader that meets neither during the
    /// move sees a miss that is none, and the control plane answers it with "look again".
    fn remove_subtable(&mut self, table: &FlowTable, epochs: &Epochs, at: usize) {
        let last = table.masks() - 1;
        let moved = table.subtables[last].load(Ordering::Relaxed);
        let old = table.subtables[at].swap(moved, Ordering::AcqRel);
        table.masks.store(last, Ordering::Release);
        table.subtables[last].store(ptr::null_mut(), Ordering::Release);
        self.fills.swap_remove(at);
        self.retired.push((epochs.advance(), Retired::Subtable(old)));
    }

    fn insert_cell(
        &mut self,
        table: &FlowTable,
        epochs: &Epochs,
        at: usize,
        index: FlowIndex,
        key: &FlowKey,
    ) {
        let subtable = self.subtable(table, at);
        // SAFETY: the writer alone replaces cells.
        let mut cells = unsafe { subtable.cells() };
        if (self.fills[at].live + self.fills[at].removed + 1) * 4 > cells.len() * 3 {
            // Grown (or only swept, if most cells were removed ones) beside the old cells, then swapped in.
            let size = ((self.fills[at].live + 1) * 2).next_power_of_two().max(16);
            let grown = Cells::new(size);
            // SAFETY: just made, not yet shared.
            let new = &unsafe { &*grown }.0;
            for cell in cells.iter().map(|cell| cell.load(Ordering::Relaxed)).filter(|cell| *cell as u32 != 0)
            {
                let place = table.place(FlowIndex(cell as u32 - 1));
                // SAFETY: the writer reads what it wrote.
                let key = unsafe { (*place.matches.get()).key };
                let hash = table.hasher.masked(key.words(), subtable.mask.words(), &subtable.words);
                put_cell(new, hash, cell as u32);
            }
            let old = subtable.cells.swap(grown, Ordering::AcqRel);
            self.retired.push((epochs.advance(), Retired::Cells(old)));
            self.fills[at].removed = 0;
            cells = new;
        }
        let hash = table.hasher.masked(key.words(), subtable.mask.words(), &subtable.words);
        put_cell(cells, hash, index.0 + 1);
        self.fills[at].live += 1;
    }

    fn remove_cell(&mut self, table: &FlowTable, at: usize, index: FlowIndex, matches: &Match) {
        let subtable = self.subtable(table, at);
        // SAFETY: the writer alone replaces cells.
        let cells = unsafe { subtable.cells() };
        let hash = table.hasher.masked(matches.key.words(), subtable.mask.words(), &subtable.words);
        for step in 0..cells.len() {
            let cell = &cells[(hash as usize).wrapping_add(step) & (cells.len() - 1)];
            if cell.load(Ordering::Relaxed) as u32 == index.0 + 1 {
                // Not 0: a search for an entry behind this one must go on.
                cell.store(1 << 32, Ordering::Release);
                break;
            }
        }
        self.fills[at].live -= 1;
        self.fills[at].removed += 1;
    }
}

fn put_cell(cells: &[AtomicU64], hash: u64, place: u32) {
    for step in 0..cells.len() {
        let cell = &cells[(hash as usize).wrapping_add(step) & (cells.len() - 1)];
        if cell.load(Ordering::Relaxed) == 0 {
            cell.store(hash >> 32 << 32 | u64::from(place), Ordering::Release);
            return;
        }
    }
    unreachable!("a quarter of the cells is empty");
}

/// The port, if `actions` is one output and nothing else.
fn single(actions: &[Action]) -> u32 {
    match actions {
        [Action::Output(port)] => port.0.into(),
        _ => SEE_PROGRAM,
    }
}

#[cfg(test)]
mod tests {
    //! The table and the cache in front of it against a list that is searched from end to end; the bounds on
    //! flows and masks, and when places are used again.
    use super::*;
    use crate::flow::cache::ExactMatchCache;
    use proptest::prelude::*;

    const FLOWS: usize = 6;
    const MASKS: usize = 4;

    struct Model {
        table: FlowTable,
        epochs: Epochs,
        writer: FlowWriter,
        cache: ExactMatchCache,
        flows: Vec<(FlowId, FlowIndex, FlowSpec)>,
        next: u64,
    }

    fn actions(number: u16) -> Arc<[Action]> {
        // Both kinds of program, the single output and the one that must be read.
        let outputs = [Action::Output(PortId(number)), Action::Output(PortId(number))];
        outputs[..1 + usize::from(number % 2)].into()
    }

    impl Model {
        fn new() -> Model {
            Model {
                table: FlowTable::new(FLOWS, MASKS, 1),
                epochs: Epochs::new(2),
                writer: FlowWriter::new(FLOWS),
                cache: ExactMatchCache::new(),
                flows: Vec::new(),
                next: 0,
            }
        }

        fn install(&mut self, matches: Match) -> Result<FlowId, InstallError> {
            self.next += 1;
            let id = FlowId(self.next);
            let spec = FlowSpec { id, matches, actions: actions(self.next as u16) };
            let index = self.writer.install(&self.table, &self.epochs, &spec, Nanos(0))?;
            self.flows.push((id, index, spec));
            Ok(id)
        }

        fn remove(&mut self, at: usize) {
            let (id, index, _) = self.flows.remove(at);
            assert_eq!(self.writer.remove(&self.table, &self.epochs, id), Some(index));
        }

        fn masks(&self) -> usize {
            let masks = self.flows.iter().map(|(_, _, spec)| spec.matches.mask);
            masks.collect::<std::collections::HashSet<_>>().len()
        }

        /// Looks a key up as a core does, and holds that against the list.
        fn check(&mut self, key: &FlowKey) {
            let expected = self.flows.iter().find(|(_, _, spec)| spec.matches.covers(key));
            let found = self.table.find(key);
            assert_eq!(found.map(|flow| flow.index), expected.map(|(_, index, _)| *index));
            let hash = self.table.hash(key);
            let cached = self.cached(key, hash);
            assert!(
                cached.is_none() || cached == found.map(|flow| flow.index),
                "the cache forgets, never lies"
            );
            let (Some(flow), Some((_, _, spec))) = (found, expected) else { return };
            match flow.decision() {
                Decision::Single(port) => assert_eq!(spec.actions[..], [Action::Output(port)]),
                Decision::Program(program) => {
                    assert_eq!((&program.actions, program.outputs), (&spec.actions, spec.actions.len()));
                }
            }
            self.cache.insert(hash, flow.index);
            assert_eq!(self.cached(key, hash), Some(flow.index));
        }

        /// What a core finds by its cache alone.
        fn cached(&self, key: &FlowKey, hash: u64) -> Option<FlowIndex> {
            self.table.covering(self.cache.guess(hash), key).map(|flow| flow.index)
        }
    }

    /// Keys of few bits, so that they meet: in the first cache line and, now and then, in the second.
    fn key() -> impl Strategy<Value = FlowKey> {
        (0..4_u32, 0..4_u32, 0..4_u16, 0..3_u8).prop_map(|(in_port, ip4_dst, l4_dst, cold)| {
            let mut key = FlowKey { in_port, ip4_dst, l4_dst, ..FlowKey::ZERO };
            key.ip6_src[15] = cold;
            key.with_flags()
        })
    }

    /// A match that fixes any of the bits that keys differ in.
    fn matches() -> impl Strategy<Value = Match> {
        (key(), key()).prop_map(|(key, mask)| Match::new(key, mask))
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Install(Match),
        Remove(usize),
        Modify(usize, u16),
        Lookup(FlowKey),
        Reclaim,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            4 => matches().prop_map(Operation::Install),
            2 => (0..FLOWS).prop_map(Operation::Remove),
            1 => (0..FLOWS, 0..100_u16).prop_map(|(at, number)| Operation::Modify(at, number)),
            8 => key().prop_map(Operation::Lookup),
            1 => Just(Operation::Reclaim),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_flows(operations in prop::collection::vec(operation(), 0..300)) {
            let mut model = Model::new();
            for operation in operations {
                match operation {
                    Operation::Install(matches) => {
                        let overlaps = |other: &Match| {
                            let both = other.mask.words().iter().zip(matches.mask.words());
                            let keys = other.key.words().iter().zip(matches.key.words());
                            both.zip(keys).all(|((m, n), (k, l))| (k ^ l) & m & n == 0)
                        };
                        let same = model.flows.iter().find(|(_, _, spec)| spec.matches == matches);
                        let new_mask = !model.flows.iter().any(|(_, _, spec)| spec.matches.mask == matches.mask);
                        let expected = if let Some((id, _, _)) = same {
                            Err(InstallError::Exists(*id))
                        } else if model.flows.iter().any(|(_, _, spec)| overlaps(&spec.matches)) {
                            // The control plane never asks for those.
                            continue;
                        } else if new_mask && model.masks() == MASKS {
                            Err(InstallError::TooManyMasks(MASKS))
                        } else if model.flows.len() == FLOWS {
                            Err(InstallError::TableFull(FLOWS))
                        } else {
                            Ok(FlowId(model.next + 1))
                        };
                        assert_eq!(model.install(matches), expected);
                    }
                    Operation::Remove(at) if at < model.flows.len() => model.remove(at),
                    Operation::Modify(at, number) if at < model.flows.len() => {
                        let (id, _, spec) = &mut model.flows[at];
                        spec.actions = actions(number);
                        assert!(model.writer.modify(&model.table, &model.epochs, *id, &spec.actions));
                    }
                    Operation::Lookup(key) => model.check(&key),
                    Operation::Reclaim => model.writer.reclaim(&model.table, &model.epochs),
                    _ => {}
                }
                assert_eq!((model.table.masks(), model.writer.len()), (model.masks(), model.flows.len()));
            }
        }
    }

    fn exactly(in_port: u32) -> Match {
        Match::new(FlowKey { in_port, ..FlowKey::ZERO }, FlowKey { in_port: u32::MAX, ..FlowKey::ZERO })
    }

    /// Holds that a place is not used again while a core may look at it, that there are no more places than
    /// flows, and that a refused flow leaves nothing behind.
    #[test]
    fn a_place_is_used_again_when_every_core_has_left() {
        let mut model = Model::new();
        assert!((0..FLOWS as u32).all(|port| model.install(exactly(port)).is_ok()));
        let epochs = std::mem::replace(&mut model.epochs, Epochs::new(1));
        let inside = epochs.enter(0);
        let (id, index, _) = model.flows.remove(2);
        assert_eq!(model.writer.remove(&model.table, &epochs, id), Some(index));
        let spec = FlowSpec { id: FlowId(100), matches: exactly(50), actions: actions(1) };
        let install = |model: &mut Model| model.writer.install(&model.table, &epochs, &spec, Nanos(0));
        assert_eq!(install(&mut model), Err(InstallError::TableFull(FLOWS)));
        assert!(model.table.find(&FlowKey { in_port: 2, ..FlowKey::ZERO }).is_none());
        drop(inside);
        assert_eq!(install(&mut model), Ok(index));
        assert_eq!(model.table.find(&spec.matches.key).map(|flow| flow.index), Some(index));
    }

    #[test]
    fn an_id_names_one_flow() {
        let mut model = Model::new();
        let id = model.install(exactly(1)).unwrap();
        let spec = FlowSpec { id, matches: exactly(2), actions: actions(1) };
        let again = model.writer.install(&model.table, &model.epochs, &spec, Nanos(0));
        assert_eq!(again, Err(InstallError::DuplicateId(id)));
    }

    /// Holds that one mask's table grows with its flows and is swept of removed ones, losing none, however often
    /// flows come and go.
    #[test]
    fn a_subtable_grows_and_is_swept() {
        const MANY: u32 = 1000;
        let (table, epochs) = (FlowTable::new(MANY as usize, 1, 7), Epochs::new(1));
        let mut writer = FlowWriter::new(MANY as usize);
        let spec =
            |port: u32| FlowSpec { id: FlowId(port.into()), matches: exactly(port), actions: actions(1) };
        for port in 0..MANY {
            writer.install(&table, &epochs, &spec(port), Nanos(0)).unwrap();
        }
        for port in MANY..5 * MANY {
            assert!(writer.remove(&table, &epochs, FlowId(u64::from(port - MANY))).is_some());
            writer.install(&table, &epochs, &spec(port), Nanos(0)).unwrap();
        }
        let live = (0..5 * MANY).filter(|port| table.find(&exactly(*port).key).is_some());
        assert_eq!(live.collect::<Vec<_>>(), Vec::from_iter(4 * MANY..5 * MANY));
        assert!(writer.retired.len() <= 1, "what was replaced is freed as changes go on");
    }
}
