//! Translation: from a packet that missed to the widest megaflow that decides on it rightly.
//!
//! A translation asks a packet's fields in one fixed order, and the megaflow matches on those that were
//! asked. Two packets whose answers differ part ways at the first answer that differs, which both their
//! matches contain; so megaflows never overlap, although each is as wide as it can be. The order has
//! three steps, and so there are three masks, whatever the traffic ([`MASKS`]):
//!
//! 1. the port and the VLAN of the tag: may the frame come in? If not, it is dropped;
//! 2. the destination's upper 44 bits: is it one of the sixteen addresses 01-80-C2-00-00-0X that are
//!    reserved for the link itself? Those frames (spanning tree, LACP, pause, LLDP) are for the neighbour,
//!    and a bridge forwards none of them (IEEE 802.1Q, clause 8.6.3, table 8-1); neither do we, not even
//!    between transparent ports, for a guest shall not speak spanning tree with the network behind us;
//! 3. both addresses: where is the destination? A known one gets the frame, or nobody when it is behind
//!    the port that the frame came from; any other is flooded to the ports of the VLAN. The source is
//!    part of the match because a new source has to be seen, and learned.
//!
//! Priority bits and the tag protocol are never looked at: an S-tag counts as any other outer tag.
//!
//! # VLANs
//!
//! | port | comes in | goes out |
//! | --- | --- | --- |
//! | access(v) | untagged or priority-tagged (VID 0), as VLAN v | untagged |
//! | trunk(list) | tagged with a VID of the list | tagged |
//! | transparent | all; its VID is the VLAN, 0 without tag | tagged, in VLAN 0 as it came |
//!
//! A transparent port takes part in every VLAN, and speaks of a VLAN in the same way in which it is
//! spoken to: were a frame of an access port untagged there, the answer would be in VLAN 0 and never come
//! back. VIDs 0 and 4095 name no VLAN (IEEE 802.1Q, table 9-2): an access or trunk port that is given one of
//! them takes no part in it.

use crate::mac::{MacKey, MacTable, is_station};
use hyper_switch_dataplane::api::{Action, FieldValue, FlowKey, Match, PortId, VLAN_PRESENT, VlanMode};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The ports of the switch and their parts in VLANs.
pub type Ports = BTreeMap<PortId, VlanMode>;

/// The masks of all megaflows that [`translate`] makes, one for each step at which a decision may fall.
pub const MASKS: [FlowKey; 3] = [ADMISSION, RESERVED, FORWARDING];

const VID: u16 = 0x0fff;
const LAST_VID: u16 = 4094;
const C_TAG: u16 = 0x8100;

const LINK_LOCAL: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00];
const LINK_LOCAL_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];

const ADMISSION: FlowKey = FlowKey { in_port: u32::MAX, vlan_tci: VLAN_PRESENT | VID, ..FlowKey::ZERO };
const RESERVED: FlowKey = FlowKey { eth_dst: LINK_LOCAL_MASK, ..ADMISSION };
const FORWARDING: FlowKey = FlowKey { eth_dst: [0xff; 6], eth_src: [0xff; 6], ..ADMISSION };

/// Something that a translation rests on beside the packet. When it changes, the translation is to be made
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// That the port is there, and its part in VLANs.
    Ingress(PortId),
    /// The port that the address is behind, or that it is not known.
    Place(MacKey),
    /// Which ports take part in the VLAN.
    Members(u16),
}

/// What is to be done with a packet, and for which others that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The packets that it is for.
    pub matches: Match,
    /// What is done with them; nothing means drop.
    pub actions: Arc<[Action]>,
    /// The source address, where it is to be kept from ageing as long as there are such packets.
    pub source: Option<MacKey>,
    /// What it rests on.
    pub facts: Vec<Fact>,
}

/// The source address of a packet that is to be learned, with its VLAN: that of a frame which is
/// admitted, is not for the link itself, and names a station as its source.
pub fn source(key: &FlowKey, ports: &Ports) -> Option<MacKey> {
    let vlan = vlan_of(key, ports.get(&key.port())?)?;
    let is_learned = !is_link_local(key.eth_dst) && is_station(key.eth_src);
    is_learned.then_some(MacKey { vlan, mac: key.eth_src })
}

/// Whether a port takes part in a VLAN.
pub fn takes_part(port: &VlanMode, vlan: u16) -> bool {
    let is_vlan = (1..=LAST_VID).contains(&vlan);
    match port {
        VlanMode::Transparent => true,
        VlanMode::Access(own) => is_vlan && *own == vlan,
        VlanMode::Trunk(list) => is_vlan && list.contains(&vlan),
    }
}

