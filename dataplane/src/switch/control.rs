//! The switch's one handle for change: ports, flows, verdicts, barriers, and what is asked about them.

use super::{CoreContext, Entered, Switch, SwitchConfig, Visit};
use crate::action::Action;
use crate::api::{
    FlowId, FlowRecord, FlowSpec, InstallError, Nanos, PortId, PortInfo, Upcall, UpcallId, Verdict,
};
use crate::claim::Word;
use crate::counters::{self, PortCounters};
use crate::epoch::Epoch;
use crate::flow::table::FlowWriter;
use crate::host::Host;
use crate::port::{Port, PortBounds, PortConfig, PortState};
use crate::sync::Published;
use crate::sync::atomic::Ordering;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use hashbrown::HashMap;

/// Why a port could not be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The switch has as many ports as it was made for.
    #[error("the switch has its {0} ports")]
    NoPortLeft(usize),
}

/// A port, as asked about.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// Its number, name and VLANs.
    pub info: PortInfo,
    /// Whether it works.
    pub state: PortState,
    /// Its counters since it was attached.
    pub counters: PortCounters,
    /// Frames that wait in its internal receive queue.
    pub waiting: usize,
    /// Frames that it sent and that wait for the control plane.
    pub held: usize,
    /// Frames that it sent and that are not complete: waiting for receivers or for the control plane.
    pub in_flight: usize,
}

/// Changes the switch. There is one, so changes need no lock; cores go on forwarding meanwhile.
pub struct Control {
    switch: Arc<Switch>,
    flows: FlowWriter,
    /// What a flow's place had counted for flows of before, when it was installed.
    bases: HashMap<FlowId, (u64, u64), crate::flow::table::FixedState>,
    leaving: Vec<Leaving>,
    /// The port whose upcalls are served next.
    turn: usize,
}

/// A port on its way out.
enum Leaving {
    /// Cores may still be queueing frames for it.
    Draining(PortId, Epoch),
    /// It is out of the table; cores may still be looking at it.
    Unlinked(*mut Published<Port>, Epoch),
}

// SAFETY: the pointers are to ports that this value alone owns.
unsafe impl Send for Control {}

impl Control {
    pub(super) fn new(switch: Arc<Switch>, flows: FlowWriter) -> Control {
        let bases = HashMap::with_hasher(crate::flow::table::FixedState);
        Control { switch, flows, bases, leaving: Vec::new(), turn: 0 }
    }

    /// The switch that this controls.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// Attaches a port. It forwards at once.
    pub fn attach(&mut self, config: PortConfig) -> Result<PortId, AttachError> {
        let ports = &self.switch.ports;
        let free = ports.iter().position(|port| port.load(Ordering::Acquire).is_null());
        let at = free.ok_or(AttachError::NoPortLeft(ports.len()))?;
        let id = PortId(at as u16);
        let SwitchConfig { rx_queue_frames, held_frames, .. } = self.switch.config;
        let bounds = PortBounds { rx_queue_frames, held_frames };
        let base = PortCounters::read(self.switch.cores.iter(), at);
        let port = Published::publish(Port::new(id, config, &bounds, base));
        ports[at].store(port, Ordering::SeqCst);
        Ok(id)
    }

    /// Begins to detach a port: nothing more is taken from it or sent to it. Frames of others that waited for
    /// it are dropped, its own are completed; [`Control::reap`] says when that is done and its number and
    /// memory are free again. Answers whether there is such a port.
    pub fn detach(&mut self, id: PortId) -> bool {
        let Some(port) = self.switch.port(id).filter(|port| port.state() != PortState::Leaving) else {
            return false;
        };
        port.leave();
        self.leaving.push(Leaving::Draining(id, self.switch.epochs.advance()));
        true
    }

    /// Carries detaching on as far as it goes now. Answers whether all detached ports are gone; otherwise it is
    /// to be called again soon.
    pub fn reap<H: Host>(&mut self, cx: &mut CoreContext, host: &H) -> bool {
        let switch = self.switch.clone();
        let passed = |epoch| switch.epochs.passed(epoch);
        for leaving in core::mem::take(&mut self.leaving) {
            let next = match leaving {
                Leaving::Draining(id, epoch) if passed(epoch) => {
                    switch.enter(cx, host, Visit::Control, |entry, cx| {
                        if let Some(port) = switch.port(id) {
                            entry.serve_sender(cx, port, Word::COMPLETE);
                            entry.serve_receiver(cx, port, Word::COMPLETE);
                        }
                    });
                    match switch.port(id) {
                        Some(port) if port.frames.in_flight() > 0 || !port.waiting.is_empty() => {
                            Leaving::Draining(id, epoch)
                        }
                        _ => {
                            let port =
                                switch.ports[usize::from(id.0)].swap(ptr::null_mut(), Ordering::SeqCst);
                            Leaving::Unlinked(port, switch.epochs.advance())
                        }
                    }
                }
                Leaving::Unlinked(port, epoch) if passed(epoch) => {
                    free_port(port);
                    continue;
                }
                waits => waits,
            };
            self.leaving.push(next);
        }
        self.flows.reclaim(&self.switch.table, &self.switch.epochs);
        self.leaving.is_empty()
    }

