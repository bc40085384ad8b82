//! Ports with several queue pairs: the flow table and the counters see one port, a flow stays in order on one lane, lanes
//! that are disabled get nothing, and what breaks one takes the port down.

mod support;

use hyper_switch_dataplane::api::{
    Action, DropReason, FlowKey, PortId, UpcallId, UpcallReason, Verdict, VlanMode,
};
use hyper_switch_dataplane::{AttachError, MAX_LANES, PortFault, PortState, SwitchConfig};
use hyper_switch_pvnet::mem::GuestMemory;
use std::collections::HashSet;
use std::time::Duration;
use support::{Bench, TestVm, VmConfig, frame};

/// Flows that are told apart by their destination address.
const FLOWS: u16 = 40;

/// A VM with room for three frames of each flow.
fn sender(bench: &mut Bench) -> TestVm {
    bench.vm_with("a", VmConfig { slots: 128, ..VmConfig::default() })
}

/// Sends a frame of each flow from `vm`, and so for several rounds.
fn send_flows(bench: &mut Bench, vm: &mut TestVm, rounds: std::ops::Range<u64>) {
    for round in rounds {
        for flow in 0..FLOWS {
            vm.completions();
            assert!(vm.send(&frame(vm.port, PortId(100 + flow), 100, round)));
        }
        bench.transmit(vm);
    }
}

/// The flow and the number of each frame that came by a lane.
fn arrived(bench: &mut Bench, lane: &mut TestVm) -> Vec<(u16, u64)> {
    let mut arrived = Vec::new();
    loop {
        let copied = bench.receive(lane).copied;
        let frames = lane.received_frames();
        if copied == 0 && frames.is_empty() {
            return arrived;
        }
        for frame in frames {
            let flow = u16::from_be_bytes([frame[4], frame[5]]) - 100;
            arrived.push((flow, u64::from_be_bytes(*frame[14..].first_chunk().unwrap())));
        }
    }
}

/// The flows that came, of which all frames of `rounds` did and in order.
#[track_caller]
fn flows_of(arrived: &[(u16, u64)], rounds: std::ops::Range<u64>) -> HashSet<u16> {
    let flows: HashSet<_> = arrived.iter().map(|(flow, _)| *flow).collect();
    for flow in &flows {
        let numbers = arrived.iter().filter(|(of, _)| of == flow).map(|(_, number)| *number);
        assert!(numbers.eq(rounds.clone()), "flow {flow} is whole and in order");
    }
    flows
}

#[test]
fn each_flow_goes_by_one_lane_and_all_lanes_have_some() {
    for lanes in 1..=MAX_LANES {
        let mut bench = Bench::new();
        let (mut a, mut b) = (sender(&mut bench), bench.lanes("b", lanes));
        bench.connect(a.port, &[Action::Output(b[0].port)]);
        send_flows(&mut bench, &mut a, 0..1);
        bench.check_ledger();
        send_flows(&mut bench, &mut a, 1..3);
        let mut seen = HashSet::new();
        for lane in &mut b {
            let flows = flows_of(&arrived(&mut bench, lane), 0..3);
            assert!(!flows.is_empty(), "lane {} of {lanes} has flows", lane.port);
            assert!(flows.is_disjoint(&seen));
            seen.extend(flows);
        }
        assert_eq!(seen.len(), FLOWS.into());
        let counters = bench.counters(b[0].port);
        assert_eq!((counters.rx.offered, counters.rx.frames), (3 * u64::from(FLOWS), 3 * u64::from(FLOWS)));
        a.completions();
        assert_eq!(a.outstanding(), 0);
        bench.check_ledger();
    }
}

/// Holds that each of two optimisations' ways brings the frames to the lanes, and that each lane has an interrupt.
#[test]
fn lanes_are_notified_apart() {
    for optimisations in support::combinations() {
        let mut bench =
            Bench::with(SwitchConfig { max_ports: 8, cores: 1, optimisations, ..support::basic() });
        let (mut a, mut b) = (sender(&mut bench), bench.lanes("b", 2));
        bench.connect(a.port, &[Action::Output(b[0].port)]);
        send_flows(&mut bench, &mut a, 0..1);
        let notified: HashSet<_> = bench.host.take_notified().into_iter().collect();
        assert!(b.iter().all(|lane| notified.contains(&lane.port)), "{optimisations:?}: {notified:?}");
        assert_eq!(bench.counters(b[0].port).rx.notifications, 2);
        assert_eq!(b.iter_mut().map(|lane| arrived(&mut bench, lane).len()).sum::<usize>(), FLOWS.into());
    }
}

