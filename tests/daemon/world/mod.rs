//! Where a daemon runs and who is on its ports.

mod daemon;
mod guest;
mod vmm;
mod wire;

pub use daemon::{Daemon, PROGRAM, Said};
pub use guest::Guest;
pub use vmm::Vmm;
pub use wire::Wire;

use hyper_switch_pvnet::namespace::Namespace;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a condition may take before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Looks again and again, until there is what `look` looks for. At the deadline the test fails, saying `what`.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A machine for daemons: a network namespace and a folder of the test's own.
pub struct Place {
    pub namespace: Namespace,
    pub folder: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let namespace = Namespace::new().unwrap();
        namespace.disable_ipv6().unwrap();
        Place { namespace, folder: tempfile::tempdir().unwrap() }
    }

    /// Runs `ip` here. It has to succeed.
    pub fn ip(&self, arguments: &str) {
        self.namespace.run(|| ip(arguments).unwrap()).unwrap();
    }
}

/// Runs `ip` in the calling thread's namespace; the error is what it printed.
pub fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("ip {arguments}: {}", complaint.trim()))
}
