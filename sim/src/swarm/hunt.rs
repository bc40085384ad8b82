//! Many trials, on all cores.

use super::{Verdict, draw, run_seed};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What came of many seeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hunt {
    /// The first seed.
    pub first: u64,
    /// Seeds that were tried.
    pub seeds: u64,
    /// Events that happened in all of them.
    pub events: u64,
    /// Seeds in which a rule was broken, lowest first.
    pub failed: Vec<Verdict>,
    /// What was drawn, and what happened how often.
    pub coverage: BTreeMap<&'static str, u64>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Seeds that are done.
    pub done: u64,
    /// Seeds that failed.
    pub failed: u64,
}

impl Hunt {
    /// Tries all of `seeds` on so many threads; `each` is told after each one, on whichever thread. With
    /// `until_found` it ends when one has failed; which seeds were tried then is left to chance unless `jobs` is 1.
    pub fn run(seeds: Range<u64>, jobs: usize, until_found: bool, each: impl Fn(Progress) + Sync) -> Hunt {
        let next = AtomicU64::new(seeds.start);
        // What was never drawn shows.
        let coverage = draw::ALL.into_iter().map(|what| (what, 0)).collect();
        let empty = Hunt { first: seeds.start, seeds: 0, events: 0, failed: Vec::new(), coverage };
        let hunt = Mutex::new(empty);
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    while let Some(seed) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds.end)
                    {
                        let verdict = run_seed(seed, None);
                        let mut hunt = hunt.lock().expect("nobody panics with it");
                        if until_found && !hunt.failed.is_empty() {
                            break;
                        }
                        hunt.add(verdict);
                        let progress = Progress { done: hunt.seeds, failed: hunt.failed.len() as u64 };
                        drop(hunt);
                        each(progress);
                    }
                });
            }
        });
        let mut hunt = hunt.into_inner().expect("nobody panics with it");
        hunt.failed.sort_by_key(|verdict| verdict.seed);
        hunt
    }

    fn add(&mut self, verdict: Verdict) {
        self.seeds += 1;
        self.events += verdict.events;
        for (what, count) in &verdict.coverage {
            *self.coverage.entry(what).or_default() += count;
        }
        if verdict.violation.is_some() {
            self.failed.push(verdict);
        }
    }
}
