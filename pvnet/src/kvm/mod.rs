//! A guest of KVM's that does nothing but leave its code: what an exit costs on this machine can be measured on it.
//!
//! ```no_run
//! # use hyper_switch_pvnet::kvm::Guest;
//! let mut guest = Guest::new(3)?;
//! guest.run()?; // three exits that KVM deals with in the kernel, and one to this program and back
//! assert_eq!(guest.rung(), 3);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! There are two kinds of exit, as a VMM's guests have them. A *ring* is a write to a port that stands for an eventfd
//! (`KVM_IOEVENTFD`), as doorbells of virtual devices do: KVM adds to the eventfd and enters the guest again. A write to a port that
//! nobody has goes out to the program that called `KVM_RUN`, as a kick does in a VMM without ioeventfd.
//!
//! The guest's code is in 64-bit mode at the lowest privilege, not in real mode: there are KVMs which interpret what is more
//! privileged (`kvm_pvm`, at half a microsecond an instruction), and an interpreter has no exits to measure. Nor does it
//! use `cpuid`, the customary instruction for this: there, another hypervisor below answers it.

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(not(target_arch = "x86_64"), path = "elsewhere.rs")]
mod guest;

pub use guest::Guest;

use std::io;

/// Why exits cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The guest's code is for another processor.
    #[error("the guest's code is for x86-64")]
    Architecture,
    /// There is no such device, or it is not for us.
    #[error("/dev/kvm: {0}")]
    Open(io::Error),
    /// KVM does not do what a VM takes.
    #[error("/dev/kvm: {step}: {error}")]
    Refused {
        /// What was asked for: the request's name in KVM's documentation.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The guest left its code in another way than by its ports.
    #[error("the guest of KVM left its code unexpectedly: {0}")]
    Exit(String),
    /// The guest did not do what its code says.
    #[error("the guest of KVM says that it has rung {said} times, where {due} were due")]
    Miscounted {
        /// By what it wrote to its port.
        said: u32,
        /// By its code.
        due: u32,
    },
}
