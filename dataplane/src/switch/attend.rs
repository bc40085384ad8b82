//! What is done for a receiver after frames were queued for it, and what the host is told: both only when this
//! core has let go of every claim. A core may lose its processor to the very VM that it wakes; what it would hold
//! then, nobody else could use.
//!
//! ```text
//!   announce ──> attend ──┬──> an idle core can be chosen: wake it, timer as a bound           (offload)
//!                         │
//!                         └──> deliver ──┬──> copy here; interrupt if the driver asks for it   (preemptive copy)
//!                                        │
//!                                        └──> interrupt; the VM enters and copies              (basic form)
//!
//!   interrupt: at once, or by the timer if the VM is awake and had one just now                (batching)
//! ```
//!
//! With preemptive copy, batching puts the interrupt off and not the copy: a driver that is awake and has masked its
//! interrupts finds its frames in the ring, without a timer or an entry; a network card's interrupt moderation does the
//! same.
//!
//! Nothing is lost between a core that queues and one that delivers: the former queues, then looks at what the
//! latter has stored (the wish to be told, the timer's time); the latter stores it, then looks at the queue; each
//! with a fence in between, so one of them sees the other. What is put off is delivered by the timer, unless the VM's
//! next entry is earlier.

use super::{CoreContext, Entry, Visit};
use crate::api::{Nanos, PortId};
use crate::claim::Word;
use crate::host::{CoreId, CoreSet, Host, Ring};
use crate::policy::notification::{self, Snapshot, When};
use crate::policy::offload::{self, HANDOVER_LIMIT};
use crate::port::Port;
use crate::sync::atomic::{Ordering, fence};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use hyper_switch_pvnet::ring::device::DeviceQueue;

/// What an entry has still to do, and to tell the host, once it holds no claim. A context keeps it, so that
/// nothing is allocated in an entry.
#[derive(Default)]
pub(super) struct Outbox {
    announced: PortSet,
    /// Who is to be told that frames wait, and who that buffers come back.
    notified: PortSet,
    given_back: PortSet,
    timers: Vec<(PortId, Nanos)>,
    woken: CoreSet,
}

impl Outbox {
    pub(super) fn new(ports: usize) -> Outbox {
        Outbox {
            announced: PortSet::new(ports),
            notified: PortSet::new(ports),
            given_back: PortSet::new(ports),
            timers: Vec::with_capacity(ports),
            woken: CoreSet::EMPTY,
        }
    }

    /// Tells the host everything. The core is outside the switch.
    pub(super) fn send<H: Host>(&mut self, host: &H) {
        for (vm, at) in self.timers.drain(..) {
            host.arm(vm, at);
        }
        while let Some(vm) = self.notified.pop() {
            host.notify(vm, Ring::Receive);
        }
        while let Some(vm) = self.given_back.pop() {
            host.notify(vm, Ring::Transmit);
        }
        if !self.woken.is_empty() {
            core::mem::take(&mut self.woken).iter().for_each(|core| host.wake(core));
        }
    }
}

/// A set of ports.
#[derive(Default)]
struct PortSet {
    list: Vec<PortId>,
    contains: Box<[bool]>,
}

impl PortSet {
    fn new(ports: usize) -> PortSet {
        PortSet { list: Vec::with_capacity(ports), contains: vec![false; ports].into() }
    }

    /// Answers whether it was not in it.
    fn insert(&mut self, port: PortId) -> bool {
        let was_in = core::mem::replace(&mut self.contains[usize::from(port.0)], true);
        if !was_in {
            self.list.push(port);
        }
        !was_in
    }

    fn has(&self, port: PortId) -> bool {
        self.contains[usize::from(port.0)]
    }

    fn pop(&mut self) -> Option<PortId> {
        let port = self.list.pop()?;
        self.contains[usize::from(port.0)] = false;
        Some(port)
    }
}

