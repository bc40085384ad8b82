//! VMs that lie in their memory, and VMMs that take it away. As in [`hostile`](super::hostile): the port goes down with
//! the reason, or nothing happens at all; others forward on.

use super::Arena;
use super::vm::{BYTES, GUEST, RING, RING_BYTES, Shape, Vm, ring_at};
use crate::world::eventually;
use hyper_switch::ctl::status::PortState;
use hyper_switch_pvnet::ring::{QueueAddrs, RingFormat};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, ftruncate};
use std::sync::atomic::{AtomicBool, Ordering};

const PACKED: Shape = Shape { format: RingFormat::Packed, ..Shape::SPLIT };

/// The ring that the VM transmits into.
const TX: u32 = 1;

/// Has the switch look at a ring.
fn kick(vm: &Vm, ring: u32) {
    rustix::io::write(&vm.rings[ring as usize].kick, &1_u64.to_ne_bytes()).unwrap();
}

/// Where the parts of the transmit ring are in the VM's memory.
fn tx() -> QueueAddrs {
    QueueAddrs::contiguous(ring_at(TX), RING)
}

/// A descriptor.
fn desc(addr: u64, bytes: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut desc = [0; 16];
    desc[..8].copy_from_slice(&addr.to_le_bytes());
    desc[8..12].copy_from_slice(&bytes.to_le_bytes());
    desc[12..14].copy_from_slice(&flags.to_le_bytes());
    desc[14..].copy_from_slice(&next.to_le_bytes());
    desc
}

/// Offers the chain that begins at descriptor 0 as the first of a split ring.
fn offer_first(vm: &Vm) {
    vm.write(tx().avail + 4, &0_u16.to_le_bytes());
    vm.write(tx().avail + 2, &1_u16.to_le_bytes());
}

/// Holds for lies of all kinds in a split ring.
pub fn lies() {
    type Write = fn(&Vm);
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let lies: [(&str, &str, Write); 7] = [
        ("an index that jumps", "transmit ring: available index jumped by 1000", |vm| {
            vm.write(tx().avail + 2, &1000_u16.to_le_bytes());
        }),
        ("a descriptor that is none", "transmit ring: descriptor 64 of a table of 64", |vm| {
            vm.write(tx().avail + 4, &RING.to_le_bytes());
            vm.write(tx().avail + 2, &1_u16.to_le_bytes());
        }),
        ("a buffer outside memory", "transmit ring: ", |vm| {
            vm.write(tx().desc, &desc(GUEST + BYTES - 10, 100, 0, 0));
            offer_first(vm);
        }),
        ("a chain without end", "transmit ring: descriptor chain has more than", |vm| {
            vm.write(tx().desc, &desc(GUEST, 100, NEXT, 0));
            offer_first(vm);
        }),
        ("a chain to be written", "transmit ring: a descriptor has the wrong direction", |vm| {
            vm.write(tx().desc, &desc(GUEST, 100, WRITE, 0));
            offer_first(vm);
        }),
        ("a table in a table", "transmit ring: an indirect descriptor where none may be", |vm| {
            let table = ring_at(TX) + RING_BYTES / 2;
            vm.write(tx().desc, &desc(GUEST + table, 32, INDIRECT, 0));
            vm.write(table, &desc(GUEST, 16, INDIRECT, 0));
            offer_first(vm);
        }),
        ("a table of odd bytes", "transmit ring: an indirect table of 17 bytes", |vm| {
            vm.write(tx().desc, &desc(GUEST, 17, INDIRECT, 0));
            offer_first(vm);
        }),
    ];
    let mut arena = Arena::new();
    for (what, reason, write) in lies {
        let (liar, front_end) = Vm::start(3, Shape::SPLIT, &arena.socket());
        write(&liar);
        kick(&liar, TX);
        arena.is_down(what, reason);
        drop(front_end);
        arena.is_unharmed(what);
    }
    arena.stop();
}

/// Holds: a driver that starts anew after its ring was broken finds its port again, on the same connection.
pub fn driver_resets_after_a_lie() {
    let mut arena = Arena::new();
    let (mut liar, front_end) = Vm::start(3, Shape::SPLIT, &arena.socket());
    liar.write(tx().avail + 2, &1000_u16.to_le_bytes());
    kick(&liar, TX);
    arena.is_down("an index that jumps", "available index jumped");
    liar.stop(&front_end);
    let mut honest = Vm::new(3, Shape::SPLIT);
    honest.attach(&front_end);
    honest.talk_to(&mut arena.peer.0, 100);
    arena.peer.0.talk_to(&mut honest, 100);
    arena.stream.goes_on();
    arena.stop();
}

/// A generator of numbers that look random (xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Runs `also` on a thread, again and again, until `work` is done.
fn while_also<T>(mut also: impl FnMut() + Send, work: impl FnOnce() -> T) -> T {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                also();
            }
        });
        // Also when it panics.
        let _end = End(&ended);
        work()
    })
}