    /// Installs a flow, at `now`. Cores that enter from now on find it.
    pub fn install(&mut self, spec: &FlowSpec, now: Nanos) -> Result<(), InstallError> {
        self.check_actions(&spec.actions)?;
        let Switch { table, epochs, cores, .. } = &*self.switch;
        let index = self.flows.install(table, epochs, spec, now)?;
        let (packets, bytes, _) = counters::read_flow(cores.iter(), index.0 as usize);
        self.bases.insert(spec.id, (packets, bytes));
        Ok(())
    }

    /// Gives a flow other actions. Answers whether the flow is there.
    pub fn modify(&mut self, id: FlowId, actions: &Arc<[Action]>) -> Result<bool, InstallError> {
        self.check_actions(actions)?;
        Ok(self.flows.modify(&self.switch.table, &self.switch.epochs, id, actions))
    }

    /// Removes a flow. Answers whether it was there.
    pub fn remove(&mut self, id: FlowId) -> bool {
        self.bases.remove(&id);
        self.flows.remove(&self.switch.table, &self.switch.epochs, id).is_some()
    }

    fn check_actions(&self, actions: &[Action]) -> Result<(), InstallError> {
        let ports = self.switch.ports.len();
        let outputs = actions.iter().filter_map(|action| match action {
            Action::Output(port) => Some(*port),
            _ => None,
        });
        if let Some(port) = outputs.clone().find(|port| usize::from(port.0) >= ports) {
            return Err(InstallError::NoSuchPort(port));
        }
        match outputs.count() {
            0..=super::transmit::MAX_OUTPUTS => Ok(()),
            _ => Err(InstallError::TooManyOutputs(super::transmit::MAX_OUTPUTS)),
        }
    }

    /// Marks the point that all changes so far belong to.
    pub fn barrier(&mut self) -> Barrier {
        Barrier(self.switch.epochs.advance())
    }

    /// Whether every core sees the changes from before `barrier`.
    pub fn passed(&self, barrier: Barrier) -> bool {
        self.switch.epochs.passed(barrier.0)
    }

    /// The next packet that waits for the control plane. Ports take turns, so that one that misses all the
    /// time does not keep the others waiting.
    pub fn next_upcall(&mut self) -> Option<Upcall> {
        let ports = self.switch.ports.len();
        for step in 0..ports {
            let at = (self.turn + step) % ports;
            if let Some(upcall) = self.switch.port(PortId(at as u16)).and_then(|port| port.upcalls.pop()) {
                self.turn = at + 1;
                return Some(upcall);
            }
        }
        None
    }

    /// Carries out the control plane's verdict on a packet that waits. A verdict whose actions cannot be
    /// carried out, and that no flow could have had, drops the packet.
    pub fn resolve<H: Host>(
        &mut self,
        cx: &mut CoreContext,
        host: &H,
        id: UpcallId,
        verdict: Verdict,
    ) -> Entered {
        let verdict = match verdict {
            Verdict::Execute(actions) if self.check_actions(&actions).is_err() => Verdict::Drop,
            verdict => verdict,
        };
        let switch = self.switch.clone();
        switch.enter(cx, host, Visit::Control, |entry, cx| {
            let Some(port) = switch.port(id.port) else { return };
            // There is room for a verdict on every upcall; what does not fit answers none.
            if port.verdicts.push((id.number, verdict)).is_ok() {
                entry.serve_sender(cx, port, Word::COMPLETE);
            }
        })
    }

    /// All ports.
    pub fn ports(&self) -> Vec<PortStatus> {
        let ports = (0..self.switch.ports.len()).filter_map(|at| self.switch.port(PortId(at as u16)));
        ports.map(|port| self.status(port)).collect()
    }

    /// One port.
    pub fn port(&self, id: PortId) -> Option<PortStatus> {
        self.switch.port(id).map(|port| self.status(port))
    }

    fn status(&self, port: &Port) -> PortStatus {
        let counters = PortCounters::read(self.switch.cores.iter(), port.id().0.into());
        PortStatus {
            info: port.info.clone(),
            state: port.state(),
            counters: counters.since(&port.base),
            waiting: port.waiting.len(),
            held: port.held.load(Ordering::Relaxed),
            in_flight: port.frames.in_flight(),
        }
    }

    /// All flows, with what they have done.
    pub fn flows(&self) -> Vec<FlowRecord> {
        let record = |(id, index, installed): (FlowId, crate::flow::table::FlowIndex, Nanos)| {
            let (packets, bytes, used) = counters::read_flow(self.switch.cores.iter(), index.0 as usize);
            let base = self.bases.get(&id).copied().unwrap_or_default();
            Some(FlowRecord {
                spec: self.flows.spec(&self.switch.table, id)?,
                packets: packets.wrapping_sub(base.0),
                bytes: bytes.wrapping_sub(base.1),
                used: used.filter(|used| *used >= installed),
                installed,
            })
        };
        self.flows.iter().filter_map(record).collect()
    }

    /// How many flows there are, and how many masks they have.
    pub fn flow_counts(&self) -> (usize, usize) {
        (self.flows.len(), self.switch.table.masks())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Without a control the switch goes on with what it has. What some core may still look at is left to
        // the end of the process; everything else is freed here or with the switch.
        self.flows.reclaim(&self.switch.table, &self.switch.epochs);
    }
}

/// A point in the order of changes: see [`Control::barrier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Barrier(Epoch);

/// Frees a port that nobody can reach any more.
pub(super) fn free_port(port: *mut Published<Port>) {
    if !port.is_null() {
        // SAFETY: ports come from Box, and the caller took the pointer out of where others find it.
        drop(unsafe { Box::from_raw(port) });
    }
}
