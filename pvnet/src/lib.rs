//! The paravirtual network interface: what stands between a virtual machine and the switch.
//!
//! One ring serves every kind of VM (the virtqueue of VIRTIO 1.2, split or packed, clauses 2.7 and 2.8), and one
//! packet header travels with every frame (`virtio_net_hdr`, clause 5.1.6). `tx` and `rx` are always
//! the VM's: a VM transmits into its tx ring and receives from its rx ring.
//!
//! | module | noun |
//! | --- | --- |
//! | [`mem`] | guest memory: translation of guest addresses, copies to and from hostile memory |
//! | [`header`] | `virtio_net_hdr` and the offloads that it asks for |
//! | [`offload`] | finishing a checksum, cutting a segment: what a port without the offload needs |
//! | [`ring`] | the virtqueue in both its formats, device side and driver side |
//! | [`device`] | a port without rings: frames that come and go by system call |
//! | [`tap`], [`packet`] | the two such devices: TAP and AF_PACKET (feature `std`) |
//! | [`run_state`] | whether a VM runs, was preempted or blocks, as it is seen from outside |
//! | [`sched`] | the scheduler's word on that, for threads of any process (feature `std`) |
//! | [`namespace`] | a network namespace of the process's own and its interfaces (feature `std`) |
//! | [`vhost_user`] | the protocol by which a VMM attaches its guest (feature `std`) |
//! | [`kvm`] | a guest of KVM's, to measure exits by (feature `std`) |
//! | [`guest`] | the in-process guest: rings, memory and a smoltcp TCP/IP stack (feature `std`) |
//!
//! The crate reads no clock and starts no thread, but for those that [`namespace`] is asked for. Without
//! the feature `std` it opens no file either, and is `no_std` + `alloc`.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod device;
pub mod header;
pub mod mem;
pub mod offload;
pub mod ring;
pub mod run_state;

#[cfg(feature = "std")]
pub mod guest;
#[cfg(feature = "std")]
pub mod kvm;
#[cfg(feature = "std")]
pub mod namespace;
#[cfg(feature = "std")]
pub mod packet;
#[cfg(feature = "std")]
pub mod priority;
#[cfg(feature = "std")]
pub mod sched;
#[cfg(feature = "std")]
mod sys;
#[cfg(feature = "std")]
pub mod tap;
#[cfg(feature = "std")]
pub mod vhost_user;

/// The most bytes that a frame may have, from the destination address to the last byte of payload:
/// a 65,535-byte IP packet (RFC 791, total length), an Ethernet header and two VLAN tags.
pub const MAX_FRAME_BYTES: usize = 65_535 + 14 + 2 * 4;

/// The fewest bytes that a frame may have: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
