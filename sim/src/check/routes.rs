//! Frames arrive where flows say, and after a barrier was answered not where they said before.
//!
//! A frame is for its destination; or for anybody, if it was sent before the control plane knew where that is. Where a
//! pair's flow was changed from outside, it is for whom the flow said at any time since the frame was sent: what it
//! said before counts until the barrier behind the change was answered.

use super::witness::Arrival;
use super::{Broken, Rule};
use std::collections::BTreeMap;

/// Where a pair's frames go, and until when.
struct Leg {
    to: Vec<u16>,
    until_ns: u64,
}

/// Where frames may arrive.
pub(crate) struct Routes {
    /// Of pairs whose flow was changed.
    legs: BTreeMap<(u16, u16), Vec<Leg>>,
    /// Since when the control plane knows where each VM is, and all flows say so.
    known_since: Vec<Option<u64>>,
    /// Nothing is known of it, as VMs lie about who they are.
    is_void: bool,
}

impl Routes {
    pub(super) fn new(vms: usize) -> Routes {
        Routes { legs: BTreeMap::new(), known_since: vec![None; vms], is_void: false }
    }

    /// Nothing is held any more.
    pub(crate) fn give_up(&mut self) {
        self.is_void = true;
    }

    /// Whether the control plane knows where `vm` is, as of now.
    pub(crate) fn know(&mut self, now_ns: u64, vm: u16, is_known: bool) {
        let since = &mut self.known_since[usize::from(vm)];
        *since = is_known.then(|| since.unwrap_or(now_ns));
    }

    pub(crate) fn is_known(&self, vm: u16) -> bool {
        self.known_since[usize::from(vm)].is_some()
    }

    /// A change has frames of `from` for `to` go to `now_to`; the barrier behind it is not answered yet.
    pub(crate) fn change(&mut self, (from, to): (u16, u16), now_to: Vec<u16>) {
        let legs =
            self.legs.entry((from, to)).or_insert_with(|| vec![Leg { to: vec![to], until_ns: u64::MAX }]);
        legs.push(Leg { to: now_to, until_ns: u64::MAX });
    }

    /// The barrier was answered behind the first change of this pair whose barrier was not.
    pub(crate) fn answered(&mut self, now_ns: u64, pair: (u16, u16)) {
        let mut legs = self.legs.get_mut(&pair).into_iter().flatten();
        if let Some(leg) = legs.find(|leg| leg.until_ns == u64::MAX) {
            leg.until_ns = now_ns;
        }
    }

    pub(super) fn arrival(&self, at: u16, arrival: &Arrival, sent_ns: u64) -> Result<(), Broken> {
        let Arrival { from, to, ordinal } = *arrival;
        // A frame that was sent in the same nanosecond may have gone before.
        let is_flooded = self.known_since[usize::from(to)].is_none_or(|since_ns| sent_ns <= since_ns);
        let is_right = match self.legs.get(&(from, to)) {
            None => at == to,
            Some(legs) => legs.iter().any(|leg| sent_ns <= leg.until_ns && leg.to.contains(&at)),
        };
        if self.is_void || is_flooded || is_right {
            return Ok(());
        }
        let says = format!("frame {ordinal} of VM {from} for VM {to}, sent at {sent_ns} ns, came to VM {at}");
        Err((Rule::Route, says))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before a place is known everybody may have a frame, then its owner; after a change the new one, and the old one
    /// only what was sent before.
    #[test]
    fn frames_arrive_where_flows_say() {
        let mut routes = Routes::new(4);
        let may = |routes: &Routes, at, sent_ns| {
            routes.arrival(at, &Arrival { from: 0, to: 1, ordinal: 0 }, sent_ns).is_ok()
        };
        assert!(may(&routes, 1, 5) && may(&routes, 3, 5));
        routes.know(10, 1, true);
        routes.know(20, 1, true);
        assert!(may(&routes, 1, 11) && may(&routes, 3, 10) && !may(&routes, 3, 11));
        routes.change((0, 1), vec![2]);
        assert!(may(&routes, 2, 31) && may(&routes, 1, 31), "the barrier is not answered");
        routes.answered(30, (0, 1));
        assert!(may(&routes, 2, 31) && may(&routes, 1, 30) && !may(&routes, 1, 31) && !may(&routes, 3, 31));
        routes.change((0, 1), vec![1, 3]);
        routes.answered(40, (0, 1));
        assert!(may(&routes, 1, 41) && may(&routes, 3, 41) && may(&routes, 2, 40) && !may(&routes, 2, 41));
        routes.know(50, 1, false);
        assert!(may(&routes, 2, 60));
    }
}
