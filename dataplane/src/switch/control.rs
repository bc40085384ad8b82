//! The switch's one handle for change: ports, flows, verdicts, barriers, and what is asked about them.

use super::{CoreContext, Entered, Switch, SwitchConfig, Visit};
use crate::action::Action;
use crate::api::{
    FlowId, FlowRecord, FlowSpec, InstallError, Nanos, PortId, PortInfo, Upcall, UpcallId, Verdict, VlanMode,
};
use crate::claim::Word;
use crate::counters::{self, PortCounters};
use crate::epoch::Epoch;
use crate::exchange::Map;
use crate::flow::table::FlowWriter;
use crate::host::Host;
use crate::lanes::{Condition, Lanes, MAX_LANES};
use crate::port::{Backend, End, Port, PortBounds, PortConfig, PortState, QueuePair};
use crate::shares::ACCOUNTS;
use crate::sync::Published;
use crate::sync::atomic::Ordering;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr;
use hashbrown::HashMap;
use hyper_switch_pvnet::mem::GuestMemory;

/// Why a port could not be attached, or nothing be connected to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The switch has as many ports and lanes as it was made for.
    #[error("the switch has its {0} ports")]
    NoPortLeft(usize),
    /// Nothing has this number.
    #[error("there is no port {0}")]
    NoSuchPort(PortId),
    /// A backend is connected to it, or not quite gone.
    #[error("port {0} has a backend")]
    Connected(PortId),
    /// A backend without queues, or with more than a port can have.
    #[error("{0} queue pairs, where 1 to {MAX_LANES} can be")]
    QueuePairs(usize),
}

/// Why the memory of a port could not be exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// It has none.
    #[error("no VM is connected to port {0}")]
    NoVm(PortId),
    /// Not one map for each of its queue pairs.
    #[error("maps for {maps} queue pairs, where {pairs} are")]
    QueuePairs {
        /// Maps that were given.
        maps: usize,
        /// Queue pairs that there are.
        pairs: usize,
    },
    /// A ring would have another size.
    #[error("the rings of queue pair {0} have another size")]
    RingSize(usize),
}

/// What [`Control::reap`] came to.
#[derive(Default)]
pub struct Reaped {
    /// Nothing is left to be carried on.
    pub done: bool,
    /// The backends that are gone since the last call.
    pub gone: Vec<Gone>,
}

/// A backend that was disconnected, or detached with its port, and that the switch has nothing of any more.
pub struct Gone {
    /// The port that it was connected to.
    pub port: PortId,
    /// Where its rings stand, of each lane; none of a device.
    pub queues: Vec<QueuePair>,
}

/// A port, as asked about.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// Its number, name and VLANs.
    pub info: PortInfo,
    /// Whether it works.
    pub state: PortState,
    /// Its counters since it was made, of all lanes and all backends together.
    pub counters: PortCounters,
    /// Frames that wait in its internal receive queues.
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
    places: BTreeMap<PortId, Place>,
    /// Numbers of ports and lanes that are in use, and of their next upcalls: verdicts on those of whoever had a number
    /// before may still come.
    taken: Box<[bool]>,
    next_upcalls: Box<[u32]>,
    leaving: Vec<Leaving>,
    /// The port whose upcalls are served next.
    turn: usize,
}

/// A port as it stays while backends come and go.
struct Place {
    info: PortInfo,
    /// What the counters of this number were when it was reserved.
    base: PortCounters,
    link: Option<Link>,
    /// It goes with its backend.
    detached: bool,
}

/// A backend's connection.
struct Link {
    lanes: Arc<Lanes>,
    /// Old maps of its memory that are still to come from cores.
    exchanging: usize,
    /// Old maps that frames in flight may lie in.
    old: Vec<Arc<GuestMemory>>,
}

/// A backend on its way out.
enum Leaving {
    /// Cores may still be queueing frames for it.
    Draining(PortId, Epoch),
    /// Its lanes are out of the table; cores may still be looking at them.
    Unlinked(PortId, Vec<*mut Published<Port>>, Epoch),
}

// SAFETY: the pointers are to ports that this value alone owns.
unsafe impl Send for Control {}

impl Control {
    pub(super) fn new(switch: Arc<Switch>, flows: FlowWriter) -> Control {
        let ports = switch.ports.len();
        Control {
            switch,
            flows,
            bases: HashMap::with_hasher(crate::flow::table::FixedState),
            places: BTreeMap::new(),
            taken: vec![false; ports].into(),
            next_upcalls: vec![0; ports].into(),
            leaving: Vec::new(),
            turn: 0,
        }
    }

