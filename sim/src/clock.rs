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
pub(crate) const PS: u64 = 1_000;

/// A duration of so many nanoseconds in picoseconds.
pub(crate) fn ps(ns: f64) -> u64 {
    (ns * PS as f64).round() as u64
}

/// The clock of whichever core is at work.
pub(crate) struct Clock {
    core: Cell<CoreId>,
    steps: Vec<StepTime>,
    /// Each core's time so far.
    books: Vec<[Cell<u64>; ACCOUNTS]>,
}

/// When a core's step began, and what it has taken so far.
#[derive(Clone, Default)]
pub(crate) struct StepTime {
    start_ns: Cell<u64>,
    spent_ps: Cell<u64>,
}

impl Clock {
    /// A clock for cores 0 to `cores` - 1.
    pub(crate) fn new(cores: usize) -> Clock {
        Clock {
            core: Cell::default(),
            steps: vec![StepTime::default(); cores],
            books: (0..cores).map(|_| Default::default()).collect(),
        }
    }

    #[inline]
    fn step(&self) -> &StepTime {
        &self.steps[usize::from(self.core.get().0)]
    }

    /// `core` begins a step.
    #[inline]
    pub(crate) fn begin(&self, core: CoreId, now_ns: u64) {
        self.core.set(core);
        self.step().start_ns.set(now_ns);
        self.step().spent_ps.set(0);
    }

    /// `core` goes on with its step.
    #[inline]
    pub(crate) fn resume(&self, core: CoreId) {
        self.core.set(core);
    }

    /// `core` leaves its step for another one. Answers what [`Clock::return_to`] takes.
    pub(crate) fn interrupt(&self, core: CoreId, now_ns: u64) -> StepTime {
        let aside = self.steps[usize::from(core.0)].clone();
        self.begin(core, now_ns);
        aside
    }

    /// `core` returns to the step that it left.
    pub(crate) fn return_to(&self, core: CoreId, aside: StepTime) {
        let step = &self.steps[usize::from(core.0)];
        step.start_ns.set(aside.start_ns.get());
        step.spent_ps.set(aside.spent_ps.get());
    }

    /// When the step of `core` began.
    pub(crate) fn began_of(&self, core: CoreId) -> u64 {
        self.steps[usize::from(core.0)].start_ns.get()
    }

    /// The time that the step of `core` has come to.
    pub(crate) fn now_of(&self, core: CoreId) -> Nanos {
        let StepTime { start_ns, spent_ps } = &self.steps[usize::from(core.0)];
        Nanos(start_ns.get() + spent_ps.get() / PS)
    }

    /// What the longest of all cores' steps has taken so far, in nanoseconds, of those under way or just over.
    pub(crate) fn longest_step_ns(&self) -> u64 {
        self.steps.iter().map(|step| step.spent_ps.get() / PS).max().unwrap_or_default()
    }

    /// The core that is at work.
    #[inline]
    pub(crate) fn core(&self) -> CoreId {
        self.core.get()
    }

    /// The time that the step has come to.
    #[inline]
    pub(crate) fn now(&self) -> Nanos {
        Nanos(self.began_ns() + self.spent_ns())
    }

    /// When the step began.
    #[inline]
    pub(crate) fn began_ns(&self) -> u64 {
        self.step().start_ns.get()
    }

    /// What the step has taken so far, in nanoseconds.
    #[inline]
    pub(crate) fn spent_ns(&self) -> u64 {
        self.step().spent_ps.get() / PS
    }

    /// Lets time pass.
    #[inline]
    pub(crate) fn charge(&self, account: Account, ps: u64) {
        self.pass(ps);
        let book = &self.books[usize::from(self.core.get().0)][account as usize];
        book.set(book.get() + ps);
    }

    /// Lets time pass that was charged before, or to another.
    pub(crate) fn wait(&self, ns: u64) {
        self.pass(ns * PS);
    }

    #[inline]
    fn pass(&self, ps: u64) {
        let spent = &self.step().spent_ps;
        spent.set(spent.get() + ps);
    }

    /// The time of all cores so far, in nanoseconds, by account.
    pub(crate) fn books(&self) -> Vec<[u64; ACCOUNTS]> {
        self.books.iter().map(|book| book.each_ref().map(|ps| ps.get() / PS)).collect()
    }
}
