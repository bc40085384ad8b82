//! The simulator: the shipping switch on virtual cores.
//!
//! The guests' drivers, their rings and the whole data and control plane are the real code. Modelled are the clock, the
//! cores, the scheduler and the guests' stacks; what each piece of work costs is read from a [table](costs) that names its
//! sources. So machines can be looked at that nobody here has, and a run can be had again to the last event.
//!
//! | module | noun |
//! | --- | --- |
//! | [`plan`] | an experiment: what differs between its points, and what all have in common |
//! | [`sweep`] | all points of a plan, on all cores |
//! | [`saturation`] | what was used up at a point |
//! | [`optimisations`] | the three optimisations, as the user writes them |
//! | [`scenario`] | what a run is made of, and what came of it |
//! | [`simulation`] | a run: cores, tasks, steps, in one order of events |
//! | [`costs`] | what work costs, each figure with its source |
//! | [`machine`] | cores, and which are near each other |
//! | [`scheduler`] | who runs where and for how long |
//! | `memory` | what all cores share |
//! | `host` | the [`Host`](hyper_switch_dataplane::host::Host) that the switch sees |
//! | `arch` | the three architectures: this switch, a driver domain, vhost |
//! | `guest` | a guest with a real driver and a modelled stack |
//! | [`check`] | what must hold after each event |
//! | `trial`, `lies` | what is done to VMs and the control plane from outside |
//! | [`swarm`] | trials drawn at random |
//! | `fiber` | a task that can be put aside in the midst of the switch |
//! | `clock`, `event`, `random`, `trace` | virtual time, the order of events, seeded streams, what happened |

#![forbid(unsafe_code)]

mod arch;
pub mod check;
mod clock;
pub mod costs;
mod event;
mod fiber;
mod guest;
mod host;
mod lies;
pub mod machine;
mod memory;
pub mod optimisations;
pub mod plan;
mod prices;
mod random;
pub mod saturation;
pub mod scenario;
pub mod scheduler;
pub mod simulation;
pub mod swarm;
pub mod sweep;
mod trace;
mod trial;

pub use clock::Account;
pub use guest::program::{Side, Workload};
