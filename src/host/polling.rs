//! How long a worker looks for work before it sleeps, by what sleeping was like before: pure.
//!
//! A sleep costs the VM a kick and the switch a wake-up, microseconds for each; to look costs the core. So a worker
//! looks on only where that would have found what woke it. The rule is that of KVM's halt polling: a sleep that was short
//! doubles the time that is looked next, one that was long ends looking. A switch without traffic never looks.

/// The longest look: as long as a notification is put off, so that whoever polls adds no more latency than that saves.
const LONGEST_NS: u64 = 50_000;

/// The first look after a short sleep.
const FIRST_NS: u64 = 5_000;

/// How long to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Polling {
    look_ns: u64,
}

impl Polling {
    /// Nanoseconds without work after which to sleep.
    pub(super) fn look_ns(self) -> u64 {
        self.look_ns
    }

    /// The worker slept for `slept_ns` until there was work.
    pub(super) fn slept(&mut self, slept_ns: u64) {
        self.look_ns = match slept_ns {
            LONGEST_NS.. => 0,
            _ => (2 * self.look_ns).clamp(FIRST_NS, LONGEST_NS),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Short sleeps make it look longer, up to the bound; one long sleep ends looking.
    #[test]
    fn it_looks_where_that_pays() {
        let mut polling = Polling::default();
        assert_eq!(polling.look_ns(), 0, "at first it sleeps");
        let looks = [(); 5].map(|()| {
            polling.slept(LONGEST_NS - 1);
            polling.look_ns()
        });
        assert_eq!(looks, [5_000, 10_000, 20_000, 40_000, 50_000]);
        polling.slept(LONGEST_NS);
        assert_eq!(polling.look_ns(), 0);
    }
}
