//! Ports that outlive what is connected to them: number, name and counters stay, frames for a port without a backend are
//! counted, and what is disconnected is handed back with its rings where they stood, to go on from there.

mod support;

use hyper_switch_dataplane::api::{Action, DropReason, PortId, VlanMode};
use hyper_switch_dataplane::{Gone, PortState};
use hyper_switch_pvnet::header::Offloads;
use hyper_switch_pvnet::mem::GuestMemory;
use support::device::ScriptedDevice;
use support::{Bench, TestVm, VmConfig, frame};

/// Goes on with disconnecting until it is done, and answers what is gone.
#[track_caller]
fn reap_all(bench: &mut Bench) -> Vec<Gone> {
    let mut gone = Vec::new();
    for _ in 0..4 {
        let reaped = bench.carry_on();
        gone.extend(reaped.gone);
        if reaped.done {
            return gone;
        }
    }
    panic!("everything is gone after so many steps");
}

fn reserve(bench: &mut Bench, name: &str) -> PortId {
    bench.control.reserve(name.into(), VlanMode::Access(7)).unwrap()
}

fn connect(bench: &mut Bench, port: PortId) -> TestVm {
    let mut vm = [TestVm::new(VmConfig::default(), GuestMemory::anonymous)];
    TestVm::connect(&mut bench.control, port, &mut vm);
    let [vm] = vm;
    vm
}

#[test]
fn frames_for_an_absent_port_are_dropped_and_say_so() {
    let mut bench = Bench::new();
    let (mut a, port) = (bench.vm("a"), reserve(&mut bench, "b"));
    bench.connect(a.port, &[Action::Output(port)]);
    assert_eq!(bench.state(port), PortState::Absent);
    let Bench { switch, cx, host, .. } = &mut bench;
    assert!(switch.transmit(cx, host, port).down);
    assert!(a.send(&frame(a.port, port, 100, 0)));
    bench.transmit(&a);
    bench.assert_tx_drops(a.port, &[(DropReason::PortAbsent, 1)]);
    assert_eq!(a.completions(), 1);
    assert!(!bench.control.disconnect(port), "nothing is connected");
    assert!(bench.reap());

    assert!(bench.control.detach(port) && !bench.control.detach(port));
    assert!(bench.control.port(port).is_none());
    assert!(a.send(&frame(a.port, port, 100, 1)));
    bench.transmit(&a);
    bench.assert_tx_drops(a.port, &[(DropReason::NoSuchPort, 1), (DropReason::PortAbsent, 1)]);
    assert_eq!(reserve(&mut bench, "c"), port, "its number is free");
    bench.check_ledger();
}

#[test]
fn number_name_and_counters_stay_while_backends_come_and_go() {
    let mut bench = Bench::new();
    let (mut a, port) = (bench.vm("a"), reserve(&mut bench, "b"));
    bench.connect(a.port, &[Action::Output(port)]);
    bench.connect(port, &[Action::Output(a.port)]);
    for round in 1..4 {
        let mut b = connect(&mut bench, port);
        assert_eq!(b.port, port);
        assert_eq!(bench.control.port(port).unwrap().info.vlan, VlanMode::Access(7));
        // Two each way: one arrives, one is on its way when the backend goes.
        for number in 0..2 {
            assert!(a.send(&frame(a.port, port, 100, number)) && b.send(&frame(port, a.port, 100, number)));
            bench.transmit(&a);
            bench.transmit(&b);
            if number == 0 {
                assert_eq!((bench.receive(&a).copied, bench.receive(&b).copied), (1, 1));
            }
        }
        assert!(bench.control.disconnect(port) && !bench.control.disconnect(port));
        assert_eq!(bench.state(port), PortState::Disconnecting);
        assert!(!bench.reap(), "a frame of its own is to be copied yet");
        bench.check_ledger();
        assert!(a.send(&frame(a.port, port, 100, 2)));
        bench.transmit(&a);
        assert_eq!(bench.receive(&a).copied, 1);
        let [gone] = &reap_all(&mut bench)[..] else { panic!("one backend is gone") };
        assert_eq!((gone.port, gone.queues.len(), bench.state(port)), (port, 1, PortState::Absent));
        assert_eq!((a.completions(), b.completions(), a.received().len()), (3, 2, 2));
        let counters = bench.counters(port);
        assert_eq!((counters.tx.frames, counters.tx.forwarded), (2 * round, 2 * round));
        assert_eq!((counters.rx.offered, counters.rx.frames), (2 * round, round));
        bench.assert_rx_drops(port, &[(DropReason::PortDown, round)]);
        bench.assert_tx_drops(a.port, &[(DropReason::PortAbsent, round)]);
        bench.check_ledger();
    }
}

/// Holds that rings which are handed back can be connected again, and that the VM, which has noticed nothing, goes on.
#[test]
fn rings_are_handed_back_where_they_stood() {
    let mut bench = Bench::new();
    let mut a = bench.vm("a");
    let config = VmConfig { slots: 16, posted: 8, ..VmConfig::default() };
    let mut lanes = TestVm::attach_lanes(&mut bench.control, "b", config, 2);
    let port = lanes[0].port;
    bench.connect(a.port, &[Action::Output(port)]);
    bench.connect(port, &[Action::Output(a.port)]);
    for round in 0..10 {
        for lane in &mut lanes {
            for number in 0..3 {
                assert!(lane.send(&frame(lane.port, a.port, 100, 3 * round + number)));
            }
            bench.transmit(lane);
        }
        for flow in 0..8 {
            assert!(a.send(&frame(a.port, PortId(100 + flow), 100, round)));
        }
        bench.transmit(&a);
        let arrived: usize = lanes
            .iter_mut()
            .map(|lane| {
                bench.receive(lane);
                lane.received().len()
            })
            .sum();
        assert_eq!(arrived, 8);
        bench.receive(&a);
        assert_eq!(a.received().len(), 6);
        assert!(bench.control.disconnect(port));
        let gone = reap_all(&mut bench).pop().expect("the backend is gone");
        assert!(lanes.iter_mut().all(|lane| lane.completions() == 3));
        assert_eq!(a.completions(), 8);
        bench.control.connect(gone.port, lanes[0].backend(gone.queues)).unwrap();
    }
    bench.check_ledger();
}

#[test]
fn a_device_can_be_disconnected_and_a_port_detached_meanwhile() {
    let mut bench = Bench::new();
    let mut a = bench.vm("a");
    let device = ScriptedDevice::new(Offloads::ALL);
    let port = device.attach(&mut bench, "device");
    bench.connect(a.port, &[Action::Output(port)]);
    assert!(bench.control.disconnect(port));
    let gone = reap_all(&mut bench);
    assert_eq!((gone.len(), gone[0].queues.len(), bench.state(port)), (1, 0, PortState::Absent));
    assert!(a.send(&frame(a.port, port, 100, 0)));
    bench.transmit(&a);
    bench.assert_tx_drops(a.port, &[(DropReason::PortAbsent, 1)]);

    bench.control.connect(port, hyper_switch_dataplane::Backend::Device(device.clone())).unwrap();
    assert!(a.send(&frame(a.port, port, 100, 1)));
    bench.transmit(&a);
    assert_eq!(device.take_pushed().len(), 1);
    assert!(bench.control.disconnect(port));
    bench.detach(port);
    assert_eq!(bench.state(port), PortState::Leaving);
    assert_eq!(reap_all(&mut bench).len(), 1);
    assert!(bench.control.port(port).is_none());
    bench.check_ledger();
}
