//! The checkers: what must hold after each event of a checked run, whatever happens in it.
//!
//! | module | holds |
//! | --- | --- |
//! | `ledger` | every frame and every buffer is somewhere, once |
//! | `liveness` | whoever waits is served or told, within a bound |
//! | `routes` | frames arrive where flows say, and after a barrier not where they said before |
//! | `witness` | what a guest takes is what was sent: in order, whole, and nothing beside it |
//!
//! # What it costs, and when it is done
//! A look at a port adds up the counters of all cores and goes through its frames in flight. So after an event only the
//! ports are looked at that it touched: those that the switch named to its host meanwhile, and that of the VM that ran.
//! What waits is remembered with the time since when, and compared with the time at every event. All ports are looked
//! at every 64th event, at each change from outside, and at the end.
//!
//! A core that was put aside in the midst of the switch has books half written. So the ledgers of ports that were touched
//! are looked at after the first event after which no core is in the switch; order, damage and canaries at once.

mod ledger;
mod liveness;
mod routes;
pub(crate) mod witness;

use hyper_switch_dataplane::PortStatus;
use hyper_switch_dataplane::api::PortId;
use hyper_switch_pvnet::guest::{NicCounters, NicStanding};
pub(crate) use liveness::Bounds;
use liveness::Liveness;
pub(crate) use routes::Routes;
use serde::Serialize;
use std::fmt;
use witness::Arrival;

/// Events from one look at all ports to the next.
pub(crate) const EVERY: u64 = 64;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $rule:ident = $name:literal,)+) => {
        /// What has to hold.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Rule { $($(#[doc = $doc])+ $rule,)+ }

        impl Rule {
            /// Its name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$rule => $name,)+ }
            }
        }
    };
}

rules! {
    /// Every frame that a port took or was offered is somewhere.
    Conservation = "conservation",
    /// Every buffer comes back, and comes back once.
    Completion = "completion",
    /// Frames of a flow arrive in the order in which they were sent, and once.
    Order = "order",
    /// A frame arrives as it was sent.
    Damage = "damage",
    /// A frame arrives where its flow says, and nowhere else.
    Route = "route",
    /// A blocked VM is told of what there is for it.
    WakeUp = "wake-up",
    /// What is on offer is taken, and what waits goes on.
    Starvation = "starvation",
    /// Nothing is written but frames, where buffers were posted for them.
    Canary = "canary",
    /// An honest guest is not lied to, and an honest guest's port does not break.
    Guest = "guest",
    /// When all is quiet nothing is left in the switch.
    Leak = "leak",
    /// When all is quiet everybody sleeps.
    Rest = "rest",
    /// The switch does not panic.
    Panic = "panic",
}

/// What was broken, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The virtual time, in nanoseconds.
    pub at_ns: u64,
    /// The number of the event after which it showed.
    pub event: u64,
    /// What that event was.
    pub happened: String,
    /// Which rule.
    pub rule: Rule,
    /// Who and what, in a sentence.
    pub says: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { at_ns, event, happened, rule, says } = self;
        write!(f, "{}: {says} (at {at_ns} ns, after event {event}, {happened})", rule.name())
    }
}

/// A rule that is broken, and how.
pub(crate) type Broken = (Rule, String);

/// How frames come to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// Each in one buffer.
    Whole,
    /// Each in one or several buffers.
    Spread,
    /// Some are cut, which counts when the last part has come: from VMs that lie about what they send.
    Cut,
}

/// What is to be seen of an honest VM's interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NicLook {
    pub(crate) standing: NicStanding,
    pub(crate) counters: NicCounters,
    /// It has no transmit buffer and wants one.
    pub(crate) is_starved: bool,
    /// Its free receive buffers take any frame if they are so many.
    pub(crate) ample_buffers: u16,
    pub(crate) parts: Parts,
}

/// What is to be seen of an honest VM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmLook {
    /// It is blocked, and nobody has signalled it.
    pub(crate) is_asleep: bool,
    /// Frames that it has sent and kicked for.
    pub(crate) kicked: u64,
}

/// A port after an event, with the VM that is connected to it, if that is alive and honest, and its interface, if it is not
/// in the midst of using it.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) port: PortStatus,
    pub(crate) vm: Option<VmLook>,
    pub(crate) nic: Option<NicLook>,
}

/// What is kept of a port from one look to the next.
#[derive(Default)]
struct Watched {
    /// What the port had counted when its VM was connected: frames taken from it, and handed to it.
    taken: u64,
    handed: u64,
    liveness: Liveness,
}

/// All that is checked of a run.
pub(crate) struct Checker {
    bounds: Bounds,
    ports: Vec<Watched>,
    pub(crate) routes: Routes,
}

impl Checker {
    pub(crate) fn new(ports: usize, bounds: Bounds) -> Checker {
        Checker {
            bounds,
            ports: (0..ports).map(|_| Watched::default()).collect(),
            routes: Routes::new(ports),
        }
    }

    /// A VM was connected anew to the port.
    pub(crate) fn connected(&mut self, port: &PortStatus) {
        let counters = &port.counters;
        self.ports[usize::from(port.info.id.0)] =
            Watched { taken: counters.tx.frames, handed: counters.rx.frames, liveness: Liveness::default() };
    }

    /// Nothing at the port is waited for any more.
    pub(crate) fn disconnected(&mut self, id: PortId) {
        self.ports[usize::from(id.0)].liveness = Liveness::default();
    }

    /// A step took so long.
    pub(crate) fn note_step(&mut self, ns: u64) {
        self.bounds.longest_step_ns = self.bounds.longest_step_ns.max(ns);
    }

    /// Notes what waits at a port.
    pub(crate) fn watch(&mut self, now_ns: u64, look: &Look) {
        let watched = &mut self.ports[usize::from(look.port.info.id.0)];
        match &look.vm {
            None => watched.liveness = Liveness::default(),
            Some(vm) => {
                let taken = look.port.counters.tx.frames - watched.taken;
                watched.liveness.look(now_ns, look, vm, taken, &self.bounds);
            }
        }
    }

    /// Looks at the books of a port, which no core is changing.
    pub(crate) fn audit(&self, look: &Look) -> Result<(), Broken> {
        ledger::port(&look.port)?;
        let watched = &self.ports[usize::from(look.port.info.id.0)];
        let Some(nic) = &look.nic else { return Ok(()) };
        let counters = &look.port.counters;
        let since = ledger::Since {
            taken: counters.tx.frames - watched.taken,
            handed: counters.rx.frames - watched.handed,
        };
        ledger::nic(&look.port, nic, &since)
    }

    /// Looks at what waits, at all ports.
    pub(crate) fn waits(&self, now_ns: u64) -> Result<(), Broken> {
        self.ports.iter().enumerate().try_for_each(|(vm, watched)| {
            let overdue = watched.liveness.overdue(now_ns, &self.bounds);
            overdue.map_err(|(rule, says)| (rule, format!("VM {vm} {says}")))
        })
    }

    /// Looks at what ports say of each other.
    pub(crate) fn between(ports: &[PortStatus]) -> Result<(), Broken> {
        ledger::between(ports)
    }

    /// Looks at what a VM has just taken, which was sent at that time.
    pub(crate) fn arrival(&self, at: u16, arrival: &Arrival, sent_ns: u64) -> Result<(), Broken> {
        self.routes.arrival(at, arrival, sent_ns)
    }

    /// Looks at a port when all is over.
    pub(crate) fn rest(look: &Look) -> Result<(), Broken> {
        ledger::rest(look)
    }
}
