//! A process of ours that is listened to line by line. None is waited for without a deadline, and none outlives us.

use crate::exit::{Failure, FailureKind};
use crossbeam_channel::{Receiver, Sender, after, select, unbounded};
use hyper_switch_pvnet::namespace::Namespace;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The most bytes of a line; a longer one is taken for several.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// How much later than a process of ours we may be told of a user's Ctrl-C.
const CTRL_C: Duration = Duration::from_millis(200);

/// A process and the lines that it writes. Dropped, it is killed.
pub struct Process {
    /// What it is, for messages.
    what: String,
    child: Child,
    lines: Receiver<String>,
    interrupt: Receiver<()>,
}

/// Why there is no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// The process has closed its output, most likely ended.
    #[error("it ended")]
    Ended,
    /// There was none until the deadline.
    #[error("it said nothing in time")]
    Late,
    /// The user has had enough.
    #[error("interrupted")]
    Interrupted,
}

impl Process {
    /// Starts `command`, in `namespace` if there is one, and listens to the output that `output` takes from it. A message in
    /// `interrupt`, or its end, ends every wait for a line.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start<R: Read + Send + 'static>(
        what: &str,
        command: &mut Command,
        namespace: Option<&Namespace>,
        output: impl FnOnce(&mut Child) -> Option<R>,
        interrupt: Receiver<()>,
    ) -> Result<Process, Failure> {
        let program = command.get_program().display().to_string();
        let cannot =
            |error: &io::Error| Failure::from_io(format_args!("{what}: cannot start {program}"), error);
        // A process starts in the namespace of the thread that starts it.
        let spawned = match namespace {
            None => command.spawn(),
            Some(namespace) => namespace.run(|| command.spawn()).map_err(super::namespace_failure)?,
        };
        let mut child = spawned.map_err(|error| cannot(&error))?;
        let (sender, lines) = unbounded();
        let output = output(&mut child).expect("the command has a pipe for what is listened to");
        let listener = std::thread::Builder::new().name("listener".into());
        // It ends with the process, which has the other end of the pipe.
        let started = listener.spawn(move || listen(output, &sender));
        let process = Process { what: what.to_owned(), child, lines, interrupt };
        started.map(|_| process).map_err(|error| cannot(&error))
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// There is none until the deadline, or none to come.
    pub fn line(&self, until: Instant) -> Result<String, Silence> {
        select! {
            recv(self.lines) -> line => line.map_err(|_| self.ended()),
            recv(self.interrupt) -> _ => Err(Silence::Interrupted),
            recv(after(until.saturating_duration_since(Instant::now()))) -> _ => Err(Silence::Late),
        }
    }

    /// Why the process has ended: a user's Ctrl-C goes to it as to us, and may have reached it first.
    fn ended(&self) -> Silence {
        match self.interrupt.recv_timeout(CTRL_C) {
            Ok(()) => Silence::Interrupted,
            Err(_) => Silence::Ended,
        }
    }

    /// What the process is, for messages.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The process itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Process {
    /// Kills the process, and waits until it is gone.
    pub fn kill(&mut self) {
        // Fails when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends on each line until the output ends or nobody wants more.
fn listen(output: impl Read, lines: &Sender<String>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        match output.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
        if lines.send(text).is_err() {
            return;
        }
    }
}

/// Runs a command to its end and answers what it printed.
///
/// # Errors
/// It cannot be started, or did not succeed; then with what it printed to standard error.
pub fn output_of(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let program = command.get_program().display().to_string();
    let output =
        command.output().map_err(|error| Failure::from_io(format_args!("cannot start {program}"), &error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let message = format!("{program} failed ({}): {}", output.status, complaint.trim());
    Err(Failure::new(FailureKind::Runtime, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    fn shell(script: &str, interrupt: Receiver<()>) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        Process::start("a shell", &mut command, None, |child| child.stdout.take(), interrupt).unwrap()
    }

    /// Lines come one by one, the last also without its end, and then it is seen that the process has ended.
    #[test]
    fn lines_come_and_end() {
        let process = shell(r"printf 'a\nb\377\n\nc'", crossbeam_channel::never());
        let until = Instant::now() + Duration::from_secs(20);
        for line in ["a", "b\u{fffd}", "", "c"] {
            assert_eq!(process.line(until).as_deref(), Ok(line));
        }
        assert_eq!(process.line(until), Err(Silence::Ended));
    }

    /// A wait ends at its deadline and at an interruption, whatever the process does.
    #[test]
    fn waits_end() {
        let (interrupt, interrupted) = unbounded();
        let process = shell("exec cat", interrupted.clone());
        assert_eq!(process.line(Instant::now()), Err(Silence::Late));
        interrupt.send(()).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        assert_eq!(process.line(until), Err(Silence::Interrupted));
        interrupt.send(()).unwrap();
        let ended = shell("exit", interrupted);
        assert_eq!(ended.line(until), Err(Silence::Interrupted), "whichever is seen first");
    }

    /// A program that is not there is named, and what a failed one complained of is shown.
    #[test]
    fn failures_say_what_failed() {
        let failure = output_of(&mut Command::new("hyper-switch-none")).unwrap_err();
        assert!(failure.message.starts_with("cannot start hyper-switch-none: No such file"), "{failure}");
        let failure = output_of(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert_eq!(failure.message, "sh failed (exit status: 3): why");
    }
}
