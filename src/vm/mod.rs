//! `hyper-switch vm`: two small Linux guests in QEMU on the switch, and what they do with each other.
//!
//! | module | noun |
//! | --- | --- |
//! | [`rig`] | two guests and the switch between them |
//! | [`scenario`] | what the guests are made to do, step by step |
//! | [`workload`] | their parts in it, which this program plays inside of them |
//! | [`guest`], `console` | a guest, and the lines by which it is talked to |
//! | [`switch`] | the switch, a process of its own |
//! | [`qemu`] | a guest as QEMU's command line |
//! | [`image`], `modules`, [`kernel`] | what a guest boots: file system, kernel modules, kernel |
//! | `process` | a process that is listened to, line by line |
//! | [`report`] | what was measured |

mod console;
pub mod guest;
pub mod image;
pub mod kernel;
mod modules;
mod process;
pub mod qemu;
pub mod report;
pub mod rig;
pub mod scenario;
pub mod switch;
pub mod workload;

use crate::cli::{AccelChoice, VmOptions};
use crate::exit::{Failure, FailureKind};
use crossbeam_channel::{Receiver, bounded};
use guest::Guest;
use hyper_switch_pvnet::namespace::NamespaceError;
use kernel::Kernel;
use qemu::{Accel, Machine};
use report::{Between, GuestsReport};
use rig::{ADDRESSES, Backend, NAMES, Rig, Setup};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a guest under KVM may take to boot. It is a second where KVM works; where KVM itself is emulated, the guest
/// may never say a word.
const KVM_BOOT: Duration = Duration::from_secs(10);

/// Datagrams of the `udp` step, and how many a second.
const DATAGRAMS: (u64, u64) = (10_000, 2_000);

/// Boots the guests, runs the workloads one after the other, and answers what was measured. SIGINT or SIGTERM ends it.
///
/// # Errors
/// QEMU, busybox or a kernel is missing, with how to get it; a guest or the switch fails; the backend needs rights that
/// we do not have.
pub fn run(options: &VmOptions) -> Result<GuestsReport, Failure> {
    let interrupt = interruption()?;
    let setup = setup(options, &interrupt)?;
    let kernel = setup.kernel.version.clone();
    let Setup { accel, backend, ring, queues, mtu, .. } = setup;
    tracing::info!(%kernel, ?accel, "booting two guests");
    let mut rig = Rig::start(setup, interrupt)?;
    let [a, b] = &mut rig.guests;
    tracing::info!("both guests are ready");
    scenario::reach(a, ADDRESSES[1])?;
    let ping = scenario::ping(a, ADDRESSES[1])?;
    let (datagrams, per_s) = DATAGRAMS;
    let way = |from: usize, to: usize, measured| Between {
        from: NAMES[from].to_owned(),
        to: NAMES[to].to_owned(),
        measured,
    };
    let workloads = vec![
        way(0, 1, scenario::stream(a, b, ADDRESSES[1], options.duration)?),
        way(1, 0, scenario::stream(b, a, ADDRESSES[0], options.duration)?),
        way(0, 1, scenario::requests(a, b, ADDRESSES[1], options.duration)?),
        way(0, 1, scenario::datagrams(a, b, ADDRESSES[1], datagrams, per_s)?),
    ];
    let ports = rig.switch().ports()?;
    Ok(GuestsReport { kernel, accel, backend, ring, queues, mtu, ping, workloads, ports })
}

/// The commands that start the switch and the guests by hand, ready to be pasted, a shell each and in this order. The
/// guests' file system, which they name, is written to the cache.
///
/// # Errors
/// As [`run`], before it boots a guest.
pub fn commands(options: &VmOptions) -> Result<String, Failure> {
    let interrupt = interruption()?;
    let setup = setup(options, &interrupt)?;
    let folder = kernel::cache()?;
    std::fs::create_dir_all(&folder).map_err(cannot(format_args!("make {}", folder.display())))?;
    setup.write_image(&folder)?;
    let line = |program: &Path, arguments: Vec<String>| {
        let words = [vec![program.display().to_string()], arguments].concat();
        format!("{}\n", qemu::quoted(&words))
    };
    let switch = line(&setup.program, switch::arguments(&folder.join("ctl.sock"), &setup.ports(&folder)));
    let guests = [0, 1].map(|index| line(&setup.qemu, setup.machine(index, &folder).arguments()));
    Ok(match setup.backend {
        Backend::VhostUser | Backend::VhostUserClient => format!("{switch}{}", guests.concat()),
        // The interfaces are QEMU's.
        Backend::Tap => {
            let mtu = setup.mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
            let up = [0, 1].map(|index| format!("ip link set {}{mtu} up; ", rig::interface(index)));
            format!("{}{}{switch}", guests.concat(), up.concat())
        }
    })
}

