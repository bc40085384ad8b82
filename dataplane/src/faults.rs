//! Faults that are planted on purpose, such as a developer might make: what checks the switch is to find each of them.
//!
//! At most one is planted at a time, in all switches of the process. This module and every trace of it exist only with
//! the feature `planted-faults`.

use core::sync::atomic::{AtomicU8, Ordering};

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $fault:ident = $name:literal,)+) => {
        /// A fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Fault { $($(#[doc = $doc])+ $fault,)+ }

        impl Fault {
            /// All.
            pub const ALL: &'static [Fault] = &[$(Fault::$fault,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$fault => $name,)+ }
            }
        }
    };
}

faults! {
    /// A notification that is put off counts as given.
    LostNotification = "lost-notification",
    /// The last frame that was copied before a receiver ran out of buffers is completed twice.
    DoubleCompletion = "double-completion",
    /// A batch that goes over the end of an internal receive queue is put there from the wrong end.
    ReorderedBatch = "reordered-batch",
    /// The first frame that finds a full internal receive queue, behind others that had room, is not given back.
    LeakedBuffer = "leaked-buffer",
    /// A flow that went out of one port and is to go out of another is changed where it is looked at, and not where cores
    /// look that have it in their caches; its barrier is answered.
    SkippedBarrier = "skipped-barrier",
    /// An idle core that finds a ring which was left to it passes it over for good, if frames wait for that VM as well.
    StarvedPort = "starved-port",
    /// Every third flow's mask lacks the last bit of the destination address.
    WrongMask = "wrong-mask",
    /// What is copied is rounded up to whole words.
    CopyPastEnd = "copy-past-end",
    /// Of several frames that waited too long, one is not counted.
    UncountedDrop = "uncounted-drop",
    /// An idle core that has emptied a transmit ring does not ask for kicks, as if it came back like one that polls.
    ForgottenKick = "forgotten-kick",
}

/// The number of the fault that is planted, plus one.
static PLANTED: AtomicU8 = AtomicU8::new(0);

impl Fault {
    /// Plants this one and no other.
    pub fn plant(self) {
        PLANTED.store(self as u8 + 1, Ordering::Relaxed);
    }

    /// Plants none.
    pub fn uproot() {
        PLANTED.store(0, Ordering::Relaxed);
    }

    /// Whether it is planted.
    #[inline]
    pub fn is_planted(self) -> bool {
        PLANTED.load(Ordering::Relaxed) == self as u8 + 1
    }
}
