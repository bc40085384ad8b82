//! The control plane: it decides where flows go and asks the data plane to install them.
//!
//! It sees nothing of the data plane but [`api`](hyper_switch_dataplane::api): events come in, requests
//! go out. The data plane forwards on when the control plane dies; a new one finds the flows there and
//! takes them over.
//!
//! | module | noun |
//! | --- | --- |
//! | [`mac`] | the table of which MAC address is behind which port |
//! | [`translate`] | from a packet that missed to the widest megaflow that is right for it |
//! | [`learning_switch`] | the state machine: events and time in, requests out; no clock, no thread, no channel |
//! | [`control_plane`] | the thread that runs it between two channels |

#![forbid(unsafe_code)]

pub mod control_plane;
mod flow_table;
mod last_use;
pub mod learning_switch;
pub mod mac;
pub mod translate;
