//! Who goes and comes back: the daemon, the VMM, the driver.

use super::front_end::{FrontEnd, GET_INFLIGHT_FD, Message, SET_INFLIGHT_FD};
use super::vm::{RING, Shape, Vm};
use crate::world::{Daemon, Place, eventually};
use hyper_switch::ctl::status::PortState;
use hyper_switch_pvnet::ring::RingFormat;
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// What `vhost-user:` ports for two VMs are called.
fn ports(place: &Place, option: &str) -> ([PathBuf; 2], [String; 2]) {
    let sockets = [1, 2].map(|n| place.folder.path().join(format!("vm{n}")));
    let ports = sockets.each_ref().map(|socket| format!("vhost-user:{}{option}", socket.display()));
    (sockets, ports)
}

fn start(place: &Place, ports: &[String; 2]) -> Daemon {
    Daemon::start(place, &ports.each_ref().map(String::as_str))
}

/// Waits until a port waits for its VMM.
fn waits(daemon: &Daemon, port: &str, for_what: &str) {
    eventually(&format!("{port} is {for_what}"), || {
        let PortState::Down { reason } = daemon.port(port).state else { return None };
        reason.contains(for_what).then_some(())
    });
}

/// A record of chains in flight, kept by the VMM while switches come and go.
struct Record {
    description: Vec<u8>,
    file: OwnedFd,
}

impl Record {
    fn ask(front_end: &FrontEnd) -> Record {
        let asked = Message::numbers(GET_INFLIGHT_FD, &[0, 0, 2 | u64::from(RING) << 16]);
        let (description, file) = front_end.ask(&asked);
        Record { description, file: file.expect("the record's file") }
    }

    fn message(&self) -> Message {
        Message::new(SET_INFLIGHT_FD, self.description.clone()).with(&self.file)
    }

    /// Chains of the transmit ring that are marked, when no switch is there.
    fn in_flight(&self) -> usize {
        let mut part = [0; 16 + 16 * RING as usize];
        let bytes = (16 + 16 * u64::from(RING)).next_multiple_of(64);
        rustix::io::pread(&self.file, &mut part, bytes).unwrap();
        part[16..].chunks(16).filter(|entry| entry[0] == 1).count()
    }
}

/// Connects a VM with its record: before its rings.
fn attach_recorded(vm: &mut Vm, socket: &Path, record: &mut Option<Record>) -> FrontEnd {
    let front_end = FrontEnd::connect(socket);
    let record = record.get_or_insert_with(|| Record::ask(&front_end));
    front_end.tell(&record.message());
    vm.attach(&front_end);
    front_end
}

/// Holds: a daemon that is killed in the middle of traffic and started again takes its sockets over; the VMs' rings go
/// on, and chains that it had taken and not given back come back exactly once from the next, as the record of them
/// says, which had some at least once.
pub fn killed_daemon() {
    let place = Place::without_network();
    let (sockets, ports) = ports(&place, "");
    let mut daemon = start(&place, &ports);
    let shape = Shape { indirect: false, ..Shape::SPLIT };
    let [mut left, mut right] = [1, 2].map(|n| Vm::new(n, shape));
    let mut records = [None, None];
    let mut connected = connect(&mut left, &mut right, &sockets, &mut records);
    let mut taken_over = 0;
    for round in 0..6 {
        left.find(&mut right);
        right.find(&mut left);
        left.talk_to(&mut right, 40);
        right.talk_to(&mut left, 40);
        // More than there is room for: some wait for the receiver when the daemon dies.
        let sent = 30;
        (0..2 * sent).for_each(|number| left.send(0, &left.frame(2, number, 1000)));
        let before = daemon.port("vm1").tx.frames;
        assert!(before > 0);
        daemon.signal(Signal::KILL);
        daemon.wait();
        taken_over += records[0].as_ref().map_or(0, Record::in_flight);
        drop(connected);
        daemon = start(&place, &ports);
        // What came before it died.
        let early = right.receive(0).len();
        connected = connect(&mut left, &mut right, &sockets, &mut records);
        eventually(&format!("round {round}: every chain comes back ({early} frames came early)"), || {
            right.receive(0);
            left.reap(0);
            (left.rings[1].queue.outstanding() == 0).then_some(())
        });
    }
    assert!(taken_over > 0, "no chain was in flight at any death");
    left.find(&mut right);
    left.talk_to(&mut right, 100);
    right.talk_to(&mut left, 100);
    daemon.stop();
}

fn connect(
    left: &mut Vm,
    right: &mut Vm,
    sockets: &[PathBuf; 2],
    [one, two]: &mut [Option<Record>; 2],
) -> [FrontEnd; 2] {
    [attach_recorded(left, &sockets[0], one), attach_recorded(right, &sockets[1], two)]
}

