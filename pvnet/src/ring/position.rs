//! Where the device side of a queue stands, as vhost-user's `SET_VRING_BASE` and `GET_VRING_BASE` say it.

/// A queue's position. Split: the available index to be taken next, in bits 0-15. Packed: in bits 0-14 the slot of the
/// descriptor to be taken next, in bit 15 the wrap counter of that, and in bits 16-31 both for the descriptor to be
/// used next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(pub u32);

impl Position {
    /// The first entry of a split queue.
    pub const SPLIT_START: Position = Position(0);
    /// The first descriptor of a packed queue: both wrap counters begin with 1 (clause 2.8.1).
    pub const PACKED_START: Position = Position(0x8000_8000);
}

/// A packed queue cannot begin at a slot that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a queue of {size} cannot begin at slot {slot}")]
pub struct PositionError {
    /// The slot that was named.
    pub slot: u16,
    /// Slots of the queue.
    pub size: u16,
}
