//! Hyper-Switch, the program: its command line, its configuration, and the conversation with a running
//! switch. The switch itself is in the crates `pvnet`, `dataplane` and `controlplane`.
//!
//! | module | noun |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`config`] | the configuration file, and what `run` is to do |
//! | [`port_spec`], [`core_list`], [`log_filter`] | what the user writes for a port, cores, a filter |
//! | [`ctl`] | the control socket |
//! | [`report`], [`progress`] | what `pair` and `run` show at the end, and on the way there |
//! | [`daemon`] | what `run` runs |
//! | [`pair`] | what `pair` measures |
//! | [`vm`] | two Linux guests in QEMU on a switch |
//! | [`calibrate`] | what the switch's work costs on this machine |
//! | [`host`] | the thread host: workers, service, control plane |
//! | [`experiment`] | what a matrix of measurements came to: table, CSV, JSON, a page with figures |
//! | [`sim`] | the simulator's plans, and what came of them: table, CSV, JSON, a page with figures |
//! | [`plot`], [`page`] | figures as SVG; pages of HTML |
//! | [`machine`] | the machine that something was measured on |
//! | [`optimisations`] | the three optimisations, as the user writes them |
//! | [`swarm`] | trials of the switch on simulated machines, drawn at random |
//! | [`table`] | plain text tables, and numbers as people read them |
//! | [`exit`] | failures and exit codes |

#![forbid(unsafe_code)]

pub mod calibrate;
pub mod cli;
pub mod config;
pub mod core_list;
pub mod ctl;
pub mod daemon;
pub mod exit;
pub mod experiment;
mod folder;
pub mod host;
pub mod log_filter;
pub mod machine;
pub mod owned_socket;
pub mod page;
pub mod pair;
pub mod plot;
pub mod port_spec;
pub mod progress;
pub mod report;
pub mod sim;
mod source;
pub mod swarm;
pub mod table;
pub mod vm;

pub use hyper_switch_sim::optimisations;