    /// The switch that this controls.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// Attaches a port with what is behind it. It forwards at once.
    pub fn attach(&mut self, config: PortConfig) -> Result<PortId, AttachError> {
        let PortConfig { name, vlan, backend } = config;
        let id = self.reserve(name, vlan)?;
        let connected = self.connect(id, backend);
        if connected.is_err() {
            self.detach(id);
        }
        connected.map(|()| id)
    }

    /// Makes a port that has no backend yet.
    pub fn reserve(&mut self, name: String, vlan: VlanMode) -> Result<PortId, AttachError> {
        let free = self.taken.iter().position(|taken| !taken);
        let at = free.ok_or(AttachError::NoPortLeft(self.taken.len()))?;
        let id = PortId(at as u16);
        let base = PortCounters::read(self.switch.cores.iter(), at);
        let info = PortInfo { id, name, vlan };
        self.places.insert(id, Place { info, base, link: None, detached: false });
        self.taken[at] = true;
        self.switch.reserved[at].store(true, Ordering::Relaxed);
        Ok(id)
    }

    /// Connects a backend to a port that has none. It forwards at once. Its further lanes take numbers from the end of
    /// those that there can be.
    pub fn connect(&mut self, id: PortId, backend: Backend) -> Result<(), AttachError> {
        let place = self.places.get_mut(&id).ok_or(AttachError::NoSuchPort(id))?;
        if place.link.is_some() {
            return Err(AttachError::Connected(id));
        }
        let ends = backend.into_ends();
        if !(1..=MAX_LANES).contains(&ends.len()) {
            return Err(AttachError::QueuePairs(ends.len()));
        }
        let mut free: Vec<_> = (0..self.taken.len()).rev().filter(|at| !self.taken[*at]).collect();
        // Better those that share the port's account in receivers' queues: a port has one share, not one a lane.
        free.sort_by_key(|at| at % ACCOUNTS != usize::from(id.0) % ACCOUNTS);
        let others = free.get(..ends.len() - 1).ok_or(AttachError::NoPortLeft(self.taken.len()))?;
        let numbers = [id].into_iter().chain(others.iter().map(|at| PortId(*at as u16))).collect();
        let enabled = ends.iter().enumerate().fold(0, |set, (lane, end)| {
            let is_enabled = !matches!(end, End::Ring { queues, .. } if !queues.enabled);
            set | u8::from(is_enabled) << lane
        });
        let lanes = Arc::new(Lanes::new(numbers, enabled));
        let SwitchConfig { rx_queue_frames, held_frames, upcalls, .. } = self.switch.config;
        let bounds = PortBounds { rx_queue_frames, held_frames, upcalls };
        // The first one last: whoever finds the port finds all of its lanes.
        for (lane, end) in ends.into_iter().enumerate().rev() {
            let at = usize::from(lanes.numbers()[lane].0);
            let port = Port::new(lanes.clone(), lane, end, &bounds, self.next_upcalls[at]);
            self.taken[at] = true;
            self.switch.ports[at].store(Published::publish(port), Ordering::SeqCst);
        }
        place.link = Some(Link { lanes, exchanging: 0, old: Vec::new() });
        Ok(())
    }

    /// Begins to disconnect the backend of a port: nothing more is taken from it or sent to it. Frames of others that
    /// waited for it are dropped, its own are completed; [`Control::reap`] says when that is done and gives its rings
    /// back. The port keeps its number, name and counters, and another backend can be connected. Answers whether there
    /// is one that was not on its way out.
    pub fn disconnect(&mut self, id: PortId) -> bool {
        let Some(link) = self.places.get(&id).and_then(|place| place.link.as_ref()) else { return false };
        if link.lanes.condition() == Condition::Leaving {
            return false;
        }
        link.lanes.leave();
        self.leaving.push(Leaving::Draining(id, self.switch.epochs.advance()));
        true
    }

    /// Begins to detach a port: as [`Control::disconnect`], and when that is done the port is no more and its number
    /// is free again. Answers whether there is such a port.
    pub fn detach(&mut self, id: PortId) -> bool {
        let Some(place) = self.places.get_mut(&id).filter(|place| !place.detached) else { return false };
        place.detached = true;
        self.switch.reserved[usize::from(id.0)].store(false, Ordering::Relaxed);
        if place.link.is_none() {
            self.remove_if_detached(id);
        } else {
            // Or it is on its way out already.
            self.disconnect(id);
        }
        true
    }