/// What the guests are to have in common, as the options or else the machine says.
fn setup(options: &VmOptions, interrupt: &Receiver<()>) -> Result<Setup, Failure> {
    let here = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    if !here {
        return Err(Failure::new(
            FailureKind::Runtime,
            "the guests are of x86-64, and so has this machine to be",
        ));
    }
    let qemu = options.qemu.clone().map_or_else(find_qemu, Ok)?;
    let kernel = match &options.kernel {
        Some(path) => Kernel::at(path)?,
        None if options.fetch => Kernel::fetch()?,
        None => Kernel::find()?,
    };
    let busybox = options.busybox.clone().map_or_else(image::find_busybox, Ok)?;
    let program = std::env::current_exe().map_err(cannot("tell where this program is"))?;
    let VmOptions { backend, ring, queues, mtu, .. } = *options;
    let mut setup = Setup { qemu, accel: Accel::Tcg, backend, ring, queues, mtu, kernel, busybox, program };
    setup.accel = match options.accel {
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
        AccelChoice::Auto => accel(&setup, interrupt)?,
    };
    Ok(setup)
}

/// Where QEMU is.
///
/// # Errors
/// It is on no search path; the help says how to get it.
pub fn find_qemu() -> Result<PathBuf, Failure> {
    image::find_program("qemu-system-x86_64").ok_or_else(|| {
        Failure::new(FailureKind::Runtime, "there is no qemu-system-x86_64 for the guests")
            .with_help("on Debian, `apt-get install qemu-system-x86` as root; or name one with --qemu PATH")
    })
}

/// KVM where a guest without a NIC boots under it, else QEMU's translation. That /dev/kvm can be opened says little: in a
/// machine that is virtual itself, guests may be so slow under it that they do not boot.
///
/// # Errors
/// The guest's file system cannot be made; or the user did not want to wait.
pub fn accel(setup: &Setup, interrupt: &Receiver<()>) -> Result<Accel, Failure> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        tracing::info!(%error, "no KVM: QEMU translates");
        return Ok(Accel::Tcg);
    }
    let folder = tempfile::tempdir().map_err(cannot("make a folder for a guest"))?;
    setup.write_image(folder.path())?;
    let machine = Machine { nic: None, ..setup.machine(0, folder.path()) };
    let machine = Machine { name: "probe".into(), accel: Accel::Kvm, ..machine };
    let mut probe = Guest::start(&setup.qemu, machine, folder.path(), None, interrupt.clone())?;
    match probe.ready(KVM_BOOT) {
        Ok(()) => Ok(Accel::Kvm),
        Err(failure) if failure == interrupted() => Err(failure),
        Err(failure) => {
            let why = failure.message.lines().next().unwrap_or_default();
            tracing::info!(why, "no guest boots under KVM: QEMU translates");
            Ok(Accel::Tcg)
        }
    }
}

/// Is sent a message by each SIGINT or SIGTERM.
fn interruption() -> Result<Receiver<()>, Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(cannot("catch signals"))?;
    let (sender, receiver) = bounded(1);
    let thread = std::thread::Builder::new().name("signals".into());
    let waits = thread.spawn(move || {
        // The receiver lives as long as the process has anything to end.
        while signals.forever().next().is_some() && sender.send(()).is_ok() {}
    });
    waits.map(|_| receiver).map_err(cannot("start a thread"))
}

fn interrupted() -> Failure {
    Failure::new(FailureKind::Runtime, "interrupted")
}

/// Names what could not be done in a failure.
fn cannot(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::from_io(format_args!("cannot {what}"), &error)
}

/// The failure of a namespace for TAPs.
fn namespace_failure(error: NamespaceError) -> Failure {
    match error {
        NamespaceError::NotPermitted => {
            let message = "`vm --backend tap` needs root, or the capabilities CAP_SYS_ADMIN, CAP_NET_ADMIN and \
                           CAP_NET_RAW: it makes TAP interfaces in a network namespace";
            Failure::new(FailureKind::NotPermitted, message)
                .with_help("`vm --backend vhost-user` needs no rights")
        }
        error => Failure::new(FailureKind::Runtime, error.to_string()),
    }
}
