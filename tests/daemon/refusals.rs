//! Daemons that cannot have what they want.

use crate::world::{Daemon, PROGRAM, Place, Said};
use hyper_switch_pvnet::tap::Tap;
use rustix::process::Signal;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;

/// A user without rights; `nobody` on most systems.
const NOBODY: u32 = 65_534;

fn assert_refused(said: &Said, code: i32, parts: &[&str]) {
    assert_eq!((said.status.code(), said.out.as_str()), (Some(code), ""), "{said:?}");
    let error = said.err.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for part in parts {
        assert!(error.contains(part), "{part}: {said:?}");
    }
}

/// Holds: a port that cannot be had ends the daemon with the exit code for its kind and names the port, the
/// interface and what to do; what was begun is undone.
pub fn ports() {
    let place = Place::new();
    place.ip("link add wire type veth peer name eriw");
    let _held = place.namespace().run(|| Tap::open("held").unwrap()).unwrap();
    for (port, code, parts) in [
        (
            "tap:wire",
            5,
            ["port wire (tap:wire): interface wire exists and is not a TAP", "choose another name"],
        ),
        ("tap:held", 5, ["port held (tap:held): TAP held is held by another process", "choose another name"]),
        ("packet:none", 1, ["port none (packet:none): there is no interface \"none\"", "`ip link` lists"]),
        ("packet:lo", 1, ["port lo (packet:lo): interface lo is no Ethernet interface", "choose another"]),
    ] {
        let said = Daemon::launch(&place, &["tap:first", port]).wait();
        assert_refused(&said, code, &parts);
        assert!(!place.folder.path().join("ctl.sock").exists(), "{said:?}");
        place.namespace().run(|| Tap::open("first").expect("free again")).unwrap();
    }
}

/// Holds: as a user without rights the daemon ends with exit code 4 and says which it wants, for either kind of
/// port. By: a copy of the program that such a user can reach.
pub fn rights() {
    let place = Place::new();
    place.ip("link add wire type veth peer name eriw");
    chown(place.folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let program = place.folder.path().join("hyper-switch");
    std::fs::copy(PROGRAM, &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    for (port, parts) in [
        ("tap:hp0", ["not permitted to open TAP hp0", "run as root or with CAP_NET_ADMIN"]),
        ("packet:wire", ["not permitted to attach to wire", "run as root or with CAP_NET_RAW"]),
    ] {
        let mut daemon = Daemon::launch_with(&place, &[port], &program, |command| {
            command.uid(NOBODY).gid(NOBODY);
        });
        assert_refused(&daemon.wait(), 4, &parts);
    }
}

/// Holds: while a daemon lives, another one on its socket ends with exit code 5 and names it; once it was
/// killed, another takes its socket and its TAP over.
pub fn socket() {
    let place = Place::new();
    let mut first = Daemon::start(&place, &["tap:hp0"]);
    let said = Daemon::launch(&place, &["tap:hp1"]).wait();
    assert_refused(
        &said,
        5,
        &[&format!("another hyper-switch (pid {}) has the control socket", first.pid())],
    );
    assert_eq!(first.stats().pid, first.pid(), "the first one goes on");

    first.signal(Signal::KILL);
    first.wait();
    assert!(place.folder.path().join("ctl.sock").exists(), "a killed daemon leaves its socket");
    let second = Daemon::start(&place, &["tap:hp0"]);
    assert_eq!(second.stats().pid, second.pid());
    assert!(second.log().contains("taking over the socket"), "{}", second.log());
    second.stop();
}
