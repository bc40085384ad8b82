//! Packets that wait for the control plane: one upcall a flow, order across the wait, every verdict, and the
//! bounds in number and time. The test is the control plane, on a host without threads.

mod support;

use hyper_switch_dataplane::api::{
    Action, DropReason, FlowKey, PortId, Upcall, UpcallId, UpcallReason, Verdict,
};
use hyper_switch_dataplane::{Entered, SwitchConfig};
use std::ops::Range;
use std::time::Duration;
use support::{Bench, TestVm, frame, mac};

const HELD: usize = 8;

/// Two VMs and no flow between them.
struct Stage {
    bench: Bench,
    a: TestVm,
    b: TestVm,
}

impl Stage {
    fn new() -> Stage {
        let config = SwitchConfig {
            max_ports: 8,
            cores: 1,
            max_flows: 64,
            held_frames: HELD,
            upcalls: HELD,
            ..support::basic()
        };
        let mut bench = Bench::with(config);
        let (a, b) = (bench.vm("a"), bench.vm("b"));
        Stage { bench, a, b }
    }

    /// Sends frames of one flow, told from others by `to`, and switches them.
    fn send(&mut self, to: u16, numbers: Range<u64>) -> Entered {
        for number in numbers {
            assert!(self.a.send(&frame(self.a.port, PortId(to), 60, number)));
        }
        let entered = self.bench.transmit(&self.a);
        self.bench.check_ledger();
        entered
    }

    /// Holds that just these frames arrive, in this order.
    #[track_caller]
    fn expect(&mut self, frames: impl IntoIterator<Item = (u16, u64)>) {
        self.bench.receive(&self.b);
        let sent = frames.into_iter().map(|(to, number)| frame(self.a.port, PortId(to), 60, number));
        assert_eq!(self.b.received_frames(), sent.collect::<Vec<_>>());
        self.bench.check_ledger();
    }

    #[track_caller]
    fn upcall(&mut self) -> Upcall {
        self.bench.control.next_upcall().expect("a packet waits")
    }

    fn resolve(&mut self, id: UpcallId, verdict: Verdict) {
        let Bench { control, cx, host, .. } = &mut self.bench;
        control.resolve(cx, host, id, verdict);
        self.bench.check_ledger();
    }

    fn held(&self) -> usize {
        self.bench.control.port(self.a.port).unwrap().held
    }

    /// Installs the flow for frames to `to`.
    fn install(&mut self, to: u16, actions: &[Action]) -> hyper_switch_dataplane::api::FlowId {
        let key = FlowKey { in_port: self.a.port.0.into(), eth_dst: mac(PortId(to)), ..FlowKey::ZERO };
        self.bench.flow(key, FlowKey { in_port: u32::MAX, eth_dst: [0xff; 6], ..FlowKey::ZERO }, actions)
    }

    fn to_b(&self) -> Action {
        Action::Output(self.b.port)
    }

    /// Lets time pass and the timers fire that are due then.
    fn pass(&mut self, time: Duration) {
        self.bench.host.advance(time);
        for vm in self.bench.host.take_due() {
            let Bench { switch, cx, host, .. } = &mut self.bench;
            switch.expire(cx, host, vm);
        }
        self.bench.check_ledger();
    }
}

#[test]
fn a_flow_asks_once_however_many_of_its_packets_wait() {
    let mut stage = Stage::new();
    assert!(stage.send(1, 0..4).upcalls);
    assert!(stage.send(9, 0..1).upcalls);
    assert!(!stage.send(1, 4..6).upcalls, "these wait behind the first");
    assert_eq!((stage.held(), stage.bench.counters(stage.a.port).tx.upcalls), (7, 2));

    let first = stage.upcall();
    let sent = frame(stage.a.port, PortId(1), 60, 0);
    assert_eq!((first.reason, first.frame_bytes, &first.header[..]), (UpcallReason::Miss, 60, &sent[..]));
    assert_eq!((first.key.port(), first.key.eth_dst), (stage.a.port, mac(PortId(1))));
    assert_eq!(stage.upcall().key.eth_dst, mac(PortId(9)));
    assert!(stage.bench.control.next_upcall().is_none());
    assert_eq!(stage.a.completions(), 0, "the packets stay where they are");
}