    fn remove_if_detached(&mut self, id: PortId) {
        if self.places.get(&id).is_some_and(|place| place.detached) {
            self.places.remove(&id);
            self.taken[usize::from(id.0)] = false;
        }
    }

    /// The numbers of a port's lanes, its own first, by which its VM enters and is notified; none without a backend.
    pub fn lanes(&self, id: PortId) -> Vec<PortId> {
        let link = self.places.get(&id).and_then(|place| place.link.as_ref());
        link.map_or_else(Vec::new, |link| link.lanes.numbers().to_vec())
    }

    /// Has frames for a port go to the lanes in `enabled`, a bit each, and to no other; while there is none they are
    /// dropped ([`DropReason::PortAbsent`](crate::api::DropReason::PortAbsent)). What waits for others is moved. A core
    /// that is just copying goes on until the next [`Control::barrier`] has passed. Answers whether there is a backend.
    pub fn set_lanes<H: Host>(&mut self, cx: &mut CoreContext, host: &H, id: PortId, enabled: u8) -> bool {
        let Some(link) = self.places.get(&id).and_then(|place| place.link.as_ref()) else { return false };
        link.lanes.enable(enabled);
        let switch = &self.switch;
        switch.enter(cx, host, Visit::Control, |entry, cx| {
            // Each moves what waits for it, if it is not enabled.
            for port in link.lanes.numbers().iter().filter_map(|lane| switch.port(*lane)) {
                entry.serve_receiver(cx, port, Word::COMPLETE);
            }
        });
        true
    }

    /// Begins to exchange the memory of a VM for another map of it, which `maps` gives for each lane. The rings go on in
    /// it; [`Control::reap`] frees the old one when no frame in flight lies in it. Until then
    /// [`Control::is_exchanging`]. One that is begun before another is over takes its place.
    pub fn exchange<H: Host>(
        &mut self,
        cx: &mut CoreContext,
        host: &H,
        id: PortId,
        maps: &[Map],
    ) -> Result<(), ExchangeError> {
        let switch = self.switch.clone();
        let link = self.places.get_mut(&id).and_then(|place| place.link.as_mut());
        let link = link.ok_or(ExchangeError::NoVm(id))?;
        let lanes: Vec<_> = link.lanes.numbers().iter().filter_map(|lane| switch.port(*lane)).collect();
        if lanes.iter().any(|port| port.ring_sizes.is_none()) || lanes.is_empty() {
            return Err(ExchangeError::NoVm(id));
        }
        if maps.len() != lanes.len() {
            return Err(ExchangeError::QueuePairs { maps: maps.len(), pairs: lanes.len() });
        }
        let differs = |(port, map): (&&Port, &Map)| port.ring_sizes != Some((map.tx.size(), map.rx.size()));
        if let Some(lane) = lanes.iter().zip(maps).position(differs) {
            return Err(ExchangeError::RingSize(lane));
        }
        link.take_old(&lanes);
        for (port, map) in lanes.iter().zip(maps) {
            link.exchanging += port.exchange.ask(map);
        }
        link.serve_exchange(&switch, cx, host, &lanes);
        Ok(())
    }

    /// Whether an exchange of a port's memory is under way.
    pub fn is_exchanging(&self, id: PortId) -> bool {
        let link = self.places.get(&id).and_then(|place| place.link.as_ref());
        link.is_some_and(Link::is_exchanging)
    }

    /// Carries on, as far as it goes now, what was begun: backends that are disconnected, memory that is exchanged. If
    /// it is not [done](Reaped::done) then, it is to be called again soon.
    pub fn reap<H: Host>(&mut self, cx: &mut CoreContext, host: &H) -> Reaped {
        let switch = self.switch.clone();
        let passed = |epoch| switch.epochs.passed(epoch);
        for link in self.places.values_mut().filter_map(|place| place.link.as_mut()) {
            link.carry_exchange(&switch, cx, host);
        }
        let mut gone = Vec::new();
        for leaving in core::mem::take(&mut self.leaving) {
            let next = match leaving {
                Leaving::Draining(id, epoch) if passed(epoch) && self.is_drained(cx, host, id) => {
                    let unlink = |lane: &PortId| {
                        switch.ports[usize::from(lane.0)].swap(ptr::null_mut(), Ordering::SeqCst)
                    };
                    let lanes = self.lanes(id).iter().map(unlink).collect();
                    Leaving::Unlinked(id, lanes, switch.epochs.advance())
                }
                Leaving::Unlinked(id, lanes, epoch) if passed(epoch) => {
                    gone.push(self.free(id, lanes));
                    continue;
                }
                waits => waits,
            };
            self.leaving.push(next);
        }
        self.flows.reclaim(&self.switch.table, &self.switch.epochs);
        let exchanging =
            self.places.values().filter_map(|place| place.link.as_ref()).any(Link::is_exchanging);
        Reaped { done: self.leaving.is_empty() && !exchanging, gone }
    }

