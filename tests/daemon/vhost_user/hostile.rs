//! VMMs that lie or misbehave on the socket. Each time the port goes down with the reason, two others' stream goes on
//! without loss, and an honest VMM finds the port as if nothing had been.

use super::Arena;
use super::front_end::{
    ADD_MEM_REG, FrontEnd, GET_FEATURES, GET_VRING_BASE, Message, REM_MEM_REG, SET_FEATURES, SET_INFLIGHT_FD,
    SET_MEM_TABLE, SET_OWNER, SET_PROTOCOL_FEATURES, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE,
    SET_VRING_KICK, SET_VRING_NUM,
};
use super::vm::{BYTES, GUEST, RING, Shape, USER, Vm, addr_message, event, memory};
use crate::world::{DEADLINE, eventually};
use std::time::Instant;

/// What is sent, to a port where a VM runs or to one where nothing was said yet, and the reason that is given for the
/// end of the session.
struct Lie {
    what: &'static str,
    to_running: bool,
    sent: Vec<Message>,
    reason: &'static str,
}

fn lie(what: &'static str, to_running: bool, sent: Vec<Message>, reason: &'static str) -> Lie {
    Lie { what, to_running, sent, reason }
}

/// A message with one region at these addresses, in `file`.
fn region(request: u32, [guest, bytes, user, offset]: [u64; 4]) -> Message {
    let first = u64::from(request == SET_MEM_TABLE);
    Message::numbers(request, &[first, guest, bytes, user, offset])
}

/// Two regions in one table.
fn two_regions(one: [u64; 4], two: [u64; 4]) -> Message {
    let file = memory(0x2000);
    let numbers = [&[2], &one[..], &two[..]].concat();
    Message::numbers(SET_MEM_TABLE, &numbers).with(&file).with(&file)
}

fn header(request: u32, flags: u32, size: u32) -> Message {
    Message { request, flags, size, payload: Vec::new(), fds: Vec::new() }
}

/// A handshake of which one message is another.
fn instead(request: u32, index: u32, other: Message) -> Vec<Message> {
    let mut other = Some(other);
    let mut messages = Vm::new(3, Shape::SPLIT).handshake();
    for message in &mut messages {
        let about = message.payload.first().copied().unwrap_or_default();
        if message.request == request && u32::from(about) == index {
            *message = other.take().expect("the handshake has such a message once");
        }
    }
    assert!(other.is_none(), "the handshake has such a message");
    messages
}

fn with_fds(mut message: Message, fds: usize) -> Message {
    message.fds.extend((0..fds).map(|_| event()));
    message
}