#[test]
fn frames_of_every_lane_come_from_the_port() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.lanes("a", 4), bench.vm("b"));
    bench.connect(a[0].port, &[Action::Output(b.port)]);
    for (number, lane) in a.iter_mut().enumerate() {
        assert!(lane.send(&frame(lane.port, b.port, 100, number as u64)));
        assert_eq!(bench.transmit(lane).frames, 1);
    }
    assert_eq!(arrived_count(&mut bench, &mut b), 4, "the port's flow is for all its lanes");
    assert!(a.iter_mut().all(|lane| lane.completions() == 1), "each has its own buffer back");
    let counters = bench.counters(a[0].port);
    assert_eq!((counters.tx.frames, counters.tx.forwarded, counters.tx.entries), (4, 4, 4));
    assert_eq!(bench.control.ports().len(), 2, "lanes are no ports");
    assert!(bench.control.port(a[3].port).is_none() && bench.control.lanes(a[3].port).is_empty());
    assert!(!bench.control.detach(a[3].port) && !bench.control.disconnect(a[3].port));
    bench.check_ledger();
}

fn arrived_count(bench: &mut Bench, vm: &mut TestVm) -> usize {
    bench.receive(vm);
    vm.received().len()
}

#[test]
fn a_lane_is_no_port_to_send_to() {
    let mut bench = Bench::new();
    let (mut a, b) = (sender(&mut bench), bench.lanes("b", 2));
    bench.connect(a.port, &[Action::Output(b[1].port)]);
    assert!(a.send(&frame(a.port, b[1].port, 100, 0)));
    bench.transmit(&a);
    bench.assert_tx_drops(a.port, &[(DropReason::NoSuchPort, 1)]);
}

/// Holds that an upcall of a lane says which port the packet came from, that its verdict finds it, and that a flow's
/// packets keep their order behind it.
#[test]
fn upcalls_and_verdicts_of_lanes() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.lanes("a", 2), bench.vm("b"));
    for lane in &mut a {
        assert!((0..3).all(|number| lane.send(&frame(PortId(1), PortId(7), 100, number))));
        assert!(bench.transmit(lane).upcalls);
    }
    assert_eq!(bench.control.port(a[0].port).unwrap().held, 6);
    bench.check_ledger();
    let upcalls: Vec<_> = std::iter::from_fn(|| bench.control.next_upcall()).collect();
    assert_eq!(upcalls.len(), 2, "one for each lane's flow");
    for upcall in &upcalls {
        assert_eq!((upcall.reason, upcall.key.in_port), (UpcallReason::Miss, a[0].port.0.into()));
    }
    let key = FlowKey { in_port: a[0].port.0.into(), ..FlowKey::ZERO };
    bench.flow(key, FlowKey { in_port: u32::MAX, ..FlowKey::ZERO }, &[Action::Output(b.port)]);
    for upcall in upcalls.iter().rev() {
        let Bench { control, cx, host, .. } = &mut bench;
        control.resolve(cx, host, upcall.id, Verdict::Retry);
    }
    bench.receive(&b);
    let number = |frame: &Vec<u8>| u64::from_be_bytes(*frame[14..].first_chunk().unwrap());
    assert_eq!(b.received_frames().iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    assert!(a.iter_mut().all(|lane| lane.completions() == 3));
    bench.check_ledger();
}

/// Holds that a number which was another port's lane begins its upcalls where that one stopped: its verdicts may still
/// come.
#[test]
fn a_verdict_for_a_lane_of_before_is_for_nobody() {
    let mut bench = Bench::with(SwitchConfig { max_ports: 3, cores: 1, max_flows: 4, ..support::basic() });
    let mut a = bench.lanes("a", 3);
    assert!(a[2].send(&frame(PortId(1), PortId(7), 100, 0)));
    bench.transmit(&a[2]);
    let old = bench.control.next_upcall().unwrap().id;
    bench.detach(a[0].port);
    assert!((0..4).any(|_| bench.reap()));
    let mut b = bench.lanes("b", 3);
    assert!(b[2].send(&frame(PortId(1), PortId(7), 100, 0)));
    bench.transmit(&b[2]);
    let new = bench.control.next_upcall().unwrap().id;
    assert_eq!((old.port, new), (b[2].port, UpcallId { port: old.port, number: old.number + 1 }));
}

