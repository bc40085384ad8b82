//! The order in which things were last used, overall and for each port that answers for them.
//!
//! MAC addresses and flows are both made at the wish of a port's traffic, both bounded, and both let go
//! by the same rules: the longest unused first, and at the cost of the port that has the most. Times may
//! be given in any order, as they come from counters that are read late. All operations are O(log n),
//! but [`LastUse::greediest`], which looks at every port.

use hyper_switch_dataplane::api::{Nanos, PortId};
use std::collections::{BTreeMap, BTreeSet};

/// Keys in the order of their last use. The caller keeps the port and the time of each key.
#[derive(Debug)]
pub(crate) struct LastUse<K> {
    all: BTreeSet<(Nanos, K)>,
    /// The same, port by port; a port without keys is not in it.
    ports: BTreeMap<PortId, BTreeSet<(Nanos, K)>>,
}

impl<K: Ord + Copy> LastUse<K> {
    pub(crate) fn new() -> LastUse<K> {
        LastUse { all: BTreeSet::new(), ports: BTreeMap::new() }
    }

    /// Enters a key that `port` answers for.
    pub(crate) fn insert(&mut self, port: PortId, at: Nanos, key: K) {
        self.all.insert((at, key));
        self.ports.entry(port).or_default().insert((at, key));
    }

    /// Takes a key out again, given what it was entered with.
    pub(crate) fn remove(&mut self, port: PortId, at: Nanos, key: K) {
        self.all.remove(&(at, key));
        if let Some(keys) = self.ports.get_mut(&port) {
            keys.remove(&(at, key));
            if keys.is_empty() {
                self.ports.remove(&port);
            }
        }
    }

    /// All keys, the longest unused first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Nanos, K)> {
        self.all.iter().copied()
    }

    /// The keys that `port` answers for, the longest unused first.
    pub(crate) fn iter_of(&self, port: PortId) -> impl Iterator<Item = (Nanos, K)> {
        self.ports.get(&port).into_iter().flatten().copied()
    }

    /// How many keys `port` answers for.
    pub(crate) fn count(&self, port: PortId) -> usize {
        self.ports.get(&port).map_or(0, BTreeSet::len)
    }

    /// The port that answers for the most keys; of several, the one with the highest number.
    pub(crate) fn greediest(&self) -> Option<PortId> {
        self.ports.iter().max_by_key(|(_, keys)| keys.len()).map(|(port, _)| *port)
    }
}
