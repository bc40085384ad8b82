//! What changes while frames flow: memory, and which queue pairs are enabled.

use super::Arena;
use super::front_end::{ADD_MEM_REG, FrontEnd, Message, REM_MEM_REG, SET_VRING_ENABLE};
use super::vm::{BYTES, GUEST, Shape, USER, Vm, memory, number_of};
use crate::world::{Daemon, Place, eventually};
use hyper_switch_pvnet::ring::RingFormat;

/// Where memory is added.
const MORE: u64 = GUEST + 2 * BYTES;

fn more(request: u32) -> Message {
    Message::numbers(request, &[0, MORE, 0x10_0000, USER + 2 * BYTES, 0])
}

/// Holds: memory can be added and removed while frames flow and some are in flight; frames leave from memory that was
/// added, and none is lost when the map changes under it.
pub fn memory_comes_and_goes() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut arena = Arena::new();
        let shape = Shape { format, ..Shape::SPLIT };
        let (mut vm, front_end) = Vm::start(3, shape, &arena.socket());
        let peer = &mut arena.peer.0;
        for round in 0..50 {
            // In flight while the map changes: they come, or wait for their receiver.
            (0..16).for_each(|number| vm.send(0, &vm.frame(4, number, 300)));
            let file = memory(0x10_0000);
            front_end.order(more(ADD_MEM_REG).with(&file));
            let frame = vm.frame(4, 16, 400);
            rustix::io::pwrite(&file, &[&[0; 12], &frame[..]].concat(), 0x8000).unwrap();
            let ring = &mut vm.rings[1].queue;
            let chain = [(MORE + 0x8000, 12 + frame.len() as u32)];
            eventually("a descriptor is free", || ring.add(&chain, &[], u16::MAX).ok());
            if ring.publish() {
                rustix::io::write(&vm.rings[1].kick, &1_u64.to_ne_bytes()).unwrap();
            }
            let came = peer.await_frames(17, |frame| number_of(frame, 3, 4).is_some());
            assert!(came.iter().filter_map(|frame| number_of(frame, 3, 4)).eq(0..17), "round {round}");
            assert_eq!(came[16], frame, "round {round}");
            eventually("all came back", || {
                let queue = &mut vm.rings[1];
                while let Some(used) = queue.queue.pop_used().unwrap() {
                    if used.token != u16::MAX {
                        queue.give(used.token);
                    }
                }
                (queue.queue.outstanding() == 0).then_some(())
            });
            front_end.order(more(REM_MEM_REG));
            peer.talk_to(&mut vm, 4);
        }
        arena.stream.goes_on();
        arena.stop();
    }
}

/// Holds: with pairs enabled and disabled all the time, what is sent to a VM arrives at one that is enabled, and none is
/// lost as long as there is one.
pub fn pairs_are_enabled_and_disabled() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let place = Place::without_network();
        let sockets = [1, 2].map(|n| place.folder.path().join(format!("vm{n}")));
        let ports = sockets.each_ref().map(|socket| format!("vhost-user:{},queues=4", socket.display()));
        let daemon = Daemon::start(&place, &ports.each_ref().map(String::as_str));
        let shape = Shape { format, pairs: 4, ..Shape::SPLIT };
        let (mut left, _stays) = Vm::start(1, shape, &sockets[0]);
        let (mut right, front_end) = Vm::start(2, shape, &sockets[1]);
        let enable = |front_end: &FrontEnd, pair: u32, enabled| {
            for ring in [2 * pair, 2 * pair + 1] {
                front_end.order(Message::state(SET_VRING_ENABLE, ring, enabled));
            }
        };
        for round in 0..40 {
            // One of them stays.
            let pair = 1 + round % 3;
            (0..16).for_each(|number| left.send(number as u16 % 4, &left.frame(2, number, 100)));
            enable(&front_end, pair, 0);
            let wanted = |frame: &[u8]| number_of(frame, 1, 2).is_some();
            assert_eq!(right.await_frames(16, wanted).len(), 16);
            left.talk_to(&mut right, 16);
            enable(&front_end, pair, 1);
        }
        right.talk_to(&mut left, 64);
        for name in ["vm1", "vm2"] {
            let port = daemon.port(name);
            assert_eq!((port.tx.drops.total(), port.rx.drops.total()), (0, 0), "{port:?}");
        }
        daemon.stop();
    }
}
