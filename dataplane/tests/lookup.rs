//! Lookup through the whole switch: what the control plane sees of flows and their bounds, and that a removed
//! flow matches no packet once its barrier has passed, although every core has it in its cache. (The table
//! itself is held against a list of flows where it is written.)

mod support;

use hyper_switch_dataplane::SwitchConfig;
use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, FlowSpec, InstallError, Match, Nanos, PortId};
use hyper_switch_dataplane::host::CoreId;
use std::time::Duration;
use support::{Bench, TestVm, frame, mac};

fn bench(max_flows: usize, max_masks: usize) -> (Bench, TestVm, TestVm) {
    let config = SwitchConfig { max_ports: 4, cores: 2, max_flows, max_masks, ..support::basic() };
    let mut bench = Bench::with(config);
    let (a, b) = (bench.vm("a"), bench.vm("b"));
    (bench, a, b)
}

/// The flow for frames to `to`, the bits of whose address `mask` has.
fn spec(id: u64, to: u16, mask: [u8; 6], actions: &[Action]) -> FlowSpec {
    let key = FlowKey { eth_dst: mac(PortId(to)), ..FlowKey::ZERO };
    let matches = Match::new(key, FlowKey { eth_dst: mask, ..FlowKey::ZERO });
    FlowSpec { id: FlowId(id), matches, actions: actions.into() }
}

#[test]
fn flows_and_masks_are_bounded() {
    let (mut bench, ..) = bench(3, 2);
    let (narrow, wide, third) = ([0xff; 6], [0, 0, 0, 0, 0xff, 0], [0, 0, 0, 0, 0xff, 0xff]);
    let mut install = |spec: FlowSpec| bench.control.install(&spec, Nanos(0));
    assert_eq!(install(spec(1, 1, narrow, &[])), Ok(()));
    assert_eq!(install(spec(2, 0x100, wide, &[])), Ok(()));
    assert_eq!(install(spec(3, 0x200, third, &[])), Err(InstallError::TooManyMasks(2)));
    assert_eq!(install(spec(4, 1, narrow, &[])), Err(InstallError::Exists(FlowId(1))));
    assert_eq!(install(spec(1, 2, narrow, &[])), Err(InstallError::DuplicateId(FlowId(1))));
    let beyond = PortId(4);
    let outputs = vec![Action::Output(PortId(0)); 513];
    assert_eq!(install(spec(5, 2, narrow, &[Action::Output(beyond)])), Err(InstallError::NoSuchPort(beyond)));
    assert_eq!(install(spec(5, 2, narrow, &outputs)), Err(InstallError::TooManyOutputs(512)));
    assert_eq!(install(spec(5, 2, narrow, &outputs[1..])), Ok(()));
    assert_eq!(install(spec(6, 3, narrow, &[])), Err(InstallError::TableFull(3)));
    assert_eq!(bench.control.flow_counts(), (3, 2), "what was refused left nothing behind");

    assert!(bench.control.remove(FlowId(2)));
    assert_eq!(bench.control.flow_counts(), (2, 1), "a mask goes with its last flow");
    assert_eq!(bench.control.install(&spec(7, 0x200, third, &[]), Nanos(0)), Ok(()));
    assert!(!bench.control.remove(FlowId(2)));
    assert_eq!(bench.control.modify(FlowId(2), &[].into()), Ok(false));
}

#[test]
fn flows_count_from_their_installation_on() {
    let (mut bench, mut a, mut b) = bench(2, 2);
    let narrow = [0xff; 6];
    for (id, frames) in [(1, 3), (2, 2)] {
        bench.host.advance(Duration::from_millis(5));
        let installed = Nanos(bench.host.now.get());
        bench.control.install(&spec(id, b.port.0, narrow, &[Action::Output(b.port)]), installed).unwrap();
        assert_eq!(bench.control.flows()[0].used, None);
        bench.host.advance(Duration::from_millis(5));
        assert!((0..frames).all(|number| a.send(&frame(a.port, b.port, 100, number))));
        bench.transmit(&a);
        bench.receive(&b);
        b.received();
        a.completions();
        let [record] = &bench.control.flows()[..] else { panic!("there is one flow") };
        assert_eq!((record.packets, record.bytes), (frames, 100 * frames));
        assert_eq!((record.installed, record.used), (installed, Some(Nanos(bench.host.now.get()))));
        // The next one gets the same place.
        assert!(bench.control.remove(FlowId(id)));
    }
}

/// Holds that both cores, which have the flow in their caches, see each change by the time of its barrier.
#[test]
fn a_change_is_seen_by_every_core() {
    let (mut bench, mut a, mut b) = bench(4, 2);
    let mut c = bench.vm("c");
    let mut second = bench.switch.core_context(CoreId(1)).unwrap();
    assert!(bench.switch.core_context(CoreId(1)).is_none(), "a core has one context");
    let narrow = [0xff; 6];
    let mut id = 0;
    let mut number = 0;
    for round in 0..50 {
        let to = [b.port, c.port][round % 2];
        if round % 3 == 0 {
            assert!(round == 0 || bench.control.remove(FlowId(id)));
            id += 1;
            bench.control.install(&spec(id, b.port.0, narrow, &[Action::Output(to)]), Nanos(0)).unwrap();
        } else {
            assert_eq!(bench.control.modify(FlowId(id), &[Action::Output(to)].into()), Ok(true));
        }
        let barrier = bench.control.barrier();
        assert!(bench.control.passed(barrier), "no core is inside");
        for core in 0..2 {
            number += 1;
            let sent = frame(a.port, b.port, 100, number);
            assert!(a.send(&sent));
            let cx = if core == 0 { &mut bench.cx } else { &mut second };
            bench.switch.transmit(cx, &bench.host, a.port);
            bench.receive(&b);
            bench.receive(&c);
            let mut got = [b.received_frames(), c.received_frames()];
            if to == c.port {
                got.swap(0, 1);
            }
            assert_eq!(got, [vec![sent], vec![]], "round {round}, core {core}");
            a.completions();
        }
    }
    assert!(bench.control.remove(FlowId(id)));
    for core in 0..2 {
        assert!(a.send(&frame(a.port, b.port, 100, 1000 + core)));
    }
    assert!(bench.transmit(&a).upcalls);
    assert_eq!(bench.control.port(a.port).unwrap().held, 2, "the removed flow matches nothing");
    let lookups = bench.switch.activity(CoreId(0));
    assert!(lookups.cache_hits > 0 && lookups.table_hits > 0 && lookups.misses > 0);
}
