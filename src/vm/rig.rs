//! Two guests and the switch between them.

use super::guest::Guest;
use super::image;
use super::kernel::Kernel;
use super::qemu::{Accel, Link, Machine, Nic, RingFormat};
use super::switch::Switch;
use super::{cannot, namespace_failure};
use crate::exit::Failure;
use crate::port_spec::SocketRole;
use crossbeam_channel::Receiver;
use hyper_switch_pvnet::namespace::{Interface, Namespace};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How long a guest may take to boot: translated by QEMU, on a machine that does other things too.
pub const BOOT: Duration = Duration::from_secs(120);

/// The names of the guests, and of their ports.
pub const NAMES: [&str; 2] = ["a", "b"];

/// The addresses of the guests.
pub const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// What the guests have in common.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program that QEMU is.
    pub qemu: PathBuf,
    /// Who executes the guests' instructions.
    pub accel: Accel,
    /// How guests and switch are joined.
    pub backend: Backend,
    /// The format of the guests' rings.
    pub ring: RingFormat,
    /// Pairs of rings of each guest, and its cores.
    pub queues: u16,
    /// The MTU in bytes that guests are told, if not the usual one.
    pub mtu: Option<u16>,
    /// The guests' kernel.
    pub kernel: Kernel,
    /// The program busybox.
    pub busybox: PathBuf,
    /// The program `hyper-switch`: the switch, and in the guests the workloads.
    pub program: PathBuf,
}

/// How guests and switch are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// By vhost-user sockets: the switch copies from guest to guest
    VhostUser,
    /// The same; QEMU makes the sockets, and the switch connects
    VhostUserClient,
    /// By TAP interfaces, which QEMU copies to and from. Needs root
    Tap,
}

impl Setup {
    /// The guest `index`, whose image and socket are in `folder`.
    pub fn machine(&self, index: usize, folder: &Path) -> Machine {
        let link = match self.backend {
            Backend::VhostUser => Link::VhostUser { socket: socket(index, folder), role: SocketRole::Server },
            Backend::VhostUserClient => {
                Link::VhostUser { socket: socket(index, folder), role: SocketRole::Client }
            }
            Backend::Tap => Link::Tap(interface(index)),
        };
        // Locally administered; the last byte tells the guests apart.
        let mac = [0x52, 0x54, 0x00, 0x77, 0x00, index as u8 + 1];
        Machine {
            name: NAMES[index].to_owned(),
            accel: self.accel,
            cores: self.queues,
            kernel: self.kernel.image.clone(),
            image: folder.join("image"),
            address: format!("{}/24", ADDRESSES[index]),
            nic: Some(Nic { link, mac, ring: self.ring, queues: self.queues, mtu: self.mtu }),
            console: None,
        }
    }

    /// The switch's ports, as its user writes them.
    pub fn ports(&self, folder: &Path) -> Vec<String> {
        let queues = if self.queues > 1 { format!(",queues={}", self.queues) } else { String::new() };
        let port = |(index, name): (usize, &&str)| {
            let socket = || socket(index, folder).display().to_string();
            match self.backend {
                Backend::VhostUser => format!("vhost-user:{}{queues},name={name}", socket()),
                Backend::VhostUserClient => format!("vhost-user:{},client{queues},name={name}", socket()),
                Backend::Tap => format!("packet:{},name={name}", interface(index)),
            }
        };
        NAMES.iter().enumerate().map(port).collect()
    }

    /// Writes the guests' file system to `folder`.
    ///
    /// # Errors
    /// A part of it cannot be read, or the folder cannot be written.
    pub fn write_image(&self, folder: &Path) -> Result<(), Failure> {
        let image = image::image(&self.kernel, &self.busybox, &self.program)?;
        let path = folder.join("image");
        std::fs::write(&path, image).map_err(cannot(format_args!("write {}", path.display())))
    }
}

fn socket(index: usize, folder: &Path) -> PathBuf {
    folder.join(format!("{}.sock", NAMES[index]))
}

/// The TAP of a guest, where only QEMU and the switch see it or, pasted by a user, on the host.
pub fn interface(index: usize) -> String {
    format!("hs{index}")
}

