//! The learning switch: a state machine that keeps the data plane's flows true to what it has learned.
//!
//! Events and the time go in, requests come out; it has no clock, thread or channel of its own, and the
//! same events give the same requests.
//!
//! # A miss
//!
//! The source is learned, the packet is [translated](crate::translate), the megaflow is installed, and
//! the packet is looked up again. A packet that cannot be installed for is executed instead (below).
//!
//! # No flow outlives its reason
//!
//! Each flow is kept with the [facts](Fact) that its translation rests on. When an address is learned,
//! moves or is forgotten, or a port comes or goes, the flows that rest on it, and no others, are
//! translated again: other actions are a [`Request::Modify`]; a flow whose packets may not have one any
//! more, such as the flow of an address that has moved, is removed, and its next packet is a miss.
//! Requests that correct flows are followed by a [`Request::Barrier`];
//! [`is_settled`](LearningSwitch::is_settled) says when all have been answered.
//!
//! # Silence
//!
//! Flows hide traffic from the control plane, so before anything is let go for silence, the data plane is
//! asked what its flows have carried ([`Request::List`]). That is when the first flow or address would be
//! due by what is known, and at most once in [`Config::poll_interval`]: a flow in use is asked about once
//! in an idle time, and a switch without flows and addresses asks nothing and has no
//! [deadline](LearningSwitch::next_deadline). The answer keeps the sources of flows in use from ageing.
//! An idle flow is removed, its source stays until it ages.
//!
//! # No room
//!
//! When the table is full, the flow that goes is the longest unused of the port that has the most, so that
//! a guest that makes flow upon flow replaces its own. A packet whose flow was refused comes back as
//! another miss, because its `Retry` found nothing; that one is executed, and so are all that the flow
//! would have been for, for a second; then it is tried again. Refusals are remembered by the name of the
//! flow even when it was given up meanwhile, or two such packets could chase each other for ever. So no
//! packet is lost, and none misses more than twice, whatever the data plane refuses its flow for.
//!
//! # Restart
//!
//! A new learning switch asks for ports and flows first, and holds misses back until it has them. Flows
//! that it would have made itself are adopted, and their sources learned again as of their last packet;
//! what it cannot explain is removed. An address that no flow comes from is not in the data plane, and is
//! learned anew when it next sends. The answers are taken as of a barrier whose number is the time of the
//! restart, so that answers to a predecessor's questions, still on their way, are not mistaken for ours.

use crate::flow_table::{Flow, FlowTable};
use crate::mac::{MacEntry, MacLimits, MacTable};
use crate::translate::{Fact, MASKS, Ports, Translation, source, takes_part, translate};
use hyper_switch_dataplane::api::{
    Event, FlowId, FlowRecord, FlowSpec, InstallError, Match, Nanos, PortId, PortInfo, Request, Upcall,
    UpcallReason, Verdict, VlanMode,
};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::mem;
use std::time::Duration;

/// How long the packets of a refused flow are executed before it is tried again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// Installations that may still be refused, and refusals, that are remembered. It is more than the misses
/// that wait at a time; what is forgotten nevertheless costs its packets one more miss.
const MAX_REMEMBERED: usize = 4_096;

/// Misses that are held back until the flows of a live data plane are known; more are dropped.
const MAX_HELD: usize = 4_096;

/// How a [`LearningSwitch`] is to behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bounds of the MAC table.
    pub macs: MacLimits,
    /// How long a flow without packets is kept.
    pub flow_idle: Duration,
    /// The shortest time from one question about the flows' use to the next.
    pub poll_interval: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            macs: MacLimits::default(),
            flow_idle: Duration::from_secs(10),
            poll_interval: Duration::from_secs(1),
        }
    }
}

/// How far it is with taking over a data plane.
#[derive(Debug)]
enum Phase {
    /// Nothing was asked yet.
    New,
    /// The barrier with this number closes the answers.
    Joining { barrier: u64, flows: Vec<FlowRecord>, held: Vec<Upcall> },
    /// Every flow is known.
    Joined,
}

/// The state machine. See the [module](self) for what it does.
#[derive(Debug)]
pub struct LearningSwitch {
    config: Config,
    phase: Phase,
    ports: Ports,
    macs: MacTable,
    flows: FlowTable,
    next_flow: FlowId,
    next_barrier: u64,
    /// The last barrier that was asked for, until it is answered.
    unsettled: Option<u64>,
    last_poll: Nanos,
    /// The last poll is not answered yet.
    is_polling: bool,
    /// The flows that the table can hold, once a refusal has told.
    capacity: Option<usize>,
    /// The last flows that were asked for, in the order of their names.
    requested: VecDeque<(FlowId, Match)>,
    /// What was refused, and until when it is not tried again.
    refused: HashMap<Match, Nanos>,
}

