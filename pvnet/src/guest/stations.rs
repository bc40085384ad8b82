//! Who has which address among numbered guests: for switches that learn nothing, as those do which the data plane of this
//! project is measured against.

use super::GuestConfig;
use crate::ring::relay::Stored;
use std::ops::Range;

/// A table of addresses that was made beforehand.
pub struct Stations {
    /// Ascending, as guests are numbered.
    macs: Vec<[u8; 6]>,
}

impl Stations {
    /// The first `count` guests, as [`GuestConfig::numbered`] has them.
    pub fn new(count: usize) -> Stations {
        Stations { macs: (0..count).map(|n| GuestConfig::numbered(n as u16).mac).collect() }
    }

    /// The numbers of those that a frame is for: one, or all that there are. The sender is among them.
    pub fn receivers(&self, frame: &Stored) -> Range<usize> {
        match self.macs.binary_search(&frame.destination()) {
            Ok(one) => one..one + 1,
            Err(_) => 0..self.macs.len(),
        }
    }
}