/// Holds: whatever a VM writes to its rings and tables while they are read, in either format, all the time and with
/// kicks, it harms itself alone.
pub fn scribbles() {
    let mut arena = Arena::new();
    for round in 0..12_u64 {
        let shape = if round % 2 == 0 { Shape::SPLIT } else { PACKED };
        let (mut vm, front_end) = Vm::start(3, shape, &arena.socket());
        // Some that are true, so that there is something to be changed.
        (0..8).for_each(|number| vm.send(0, &vm.frame(4, number, 200)));
        let (file, kicks) = (&vm.file, [&vm.rings[0].kick, &vm.rings[1].kick]);
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15 ^ round);
        let scribble = || {
            let at = noise.next() % (2 * RING_BYTES);
            // Small numbers are more often taken for true.
            let word = (noise.next() as u16) >> (noise.next() % 16);
            rustix::io::pwrite(file, &word.to_le_bytes(), at & !1).unwrap();
            if noise.next().is_multiple_of(16) {
                rustix::io::write(kicks[at as usize & 1], &1_u64.to_ne_bytes()).unwrap();
            }
        };
        while_also(scribble, || arena.stream.goes_on());
        drop(front_end);
        arena.is_unharmed(&format!("scribbles, round {round}"));
    }
    arena.stop();
}

/// Holds: kicks without end hold up nobody, and the port that they come from stays up.
pub fn kicks_in_a_storm() {
    let mut arena = Arena::new();
    for shape in [Shape::SPLIT, PACKED] {
        let (mut vm, _front_end) = Vm::start(3, shape, &arena.socket());
        let kicks = [0, 1].map(|ring: usize| rustix::io::dup(&vm.rings[ring].kick).unwrap());
        let storm = || {
            for kick in &kicks {
                rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
            }
        };
        while_also(storm, || {
            arena.stream.goes_on();
            vm.talk_to(&mut arena.peer.0, 100);
        });
        assert_eq!(arena.daemon.port(super::VICTIM).state, PortState::Up);
    }
    arena.stop();
}

/// Holds: eventfds that are full, and that the VMM makes block after it handed them over, hold up nobody: neither
/// whoever drains a kick that was never given, nor whoever signals a call that has no room.
pub fn eventfds_that_block() {
    let mut arena = Arena::new();
    for shape in [Shape::SPLIT, PACKED] {
        let (mut vm, front_end) = Vm::start(3, shape, &arena.socket());
        for ring in &vm.rings {
            rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes())
                .or_else(|_| {
                    // It has been called before.
                    rustix::io::read(&ring.call, &mut [0; 8])?;
                    rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes())
                })
                .unwrap();
            for fd in [&ring.call, &ring.kick] {
                let flags = fcntl_getfl(fd).unwrap();
                fcntl_setfl(fd, flags & !OFlags::NONBLOCK).unwrap();
            }
        }
        // The same kicks once more have the switch look at rings that nobody kicked.
        for message in vm.ring_messages(0).into_iter().chain(vm.ring_messages(1)) {
            if message.request == super::front_end::SET_VRING_KICK {
                let kick = &message.fds[0];
                front_end.tell(&message);
                let _ = front_end.ask_number(super::front_end::GET_FEATURES);
                let flags = fcntl_getfl(kick).unwrap();
                fcntl_setfl(kick, flags & !OFlags::NONBLOCK).unwrap();
            }
        }
        // Interrupts are wanted, for what is sent and for what is received.
        (0..8).for_each(|number| vm.send(0, &vm.frame(4, number, 60)));
        let _ = vm.rings[0].queue.enable_interrupts();
        let _ = vm.rings[1].queue.enable_interrupts();
        vm.send(0, &vm.frame(4, 8, 60));
        let frame = arena.peer.0.frame(3, 0, 60);
        (0..8).for_each(|_| arena.peer.0.send(0, &frame));
        drop(front_end);
        arena.is_unharmed("eventfds that block");
    }
    arena.stop();
}

/// Holds: memory whose file is truncated while frames are copied from it and to it costs its own port alone.
pub fn truncated_memory() {
    let mut arena = Arena::new();
    for (shape, left) in [(Shape::SPLIT, 0), (PACKED, 0), (Shape::SPLIT, 0x10_0000), (PACKED, 0x10_0000)] {
        let what = format!("{:?} memory cut to {left:#x} bytes", shape.format);
        let (mut vm, _front_end) = Vm::start(3, shape, &arena.socket());
        vm.talk_to(&mut arena.peer.0, 32);
        arena.peer.0.talk_to(&mut vm, 32);
        // Chains are on offer in both directions when it goes.
        (0..8).for_each(|number| {
            let frame = vm.frame(4, number, 1000);
            vm.send(0, &frame);
        });
        ftruncate(&vm.file, left).unwrap();
        let daemon = &arena.daemon;
        let (peer, kicks) = (&mut arena.peer.0, [&vm.rings[0].kick, &vm.rings[1].kick]);
        eventually(&format!("{what} is noticed"), || {
            for kick in kicks {
                rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
            }
            peer.send(0, &peer.frame(3, 0, 60));
            matches!(daemon.port(super::VICTIM).state, PortState::Down { .. }).then_some(())
        });
        arena.recovers(&what, "a file with memory was truncated");
    }
    arena.stop();
}