/// Decides on a packet. `None` means that no flow may exist for it: its port is not there, or its
/// [`source`] is not known behind that port and would stay so, as a flow hides its packets from learning.
///
/// A megaflow's own key translates as every packet that the megaflow covers does.
pub fn translate(key: &FlowKey, ports: &Ports, macs: &MacTable) -> Option<Translation> {
    let ingress = key.port();
    let mut facts = vec![Fact::Ingress(ingress)];
    let refuse = |mask, facts| {
        let matches = Match::new(*key, mask);
        Some(Translation { matches, actions: Arc::new([]), source: None, facts })
    };

    let Some(vlan) = vlan_of(key, ports.get(&ingress)?) else { return refuse(ADMISSION, facts) };
    if is_link_local(key.eth_dst) {
        return refuse(RESERVED, facts);
    }
    let source = source(key, ports);
    if let Some(source) = source {
        if macs.port_of(source) != Some(ingress) {
            return None;
        }
        facts.push(Fact::Place(source));
    }

    let destination = MacKey { vlan, mac: key.eth_dst };
    if is_station(key.eth_dst) {
        facts.push(Fact::Place(destination));
    }
    let outputs: Vec<_> = match macs.port_of(destination) {
        Some(port) => ports.get_key_value(&port).into_iter().collect(),
        None => {
            facts.push(Fact::Members(vlan));
            ports.iter().filter(|(_, mode)| takes_part(mode, vlan)).collect()
        }
    };
    let outputs = outputs.into_iter().filter(|(port, _)| **port != ingress);
    let actions = deliver(tag_of(key), vlan, outputs);
    Some(Translation { matches: Match::new(*key, FORWARDING), actions: actions.into(), source, facts })
}

/// The VLAN id in a packet's outer tag, if there is one.
fn tag_of(key: &FlowKey) -> Option<u16> {
    (key.vlan_tci & VLAN_PRESENT != 0).then_some(key.vlan_tci & VID)
}

/// The VLAN that a packet belongs to on a port with this part in VLANs, or `None` if it may not come in.
fn vlan_of(key: &FlowKey, port: &VlanMode) -> Option<u16> {
    let vid = tag_of(key).unwrap_or(0);
    let vlan = match port {
        VlanMode::Access(own) if vid == 0 => *own,
        VlanMode::Access(_) => return None,
        VlanMode::Transparent | VlanMode::Trunk(_) => vid,
    };
    takes_part(port, vlan).then_some(vlan)
}

fn is_link_local(mac: [u8; 6]) -> bool {
    u64_of(mac) & u64_of(LINK_LOCAL_MASK) == u64_of(LINK_LOCAL)
}

