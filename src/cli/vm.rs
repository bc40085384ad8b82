//! The command line of `vm`, and of the parts that this program plays inside the guests.

use super::seconds;
use crate::exit::{Failure, FailureKind};
use crate::vm::qemu::RingFormat;
use crate::vm::rig::Backend;
use crate::vm::workload::Part;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// The most pairs of rings of a guest's NIC.
const MAX_QUEUES: i64 = 8;

/// The least MTU of IPv4 (RFC 791), in bytes.
const MIN_MTU: i64 = 68;

/// What `hyper-switch vm` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmOptions {
    /// Who executes the guests' instructions.
    pub accel: AccelChoice,
    /// How guests and switch are joined.
    pub backend: Backend,
    /// The format of the guests' rings.
    pub ring: RingFormat,
    /// Pairs of rings of each guest, and its cores.
    pub queues: u16,
    /// The MTU in bytes that guests are told, if not the usual one.
    pub mtu: Option<u16>,
    /// How long each workload is measured.
    pub duration: Duration,
    /// The guests' kernel, if not one that is found.
    pub kernel: Option<PathBuf>,
    /// The program busybox, if not one that is found.
    pub busybox: Option<PathBuf>,
    /// The program that QEMU is, if not one that is found.
    pub qemu: Option<PathBuf>,
    /// Fetch a kernel first.
    pub fetch: bool,
    /// Print the commands instead.
    pub print_command: bool,
    /// Print one JSON document instead of tables.
    pub json: bool,
}

/// Who is to execute the guests' instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// KVM if a guest boots under it within seconds, else tcg
    Auto,
    /// The processor, under KVM
    Kvm,
    /// QEMU, which translates them
    Tcg,
}

#[derive(Args)]
pub(super) struct VmArgs {
    /// Who executes the guests' instructions
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,

    /// How guests and switch are joined
    #[arg(long, value_enum, default_value_t = Backend::VhostUser)]
    backend: Backend,

    /// The format of the guests' rings
    #[arg(long, value_enum, default_value_t = RingFormat::Split)]
    ring: RingFormat,

    /// Pairs of a receive and a transmit ring of each guest, which has as many cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUES))]
    queues: u16,

    /// The MTU that the guests' NICs tell them; without it they take 1500
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(MIN_MTU..))]
    mtu: Option<u16>,

    /// Seconds that each workload is measured for
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds)]
    duration: Duration,

    /// The guests' kernel, a file vmlinuz-VERSION with its modules in lib/modules beside its folder, or in /lib/modules;
    /// without it, one that was fetched, else the newest in /boot
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,

    /// The program busybox for the guests; without it, the one on the search path
    #[arg(long, value_name = "PATH")]
    busybox: Option<PathBuf>,

    /// The program qemu-system-x86_64; without it, the one on the search path
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,

    /// Fetch Debian's newest kernel for virtual machines first, into ~/.cache/hyper-switch; nothing is installed
    #[arg(long, conflicts_with = "kernel")]
    fetch: bool,

    /// Print the command lines of the switch and of QEMU, ready to be pasted into three shells, and boot nothing
    #[arg(long)]
    print_command: bool,

    /// Print one JSON document instead of tables
    #[arg(long, conflicts_with = "print_command")]
    json: bool,
}

#[derive(Args)]
pub(super) struct GuestArgs {
    #[command(subcommand)]
    pub(super) part: Part,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Two guests, with a kernel that is fetched first (Debian):
      apt-get install qemu-system-x86 busybox-static
      hyper-switch vm --fetch
  Several queues and the packed ring:
      hyper-switch vm --queues 2 --ring packed
  The command lines, to play with the guests by hand:
      hyper-switch vm --print-command";

impl VmArgs {
    pub(super) fn into_options(self) -> Result<VmOptions, Failure> {
        let VmArgs {
            accel,
            backend,
            ring,
            queues,
            mtu,
            duration,
            kernel,
            busybox,
            qemu,
            fetch,
            print_command,
            json,
        } = self;
        if queues > 1 && backend == Backend::Tap {
            let message = "--queues is for vhost-user: a packet socket reads a TAP as one";
            return Err(Failure::new(FailureKind::Usage, message).with_help("leave out --backend tap"));
        }
        Ok(VmOptions {
            accel,
            backend,
            ring,
            queues,
            mtu,
            duration,
            kernel,
            busybox,
            qemu,
            fetch,
            print_command,
            json,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use crate::cli::tests::{command, refusal};

    /// `vm` has the documented defaults, and each option arrives.
    #[test]
    fn vm_is_read() {
        let mut expected = VmOptions {
            accel: AccelChoice::Auto,
            backend: Backend::VhostUser,
            ring: RingFormat::Split,
            queues: 1,
            mtu: None,
            duration: Duration::from_secs(5),
            kernel: None,
            busybox: None,
            qemu: None,
            fetch: false,
            print_command: false,
            json: false,
        };
        assert_eq!(command("vm"), Command::Vm(expected.clone()));
        expected.accel = AccelChoice::Tcg;
        expected.ring = RingFormat::Packed;
        expected.queues = 8;
        expected.mtu = Some(9000);
        expected.fetch = true;
        expected.print_command = true;
        let line = "vm --accel tcg --ring packed --queues 8 --mtu 9000 --fetch --print-command";
        assert_eq!(command(line), Command::Vm(expected));
    }

    /// What excludes each other, or is out of bounds, is refused.
    #[test]
    fn nonsense_is_refused() {
        for (line, part) in [
            ("vm --queues 9", "9 is not in 1..=8"),
            ("vm --mtu 67", "67 is not in 68..=65535"),
            ("vm --queues 2 --backend tap", "--queues is for vhost-user"),
            ("vm --accel xen", "[possible values: auto, kvm, tcg]"),
            ("vm --fetch --kernel /k", "cannot be used with"),
            ("vm --json --print-command", "cannot be used with"),
        ] {
            let text = refusal(line);
            assert!(text.contains(part), "{line}: {text}");
        }
    }

    /// A guest's part is read, as the steps of `vm` write it.
    #[test]
    fn parts_are_read() {
        let to = [10, 77, 0, 2].into();
        for (line, part) in [
            ("guest sink", Part::Sink),
            ("guest source 10.77.0.2 0.5", Part::Source { to, seconds: 0.5 }),
            ("guest receive 10000", Part::Receive { datagrams: 10_000 }),
        ] {
            assert_eq!(command(line), Command::Guest(part));
        }
    }
}
