//! What a VM may do that it must not: it has all of its memory to itself, and writes there what it likes.
//!
//! A liar sends frames of its own alone: its transmit descriptors are never pointed to where frames of others come to
//! lie, as a VM that sends those again is none that a checker could tell from their sender.

use crate::random::Random;
use hyper_switch_pvnet::guest::Nic;
use hyper_switch_pvnet::ring::RingFormat;

/// A lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// More is on offer than is, or less.
    Index,
    /// A chain begins, or is called, what it is not.
    Head,
    /// A chain goes on where it should not: in itself, outside the table.
    Next,
    /// A buffer is not as long as it was.
    Length,
    /// A buffer is nowhere, or begins elsewhere.
    Address,
    /// Any flags.
    Flags,
    /// Any `virtio_net_hdr`.
    Header,
    /// What the switch said is something else.
    Used,
}

impl Lie {
    /// All.
    pub(crate) const ALL: [Lie; 8] =
        [Lie::Index, Lie::Head, Lie::Next, Lie::Length, Lie::Address, Lie::Flags, Lie::Header, Lie::Used];

    /// Tells it, in one of the rings of `nic`.
    pub(crate) fn tell(self, nic: &mut Nic, random: &mut Random) {
        let (word, is_tx) = (random.word(), random.chance(0.5));
        let places = nic.places().clone();
        let (ring, layout) = match is_tx {
            true => (places.tx_ring, nic.tx_layout()),
            false => (places.rx_ring, nic.rx_layout()),
        };
        let entry = word % u64::from(layout.size());
        let desc = ring.desc + 16 * entry;
        let is_split = layout.format() == RingFormat::Split;
        let any = random.word();
        // Of a descriptor: address 0, length 8, then flags 12 and next 14, or packed: id 12 and flags 14.
        let (flags, other) = if is_split { (desc + 12, desc + 14) } else { (desc + 14, desc + 12) };
        let small = (any % 40) as u16;
        let mut poke = |addr: u64, bytes: &[u8]| {
            // A ring lies in memory; what is beside it is nobody's.
            let _ = nic.poke(addr, bytes);
        };
        match self {
            Lie::Index if is_split => poke(ring.avail + 2, &(any as u16).to_le_bytes()),
            // A packed ring's descriptors say themselves that they are on offer.
            Lie::Index => poke(flags, &(any as u16 & 0x8080).to_le_bytes()),
            Lie::Head if is_split => poke(ring.avail + 4 + 2 * entry, &small.to_le_bytes()),
            Lie::Head => poke(other, &small.to_le_bytes()),
            Lie::Next => {
                poke(other, &if any.is_multiple_of(2) { entry as u16 } else { any as u16 }.to_le_bytes());
                // With `VIRTQ_DESC_F_NEXT`; on offer in this round or the next.
                poke(flags, &[1, if any.is_multiple_of(3) { 0x80 } else { 0 }]);
            }
            Lie::Length => {
                let length = if any.is_multiple_of(2) { any as u32 } else { u32::from(small) };
                poke(desc + 8, &length.to_le_bytes());
            }
            Lie::Address => {
                let area = if is_tx { places.tx_buffers.0 } else { ring.desc..ring.used };
                let inside = area.start + any % (area.end - area.start);
                let addr =
                    if any.is_multiple_of(3) { inside } else { area.end.max(1 << 32) + any % (1 << 60) };
                poke(desc, &addr.to_le_bytes());
            }
            Lie::Flags => poke(flags, &(any as u16).to_le_bytes()),
            Lie::Header => {
                let (area, stride) = places.tx_buffers;
                for start in area.step_by(stride as usize) {
                    let header = [random.word().to_le_bytes(), random.word().to_le_bytes()].concat();
                    poke(start, &header[..12]);
                }
            }
            Lie::Used => poke(ring.used + any % 16, &[any as u8]),
        }
    }
}
