//! The switch: its tables and ports, and the ways for a core to enter it.
//!
//! | entry | who enters | what happens |
//! | --- | --- | --- |
//! | [`Switch::transmit`] | the sender's hypercall | its ring is read, each packet looked up and queued for its receivers, these are attended to (`attend.rs`) |
//! | [`Switch::receive`] | the receiver's hypercall | what waits for it is copied from the senders' memory into its own |
//! | [`Switch::poll`] | a host that does not wait for kicks | both of these, for as long as there is work |
//! | [`Switch::idle`] | an idle core | copies first, then switches, within a budget |
//! | [`Switch::expire`] | a timer | what was put off or left undone is done; what waited too long is dropped and counted |
//!
//! Each takes the switch shared, the [`CoreContext`] of the core that enters, and the host. Any number of
//! cores enter at once: a port's transmit side and its receive side are each used by one core at a time, and
//! a core that finds one taken leaves word and goes (`claim.rs`). All that changes the switch itself goes
//! through its one [`Control`]. A VM with several queue pairs enters for each by the number of its lane
//! ([`Control::lanes`]).

mod attend;
mod control;
mod deliver;
mod receive;
mod transmit;

pub use control::{AttachError, Barrier, Control, ExchangeError, Gone, PortStatus, Reaped};
pub(crate) use transmit::BATCH;

use crate::api::{DropReason, FlowKey, Nanos, PortId};
use crate::claim::Word;
use crate::counters::{self, CoreActivity, CoreCounters, LivePort};
use crate::epoch::{Epochs, Inside};
use crate::flow::cache::ExactMatchCache;
use crate::flow::table::{FlowTable, FlowWriter};
use crate::host::{CoreId, Host};
use crate::lanes::Condition;
use crate::policy::Optimisations;
use crate::policy::notification::Pace;
use crate::policy::offload::Topology;
use crate::port::{NO_TIMER, Port, PortFault};
use crate::sync::Published;
use crate::sync::atomic::{AtomicBool, AtomicPtr, Ordering, fence};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr;
use core::time::Duration;

/// Frames switched and copied after which an idle core's entry begins with no other port, so that its host can see
/// whether the core is still idle.
const IDLE_BUDGET: u32 = 1024;

/// What a switch is made for. All of it is fixed for its life.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// Ports that there can be at once, at most 32767. A port with several queue pairs counts as one for each.
    pub max_ports: usize,
    /// Cores that may enter: each needs a [`CoreContext`].
    pub cores: usize,
    /// Flows that can be installed at once.
    pub max_flows: usize,
    /// Different masks that they can have.
    pub max_masks: usize,
    /// Frames that may wait for one receiver, rounded up to a power of two.
    pub rx_queue_frames: usize,
    /// Frames of one sender that may wait for the control plane: its first burst of a flow, while that is decided.
    pub held_frames: usize,
    /// Packets of one sender that the control plane may be asked about at once. Others of their flows wait behind them.
    pub upcalls: usize,
    /// How long a frame may wait, for a receiver or for the control plane; at most 30 s.
    pub patience: Duration,
    /// Which optimisations are on.
    pub optimisations: Optimisations,
    /// The parameters of batching.
    pub pace: Pace,
    /// Which cores share caches, for offload.
    pub topology: Topology,
    /// Seed of the flow hash; to be drawn at random, lest a guest choose colliding packets.
    pub seed: u64,
}

impl Default for SwitchConfig {
    fn default() -> SwitchConfig {
        SwitchConfig {
            max_ports: 256,
            cores: 8,
            max_flows: 65_536,
            max_masks: 64,
            rx_queue_frames: 1024,
            held_frames: 1024,
            upcalls: 32,
            patience: Duration::from_secs(1),
            optimisations: Optimisations::default(),
            pace: Pace::default(),
            topology: Topology::default(),
            seed: 0,
        }
    }
}

