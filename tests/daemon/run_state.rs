//! What the daemon knows of the VMs behind its ports.

use crate::world::{Daemon, PROGRAM, Place, eventually};
use hyper_switch::ctl::status::{VmSource, VmState, VmStatus};
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// A process behind a port: a shell that waits for a line, and then is the command.
struct Vm(Child);

impl Vm {
    fn start(command: &str) -> Vm {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("read line; {command}")]).stdin(Stdio::piped()).stdout(Stdio::null());
        Vm(shell.spawn().unwrap())
    }

    fn port(&self, tap: &str) -> String {
        format!("tap:{tap},vm={}", self.0.id())
    }

    fn go(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds: a port whose VM was named shows what it does, by the scheduler's word: that it blocks, that it spins; a
/// process that only then starts its threads is known by them; one that ends is unknown from then on, and the
/// log says so; and a port without a VM is unknown. A daemon with such ports sleeps like any other.
pub fn seen() {
    let mut spins = Vm::start("while :; do :; done");
    // Its main thread waits for those that work.
    let mut works = Vm::start(&format!("exec {PROGRAM} pair --workload stream --duration 600"));
    let place = Place::new();
    let ports = [spins.port("hp0"), works.port("hp1"), "tap:hp2".into()];
    let daemon = Daemon::start(&place, &ports.each_ref().map(String::as_str));
    let [a, b, c] = <[_; 3]>::try_from(daemon.ports()).unwrap().map(|port| port.vm);
    let blocked = VmStatus { source: VmSource::Bpf, state: Some(VmState::Blocked), core: None };
    assert_eq!((a, b, c), (blocked, blocked, VmStatus::default()));
    daemon.wait_until_idle();

    spins.go();
    let awake = |port: &str| {
        let vm = daemon.port(port).vm;
        assert_eq!(vm.source, VmSource::Bpf);
        (vm.state != Some(VmState::Blocked)).then_some(vm)
    };
    eventually("it runs on a core", || awake("hp0").filter(|vm| vm.core.is_some()));
    for _ in 0..10 {
        assert!(awake("hp0").is_some(), "it spins");
    }
    works.go();
    eventually("its threads are known", || (0..10).all(|_| awake("hp1").is_some()).then_some(()));

    drop((spins, works));
    for port in ["hp0", "hp1"] {
        eventually("its end is known", || (daemon.port(port).vm == VmStatus::default()).then_some(()));
    }
    assert!(
        daemon.log().contains("the run state of the port's VM is not known any more"),
        "{}",
        daemon.log()
    );
    daemon.stop();
}

/// Holds: without the right to watch the scheduler the daemon says so and switches without; a VM that is no process
/// ends it, and what was begun is undone.
pub fn refused() {
    let place = Place::new();
    let vm = Vm::start("exec cat");
    let daemon = Daemon::start_without_bpf(&place, &[&vm.port("hp0")]);
    assert_eq!(daemon.port("hp0").vm, VmStatus::default());
    let log = daemon.log();
    assert!(log.contains("the run state of the port's VM is not known"), "{log}");
    daemon.stop();

    let port = vm.port("hp0");
    drop(vm);
    let said = Daemon::launch(&place, &[&port]).wait();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(said.err.contains("port hp0 (tap:hp0): there is no process"), "{said:?}");
}
