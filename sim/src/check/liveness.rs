//! Whoever waits is served or told, within a bound.
//!
//! | who waits | for what | how long |
//! | --- | --- | --- |
//! | a VM that is blocked, with frames in its ring, or waiting in the switch though it has buffers | a notification | [`Bounds::tell_ns`] |
//! | a VM that is blocked, all of whose transmit buffers have come back, which it lacked | a notification | the same |
//! | frames in a transmit ring that was kicked for | a core that takes some of them | [`Bounds::serve_ns`] |
//! | with preemptive copy: frames in the internal queue of a VM that has buffers for them | a core that copies some | the same |
//! | packets that wait for the control plane | a verdict, or the end of patience | [`Bounds::patience_ns`] |
//!
//! What does not change is what waits: a count that grows or shrinks starts the wait anew. To each bound comes the
//! longest step so far: a step's effects on memory show at its beginning, and what it tells others when it has come
//! so far.

use super::{Broken, Look, NicLook, Rule, VmLook};
use hyper_switch_dataplane::api::DropReason;

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) tell_ns: u64,
    pub(crate) serve_ns: u64,
    pub(crate) patience_ns: u64,
    /// Frames are copied whether or not their receiver comes for them.
    pub(crate) copies_unasked: bool,
    /// Whoever begins something goes on with it.
    pub(crate) is_bound: bool,
    pub(crate) longest_step_ns: u64,
}

/// Something that goes on, or has waited since.
#[derive(Default)]
struct Wait<P>(Option<(u64, P)>);

impl<P: PartialEq> Wait<P> {
    /// What waits now, if anything does, is as far as `progress`.
    fn look(&mut self, now_ns: u64, progress: Option<P>) {
        let goes_on = matches!((&self.0, &progress), (Some((_, was)), Some(is)) if was == is);
        if !goes_on {
            self.0 = progress.map(|progress| (now_ns, progress));
        }
    }

    fn waited_ns(&self, now_ns: u64) -> u64 {
        self.0.as_ref().map_or(0, |(since_ns, _)| now_ns - since_ns)
    }
}

/// What waits at one port.
#[derive(Default)]
pub(super) struct Liveness {
    told: Wait<()>,
    switched: Wait<u64>,
    copied: Wait<u64>,
    decided: Wait<(usize, u64, u64)>,
}

impl Liveness {
    pub(super) fn look(&mut self, now_ns: u64, look: &Look, vm: &VmLook, taken: u64, bounds: &Bounds) {
        let (port, counters) = (&look.port, &look.port.counters);
        // Who is using its interface is not asleep, and looks for itself.
        let (mut is_told_of, mut is_copied) = (false, false);
        if let Some(NicLook { standing, is_starved, ample_buffers, .. }) = look.nic {
            let has_buffers = standing.rx_out.saturating_sub(standing.rx_unread) >= ample_buffers;
            let frames_wait = standing.rx_unread > 0 || (port.waiting > 0 && has_buffers);
            let buffers_wait = is_starved && standing.tx_unread == standing.tx_out;
            is_told_of = vm.is_asleep && (frames_wait || buffers_wait);
            is_copied = bounds.copies_unasked && port.waiting > 0 && has_buffers;
        }
        self.told.look(now_ns, is_told_of.then_some(()));
        self.switched.look(now_ns, (taken < vm.kicked).then_some(taken));
        self.copied.look(now_ns, is_copied.then_some(counters.rx.frames));
        let timeouts = counters.tx_drops[DropReason::UpcallTimeout as usize];
        self.decided.look(now_ns, (port.held > 0).then_some((port.held, counters.tx.upcalls, timeouts)));
    }

    pub(super) fn overdue(&self, now_ns: u64, bounds: &Bounds) -> Result<(), Broken> {
        let Bounds { tell_ns, serve_ns, patience_ns, longest_step_ns, .. } = *bounds;
        for (waited_ns, bound_ns, rule, what) in [
            (self.told.waited_ns(now_ns), tell_ns, Rule::WakeUp, "is blocked and was not told of what came"),
            (
                self.switched.waited_ns(now_ns),
                serve_ns,
                Rule::Starvation,
                "kicked, and nobody took its frames",
            ),
            (
                self.copied.waited_ns(now_ns),
                serve_ns,
                Rule::Starvation,
                "has buffers, and nobody copied its frames",
            ),
            (
                self.decided.waited_ns(now_ns),
                patience_ns,
                Rule::Starvation,
                "has held packets beyond all patience",
            ),
        ] {
            let bound_ns = bound_ns + 2 * longest_step_ns;
            if bounds.is_bound && waited_ns > bound_ns {
                return Err((rule, format!("{what}, for {waited_ns} ns where {bound_ns} ns are allowed")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What makes progress does not wait; what ends does not, either.
    #[test]
    fn a_wait_begins_anew_with_progress() {
        let mut wait = Wait::default();
        let mut waited = |now_ns, progress| {
            wait.look(now_ns, progress);
            wait.waited_ns(now_ns)
        };
        assert_eq!(
            [waited(10, Some(1)), waited(20, Some(1)), waited(25, Some(2)), waited(40, Some(2))],
            [0, 10, 0, 15]
        );
        assert_eq!([waited(50, None), waited(60, Some(2)), waited(70, Some(2))], [0, 0, 10]);
    }
}