fn lies() -> Vec<Lie> {
    let file = || memory(0x2000);
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    vec![
        // Out of order.
        lie(
            "features of rings that run",
            true,
            vec![Message::numbers(SET_FEATURES, &[1 << 32])],
            "features were changed while rings run",
        ),
        lie(
            "the size of a ring that runs",
            true,
            vec![Message::state(SET_VRING_NUM, 0, 128)],
            "while it runs",
        ),
        lie("the place of a ring that runs", true, vec![addr_message(1, USER, RING)], "while it runs"),
        lie(
            "the base of a ring that runs",
            true,
            vec![Message::state(SET_VRING_BASE, 1, 3)],
            "while it runs",
        ),
        lie(
            "the table without the rings",
            true,
            vec![region(SET_MEM_TABLE, [0, 0x2000, 0, 0]).with(file())],
            "is not in memory",
        ),
        lie(
            "removal of the rings",
            true,
            vec![region(REM_MEM_REG, [GUEST, BYTES, USER, 0])],
            "is not in memory",
        ),
        // Sizes.
        lie("half a number", false, vec![Message::new(SET_FEATURES, vec![0; 4])], "payload of 4 bytes"),
        lie("a payload of 4 GiB", false, vec![header(SET_FEATURES, 1, u32::MAX)], "payload of 4294967295"),
        lie("a payload for nothing", false, vec![Message::new(SET_OWNER, vec![0; 8])], "payload of 8 bytes"),
        lie("a table of 9", false, vec![Message::numbers(SET_MEM_TABLE, &[9])], "table of 9"),
        lie("another version", false, vec![header(GET_FEATURES, 2, 0)], "not of version 1"),
        lie("a reply", false, vec![header(GET_FEATURES, 5, 0)], "a reply to nothing"),
        lie("an unknown request", false, vec![header(0x4242, 1, 0)], "request 16962 is not known"),
        // File descriptors.
        lie("no memory", false, vec![region(SET_MEM_TABLE, [0, 0x1000, 0, 0])], "0 file descriptors"),
        lie("no call", false, vec![Message::numbers(SET_VRING_CALL, &[0])], "0 file descriptors"),
        lie("no kick at all", false, vec![Message::numbers(SET_VRING_KICK, &[1 << 8])], "has no kick"),
        lie("one too many", false, vec![with_fds(header(GET_FEATURES, 1, 0), 1)], "1 file descriptors"),
        lie(
            "far too many",
            false,
            vec![with_fds(header(GET_FEATURES, 1, 0), 9)],
            "more than 8 file descriptors",
        ),
        lie(
            "a pipe for a kick",
            false,
            vec![Message::numbers(SET_VRING_KICK, &[0]).with(&pipe)],
            "no eventfd",
        ),
        // Memory.
        lie(
            "a pipe for memory",
            false,
            vec![region(ADD_MEM_REG, [0, 1, 0, 0]).with(&pipe)],
            "no regular file",
        ),
        lie("no bytes", false, vec![region(ADD_MEM_REG, [0, 0, 0, 0]).with(file())], "no bytes"),
        lie(
            "beyond the file",
            false,
            vec![region(ADD_MEM_REG, [0, 0x2000, 0, 1]).with(file())],
            "of a file of 0x2000 bytes",
        ),
        lie(
            "an offset that wraps",
            false,
            vec![region(ADD_MEM_REG, [0, 0x1000, 0, u64::MAX]).with(file())],
            "wraps",
        ),
        lie(
            "guest addresses that wrap",
            false,
            vec![region(ADD_MEM_REG, [u64::MAX, 0x1000, 0, 0]).with(file())],
            "wraps",
        ),
        lie(
            "user addresses that wrap",
            false,
            vec![region(ADD_MEM_REG, [0, 0x1000, u64::MAX, 0]).with(file())],
            "wrap at user address",
        ),
        lie(
            "guest addresses that overlap",
            false,
            vec![two_regions([0, 0x1000, 0, 0], [0xfff, 0x1000, 0x9000, 0])],
            "overlap",
        ),
        lie(
            "user addresses that overlap",
            false,
            vec![two_regions([0, 0x1000, 0, 0], [0x9000, 0x1000, 0xfff, 0])],
            "overlap",
        ),
        lie(
            "more memory than a machine has",
            false,
            vec![region(ADD_MEM_REG, [0, 1 << 46, 0, 0]).with(memory(1 << 46))],
            "more than",
        ),
        // Rings.
        lie("a ring beyond the last", false, vec![Message::state(SET_VRING_NUM, 4, 64)], "queue 4 of 4"),
        lie("a ring of nothing", false, vec![Message::state(SET_VRING_NUM, 0, 0)], "a ring of 0 entries"),
        lie(
            "a ring too large",
            false,
            vec![Message::state(SET_VRING_NUM, 0, 65_536)],
            "a ring of 65536 entries",
        ),
        lie(
            "a ring of 100",
            false,
            instead(SET_VRING_NUM, 1, Message::state(SET_VRING_NUM, 1, 100)),
            "a ring of 100 entries",
        ),
        lie(
            "a ring nowhere",
            false,
            instead(super::front_end::SET_VRING_ADDR, 1, addr_message(1, 0x1000, RING)),
            "is not in memory",
        ),
        lie(
            "a ring across the end",
            false,
            instead(super::front_end::SET_VRING_ADDR, 1, addr_message(1, USER + BYTES - 0x400, RING)),
            "is not in memory",
        ),
        lie(
            "a ring askew",
            false,
            instead(super::front_end::SET_VRING_ADDR, 1, addr_message(1, USER + 0x2001, RING)),
            "is not aligned",
        ),
        lie(
            "a base beyond all",
            false,
            instead(SET_VRING_BASE, 1, Message::state(SET_VRING_BASE, 1, 0x1_0000)),
            "a base of 0x10000",
        ),
        lie(
            "half enabled",
            false,
            vec![Message::state(SET_VRING_ENABLE, 0, 2)],
            "2 neither enables nor disables",
        ),
        lie("the base of no ring", false, vec![Message::state(GET_VRING_BASE, 99, 0)], "queue 99 of 4"),
        // Features and records of chains in flight.
        lie("features not offered", false, vec![Message::numbers(SET_FEATURES, &[1 << 63])], "not offered"),
        lie("protocol", false, vec![Message::numbers(SET_PROTOCOL_FEATURES, &[1 << 63])], "not offered"),
        lie(
            "a record of no queues",
            false,
            vec![Message::numbers(SET_INFLIGHT_FD, &[0x1000, 0, 0]).with(file())],
            "an in-flight region of 0 queues",
        ),
        lie(
            "a record beyond its file",
            false,
            vec![Message::numbers(SET_INFLIGHT_FD, &[0x10_0000, 0, 2 | 64 << 16]).with(file())],
            "of a file of 0x2000 bytes",
        ),
    ]
}

