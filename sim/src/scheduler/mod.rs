//! Who runs where and for how long.
//!
//! | file | noun |
//! | --- | --- |
//! | `credit` | a hypervisor's: credit, and a bonus for who slept |
//! | `eevdf` | Linux's: earliest eligible virtual deadline first |

mod credit;
mod eevdf;

use crate::host::TaskId;
use crate::machine::Machine;
use credit::{Credit, CreditScheduler};
use eevdf::EevdfScheduler;
use hyper_switch_dataplane::host::CoreId;
use serde::{Deserialize, Serialize};

/// Which scheduler there is, and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SchedulerConfig {
    /// As hypervisors have one. A task gives up its core between steps.
    Credit {
        /// How long a task runs while others wait, in microseconds.
        slice_us: u32,
        /// How much younger than the youngest a task is at most, having slept; by half of that it takes its core from
        /// another as it wakes.
        bonus_us: u32,
        /// Tasks stay on their first core.
        #[serde(default)]
        pinned: bool,
    },
    /// Linux's, for tasks of equal weight that stay on their first core. Whoever wakes takes its core at once where the
    /// scheduler says so, in the midst of the other's step if need be.
    Eevdf {
        /// The request of each task, in microseconds: `base_slice_ns`.
        slice_us: u32,
        /// Between two ticks, in microseconds: slices end there.
        tick_us: u32,
    },
}

impl Default for SchedulerConfig {
    /// Xen's credit scheduler: 30 ms, and who wakes is preferred.
    fn default() -> SchedulerConfig {
        SchedulerConfig::Credit { slice_us: 30_000, bonus_us: 1_000, pinned: false }
    }
}

impl SchedulerConfig {
    /// What of it is zero and must not be, if anything.
    pub(crate) fn zero(&self) -> Option<&'static str> {
        match *self {
            SchedulerConfig::Credit { slice_us: 0, .. } | SchedulerConfig::Eevdf { slice_us: 0, .. } => {
                Some("the slice")
            }
            SchedulerConfig::Eevdf { tick_us: 0, .. } => Some("the tick"),
            _ => None,
        }
    }

    /// The scheduler of so many tasks, none of which is ready.
    pub(crate) fn scheduler(&self, machine: Machine, tasks: usize) -> Box<dyn Scheduler> {
        match *self {
            SchedulerConfig::Credit { slice_us, bonus_us, pinned } => {
                Box::new(CreditScheduler::new(Credit { slice_us, bonus_us, pinned }, machine, tasks))
            }
            SchedulerConfig::Eevdf { slice_us, tick_us } => {
                Box::new(EevdfScheduler::new(slice_us, tick_us, machine, tasks))
            }
        }
    }
}

/// Where a task waits that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) core: CoreId,
    /// The core is to be taken from the task that has it, at once.
    pub(crate) takes_it: bool,
}

/// The run queues of all cores.
pub(crate) trait Scheduler {
    /// Where a task is at home from now on.
    fn place(&mut self, task: TaskId, core: CoreId);

    /// Who has `core`.
    fn running(&self, core: CoreId) -> Option<TaskId>;

    /// A task is ready: chooses its core and has it wait there. `avoid` says which cores had better be left alone though
    /// no task runs there.
    fn ready(&mut self, task: TaskId, avoid: &dyn Fn(CoreId) -> bool) -> Ready;

    /// The task that has `core` has run for `ns`, until now.
    fn ran(&mut self, core: CoreId, ns: u64, now_ns: u64);

    /// The task that has `core` blocks.
    fn block(&mut self, core: CoreId);

    /// Whether the task that has `core` is to make way for one that waits there, now that its step is over.
    fn is_over(&mut self, core: CoreId, now_ns: u64) -> bool;

    /// The task that has `core` waits again.
    fn preempt(&mut self, core: CoreId) -> Option<TaskId>;

    /// Gives `core`, which nobody has, to whoever is to run there next.
    fn pick(&mut self, core: CoreId, now_ns: u64) -> Option<TaskId>;
}
