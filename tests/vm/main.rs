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
//! guests of its own, one test after the other, as they share few cores. Every wait is for a line, with a deadline that
//! only a failure reaches.

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
use libtest_mimic::Arguments;
use needs::{Need, namespaces, tun};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = needs::trials([
        ("guests_on_taps_talk_in_large_frames_and_lose_no_datagram", TAP, talk::on_taps),
        ("guests_on_vhost_user_talk_in_large_frames_and_lose_no_datagram", VHOST_USER, talk::on_vhost_user),
        ("guests_with_packed_rings_talk", VHOST_USER, talk::in_packed_rings),
        ("guests_on_taps_survive_a_reboot_and_a_killed_switch", TAP, returns::on_taps),
        (
            "guests_on_vhost_user_survive_reboot_killed_switch_and_killed_vmm",
            VHOST_USER,
            returns::on_vhost_user,
        ),
        ("a_guest_changes_address_and_vlans_on_taps", TAP, control::on_taps),
        ("a_guest_changes_address_vlans_and_queues_on_vhost_user", QUEUES, control::on_vhost_user),
    ]);
    libtest_mimic::run(&arguments, trials).exit_code()
}

const TAP: &[Need] = &[qemu, busybox, kernel, namespaces, tun];
const VHOST_USER: &[Need] = &[qemu, busybox, kernel, vhost_user];
const QUEUES: &[Need] = &[qemu, busybox, kernel, vhost_user, ethtool];

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

fn vhost_user() -> Option<String> {
    let help = Command::new(world::PROGRAM).args(["run", "--help"]).output().unwrap().stdout;
    let missing = !String::from_utf8_lossy(&help).contains("vhost-user:");
    missing.then(|| "needs a switch with vhost-user ports".into())
}