impl LearningSwitch {
    /// A learning switch that knows nothing yet. Its first [`tick`](LearningSwitch::tick) is due at once.
    pub fn new(config: Config) -> LearningSwitch {
        LearningSwitch {
            config,
            phase: Phase::New,
            ports: Ports::new(),
            macs: MacTable::new(config.macs),
            flows: FlowTable::new(),
            next_flow: FlowId(0),
            next_barrier: 0,
            unsettled: None,
            last_poll: Nanos(0),
            is_polling: false,
            capacity: None,
            requested: VecDeque::new(),
            refused: HashMap::new(),
        }
    }

    /// Takes in an event. What is to be asked of the data plane is appended to `out`, in order.
    pub fn handle(&mut self, now: Nanos, event: Event, out: &mut Vec<Request>) {
        self.join(now, out);
        match event {
            Event::PortAdded(port) => self.add_port(port, out),
            Event::PortRemoved(port) => self.remove_port(port, out),
            Event::Ports(ports) => self.replace_ports(ports, out),
            Event::Barrier(number) => self.pass_barrier(now, number, out),
            Event::Upcall(upcall) => match &mut self.phase {
                Phase::Joining { held, .. } if held.len() < MAX_HELD => held.push(upcall),
                Phase::Joining { .. } => out.push(Request::Resolve(upcall.id, Verdict::Drop)),
                _ => self.decide(now, &upcall, out),
            },
            Event::Flows(records) => match &mut self.phase {
                Phase::Joining { flows, .. } => *flows = records,
                _ => self.note_use(&records, out),
            },
            Event::InstallFailed(id, error) => self.accept_refusal(now, id, error, out),
        }
    }

    /// Does what is due. To be called when [`next_deadline`](LearningSwitch::next_deadline) has come; at
    /// any other time it does nothing.
    pub fn tick(&mut self, now: Nanos, out: &mut Vec<Request>) {
        self.join(now, out);
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if self.flows.is_empty() {
            self.expire(now, out);
        } else {
            (self.last_poll, self.is_polling) = (now, true);
            out.push(Request::List);
        }
    }

    /// When [`tick`](LearningSwitch::tick) is to be called; `None` when only an event can bring anything.
    pub fn next_deadline(&self) -> Option<Nanos> {
        match self.phase {
            Phase::New => return Some(Nanos(0)),
            Phase::Joining { .. } => return None,
            Phase::Joined if self.is_polling => return None,
            Phase::Joined => {}
        }
        let mac_due = self.macs.next_expiry();
        let flow_due = self.flows.by_last_use().next().map(|(used, _)| used.after(self.config.flow_idle));
        match flow_due {
            None => mac_due,
            Some(due) => {
                let due = mac_due.map_or(due, |mac_due| due.min(mac_due));
                Some(due.max(self.last_poll.after(self.config.poll_interval)))
            }
        }
    }

    /// The addresses that are known, by VLAN and address.
    pub fn macs(&self) -> impl Iterator<Item = MacEntry> {
        self.macs.iter()
    }