/// Two guests on a switch. Dropped, all of it is gone, and its folder too.
pub struct Rig {
    /// The guests.
    pub guests: [Guest; 2],
    /// None while it is killed.
    switch: Option<Switch>,
    setup: Setup,
    namespace: Option<Namespace>,
    folder: TempDir,
    interrupt: Receiver<()>,
}

impl Rig {
    /// Starts the switch, boots the guests, and waits until both are ready. A message in `interrupt` ends every wait.
    ///
    /// # Errors
    /// A part cannot be had, or the rights to have it; a guest that does not boot.
    pub fn start(setup: Setup, interrupt: Receiver<()>) -> Result<Rig, Failure> {
        let folder = tempfile::Builder::new().prefix("hyper-switch-vm-").tempdir();
        let folder = folder.map_err(cannot("make a folder for the guests"))?;
        // TAPs of guests are nobody else's business.
        let namespace = match setup.backend {
            Backend::VhostUser | Backend::VhostUserClient => None,
            Backend::Tap => Some(Namespace::new().map_err(namespace_failure)?),
        };
        setup.write_image(folder.path())?;
        let start_switch = || switch(&setup, folder.path(), namespace.as_ref(), interrupt.clone());
        // QEMU wants a socket on which somebody listens, and a packet socket an interface that is there.
        let mut first = match setup.backend {
            Backend::VhostUser | Backend::VhostUserClient => Some(start_switch()?),
            Backend::Tap => None,
        };
        let boot = |index| guest(&setup, index, folder.path(), namespace.as_ref(), interrupt.clone());
        let mut guests = [boot(0)?, boot(1)?];
        for guest in &mut guests {
            guest.ready(BOOT)?;
        }
        if let Some(namespace) = &namespace {
            let up = |index| {
                let tap = Interface::named(&interface(index))?;
                setup.mtu.map_or(Ok(()), |mtu| tap.set_mtu_bytes(mtu.into()))?;
                tap.up()
            };
            let up = namespace.run(|| up(0).and_then(|()| up(1))).map_err(namespace_failure)?;
            up.map_err(|error| cannot("take the guests' TAPs up")(std::io::Error::other(error)))?;
            first = Some(start_switch()?);
        }
        Ok(Rig { guests, switch: first, setup, namespace, folder, interrupt })
    }

    /// The switch.
    ///
    /// # Panics
    /// It is killed.
    pub fn switch(&self) -> &Switch {
        self.switch.as_ref().expect("the switch was not killed, or started again")
    }

    /// Kills the switch.
    pub fn kill_switch(&mut self) {
        self.switch = None;
    }

    /// Starts the switch again.
    ///
    /// # Errors
    /// As [`Switch::start`].
    pub fn start_switch(&mut self) -> Result<(), Failure> {
        let (folder, namespace) = (self.folder.path(), self.namespace.as_ref());
        self.switch = Some(switch(&self.setup, folder, namespace, self.interrupt.clone())?);
        Ok(())
    }

    /// Kills the guest `index` with its VMM, has another take its place, and waits until that is ready.
    ///
    /// # Errors
    /// As [`Guest::start`] and [`Guest::ready`].
    pub fn replace_guest(&mut self, index: usize) -> Result<(), Failure> {
        let (folder, namespace) = (self.folder.path(), self.namespace.as_ref());
        // Its successor takes the same socket, or interface.
        self.guests[index].kill();
        self.guests[index] = guest(&self.setup, index, folder, namespace, self.interrupt.clone())?;
        self.guests[index].ready(BOOT)
    }
}

fn switch(
    setup: &Setup,
    folder: &Path,
    namespace: Option<&Namespace>,
    interrupt: Receiver<()>,
) -> Result<Switch, Failure> {
    Switch::start(&setup.program, &folder.join("ctl.sock"), &setup.ports(folder), namespace, interrupt)
}

fn guest(
    setup: &Setup,
    index: usize,
    folder: &Path,
    namespace: Option<&Namespace>,
    interrupt: Receiver<()>,
) -> Result<Guest, Failure> {
    Guest::start(&setup.qemu, setup.machine(index, folder), folder, namespace, interrupt)
}
