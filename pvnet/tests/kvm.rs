//! The guest of KVM's whose exits are measured, on the real KVM. Where there is none, this is said, and the tests are
//! counted as ignored.

mod needs;

use hyper_switch_pvnet::kvm::{Guest, KvmError};
use libtest_mimic::Arguments;
use needs::Need;
use std::process::ExitCode;

fn main() -> ExitCode {
    let trials = needs::trials([
        ("exits_are_as_many_as_the_guest_is_to_make", KVM, counted),
        ("guests_do_not_share_a_doorbell", KVM, apart),
        ("a_guest_that_does_something_else_is_an_error", KVM, unexpected),
        ("a_guest_that_lies_about_its_rings_is_an_error", KVM, miscounted),
    ]);
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

const KVM: &[Need] = &[kvm];

/// What keeps a VM from being made; whether it runs is what is tested.
fn kvm() -> Option<String> {
    Some(format!("needs KVM ({})", Guest::new(0).err()?))
}

/// Holds: each ring ends in the eventfd and none in this program, each run ends with one exit to it, and the guest's own
/// count, which `run` checks, goes on from run to run.
fn counted() {
    for rings in [0, 1, 2, 1_000] {
        let mut guest = Guest::new(rings).unwrap();
        assert_eq!(guest.rung(), 0, "nothing runs by itself");
        for runs in [1, 3] {
            (0..runs).for_each(|_| guest.run().unwrap());
            assert_eq!(guest.rung(), runs * u64::from(rings));
        }
    }
}

/// Holds: two VMs of a process are two.
fn apart() {
    let (mut one, two) = (Guest::new(5).unwrap(), Guest::new(7).unwrap());
    one.run().unwrap();
    assert_eq!((one.rung(), two.rung()), (5, 0));
}

/// Holds: an exception, an exit to another port and memory that is not there are errors which say what it was, and
/// the next run of such a guest is one too.
fn unexpected() {
    for (code, exit) in [
        (&[0x0f, 0x0b][..], "Shutdown"),                                          // ud2
        (&[0xf4], "Shutdown"),             // hlt, which is not for the lowest privilege
        (&[0xe6, 0x11], "IoOut(17, [0])"), // out 0x11, al
        (&[0xe6, 0x10], "IoOut(16, [0])"), // out 0x10, al: a byte, no count
        (&[0xe4, 0x10], "IoIn(16, "),      // in al, 0x10
        (&[0x88, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00], "MmioWrite(1048576, [0])"), // mov [0x100000], al
    ] {
        let mut guest = Guest::of_code(code, 1).unwrap();
        let error = guest.run().unwrap_err();
        assert!(matches!(&error, KvmError::Exit(said) if said.starts_with(exit)), "{exit}: {error}");
        assert!(guest.run().is_err(), "{exit}");
        assert_eq!(guest.rung(), 0, "{exit}");
    }
}

/// Holds: what the guest says is compared with what it was to do.
fn miscounted() {
    // out 0x10, eax
    let mut guest = Guest::of_code(&[0xe7, 0x10], 1).unwrap();
    let error = guest.run().unwrap_err();
    assert!(matches!(error, KvmError::Miscounted { said: 0, due: 1 }), "{error}");
}