impl<H: Host> Entry<'_, H> {
    /// Frames were queued for `port`: it is attended to when this core holds no claim.
    #[inline]
    pub(super) fn announce(&mut self, port: &Port) {
        self.outbox.announced.insert(port.id);
    }

    /// Attends to all that were announced.
    pub(super) fn attend_all(&mut self, cx: &mut CoreContext) {
        while let Some(id) = self.outbox.announced.pop() {
            if let Some(port) = self.switch.port(id) {
                self.attend(cx, port);
            }
        }
    }

    fn attend(&mut self, cx: &mut CoreContext, port: &Port) {
        fence(Ordering::SeqCst);
        // With preemptive copy a driver that has masked its interrupts gets its frames all the same. In the basic form a
        // VM that has not asked to be told is about to enter by itself.
        if self.copies_here(port) || port.wants_notice.load(Ordering::Relaxed) {
            match self.idle_core(cx, port) {
                Some(core) => self.hand_over(port, core),
                None => self.deliver(cx, port),
            }
        }
        if !port.waiting.is_empty() {
            self.arm_for_patience(port, 0);
        }
    }

    /// Whether delivering includes the copy. What waits for a disabled lane is moved by whoever finds it: the VM does
    /// not come for it.
    fn copies_here(&self, port: &Port) -> bool {
        self.switch.config.optimisations.preemptive_copy || self.visit == Visit::Idle || !port.is_enabled()
    }

    /// Whether the VM at `port`, which `frames` wait for, is to be interrupted now. If not, its timer is started.
    fn may_interrupt(&mut self, port: &Port, frames: usize) -> bool {
        let config = &self.switch.config;
        if config.optimisations.batching && self.visit != Visit::Transmit(port.id) {
            let snapshot = Snapshot {
                state: self.host.run_state(port.id),
                now: self.now,
                last: Nanos(port.notified_at.load(Ordering::Relaxed)),
                waiting: frames as u32,
            };
            if let When::At(at) = notification::when(&config.pace, &snapshot) {
                port.put_off.store(true, Ordering::Relaxed);
                self.arm(port, at);
                return false;
            }
        }
        port.notified_at.store(self.now.0, Ordering::Relaxed);
        true
    }

    /// Frames may have been copied for `port`: interrupts it, if its driver wants that.
    pub(super) fn interrupt(&mut self, port: &Port, queue: &mut DeviceQueue) {
        if !queue.wants_interrupt() {
            return;
        }
        if self.visit == Visit::Receive(port.id) {
            // The VM is here itself, or its host is in its stead.
            self.entered.interrupt = true;
        } else if self.may_interrupt(port, queue.told().into()) {
            self.notify(port);
        } else if !planted!(LostNotification) {
            queue.put_off_interrupt();
        }
    }

    /// The idle core that is to work for `port`, if the policy is on and there is one. A core that is here because it
    /// was idle does all that it finds itself.
    pub(super) fn idle_core(&self, cx: &mut CoreContext, port: &Port) -> Option<CoreId> {
        if !self.switch.config.optimisations.offload || self.visit == Visit::Idle {
            return None;
        }
        let idle = self.host.idle_cores().without(cx.core);
        if idle.is_empty() {
            return None;
        }
        cx.turn = cx.turn.wrapping_add(1);
        offload::choose(&self.switch.config.topology, idle, self.host.home(port.id), cx.turn)
    }

    /// Leaves what `port` has waiting to an idle core; to the timer if that one does not come.
    pub(super) fn hand_over(&mut self, port: &Port, core: CoreId) {
        self.counters.activity.handovers.add(1);
        self.outbox.woken = self.outbox.woken.with(core);
        self.arm(port, self.now.after(HANDOVER_LIMIT));
    }

    /// Delivers what waits for `port`: copies it, or tells the VM to.
    pub(super) fn deliver(&mut self, cx: &mut CoreContext, port: &Port) {
        port.put_off.store(false, Ordering::Relaxed);
        if self.copies_here(port) {
            self.serve_receiver(cx, port, Word::SERVE);
            self.charge_copying(port);
        } else if !port.waiting.is_empty()
            && port.wants_notice.load(Ordering::Relaxed)
            && self.may_interrupt(port, port.waiting.len())
            && port.wants_notice.swap(false, Ordering::AcqRel)
        {
            self.notify(port);
        }
    }

    /// Notifies the VM at `port`, of frames, when this core holds no claim; once. Counted once an entry, whatever for.
    pub(super) fn notify(&mut self, port: &Port) {
        if self.outbox.notified.insert(port.id) && !self.outbox.given_back.has(port.id) {
            self.port_counters(port).rx.notifications.add(1);
        }
    }

    /// As [`Entry::notify`], of transmit buffers that came back.
    pub(super) fn notify_of_buffers(&mut self, port: &Port) {
        if self.outbox.given_back.insert(port.id) && !self.outbox.notified.has(port.id) {
            self.port_counters(port).rx.notifications.add(1);
        }
    }

    /// This core's bound is reached, and `port` has more: whoever is here for it comes back, and for others the
    /// timer does.
    pub(super) fn leave_rest(&mut self, port: &Port) {
        match self.visit {
            Visit::Idle => {
                self.entered.more = true;
                self.arm(port, self.now.after(HANDOVER_LIMIT));
            }
            _ => self.arm(port, self.now),
        }
    }

    /// Has the timer of `port` fire at `at`, unless it does so earlier.
    pub(super) fn arm(&mut self, port: &Port, at: Nanos) {
        if port.timer_at.load(Ordering::Relaxed) <= at.0
            || port.timer_at.fetch_min(at.0, Ordering::AcqRel) <= at.0
        {
            return;
        }
        match self.outbox.timers.iter_mut().find(|(vm, _)| *vm == port.id) {
            Some((_, earliest)) => *earliest = at.min(*earliest),
            None => self.outbox.timers.push((port.id, at)),
        }
    }

    /// Has the timer fire when what has waited at `port` for `waited_ms` has waited too long.
    pub(super) fn arm_for_patience(&mut self, port: &Port, waited_ms: u16) {
        let left = self.switch.config.patience.saturating_sub(Duration::from_millis(waited_ms.into()));
        self.arm(port, self.now.after(left));
    }

    /// Charges the time since the last charge to the VM at `port`: its frames were switched.
    pub(super) fn charge_switching(&mut self, port: &Port) {
        let spent = self.spent();
        self.port_counters(port).tx.switching_ns.add(spent);
    }

    /// As [`Entry::charge_switching`]: frames were copied for it.
    pub(super) fn charge_copying(&mut self, port: &Port) {
        let spent = self.spent();
        self.port_counters(port).rx.copying_ns.add(spent);
    }

    fn spent(&mut self) -> u64 {
        let now = self.host.now();
        let spent = now.since(self.charged).as_nanos() as u64;
        self.charged = now;
        spent
    }
}