#[test]
fn disabled_lanes_get_nothing_and_what_waits_for_them_goes_by_others() {
    for optimisations in support::combinations() {
        let mut bench =
            Bench::with(SwitchConfig { max_ports: 8, cores: 1, optimisations, ..support::basic() });
        let config = VmConfig { posted: 0, ..VmConfig::default() };
        let (mut a, mut b) = (sender(&mut bench), TestVm::attach_lanes(&mut bench.control, "b", config, 4));
        let port = b[0].port;
        bench.connect(a.port, &[Action::Output(port)]);
        send_flows(&mut bench, &mut a, 0..1);
        set_lanes(&mut bench, port, 0b0010);
        bench.check_ledger();
        a.completions();
        send_flows(&mut bench, &mut a, 1..2);
        for lane in &mut b {
            lane.post(u16::MAX);
        }
        let counts: Vec<_> = (0..4).map(|lane| arrived(&mut bench, &mut b[lane]).len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), counts[1], "all that there is comes by the one: {counts:?}");
        assert_eq!(bench.counters(port).rx.frames, bench.counters(a.port).tx.frames);
        a.completions();
        assert_eq!(a.outstanding(), 0);
        bench.check_ledger();
    }
}

#[track_caller]
fn set_lanes(bench: &mut Bench, port: PortId, enabled: u8) {
    let Bench { control, cx, host, .. } = bench;
    assert!(control.set_lanes(cx, host, port, enabled));
}

#[test]
fn without_a_lane_frames_are_dropped() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (sender(&mut bench), bench.lanes("b", 2));
    bench.connect(a.port, &[Action::Output(b[0].port)]);
    send_flows(&mut bench, &mut a, 0..1);
    set_lanes(&mut bench, b[0].port, 0);
    bench.assert_rx_drops(b[0].port, &[(DropReason::PortAbsent, FLOWS.into())]);
    assert_eq!(a.completions(), FLOWS.into());
    send_flows(&mut bench, &mut a, 1..2);
    bench.assert_tx_drops(a.port, &[(DropReason::PortAbsent, FLOWS.into())]);
    set_lanes(&mut bench, b[0].port, 0b11);
    send_flows(&mut bench, &mut a, 2..3);
    assert_eq!(b.iter_mut().map(|lane| arrived(&mut bench, lane).len()).sum::<usize>(), FLOWS.into());
    assert_eq!(bench.state(b[0].port), PortState::Up);
    bench.check_ledger();
}

#[test]
fn a_lane_may_be_disabled_from_the_start() {
    let mut bench = Bench::new();
    let mut a = sender(&mut bench);
    let port = bench.control.reserve("b".into(), VlanMode::Transparent).unwrap();
    let mut b: Vec<_> = (0..2).map(|_| TestVm::new(VmConfig::default(), GuestMemory::anonymous)).collect();
    let mut queues: Vec<_> = b.iter().map(TestVm::queues).collect();
    queues[1].enabled = false;
    bench.control.connect(port, b[0].backend(queues)).unwrap();
    for (vm, lane) in b.iter_mut().zip(bench.control.lanes(port)) {
        vm.port = lane;
    }
    bench.connect(a.port, &[Action::Output(port)]);
    send_flows(&mut bench, &mut a, 0..1);
    assert_eq!(arrived(&mut bench, &mut b[1]), []);
    assert_eq!(arrived(&mut bench, &mut b[0]).len(), FLOWS.into());
}