/// What came of an entry into the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// Frames taken off transmit rings.
    pub frames: u32,
    /// Frames taken out of internal receive queues: copied into receive rings, or dropped there.
    pub copied: u32,
    /// The budget ran out before the work did: enter again.
    pub more: bool,
    /// Packets wait for the control plane: see [`Control::next_upcall`].
    pub upcalls: bool,
    /// In [`Switch::receive`]: the VM's driver asked to be interrupted for what was copied. It is here itself;
    /// of interest where the host enters in its stead, or the VM is about to block.
    pub interrupt: bool,
    /// A port went down by a fault of its own.
    pub faulted: bool,
    /// The port that was entered for is not up: there is nothing to come back for.
    pub down: bool,
}

/// The switch: its tables and ports, and the ways for a core to enter it, [`transmit`](Switch::transmit),
/// [`receive`](Switch::receive), [`poll`](Switch::poll), [`idle`](Switch::idle) and [`expire`](Switch::expire). Any number of cores enter at
/// once, each with a [`CoreContext`] of its own.
pub struct Switch {
    config: SwitchConfig,
    ports: Box<[AtomicPtr<Published<Port>>]>,
    /// Which numbers are ports' that stay, whatever is connected to them.
    reserved: Box<[AtomicBool]>,
    table: FlowTable,
    epochs: Epochs,
    cores: Box<[CoreCounters]>,
    taken: Box<[AtomicBool]>,
}

impl Switch {
    /// A switch without ports or flows, and the one handle that can change it.
    ///
    /// # Panics
    /// If `config` asks for more ports than a port number can tell apart, for more patience than 30 s, or for a
    /// queue without room.
    pub fn new(config: SwitchConfig) -> (Arc<Switch>, Control) {
        assert!(config.max_ports <= 0x7fff, "a port number has 15 bits");
        assert!(config.patience <= Duration::from_secs(30), "waiting is measured in 16 bits of milliseconds");
        let SwitchConfig { held_frames, upcalls, rx_queue_frames, .. } = config;
        assert!(held_frames > 0 && upcalls > 0 && rx_queue_frames > 0, "a queue has room for a frame");
        let cores = config.cores;
        let switch = Arc::new(Switch {
            ports: (0..config.max_ports).map(|_| AtomicPtr::default()).collect(),
            reserved: (0..config.max_ports).map(|_| AtomicBool::new(false)).collect(),
            table: FlowTable::new(config.max_flows, config.max_masks, config.seed),
            epochs: Epochs::new(cores),
            cores: (0..cores).map(|_| CoreCounters::new(config.max_ports, config.max_flows)).collect(),
            taken: (0..cores).map(|_| AtomicBool::new(false)).collect(),
            config,
        });
        let writer = FlowWriter::new(switch.config.max_flows);
        (switch.clone(), Control::new(switch, writer))
    }

    /// The context that `core` enters with; none if it is taken, or the switch was made for fewer cores.
    pub fn core_context(self: &Arc<Switch>, core: CoreId) -> Option<CoreContext> {
        let taken = self.taken.get(usize::from(core.0))?;
        let free = taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        free.then(|| CoreContext::new(self.clone(), core))
    }

    /// What the switch was made for.
    pub fn config(&self) -> &SwitchConfig {
        &self.config
    }

    /// What `core` has done so far.
    pub fn activity(&self, core: CoreId) -> CoreActivity {
        counters::read_activity(self.cores.get(usize::from(core.0)).into_iter())
    }

