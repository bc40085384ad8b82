//! Hyper-Switch, the program: its command line, its configuration, and the conversation with a running
//! switch. The switch itself is in the crates `pvnet`, `dataplane` and `controlplane`.
//!
//! | module | noun |
//! | --- | --- |
//! | [`port_spec`], [`core_list`], [`log_filter`] | what the user writes for a port, cores, a filter |
//! | [`ctl`] | the control socket |
//! | [`table`] | plain text tables, and numbers as people read them |
//! | [`exit`] | failures and exit codes |

#![forbid(unsafe_code)]

pub mod core_list;
pub mod ctl;
pub mod exit;
pub mod log_filter;
pub mod port_spec;
pub mod table;
