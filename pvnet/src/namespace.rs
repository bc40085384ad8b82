//! A network namespace of the process's own, and the interfaces in it.
//!
//! The namespace has no name in the file system: it lives while a thread is in it or a file refers to
//! it, and so leaves nothing behind however the process ends. A file that was opened inside (a TAP, a
//! socket) belongs to it for good but works from every thread; that is how a switch in one namespace
//! has ports in others.
//!
//! ```no_run
//! # use hyper_switch_pvnet::{namespace::{Interface, Namespace}, tap::Tap};
//! let namespace = Namespace::new()?;
//! let tap = namespace.run(|| {
//!     let tap = Tap::open("vm0")?;
//!     Interface::named("vm0")?.set_ipv4([10, 0, 0, 1].into(), 24)?;
//!     Interface::named("vm0")?.up()?;
//!     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(tap)
//! })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use crate::sys::InterfaceRequest;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::ffi::{c_int, c_ulong};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

/// Why a namespace cannot be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The process may not have namespaces of its own.
    #[error("not permitted to make or enter a network namespace: run as root or with CAP_SYS_ADMIN")]
    NotPermitted,
    /// The system refused a step.
    #[error("network namespace: {step} failed")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl NamespaceError {
    fn at(step: &'static str) -> impl Fn(io::Error) -> NamespaceError {
        move |source| match Errno::from_io_error(&source) {
            Some(Errno::PERM) => NamespaceError::NotPermitted,
            _ => NamespaceError::System { step, source },
        }
    }
}

/// A network namespace without a name.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes an empty namespace: a loopback that is down, and nothing else.
    pub fn new() -> Result<Namespace, NamespaceError> {
        // On a thread of its own, which ends with it: the caller stays where it is.
        within_a_thread(|| {
            // SAFETY: the file table, whose separation could harm, stays shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| NamespaceError::at("unshare")(errno.into()))?;
            let file = File::open("/proc/thread-self/ns/net");
            Ok(Namespace { file: file.map_err(NamespaceError::at("opening /proc/thread-self/ns/net"))? })
        })?
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. A panic in `work` goes on here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        within_a_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Starts a thread called `name` inside and does not wait for it.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, NamespaceError> {
        // A thread starts in the namespace of the one that starts it.
        self.run(|| thread::Builder::new().name(name.into()).spawn(work))?
            .map_err(NamespaceError::at("starting a thread"))
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) -> Result<(), NamespaceError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| NamespaceError::at("setns")(errno.into()))
    }

    /// Turns IPv6 off for the interfaces there are and will be, so that none sends a frame unasked
    /// (router solicitation, duplicate address detection). Does nothing on a kernel without IPv6.
    pub fn disable_ipv6(&self) -> Result<(), NamespaceError> {
        self.run(|| {
            for interfaces in ["all", "default"] {
                // /proc/sys/net shows each thread its own namespace.
                match fs::write(format!("/proc/sys/net/ipv6/conf/{interfaces}/disable_ipv6"), "1") {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    written => written.map_err(NamespaceError::at("writing disable_ipv6"))?,
                }
            }
            Ok(())
        })?
    }
}

impl AsFd for Namespace {
    /// The file that keeps the namespace, as `setns(2)` takes it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn within_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work);
        let thread = thread.map_err(NamespaceError::at("starting a thread"))?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Why an interface could not be asked or changed.
#[derive(Debug, thiserror::Error)]
#[error("interface {name:?}: {step} failed")]
pub struct InterfaceError {
    /// The interface.
    pub name: String,
    /// What was tried.
    pub step: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// An interface of the namespace in which it was [named](Interface::named), to be set up.
#[derive(Debug)]
pub struct Interface {
    /// Any socket will do; a socket keeps its namespace.
    socket: OwnedFd,
    name: String,
}

impl Interface {
    /// The interface `name` of the calling thread's network namespace. Whether there is one is seen
    /// when it is asked for something.
    pub fn named(name: &str) -> Result<Interface, InterfaceError> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let source =
            |errno: Errno| InterfaceError { name: name.into(), step: "socket", source: errno.into() };
        Ok(Interface { socket: socket.map_err(source)?, name: name.into() })
    }

    /// Takes the interface up.
    pub fn up(&self) -> Result<(), InterfaceError> {
        let flags = self.flags()?;
        self.ask("SIOCSIFFLAGS", libc::SIOCSIFFLAGS as c_ulong, |r| r.set_flags(flags | libc::IFF_UP))
            .map(drop)
    }

    /// Takes the interface down.
    pub fn down(&self) -> Result<(), InterfaceError> {
        let flags = self.flags()?;
        self.ask("SIOCSIFFLAGS", libc::SIOCSIFFLAGS as c_ulong, |r| r.set_flags(flags & !libc::IFF_UP))
            .map(drop)
    }

    /// Gives the interface this address in a network of `prefix_bits` (at most 32), in place of the
    /// one that it had. Its broadcast address follows.
    pub fn set_ipv4(&self, address: Ipv4Addr, prefix_bits: u8) -> Result<(), InterfaceError> {
        let host_bits = 32_u32.checked_sub(prefix_bits.into()).ok_or_else(|| {
            let bound = format!("a prefix of {prefix_bits} bits is longer than 32");
            self.failed("set_ipv4", io::Error::new(io::ErrorKind::InvalidInput, bound))
        })?;
        let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0));
        self.ask("SIOCSIFADDR", libc::SIOCSIFADDR as c_ulong, |r| r.set_ipv4(address))?;
        self.ask("SIOCSIFNETMASK", libc::SIOCSIFNETMASK as c_ulong, |r| r.set_ipv4(mask)).map(drop)
    }

    /// The most bytes of payload behind a frame's Ethernet header.
    pub fn mtu_bytes(&self) -> Result<u32, InterfaceError> {
        let answer = self.ask("SIOCGIFMTU", libc::SIOCGIFMTU as c_ulong, |_| ())?;
        Ok(answer.number().unsigned_abs())
    }

    /// Sets the most bytes of payload behind a frame's Ethernet header.
    pub fn set_mtu_bytes(&self, mtu_bytes: u32) -> Result<(), InterfaceError> {
        let mtu = c_int::try_from(mtu_bytes).unwrap_or(c_int::MAX);
        self.ask("SIOCSIFMTU", libc::SIOCSIFMTU as c_ulong, |r| r.set_number(mtu)).map(drop)
    }

    fn flags(&self) -> Result<c_int, InterfaceError> {
        Ok(self.ask("SIOCGIFFLAGS", libc::SIOCGIFFLAGS as c_ulong, |_| ())?.flags())
    }

    fn ask(
        &self,
        step: &'static str,
        request: c_ulong,
        fill: impl FnOnce(&mut InterfaceRequest),
    ) -> Result<InterfaceRequest, InterfaceError> {
        let named = InterfaceRequest::named(&self.name).ok_or(Errno::NODEV);
        let asked = named.and_then(|mut interface| {
            fill(&mut interface);
            interface.ask(self.socket.as_fd(), request).map(|()| interface)
        });
        asked.map_err(|errno| self.failed(step, errno.into()))
    }

    fn failed(&self, step: &'static str, source: io::Error) -> InterfaceError {
        InterfaceError { name: self.name.clone(), step, source }
    }
}
