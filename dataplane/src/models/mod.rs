//! What cores share, in every order in which their steps can come: models for `loom`, each of one structure and as
//! small as what it holds allows.
//!
//! A test that cannot fail holds nothing: each names the weaker orderings that it was seen to find out.

mod claim;
mod epoch;
mod frame;
mod inbox;
mod table;

use alloc::sync::Arc;
use loom::model::Builder;
use loom::thread::{self, JoinHandle};

/// Checks `model` in every order. (The model checker itself may pass over one in which a load comes just before
/// another thread's load and store of the same atomic; a model that rests on it waits for the store.)
fn check(model: impl Fn() + Send + Sync + 'static) {
    Builder::new().check(model);
}

/// Checks `model` in every order in which threads that could go on are interrupted at most `preemptions` times.
fn check_bounded(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Starts a thread that shares `with`.
fn spawn<T: Send + Sync + 'static, A: 'static>(
    with: &Arc<T>,
    run: impl FnOnce(&T) -> A + 'static,
) -> JoinHandle<A> {
    let with = with.clone();
    thread::spawn(move || run(&with))
}
