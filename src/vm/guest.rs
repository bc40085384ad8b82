//! A guest: a QEMU process whose Linux executes commands that it is sent, and what it says meanwhile.

use super::console::{self, Said};
use super::process::{Process, Silence};
use super::qemu::Machine;
use crate::exit::{Failure, FailureKind};
use crossbeam_channel::Receiver;
use hyper_switch_pvnet::namespace::Namespace;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How much of a console's end is shown of a guest that failed.
const TAIL_LINES: usize = 15;

/// A guest that was started. Dropped, it is gone.
pub struct Guest {
    process: Process,
    input: ChildStdin,
    console: PathBuf,
    complaints: PathBuf,
    /// The number of the last command.
    asked: u64,
}

impl Guest {
    /// Starts `machine` under the program `qemu`, in `namespace` if there is one. Its console and QEMU's complaints are kept
    /// in `folder`. A message in `interrupt` ends every wait.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        qemu: &Path,
        machine: Machine,
        folder: &Path,
        namespace: Option<&Namespace>,
        interrupt: Receiver<()>,
    ) -> Result<Guest, Failure> {
        let [console, complaints] =
            ["console", "err"].map(|end| folder.join(format!("{}.{end}", machine.name)));
        let what = format!("guest {}", machine.name);
        let cannot =
            |error: &std::io::Error| Failure::from_io(format_args!("{what}: cannot keep its log"), error);
        let log = File::create(&complaints).map_err(|error| cannot(&error))?;
        let machine = Machine { console: Some(console.clone()), ..machine };
        let mut command = Command::new(qemu);
        command.args(machine.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process =
            Process::start(&what, &mut command, namespace, |child| child.stdout.take(), interrupt)?;
        let input = process.child().stdin.take().expect("the command has a pipe for it");
        Ok(Guest { process, input, console, complaints, asked: 0 })
    }

    /// Waits until the guest has booted.
    ///
    /// # Errors
    /// It has not `within` that time, or never will.
    pub fn ready(&mut self, within: Duration) -> Result<(), Failure> {
        let until = Instant::now() + within;
        while self.said("boots", until)? != Said::Ready {}
        Ok(())
    }

    /// Starts it anew, from inside, and waits until it has booted.
    ///
    /// # Errors
    /// As [`Guest::begin`] and [`Guest::ready`].
    pub fn reboot(&mut self, within: Duration) -> Result<(), Failure> {
        self.begin("reboot -f")?;
        self.ready(within)
    }

    /// Has the guest's shell execute `command`, which has to be one line, and answers what it printed.
    ///
    /// # Errors
    /// As [`Guest::begin`] and [`Guest::finish`].
    pub fn run(&mut self, command: &str, within: Duration) -> Result<String, Failure> {
        self.begin(command)?;
        self.finish(command, within)
    }

    /// Has the guest's shell begin with `command`. What it begins with next, it begins with when this has ended.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn begin(&mut self, command: &str) -> Result<(), Failure> {
        self.asked += 1;
        let line = console::command(self.asked, command);
        self.input
            .write_all(line.as_bytes())
            .and_then(|()| self.input.flush())
            .map_err(|error| self.failed(format_args!("takes no command: {error}")))
    }

    /// Waits until the command that began last has printed `line`.
    ///
    /// # Errors
    /// It has not `within` that time, or has ended.
    pub fn prints(&mut self, line: &str, within: Duration) -> Result<(), Failure> {
        let until = Instant::now() + within;
        let what = format!("prints {line:?}");
        loop {
            match self.answer(&what, until)? {
                Answer::Line(text) if text == line => return Ok(()),
                Answer::Line(_) => {}
                Answer::Ended(code) => {
                    return Err(self.failed(format_args!("ended with exit code {code} before it {what}")));
                }
            }
        }
    }

    /// Waits until the command that began last, which `what` describes, has ended, and answers what it printed and
    /// nobody has waited for.
    ///
    /// # Errors
    /// It has not `within` that time, or has failed.
    pub fn finish(&mut self, what: &str, within: Duration) -> Result<String, Failure> {
        let until = Instant::now() + within;
        let mut printed = String::new();
        loop {
            match self.answer(&format!("ends `{what}`"), until)? {
                Answer::Line(text) => {
                    printed.push_str(&text);
                    printed.push('\n');
                }
                Answer::Ended(0) => return Ok(printed.trim_end().to_owned()),
                Answer::Ended(code) => {
                    let printed = printed.trim_end();
                    return Err(self.failed(format_args!("`{what}` failed with exit code {code}: {printed}")));
                }
            }
        }
    }

    /// Kills the guest, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What the command that began last says next.
    fn answer(&self, what: &str, until: Instant) -> Result<Answer, Failure> {
        loop {
            match self.said(what, until)? {
                Said::Line { id, text } if id == self.asked => return Ok(Answer::Line(text)),
                Said::Ended { id, code } if id == self.asked => return Ok(Answer::Ended(code)),
                // Of an earlier command, for which somebody waited too short a time.
                Said::Line { .. } | Said::Ended { .. } => {}
                Said::Ready => return Err(self.failed(format_args!("has started anew before it {what}"))),
            }
        }
    }

    /// What the guest says next.
    fn said(&self, what: &str, until: Instant) -> Result<Said, Failure> {
        loop {
            match self.process.line(until) {
                Ok(line) => {
                    if let Some(said) = console::parse(&line) {
                        return Ok(said);
                    }
                }
                Err(Silence::Interrupted) => return Err(super::interrupted()),
                Err(silence) => return Err(self.failed(format_args!("{silence}, before it {what}"))),
            }
        }
    }

    /// A failure of this guest, with the end of its console and with what QEMU complained of.
    fn failed(&self, what: std::fmt::Arguments<'_>) -> Failure {
        let mut message = format!("{}: {what}", self.process.what());
        for (title, path) in [("QEMU", &self.complaints), ("its console", &self.console)] {
            let text = std::fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            if !tail.is_empty() {
                message.push_str(&format!("\n{title} says at the end:\n  {}", tail.join("\n  ")));
            }
        }
        Failure::new(FailureKind::Runtime, message)
    }
}

/// What a command says.
enum Answer {
    /// A line that it printed.
    Line(String),
    /// It has ended with this exit code.
    Ended(i32),
}
