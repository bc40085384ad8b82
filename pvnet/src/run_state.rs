//! What can be seen of a VM from outside: whether its processor runs, was preempted, or blocks.
//!
//! Two sources answer in these terms: the scheduler, for a VM whose threads can be named ([`crate::sched`],
//! feature `std`), and the driver's own wishes in its ring
//! ([`suppression`](crate::ring::suppression)), where the scheduler may not be watched.

/// What was seen of one processor of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It executes.
    Running {
        /// On this core of the machine; `None` where the source does not tell.
        core: Option<u16>,
    },
    /// It would execute, but another has its core.
    Preempted,
    /// It waits for an event.
    Blocked,
}

impl Observed {
    /// What a VM of several processors does: it runs if one of them does, and blocks only if all do. `None`
    /// without processors.
    #[inline]
    pub fn together(processors: impl IntoIterator<Item = Observed>) -> Option<Observed> {
        let mut together = None;
        for observed in processors {
            match observed {
                Observed::Running { .. } => return Some(observed),
                Observed::Preempted => together = Some(observed),
                Observed::Blocked => together = together.or(Some(observed)),
            }
        }
        together
    }
}

#[cfg(test)]
mod tests {
    //! A VM is as awake as its most awake processor, in whatever order they are asked.
    use super::Observed::{self, Blocked, Preempted, Running};

    #[test]
    fn the_most_awake_processor_decides() {
        let running = Running { core: Some(3) };
        for (processors, together) in [
            (&[][..], None),
            (&[Blocked, Blocked], Some(Blocked)),
            (&[Blocked, Preempted, Blocked], Some(Preempted)),
            (&[Preempted, Blocked, running], Some(running)),
            (&[running, Preempted], Some(running)),
        ] {
            assert_eq!(Observed::together(processors.iter().copied()), together, "{processors:?}");
        }
    }
}
