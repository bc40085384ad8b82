//! The guests and the switch, as this machine can have them.

use hyper_switch::ctl::status::PortStatus;
use hyper_switch::exit::Failure;
use hyper_switch::vm;
use hyper_switch::vm::guest::Guest;
use hyper_switch::vm::image::find_busybox;
use hyper_switch::vm::kernel::Kernel;
use hyper_switch::vm::qemu::{Accel, RingFormat};
use hyper_switch::vm::rig::{Backend, Rig, Setup};
use std::sync::OnceLock;
use std::time::Duration;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_hyper-switch");

/// How long a command of a guest may take that takes no time of its own.
pub const SOON: Duration = Duration::from_secs(60);

/// A failure fails the test, in its own words.
pub fn must<T>(outcome: Result<T, Failure>) -> T {
    outcome.unwrap_or_else(|failure| panic!("{failure}"))
}

/// Two guests that are ready, on a switch that switches.
pub fn rig(backend: Backend, ring: RingFormat, queues: u16, mtu: Option<u16>) -> Rig {
    static ACCEL: OnceLock<Accel> = OnceLock::new();
    let interrupt = crossbeam_channel::never;
    let mut setup = Setup {
        qemu: must(vm::find_qemu()),
        accel: Accel::Tcg,
        backend,
        ring,
        queues,
        mtu,
        kernel: must(Kernel::find()),
        busybox: must(find_busybox()),
        program: PROGRAM.into(),
    };
    setup.accel = *ACCEL.get_or_init(|| must(vm::accel(&setup, &interrupt())));
    must(Rig::start(setup, interrupt()))
}

/// Whether the guest's driver and its NIC have agreed on a feature, by its bit.
pub fn negotiated(guest: &mut Guest, bit: usize) -> bool {
    let bits = must(guest.run("cat /sys/class/net/eth0/device/features", SOON));
    bits.as_bytes().get(bit) == Some(&b'1')
}

/// The ports, of which none has lost a frame.
pub fn lossless_ports(rig: &Rig) -> Vec<PortStatus> {
    let ports = must(rig.switch().ports());
    for port in &ports {
        assert_eq!(port.tx.drops.total() + port.rx.drops.total(), 0, "{port:?}");
    }
    ports
}
