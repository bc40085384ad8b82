//! The in-process guest: a VM without a hypervisor. Its own memory, a paravirtual driver over two rings, and
//! a smoltcp TCP/IP stack, so that what the switch carries is real TCP.
//!
//! ```text
//!             workload          stream, request/response, datagrams: a state machine
//!                |
//!              Stack            smoltcp: ARP, IPv4, TCP, UDP
//!                |
//!               Nic             the driver: offloads, buffers, two rings in guest memory
//!                |
//!   Hypercall: transmit, receive, take_interrupt        entries to the switch, supplied by the host
//! ```
//!
//! A guest has no thread and no clock: its host calls [`Guest::poll`] with the time, on whichever thread is
//! the VM's, and parks that thread when the guest is idle.
//!
//! # Sleeping and waking
//! The virtual interrupt is a flag that the switch sets *before* it wakes the VM's thread, and that stays set
//! until [`Hypercall::take_interrupt`] takes it. The host's loop is
//!
//! ```text
//! loop {
//!     match guest.poll(now(), &mut hypercall, &mut workload)? {
//!         Poll::Busy => continue,
//!         Poll::Idle { until_ns } => park until the flag is set or until_ns has come
//!     }
//! }
//! ```
//!
//! No wake-up is lost, as each side looks once more after it has announced itself. Before it answers
//! [`Poll::Idle`], the guest (1) asks its rings for interrupts, (2) looks into the rings again, (3) looks at
//! the flag again. What comes after (2) interrupts; what interrupts after (3) sets the flag, on which the host
//! parks, in one step with looking at it (a futex or an eventfd does).
//!
//! What a notification means depends on the switch. In the paper's basic form frames wait in the switch, and
//! the guest calls [`Hypercall::receive`] to have them copied. With preemptive copy they are in the ring
//! already and that entry is saved: [`Hypercall::frames_wait`] tells.

mod checksum;
pub mod doorbell;
pub mod driver;
mod nic;
pub mod raw;
mod stations;
#[cfg(test)]
mod tests;
pub mod workload;

pub use nic::{Nic, NicConfig, NicConfigError, NicCounters, NicFault, NicPlaces, NicStanding};
pub use stations::Stations;

use driver::Driver;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use std::net::Ipv4Addr;
use workload::Workload;

/// The guest's entries to the switch, and the one thing that comes back: the virtual interrupt.
pub trait Hypercall {
    /// The doorbell of the transmit ring: switch what it holds.
    fn transmit(&mut self);

    /// Copy to the receive ring what the switch holds for this VM.
    fn receive(&mut self);

    /// Takes the pending virtual interrupt: `true` once for any number of notifications since the last call.
    fn take_interrupt(&mut self) -> bool;

    /// Whether the switch may hold frames for this VM that are not yet in its ring, as far as shared memory
    /// tells without an entry. Whoever cannot tell says `true`, which costs an entry.
    fn frames_wait(&mut self) -> bool {
        true
    }

    /// The VM is about to block, which is an entry as any other: an interrupt that was put off because the VM was awake
    /// is due. Answers whether it need not block, as there is something to look at.
    fn block(&mut self) -> bool {
        false
    }
}

/// What the VM's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// There was work, and there may be more: poll again.
    Busy,
    /// Nothing to do until an interrupt comes.
    Idle {
        /// Or until this time, in nanoseconds of the host's clock, if any.
        until_ns: Option<u64>,
    },
}

/// Who a guest is and how its interface is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// Its MAC address; unicast.
    pub mac: [u8; 6],
    /// Its IPv4 address; unicast.
    pub ip: Ipv4Addr,
    /// Bits of the network's part of [`ip`](GuestConfig::ip), at most 32.
    pub prefix_bits: u8,
    /// Its interface.
    pub nic: NicConfig,
    /// Where its TCP sequence numbers start from; the same seed gives the same run.
    pub seed: u64,
}

impl GuestConfig {
    /// Guest `n` of one flat network, 10.0.0.0/8: address 10.1.0.0 + n + 1, and a locally administered MAC
    /// (02:00) that ends in that address.
    pub fn numbered(n: u16) -> GuestConfig {
        let ip = Ipv4Addr::from_bits(0x0a01_0000 + u32::from(n) + 1);
        let [a, b, c, d] = ip.octets();
        GuestConfig {
            mac: [0x02, 0x00, a, b, c, d],
            ip,
            prefix_bits: 8,
            nic: NicConfig::default(),
            seed: n.into(),
        }
    }
}

