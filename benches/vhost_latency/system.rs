//! A switch as other processes: started, asked for the processor time it took, ended.

use crate::huge_pages::HugePages;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The core on which whatever is measured switches.
pub const SWITCH_CORE: usize = 1;

/// How long a program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running switch with two vhost-user ports, which are clients of sockets of ours.
pub struct System {
    /// The switch is the last. Ended in the reverse order.
    children: Vec<Child>,
    listeners: [UnixListener; 2],
    _huge_pages: Option<HugePages>,
    folder: TempDir,
}

impl System {
    /// Nothing yet but the sockets, a folder, and huge pages if it needs them.
    pub fn new(huge_pages: Option<HugePages>) -> System {
        let folder = tempfile::tempdir().expect("a folder is made");
        let listeners = Self::sockets(folder.path()).map(|path| {
            let listener = UnixListener::bind(path).expect("a socket is made");
            listener.set_nonblocking(true).expect("a socket that does not block");
            listener
        });
        System { children: Vec::new(), listeners, _huge_pages: huge_pages, folder }
    }

    /// Hyper-Switch, with one worker.
    pub fn hyper_switch() -> System {
        let mut system = System::new(None);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyper-switch"));
        command.args(["run", "--cores", &SWITCH_CORE.to_string(), "--ctl"]).arg(system.path("ctl"));
        for (name, socket) in ["a", "b"].iter().zip(system.ports()) {
            command.arg("--port").arg(format!("vhost-user:{},client,name={name}", socket.display()));
        }
        system.spawn(&mut command);
        system
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where its ports connect to.
    pub fn ports(&self) -> [PathBuf; 2] {
        Self::sockets(self.folder.path())
    }

    fn sockets(folder: &Path) -> [PathBuf; 2] {
        ["a", "b"].map(|name| folder.join(name))
    }

    /// Starts a program of the switch's. What it says goes to a file, which is shown if it fails.
    pub fn spawn(&mut self, command: &mut Command) {
        let log = File::options().append(true).create(true).open(self.path("log")).expect("a log is opened");
        let errors = log.try_clone().expect("a file descriptor");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        self.children.push(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// Waits for something that the switch does in its own time.
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(&System) -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let ended =
                self.children.iter_mut().any(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > give_up {
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                panic!("the switch did not get as far as {what}:\n{log}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The connections of its two ports.
    pub fn accept(&mut self) -> [UnixStream; 2] {
        [0, 1].map(|port| {
            let stream = self.wait_for("connecting", |system| Some(system.listeners[port].accept().ok()?.0));
            stream.set_nonblocking(false).expect("a socket that blocks");
            stream
        })
    }

    /// Processor time that the switch has taken so far, all its threads together.
    pub fn processor_time(&self) -> Duration {
        let pid = self.children.last().expect("the switch runs").id();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the switch runs");
        let of_thread = |thread: fs::DirEntry| {
            // A thread that has just ended had its time; nanoseconds on a processor stand first.
            let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(threads.flatten().filter_map(of_thread).sum())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        while let Some(mut child) = self.children.pop() {
            // One that has ended already is reaped all the same.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
    }
}
