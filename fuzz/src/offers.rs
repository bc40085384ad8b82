//! What a driver writes that has no scruples: a descriptor and its chain on offer, whatever they say, in either format.

use hyper_switch_pvnet::ring::{QueueAddrs, RingFormat};

/// A descriptor that is one chain's first, or says so.
pub struct Lie {
    /// The head of its chain, below 2^16; packed: its id.
    pub head: u16,
    pub addr: u64,
    pub bytes: u32,
    /// Of the flags, NEXT, WRITE and INDIRECT.
    pub flags: u8,
    /// Where a split chain goes on.
    pub next: u8,
}

/// A queue's offers, as far as they have come.
pub struct Offers {
    pub format: RingFormat,
    pub addrs: QueueAddrs,
    /// Entries of the queue, at least 1.
    pub size: u16,
    /// The available index; packed: the slot, and in bit 15 its wrap counter.
    pub next: u16,
}

impl Offers {
    /// Offers one more, by writing bytes to guest addresses.
    pub fn offer(&mut self, lie: &Lie, mut write: impl FnMut(u64, &[u8])) {
        let Lie { head, addr, bytes, flags, next } = *lie;
        let descriptor = |last: [u16; 2]| {
            let last = last.map(u16::to_le_bytes).concat();
            [&addr.to_le_bytes()[..], &bytes.to_le_bytes(), &last].concat()
        };
        let flags = u16::from(flags & 7);
        match self.format {
            RingFormat::Split => {
                write(self.addrs.desc + 16 * u64::from(head), &descriptor([flags, next.into()]));
                write(self.addrs.avail + 4 + 2 * u64::from(self.next % self.size), &head.to_le_bytes());
                self.next = self.next.wrapping_add(1);
                write(self.addrs.avail + 2, &self.next.to_le_bytes());
            }
            RingFormat::Packed => {
                let (slot, wrap) = (self.next & 0x7fff, self.next >> 15);
                // Available, and not used: one flag is as the wrap counter is, the other is not.
                let owner = (wrap << 7) | ((wrap ^ 1) << 15);
                write(self.addrs.desc + 16 * u64::from(slot), &descriptor([head, flags | owner]));
                self.skip(1);
            }
        }
    }

    /// So many more were offered; in a packed queue, so many descriptors. At most as many as the queue has.
    pub fn skip(&mut self, count: u16) {
        match self.format {
            RingFormat::Split => self.next = self.next.wrapping_add(count),
            RingFormat::Packed => {
                let (slot, wrap) = ((self.next & 0x7fff) + count, self.next & 0x8000);
                self.next = if slot < self.size { slot | wrap } else { (slot - self.size) | (wrap ^ 0x8000) };
            }
        }
    }
}
