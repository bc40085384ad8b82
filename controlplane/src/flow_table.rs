//! The flows that are installed, each with what its translation rests on.

use crate::last_use::LastUse;
use crate::mac::MacKey;
use crate::translate::{Fact, Translation};
use hyper_switch_dataplane::api::{FlowId, Match, Nanos, PortId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A flow as it is installed.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) translation: Translation,
    /// When it was last known to carry a packet, or was installed.
    pub(crate) used: Nanos,
}

impl Flow {
    /// The port that its packets come from.
    pub(crate) fn port(&self) -> PortId {
        self.translation.matches.key.port()
    }

    /// The source of its packets, if it is one that is learned.
    pub(crate) fn source(&self) -> Option<MacKey> {
        self.translation.source
    }
}

/// All installed flows, found by name, by match, by last use and by what they rest on.
#[derive(Debug)]
pub(crate) struct FlowTable {
    flows: BTreeMap<FlowId, Flow>,
    /// Only ever asked, never walked, so that its order cannot show.
    by_match: HashMap<Match, FlowId>,
    by_fact: BTreeSet<(Fact, FlowId)>,
    order: LastUse<FlowId>,
}

impl FlowTable {
    pub(crate) fn new() -> FlowTable {
        FlowTable {
            flows: BTreeMap::new(),
            by_match: HashMap::new(),
            by_fact: BTreeSet::new(),
            order: LastUse::new(),
        }
    }

    /// Enters a flow. Its name and its match are in use by no other.
    pub(crate) fn insert(&mut self, id: FlowId, flow: Flow) {
        self.by_match.insert(flow.translation.matches, id);
        self.by_fact.extend(flow.translation.facts.iter().map(|fact| (*fact, id)));
        self.order.insert(flow.port(), flow.used, id);
        self.flows.insert(id, flow);
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        self.by_match.remove(&flow.translation.matches);
        for fact in &flow.translation.facts {
            self.by_fact.remove(&(*fact, id));
        }
        self.order.remove(flow.port(), flow.used, id);
        Some(flow)
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(&id)
    }

    /// Notes that a flow carried a packet; what is noted never goes back in time.
    pub(crate) fn refresh(&mut self, id: FlowId, used: Nanos) -> Option<&Flow> {
        let flow = self.flows.get_mut(&id)?;
        if flow.used < used {
            self.order.remove(flow.port(), flow.used, id);
            self.order.insert(flow.port(), used, id);
            flow.used = used;
        }
        Some(flow)
    }

    /// The flow with exactly this match.
    pub(crate) fn find(&self, matches: &Match) -> Option<FlowId> {
        self.by_match.get(matches).copied()
    }

    /// The flows that rest on a fact.
    pub(crate) fn resting_on(&self, fact: Fact) -> impl Iterator<Item = FlowId> {
        self.by_fact.range((fact, FlowId(0))..=(fact, FlowId(u64::MAX))).map(|(_, id)| *id)
    }

    /// The VLANs whose members a flow rests on.
    pub(crate) fn flooded_vlans(&self) -> BTreeSet<u16> {
        let from = (Fact::Members(0), FlowId(0));
        let vlans = self.by_fact.range(from..).filter_map(|(fact, _)| match fact {
            Fact::Members(vlan) => Some(*vlan),
            Fact::Ingress(_) | Fact::Place(_) => None,
        });
        vlans.collect()
    }

    /// All flows, the longest unused first.
    pub(crate) fn by_last_use(&self) -> impl Iterator<Item = (Nanos, FlowId)> {
        self.order.iter()
    }

    /// The flow that goes when there is no room: of the port with the most flows, the longest unused.
    pub(crate) fn victim(&self) -> Option<FlowId> {
        let port = self.order.greediest()?;
        self.order.iter_of(port).next().map(|(_, id)| id)
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}
