//! What frames take more where the two guests of a pair are at home on two cores: lines of their rings, and of what the switch
//! notes of the frames, come from the other core's cache. Many are on their way at once, so that a line takes less than
//! the way there and back of a word that two cores write in turn.
//!
//! The guests take turns of 64 frames, on one core and on two, as long as nothing else goes on.

use super::core::on_core;
use super::figure::{Clock, Figure, median};
use super::switching::{BATCH, End, FRAME_BYTES, Lookup, Pair, STEPS};
use crate::exit::Failure;
use hyper_switch_dataplane::policy::Optimisations;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// The two ways of a frame, and how often the model charges for a line on each: the receiver copies and looks at what the
/// sender wrote; or the sender copies to where the receiver has read, and the receiver looks at that.
const WAYS: [(Optimisations, f64); 2] =
    [(Optimisations::NONE, 1.0), (Optimisations { preemptive_copy: true, ..Optimisations::NONE }, 2.0)];

/// What each of these lines takes more: the mean of both ways.
pub(super) fn line(here: usize, there: usize, batches: usize) -> Result<Figure, Failure> {
    let mut means = vec![0.0; batches];
    for (optimisations, lines) in WAYS {
        let one = together(here, optimisations, batches)?;
        for (mean, ns) in means.iter_mut().zip(apart(here, there, optimisations, batches)?) {
            *mean += (ns - one.median_ns) / lines / WAYS.len() as f64;
        }
    }
    Ok(Figure::of(means))
}

fn pair(optimisations: Optimisations) -> Pair {
    Pair::new(FRAME_BYTES, BATCH, Lookup::Hits, optimisations)
}

/// What a frame takes on one core.
fn together(core: usize, optimisations: Optimisations, batches: usize) -> Result<Figure, Failure> {
    thread::scope(|scope| {
        let work = move || {
            let (clock, mut number) = (Clock::new(), STEPS as u64);
            let Pair { switch, host, ends, .. } = &mut pair(optimisations);
            let mut step = || {
                number += 1;
                ends.iter_mut().map(|end| end.step(switch, host, &clock, number)).sum()
            };
            Figure::of((0..batches).map(|_| batch(&mut step)).collect())
        };
        on_core(scope, core, work).join()
    })
}

/// What it takes on two, on both together, in each batch.
fn apart(
    here: usize,
    there: usize,
    optimisations: Optimisations,
    batches: usize,
) -> Result<Vec<f64>, Failure> {
    let Pair { switch, host, ends: [mut sender, mut receiver], .. } = pair(optimisations);
    let (switch, host) = (&*switch, &host);
    // Even: the sender's turn.
    let turn = &AtomicU64::new(0);
    thread::scope(|scope| {
        let live = |end: &mut End, first: u64| -> Vec<f64> {
            let (clock, mut next) = (Clock::new(), first);
            let mut step = || {
                while turn.load(Ordering::Acquire) != next {
                    spin_loop();
                }
                let ns = end.step(switch, host, &clock, STEPS as u64 + 1 + next / 2);
                turn.store(next + 1, Ordering::Release);
                next += 2;
                ns
            };
            (0..batches).map(|_| batch(&mut step)).collect()
        };
        let other = on_core(scope, there, move || live(&mut receiver, 1));
        let here = on_core(scope, here, move || live(&mut sender, 0));
        let (sent, received) = (here.join(), other.join());
        Ok(sent?.into_iter().zip(received?).map(|(sent, received)| sent + received).collect())
    })
}

/// What a frame takes in the middle one of a batch's steps.
fn batch(step: &mut impl FnMut() -> f64) -> f64 {
    median((0..STEPS).map(|_| step()).collect()) / f64::from(BATCH)
}
