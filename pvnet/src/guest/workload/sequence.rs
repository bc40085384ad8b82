//! What arrived of numbered packets: all, some, or out of order.

/// What came of packets that were numbered from 0 on as they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    received: u64,
    reordered: u64,
    /// One more than the highest number that came.
    expected: u64,
}

impl Sequence {
    /// The packet with this number came.
    #[inline]
    pub fn note(&mut self, number: u64) {
        self.received += 1;
        self.reordered += u64::from(number < self.expected);
        self.expected = self.expected.max(number.saturating_add(1));
    }

    /// Packets that came.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Of those, packets that came after one with a higher number; a second copy counts here as well.
    pub fn reordered(&self) -> u64 {
        self.reordered
    }

    /// Numbers up to the highest one that did not come. A second copy of one hides the loss of another.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.received)
    }
}
