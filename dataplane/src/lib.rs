//! The data plane: packets from transmit rings, through the flow table, into receive rings.
//!
//! It reads no clock, starts no thread, opens no file and is `no_std` + `alloc`: all that it needs of the
//! machine is the trait [`host::Host`], and all that a control plane may know of it is [`api`].

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod action;
pub mod api;
pub mod key;
