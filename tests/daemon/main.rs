//! The daemon as its user has it: the binary, with the kernel's TCP/IP at both ends of the switch, in network
//! namespaces that vanish with the test. Nothing here touches an interface of the machine.
//!
//! | module | noun |
//! | --- | --- |
//! | [`world`] | the daemon's process, the guests on its ports, a VMM |
//! | [`traffic`] | what guests send each other |
//! | [`tap_ports`], [`packet_ports`], [`vlans`] | what arrives, and what the daemon says of it |
//! | [`run_state`] | what the daemon knows of the VMs behind its ports |
//! | [`vhost_user`] | VMs whose VMMs are on vhost-user sockets, honest and hostile |
//! | [`losses`] | interfaces that vanish, links that go down, addresses that move |
//! | [`refusals`] | daemons that do not start, or do so in the place of one that was killed |
//!
//! What a test cannot have on this machine (root, `/dev/net/tun`, `ip`) it says, and is counted as ignored.
//! Every wait is for a condition, with a deadline that only a failure reaches.

#![allow(
    unreachable_pub,
    reason = "nothing is public in a program of tests; `pub` says what a module offers"
)]

mod losses;
#[path = "../../pvnet/tests/needs/mod.rs"]
mod needs;
mod packet_ports;
mod refusals;
mod run_state;
mod tap_ports;
mod traffic;
mod vhost_user;
mod vlans;
mod world;

use hyper_switch_pvnet::sched::Watcher;
use libtest_mimic::Arguments;
use needs::{Need, iproute2, namespaces, tun};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let trials = needs::trials([
        ("two_namespaces_talk_over_taps_and_the_daemon_accounts_for_it", KERNEL, tap_ports::talk),
        ("two_workers_share_three_ports", KERNEL, tap_ports::workers),
        ("a_stopped_daemon_sums_up_and_leaves_nothing", KERNEL, tap_ports::stop),
        ("taps_that_a_vmm_owns_are_switched_by_packet_sockets", KERNEL, packet_ports::vmm),
        ("the_ends_of_two_veths_are_switched_by_packet_sockets", KERNEL, packet_ports::veth),
        ("access_ports_are_apart_and_a_trunk_carries_both", KERNEL, vlans::access_and_trunk),
        ("a_tap_deleted_under_traffic_takes_its_port_down_alone", KERNEL, losses::tap_deleted),
        ("a_vmm_that_goes_takes_its_port_down_alone", KERNEL, losses::vmm_gone),
        ("a_link_that_is_down_costs_nothing_and_comes_back", KERNEL, losses::link_down),
        ("traffic_follows_an_address_that_moves", KERNEL, losses::address_moves),
        ("a_ports_vm_is_seen_to_block_to_run_and_to_end", BPF, run_state::seen),
        ("without_bpf_a_ports_vm_is_unknown_and_the_daemon_goes_on", SETPRIV, run_state::refused),
        ("a_port_that_cannot_be_had_is_named_with_the_reason", KERNEL, refusals::ports),
        ("without_rights_the_daemon_says_so", KERNEL, refusals::rights),
        ("a_socket_of_a_living_daemon_is_refused_and_that_of_a_killed_one_taken", KERNEL, refusals::socket),
        ("two_vms_talk_in_every_kind_of_ring", NOTHING, vhost_user::talk::talk),
        ("a_daemon_with_silent_vms_is_idle", NOTHING, vhost_user::talk::idle),
        ("each_lie_of_a_vmm_costs_its_own_port", NOTHING, vhost_user::hostile::lies_are_told_apart),
        ("a_vmm_that_does_not_read_is_hung_up_on", NOTHING, vhost_user::hostile::deaf),
        ("a_vmm_may_go_at_any_byte", NOTHING, vhost_user::hostile::gone_at_any_byte),
        ("a_silent_vmm_holds_up_its_own_port", NOTHING, vhost_user::hostile::silent),
        ("each_lie_of_a_vm_costs_its_own_port", NOTHING, vhost_user::rings::lies),
        ("a_driver_starts_anew_after_a_lie", NOTHING, vhost_user::rings::driver_resets_after_a_lie),
        ("a_vm_may_scribble_on_its_rings", NOTHING, vhost_user::rings::scribbles),
        ("kicks_in_a_storm_hold_up_nobody", NOTHING, vhost_user::rings::kicks_in_a_storm),
        ("eventfds_that_block_hold_up_nobody", NOTHING, vhost_user::rings::eventfds_that_block),
        ("memory_that_is_truncated_costs_its_own_port", NOTHING, vhost_user::rings::truncated_memory),
        ("a_killed_daemon_comes_back_to_its_vms", NOTHING, vhost_user::returns::killed_daemon),
        ("a_killed_front_end_comes_back", NOTHING, vhost_user::returns::killed_front_end),
        ("a_driver_stops_and_goes_on", NOTHING, vhost_user::returns::driver_reset),
        ("a_client_finds_its_vmm_again", NOTHING, vhost_user::returns::client_mode),
        ("memory_comes_and_goes_under_traffic", NOTHING, vhost_user::changes::memory_comes_and_goes),
        (
            "pairs_are_enabled_and_disabled_under_traffic",
            NOTHING,
            vhost_user::changes::pairs_are_enabled_and_disabled,
        ),
    ]);
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

const NOTHING: &[Need] = &[];
const KERNEL: &[Need] = &[namespaces, tun, iproute2];
const SETPRIV: &[Need] = &[namespaces, tun, iproute2, setpriv];
const BPF: &[Need] = &[namespaces, tun, iproute2, bpf];

fn bpf() -> Option<String> {
    Watcher::get().err().map(|error| error.to_string())
}

fn setpriv() -> Option<String> {
    let error = Command::new("setpriv").arg("--version").output().err()?;
    Some(format!("needs the command setpriv of util-linux ({error})"))
}