    /// Completes what can be completed of a port on its way out. Answers whether nothing is left.
    fn is_drained<H: Host>(&mut self, cx: &mut CoreContext, host: &H, id: PortId) -> bool {
        let numbers = self.lanes(id);
        let lanes = || numbers.iter().filter_map(|lane| self.switch.port(*lane));
        self.switch.enter(cx, host, Visit::Control, |entry, cx| {
            for port in lanes() {
                entry.serve_sender(cx, port, Word::COMPLETE);
                entry.serve_receiver(cx, port, Word::COMPLETE);
            }
        });
        lanes().all(|port| port.frames.in_flight() == 0 && port.waiting.is_empty())
    }

    /// Frees the lanes of a port, which nobody can reach any more.
    fn free(&mut self, id: PortId, lanes: Vec<*mut Published<Port>>) -> Gone {
        let mut queues = Vec::new();
        for port in lanes {
            // SAFETY: the port came from a Box, and since it was taken out of the table an epoch has passed.
            let port = unsafe { Box::from_raw(port) }.into_inner();
            let at = usize::from(port.id.0);
            self.taken[at] = port.lane == 0;
            let (pair, next_upcall) = port.into_rest();
            self.next_upcalls[at] = next_upcall;
            queues.extend(pair);
        }
        if let Some(place) = self.places.get_mut(&id) {
            place.link = None;
        }
        self.remove_if_detached(id);
        Gone { port: id, queues }
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
        self.places.values().map(|place| self.status(place)).collect()
    }

    /// One port.
    pub fn port(&self, id: PortId) -> Option<PortStatus> {
        self.places.get(&id).map(|place| self.status(place))
    }

    fn status(&self, place: &Place) -> PortStatus {
        let id = place.info.id;
        let counters = PortCounters::read(self.switch.cores.iter(), id.0.into());
        let mut status = PortStatus {
            info: place.info.clone(),
            state: place.state(),
            counters: counters.since(&place.base),
            waiting: 0,
            held: 0,
            in_flight: 0,
        };
        for port in self.lanes(id).iter().filter_map(|lane| self.switch.port(*lane)) {
            status.waiting += port.waiting.len();
            status.held += port.held.load(Ordering::Relaxed);
            status.in_flight += port.frames.in_flight();
        }
        status
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

impl Place {
    fn state(&self) -> PortState {
        match self.link.as_ref().map(|link| link.lanes.condition()) {
            None => PortState::Absent,
            Some(Condition::Up) => PortState::Up,
            Some(Condition::Faulted(fault)) => PortState::Faulted(fault),
            Some(Condition::Leaving) if self.detached => PortState::Leaving,
            Some(Condition::Leaving) => PortState::Disconnecting,
        }
    }
}

impl Link {
    fn is_exchanging(&self) -> bool {
        self.exchanging > 0 || !self.old.is_empty()
    }

    /// Takes the old maps that cores have left.
    fn take_old(&mut self, lanes: &[&Port]) {
        for old in lanes.iter().flat_map(|port| core::iter::from_fn(|| port.exchange.next_old())) {
            self.old.push(old);
            self.exchanging -= 1;
        }
    }

    /// Has each side of the lanes look at what is left for it, and frees the old maps if nothing needs them.
    fn serve_exchange<H: Host>(&mut self, switch: &Switch, cx: &mut CoreContext, host: &H, lanes: &[&Port]) {
        switch.enter(cx, host, Visit::Control, |entry, cx| {
            for port in lanes {
                entry.serve_sender(cx, port, Word::EXCHANGE);
                entry.serve_receiver(cx, port, Word::EXCHANGE);
            }
        });
        self.take_old(lanes);
        if self.exchanging == 0 && lanes.iter().all(|port| port.exchange.is_settled()) {
            self.old.clear();
        }
    }

    fn carry_exchange<H: Host>(&mut self, switch: &Switch, cx: &mut CoreContext, host: &H) {
        if self.is_exchanging() {
            let numbers = self.lanes.clone();
            // None if they are out of the table: then it is over when they are freed.
            let lanes: Vec<_> = numbers.numbers().iter().filter_map(|lane| switch.port(*lane)).collect();
            if !lanes.is_empty() {
                self.serve_exchange(switch, cx, host, &lanes);
            }
        }
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
