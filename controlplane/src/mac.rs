//! The MAC table: which address of which VLAN is behind which port (IEEE 802.1Q, clause 8.8, the
//! filtering database, with independent learning for each VLAN).
//!
//! A guest chooses the source addresses that it sends, so it chooses what is learned; the bounds are
//! there for that. A port that has as many addresses as a port may have gives up its own longest unseen
//! one for each new one. When the whole table is full, the port that learns pays likewise; only a port
//! that has no address at all is given room, by the port that has the most. A guest that invents
//! addresses can so push out nobody's but its own.
//!
//! What it can do is claim the address of another, as on any learning switch: the last to use an address
//! has it.

use crate::last_use::LastUse;
use hyper_switch_dataplane::api::{Nanos, PortId};
use std::collections::BTreeMap;
use std::time::Duration;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Whether an address can be a station's: neither a group address (nor the broadcast address, which is
/// one) nor all zeros. No other is learned, nor looked up.
pub fn is_station(mac: Mac) -> bool {
    let is_group = mac[0] & 1 != 0;
    !is_group && mac != [0; 6]
}

/// An address in a VLAN. The same address in two VLANs is two stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacKey {
    /// The VLAN id; 0 for frames of no VLAN.
    pub vlan: u16,
    /// The address.
    pub mac: Mac,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The address and its VLAN.
    pub key: MacKey,
    /// The port that it is behind.
    pub port: PortId,
    /// When it was last known to send.
    pub seen: Nanos,
}

/// What a [`MacTable`] may grow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacLimits {
    /// How long an address that is silent is kept. IEEE 802.1Q, table 8-6, recommends 300 s.
    pub age: Duration,
    /// Addresses in the table; at least 1.
    pub table: usize,
    /// Addresses of one port; at least 1.
    pub port: usize,
}

