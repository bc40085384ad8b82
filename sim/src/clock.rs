//! Virtual time as it passes on the core that is at work, and what it passed with.
//!
//! A step of a task has its effects when it begins and takes its time afterwards. Within the step time passes by what it
//! does: so what a step tells others carries the moment at which the step had come so far.

use hyper_switch_dataplane::api::Nanos;
use hyper_switch_dataplane::host::CoreId;
use serde::{Deserialize, Serialize};
use std::cell::Cell;

macro_rules! accounts {
    ($($(#[doc = $doc:literal])+ $name:ident = $key:literal,)+) => {
        /// What a core's time goes to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Account { $($(#[doc = $doc])+ $name,)+ }

        impl Account {
            /// All, in the order in which reports show them.
            pub const ALL: &'static [Account] = &[$(Account::$name,)+];

            /// Its name in tables and files.
            pub fn name(self) -> &'static str {
                match self { $(Account::$name => $key,)+ }
            }
        }
    };
}

accounts! {
    /// The guest's stack, for what it sends.
    Send = "guest_send",
    /// The guest's stack, for what it receives.
    Receive = "guest_receive",
    /// Copies between sockets and packets in the guest.
    SocketCopy = "guest_copy",
    /// What runs above the guest's stack.
    Application = "application",
    /// Ways into the hypervisor and back, and interrupts taken.
    Entry = "entry",
    /// The switch: reading rings, looking up, queueing.
    Switching = "switching",
    /// Copies of packets by the switch.
    Copying = "copying",
    /// Telling others: notifications, wake-ups, messages between cores.
    Notifying = "notifying",
    /// The kernel around a switch that is not in the hypervisor: netback, vhost, bridge.
    Backend = "backend",
    /// Changing from one task to another.
    Dispatch = "dispatch",
}

/// How many accounts there are.
pub(crate) const ACCOUNTS: usize = Account::ALL.len();

/// Picoseconds in a nanosecond: costs are counted in the former, lest those of a fraction of a nanosecond be lost.
const PS: u64 = 1_000;

/// A duration of so many nanoseconds in picoseconds.
pub(crate) fn ps(ns: f64) -> u64 {
    (ns * PS as f64).round() as u64
}

/// The clock of whichever core is at work.
pub(crate) struct Clock {
    core: Cell<CoreId>,
    start_ns: Cell<u64>,
    spent_ps: Cell<u64>,
    /// Each core's time so far.
    books: Vec<[Cell<u64>; ACCOUNTS]>,
}

impl Clock {
    /// A clock for cores 0 to `cores` - 1.
    pub(crate) fn new(cores: usize) -> Clock {
        Clock {
            core: Cell::default(),
            start_ns: Cell::new(0),
            spent_ps: Cell::new(0),
            books: (0..cores).map(|_| Default::default()).collect(),
        }
    }

    /// `core` begins a step.
    #[inline]
    pub(crate) fn begin(&self, core: CoreId, now_ns: u64) {
        self.core.set(core);
        self.start_ns.set(now_ns);
        self.spent_ps.set(0);
    }

    /// The core that is at work.
    #[inline]
    pub(crate) fn core(&self) -> CoreId {
        self.core.get()
    }

    /// The time that the step has come to.
    #[inline]
    pub(crate) fn now(&self) -> Nanos {
        Nanos(self.start_ns.get() + self.spent_ps.get() / PS)
    }

    /// When the step began.
    #[inline]
    pub(crate) fn began_ns(&self) -> u64 {
        self.start_ns.get()
    }

    /// What the step has taken so far, in nanoseconds.
    #[inline]
    pub(crate) fn spent_ns(&self) -> u64 {
        self.spent_ps.get() / PS
    }

    /// Lets time pass.
    #[inline]
    pub(crate) fn charge(&self, account: Account, ps: u64) {
        self.spent_ps.set(self.spent_ps.get() + ps);
        let book = &self.books[usize::from(self.core.get().0)][account as usize];
        book.set(book.get() + ps);
    }

    /// Lets time pass that was charged before.
    pub(crate) fn wait(&self, ns: u64) {
        self.spent_ps.set(self.spent_ps.get() + ns * PS);
    }

    /// The time of all cores so far, in nanoseconds, by account.
    pub(crate) fn books(&self) -> Vec<[u64; ACCOUNTS]> {
        self.books.iter().map(|book| book.each_ref().map(|ps| ps.get() / PS)).collect()
    }
}
