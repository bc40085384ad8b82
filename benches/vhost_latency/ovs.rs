//! Open vSwitch with DPDK: a poll-mode thread on the switching core, a bridge that learns, two vhost-user ports.

use crate::huge_pages::HugePages;
use crate::system::{SWITCH_CORE, System};
use std::path::Path;
use std::process::Command;

const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Huge pages of 2 MiB that it is given.
const PAGES: u32 = 192;

/// Why there is none to be measured here, if so.
pub fn missing() -> Option<String> {
    if !Path::new(SWITCH).exists() {
        return Some(format!("{SWITCH} is not there (apt-get install openvswitch-switch-dpdk)"));
    }
    if !rustix::process::geteuid().is_root() {
        return Some("its huge pages need root".to_owned());
    }
    None
}

/// Starts it.
pub fn start() -> System {
    let mut system = System::new(Some(HugePages::reserve(PAGES)));
    let folder = system.path("");
    let database = system.path("conf.db");
    let socket = system.path("db.sock");
    let vsctl = |arguments: &[&str]| {
        let mut command = Command::new("ovs-vsctl");
        command.arg(format!("--db=unix:{}", socket.display())).args(arguments);
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let in_folder = |program: &str| {
        let mut command = Command::new(program);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, &folder);
        }
        command
    };
    let made = Command::new("ovsdb-tool").arg("create").arg(&database).arg(SCHEMA).status();
    assert!(made.is_ok_and(|status| status.success()), "ovsdb-tool makes no database");
    let remote = format!("--remote=punix:{}", socket.display());
    system.spawn(in_folder("ovsdb-server").arg(&database).arg(remote).arg("-vconsole:off"));
    system.wait_for("its database", |_| socket.exists().then_some(()));

    let mask = format!("other_config:pmd-cpu-mask={:#x}", 1 << SWITCH_CORE);
    vsctl(&["--no-wait", "init"]);
    vsctl(&[
        "--no-wait",
        "set",
        "Open_vSwitch",
        ".",
        "other_config:dpdk-init=true",
        "other_config:dpdk-socket-mem=256",
        "other_config:dpdk-lcore-mask=0x1",
        "other_config:dpdk-extra=--no-pci --in-memory --no-telemetry",
        &mask,
    ]);
    let database = format!("unix:{}", socket.display());
    system.spawn(in_folder(SWITCH).arg(database).args(["-vconsole:off", "--pidfile"]));
    vsctl(&["--timeout=20", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]);
    for (port, path) in ["a", "b"].iter().zip(system.ports()) {
        let path = format!("options:vhost-server-path={}", path.display());
        vsctl(&[
            "--timeout=20",
            "add-port",
            "br0",
            port,
            "--",
            "set",
            "Interface",
            port,
            "type=dpdkvhostuserclient",
            &path,
        ]);
    }
    system
}
