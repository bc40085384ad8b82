//! Guests, VMMs and switches that go and come back, under guests that need no help for it.

use crate::world::{SOON, must};
use hyper_switch::vm::rig::{ADDRESSES, BOOT, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

const STREAM: Duration = Duration::from_secs(1);

/// Holds: after a driver was unloaded and loaded again, and after a reboot of either guest, both guests reach each other,
/// and TCP passes both ways.
pub fn guests(rig: &mut Rig) {
    reload(rig, 0);
    talk(rig);
    for index in [1, 0] {
        must(rig.guests[index].reboot(BOOT));
        talk(rig);
    }
}

/// Holds the same after the switch was killed and started again. Nothing is done in a guest.
pub fn switch(rig: &mut Rig) {
    rig.kill_switch();
    must(rig.start_switch());
    talk(rig);
}

/// Holds the same where QEMU does not know at which place a ring stands that it could not ask a switch for: after the
/// guests have made rings anew.
pub fn switch_without_places(rig: &mut Rig) {
    rig.kill_switch();
    must(rig.start_switch());
    (0..2).for_each(|index| reload(rig, index));
    talk(rig);
}

/// Holds: a guest whose VMM was killed comes back in a new one.
pub fn vmm(rig: &mut Rig) {
    must(rig.replace_guest(1));
    talk(rig);
}

/// Unloads the guest's driver and loads it again.
fn reload(rig: &mut Rig, index: usize) {
    let commands = [
        "rmmod virtio_net".to_owned(),
        "insmod /modules/virtio_net.ko".to_owned(),
        format!("ip addr add {}/24 dev eth0", ADDRESSES[index]),
        "ip link set eth0 up".to_owned(),
    ];
    must(rig.guests[index].run(&commands.join(" && "), SOON));
}

fn talk(rig: &mut Rig) {
    let [a, b] = &mut rig.guests;
    must(scenario::reach(a, ADDRESSES[1]));
    must(scenario::stream(a, b, ADDRESSES[1], STREAM));
    must(scenario::stream(b, a, ADDRESSES[0], STREAM));
}
