//! The learning switch, held against a naive data plane and a naive learning switch.

use crate::model::{BROADCAST, Fate, LLDP, Oracle, World, packet, station};
use hyper_switch_controlplane::learning_switch::{Config, LearningSwitch};
use hyper_switch_controlplane::mac::{Mac, MacKey, MacLimits};
use hyper_switch_controlplane::translate::MASKS;
use hyper_switch_dataplane::api::{
    Action, Event, FlowId, FlowKey, FlowSpec, InstallError, Match, Nanos, PortId, Request, UpcallReason,
    VLAN_PRESENT, Verdict, VlanMode,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const C: Mac = [2, 0, 0, 0, 0, 0xc];

/// Asked as soon as anything could be due, so that nothing is kept longer than it should be.
const PUNCTUAL: Config = Config {
    macs: MacLimits { age: Duration::from_secs(300), table: 1_000, port: 1_000 },
    flow_idle: Duration::from_secs(10),
    poll_interval: Duration::ZERO,
};

fn untagged(in_port: u16, src: Mac, dst: Mac) -> FlowKey {
    packet(in_port, 0, src, dst)
}

fn at(mac: Mac) -> MacKey {
    MacKey { vlan: 0, mac }
}

fn to(ports: &[u16]) -> Fate {
    ports.iter().map(|port| (PortId(*port), 0, 0)).collect()
}

/// What a test asked of the data plane since the last time, without the answers to upcalls.
fn changes(world: &mut World) -> Vec<Request> {
    let mut requests = std::mem::take(&mut world.plane.requests);
    requests.retain(|request| !matches!(request, Request::Resolve(..)));
    requests
}

#[derive(Clone, Debug)]
enum Operation {
    Send(FlowKey),
    AddPort(u16, VlanMode),
    RemovePort(u16),
    Wait(u64),
    Restart,
}

const TAGS: [u16; 4] = [0, VLAN_PRESENT | 0x4000, VLAN_PRESENT | 0x4000 | 10, VLAN_PRESENT | 0x8000 | 20];
const SOURCES: [Mac; 4] = [A, B, C, BROADCAST];
const DESTINATIONS: [Mac; 5] = [A, B, C, BROADCAST, LLDP];

/// Every packet that the property tests know of.
fn universe() -> impl Iterator<Item = FlowKey> {
    let tagged = (1..=4).flat_map(|port| TAGS.map(|tag| (port, tag)));
    let sent = tagged.flat_map(|(port, tag)| SOURCES.map(|src| (port, tag, src)));
    sent.flat_map(|(port, tag, src)| DESTINATIONS.map(|dst| packet(port, tag, src, dst)))
}

fn any_packet() -> impl Strategy<Value = FlowKey> {
    proptest::sample::select(universe().collect::<Vec<_>>())
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let modes =
        [VlanMode::Transparent, VlanMode::Access(10), VlanMode::Access(20), VlanMode::Trunk(vec![10, 20])];
    prop_oneof![
        12 => any_packet().prop_map(Operation::Send),
        3 => (1..=4_u16, proptest::sample::select(modes.to_vec())).prop_map(|(p, m)| Operation::AddPort(p, m)),
        1 => (1..=4_u16).prop_map(Operation::RemovePort),
        2 => proptest::sample::select(vec![0, 1, 5, 9, 11, 289, 301]).prop_map(Operation::Wait),
        1 => Just(Operation::Restart),
    ]
}

fn four_ports() -> World {
    let mut world = World::new(PUNCTUAL);
    world.plane.add_port(1, VlanMode::Access(10));
    world.plane.add_port(2, VlanMode::Access(10));
    world.plane.add_port(3, VlanMode::Trunk(vec![10, 20]));
    world.plane.add_port(4, VlanMode::Transparent);
    world.run();
    world
}

/// Every possible packet either misses, or its flow decides as the oracle does and hides nothing that is to
/// be learned.
fn assert_no_flow_is_stale(world: &World, oracle: &Oracle) {
    for key in universe() {
        let Some(flow) = world.plane.look_up(&key) else { continue };
        let fate = crate::model::apply(&flow.spec.actions, &key);
        assert_eq!(fate, oracle.decide(&world.plane.ports, &key), "{key:?} by {flow:?}");
        if let Some(source) = Oracle::source(&world.plane.ports, &key) {
            assert_eq!(oracle.macs.get(&source).map(|(port, _)| *port), Some(key.port()), "{flow:?}");
        }
        assert!(MASKS.contains(&flow.spec.matches.mask));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// After anything that may happen: each packet went where a switch that asks its table for every packet
    /// sends it, both know the same addresses, and no flow is stale. The model refuses overlaps.
    #[test]
    fn flows_decide_as_a_switch_without_flows(operations in prop::collection::vec(any_operation(), 1..40)) {
        let (mut world, mut oracle) = (four_ports(), Oracle::default());
        for operation in operations {
            match operation {
                Operation::Send(key) => {
                    let upcalls = world.plane.upcalls;
                    oracle.learn(world.now, &world.plane.ports, &key);
                    let expected = oracle.decide(&world.plane.ports, &key);
                    prop_assert_eq!(world.send(&[key]), [(key, expected)]);
                    prop_assert!(world.plane.upcalls - upcalls <= 1);
                }
                Operation::AddPort(port, vlan) => {
                    if world.plane.ports.get(&PortId(port)) != Some(&vlan) {
                        oracle.macs.retain(|_, (at, _)| *at != PortId(port));
                    }
                    world.plane.add_port(port, vlan);
                    world.run();
                }
                Operation::RemovePort(port) => {
                    oracle.macs.retain(|_, (at, _)| *at != PortId(port));
                    world.plane.remove_port(port);
                    world.run();
                }
                Operation::Restart => {
                    world.switch = LearningSwitch::new(PUNCTUAL);
                    world.advance(0);
                    // An address that no flow comes from is not in the data plane.
                    let flows = world.plane.flows.values().map(|flow| &flow.spec.matches.key);
                    let known: BTreeSet<_> =
                        flows.filter_map(|key| Oracle::source(&world.plane.ports, key)).collect();
                    oracle.macs.retain(|key, _| known.contains(key));
                }
                Operation::Wait(by_s) => {
                    world.advance(by_s);
                    oracle.macs.retain(|_, (_, seen)| seen.after(PUNCTUAL.macs.age) > world.now);
                }
            }
            prop_assert!(world.switch.is_settled());
            let expected = oracle.macs.iter().map(|(key, (port, _))| (*key, *port)).collect();
            prop_assert_eq!(world.macs(), expected);
            assert_no_flow_is_stale(&world, &oracle);
        }
        world.advance(1_000);
        prop_assert!(world.plane.flows.is_empty() && world.macs().is_empty());
        prop_assert_eq!(world.switch.next_deadline(), None);
    }

    /// Bursts of misses on a data plane that has room for next to nothing: every packet meets exactly one
    /// fate after at most two misses, and no flow is stale.
    #[test]
    fn no_packet_is_lost_or_goes_around_when_there_is_no_room(
        capacity in 0..4_usize,
        max_masks in 0..3_usize,
        bursts in prop::collection::vec(prop::collection::vec(any_packet(), 1..12), 1..10),
    ) {
        let mut world = four_ports();
        world.plane.capacity = capacity;
        world.plane.max_masks = max_masks;
        for burst in bursts {
            let upcalls = world.plane.upcalls;
            let mut met: Vec<_> = world.send(&burst).iter().map(|(key, _)| *key.words()).collect();
            let mut sent: Vec<_> = burst.iter().map(|key| *key.words()).collect();
            met.sort();
            sent.sort();
            prop_assert_eq!(met, sent);
            prop_assert!((world.plane.upcalls - upcalls) as usize <= 2 * burst.len());
            prop_assert!(world.switch.is_settled());
            assert_no_flow_is_stale(&world, &Oracle::knowing(world.switch.macs()));
            world.advance(1);
        }
    }
}

/// When an address moves, the flows from its old place are removed, those to it are modified, a barrier
/// follows before anything else is asked for, and no other flow is touched.
#[test]
fn a_move_corrects_the_flows_that_rest_on_it_and_no_others() {
    let mut world = World::with_ports(PUNCTUAL, &[1, 2, 3]);
    world.send(&[untagged(1, A, BROADCAST), untagged(2, B, A), untagged(1, A, B), untagged(3, C, B)]);
    let id = |world: &World, key| world.plane.look_up(&key).expect("it was sent").spec.id;
    let (b_to_a, a_to_b) = (id(&world, untagged(2, B, A)), id(&world, untagged(1, A, B)));
    let a_to_all = id(&world, untagged(1, A, BROADCAST));
    changes(&mut world);

    let fates = world.send(&[untagged(3, A, B)]);
    assert_eq!(fates, [(untagged(3, A, B), to(&[2]))]);
    let changes = changes(&mut world);
    let (mut removed, mut modified, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for request in &changes {
        match request {
            Request::Remove(id) => removed.push(*id),
            Request::Modify(id, actions) => modified.push((*id, actions.to_vec())),
            other => rest.push(other),
        }
    }
    removed.sort();
    let mut expected = vec![a_to_b, a_to_all];
    expected.sort();
    assert_eq!(removed, expected);
    assert_eq!(modified, [(b_to_a, vec![Action::Output(PortId(3))])]);
    assert!(matches!(rest[..], [Request::Barrier(_), Request::Install(_)]), "{rest:?}");
}

/// A second miss of a flow that is installed, as from another core, only makes its packet try again.
#[test]
fn a_miss_of_an_installed_flow_is_tried_again() {
    let mut world = World::with_ports(PUNCTUAL, &[1, 2]);
    let key = untagged(1, A, B);
    assert_eq!(world.send(&[key, key, key]), [(key, to(&[2])), (key, to(&[2])), (key, to(&[2]))]);
    assert_eq!(world.plane.upcalls, 3);
    assert!(matches!(changes(&mut world)[..], [Request::List, Request::Barrier(_), Request::Install(_)]));
}

/// A packet that a flow shows is not looked up again, which would show it again, but executed.
#[test]
fn a_shown_packet_is_executed() {
    let mut world = World::with_ports(PUNCTUAL, &[1, 2]);
    world.plane.receive(world.now, untagged(1, A, B));
    let Some(Event::Upcall(mut upcall)) = world.plane.events.pop_front() else { panic!("it missed") };
    upcall.reason = UpcallReason::Action;
    let mut out = Vec::new();
    world.switch.handle(world.now, Event::Upcall(upcall), &mut out);
    let [Request::Resolve(_, Verdict::Execute(actions))] = &out[..] else { panic!("{out:?}") };
    assert_eq!(actions[..], [Action::Output(PortId(2))]);
}

/// A new port is flooded to at once, by the flows that flood its VLAN; when it goes, so do its flows, and
/// what was sent to its addresses is flooded again.
#[test]
fn ports_that_come_and_go_correct_the_flows() {
    let mut world = World::with_ports(PUNCTUAL, &[1, 2]);
    world.send(&[untagged(1, A, BROADCAST), untagged(1, A, B)]);
    world.plane.add_port(3, VlanMode::Transparent);
    world.plane.add_port(4, VlanMode::Access(10));
    world.run();
    let upcalls = world.plane.upcalls;
    for dst in [BROADCAST, B] {
        assert_eq!(world.send(&[untagged(1, A, dst)]), [(untagged(1, A, dst), to(&[2, 3]))]);
    }
    assert_eq!(world.plane.upcalls, upcalls, "the flows were corrected, not missed");

    world.send(&[untagged(3, B, A)]);
    assert_eq!(world.send(&[untagged(1, A, B)]), [(untagged(1, A, B), to(&[3]))]);
    world.plane.remove_port(3);
    world.run();
    assert!(world.plane.look_up(&untagged(3, B, A)).is_none());
    assert_eq!(world.send(&[untagged(1, A, B)]), [(untagged(1, A, B), to(&[2]))]);
}

/// A flow that carries packets lives, and keeps its source known, far beyond the age of an address and
/// with no miss; when it falls silent it goes after the idle time and the address after its age, and then
/// there is nothing to wake up for. While it is in use it is asked about once in an idle time.
#[test]
fn traffic_keeps_a_flow_and_its_source() {
    let mut world = World::with_ports(Config::default(), &[1, 2]);
    let key = untagged(1, A, B);
    world.send(&[key]);
    changes(&mut world);
    for _ in 0..200 {
        world.advance(5);
        world.send(&[key]);
    }
    assert_eq!(world.plane.upcalls, 1);
    let polls = changes(&mut world);
    assert!(polls.iter().all(|request| matches!(request, Request::List)), "{polls:?}");
    assert!((90..=210).contains(&polls.len()), "{} questions in 1000 s", polls.len());

    world.advance(9);
    assert!(world.plane.look_up(&key).is_some());
    world.advance(1);
    assert!(world.plane.look_up(&key).is_none());
    world.advance(289);
    assert_eq!(world.macs().into_iter().collect::<Vec<_>>(), [(at(A), PortId(1))]);
    world.advance(1);
    assert!(world.macs().is_empty());
    assert_eq!(world.switch.next_deadline(), None);
}

/// The question about the flows is asked once until it is answered, however late that is.
#[test]
fn a_question_is_asked_once() {
    let World { now, mut switch, mut plane } = {
        let mut world = World::with_ports(PUNCTUAL, &[1, 2]);
        world.send(&[untagged(1, A, B)]);
        world
    };
    let due = switch.next_deadline().expect("a flow may fall silent");
    assert_eq!(due, now.after(PUNCTUAL.flow_idle));
    let mut out = Vec::new();
    switch.tick(due, &mut out);
    assert!(matches!(out[..], [Request::List]), "{out:?}");
    assert_eq!(switch.next_deadline(), None);
    switch.tick(due.after(Duration::from_secs(1_000)), &mut out);
    assert_eq!(out.len(), 1);

    plane.request(due, out.remove(0));
    plane.events.drain(..).for_each(|event| switch.handle(due, event, &mut out));
    assert!(matches!(out[..], [Request::Remove(_)]), "{out:?}");
    assert_eq!(switch.next_deadline(), Some(now.after(PUNCTUAL.macs.age)));
}

/// A guest that invents source addresses and destinations fills its own share of both tables, and takes no
/// address and no flow from those that talk beside it.
#[test]
fn a_flood_of_addresses_hurts_only_its_own_port() {
    let macs = MacLimits { age: Duration::from_secs(300), table: 100, port: 64 };
    let mut world = World::with_ports(Config { macs, ..Config::default() }, &[1, 2, 3]);
    world.plane.capacity = 50;
    let honest = [untagged(2, A, B), untagged(3, B, A)];
    world.send(&honest);
    for n in 0..5_000_u32 {
        let [_, b, c, d] = n.to_be_bytes();
        let key = untagged(1, [2, 1, 0, b, c, d], [2, 2, 0, b, c, d]);
        assert_eq!(world.send(&[key]), [(key, to(&[2, 3]))]);
        assert!(world.macs().len() <= 64 + 2 && world.plane.flows.len() <= 50);
    }
    assert_eq!(world.macs().len(), 64 + 2);
    assert_eq!(world.plane.flows.len(), 50);
    assert!(world.plane.upcalls < 5_100, "each new flow has replaced one before it was refused");
    let upcalls = world.plane.upcalls;
    world.send(&honest);
    assert_eq!(world.plane.upcalls, upcalls, "the honest flows are still there");
}

/// Whatever a flow is refused for, its packets are executed for a second, and then it is tried again.
#[test]
fn packets_of_a_refused_flow_are_executed() {
    let errors = [
        InstallError::TableFull(0),
        InstallError::TooManyMasks(2),
        InstallError::Exists(FlowId(77)),
        InstallError::DuplicateId(FlowId(0)),
        InstallError::NoSuchPort(PortId(2)),
        InstallError::TooManyOutputs(1),
    ];
    for error in errors {
        let World { mut switch, mut plane, now } = World::with_ports(PUNCTUAL, &[1, 2]);
        plane.receive(now, untagged(1, A, B));
        let miss = plane.events.pop_front().expect("it missed");
        let mut tell = |at, event: &Event| {
            let mut out = Vec::new();
            switch.handle(at, event.clone(), &mut out);
            out
        };
        for round in 0..3 {
            let begin = now.after(Duration::from_secs(round));
            let requests = tell(begin, &miss);
            let install = requests.iter().find_map(|request| match request {
                Request::Install(flow) => Some(flow.id),
                _ => None,
            });
            assert!(matches!(requests.last(), Some(Request::Resolve(_, Verdict::Retry))), "{requests:?}");
            tell(begin, &Event::InstallFailed(install.expect("a flow for a miss"), error));
            for late_ns in [0, 1, 999_999_999] {
                let requests = tell(begin.after(Duration::from_nanos(late_ns)), &miss);
                let [Request::Resolve(_, Verdict::Execute(actions))] = &requests[..] else {
                    panic!("{error}: {requests:?}")
                };
                assert_eq!(actions[..], [Action::Output(PortId(2))], "{error}");
            }
        }
    }
}

/// A new control plane on a live data plane: no flow is touched, every address that flows come from is known
/// again, new flows have new names, and what missed meanwhile is answered.
#[test]
fn a_restart_loses_no_flow_and_no_address() {
    let mut world = four_ports();
    let vlan_10 = VLAN_PRESENT | 10;
    // The old one asks a question, and dies before it takes in the answer.
    world.plane.request(world.now, Request::List);
    world.plane.request(world.now, Request::Barrier(0));
    let stale = std::mem::take(&mut world.plane.events);
    let packets = [
        packet(1, 0, A, B),
        packet(2, 0, B, A),
        packet(3, vlan_10, C, A),
        packet(4, 0, station(1), BROADCAST),
    ];
    world.send(&packets);
    world.send(&packets);
    let (macs, flows) = (world.macs(), format!("{:?}", world.plane.flows));
    assert_eq!(macs.len(), 4);

    let late = packet(1, 0, A, C);
    world.plane.events = stale;
    world.plane.receive(world.now, late);
    world.switch = LearningSwitch::new(PUNCTUAL);
    world.plane.requests.clear();
    world.plane.fates.clear();
    world.advance(1);

    assert_eq!(world.macs(), macs);
    assert_eq!(world.plane.fates, [(late, [(PortId(3), 0x8100, vlan_10)].into())]);
    let changes = changes(&mut world);
    assert!(matches!(changes[..], [Request::List, Request::Barrier(_), Request::Install(_)]), "{changes:?}");
    let late = world.plane.look_up(&late).expect("it was installed").spec.id;
    world.plane.flows.remove(&late);
    assert_eq!(format!("{:?}", world.plane.flows), flows);
}

/// Flows that a learning switch would not have made are removed when it takes over, those that have become
/// wrong are corrected, and of two flows that claim an address the one used last is believed.
#[test]
fn a_restart_removes_and_corrects_what_it_cannot_explain() {
    let mut world = World::with_ports(PUNCTUAL, &[1, 2, 3]);
    world.send(&[untagged(1, A, BROADCAST), untagged(2, B, A)]);
    let drop_all = FlowSpec {
        id: FlowId(500),
        matches: Match::new(
            FlowKey { ip_proto: 6, ..untagged(3, C, LLDP) },
            FlowKey { in_port: !0, ip_proto: !0, ..FlowKey::ZERO },
        ),
        actions: Arc::new([]),
    };
    world.plane.request(world.now, Request::Install(drop_all));
    // While nobody listens, A moves to port 2 for a predecessor's flow that is older than that of port 1.
    let mut stale = world.plane.look_up(&untagged(1, A, BROADCAST)).expect("it was sent").clone();
    stale.spec.id = FlowId(501);
    stale.spec.matches = Match::new(untagged(2, A, C), stale.spec.matches.mask);
    stale.installed = Nanos(1);
    stale.used = Some(Nanos(2));
    world.plane.flows.insert(stale.spec.id, stale);
    world.plane.remove_port(3);
    world.plane.events.clear();

    world.switch = LearningSwitch::new(PUNCTUAL);
    world.advance(0);
    assert_eq!(world.macs().into_iter().collect::<Vec<_>>(), [(at(A), PortId(1)), (at(B), PortId(2))]);
    assert!(!world.plane.flows.contains_key(&FlowId(500)) && !world.plane.flows.contains_key(&FlowId(501)));
    assert_no_flow_is_stale(&world, &Oracle::knowing(world.switch.macs()));
    let upcalls = world.plane.upcalls;
    assert_eq!(world.send(&[untagged(1, A, BROADCAST)]), [(untagged(1, A, BROADCAST), to(&[2]))]);
    assert_eq!(world.plane.upcalls, upcalls, "corrected, not removed");
    world.send(&[untagged(1, A, B)]);
    assert!(world.plane.flows.keys().max() > Some(&FlowId(501)));
}

/// A flow that the data plane lost is silent, and so forgotten; its next packet brings it back.
#[test]
fn a_lost_flow_comes_back() {
    let mut world = World::with_ports(PUNCTUAL, &[1, 2]);
    let key = untagged(1, A, B);
    world.send(&[key]);
    world.plane.flows.clear();
    world.advance(10);
    assert_eq!(world.send(&[key]), [(key, to(&[2]))]);
    assert!(world.plane.look_up(&key).is_some());
}