/// Holds that packets which come after the flow was installed, but before the verdict, stay behind those that
/// wait; and that other flows do not wait with them.
#[test]
fn order_holds_across_miss_install_and_retry() {
    let mut stage = Stage::new();
    stage.install(9, &[stage.to_b()]);
    stage.send(1, 0..3);
    let upcall = stage.upcall();
    let flow = stage.install(1, &[stage.to_b()]);
    stage.send(1, 3..5);
    stage.send(9, 0..2);
    stage.expect([(9, 0), (9, 1)]);
    stage.resolve(upcall.id, Verdict::Retry);
    stage.send(1, 5..8);
    stage.expect((0..8).map(|number| (1, number)));
    assert_eq!((stage.held(), stage.a.completions()), (0, 10));
    let record = stage.bench.control.flows().into_iter().find(|record| record.spec.id == flow).unwrap();
    assert_eq!((record.packets, record.bytes), (8, 480), "each packet counts once, however long it waited");
}

#[test]
fn execute_and_drop_are_for_all_that_wait_and_for_no_more() {
    let mut stage = Stage::new();
    stage.send(1, 0..3);
    let upcall = stage.upcall();
    stage.resolve(upcall.id, Verdict::Execute([stage.to_b()].into()));
    stage.expect((0..3).map(|number| (1, number)));
    assert!(stage.send(1, 3..5).upcalls, "nothing was installed");

    let upcall = stage.upcall();
    stage.resolve(upcall.id, Verdict::Drop);
    stage.expect([]);
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::ControlPlane, 2)]);

    stage.send(1, 5..6);
    let upcall = stage.upcall();
    stage.resolve(upcall.id, Verdict::Execute([].into()));
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::FlowDrop, 1), (DropReason::ControlPlane, 2)]);
    assert_eq!(stage.a.completions(), 6);
}

/// Holds that actions which no flow could have are not carried out.
#[test]
fn execute_with_an_impossible_port_drops() {
    let mut stage = Stage::new();
    stage.send(1, 0..1);
    let upcall = stage.upcall();
    stage.resolve(upcall.id, Verdict::Execute([Action::Output(PortId(8))].into()));
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::ControlPlane, 1)]);
    assert_eq!(stage.a.completions(), 1);
}

#[test]
fn verdicts_on_nothing_are_ignored() {
    let mut stage = Stage::new();
    stage.send(1, 0..2);
    let upcall = stage.upcall();
    for (port, number) in
        [(stage.a.port.0, upcall.id.number + 1), (stage.b.port.0, upcall.id.number), (7, 0), (99, 0)]
    {
        for _ in 0..2 * HELD {
            stage.resolve(UpcallId { port: PortId(port), number }, Verdict::Drop);
        }
    }
    assert_eq!(stage.held(), 2);
    stage.resolve(upcall.id, Verdict::Execute([stage.to_b()].into()));
    stage.resolve(upcall.id, Verdict::Execute([stage.to_b()].into()));
    stage.expect([(1, 0), (1, 1)]);

    stage.send(1, 2..3);
    let late = stage.upcall();
    stage.pass(Duration::from_secs(1));
    stage.resolve(late.id, Verdict::Execute([stage.to_b()].into()));
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::UpcallTimeout, 1)]);
    stage.expect([]);
    assert_eq!(stage.a.completions(), 3);
}

/// Holds that a verdict for a port that went decides nothing at the port that got its number.
#[test]
fn a_verdict_does_not_outlive_its_port() {
    let mut stage = Stage::new();
    stage.send(1, 0..1);
    let old = stage.upcall();
    stage.bench.detach(stage.a.port);
    assert!((0..3).any(|_| stage.bench.reap()));
    assert_eq!(stage.a.completions(), 1);

    let port = stage.a.port;
    stage.a = stage.bench.vm("a again");
    assert_eq!(stage.a.port, port);
    stage.send(1, 1..2);
    stage.resolve(old.id, Verdict::Drop);
    assert_eq!(stage.held(), 1);
    let new = stage.upcall();
    assert_ne!(new.id, old.id);
    stage.resolve(new.id, Verdict::Execute([stage.to_b()].into()));
    stage.expect([(1, 1)]);
}

#[test]
fn what_is_over_the_bound_is_dropped_and_what_waits_stays() {
    let mut stage = Stage::new();
    stage.send(1, 0..HELD as u64 + 3);
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::UpcallQueueFull, 3)]);
    assert_eq!((stage.held(), stage.a.completions()), (HELD, 3));
    let upcall = stage.upcall();
    stage.resolve(upcall.id, Verdict::Execute([stage.to_b()].into()));
    stage.expect((0..HELD as u64).map(|number| (1, number)));
}

/// Holds that a port with as many upcalls as it may have delays another's single one by one turn, no more.
#[test]
fn a_quiet_port_is_heard_beside_a_flooding_one() {
    let mut stage = Stage::new();
    for flow in 0..HELD as u16 {
        stage.send(100 + flow, 0..1);
    }
    assert!(stage.b.send(&frame(stage.b.port, stage.a.port, 60, 0)));
    stage.bench.transmit(&stage.b);
    let order: Vec<_> = std::iter::from_fn(|| stage.bench.control.next_upcall()).map(|u| u.id.port).collect();
    assert_eq!(order.len(), HELD + 1);
    assert_eq!(order.iter().position(|port| *port == stage.b.port), Some(1));
}