    /// Whether the flows of the data plane are known, and every correction of them is visible to every
    /// core.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Joined) && self.unsettled.is_none()
    }

    /// Asks a data plane, once, for what is there.
    fn join(&mut self, now: Nanos, out: &mut Vec<Request>) {
        if matches!(self.phase, Phase::New) {
            self.next_barrier = now.0;
            out.push(Request::List);
            let barrier = self.push_barrier(out);
            self.phase = Phase::Joining { barrier, flows: Vec::new(), held: Vec::new() };
        }
    }

    fn pass_barrier(&mut self, now: Nanos, number: u64, out: &mut Vec<Request>) {
        if self.unsettled == Some(number) {
            self.unsettled = None;
        }
        match mem::replace(&mut self.phase, Phase::Joined) {
            Phase::Joining { barrier, flows, held } if barrier == number => {
                self.adopt(now, flows, out);
                held.iter().for_each(|upcall| self.decide(now, upcall, out));
            }
            earlier => self.phase = earlier,
        }
    }

    /// Takes over the flows of a live data plane.
    fn adopt(&mut self, now: Nanos, mut records: Vec<FlowRecord>, out: &mut Vec<Request>) {
        self.last_poll = now;
        // Where two flows claim an address for two ports, the one that was used last shall have it.
        records.sort_by_key(|record| (last_use(record), record.spec.id));
        for record in &records {
            let FlowSpec { id, matches: Match { key, mask }, .. } = &record.spec;
            self.next_flow = self.next_flow.max(FlowId(id.0.saturating_add(1)));
            if MASKS.contains(mask)
                && let Some(source) = source(key, &self.ports)
            {
                self.macs.learn(last_use(record), source, key.port());
            }
        }
        let (found, before) = (records.len(), out.len());
        for record in records {
            let used = last_use(&record);
            let FlowSpec { id, matches, actions } = record.spec;
            match translate(&matches.key, &self.ports, &self.macs) {
                Some(translation)
                    if translation.matches == matches && self.flows.find(&matches).is_none() =>
                {
                    if translation.actions != actions {
                        out.push(Request::Modify(id, translation.actions.clone()));
                    }
                    self.flows.insert(id, Flow { translation, used });
                }
                _ => out.push(Request::Remove(id)),
            }
        }
        tracing::info!(found, adopted = self.flows.len(), macs = self.macs.len(), "joined the data plane");
        self.fence_since(before, out);
    }

    fn decide(&mut self, now: Nanos, upcall: &Upcall, out: &mut Vec<Request>) {
        let key = &upcall.key;
        if let Some(source) = source(key, &self.ports) {
            let changed = self.macs.learn(now, source, key.port());
            self.correct(changed.into_iter().map(Fact::Place), out);
        }
        let verdict = match translate(key, &self.ports, &self.macs) {
            // The port has gone while its packet waited.
            None => Verdict::Drop,
            // A flow that shows its packets would show this one again: it is not looked up, but executed.
            Some(translation) if upcall.reason == UpcallReason::Action => execute(translation),
            Some(translation) if self.is_refused(now, &translation.matches) => execute(translation),
            Some(translation) => {
                if self.flows.find(&translation.matches).is_none() {
                    self.install(now, translation, out);
                }
                Verdict::Retry
            }
        };
        out.push(Request::Resolve(upcall.id, verdict));
    }

    fn install(&mut self, now: Nanos, translation: Translation, out: &mut Vec<Request>) {
        if self.capacity.is_some_and(|capacity| self.flows.len() >= capacity) {
            self.evict(out);
        }
        let id = self.next_flow;
        self.next_flow = FlowId(id.0.saturating_add(1));
        let (matches, actions) = (translation.matches, translation.actions.clone());
        if self.requested.len() >= MAX_REMEMBERED {
            self.requested.pop_front();
        }
        self.requested.push_back((id, matches));
        out.push(Request::Install(FlowSpec { id, matches, actions }));
        self.flows.insert(id, Flow { translation, used: now });
    }

    /// Whether packets are to be executed instead of installed for.
    fn is_refused(&mut self, now: Nanos, matches: &Match) -> bool {
        let Some(until) = self.refused.get(matches) else { return false };
        let is_refused = now < *until;
        if !is_refused {
            self.refused.remove(matches);
        }
        is_refused
    }

    /// Makes room for one flow.
    fn evict(&mut self, out: &mut Vec<Request>) {
        let Some(id) = self.flows.victim() else { return };
        self.flows.remove(id);
        out.push(Request::Remove(id));
    }

    fn accept_refusal(&mut self, now: Nanos, id: FlowId, error: InstallError, out: &mut Vec<Request>) {
        self.flows.remove(id);
        // A predecessor's flow is nobody's loss.
        let Ok(place) = self.requested.binary_search_by_key(&id, |(id, _)| *id) else { return };
        tracing::debug!(?id, %error, "the data plane refused a flow");
        if self.refused.len() >= MAX_REMEMBERED {
            self.refused.clear();
        }
        self.refused.insert(self.requested[place].1, now.after(REFUSED_FOR));
        match error {
            InstallError::TableFull(capacity) => self.capacity = Some(capacity),
            // A flow that is not known here has the match: it is not ours, and its actions may be wrong.
            InstallError::Exists(other) if self.flows.get(other).is_none() => {
                out.push(Request::Remove(other));
                self.push_barrier(out);
            }
            InstallError::DuplicateId(taken) => {
                self.next_flow = self.next_flow.max(FlowId(taken.0.saturating_add(1)));
            }
            InstallError::Exists(_)
            | InstallError::TooManyMasks(_)
            | InstallError::NoSuchPort(_)
            | InstallError::TooManyOutputs(_) => {}
        }
    }

    /// Takes in what the flows have carried, and lets go what has been silent as of the question.
    fn note_use(&mut self, records: &[FlowRecord], out: &mut Vec<Request>) {
        if !mem::take(&mut self.is_polling) {
            return;
        }
        for record in records {
            if let Some(flow) = self.flows.refresh(record.spec.id, last_use(record))
                && let Some(source) = flow.source()
            {
                self.macs.refresh(flow.used, source, flow.port());
            }
        }
        self.expire(self.last_poll, out);
    }

    /// Lets go what has been silent as of `now`.
    fn expire(&mut self, now: Nanos, out: &mut Vec<Request>) {
        let is_idle = |used: &Nanos| used.after(self.config.flow_idle) <= now;
        let idle: Vec<_> = self.flows.by_last_use().take_while(|(used, _)| is_idle(used)).collect();
        for (_, id) in idle {
            self.flows.remove(id);
            out.push(Request::Remove(id));
        }
        let forgotten = self.macs.expire(now);
        self.correct(forgotten.into_iter().map(Fact::Place), out);
    }

    fn add_port(&mut self, port: PortInfo, out: &mut Vec<Request>) {
        if self.ports.get(&port.id) == Some(&port.vlan) {
            return;
        }
        self.remove_port(port.id, out);
        let members = self.floods_through(&port.vlan);
        self.ports.insert(port.id, port.vlan);
        self.correct(members.into_iter().chain([Fact::Ingress(port.id)]), out);
    }

    fn remove_port(&mut self, id: PortId, out: &mut Vec<Request>) {
        let Some(vlan) = self.ports.remove(&id) else { return };
        let members = self.floods_through(&vlan);
        let forgotten = self.macs.forget_port(id).into_iter().map(Fact::Place);
        self.correct(members.into_iter().chain(forgotten).chain([Fact::Ingress(id)]), out);
    }

    fn replace_ports(&mut self, ports: Vec<PortInfo>, out: &mut Vec<Request>) {
        let listed: BTreeSet<_> = ports.iter().map(|port| port.id).collect();
        let gone: Vec<_> = self.ports.keys().filter(|id| !listed.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.remove_port(id, out));
        ports.into_iter().for_each(|port| self.add_port(port, out));
    }

    /// The VLANs that flows are flooded in and that a port takes part in.
    fn floods_through(&self, port: &VlanMode) -> Vec<Fact> {
        let vlans = self.flows.flooded_vlans().into_iter();
        vlans.filter(|vlan| takes_part(port, *vlan)).map(Fact::Members).collect()
    }

    /// Translates again what rests on these facts.
    fn correct(&mut self, facts: impl Iterator<Item = Fact>, out: &mut Vec<Request>) {
        let stale: BTreeSet<_> = facts.flat_map(|fact| self.flows.resting_on(fact)).collect();
        let before = out.len();
        for id in stale {
            let Some(Flow { translation: old, used }) = self.flows.remove(id) else { continue };
            match translate(&old.matches.key, &self.ports, &self.macs) {
                Some(new) if new.matches == old.matches => {
                    if new.actions != old.actions {
                        out.push(Request::Modify(id, new.actions.clone()));
                    }
                    self.flows.insert(id, Flow { translation: new, used });
                }
                _ => out.push(Request::Remove(id)),
            }
        }
        self.fence_since(before, out);
    }

    /// Asks for a barrier if there is any request after the first `before`.
    fn fence_since(&mut self, before: usize, out: &mut Vec<Request>) {
        if out.len() > before {
            self.push_barrier(out);
        }
    }

    fn push_barrier(&mut self, out: &mut Vec<Request>) -> u64 {
        let number = self.next_barrier;
        self.next_barrier = number.wrapping_add(1);
        self.unsettled = Some(number);
        out.push(Request::Barrier(number));
        number
    }
}

fn last_use(record: &FlowRecord) -> Nanos {
    record.used.unwrap_or(record.installed)
}

/// What becomes of a packet that no flow is installed for.
fn execute(translation: Translation) -> Verdict {
    if translation.actions.is_empty() { Verdict::Drop } else { Verdict::Execute(translation.actions) }
}
