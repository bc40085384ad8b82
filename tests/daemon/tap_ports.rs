//! Two namespaces over `tap:` ports.

use crate::traffic::{echo, stream};
use crate::world::{Daemon, Guest, Place, eventually};
use hyper_switch::ctl::status::{PortState, PortStatus};
use std::thread;

/// What the daemon may keep resident, with two ports and after traffic.
const RESIDENT_KIB: u64 = 50 * 1024;

/// Holds: datagrams are answered, 64 MiB of TCP arrive as they were sent and in GSO frames; ports, addresses and
/// flows are as the traffic was; every frame is accounted for; the memory is bounded; and once nothing moves,
/// the daemon takes no processor time.
pub fn talk() {
    let place = Place::new();
    let daemon = Daemon::start(&place, &["tap:hp0", "tap:hp1,name=right"]);
    let (left, right) = (Guest::take(&place, "hp0", 1), Guest::take(&place, "hp1", 2));
    echo(&left, &right, 100);
    assert_eq!(
        daemon.places(),
        [(0, left.mac.clone(), "hp0".into()), (0, right.mac.clone(), "right".into())]
    );
    const STREAM_BYTES: usize = 64 << 20;
    stream(&left, &right, STREAM_BYTES);

    let (sender, receiver) = eventually("nothing is under way", || {
        let [sender, receiver] = <[PortStatus; 2]>::try_from(daemon.ports()).unwrap();
        let under_way = [&sender, &receiver].map(|port| port.in_flight + port.queued);
        (under_way == [0, 0]).then_some((sender, receiver))
    });
    assert_eq!((&sender.state, sender.kind.as_str(), sender.device.as_str()), (&PortState::Up, "tap", "hp0"));
    assert!(sender.tx.bytes > STREAM_BYTES as u64, "{sender:?}");
    assert!(sender.tx.bytes / sender.tx.frames > 1514, "frames cross whole: {sender:?}");
    // Between two ports nothing is replicated: what one sent, the other received.
    for (from, to) in [(&sender, &receiver), (&receiver, &sender)] {
        assert_eq!((from.tx.frames, from.tx.bytes), (to.rx.frames, to.rx.bytes));
        assert_eq!(from.tx.drops.total() + to.rx.drops.total(), 0, "{from:?} {to:?}");
    }
    // One flow for each direction carries all but the ARP broadcast, and none counts a frame that was not sent.
    let mut flows = daemon.flows();
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes));
    let [there, back, ..] = &flows[..] else { panic!("{flows:#?}") };
    assert!(there.bytes > STREAM_BYTES as u64 && there.packets >= 100, "{flows:#?}");
    assert!(back.packets >= 100, "{flows:#?}");
    assert!(there.packets <= sender.tx.frames && back.packets <= receiver.tx.frames, "{flows:#?}");
    let stats = eventually("all that was sent was received", || {
        let stats = daemon.stats();
        (stats.tx.frames == stats.rx.frames && stats.tx.bytes == stats.rx.bytes).then_some(stats)
    });
    assert_eq!((stats.pid, stats.ports, stats.macs), (daemon.pid(), 2, 2));
    assert!(stats.tx.frames >= sender.tx.frames + receiver.tx.frames);
    assert_eq!(stats.drops().total(), 0);
    assert!(daemon.resident_kib() < RESIDENT_KIB, "{} KiB are resident", daemon.resident_kib());
    daemon.wait_until_idle();
}

/// Holds: two workers that share three ports carry a stream around in a circle, all three at once, and both of
/// them work.
pub fn workers() {
    let place = Place::new();
    let daemon = Daemon::start_on(&place, &["tap:hp0", "tap:hp1", "tap:hp2"], Some("0-1"));
    let guests = [("hp0", 1), ("hp1", 2), ("hp2", 3)].map(|(tap, n)| Guest::take(&place, tap, n));
    let [a, b, c] = &guests;
    thread::scope(|scope| {
        for (from, to) in [(a, b), (b, c), (c, a)] {
            scope.spawn(move || stream(from, to, 16 << 20));
        }
    });
    eventually("nothing is under way", || {
        daemon.ports().iter().all(|port| port.in_flight + port.queued == 0).then_some(())
    });
    let cores = daemon.stats().cores;
    assert_eq!(cores.len(), 2);
    assert!(cores.iter().all(|core| core.transmit_calls > 0 && core.cache_hits > 0), "{cores:?}");
    daemon.wait_until_idle();
    daemon.stop();
}

/// Holds: SIGTERM ends the daemon with success and a summary on standard output; its interfaces are gone from
/// the guests that took them, and its socket from the file system.
pub fn stop() {
    let place = Place::new();
    let daemon = Daemon::start(&place, &["tap:hp0", "tap:hp1"]);
    let (left, right) = (Guest::take(&place, "hp0", 1), Guest::take(&place, "hp1", 2));
    echo(&left, &right, 1);
    let pid = daemon.pid();
    let said = daemon.stop();
    assert!(said.out.contains(&format!("pid {pid}, up ")), "{said:?}");
    for part in ["tap:hp0", "tap:hp1", "2 ports", "2 MAC addresses", "no drops"] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    for guest in [&left, &right] {
        eventually("the interface is gone", || guest.interfaces().is_empty().then_some(()));
    }
    assert!(!place.folder.path().join("ctl.sock").exists());
}