/// Holds for every lie that one message can be.
pub fn lies_are_told_apart() {
    let mut arena = Arena::new();
    for Lie { what, to_running, sent, reason } in lies() {
        let liar = if to_running {
            Vm::start(3, Shape::SPLIT, &arena.socket()).1
        } else {
            FrontEnd::connect(&arena.socket())
        };
        // It may be hung up on before it has said everything.
        let _ = sent.iter().try_for_each(|message| liar.try_tell(message));
        liar.wait_until_hung_up();
        arena.recovers(what, reason);
    }
    arena.stop();
}

/// Holds: a VMM that asks and never reads the answers is hung up on, and nobody waits for it.
pub fn deaf() {
    let mut arena = Arena::new();
    let deaf = FrontEnd::connect(&arena.socket());
    let question = Message::new(GET_FEATURES, Vec::new());
    let started = Instant::now();
    while deaf.try_tell(&question).is_ok() {
        assert!(started.elapsed() < DEADLINE, "answers are kept for ever");
    }
    arena.recovers("a VMM that does not read", "answers that the front-end does not read");
    arena.stop();
}

/// Holds: a VMM may go at any byte of its handshake.
pub fn gone_at_any_byte() {
    let mut arena = Arena::new();
    let vm = Vm::new(3, Shape::SPLIT);
    let messages = vm.handshake();
    for whole in 0..=messages.len() {
        let part = messages.get(whole).map_or(0, |message| message.bytes().len());
        // Between two messages, and at every byte of one of each kind.
        let is_new = messages
            .get(whole)
            .is_some_and(|message| !messages[..whole].iter().any(|before| before.request == message.request));
        for bytes in if is_new { 0..part.max(1) } else { 0..1 } {
            let front_end = FrontEnd::connect(&arena.socket());
            messages[..whole].iter().for_each(|message| front_end.tell(message));
            if bytes > 0 {
                front_end.send(&messages[whole].bytes()[..bytes], &messages[whole].fds).unwrap();
            }
        }
    }
    let cut = FrontEnd::connect(&arena.socket());
    cut.send(&messages[0].bytes()[..7], &[]).unwrap();
    drop(cut);
    arena.recovers("a VMM that goes", "7 bytes into a message");
    arena.stop();
}

/// Holds: a VMM that says half of a message, or nothing, holds up nobody but its own port.
pub fn silent() {
    let mut arena = Arena::new();
    let silent = FrontEnd::connect(&arena.socket());
    silent.send(&[1], &[]).unwrap();
    arena.stream.goes_on();
    let daemon = &arena.daemon;
    eventually("the daemon says what it waits for", || {
        let json = format!("{:?}", daemon.port(super::VICTIM).state);
        json.contains("waiting for the VM's driver").then_some(())
    });
    drop(silent);
    arena.recovers("a silent VMM", "1 bytes into a message");
    arena.stop();
}
