//! Two Linux guests in QEMU on the daemon, as `hyper-switch vm` boots them: what their kernels and drivers see of the switch.
//!
//! | module | noun |
//! | --- | --- |
//! | [`world`] | the guests and the switch, as this machine can have them |
//! | [`talk`] | what guests send each other |
//! | [`returns`] | guests, VMMs and switches that go and come back |
//! | [`control`] | what a guest's driver asks of its NIC |
//!
//! What a test cannot have on this machine (QEMU, busybox, a kernel, root) it says, and is counted as ignored. Each boots
//! guests of its own, one test after the other, as they share few cores; what the modules hold is held with these guests
//! one after the other. Every wait is for a line, with a deadline that only a failure reaches.

#![allow(
    unreachable_pub,
    reason = "nothing is public in a program of tests; `pub` says what a module offers"
)]

mod control;
#[path = "../../pvnet/tests/needs/mod.rs"]
mod needs;
mod returns;
mod talk;
mod world;

use hyper_switch::vm;
use hyper_switch::vm::kernel::Kernel;
use hyper_switch::vm::qemu::RingFormat;
use hyper_switch::vm::rig::Backend;
use libtest_mimic::Arguments;
use needs::{Need, namespaces, tun};
use std::process::ExitCode;
use world::rig;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = needs::trials([
        ("guests_on_taps_talk_change_and_come_back", TAP, on_taps as fn()),
        ("guests_on_vhost_user_talk_and_come_back", VHOST_USER, on_vhost_user),
        ("guests_with_packed_rings_talk_and_come_back", VHOST_USER, in_packed_rings),
        ("guests_with_queues_and_a_large_mtu_on_sockets_of_qemu_change_and_come_back", QUEUES, with_queues),
    ]);
    libtest_mimic::run(&arguments, trials).exit_code()
}

const TAP: &[Need] = &[qemu, busybox, kernel, namespaces, tun];
const VHOST_USER: &[Need] = &[qemu, busybox, kernel];
const QUEUES: &[Need] = &[qemu, busybox, kernel, ethtool];

fn on_taps() {
    let mut rig = rig(Backend::Tap, RingFormat::Split, 1, None);
    talk::all(&mut rig);
    control::address_and_vlans(&mut rig);
    returns::guests(&mut rig);
    returns::switch(&mut rig);
}

fn on_vhost_user() {
    let mut rig = rig(Backend::VhostUser, RingFormat::Split, 1, None);
    talk::all(&mut rig);
    returns::guests(&mut rig);
    returns::switch(&mut rig);
    returns::vmm(&mut rig);
}

fn in_packed_rings() {
    let mut rig = rig(Backend::VhostUser, RingFormat::Packed, 1, None);
    control::is_packed(&mut rig);
    talk::all(&mut rig);
    returns::guests(&mut rig);
    returns::switch_without_places(&mut rig);
}

fn with_queues() {
    let mut rig = rig(Backend::VhostUserClient, RingFormat::Split, 2, Some(control::LARGE_MTU));
    control::mtu(&mut rig);
    control::address_and_vlans(&mut rig);
    control::queues(&mut rig);
    returns::guests(&mut rig);
    returns::switch(&mut rig);
    returns::vmm(&mut rig);
}

fn qemu() -> Option<String> {
    vm::find_qemu().err().map(|missing| missing.to_string())
}

fn busybox() -> Option<String> {
    vm::image::find_busybox().err().map(|missing| missing.to_string())
}

fn kernel() -> Option<String> {
    Kernel::find().err().map(|missing| missing.to_string())
}

fn ethtool() -> Option<String> {
    vm::image::find_program("ethtool").is_none().then(|| "needs the command ethtool".into())
}
