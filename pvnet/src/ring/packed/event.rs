//! Event suppression of the packed ring (VIRTIO 1.2, clause 2.8.14): what one side wants to hear of from the other.

use super::layout::Cursor;

/// An event suppression structure, as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event(pub(crate) u32);

impl Event {
    /// Tell me of each descriptor (`RING_EVENT_FLAGS_ENABLE`).
    pub(crate) const ENABLE: Event = Event(0);
    /// Tell me of none (`RING_EVENT_FLAGS_DISABLE`).
    pub(crate) const DISABLE: Event = Event(1 << 16);
    const DESC: u32 = 2;

    /// Tell me of the descriptor at `cursor` (`RING_EVENT_FLAGS_DESC`).
    pub(crate) fn at(cursor: Cursor) -> Event {
        Event(u32::from(cursor.bits()) | Event::DESC << 16)
    }

    /// The one descriptor that is to be told of, if the two sides agreed on such (`VIRTIO_F_EVENT_IDX`).
    #[inline]
    pub(crate) fn cursor(self, event_idx: bool) -> Option<Cursor> {
        let is_desc = event_idx && self.0 >> 16 & 3 == Event::DESC;
        is_desc.then(|| Cursor::from_bits(self.0 as u16))
    }

    #[inline]
    pub(crate) fn is_disabled(self) -> bool {
        self.0 >> 16 & 3 == Event::DISABLE.0 >> 16
    }

    /// Whether the other side is to be told that the ring went on to `now`, by `slots` since it was last told:
    /// more than a round counts as one.
    #[inline]
    pub(crate) fn wants(self, event_idx: bool, now: Cursor, slots: u32, size: u16) -> bool {
        match self.cursor(event_idx) {
            Some(event) => {
                let behind = now.ahead_of(event, size);
                0 < behind && behind as u32 <= slots.min(size.into())
            }
            None => !self.is_disabled(),
        }
    }
}

#[cfg(test)]
mod tests {
    //! An event is passed exactly when its slot is among those that were gone over.
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_event_is_passed_once(size in 1..100_u16, start in 0..400_u16, slots in 1..100_u16, event in 0..100_u16) {
            let (slots, event) = (slots.min(size), event % size);
            let mut from = Cursor::START;
            (0..start).for_each(|_| from.advance(1, size));
            let (mut now, mut wanted) = (from, from);
            now.advance(slots, size);
            wanted.advance(event, size);
            let passed = Event::at(wanted).wants(true, now, slots.into(), size);
            prop_assert_eq!(passed, event < slots);
            prop_assert!(Event::at(wanted).wants(false, now, slots.into(), size), "not agreed on: tell of each");
        }
    }

    #[test]
    fn all_or_none() {
        for event_idx in [false, true] {
            assert!(Event::ENABLE.wants(event_idx, Cursor::START, 1, 8));
            assert!(!Event::DISABLE.wants(event_idx, Cursor::START, 1, 8));
        }
    }
}