/// Holds that a lie about one lane's ring takes all of the port down, whose frames are dropped or completed, and that it
/// can be connected anew.
#[test]
fn a_fault_in_one_lane_takes_the_port_down() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (sender(&mut bench), bench.lanes("b", 3));
    let port = b[0].port;
    bench.connect(a.port, &[Action::Output(port)]);
    bench.connect(port, &[Action::Output(a.port)]);
    send_flows(&mut bench, &mut a, 0..1);
    assert!(b[1].send(&frame(port, a.port, 100, 0)));
    assert_eq!(bench.transmit(&b[1]).frames, 1);
    // More chains on offer than the ring has.
    b[2].poke(b[2].tx_addrs.avail + 2, &u16::MAX.to_le_bytes());
    assert!(bench.transmit(&b[2]).faulted);
    assert!(matches!(bench.state(port), PortState::Faulted(PortFault::TxRing(_))));
    assert!(bench.transmit(&b[0]).down && bench.transmit(&b[1]).down);
    send_flows(&mut bench, &mut a, 1..2);
    bench.assert_tx_drops(a.port, &[(DropReason::NoSuchPort, FLOWS.into())]);
    bench.host.advance(Duration::from_secs(2));
    for lane in bench.host.take_due() {
        let Bench { switch, cx, host, .. } = &mut bench;
        switch.expire(cx, host, lane);
    }
    bench.assert_rx_drops(port, &[(DropReason::PortDown, FLOWS.into())]);
    assert!(bench.control.disconnect(port));
    assert_eq!(bench.state(port), PortState::Disconnecting);
    bench.receive(&a);
    assert!((0..4).any(|_| bench.reap()));
    a.completions();
    assert_eq!(a.outstanding(), 0);
    bench.check_ledger();
    let mut again: Vec<_> =
        (0..2).map(|_| TestVm::new(VmConfig::default(), GuestMemory::anonymous)).collect();
    TestVm::connect(&mut bench.control, port, &mut again);
    send_flows(&mut bench, &mut a, 2..3);
    assert_eq!(again.iter_mut().map(|lane| arrived(&mut bench, lane).len()).sum::<usize>(), FLOWS.into());
    bench.check_ledger();
}

#[test]
fn lanes_take_numbers_from_the_end_and_give_them_back() {
    let mut bench = Bench::with(SwitchConfig { max_ports: 40, cores: 1, max_flows: 4, ..support::basic() });
    for _ in 0..3 {
        let (one, a) = (bench.vm("one"), bench.lanes("a", 3));
        assert_eq!(bench.control.lanes(a[0].port), [1, 33, 39].map(PortId), "33 shares an account with 1");
        let b: Vec<_> = (0..9).map(|_| TestVm::new(VmConfig::default(), GuestMemory::anonymous)).collect();
        let queues = |count: usize| b[0].backend(b[..count].iter().map(TestVm::queues).collect::<Vec<_>>());
        let port = bench.control.reserve("b".into(), VlanMode::Transparent).unwrap();
        assert_eq!(bench.control.connect(port, queues(9)), Err(AttachError::QueuePairs(9)));
        assert_eq!(bench.control.connect(port, queues(0)), Err(AttachError::QueuePairs(0)));
        let others: Vec<_> = (0..4).map(|_| bench.lanes("more", 8)).collect();
        assert_eq!(bench.control.connect(port, queues(5)), Err(AttachError::NoPortLeft(40)));
        assert_eq!(bench.control.connect(port, queues(4)), Ok(()));
        assert_eq!(bench.control.connect(port, queues(1)), Err(AttachError::Connected(port)));
        assert_eq!(bench.control.connect(PortId(39), queues(1)), Err(AttachError::NoSuchPort(PortId(39))));
        let ports = others.iter().map(|vm| vm[0].port).chain([port, one.port, a[0].port]);
        ports.for_each(|port| bench.detach(port));
        assert!((0..4).any(|_| bench.reap()), "all of them are gone");
        assert!(bench.control.ports().is_empty());
    }
}

#[test]
fn a_backend_that_does_not_fit_leaves_no_port() {
    let mut bench = Bench::with(SwitchConfig { max_ports: 2, cores: 1, max_flows: 4, ..support::basic() });
    let b: Vec<_> = (0..3).map(|_| TestVm::new(VmConfig::default(), GuestMemory::anonymous)).collect();
    let backend = b[0].backend(b.iter().map(TestVm::queues).collect());
    let config =
        hyper_switch_dataplane::PortConfig { name: "b".into(), vlan: VlanMode::Transparent, backend };
    assert_eq!(bench.control.attach(config), Err(AttachError::NoPortLeft(2)));
    assert!(bench.control.ports().is_empty());
    assert_eq!(bench.lanes("b", 2).len(), 2);
}