fn u64_of([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// Sends a frame with this tag to ports of a VLAN, each as its part in VLANs wants it. The ports that
/// want the frame nearest to how it came go first, so that a tag is pushed, popped or renamed at most once.
fn deliver<'a>(
    tag: Option<u16>,
    vlan: u16,
    outputs: impl Iterator<Item = (&'a PortId, &'a VlanMode)>,
) -> Vec<Action> {
    let output = |(port, _): (&PortId, _)| Action::Output(*port);
    if vlan == 0 {
        return outputs.map(output).collect();
    }
    let (untagged, tagged): (Vec<_>, Vec<_>) =
        outputs.partition(|(_, mode)| matches!(mode, VlanMode::Access(_)));
    let (wants_untagged, wants_tagged) = (!untagged.is_empty(), !tagged.is_empty());
    let (untagged, tagged) = (untagged.into_iter().map(output), tagged.into_iter().map(output));
    let name_vlan = Action::Set(FieldValue::VlanVid(vlan));

    let mut actions = Vec::new();
    if let Some(vid) = tag {
        // A priority tag stays on for those that want a tag, and lends it its priority.
        actions.extend((wants_tagged && vid != vlan).then_some(name_vlan));
        actions.extend(tagged);
        actions.extend(wants_untagged.then_some(Action::PopVlan));
        actions.extend(untagged);
    } else {
        actions.extend(untagged);
        actions.extend(wants_tagged.then_some([Action::PushVlan(C_TAG), name_vlan]).into_iter().flatten());
        actions.extend(tagged);
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::MacLimits;
    use hyper_switch_dataplane::api::Nanos;
    use std::collections::HashSet;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
    const BROADCAST: [u8; 6] = [0xff; 6];

    const UNTAGGED: u16 = 0;
    const PRIORITY_TAG: u16 = VLAN_PRESENT | 0xa000;

    fn tag(vid: u16) -> u16 {
        VLAN_PRESENT | 0x6000 | vid
    }

    /// Ports 1, 2: transparent; 3, 4: access 10; 5: access 20; 6: trunk 10, 20; 7: trunk 10; 8, 9: no VLAN.
    fn ports() -> Ports {
        let modes = [
            VlanMode::Transparent,
            VlanMode::Transparent,
            VlanMode::Access(10),
            VlanMode::Access(10),
            VlanMode::Access(20),
            VlanMode::Trunk(vec![10, 20]),
            VlanMode::Trunk(vec![10]),
            VlanMode::Access(0),
            VlanMode::Trunk(vec![0, 4095]),
        ];
        (1..).map(PortId).zip(modes).collect()
    }

    fn packet(in_port: u32, vlan_tci: u16, eth_src: [u8; 6], eth_dst: [u8; 6]) -> FlowKey {
        let vlan_tpid = if vlan_tci == 0 { 0 } else { C_TAG };
        FlowKey { in_port, vlan_tpid, vlan_tci, eth_src, eth_dst, eth_type: 0x0800, ..FlowKey::ZERO }
    }

    /// Learns the source as the switch would, beside B at `b_at`, and translates.
    fn learn_and_translate(key: &FlowKey, b_at: Option<(u16, u16)>) -> Translation {
        let (ports, mut macs) = (ports(), MacTable::new(MacLimits::default()));
        if let Some((vlan, port)) = b_at {
            macs.learn(Nanos(0), MacKey { vlan, mac: B }, PortId(port));
        }
        if let Some(source) = source(key, &ports) {
            macs.learn(Nanos(0), source, key.port());
        }
        translate(key, &ports, &macs).expect("the port is there and the source is known")
    }

    /// The actions in short: numbers are outputs, `+` a push, `-` a pop, `=10` a VLAN id that is set.
    fn short(actions: &[Action]) -> String {
        let word = |action: &Action| match action {
            Action::Output(port) => port.to_string(),
            Action::PushVlan(C_TAG) => "+".into(),
            Action::PopVlan => "-".into(),
            Action::Set(FieldValue::VlanVid(vid)) => format!("={vid}"),
            other => panic!("a learning switch has no use for {other:?}"),
        };
        actions.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    /// What each kind of port makes of each kind of tag, flooded: who gets the frame, with which edits.
    #[test]
    fn floods_reach_the_vlan_and_edit_the_tag_once() {
        let table = [
            // Transparent: untagged and priority-tagged frames are for transparent ports alone.
            (1, UNTAGGED, "2"),
            (1, PRIORITY_TAG, "2"),
            (1, tag(10), "2 6 7 - 3 4"),
            (1, tag(20), "2 6 - 5"),
            (1, tag(30), "2"),
            (1, tag(4095), "2"),
            // Access: a VLAN tag is refused, a priority tag becomes the VLAN's tag or goes.
            (3, UNTAGGED, "4 + =10 1 2 6 7"),
            (3, PRIORITY_TAG, "=10 1 2 6 7 - 4"),
            (3, tag(10), ""),
            (3, tag(20), ""),
            (5, UNTAGGED, "+ =20 1 2 6"),
            // Trunk: only tags of its list.
            (6, tag(10), "1 2 7 - 3 4"),
            (6, tag(20), "1 2 - 5"),
            (6, UNTAGGED, ""),
            (6, PRIORITY_TAG, ""),
            (7, tag(20), ""),
            // What is no VLAN carries nothing.
            (8, UNTAGGED, ""),
            (9, UNTAGGED, ""),
            (9, PRIORITY_TAG, ""),
            (9, tag(4095), ""),
        ];
        for (in_port, tci, expected) in table {
            for dst in [B, BROADCAST, [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
                let translation = learn_and_translate(&packet(in_port, tci, A, dst), None);
                assert_eq!(
                    short(&translation.actions),
                    expected,
                    "port {in_port}, tag {tci:#x}, to {dst:x?}"
                );
            }
        }
    }

    /// A known destination gets the frame alone, in the form of its port; behind the port that the frame came
    /// from, nobody does; and knowledge of one VLAN is none of another.
    #[test]
    fn known_destinations_get_the_frame_alone() {
        let table = [
            (1, UNTAGGED, (0, 2), "2"),
            (1, UNTAGGED, (0, 1), ""),
            (1, UNTAGGED, (10, 3), "2"),
            (1, tag(10), (10, 3), "- 3"),
            (1, tag(10), (10, 6), "6"),
            (3, UNTAGGED, (10, 4), "4"),
            (3, UNTAGGED, (10, 7), "+ =10 7"),
            (3, PRIORITY_TAG, (10, 4), "- 4"),
            (3, PRIORITY_TAG, (10, 7), "=10 7"),
            (6, tag(20), (20, 5), "- 5"),
            (6, tag(20), (20, 6), ""),
        ];
        for (in_port, tci, b_at, expected) in table {
            let translation = learn_and_translate(&packet(in_port, tci, A, B), Some(b_at));
            assert_eq!(short(&translation.actions), expected, "port {in_port}, tag {tci:#x}, B at {b_at:?}");
        }
    }

    /// All sixteen addresses of the link stay on it, whatever the source; the next one up is flooded.
    #[test]
    fn link_local_frames_are_not_forwarded() {
        for last in 0..=0x10 {
            let key = packet(1, UNTAGGED, A, [0x01, 0x80, 0xc2, 0, 0, last]);
            let translation = learn_and_translate(&key, None);
            let is_reserved = last < 0x10;
            assert_eq!(translation.actions.is_empty(), is_reserved, "{last:#x}");
            assert_eq!(translation.source.is_none(), is_reserved, "{last:#x}");
            assert_eq!(translation.matches.mask.eth_src == [0; 6], is_reserved, "{last:#x}");
        }
    }

    /// The match is as wide as the decision: what a step did not ask is wild, the priority always.
    #[test]
    fn matches_are_as_wide_as_the_decision() {
        let refused = learn_and_translate(&packet(6, UNTAGGED, A, B), None).matches;
        assert!(refused.covers(&packet(6, UNTAGGED, B, BROADCAST)));
        assert!(!refused.covers(&packet(6, tag(10), A, B)));

        let forwarded = learn_and_translate(&packet(6, tag(10), A, B), None).matches;
        let other_priority = packet(6, VLAN_PRESENT | 0xe000 | 10, A, B);
        let other_protocol = FlowKey { eth_type: 0x86dd, ip_proto: 6, vlan_tpid: 0x88a8, ..other_priority };
        assert!(forwarded.covers(&other_protocol));
        assert!(!forwarded.covers(&packet(6, tag(20), A, B)));
        assert!(!forwarded.covers(&packet(6, tag(10), B, B)));
        assert!(!forwarded.covers(&packet(6, tag(10), A, A)));

        let untagged = learn_and_translate(&packet(3, UNTAGGED, A, B), None).matches;
        assert!(!untagged.covers(&packet(3, PRIORITY_TAG, A, B)), "it has a tag to be popped");
    }

    /// No flow without a port, nor for a source that is elsewhere or unknown; a group source is never
    /// learned and so never missed.
    #[test]
    fn a_flow_needs_its_source_to_be_known() {
        let (ports, mut macs) = (ports(), MacTable::new(MacLimits::default()));
        let key = packet(1, UNTAGGED, A, B);
        assert_eq!(translate(&packet(99, UNTAGGED, A, B), &ports, &macs), None);
        assert_eq!(translate(&key, &ports, &macs), None);
        macs.learn(Nanos(0), MacKey { vlan: 0, mac: A }, PortId(2));
        assert_eq!(translate(&key, &ports, &macs), None);
        macs.learn(Nanos(0), MacKey { vlan: 0, mac: A }, PortId(1));
        assert!(translate(&key, &ports, &macs).is_some());
        for group in [BROADCAST, [0; 6]] {
            let key = packet(1, UNTAGGED, group, B);
            assert_eq!(source(&key, &ports), None);
            assert!(translate(&key, &ports, &macs).is_some());
        }
    }

    /// Over a universe of ports, tags and addresses: at most [`MASKS`]; no two distinct matches have a
    /// packet in common; and a match's own key translates as the packet did.
    #[test]
    fn translations_are_few_masks_disjoint_and_stable() {
        let ports = ports();
        let tags = [UNTAGGED, PRIORITY_TAG, tag(10), tag(20), tag(30), tag(4095)];
        let addresses =
            [A, B, BROADCAST, [0; 6], [0x01, 0x80, 0xc2, 0, 0, 0], [0x01, 0x80, 0xc2, 0, 0, 0x0e]];
        let mut matches = HashSet::new();
        for (in_port, tci, src) in (1..=9)
            .flat_map(|p| tags.map(|t| (p, t)))
            .flat_map(|(p, t)| addresses.map(move |src| (p, t, src)))
        {
            for dst in addresses {
                let key = packet(in_port, tci, src, dst);
                let mut macs = MacTable::new(MacLimits::default());
                if let Some(source) = source(&key, &ports) {
                    macs.learn(Nanos(0), source, key.port());
                }
                let translation = translate(&key, &ports, &macs).expect("its source is known");
                assert!(translation.matches.covers(&key));
                assert_eq!(translate(&translation.matches.key, &ports, &macs).as_ref(), Some(&translation));
                matches.insert(translation.matches);
            }
        }
        assert!(matches.iter().all(|m| MASKS.contains(&m.mask)));
        for a in &matches {
            for b in matches.iter().filter(|b| *b != a) {
                let words = a.key.words().iter().zip(b.key.words());
                let both = a.mask.words().iter().zip(b.mask.words());
                let differs = words.zip(both).any(|((ka, kb), (ma, mb))| (ka ^ kb) & ma & mb != 0);
                assert!(differs, "{a:?} and {b:?} have a packet in common");
            }
        }
    }
}
