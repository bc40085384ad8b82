//! The two programs, in BPF's instructions (the kernel's `Documentation/bpf/standardization/instruction-set.rst`).
//!
//! Registers: r6 is the tracepoint's record; r7 a thread's id, r8 its code and r9 its core, shifted to their
//! places in the [word](super::word); r1 to r5 are arguments, which a call destroys, and r0 its answer; r10 is
//! the stack's end, with a call's key below it.

use super::tracepoint::{Field, FormatError, Tracepoint};
use super::word::{BLOCKED, CORE_SHIFT, EXITED, PREEMPTED, RUNNING, TID_SHIFT};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A register.
#[derive(Clone, Copy)]
struct Reg(u8);

const R0: Reg = Reg(0);
const R1: Reg = Reg(1);
const R2: Reg = Reg(2);
const R6: Reg = Reg(6);
const R7: Reg = Reg(7);
const R8: Reg = Reg(8);
const R9: Reg = Reg(9);
const R10: Reg = Reg(10);

/// Where a call's key lies, from the stack's end.
const KEY: i16 = -4;

/// `bpf_map_lookup_elem`.
const LOOKUP: i32 = 1;
/// `bpf_get_smp_processor_id`.
const PROCESSOR: i32 = 8;

/// Bits of `prev_state` with which a thread waits, of whatever kind: the letters S, D, T, t, X, Z, P and I. A
/// ready thread has none of them; one that was preempted has a higher one (`TASK_REPORT_MAX`, Linux 4.14).
const WAITS: i32 = 0xff;
/// Those of X and Z, with which it has ended.
const ENDED: i32 = 0x30;

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Insn {
    code: u8,
    /// The destination in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Insn {
    const fn new(code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) -> Insn {
        Insn { code, registers: to.0 | from.0 << 4, offset, immediate }
    }
}

/// The size of a load or store, as its operation code has it.
const WORD: u8 = 0x00;
const DOUBLE: u8 = 0x18;

const fn load(size: u8, to: Reg, from: Reg, offset: i16) -> Insn {
    Insn::new(0x61 | size, to, from, offset, 0)
}

const fn store(size: u8, to: Reg, offset: i16, from: Reg) -> Insn {
    Insn::new(0x63 | size, to, from, offset, 0)
}

const fn copy(to: Reg, from: Reg) -> Insn {
    Insn::new(0xbf, to, from, 0, 0)
}

const fn set(to: Reg, value: i32) -> Insn {
    Insn::new(0xb7, to, R0, 0, value)
}

const fn add(to: Reg, value: i32) -> Insn {
    Insn::new(0x07, to, R0, 0, value)
}

const fn and(to: Reg, value: i32) -> Insn {
    Insn::new(0x57, to, R0, 0, value)
}

const fn or(to: Reg, from: Reg) -> Insn {
    Insn::new(0x4f, to, from, 0, 0)
}

const fn xor(to: Reg, value: i32) -> Insn {
    Insn::new(0xa7, to, R0, 0, value)
}

const fn shift_left(to: Reg, bits: u8) -> Insn {
    Insn::new(0x67, to, R0, 0, bits as i32)
}

const fn call(function: i32) -> Insn {
    Insn::new(0x85, R0, R0, 0, function)
}

const EXIT: Insn = Insn::new(0x95, R0, R0, 0, 0);

/// A condition of a jump, against an immediate value.
#[derive(Clone, Copy)]
#[repr(u8)]
enum If {
    Equal = 0x15,
    NotEqual = 0x55,
    AnyOf = 0x45,
}

/// `body`, which is passed over if `register` meets the condition.
fn unless(condition: If, register: Reg, value: i32, body: &[Insn]) -> Vec<Insn> {
    let jump = Insn::new(condition as u8, register, R0, body.len() as i16, value);
    [&[jump], body].concat()
}

/// The maps that both programs use: thread ids to slots, slots to words.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    pub(super) tids: BorrowedFd<'a>,
    pub(super) words: BorrowedFd<'a>,
}

/// Loads a field of the record.
fn load_field(to: Reg, field: Field) -> Insn {
    load(if field.bytes == 8 { DOUBLE } else { WORD }, to, R6, field.offset as i16)
}

/// r0 = the place of the value that `map` has for the key, which is the lower half of `key`; or 0.
fn look_up(map: BorrowedFd<'_>, key: Reg) -> Vec<Insn> {
    /// The immediate value is a map's file descriptor (`BPF_PSEUDO_MAP_FD`).
    const MAP: Reg = Reg(1);
    let address = [Insn::new(0x18, R1, MAP, 0, map.as_raw_fd()), Insn::new(0, R0, R0, 0, 0)];
    let key = [store(WORD, R10, KEY, key), copy(R2, R10), add(R2, KEY.into())];
    [&key[..], &address, &[call(LOOKUP)]].concat()
}

/// If thread r7 is watched, does `then` with the place of its word in r0.
fn if_watched(maps: Maps<'_>, then: &[Insn]) -> Vec<Insn> {
    let in_place = unless(If::Equal, R0, 0, then);
    let with_slot = [vec![load(WORD, R1, R0, 0)], look_up(maps.words, R1), in_place].concat();
    [look_up(maps.tids, R7), unless(If::Equal, R0, 0, &with_slot)].concat()
}

/// Writes the word of thread r7, made of it, code r8 and core r9.
fn write_word(maps: Maps<'_>) -> Vec<Insn> {
    let write = [shift_left(R7, TID_SHIFT), or(R7, R9), or(R7, R8), store(DOUBLE, R0, 0, R7)];
    if_watched(maps, &write)
}

/// The program of `sched_switch`: one thread leaves the core, another has it.
pub(super) fn switch(maps: Maps<'_>, tracepoint: &Tracepoint) -> Result<Vec<Insn>, FormatError> {
    let (prev, state) = (tracepoint.field("prev_pid")?, tracepoint.field("prev_state")?);
    let next = tracepoint.field("next_pid")?;
    let begin = [copy(R6, R1), call(PROCESSOR), copy(R9, R0), shift_left(R9, CORE_SHIFT)];
    let leaves = [load_field(R7, prev), load_field(R1, state), set(R8, EXITED.into())];
    let waits = unless(If::AnyOf, R1, WAITS, &[set(R8, PREEMPTED.into())]);
    let lives = unless(If::AnyOf, R1, ENDED, &[&[set(R8, BLOCKED.into())], &waits[..]].concat());
    let comes = [load_field(R7, next), set(R8, RUNNING.into())];
    let word = write_word(maps);
    Ok([&begin[..], &leaves, &lives, &word, &comes, &word, &[set(R0, 0), EXIT]].concat())
}

/// The program of `sched_wakeup`: a thread that waited is ready. One that was about to wait runs on.
pub(super) fn wakeup(maps: Maps<'_>, tracepoint: &Tracepoint) -> Result<Vec<Insn>, FormatError> {
    let begin = [copy(R6, R1), load_field(R7, tracepoint.field("pid")?)];
    let ready = [xor(R2, (BLOCKED ^ PREEMPTED).into()), store(DOUBLE, R0, 0, R2)];
    let code = [load(DOUBLE, R2, R0, 0), copy(R1, R2), and(R1, 0xff)];
    let waited = unless(If::NotEqual, R1, BLOCKED.into(), &ready);
    let woken = if_watched(maps, &[&code[..], &waited].concat());
    Ok([&begin[..], &woken, &[set(R0, 0), EXIT]].concat())
}
