//! A packet's way, step by step, on a host without threads: what each entry does and what it counts.

mod support;

use hyper_switch_dataplane::api::Action;
use support::{Bench, frame};

#[test]
fn a_frame_goes_from_one_vm_to_another() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
    bench.connect(a.port, &[Action::Output(b.port)]);
    let sent: Vec<_> = (0..40).map(|n| frame(a.port, b.port, 60 + 100 * n, n as u64)).collect();
    assert!(sent.iter().all(|frame| a.send(frame)));

    let entered = bench.transmit(&a);
    assert_eq!((entered.frames, entered.more, entered.upcalls), (40, false, false));
    assert_eq!(bench.host.take_notified(), [b.port], "one notification for the whole batch");
    assert_eq!(a.completions(), 0, "a buffer is completed after its copy, not before");
    bench.check_ledger();

    assert_eq!(bench.receive(&b).copied, 40);
    assert_eq!(b.received_frames(), sent);
    assert_eq!(a.completions(), 40);
    bench.check_ledger();

    let counters = bench.control.port(b.port).unwrap().counters;
    assert_eq!((counters.rx.copies, counters.rx.notifications, counters.rx.entries), (40, 1, 1));
}
