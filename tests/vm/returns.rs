//! Guests, VMMs and switches that go and come back, under guests that need no help for it.

use crate::world::{SOON, must};
use hyper_switch::vm::rig::{ADDRESSES, BOOT, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

const STREAM: Duration = Duration::from_secs(1);

/// Holds: after a driver was unloaded and loaded again, after a reboot of either guest, and after the switch was killed and
/// started again, both guests reach each other, and TCP passes both ways. Nothing is done in a guest whose switch was
/// killed.
pub fn guests_and_switch(rig: &mut Rig) {
    let [address, _] = ADDRESSES;
    let reload = "rmmod virtio_net && insmod /modules/virtio_net.ko";
    must(
        rig.guests[0]
            .run(&format!("{reload} && ip addr add {address}/24 dev eth0 && ip link set eth0 up"), SOON),
    );
    talk(rig);
    for index in [1, 0] {
        must(rig.guests[index].reboot(BOOT));
        talk(rig);
    }
    rig.kill_switch();
    must(rig.start_switch());
    talk(rig);
}

/// Holds: a guest whose VMM was killed comes back in a new one.
pub fn vmm(rig: &mut Rig) {
    must(rig.replace_guest(1));
    talk(rig);
}

fn talk(rig: &mut Rig) {
    let [a, b] = &mut rig.guests;
    must(scenario::reach(a, ADDRESSES[1]));
    must(scenario::stream(a, b, ADDRESSES[1], STREAM));
    must(scenario::stream(b, a, ADDRESSES[0], STREAM));
}