/// How often a guest entered the switch and was interrupted by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCounters {
    /// Entries to have the transmit ring switched.
    pub transmit_hypercalls: u64,
    /// Entries to have waiting frames copied.
    pub receive_hypercalls: u64,
    /// Interrupts taken.
    pub interrupts: u64,
}

/// The guest's TCP/IP stack, as workloads see it.
pub struct Stack {
    iface: Interface,
    /// Its sockets.
    pub sockets: SocketSet<'static>,
    next_port: u16,
    mtu_bytes: u16,
}

impl Stack {
    /// What smoltcp needs to know of the interface for a connection to be made.
    pub fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.iface.context()
    }

    /// The guest's address.
    pub fn ip(&self) -> Ipv4Addr {
        self.iface.ipv4_addr().unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The largest IP packet that the interface sends, in bytes.
    pub fn mtu_bytes(&self) -> usize {
        self.mtu_bytes.into()
    }

    /// A local port from the dynamic range (RFC 6335), another each time until all were given.
    pub fn dynamic_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_DYNAMIC_PORT);
        port
    }
}

const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// A VM in this process.
pub struct Guest {
    driver: Driver,
    stack: Stack,
}

impl Guest {
    /// A guest that is ready for its rings to be attached to a switch.
    ///
    /// # Errors
    /// An interface that cannot be had.
    ///
    /// # Panics
    /// If an address is not unicast or the prefix is longer than 32 bits.
    pub fn new(config: GuestConfig) -> Result<Guest, NicConfigError> {
        let mut nic = Nic::new(config.nic)?;
        let mut interface = Config::new(EthernetAddress(config.mac).into());
        interface.random_seed = config.seed;
        let mut iface = Interface::new(interface, &mut nic, Instant::ZERO);
        iface.update_ip_addrs(|addrs| {
            addrs
                .push(IpCidr::new(config.ip.into(), config.prefix_bits))
                .expect("there is room for one address");
        });
        let stack = Stack {
            iface,
            sockets: SocketSet::new(Vec::new()),
            next_port: FIRST_DYNAMIC_PORT,
            mtu_bytes: config.nic.mtu_bytes,
        };
        Ok(Guest { driver: Driver::new(nic), stack })
    }

    /// The interface: memory and rings for the switch, and its counters.
    pub fn nic(&self) -> &Nic {
        &self.driver.nic
    }

    /// The stack, to make workloads on.
    pub fn stack(&mut self) -> &mut Stack {
        &mut self.stack
    }

    /// Entries and interrupts so far.
    pub fn counters(&self) -> GuestCounters {
        self.driver.counters
    }

    /// Does what there is to do at `now_ns` (nanoseconds of any clock that does not run backwards): takes what
    /// was received, lets `work` use its sockets, sends what there is to send, with few entries to the switch
    /// (see [`doorbell`]), and tells whether the VM's thread may sleep. A call is bounded by what the rings hold.
    ///
    /// # Errors
    /// The switch broke the rules of the rings. The guest is then dead and says the same again.
    pub fn poll(
        &mut self,
        now_ns: u64,
        hypercall: &mut dyn Hypercall,
        work: &mut dyn Workload,
    ) -> Result<Poll, NicFault> {
        let now = Instant::from_micros((now_ns / 1_000) as i64);
        self.driver.wake(hypercall);
        let Guest { driver, stack } = self;
        let mut busy = false;
        stack.iface.poll_maintenance(now);
        loop {
            let Stack { iface, sockets, .. } = stack;
            if iface.poll_ingress_single(now, &mut driver.nic, sockets) == PollIngressSingleResult::None {
                break;
            }
            driver.announce_each(now_ns, hypercall);
            busy = true;
        }
        busy |= work.poll(now_ns, stack);
        // Each turn sends a packet for each socket at most.
        while stack.iface.poll_egress(now, &mut driver.nic, &mut stack.sockets) != PollResult::None {
            driver.announce_each(now_ns, hypercall);
            busy = true;
        }
        if let Some(fault) = driver.nic.fault() {
            return Err(fault);
        }
        driver.publish(now_ns, hypercall);
        if busy || !driver.park(now_ns, hypercall) {
            return Ok(Poll::Busy);
        }
        let due = stack.iface.poll_at(now, &stack.sockets);
        let until_ns = match due {
            // What is due cannot be sent before the switch gives transmit buffers back, which interrupts.
            Some(at) if at <= now && driver.nic.is_tx_starved() => None,
            Some(at) if at <= now => return Ok(Poll::Busy),
            at => at.map(|at| at.total_micros().unsigned_abs() * 1_000),
        };
        let until_ns = [until_ns, work.due_ns()].into_iter().flatten().min();
        Ok(Poll::Idle { until_ns })
    }
}
