//! The exchange of a live port's memory: the same pages mapped anew elsewhere, while frames of the old map are in flight.
//! The old one is there as long as it is needed, and no longer.
#![cfg(not(loom))]

mod support;

use hyper_switch_dataplane::api::{Action, PortId};
use hyper_switch_dataplane::{ExchangeError, Map};
use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::QueueLayout;
use std::sync::{Arc, Weak};
use support::device::ScriptedDevice;
use support::pages::{Mapped, Pages};
use support::{Bench, TestVm, VmConfig, frame};

/// A VM with a pair of rings in memory that the switch has other maps of than the VM itself.
struct Guest {
    vm: TestVm,
    pages: Pages,
}

impl Guest {
    fn new(bench: &mut Bench, config: VmConfig) -> Guest {
        let mut pages = None;
        let mut vm = [TestVm::new(config, |bytes| pages.insert(Pages::new(bytes)).map().0)];
        let port = bench.control.reserve("guest".into(), Default::default()).unwrap();
        TestVm::connect(&mut bench.control, port, &mut vm);
        let [vm] = vm;
        let mut guest = Guest { vm, pages: pages.unwrap() };
        // From the first exchange on the switch has a map of its own.
        drop(guest.exchange(bench));
        assert!(bench.reap());
        guest
    }

    /// Exchanges the switch's map for a new one, and answers what tells whether that is still there.
    fn exchange(&mut self, bench: &mut Bench) -> Weak<Mapped> {
        let (memory, there) = self.pages.map();
        let memory = Arc::new(memory);
        let map = self.vm.map_in(memory);
        let Bench { control, cx, host, .. } = bench;
        control.exchange(cx, host, self.vm.port, &[map]).unwrap();
        there
    }
}

fn is_there(map: &Weak<Mapped>) -> bool {
    map.strong_count() > 0
}

#[test]
fn frames_of_the_old_map_arrive_and_then_it_is_freed() {
    let mut bench = Bench::new();
    let mut a = Guest::new(&mut bench, VmConfig::default());
    let mut b = bench.vm("b");
    bench.connect(a.vm.port, &[Action::Output(b.port)]);
    let first = a.exchange(&mut bench);
    assert!(bench.reap());
    let sent: Vec<_> = (0..4).map(|number| frame(a.vm.port, b.port, 1000, number)).collect();
    for (number, frame) in sent.iter().enumerate() {
        assert!(a.vm.send(frame));
        bench.transmit(&a.vm);
        if number == 1 {
            let second = a.exchange(&mut bench);
            assert!(is_there(&second) && is_there(&first), "two frames are in the old map");
            assert!(bench.control.is_exchanging(a.vm.port) && !bench.reap());
        }
    }
    assert!(!bench.reap() && is_there(&first));
    bench.receive(&b);
    assert_eq!(b.received_frames(), sent);
    assert!(bench.reap() && !is_there(&first) && !bench.control.is_exchanging(a.vm.port));
    assert_eq!(a.vm.completions(), 4);
    bench.check_ledger();
}

/// Holds that the old map goes although there is never a moment without a frame in flight.
#[test]
fn frames_of_the_new_map_do_not_keep_the_old_one() {
    let mut bench = Bench::new();
    let mut a = Guest::new(&mut bench, VmConfig::default());
    let b = bench.vm_with("b", VmConfig { posted: 1, ..VmConfig::default() });
    bench.connect(a.vm.port, &[Action::Output(b.port)]);
    let first = a.exchange(&mut bench);
    assert!(bench.reap());
    for number in 0..4 {
        assert!(a.vm.send(&frame(a.vm.port, b.port, 1000, number)));
        bench.transmit(&a.vm);
        if number == 0 {
            a.exchange(&mut bench);
        }
    }
    assert!(!bench.reap() && is_there(&first));
    assert_eq!(bench.receive(&b).copied, 1);
    assert!(bench.reap() && !is_there(&first));
    assert_eq!(bench.control.port(a.vm.port).unwrap().in_flight, 3);
}

/// Holds that a receiver finds its buffers in the new map, that the map that is gone is used no more, and that an exchange
/// may begin before the one before is over.
#[test]
fn a_receiver_goes_on_in_the_new_map() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.vm("a"), Guest::new(&mut bench, VmConfig::default()));
    bench.connect(a.port, &[Action::Output(b.vm.port)]);
    bench.connect(b.vm.port, &[Action::Output(a.port)]);
    for number in 0..50 {
        let sent = frame(a.port, b.vm.port, 2000, number);
        assert!(a.send(&sent) && b.vm.send(&sent));
        bench.transmit(&a);
        bench.transmit(&b.vm);
        let maps = [b.exchange(&mut bench), b.exchange(&mut bench)];
        assert!(maps.iter().all(is_there));
        assert!(!bench.reap(), "the frame that it sent is in an older map than both");
        bench.receive(&b.vm);
        bench.receive(&a);
        assert_eq!((b.vm.received_frames(), a.received_frames()), (vec![sent.clone()], vec![sent]));
        assert!(bench.reap());
        assert_eq!(maps.map(|map| is_there(&map)), [false, true]);
        assert_eq!((a.completions(), b.vm.completions()), (1, 1));
    }
    bench.check_ledger();
}

#[test]
fn a_port_that_goes_meanwhile_frees_all_maps() {
    let mut bench = Bench::new();
    let (mut a, b) = (Guest::new(&mut bench, VmConfig::default()), bench.vm("b"));
    bench.connect(a.vm.port, &[Action::Output(b.port)]);
    let mut maps = vec![a.exchange(&mut bench)];
    assert!(a.vm.send(&frame(a.vm.port, b.port, 1000, 0)));
    bench.transmit(&a.vm);
    maps.extend((0..3).map(|_| a.exchange(&mut bench)));
    assert!(bench.control.disconnect(a.vm.port));
    assert!(!bench.reap() && is_there(&maps[0]), "the frame is still to be copied");
    bench.receive(&b);
    assert!((0..4).any(|_| bench.reap()));
    assert!(!maps.iter().any(is_there));
}

#[test]
fn an_exchange_that_does_not_fit_is_refused() {
    let mut bench = Bench::new();
    let vm = bench.lanes("vm", 2);
    let device = ScriptedDevice::new(hyper_switch_pvnet::header::Offloads::ALL).attach(&mut bench, "device");
    let memory = Arc::new(GuestMemory::anonymous(1 << 20));
    let ring = |slots, addrs| QueueLayout::new(&memory, slots, addrs).unwrap();
    let slots = vm[0].config.slots;
    let map = vm[0].map_in(memory.clone());
    let small = Map { rx: ring(slots / 2, vm[0].rx_addrs), ..map.clone() };
    let mut exchange = |port, maps: &[Map]| {
        let Bench { control, cx, host, .. } = &mut bench;
        control.exchange(cx, host, port, maps)
    };
    let port = vm[0].port;
    assert_eq!(
        exchange(port, std::slice::from_ref(&map)),
        Err(ExchangeError::QueuePairs { maps: 1, pairs: 2 })
    );
    assert_eq!(exchange(port, &[map.clone(), small]), Err(ExchangeError::RingSize(1)));
    assert_eq!(exchange(device, std::slice::from_ref(&map)), Err(ExchangeError::NoVm(device)));
    assert_eq!(exchange(PortId(9), &[map]), Err(ExchangeError::NoVm(PortId(9))));
    assert!(bench.reap());
}
