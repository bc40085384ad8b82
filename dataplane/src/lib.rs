//! The data plane: packets from transmit rings, through the flow table, into receive rings.
//!
//! ```text
//!   VM a              transmit(a)                               receive(b)              VM b
//!   tx ring --kick--> header copied, key extracted,             one copy: header from
//!                     cache -> megaflow table -> actions        the switch, payload
//!                     |          \                              straight from a's memory
//!                     |           miss: held, upcall               ^            \
//!                     +--> internal receive queue of b --notify----+             rx ring of b
//!                                                                  +--> a's buffer is completed
//! ```
//!
//! It reads no clock, starts no thread, opens no file and is `no_std` + `alloc`: all that it needs of the
//! machine is the trait [`host::Host`], and all that a control plane may know of it is [`api`].

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

/// Whether this fault is planted here: `false` in everything but tests of what is to find it.
#[cfg(not(feature = "planted-faults"))]
macro_rules! planted {
    ($fault:ident) => {
        false
    };
}

#[cfg(feature = "planted-faults")]
macro_rules! planted {
    ($fault:ident) => {
        crate::faults::Fault::$fault.is_planted()
    };
}

pub mod action;
pub mod api;
mod claim;
pub mod counters;
mod epoch;
mod exchange;
#[cfg(feature = "planted-faults")]
pub mod faults;
mod flow;
mod frame;
pub mod host;
mod inbox;
pub mod key;
mod lanes;
#[cfg(all(test, loom))]
mod models;
pub mod policy;
mod port;
mod shares;
mod switch;
mod sync;

pub use exchange::Map;
pub use lanes::MAX_LANES;
pub use port::{Backend, PortConfig, PortFault, PortState, QueuePair, VmBackend};
pub use switch::{
    AttachError, Barrier, Control, CoreContext, Entered, ExchangeError, Gone, PortStatus, Reaped, Switch,
    SwitchConfig,
};

/// Starts the load of the cache line at `at`; any address will do.
#[inline]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that a program could see.
        unsafe { _mm_prefetch(at.cast(), _MM_HINT_T0) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
