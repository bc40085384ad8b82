//! A daemon: the process, what it prints, and what it answers.

use super::{Place, eventually};
use hyper_switch::ctl::protocol::Answer;
use hyper_switch::ctl::status::{FlowStatus, MacStatus, PortState, PortStatus, StatsReport};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_hyper-switch");

/// A daemon that was started. Dropped, it is killed.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    printed: TempDir,
}

/// How a process ended, and what it printed.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Daemon {
    /// Starts a daemon with these ports and waits until it answers.
    pub fn start(place: &Place, ports: &[&str]) -> Daemon {
        Daemon::start_on(place, ports, None)
    }

    /// As [`Daemon::start`], with a worker for each of these cores.
    pub fn start_on(place: &Place, ports: &[&str], cores: Option<&str>) -> Daemon {
        Daemon::launch_with(place, ports, PROGRAM, |command| {
            command.args(cores.map(|cores| format!("--cores={cores}")));
        })
        .answering()
    }

    /// As [`Daemon::start`], with the right to use the network and no other.
    pub fn start_without_bpf(place: &Place, ports: &[&str]) -> Daemon {
        let program = place.folder.path().join("network-only");
        let script =
            format!("#!/bin/sh\nexec setpriv --bounding-set=-all,+net_admin,+net_raw {PROGRAM} \"$@\"\n");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        Daemon::launch_with(place, ports, &program, |_| ()).answering()
    }

    /// Waits until it answers.
    fn answering(mut self) -> Daemon {
        let daemon = &mut self;
        eventually("the daemon answers", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "it ended: {}", daemon.log());
            daemon.ctl("stats")
        });
        self
    }

    /// Starts a daemon with these ports, which may fail.
    pub fn launch(place: &Place, ports: &[&str]) -> Daemon {
        Daemon::launch_with(place, ports, PROGRAM, |_| ())
    }

    /// As [`Daemon::launch`], of this `program`, with what `prepare` adds.
    pub fn launch_with(
        place: &Place,
        ports: &[&str],
        program: impl AsRef<OsStr>,
        prepare: impl FnOnce(&mut Command) + Send,
    ) -> Daemon {
        let printed = tempfile::tempdir().unwrap();
        let file = |name| File::create(printed.path().join(name)).unwrap();
        let socket = place.folder.path().join("ctl.sock");
        let mut command = Command::new(program);
        command.arg("run").arg("--ctl").arg(&socket).args(ports.iter().flat_map(|port| ["--port", port]));
        command.env_remove("RUST_LOG").stdout(file("out")).stderr(file("err"));
        prepare(&mut command);
        let child = place.spawn(&mut command);
        Daemon { child, socket, printed }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.printed.path().join("err")).unwrap()
    }

    /// What `ctl QUERY --json` prints, if it succeeds.
    fn ctl(&self, query: &str) -> Option<Answer> {
        let mut command = Command::new(PROGRAM);
        let output = command.args(["ctl", query, "--json", "--ctl"]).arg(&self.socket).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub fn ports(&self) -> Vec<PortStatus> {
        let Some(Answer::Ports(ports)) = self.ctl("ports") else { panic!("no ports: {}", self.log()) };
        ports
    }

    pub fn port(&self, name: &str) -> PortStatus {
        let found = self.ports().into_iter().find(|port| port.name == name);
        found.unwrap_or_else(|| panic!("no port {name}"))
    }

    pub fn flows(&self) -> Vec<FlowStatus> {
        let Some(Answer::Flows(flows)) = self.ctl("flows") else { panic!("no flows: {}", self.log()) };
        flows
    }

    pub fn macs(&self) -> Vec<MacStatus> {
        let Some(Answer::Macs(macs)) = self.ctl("macs") else { panic!("no macs: {}", self.log()) };
        macs
    }

    /// The VLAN, address and port of each address that it has learned.
    pub fn places(&self) -> Vec<(u16, String, String)> {
        self.macs().into_iter().map(|entry| (entry.vlan, entry.mac, entry.port)).collect()
    }

    pub fn stats(&self) -> StatsReport {
        let Some(Answer::Stats(stats)) = self.ctl("stats") else { panic!("no stats: {}", self.log()) };
        stats
    }

    /// Waits until a port is down and answers why.
    pub fn wait_until_down(&self, port: &str) -> String {
        eventually(&format!("port {port} is down"), || match self.port(port).state {
            PortState::Down { reason } => Some(reason),
            PortState::Up => None,
        })
    }

    /// Waits until the daemon lets two seconds pass with at most two ticks of processor time. One that polls
    /// never does; one that sleeps does at once, but for what its control plane still looks after.
    pub fn wait_until_idle(&self) {
        eventually("the daemon is idle", || {
            let before = self.ticks();
            std::thread::sleep(Duration::from_secs(2));
            (self.ticks() - before <= 2).then_some(())
        });
    }

    /// Ticks of processor time of all its threads (`utime` and `stime` of proc(5)).
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        let fields = behind_name.split(' ').skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// Its resident memory in KiB (`VmRSS` of proc(5)).
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> Said {
        let status = eventually("the daemon ends", || self.child.try_wait().unwrap());
        let out = fs::read_to_string(self.printed.path().join("out")).unwrap();
        Said { status, out, err: self.log() }
    }

    /// Asks it to stop, which it has to do cleanly, and waits until it has.
    pub fn stop(mut self) -> Said {
        self.signal(Signal::TERM);
        let said = self.wait();
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        said
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
