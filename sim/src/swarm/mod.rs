//! The swarm: trials drawn at random, each from a seed by which it can be had again.
//!
//! | module | noun |
//! | --- | --- |
//! | `draw` | a trial, from a seed |
//! | `hunt` | many trials, on all cores |

mod draw;
mod hunt;

pub use hunt::{Hunt, Progress};

use crate::check::{Rule, Violation};
use crate::simulation::Simulation;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};

/// What came of the trial of one seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The seed.
    pub seed: u64,
    /// Events that happened.
    pub events: u64,
    /// The hash of all that happened, as far as it did.
    pub hash: u64,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// What was drawn, and what happened how often.
    pub coverage: BTreeMap<&'static str, u64>,
}

thread_local! {
    /// What the panic of a trial says, on whose thread it is.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    /// This thread runs a trial.
    static TRIES: RefCell<bool> = const { RefCell::new(false) };
}

/// Has panics in trials be remembered instead of printed; others are printed as before. To be called once.
pub fn catch_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if TRIES.with_borrow(|tries| *tries) {
            PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string()));
        } else {
            before(info);
        }
    }));
}

/// Runs the trial of a seed. What happens is written to `lines`, if that is wanted.
pub fn run_seed(seed: u64, lines: Option<&mut dyn Write>) -> Verdict {
    let draw::Draw { scenario, setup, drawn } = draw::draw(seed);
    let mut run = Simulation::with(scenario, setup, lines).expect("what is drawn can be run");
    TRIES.set(true);
    // After a panic nothing of the run is looked at but what it was until then.
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        while run.step() {}
        run.come_to_rest();
    }));
    TRIES.set(false);
    let panicked = outcome.is_err().then(|| Violation {
        at_ns: run.now_ns(),
        event: run.events(),
        happened: "in its midst".into(),
        rule: Rule::Panic,
        says: PANIC.take().unwrap_or_else(|| "a panic of which nothing is known".into()),
    });
    let mut coverage = run.take_coverage();
    for what in drawn {
        *coverage.entry(what).or_default() += 1;
    }
    let violation = panicked.or_else(|| run.violation().cloned());
    Verdict { seed, events: run.events(), hash: run.hash(), violation, coverage }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bounded number of seeds is clean; a seed is the same run each time; and each kind of thing that can be drawn or
    /// done was, or nothing would be shown by that.
    #[test]
    fn seeds_are_clean_and_can_be_had_again() {
        let hunt = Hunt::run(0..100, 2, false, |_| {});
        assert_eq!(hunt.failed, []);
        for seed in 0..10 {
            assert_eq!(run_seed(seed, None), run_seed(seed, None));
        }
        let done =
            ["frames taken", "audits", "deed: lie", "deed: a VM comes back", "deed: a flow is changed"];
        for what in draw::ALL.iter().chain(&done) {
            assert!(hunt.coverage.get(what).is_some_and(|count| *count > 0), "{what}: {:?}", hunt.coverage);
        }
    }
}
