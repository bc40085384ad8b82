//! Honest VMs.

use super::front_end::FrontEnd;
use super::vm::{Shape, Vm};
use crate::world::{Daemon, Place, eventually};
use hyper_switch::ctl::status::{PortState, PortStatus};
use hyper_switch_pvnet::ring::RingFormat;

/// A daemon with two ports of so many queue pairs, and a VM at each.
fn two_vms(place: &Place, shapes: [Shape; 2]) -> (Daemon, [(Vm, FrontEnd); 2]) {
    let socket = |n: usize| place.folder.path().join(format!("vm{n}"));
    let ports = [0, 1].map(|n| format!("vhost-user:{},queues={}", socket(n).display(), shapes[n].pairs));
    let daemon = Daemon::start(place, &ports.each_ref().map(String::as_str));
    let vms = [0, 1].map(|n| Vm::start(n as u8 + 1, shapes[n], &socket(n)));
    (daemon, vms)
}

/// Holds: two VMs exchange frames both ways in every kind of ring, small ones and such as take several buffers, by one
/// queue pair and by several; each arrives once and unchanged, and what the daemon counts is what they sent.
pub fn talk() {
    const FRAMES: u64 = 200;
    let shape = |bits: u32, format, pairs| Shape {
        format,
        event_idx: bits & 1 != 0,
        indirect: bits & 2 != 0,
        mergeable: bits & 4 != 0,
        pairs,
    };
    for bits in 0..8 {
        let left = shape(bits, RingFormat::Split, 1 + bits as u16 % 3);
        let right = shape(bits ^ bits >> 1, RingFormat::Packed, 1 + bits as u16 / 2);
        println!("{left:?} and {right:?}");
        let place = Place::without_network();
        let (daemon, [(mut left, _one), (mut right, _two)]) = two_vms(&place, [left, right]);
        left.talk_to(&mut right, FRAMES);
        right.talk_to(&mut left, FRAMES);

        let [one, two] = eventually("nothing is under way", || {
            let ports = <[PortStatus; 2]>::try_from(daemon.ports()).unwrap();
            ports.iter().all(|port| port.in_flight + port.queued == 0).then_some(ports)
        });
        for (port, vm) in [(&one, &left), (&two, &right)] {
            let vmm = port.vmm.clone().expect("a VMM's status");
            assert_eq!((vmm.present, vmm.sessions, vmm.faults, vmm.last_end), (true, 1, 0, None));
            let rings = vmm.rings.expect("rings");
            assert_eq!(rings.queue_pairs, vm.shape.pairs);
            assert_eq!(format!("{:?}", rings.format), format!("{:?}", vm.shape.format));
            let no_offloads: [String; 0] = [];
            assert_eq!((&rings.sends[..], &rings.receives[..]), (&no_offloads[..], &no_offloads[..]));
        }
        for (from, to) in [(&one, &two), (&two, &one)] {
            assert_eq!((&from.state, from.kind.as_str()), (&PortState::Up, "vhost-user"));
            assert_eq!((from.tx.frames, from.tx.bytes), (to.rx.frames, to.rx.bytes));
            assert_eq!((from.tx.frames, from.tx.drops.total() + to.rx.drops.total()), (FRAMES, 0));
        }
        daemon.stop();
    }
}

/// Holds: with two VMs connected that have nothing to say, and after they had much to say, the daemon takes no
/// processor time.
pub fn idle() {
    let place = Place::without_network();
    let (daemon, [(mut left, _one), (mut right, _two)]) = two_vms(&place, [Shape::SPLIT; 2]);
    daemon.wait_until_idle();
    left.talk_to(&mut right, 1000);
    daemon.wait_until_idle();
    daemon.stop();
}