/// Holds: a front-end that goes in the middle of traffic takes its port down until another comes, with the same rings,
/// which go on, or with others; what was counted stays.
pub fn killed_front_end() {
    let place = Place::without_network();
    let (sockets, ports) = ports(&place, "");
    let daemon = start(&place, &ports);
    let (mut left, _stays) = Vm::start(1, Shape::SPLIT, &sockets[0]);
    let (mut right, mut front_end) = Vm::start(2, Shape::SPLIT, &sockets[1]);
    let mut sent = 0;
    for same in [true, false, true, true] {
        left.find(&mut right);
        right.find(&mut left);
        left.talk_to(&mut right, 50);
        right.talk_to(&mut left, 50);
        sent += 50;
        (0..10).for_each(|number| left.send(0, &left.frame(2, number, 500)));
        drop(front_end);
        waits(&daemon, "vm2", "waiting for a VMM to connect");
        let dropped = daemon.stats().drops().total();
        eventually("frames for nobody are counted", || {
            left.send(0, &left.frame(2, 0, 60));
            let drops = daemon.stats().drops().total();
            (drops > dropped).then_some(())
        });
        if !same {
            right = Vm::new(2, Shape { format: RingFormat::Packed, ..Shape::SPLIT });
        }
        front_end = FrontEnd::connect(&sockets[1]);
        if right.shape.format == RingFormat::Packed {
            // Where a packed ring stood its VMM would not know.
            right = Vm::new(2, right.shape);
        }
        right.attach(&front_end);
        assert_eq!(daemon.port("vm2").state, PortState::Up);
        let end = daemon.port("vm2").vmm.and_then(|vmm| vmm.last_end);
        assert_eq!(end.as_deref(), Some("the VMM closed its connection"));
        assert!(daemon.port("vm2").tx.frames >= sent, "counters stay");
        right.receive(0);
    }
    left.find(&mut right);
    left.talk_to(&mut right, 50);
    daemon.stop();
}

/// Holds: rings that are stopped in the middle of traffic and started where they stood go on, in either format; and so
/// does a driver that starts anew.
pub fn driver_reset() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let place = Place::without_network();
        let (sockets, ports) = ports(&place, ",queues=2");
        let daemon = start(&place, &ports);
        let shape = Shape { format, pairs: 2, ..Shape::SPLIT };
        let (mut left, front_end) = Vm::start(1, shape, &sockets[0]);
        let (mut right, _other) = Vm::start(2, shape, &sockets[1]);
        for round in 0..10 {
            (0..20).for_each(|number| left.send(number as u16 % 2, &left.frame(2, number, 700)));
            left.stop(&front_end);
            let back = |pair| {
                move |vm: &mut Vm| {
                    vm.reap(pair);
                    vm.rings[2 * usize::from(pair) + 1].queue.outstanding()
                }
            };
            let out: u16 = [back(0), back(1)].into_iter().map(|out| out(&mut left)).sum();
            println!("{format:?}, round {round}: {out} chains of 20 were not taken");
            if round % 3 == 2 {
                left = Vm::new(1, shape);
            }
            left.attach(&front_end);
            eventually("every chain comes back", || {
                (0..2).for_each(|pair| drop(right.receive(pair)));
                let out: u16 = [back(0), back(1)].into_iter().map(|out| out(&mut left)).sum();
                (out == 0).then_some(())
            });
            eventually("nothing is under way", || {
                (0..2).for_each(|pair| drop(right.receive(pair)));
                daemon.ports().iter().all(|port| port.queued == 0).then_some(())
            });
            (0..2).for_each(|pair| drop(right.receive(pair)));
            left.talk_to(&mut right, 40);
            right.talk_to(&mut left, 40);
        }
        daemon.stop();
    }
}

/// Holds: a daemon that is the socket's client finds a VMM that comes after it, loses it, and finds the next.
pub fn client_mode() {
    let place = Place::without_network();
    let server = place.folder.path().join("server");
    let client = place.folder.path().join("client");
    let ports =
        [format!("vhost-user:{}", server.display()), format!("vhost-user:{},client", client.display())];
    let daemon = start(&place, &ports);
    let (mut left, _stays) = Vm::start(1, Shape::SPLIT, &server);
    let mut right = Vm::new(2, Shape::SPLIT);
    for _ in 0..3 {
        waits(&daemon, "client", "waiting for the VMM's socket");
        let listener = UnixListener::bind(&client).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stream = eventually("the daemon connects", || listener.accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        let front_end = FrontEnd::on(stream);
        right.attach(&front_end);
        left.find(&mut right);
        left.talk_to(&mut right, 30);
        right.talk_to(&mut left, 30);
        drop(listener);
        std::fs::remove_file(&client).unwrap();
    }
    daemon.stop();
}