    /// The sender's hypercall: switches what `vm`'s transmit ring holds, or leaves it to an idle core. Completed
    /// buffers come back to it. If it was to be notified later, it is now, as it is here anyway.
    pub fn transmit<H: Host>(&self, cx: &mut CoreContext, host: &H, vm: PortId) -> Entered {
        self.enter(cx, host, Visit::Transmit(vm), |entry, cx| {
            let Some(port) = entry.switch.port(vm) else { return entry.entered.down = true };
            entry.port_counters(port).tx.entries.add(1);
            entry.counters.activity.transmit_entries.add(1);
            // A device's ring is left to nobody: it is a thread of the host that came, not a VM.
            let idle = if port.device.is_none() && port.is_up() { entry.idle_core(cx, port) } else { None };
            match idle {
                Some(core) => {
                    // Seen by the core that is woken: the host's message comes after.
                    port.unserved.store(true, Ordering::Release);
                    entry.hand_over(port, core);
                }
                None => {
                    if port.unserved.load(Ordering::Relaxed) {
                        port.unserved.store(false, Ordering::Relaxed);
                    }
                    entry.serve_sender(cx, port, Word::SERVE);
                    entry.charge_switching(port);
                }
            }
            if port.put_off.load(Ordering::Relaxed) {
                entry.deliver(cx, port);
            }
            entry.entered.down = !port.is_up();
        })
    }

    /// The receiver's hypercall: copies what waits for `vm` into its receive ring. With preemptive copy a VM needs it
    /// only as a kick, when it had run out of receive buffers.
    pub fn receive<H: Host>(&self, cx: &mut CoreContext, host: &H, vm: PortId) -> Entered {
        self.enter(cx, host, Visit::Receive(vm), |entry, cx| {
            if let Some(port) = entry.switch.port(vm) {
                entry.port_counters(port).rx.entries.add(1);
                entry.counters.activity.receive_entries.add(1);
                entry.serve_receiver(cx, port, Word::SERVE);
                entry.charge_copying(port);
            }
        })
    }

    /// A look at both rings of `vm` by a host that does not wait for its kicks: what [`Switch::transmit`] and
    /// [`Switch::receive`] do, but a VM whose transmit ring is empty is not asked to kick. Who polls comes back soon,
    /// and stops by [`Switch::transmit`], which has it kick again. A look that finds nothing counts as no entry.
    pub fn poll<H: Host>(&self, cx: &mut CoreContext, host: &H, vm: PortId) -> Entered {
        self.enter(cx, host, Visit::Poll(vm), |entry, cx| {
            let Some(port) = entry.switch.port(vm) else { return entry.entered.down = true };
            if !port.waiting.is_empty() {
                entry.port_counters(port).rx.entries.add(1);
                entry.counters.activity.receive_entries.add(1);
                entry.serve_receiver(cx, port, Word::SERVE);
                entry.charge_copying(port);
            }
            entry.serve_sender(cx, port, Word::SERVE);
            if entry.entered.frames > 0 {
                entry.port_counters(port).tx.entries.add(1);
                entry.counters.activity.transmit_entries.add(1);
                entry.charge_switching(port);
            }
            entry.entered.down = !port.is_up();
        })
    }

    /// An idle core's entry: first copies what waits for any VM, then switches what was left to idle cores, and copies
    /// that, too. Answers [`more`](Entered::more) if its budget ended before the work. Ports are served in turn, each
    /// within its own bound.
    pub fn idle<H: Host>(&self, cx: &mut CoreContext, host: &H) -> Entered {
        self.enter(cx, host, Visit::Idle, |entry, cx| {
            entry.counters.activity.idle_entries.add(1);
            cx.turn = cx.turn.wrapping_add(1);
            let count = self.ports.len();
            let start = cx.turn % count.max(1);
            let ports = || (start..count).chain(0..start).filter_map(|id| self.port(PortId(id as u16)));
            for port in ports().filter(|port| !port.waiting.is_empty()) {
                if entry.is_spent() {
                    return entry.entered.more = true;
                }
                entry.deliver(cx, port);
            }
            for port in ports().filter(|port| port.unserved.load(Ordering::Acquire)) {
                if entry.is_spent() {
                    return entry.entered.more = true;
                }
                if port.unserved.swap(false, Ordering::AcqRel)
                    && (!planted!(StarvedPort) || port.waiting.is_empty())
                {
                    entry.serve_sender(cx, port, Word::SERVE);
                    entry.charge_switching(port);
                }
            }
        })
    }