/// Holds that packets for which the control plane installed nothing are asked about anew, in order, and that
/// asking again does not let them wait for longer.
#[test]
fn a_retry_that_misses_again_is_a_new_upcall_with_the_old_deadline() {
    let mut stage = Stage::new();
    stage.send(1, 0..3);
    let first = stage.upcall();
    stage.pass(Duration::from_millis(600));
    stage.resolve(first.id, Verdict::Retry);
    let second = stage.upcall();
    assert!(second.id != first.id && second.key == first.key);
    assert!(stage.bench.control.next_upcall().is_none(), "the others wait behind the new upcall");
    stage.send(1, 3..4);
    stage.install(1, &[stage.to_b()]);
    stage.resolve(second.id, Verdict::Retry);
    stage.expect((0..4).map(|number| (1, number)));

    stage.send(9, 0..2);
    let first = stage.upcall();
    stage.pass(Duration::from_millis(600));
    stage.resolve(first.id, Verdict::Retry);
    stage.pass(Duration::from_millis(400));
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::UpcallTimeout, 2)]);
    assert_eq!((stage.held(), stage.a.completions()), (0, 6));
}

/// Holds that packets behind one that waited too long go with it, as nobody will decide on them; that another
/// flow's stay until their own time; and that later packets ask anew.
#[test]
fn an_unanswered_upcall_takes_its_followers_with_it() {
    let mut stage = Stage::new();
    stage.send(1, 0..2);
    stage.pass(Duration::from_millis(900));
    stage.send(1, 2..3);
    stage.send(9, 0..1);
    stage.pass(Duration::from_millis(100));
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::UpcallTimeout, 3)]);
    assert_eq!((stage.held(), stage.a.completions()), (1, 3));
    assert!(stage.send(1, 3..4).upcalls);
    assert_eq!(stage.held(), 2);

    stage.pass(Duration::from_secs(1));
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::UpcallTimeout, 5)]);
    assert_eq!((stage.held(), stage.a.completions()), (0, 2));
}

/// Holds that a packet which a flow shows to the control plane is decided on alone, and holds up no other.
#[test]
fn an_action_shows_single_packets_to_the_control_plane() {
    let mut stage = Stage::new();
    let flow = stage.install(1, &[Action::Controller]);
    stage.send(1, 0..3);
    let upcalls: Vec<_> = (0..3).map(|_| stage.upcall()).collect();
    assert!(upcalls.iter().all(|upcall| upcall.reason == UpcallReason::Action));
    stage.resolve(upcalls[1].id, Verdict::Execute([stage.to_b()].into()));
    stage.expect([(1, 1)]);
    stage.resolve(upcalls[0].id, Verdict::Drop);
    stage.bench.assert_tx_drops(stage.a.port, &[(DropReason::ControlPlane, 1)]);

    stage.bench.control.modify(flow, &[stage.to_b()].into()).unwrap();
    stage.send(1, 3..4);
    stage.expect([(1, 3)]);
    stage.resolve(upcalls[2].id, Verdict::Retry);
    stage.expect([(1, 2)]);
    assert_eq!((stage.held(), stage.a.completions()), (0, 4));
}

/// Holds that a packet which misses has an upcall of its own, although one that an action showed waits, too.
#[test]
fn a_miss_does_not_wait_behind_a_packet_that_an_action_showed() {
    let mut stage = Stage::new();
    let flow = stage.install(1, &[Action::Controller]);
    stage.send(1, 0..1);
    let shown = stage.upcall();
    assert!(stage.bench.control.remove(flow));
    stage.send(1, 1..2);
    let missed = stage.upcall();
    assert_eq!(missed.reason, UpcallReason::Miss);
    stage.resolve(missed.id, Verdict::Retry);
    let again = stage.upcall();
    stage.resolve(again.id, Verdict::Execute([stage.to_b()].into()));
    stage.expect([(1, 1)]);
    stage.resolve(shown.id, Verdict::Execute([stage.to_b()].into()));
    stage.expect([(1, 0)]);
}

/// Holds that a copy which goes out at once excludes the wait: such a packet is sent, and shown to nobody.
#[test]
fn output_before_controller_sends_and_does_not_ask() {
    let mut stage = Stage::new();
    stage.install(1, &[stage.to_b(), Action::Controller]);
    assert!(!stage.send(1, 0..1).upcalls);
    stage.expect([(1, 0)]);
    assert_eq!(stage.a.completions(), 1);
}
