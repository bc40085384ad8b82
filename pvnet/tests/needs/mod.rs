//! What a test needs of the machine. What the machine has not is said, and the test counted as ignored; so nobody
//! takes a test that did not run for one that passed.

#![allow(dead_code, unreachable_pub, reason = "each program of tests that has this module uses some of it")]

use hyper_switch_pvnet::namespace::Namespace;
use libtest_mimic::{Completion, Trial};
use std::path::Path;
use std::process::Command;

/// Answers what is missing, if anything is.
pub type Need = fn() -> Option<String>;

/// A test by name, what it needs, and what it does.
pub type Test = (&'static str, &'static [Need], fn());

/// The tests as `libtest_mimic` runs them.
pub fn trials<const N: usize>(tests: [Test; N]) -> Vec<Trial> {
    let trial = |(name, needs, test): Test| {
        Trial::ignorable_test(name, move || {
            Ok(match needs.iter().find_map(|need| need()) {
                Some(missing) => Completion::ignored_with(format!("skipped: {missing}")),
                None => {
                    test();
                    Completion::Completed
                }
            })
        })
    };
    tests.map(trial).into()
}

pub fn namespaces() -> Option<String> {
    let error = Namespace::new().err()?;
    Some(format!("needs root ({error})"))
}

pub fn tun() -> Option<String> {
    let missing = !Path::new("/dev/net/tun").exists();
    missing.then(|| "needs /dev/net/tun (load the module tun)".into())
}

pub fn iproute2() -> Option<String> {
    let error = Command::new("ip").arg("-V").output().err()?;
    Some(format!("needs the command ip of iproute2 ({error})"))
}