    /// The timer that [`Host::arm`] asked for: notifies `vm` if that was put off, switches what was left to a core
    /// that did not come, and drops what has waited for `vm`, or of `vm`'s, for too long.
    pub fn expire<H: Host>(&self, cx: &mut CoreContext, host: &H, vm: PortId) -> Entered {
        self.enter(cx, host, Visit::Timer, |entry, cx| {
            if let Some(port) = entry.switch.port(vm) {
                entry.counters.activity.timer_entries.add(1);
                port.timer_at.store(NO_TIMER, Ordering::Relaxed);
                // The time is cleared before what waits is looked at, and `attend` looks at the time after frames
                // were queued: one of the two sees the other, and starts the next timer.
                fence(Ordering::SeqCst);
                entry.serve_sender(cx, port, Word::EXPIRE);
                if port.unserved.swap(false, Ordering::AcqRel) {
                    entry.serve_sender(cx, port, Word::SERVE);
                }
                entry.charge_switching(port);
                entry.deliver(cx, port);
                entry.serve_receiver(cx, port, Word::EXPIRE);
            }
        })
    }

    /// Whether a receive hypercall of `vm` is worth its cost: frames wait in its internal receive queue, or it was notified
    /// and has made none since, without which it is not notified again. With preemptive copy frames come without one; a
    /// VM that is about to block may have them at once by it.
    pub fn frames_wait(&self, cx: &mut CoreContext, vm: PortId) -> bool {
        let _inside = self.enter_epoch(cx);
        // Notified for what it had taken just before, a VM finds nothing, and has to say all the same that it looked.
        self.port(vm)
            .is_some_and(|port| !port.waiting.is_empty() || !port.wants_notice.load(Ordering::Relaxed))
    }

    /// How many of `keys` some installed flow covers, each looked up as a packet's would be, but not counted: for
    /// benches and tests of lookup alone.
    pub fn covered(&self, cx: &mut CoreContext, keys: &[FlowKey]) -> usize {
        let _inside = self.enter_epoch(cx);
        let covers = |key: &&FlowKey| {
            let hash = self.table.hash(key);
            if self.table.covering(cx.cache.guess(hash), key).is_some() {
                return true;
            }
            let found = self.table.find(key);
            found.inspect(|flow| cx.cache.insert(hash, flow.index)).is_some()
        };
        keys.iter().filter(covers).count()
    }

