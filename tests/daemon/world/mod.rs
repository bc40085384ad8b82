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
use std::process::{Child, Command};
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

/// A machine for daemons: a folder and, for those that touch interfaces, a network namespace of the test's own.
pub struct Place {
    network: Option<Namespace>,
    pub folder: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let namespace = Namespace::new().unwrap();
        namespace.disable_ipv6().unwrap();
        Place { network: Some(namespace), ..Place::without_network() }
    }

    /// A folder alone, for which it takes no rights. No interface is touched from there.
    pub fn without_network() -> Place {
        Place { network: None, folder: tempfile::tempdir().unwrap() }
    }

    pub fn namespace(&self) -> &Namespace {
        self.network.as_ref().expect("the place has a network")
    }

    /// Starts a process here.
    fn spawn(&self, command: &mut Command) -> Child {
        // A process starts in the namespace of the thread that starts it.
        let child = match &self.network {
            Some(namespace) => namespace.run(|| command.spawn()).unwrap(),
            None => command.spawn(),
        };
        child.unwrap()
    }

    /// Runs `ip` here. It has to succeed.
    pub fn ip(&self, arguments: &str) {
        self.namespace().run(|| ip(arguments).unwrap()).unwrap();
    }
}

/// Runs `ip` in the calling thread's namespace; the error is what it printed.
pub fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("ip {arguments}: {}", complaint.trim()))
}
