//! A task's way into the switch, and the host as the switch sees it from there.
//!
//! A task goes on by itself only as long as nothing else happens before the time that it has come to. There it is put
//! aside, wherever it is in the code of the switch or of a guest, and goes on when that has happened: so cores that are in
//! the switch at once meet there as they do on a real machine.

use crate::clock::Account;
use crate::host::{Effect, SimHost};
use corosensei::Yielder;
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState, Work};
use hyper_switch_dataplane::{CoreContext, Entered, Switch};
use hyper_switch_pvnet::guest::Hypercall;
use std::sync::Arc;

/// Why a task is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Others go first.
    Ahead,
    /// Its step is over: it goes on when it is its turn; or it blocks, until this time if there is one.
    Over(Option<Option<u64>>),
}

/// The host, with a place to be put aside.
#[derive(Clone, Copy)]
pub(crate) struct Seat<'a> {
    pub(crate) host: &'a SimHost,
    yielder: Option<&'a Yielder<(), Pause>>,
}

impl<'a> Seat<'a> {
    /// For a task that can be put aside.
    pub(crate) fn new(host: &'a SimHost, yielder: &'a Yielder<(), Pause>) -> Seat<'a> {
        Seat { host, yielder: Some(yielder) }
    }

    /// For whoever does all that it does at once.
    pub(crate) fn alone(host: &'a SimHost) -> Seat<'a> {
        Seat { host, yielder: None }
    }

    /// Lets others go first, if it is their time.
    #[inline]
    pub(crate) fn keep_pace(&self) {
        if let Some(yielder) = self.yielder
            && self.host.is_ahead()
        {
            yielder.suspend(Pause::Ahead);
        }
    }
}

impl Host for Seat<'_> {
    fn now(&self) -> Nanos {
        self.host.now()
    }

    fn run_state(&self, vm: PortId) -> RunState {
        self.host.run_state(vm)
    }

    fn home(&self, vm: PortId) -> CoreId {
        self.host.home(vm)
    }

    fn notify(&self, vm: PortId, ring: Ring) {
        self.host.notify(vm, ring);
    }

    fn idle_cores(&self) -> CoreSet {
        self.host.idle_cores()
    }

    fn wake(&self, core: CoreId) {
        self.host.wake(core);
    }

    fn arm(&self, vm: PortId, at: Nanos) {
        self.host.arm(vm, at);
    }

    fn spent(&self, work: Work) {
        self.host.spent(work);
        self.keep_pace();
    }

    fn copies_payload(&self) -> bool {
        self.host.copies_payload
    }
}

/// A task's own way into the switch.
pub(crate) struct Entrance {
    switch: Arc<Switch>,
    context: CoreContext,
}

impl Entrance {
    /// The entrance with this context.
    pub(crate) fn new(switch: &Arc<Switch>, context: usize) -> Entrance {
        let context = switch.core_context(CoreId(context as u16)).expect("each context is taken once");
        Entrance { switch: switch.clone(), context }
    }

    pub(crate) fn context(&mut self) -> &mut CoreContext {
        &mut self.context
    }

    /// Enters, which costs what it costs.
    pub(crate) fn enter(
        &mut self,
        seat: &Seat<'_>,
        enter: impl FnOnce(&Switch, &mut CoreContext) -> Entered,
    ) -> Entered {
        seat.host.clock.charge(Account::Switching, seat.host.prices.switch_entry);
        seat.keep_pace();
        let inside = &seat.host.inside;
        inside.set(inside.get() + 1);
        let entered = enter(&self.switch, &mut self.context);
        inside.set(inside.get() - 1);
        if entered.upcalls || entered.faulted {
            seat.host.affect(Effect::Upcalls { faulted: entered.faulted });
        }
        entered
    }

    /// An idle core's work; answers whether there is more.
    pub(crate) fn idle(&mut self, seat: &Seat<'_>) -> bool {
        self.enter(seat, |switch, cx| switch.idle(cx, seat)).more
    }
}

/// A VM's way into the switch.
pub(crate) struct VmWay<'a> {
    pub(crate) entrance: &'a mut Entrance,
    pub(crate) seat: Seat<'a>,
    pub(crate) vm: PortId,
}

impl VmWay<'_> {
    /// Whether a notification means that the VM is to make its receive hypercall, as its frames come by no other way.
    fn is_receive_needed(&mut self) -> bool {
        let Entrance { switch, context } = &mut *self.entrance;
        !switch.config().optimisations.preemptive_copy && switch.frames_wait(context, self.vm)
    }

    /// The receive hypercall. Answers whether any frame came by it, or has come before and the VM is told of it hereby.
    fn receive_any(&mut self) -> bool {
        self.pay_entry();
        let (seat, vm) = (self.seat, self.vm);
        let mut any = false;
        loop {
            let entered = self.entrance.enter(&seat, |switch, cx| switch.receive(cx, &seat, vm));
            any |= entered.copied > 0 || entered.interrupt;
            if !entered.more {
                return any;
            }
        }
    }

    fn pay_entry(&self) {
        self.seat.host.pay_entry();
    }
}

impl Hypercall for VmWay<'_> {
    fn transmit(&mut self) {
        self.pay_entry();
        let (seat, vm) = (self.seat, self.vm);
        while self.entrance.enter(&seat, |switch, cx| switch.transmit(cx, &seat, vm)).more {}
    }

    fn receive(&mut self) {
        self.receive_any();
    }

    fn take_interrupt(&mut self) -> bool {
        self.seat.host.take_interrupt(self.vm.0)
    }

    fn frames_wait(&mut self) -> bool {
        self.is_receive_needed()
    }

    fn block(&mut self) -> bool {
        self.is_receive_needed() && self.receive_any()
    }
}