impl Default for MacLimits {
    fn default() -> MacLimits {
        MacLimits { age: Duration::from_secs(300), table: 32_768, port: 4_096 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    port: PortId,
    seen: Nanos,
}

/// The table. Operations are O(log n), iteration is in a fixed order, and there is no hash to attack.
#[derive(Debug)]
pub struct MacTable {
    limits: MacLimits,
    places: BTreeMap<MacKey, Place>,
    order: LastUse<MacKey>,
}

impl MacTable {
    /// An empty table. Limits of 0 count as 1.
    pub fn new(limits: MacLimits) -> MacTable {
        let limits = MacLimits { table: limits.table.max(1), port: limits.port.max(1), ..limits };
        MacTable { limits, places: BTreeMap::new(), order: LastUse::new() }
    }

    /// Notes that an address sent from `port`. Returns the addresses whose place has changed: this one,
    /// when it is new or has moved, and one that had to make room for it.
    ///
    /// An address that [is no station's](is_station) is not learned.
    pub fn learn(&mut self, now: Nanos, key: MacKey, port: PortId) -> Vec<MacKey> {
        if !is_station(key.mac) || self.refresh(now, key, port) {
            return Vec::new();
        }
        let mut changed = vec![key];
        if let Some(from) = self.forget(key) {
            tracing::debug!(?key, from = from.0, to = port.0, "an address moved");
        }
        if let Some(evicted) = self.eviction_for(port) {
            self.forget(evicted);
            changed.push(evicted);
        }
        self.places.insert(key, Place { port, seen: now });
        self.order.insert(port, now, key);
        changed
    }

    /// Notes that an address sent at `at`, perhaps some time ago, if it is behind `port`; says whether
    /// it is. What is noted never goes back in time.
    pub fn refresh(&mut self, at: Nanos, key: MacKey, port: PortId) -> bool {
        match self.places.get_mut(&key) {
            Some(place) if place.port == port => {
                if place.seen < at {
                    self.order.remove(port, place.seen, key);
                    self.order.insert(port, at, key);
                    place.seen = at;
                }
                true
            }
            _ => false,
        }
    }

    /// The port that an address is behind, if it is known.
    pub fn port_of(&self, key: MacKey) -> Option<PortId> {
        self.places.get(&key).map(|place| place.port)
    }

    /// Forgets the addresses that have not been seen for the age limit; returns them.
    pub fn expire(&mut self, now: Nanos) -> Vec<MacKey> {
        let is_old = |seen: &Nanos| seen.after(self.limits.age) <= now;
        let old: Vec<_> =
            self.order.iter().take_while(|(seen, _)| is_old(seen)).map(|(_, key)| key).collect();
        for key in &old {
            self.forget(*key);
        }
        old
    }

    /// Forgets the addresses behind a port; returns them.
    pub fn forget_port(&mut self, port: PortId) -> Vec<MacKey> {
        let gone: Vec<_> = self.order.iter_of(port).map(|(_, key)| key).collect();
        for key in &gone {
            self.forget(*key);
        }
        gone
    }

    /// When the next address is old enough to be forgotten; `None` when the table is empty.
    pub fn next_expiry(&self) -> Option<Nanos> {
        self.order.iter().next().map(|(seen, _)| seen.after(self.limits.age))
    }

    /// How many addresses are known.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no address is known.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All that is known, by VLAN and address.
    pub fn iter(&self) -> impl Iterator<Item = MacEntry> {
        self.places.iter().map(|(key, place)| MacEntry { key: *key, port: place.port, seen: place.seen })
    }

    /// Which address has to go for `port` to learn one more.
    fn eviction_for(&self, port: PortId) -> Option<MacKey> {
        let is_full = self.places.len() >= self.limits.table;
        let payer = match self.order.count(port) {
            own if own >= self.limits.port => port,
            0 if is_full => self.order.greediest()?,
            _ if is_full => port,
            _ => return None,
        };
        self.order.iter_of(payer).next().map(|(_, key)| key)
    }

    fn forget(&mut self, key: MacKey) -> Option<PortId> {
        let Place { port, seen } = self.places.remove(&key)?;
        self.order.remove(port, seen, key);
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MacLimits = MacLimits { age: Duration::from_nanos(100), table: 6, port: 3 };
    const A: PortId = PortId(1);
    const B: PortId = PortId(2);
    const C: PortId = PortId(3);

    fn key(last: u8) -> MacKey {
        MacKey { vlan: 0, mac: [2, 0, 0, 0, 0, last] }
    }

    /// An address is reported as changed when it is new or moves, and not when it is merely seen again.
    #[test]
    fn learning_reports_what_changed() {
        let mut macs = MacTable::new(LIMITS);
        assert_eq!(macs.learn(Nanos(1), key(1), A), [key(1)]);
        assert_eq!(macs.learn(Nanos(2), key(1), A), []);
        assert_eq!(macs.learn(Nanos(3), key(1), B), [key(1)]);
        assert_eq!(macs.port_of(key(1)), Some(B));
        let elsewhere = MacKey { vlan: 7, ..key(1) };
        assert_eq!(macs.port_of(elsewhere), None, "a VLAN of its own");
        assert_eq!(macs.len(), 1);
    }

    /// Group addresses, the broadcast address and zero are nobody's.
    #[test]
    fn only_stations_are_learned() {
        let mut macs = MacTable::new(LIMITS);
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            assert_eq!(macs.learn(Nanos(1), MacKey { vlan: 0, mac }, A), []);
        }
        assert!(macs.is_empty());
        assert_eq!(macs.next_expiry(), None);
    }

    /// An address goes when it was silent for the age limit, not a nanosecond earlier; being seen, also
    /// late and out of order, keeps it.
    #[test]
    fn silent_addresses_age() {
        let mut macs = MacTable::new(LIMITS);
        macs.learn(Nanos(0), key(1), A);
        macs.learn(Nanos(10), key(2), A);
        assert!(macs.refresh(Nanos(30), key(1), A));
        assert!(macs.refresh(Nanos(20), key(1), A), "older news changes nothing");
        assert!(!macs.refresh(Nanos(99), key(1), B), "it is not behind that port");
        assert_eq!(macs.next_expiry(), Some(Nanos(110)));
        assert_eq!(macs.expire(Nanos(109)), []);
        assert_eq!(macs.expire(Nanos(110)), [key(2)]);
        assert_eq!(macs.expire(Nanos(1_000)), [key(1)]);
        assert!(macs.is_empty());
    }

    /// A port at its bound loses its own longest unseen address, and no other port loses any.
    #[test]
    fn a_port_pays_for_its_own_addresses() {
        let mut macs = MacTable::new(LIMITS);
        macs.learn(Nanos(0), key(100), B);
        for last in 1..=3 {
            macs.learn(Nanos(u64::from(last)), key(last), A);
        }
        macs.refresh(Nanos(9), key(1), A);
        assert_eq!(macs.learn(Nanos(10), key(4), A), [key(4), key(2)]);
        assert_eq!(macs.port_of(key(100)), Some(B));
    }

    /// In a full table a port that has addresses replaces its own, and one that has none takes from the
    /// port that has the most.
    #[test]
    fn a_full_table_gives_room_only_to_a_port_without_any() {
        let limits = MacLimits { table: 3, ..LIMITS };
        let mut macs = MacTable::new(limits);
        macs.learn(Nanos(1), key(1), A);
        macs.learn(Nanos(2), key(2), A);
        macs.learn(Nanos(3), key(3), B);
        assert_eq!(macs.learn(Nanos(4), key(4), B), [key(4), key(3)]);
        assert_eq!(macs.learn(Nanos(5), key(5), C), [key(5), key(1)]);
        assert_eq!(macs.len(), 3);
    }

    /// A port that goes takes its addresses with it.
    #[test]
    fn a_port_is_forgotten_whole() {
        let mut macs = MacTable::new(LIMITS);
        macs.learn(Nanos(1), key(1), A);
        macs.learn(Nanos(2), key(2), B);
        macs.learn(Nanos(3), key(3), A);
        assert_eq!(macs.forget_port(A), [key(1), key(3)]);
        assert_eq!(macs.iter().collect::<Vec<_>>(), [MacEntry { key: key(2), port: B, seen: Nanos(2) }]);
    }
}
