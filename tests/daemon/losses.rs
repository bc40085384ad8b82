//! What goes away: interfaces, links, and an address from one port to another.

use crate::traffic::echo;
use crate::world::{Daemon, Guest, Place, Vmm, eventually};
use hyper_switch::ctl::status::PortState;
use hyper_switch_pvnet::namespace::Interface;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const GONE: &str = "device: the interface is gone";

/// Sends datagrams from one guest to another while `meanwhile` runs; nobody need receive them. About a thousand
/// a second, so that no queue on the way is ever full of them.
fn while_sending<T>(from: &Guest, to: &Guest, meanwhile: impl FnOnce() -> T) -> T {
    let (socket, (running, stop)) = (from.udp(0), mpsc::channel::<()>());
    thread::scope(|scope| {
        scope.spawn(move || {
            while stop.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                // Refusals (no neighbour, nobody listens) are part of what is sent into the void.
                let _ = socket.send_to(&[0; 1000], (to.address, 9));
            }
        });
        // Also when it panics, the sender ends with this.
        let _running = running;
        meanwhile()
    })
}

/// The port is down for good, the log says so and what to do, and the daemon is idle.
fn assert_lost(daemon: &Daemon, port: &str) {
    assert_eq!(daemon.wait_until_down(port), GONE);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains(&format!("port={port}")) && line.contains("ERROR"));
    let line = line.unwrap_or_else(|| panic!("nothing of {port} in the log: {log}"));
    for part in ["port is down", "the others forward on", "restart the switch", GONE] {
        assert!(line.contains(part), "{part}: {line}");
    }
    daemon.wait_until_idle();
}

/// Holds: a TAP that is deleted while frames go through it both ways takes its port down with the reason, and
/// nothing else: the other two forward on, and nobody polls what is gone.
pub fn tap_deleted() {
    let place = Place::new();
    let daemon = Daemon::start(&place, &["tap:hp0", "tap:hp1", "tap:hp2"]);
    let guests = [("hp0", 1), ("hp1", 2), ("hp2", 3)].map(|(tap, n)| Guest::take(&place, tap, n));
    let [first, second, third] = &guests;
    echo(first, second, 1);
    while_sending(first, second, || {
        while_sending(second, first, || {
            let before = daemon.port("hp1");
            eventually("traffic flows both ways", || {
                let now = daemon.port("hp1");
                let moved = now.tx.frames > before.tx.frames && now.rx.frames > before.rx.frames;
                moved.then_some(())
            });
            second.ip("link delete hp1");
            daemon.wait_until_down("hp1");
        });
    });
    assert_lost(&daemon, "hp1");
    echo(first, third, 20);
    daemon.stop();
}

/// Holds: a VMM that ends takes its TAP, and with it the port, away: seen without any traffic; and when the
/// link was down before, so that nothing tells of the removal, by the next frame that is sent there.
pub fn vmm_gone() {
    let place = Place::new();
    let vmms = [("vm0", "eth0"), ("vm1", "eth1"), ("vm2", "eth2"), ("vm3", "eth3")];
    let [_first, second, third, _fourth] = vmms.map(|(host, guest)| Vmm::start(&place, host, guest));
    let daemon = Daemon::start(&place, &["packet:vm0", "packet:vm1", "packet:vm2", "packet:vm3"]);
    let guests = [("eth0", 1), ("eth1", 2), ("eth2", 3), ("eth3", 4)];
    let [a, b, c, d] = guests.map(|(interface, n)| Guest::take(&place, interface, n));
    echo(&a, &b, 1);
    echo(&a, &c, 1);
    drop(second);
    assert_lost(&daemon, "vm1");

    place.ip("link set vm2 down");
    drop(third);
    // Nothing tells of an interface that goes while its link is down, but for the next frame to it.
    while_sending(&a, &c, || assert_eq!(daemon.wait_until_down("vm2"), GONE));
    assert_lost(&daemon, "vm2");
    echo(&a, &d, 20);
    daemon.stop();
}

/// Holds: a port whose link is down is up and costs nothing, frames to it are counted drops, and when the link
/// is back so is the traffic; of a TAP as of an interface with a packet socket.
pub fn link_down() {
    let place = Place::new();
    let _vmm = Vmm::start(&place, "vm1", "eth1");
    let daemon = Daemon::start(&place, &["tap:hp0", "packet:vm1"]);
    let (left, right) = (Guest::take(&place, "hp0", 1), Guest::take(&place, "eth1", 2));
    echo(&left, &right, 1);
    let host = place.namespace().run(|| Interface::named("vm1").unwrap()).unwrap();
    let tap = left.inside(|| Interface::named("hp0").unwrap());
    for (link, port, sender, receiver) in [(&host, "vm1", &left, &right), (&tap, "hp0", &right, &left)] {
        link.down().unwrap();
        while_sending(sender, receiver, || {
            eventually("frames to the link are dropped", || {
                daemon.port(port).rx.drops.by_count().iter().find(|drop| drop.0 == "device_link_down")?;
                Some(())
            });
        });
        assert_eq!(daemon.port(port).state, PortState::Up);
        daemon.wait_until_idle();
        link.up().unwrap();
        echo(sender, receiver, 20);
    }
    daemon.stop();
}

/// Holds: when an address appears behind another port, its traffic goes there at once, nothing of it to the old
/// port any more, and no flow leads there. By: a guest that goes, and another that takes its addresses and
/// speaks first.
pub fn address_moves() {
    let place = Place::new();
    let daemon = Daemon::start(&place, &["tap:hp0", "tap:hp1", "tap:hp2"]);
    let (stays, old) = (Guest::take(&place, "hp0", 1), Guest::take(&place, "hp1", 2));
    let new = Guest::take(&place, "hp2", 3);
    echo(&stays, &old, 20);
    let old_place = (0, old.mac.clone(), "hp1".to_owned());
    assert!(daemon.places().contains(&old_place));

    let old = old.renumbered(9);
    let new = new.renumbered(2);
    echo(&new, &stays, 1);
    let new_place = (0, new.mac.clone(), "hp2".to_owned());
    eventually("the address is behind its new port", || {
        let places = daemon.places();
        assert!(!places.contains(&old_place) || !places.contains(&new_place));
        places.contains(&new_place).then_some(())
    });
    let before = daemon.port(&old.interface);
    echo(&stays, &new, 100);
    let after = daemon.port(&old.interface);
    assert_eq!((after.rx.frames, after.tx.frames), (before.rx.frames, before.tx.frames));
}
