//! The switch between the guests: a `hyper-switch run` of its own, which may be killed and started again.

use super::process::{Process, Silence};
use crate::ctl::client;
use crate::ctl::protocol::{Answer, Query};
use crate::ctl::status::PortStatus;
use crate::exit::{Failure, FailureKind};
use crossbeam_channel::Receiver;
use hyper_switch_pvnet::namespace::Namespace;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a switch may take to open its ports.
const START: Duration = Duration::from_secs(20);

/// A switch that runs. Dropped, it is killed.
pub struct Switch {
    _process: Process,
    ctl: PathBuf,
}

/// The words of a switch's command line, behind the program's name.
pub fn arguments(ctl: &Path, ports: &[String]) -> Vec<String> {
    let mut words = vec!["run".to_owned(), "--ctl".to_owned(), ctl.display().to_string()];
    words.extend(ports.iter().flat_map(|port| ["--port".to_owned(), port.clone()]));
    words
}

impl Switch {
    /// Starts the program as a switch with these ports, in `namespace` if there is one, and waits until it switches.
    ///
    /// # Errors
    /// It ends instead; then with what it said.
    pub fn start(
        program: &Path,
        ctl: &Path,
        ports: &[String],
        namespace: Option<&Namespace>,
        interrupt: Receiver<()>,
    ) -> Result<Switch, Failure> {
        let mut command = Command::new(program);
        command.arg("--log=info").args(arguments(ctl, ports)).stdout(Stdio::null()).stderr(Stdio::piped());
        let process =
            Process::start("the switch", &mut command, namespace, |child| child.stderr.take(), interrupt)?;
        let until = Instant::now() + START;
        let mut said = Vec::new();
        loop {
            match process.line(until) {
                // The last line of its start.
                Ok(line) if line.contains("switching") => break,
                Ok(line) => said.push(line),
                Err(Silence::Interrupted) => return Err(super::interrupted()),
                Err(silence) => {
                    let message = format!("the switch: {silence}:\n  {}", said.join("\n  "));
                    return Err(Failure::new(FailureKind::Runtime, message));
                }
            }
        }
        Ok(Switch { _process: process, ctl: ctl.to_owned() })
    }

    /// What it says of its ports.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ports(&self) -> Result<Vec<PortStatus>, Failure> {
        match client::ask(&self.ctl, Query::Ports)? {
            Answer::Ports(ports) => Ok(ports),
            other => unreachable!("the client takes no other answer: {other:?}"),
        }
    }
}
