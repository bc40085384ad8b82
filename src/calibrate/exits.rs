//! What it costs a virtual machine of KVM's to leave its guest's code and to come back.

use super::figure::{Figure, nanoseconds};
use hyper_switch_pvnet::kvm::{Guest, KvmError};
use serde::Serialize;
use std::time::Instant;

/// Exits of each kind in a batch.
const EXITS: u32 = 64;

/// An exit, by who deals with it.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Exits {
    /// KVM, in the kernel: a doorbell that is an eventfd.
    pub(super) kernel: Figure,
    /// The program that has called KVM, to which it returns.
    pub(super) program: Figure,
}

/// Measures both on the core that it is called on.
///
/// # Errors
/// There is no KVM for this process, or none that runs the guest.
pub(super) fn measure(batches: usize) -> Result<Exits, KvmError> {
    let (mut silent, mut ringing) = (Guest::new(0)?, Guest::new(EXITS)?);
    let mut batch = || {
        let begin = Instant::now();
        for _ in 0..EXITS {
            silent.run()?;
        }
        let program_ns = nanoseconds(begin.elapsed()) / f64::from(EXITS);
        let begin = Instant::now();
        // These exits and then one to here.
        ringing.run()?;
        Ok((program_ns, (nanoseconds(begin.elapsed()) - program_ns) / f64::from(EXITS)))
    };
    // Until the guests' pages are there.
    batch()?;
    let measured = (0..batches).map(|_| batch()).collect::<Result<Vec<_>, _>>()?;
    let (program, kernel) = measured.into_iter().unzip();
    Ok(Exits { kernel: Figure::of(kernel), program: Figure::of(program) })
}