    fn enter_epoch(&self, cx: &mut CoreContext) -> Inside<'_> {
        assert!(ptr::eq(&*cx.switch, self), "a core enters with a context of the same switch");
        self.epochs.enter(usize::from(cx.core.0))
    }

    fn enter<H: Host>(
        &self,
        cx: &mut CoreContext,
        host: &H,
        visit: Visit,
        work: impl FnOnce(&mut Entry<'_, H>, &mut CoreContext),
    ) -> Entered {
        let inside = self.enter_epoch(cx);
        let now = host.now();
        let now_ms = (now.0 / 1_000_000) as u16;
        let counters = &self.cores[usize::from(cx.core.0)];
        let outbox = core::mem::take(&mut cx.outbox);
        let mut entry = Entry {
            switch: self,
            host,
            counters,
            now,
            charged: now,
            visit,
            now_ms,
            entered: Entered::default(),
            outbox,
        };
        work(&mut entry, cx);
        entry.attend_all(cx);
        let Entry { entered, mut outbox, .. } = entry;
        drop(inside);
        outbox.send(host);
        cx.outbox = outbox;
        entered
    }

    /// The port with this number. The caller is inside an epoch, or is the one writer.
    #[inline]
    fn port(&self, id: PortId) -> Option<&Port> {
        let port = self.ports.get(usize::from(id.0))?.load(Ordering::Acquire);
        // SAFETY: a port is freed only after it was taken out of the table and an epoch has passed.
        unsafe { port.as_ref() }.map(|port| &**port)
    }

    /// Why frames cannot go to the port `to`, where `found` is what has its number.
    #[cold]
    fn why_not(&self, to: PortId, found: Option<&Port>) -> DropReason {
        let has_broken = |port: &Port| matches!(port.lanes.condition(), Condition::Faulted(_));
        let is_reserved = |stays: &AtomicBool| stays.load(Ordering::Relaxed);
        match self.reserved.get(usize::from(to.0)).is_some_and(is_reserved) && !found.is_some_and(has_broken)
        {
            true => DropReason::PortAbsent,
            false => DropReason::NoSuchPort,
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for port in &self.ports {
            control::free_port(port.load(Ordering::Relaxed));
        }
    }
}

/// What a core needs for entering a switch: its cache and its scratch memory. Made once, so that nothing is
/// allocated in an entry.
pub struct CoreContext {
    switch: Arc<Switch>,
    core: CoreId,
    cache: ExactMatchCache,
    batch: Box<transmit::Batch>,
    outputs: transmit::Outputs,
    copy: Box<receive::CopyScratch>,
    push: Box<deliver::PushScratch>,
    outbox: attend::Outbox,
    /// Goes round, so that work is spread over cores and ports.
    turn: usize,
}

impl CoreContext {
    fn new(switch: Arc<Switch>, core: CoreId) -> CoreContext {
        let outputs = transmit::Outputs::new(switch.config.max_ports);
        let outbox = attend::Outbox::new(switch.config.max_ports);
        CoreContext {
            switch,
            core,
            cache: ExactMatchCache::new(),
            batch: Box::default(),
            outputs,
            copy: Box::default(),
            push: Box::default(),
            outbox,
            turn: 0,
        }
    }

    /// The core that this context is of.
    pub fn core(&self) -> CoreId {
        self.core
    }
}

impl Drop for CoreContext {
    fn drop(&mut self) {
        self.switch.taken[usize::from(self.core.0)].store(false, Ordering::Release);
    }
}

/// Why a core is in the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    /// For a sender; its host looks at what came of it.
    Transmit(PortId),
    /// For a receiver, likewise.
    Receive(PortId),
    /// For both sides of a VM that is not asked to kick.
    Poll(PortId),
    /// Because it was idle.
    Idle,
    /// For a timer.
    Timer,
    /// For a change or a verdict.
    Control,
}

/// One core's way through the switch: what all of an entry's steps need.
struct Entry<'a, H> {
    switch: &'a Switch,
    host: &'a H,
    counters: &'a CoreCounters,
    now: Nanos,
    /// Until when the time spent is charged to some VM.
    charged: Nanos,
    visit: Visit,
    /// The low bits of `now` in milliseconds, as frames that wait are stamped with.
    now_ms: u16,
    entered: Entered,
    outbox: attend::Outbox,
}

impl<'a, H: Host> Entry<'a, H> {
    /// This core's counters for `port`: those of the port, whichever of its lanes it is.
    #[inline]
    fn port_counters(&self, port: &Port) -> &'a LivePort {
        &self.counters.ports[usize::from(port.in_port.0)]
    }

    /// Whether an idle core's entry has done enough.
    fn is_spent(&self) -> bool {
        self.entered.frames + self.entered.copied >= IDLE_BUDGET
    }

    /// Whether what has waited for `waited_ms` has waited too long.
    fn is_overdue(&self, waited_ms: u16) -> bool {
        u128::from(waited_ms) >= self.switch.config.patience.as_millis()
    }

    #[cold]
    fn fail(&mut self, port: &Port, fault: PortFault) {
        self.entered.faulted |= port.lanes.fail(fault);
    }
}
