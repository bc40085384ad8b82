//! When a driver rings the doorbell of its transmit ring: the driver's side of batching.
//!
//! An entry into the hypervisor costs as much for one frame as for many. So a frame that finds work under way does
//! not ring at once but waits for company:
//!
//! | what was sent | the doorbell rings |
//! | --- | --- |
//! | to a switch that had nothing outstanding, none rung within [`Pace::delay_ns`] | now: nobody else will look |
//! | the [`Pace::count`]th frame since it last rang | now |
//! | any other frame | [`Pace::delay_ns`] after the first one that is still unannounced |
//! | whatever it is, before the VM blocks | now: a VM that blocks has no timer to wait for |
//!
//! Frames are offered in the ring all the time, only the doorbell waits; a switch that looks into the ring for
//! another reason finds them, and then the doorbell need not ring at all. Without batching each frame rings.

/// How long and for how many frames the doorbell may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The longest that a frame waits unannounced while its VM runs, in nanoseconds.
    pub delay_ns: u64,
    /// The most frames that wait so.
    pub count: u32,
}

impl Default for Pace {
    /// A batch of the switch, and less time than a sleeping receiver takes to wake.
    fn default() -> Pace {
        Pace { delay_ns: 20_000, count: 64 }
    }
}

/// Frames that were offered and not announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unannounced {
    /// How many.
    pub frames: u32,
    /// When the first of them was offered, in nanoseconds.
    pub since_ns: u64,
    /// Whether the switch had given back all that was offered before them.
    pub alone: bool,
    /// When the doorbell last rang, if it did.
    pub rung_ns: Option<u64>,
}

/// When the doorbell is to ring for `frames`: a time in nanoseconds, now if it is not in the future.
pub fn due_ns(pace: Option<Pace>, frames: &Unannounced) -> u64 {
    let &Unannounced { frames, since_ns, alone, rung_ns } = frames;
    let Some(Pace { delay_ns, count }) = pace else { return since_ns };
    let quiet = rung_ns.is_none_or(|rung| rung.saturating_add(delay_ns) <= since_ns);
    if frames >= count || (alone && quiet) { since_ns } else { since_ns.saturating_add(delay_ns) }
}

/// The doorbell of one ring: what [`due_ns`] has to know from one time to the next.
#[derive(Debug)]
pub(super) struct Doorbell {
    pace: Option<Pace>,
    rung_ns: Option<u64>,
    unannounced: Option<Unannounced>,
}

impl Doorbell {
    pub(super) fn new(pace: Option<Pace>) -> Doorbell {
        Doorbell { pace, rung_ns: None, unannounced: None }
    }

    /// Whether several frames may share a ring.
    pub(super) fn batches(&self) -> bool {
        self.pace.is_some()
    }

    /// Whether it is to ring at `now_ns`, when `frames` are unannounced and `outstanding`, with those, are not given
    /// back. If so they count as announced.
    pub(super) fn is_due(&mut self, now_ns: u64, frames: u32, outstanding: u32) -> bool {
        if frames == 0 {
            return false;
        }
        let first =
            Unannounced { frames, since_ns: now_ns, alone: outstanding <= frames, rung_ns: self.rung_ns };
        let unannounced = Unannounced { frames, ..self.unannounced.unwrap_or(first) };
        let due = due_ns(self.pace, &unannounced) <= now_ns;
        self.unannounced = (!due).then_some(unannounced);
        due
    }

    /// Whether it is to ring as its VM is about to block with `frames` unannounced.
    pub(super) fn is_due_before_sleep(&mut self, frames: u32) -> bool {
        self.unannounced = None;
        frames > 0
    }

    /// It rang.
    pub(super) fn rang(&mut self, now_ns: u64) {
        self.rung_ns = Some(now_ns);
    }
}

#[cfg(test)]
mod tests {
    //! The rules one by one, then all together over random runs: no frame waits longer than the delay, none waits in
    //! larger company than the count, none is announced twice, and a VM that blocks leaves nothing behind.
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace { delay_ns: 100, count: 8 };
    const SECOND: Unannounced = Unannounced { frames: 1, since_ns: 1_000, alone: false, rung_ns: Some(990) };

    #[test]
    fn each_rule() {
        let due = |frames| due_ns(Some(PACE), &frames);
        assert_eq!(due(SECOND), 1_100, "a frame behind others waits");
        assert_eq!(due(Unannounced { alone: true, ..SECOND }), 1_100, "soon after a ring it waits as well");
        assert_eq!(due(Unannounced { alone: true, rung_ns: Some(901), ..SECOND }), 1_100);
        assert_eq!(due(Unannounced { alone: true, rung_ns: Some(900), ..SECOND }), 1_000);
        assert_eq!(due(Unannounced { alone: true, rung_ns: None, ..SECOND }), 1_000);
        assert_eq!(due(Unannounced { frames: 7, ..SECOND }), 1_100);
        assert_eq!(due(Unannounced { frames: 8, ..SECOND }), 1_000, "the count is reached");
        assert_eq!(due_ns(None, &SECOND), 1_000, "without batching each frame rings");
    }

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        /// The VM runs for so long, then sends so many frames and polls.
        Poll {
            after_ns: u64,
            frames: u32,
        },
        /// The switch gives all back that it has seen.
        GiveBack,
        Block,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            4 => (0..60_u64, 0..4_u32).prop_map(|(after_ns, frames)| Operation::Poll { after_ns, frames }),
            1 => Just(Operation::GiveBack),
            1 => Just(Operation::Block),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_announced_in_time(
            batching: bool,
            operations in prop::collection::vec(operation(), 0..200),
        ) {
            let pace = batching.then_some(PACE);
            let mut doorbell = Doorbell::new(pace);
            let (mut now_ns, mut waiting, mut outstanding) = (0, Vec::new(), 0);
            for operation in operations {
                match operation {
                    Operation::Poll { after_ns, frames } => {
                        now_ns += after_ns;
                        waiting.extend((0..frames).map(|_| now_ns));
                        outstanding += frames;
                        if doorbell.is_due(now_ns, waiting.len() as u32, outstanding) {
                            prop_assert!(!waiting.is_empty());
                            waiting.clear();
                            doorbell.rang(now_ns);
                        }
                        let longest = waiting.first().map_or(0, |since| now_ns - since);
                        prop_assert!(longest < PACE.delay_ns && waiting.len() < PACE.count as usize);
                        prop_assert!(batching || waiting.is_empty());
                    }
                    Operation::GiveBack => outstanding = waiting.len() as u32,
                    Operation::Block => {
                        let rings = doorbell.is_due_before_sleep(waiting.len() as u32);
                        prop_assert_eq!(rings, !waiting.is_empty());
                        waiting.clear();
                    }
                }
            }
        }
    }
}
