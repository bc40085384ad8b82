//! What is fuzzed: functions of arbitrary bytes that panic when the switch is wrong.
//!
//! The same functions run in two ways: under libFuzzer (`cargo +nightly fuzz run TARGET`), and as an ordinary test over the
//! committed corpus and its mutations (`tests/fuzz.rs`). A new target is a module here with a `run`, a line in
//! [`TARGETS`], a file in `fuzz_targets/`, a `[[bin]]`, and a folder of inputs to start from in `corpus/`.

mod input;
pub mod key;
mod offers;
pub mod offload;
pub mod ring;
#[path = "../../dataplane/tests/support/mod.rs"]
mod support;
pub mod vhost_user;

/// A target: the name of its corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] =
    &[("key", key::run), ("offload", offload::run), ("ring", ring::run), ("vhost_user", vhost_user::run)];
