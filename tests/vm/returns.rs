//! Guests, VMMs and switches that go and come back, under guests that need no help for it.

use crate::world::{must, rig};
use hyper_switch::vm::qemu::RingFormat;
use hyper_switch::vm::rig::{ADDRESSES, BOOT, Backend, Rig};
use hyper_switch::vm::scenario;
use std::time::Duration;

const STREAM: Duration = Duration::from_secs(1);

pub fn on_taps() {
    let mut rig = rig(Backend::Tap, RingFormat::Split, 1);
    reboot_and_restart(&mut rig);
}

/// Holds, beside what `reboot_and_restart` does: a guest whose VMM was killed comes back in a new one.
pub fn on_vhost_user() {
    let mut rig = rig(Backend::VhostUser, RingFormat::Split, 1);
    reboot_and_restart(&mut rig);
    must(rig.replace_guest(1));
    talk(&mut rig);
}

/// Holds: after a reboot of either guest, and after the switch was killed and started again, both guests reach each
/// other, and TCP passes both ways. Nothing is done in a guest whose switch was killed.
fn reboot_and_restart(rig: &mut Rig) {
    talk(rig);
    for index in [1, 0] {
        must(rig.guests[index].reboot(BOOT));
        talk(rig);
    }
    rig.kill_switch();
    must(rig.start_switch());
    talk(rig);
}

fn talk(rig: &mut Rig) {
    let [a, b] = &mut rig.guests;
    must(scenario::reach(a, ADDRESSES[1]));
    must(scenario::stream(a, b, ADDRESSES[1], STREAM));
    must(scenario::stream(b, a, ADDRESSES[0], STREAM));
}
