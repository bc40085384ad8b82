//! What happened, as a hash and, if somebody wants to read it, as lines.

use std::fmt;
use std::io::Write;

/// The trace of a run. Two runs that did the same have the same hash.
pub(crate) struct Trace<'w> {
    hash: u64,
    events: u64,
    lines: Option<&'w mut dyn Write>,
    broken: Option<std::io::Error>,
}

/// The offset and the prime of FNV-1a (Fowler, Noll, Vo), taken word by word.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

impl<'w> Trace<'w> {
    pub(crate) fn new(lines: Option<&'w mut dyn Write>) -> Trace<'w> {
        Trace { hash: OFFSET, events: 0, lines, broken: None }
    }

    /// Notes an event: when it happened, and two words that tell it from others at that time.
    #[inline]
    pub(crate) fn note(&mut self, at_ns: u64, words: [u64; 2], event: &dyn fmt::Debug) {
        self.events += 1;
        for word in [at_ns, words[0], words[1]] {
            // The rotation brings high bits to where the multiplication carries them on.
            self.hash = (self.hash ^ word).wrapping_mul(PRIME).rotate_left(29);
        }
        if let Some(lines) = &mut self.lines
            && let Err(error) = writeln!(lines, "{at_ns:>14} {event:?}")
        {
            self.broken = Some(error);
            self.lines = None;
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Why the lines end before the run does, if they do.
    pub(crate) fn broken(&mut self) -> Option<std::io::Error> {
        self.broken.take()
    }
}
