//! The packed virtqueue (VIRTIO 1.2, clause 2.8): one ring of descriptors that both sides write.
//!
//! ```text
//!              used            next            seen
//!                v               v               v
//!   +--------+---+---+---+---+---+---+---+---+---+--------+
//!   |  free  | chains that are   | chains on     |  free  |   16 bytes a descriptor:
//!   |        | out: the device's | offer         |        |   addr len id flags
//!   +--------+-------------------+---------------+--------+
//!     driver: may offer here       device: takes here, and writes what is used at `used`
//! ```
//!
//! The driver writes a chain's descriptors into slots that follow each other, the last with the chain's *buffer id*,
//! which is its head. The device writes one descriptor with that id over the slots of the chains that are out, in the order in which it
//! gives them back, and goes on behind as many slots as the chain had. Both go round the ring and flip a wrap counter
//! each time; a descriptor's two flags `AVAIL` and `USED`, held against the counter, say whose it is. Whoever shows
//! several chains at once writes the first one's flags last.

pub(crate) mod device;
pub(crate) mod driver;
mod event;
pub(crate) mod layout;
