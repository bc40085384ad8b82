//! Sessions message by message: when rings run, what stops them, what a lie ends in.

use crate::OpenFds;
use crate::vmm::*;
use hyper_switch_pvnet::header::Offloads;
use hyper_switch_pvnet::mem::RegionError;
use hyper_switch_pvnet::vhost_user::event::EventFault;
use hyper_switch_pvnet::vhost_user::features::Features;
use hyper_switch_pvnet::vhost_user::inflight::InflightFault;
use hyper_switch_pvnet::vhost_user::memory::MapFault;
use hyper_switch_pvnet::vhost_user::message::{HEADER_BYTES, MessageFault, Reply};
use hyper_switch_pvnet::vhost_user::session::{Effect, LaneSetup, Offer, Session, SessionFault};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::ftruncate;
use rustix::time::Timespec;

const SPLIT: u64 = Features::VERSION_1.0 | Features::PROTOCOL_FEATURES.0;
const PACKED: u64 = SPLIT | Features::RING_PACKED.0;

fn session() -> Session {
    Session::new(Offer::default()).unwrap()
}

/// A session of a VMM whose one lane runs.
fn running(vmm: &Vmm, features: u64) -> Session {
    let mut session = session();
    assert_eq!(send_all(&mut session, vmm.handshake(features)), [Effect::Lanes]);
    session
}

/// The numbers of a reply's payload.
fn payload<const N: usize>(reply: Option<Reply>) -> [u32; N] {
    let reply = reply.expect("a reply");
    let words =
        reply.bytes[HEADER_BYTES..].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    words.collect::<Vec<_>>().try_into().unwrap()
}

fn ask<const N: usize>(session: &mut Session, sent: Sent) -> [u32; N] {
    payload(sent.to(session).unwrap().reply)
}

fn lane(session: &Session) -> LaneSetup {
    let [lane] = session.lanes().try_into().unwrap();
    lane
}

#[test]
fn a_lane_runs_when_all_is_known_in_whatever_order() {
    let fds = OpenFds::count();
    let vmm = Vmm::new();
    // QEMU 7.2 enables before it sets features; others enable last. Each message is once the last.
    let count = vmm.handshake(SPLIT).len();
    for last in 2..count {
        let mut session = session();
        let mut sent = vmm.handshake(SPLIT);
        let moved = sent.remove(last);
        // A base is only taken before its ring runs, and none is 0; an owner, and who is called, may come late.
        let waits = ![SET_OWNER, SET_VRING_BASE, SET_VRING_CALL].contains(&moved.request);
        let before = send_all(&mut session, sent);
        assert_eq!(before.is_empty(), waits, "{}", moved.request);
        if waits {
            assert_eq!(moved.to(&mut session).unwrap().effect, Effect::Lanes);
        }
        let LaneSetup { pair, rx, tx, enabled } = lane(&session);
        assert_eq!((pair, enabled, rx.size, tx.size), (0, true, 256, 256));
        assert_eq!((rx.base, tx.base), (0, 0));
        let at = GUEST + 0x4000;
        assert_eq!((tx.addrs.desc, tx.addrs.avail, tx.addrs.used), (at, at + 0x1000, at + 0x2000));
    }
    drop(vmm);
    fds.assert_none_left();
}

#[test]
fn without_protocol_features_rings_need_no_enabling() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let mut session = session();
    let sent = vmm.handshake(Features::VERSION_1.0).into_iter();
    let effects = send_all(&mut session, sent.filter(|sent| sent.request != SET_VRING_ENABLE));
    assert_eq!(effects, [Effect::Lanes]);
    assert!(lane(&session).enabled);
}

#[test]
fn a_driver_without_version_1_has_no_rings() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let mut session = session();
    let effects = send_all(&mut session, vmm.handshake(Features::PROTOCOL_FEATURES.0));
    assert_eq!(effects, []);
    // The driver behind it.
    assert_eq!(send_all(&mut session, [Sent::number(SET_FEATURES, SPLIT)]), [Effect::Lanes]);
}

#[test]
fn a_stopped_queue_is_answered_where_it_stood_and_begins_there() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    for (features, [rx, tx]) in [(SPLIT, [7, 65_535]), (PACKED, [0x8007_8007, 0x0010_8010])] {
        let mut session = running(&vmm, features);
        let stop = Sent::state(GET_VRING_BASE, 0, 0).to(&mut session).unwrap();
        assert_eq!(stop.effect, Effect::Stop);
        assert!(stop.reply.is_none());
        assert_eq!(payload(session.stopped([(0, rx), (1, tx)])), [0, rx]);
        assert!(session.lanes().is_empty());
        // The other queue of the pair runs in no lane, so there is nothing more to stop.
        assert_eq!(ask(&mut session, Sent::state(GET_VRING_BASE, 1, 0)), [1, tx]);

        // Nothing but the next kick has it run again.
        assert_eq!(send_all(&mut session, [Sent::state(SET_VRING_ENABLE, 0, 1)]), []);
        let kicks = [0, 1].map(|queue| Sent::number(SET_VRING_KICK, queue).with(event()));
        assert_eq!(send_all(&mut session, kicks), [Effect::Lanes]);
        let LaneSetup { rx: begins_rx, tx: begins_tx, .. } = lane(&session);
        assert_eq!([begins_rx.base, begins_tx.base], [rx, tx]);
    }
}

#[test]
fn packed_bases_begin_as_the_specification_and_as_dpdk_say_them() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    for (said, taken) in [(None, 0x8000_8000), (Some(0x8000), 0x8000_8000), (Some(0x0001_8002), 0x0001_8002)]
    {
        let mut session = session();
        let mut sent = vmm.handshake(PACKED);
        sent.retain(|sent| sent.request != SET_VRING_BASE);
        let bases = said.map(|base| Sent::state(SET_VRING_BASE, 0, base));
        send_all(&mut session, bases.into_iter().chain(sent));
        assert_eq!(lane(&session).rx.base, taken);
    }
}

#[test]
fn a_reset_stops_lanes_before_it_is_acknowledged() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let resets = [Sent::new(RESET_OWNER, []), Sent::new(RESET_DEVICE, []), Sent::number(SET_STATUS, 0)];
    for (sent, again) in resets.into_iter().zip([vmm.handshake(SPLIT), vmm.handshake(SPLIT), {
        // Status 0 leaves rings enabled: QEMU enables them once.
        let mut sent = vmm.handshake(SPLIT);
        sent.retain(|sent| sent.request != SET_VRING_ENABLE);
        sent
    }]) {
        let mut session = running(&vmm, SPLIT);
        let request = sent.request;
        let handled = sent.acked().to(&mut session).unwrap();
        assert_eq!(handled.effect, Effect::Stop, "{request}");
        assert!(handled.reply.is_none());
        assert_eq!(payload(session.stopped([(0, 5), (1, 6)])), [0, 0]);
        assert!(session.lanes().is_empty());
        // QEMU 7.2 resets the status first and asks then; a device that was reset knows nothing.
        let stood = if request == RESET_DEVICE { 0 } else { 6 };
        assert_eq!(ask(&mut session, Sent::state(GET_VRING_BASE, 1, 0)), [1, stood], "{request}");
        assert_eq!(send_all(&mut session, again), [Effect::Lanes], "{request}");
        assert_eq!(lane(&session).rx.base, 0);
    }
}

#[test]
fn a_live_lane_is_enabled_and_its_events_exchanged() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let mut session = running(&vmm, SPLIT);
    let enable = |queue, value| Sent::state(SET_VRING_ENABLE, queue, value);
    assert_eq!(send_all(&mut session, [enable(1, 0)]), [Effect::Enabled]);
    assert!(!lane(&session).enabled);
    assert_eq!(send_all(&mut session, [enable(0, 0), enable(1, 1), enable(0, 1)]), [Effect::Enabled]);
    assert!(lane(&session).enabled);

    let before = lane(&session);
    let call = Sent::number(SET_VRING_CALL, 1).with(event());
    assert_eq!(send_all(&mut session, [call]), [Effect::Events { pair: 0 }]);
    assert!(!std::sync::Arc::ptr_eq(&before.tx.call.unwrap(), &lane(&session).tx.call.unwrap()));
    let polls = Sent::number(SET_VRING_CALL, 1 | 1 << 8);
    assert_eq!(send_all(&mut session, [polls]), [Effect::Events { pair: 0 }]);
    assert!(lane(&session).tx.call.is_none());
}

#[test]
fn memory_changes_under_a_live_lane() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let mut session = running(&vmm, SPLIT);
    let more = [GUEST + BYTES, 0x1000, USER + BYTES, 0];
    // Twice, as some front-ends ask for each queue pair.
    let add = || Sent::region(ADD_MEM_REG, more).with(memory(0x1000));
    assert_eq!(send_all(&mut session, [add(), add()]), [Effect::Memory]);
    assert_eq!(session.memory().bytes(), BYTES + 0x1000);
    // Some send a file descriptor with it, which they should not.
    let remove = || Sent::region(REM_MEM_REG, more).with(memory(0x1000));
    assert_eq!(send_all(&mut session, [remove(), remove()]), [Effect::Memory]);
    assert_eq!(session.memory().bytes(), BYTES);

    // The same user addresses elsewhere in the guest.
    let moved = Sent::table(&[[0, BYTES, USER, 0]]).with(vmm.file());
    assert_eq!(send_all(&mut session, [moved]), [Effect::Lanes]);
    assert_eq!(lane(&session).tx.addrs.desc, 0x4000);

    let gone = Sent::region(REM_MEM_REG, [0, BYTES, USER, 0]).to(&mut session).unwrap_err();
    assert_eq!(gone, SessionFault::RingOutsideMemory { queue: 0, addr: USER });
}

#[test]
fn a_truncated_file_is_told_to_whoever_waits() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let session = running(&vmm, SPLIT);
    let lost = session.lost_event();
    let waits = |for_ms: i64| {
        let timeout = Timespec { tv_sec: 0, tv_nsec: for_ms * 1_000_000 };
        poll(&mut [PollFd::new(&lost, PollFlags::IN)], Some(&timeout)).unwrap() == 0
    };
    ftruncate(&vmm.file, 0).unwrap();
    assert!(waits(0));
    assert_eq!(session.check_memory(), Ok(()));
    let descriptor = session.memory().translate_whole(GUEST, 16).unwrap();
    // SAFETY: the session keeps the memory.
    assert_eq!(unsafe { descriptor.load::<16>() }, [0; 16]);
    assert!(!waits(0));
    assert_eq!(session.check_memory(), Err(SessionFault::MemoryLost));
}

#[test]
fn what_is_in_flight_outlives_the_session() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let shape = [[0; 16].as_slice(), &2_u16.to_ne_bytes(), &256_u16.to_ne_bytes(), &[0; 4]].concat();
    for asked_bytes in [20, 24] {
        let mut session = running(&vmm, SPLIT);
        let asked = Sent::new(GET_INFLIGHT_FD, &shape[..asked_bytes]).to(&mut session).unwrap();
        let mut given = asked.reply.unwrap();
        assert_eq!(given.bytes.len(), HEADER_BYTES + asked_bytes);
        let file = given.fd.take().unwrap();
        let back =
            || Sent::new(SET_INFLIGHT_FD, &given.bytes[HEADER_BYTES..]).with(file.try_clone().unwrap());
        let record = |session: &mut Session| {
            assert_eq!(send_all(session, [back()]), [Effect::Lanes]);
            let tx = lane(session).tx;
            tx.inflight.unwrap().record(tx.queue, tx.size).unwrap().unwrap()
        };
        record(&mut session).take(7);
        drop(session);
        assert_eq!(record(&mut running(&vmm, SPLIT)).recover(0), [7]);
    }
}

/// Holds that features which come after a region, and are of the other format, leave it to nobody.
#[test]
fn a_record_is_for_rings_of_its_format() {
    let _fds = OpenFds::count();
    let vmm = Vmm::new();
    let shape = [[0; 16].as_slice(), &2_u16.to_ne_bytes(), &256_u16.to_ne_bytes(), &[0; 4]].concat();
    for (features, others) in [(SPLIT, PACKED), (PACKED, SPLIT)] {
        let mut session = session();
        send_all(&mut session, [Sent::number(SET_FEATURES, features)]);
        let given = Sent::new(GET_INFLIGHT_FD, &shape).to(&mut session).unwrap().reply.unwrap();
        let back = Sent::new(SET_INFLIGHT_FD, &given.bytes[HEADER_BYTES..]).with(given.fd.unwrap());
        send_all(&mut session, [back]);
        assert_eq!(send_all(&mut session, vmm.handshake(others)), [Effect::Lanes]);
        assert!(lane(&session).tx.inflight.is_none());
    }
}

#[test]
fn questions_are_answered() {
    let _fds = OpenFds::count();
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let offer = Offer { queue_pairs: 4, mtu: 9000, mac: Some(mac), ..Offer::default() };
    let mut session = Session::new(offer).unwrap();
    let features = ask(&mut session, Sent::new(GET_FEATURES, []));
    assert_eq!(features, [Features::ALL.0 as u32, (Features::ALL.0 >> 32) as u32]);
    assert_eq!(ask(&mut session, Sent::new(17, [])), [8, 0], "queues");
    assert_eq!(ask(&mut session, Sent::new(36, [])), [509, 0], "memory slots");
    assert_eq!(ask(&mut session, Sent::new(15, [])), [0x1b21d, 0], "protocol features");

    send_all(&mut session, [Sent::number(SET_STATUS, 0xf)]);
    assert_eq!(ask(&mut session, Sent::new(GET_STATUS, [])), [0xf, 0]);

    let config = |offset: u32, size: u32| {
        let head = [offset, size, 0].map(u32::to_ne_bytes).concat();
        Sent::new(GET_CONFIG, [head, vec![0; size as usize]].concat())
    };
    let reply = config(0, 12).to(&mut session).unwrap().reply.unwrap();
    let space = &reply.bytes[HEADER_BYTES + 12..];
    assert_eq!(space, [&mac[..], &[1, 0, 4, 0, 0x28, 0x23]].concat());
    assert_eq!(config(250, 7).to(&mut session).unwrap().reply.unwrap().bytes.len(), HEADER_BYTES);
    assert_eq!(config(u32::MAX, 2).to(&mut session).unwrap().reply.unwrap().bytes.len(), HEADER_BYTES);

    let rarp = Sent::new(SEND_RARP, [&mac[..], &[0, 0]].concat());
    assert_eq!(send_all(&mut session, [rarp]), [Effect::Announce(mac)]);
    assert_eq!(send_all(&mut session, [Sent::number(NET_SET_MTU, 1400)]), [Effect::Mtu(1400)]);

    // Without several pairs and an address of its own, a port offers neither.
    let [low, _] = ask(&mut self::session(), Sent::new(GET_FEATURES, []));
    assert_eq!(u64::from(low) & (Features::MQ.0 | Features::MAC.0), 0);
}

#[test]
fn what_is_not_possible_is_acknowledged_as_failed_and_else_ignored() {
    let _fds = OpenFds::count();
    let mut session = session();
    send_all(&mut session, [Sent::number(SET_PROTOCOL_FEATURES, 1 << 3)]);
    let write = || Sent::new(SET_CONFIG, [[0, 1, 0].map(u32::to_ne_bytes).concat(), vec![1]].concat());
    let refused = [|| Sent::number(NET_SET_MTU, 67), || Sent::number(NET_SET_MTU, 65_536)];
    for sent in refused.into_iter().map(|sent| sent()).chain([write()]) {
        let request = sent.request;
        assert_eq!(ask(&mut session, sent.acked()), [1, 0], "{request}");
    }
    for sent in [refused[0](), write()] {
        let handled = sent.to(&mut session).unwrap();
        assert!(handled.reply.is_none() && handled.effect == Effect::None);
    }
    // What is not offered.
    for request in [SET_LOG_BASE, 7, 21, 22, 28, 35, 41, 4711] {
        assert_eq!(ask(&mut session, Sent::number(request, 0).with(event()).acked()), [1, 0], "{request}");
    }
    assert_eq!(ask(&mut session, Sent::new(SET_OWNER, []).acked()), [0, 0]);
}

#[test]
fn offloads_are_what_the_guest_takes() {
    let _fds = OpenFds::count();
    assert_eq!(Features::ALL.guest_offloads(), Offloads::ALL);
    let half = Features(Features::GUEST_CSUM.0 | Features::GUEST_USO4.0 | Features::HOST_TSO4.0);
    assert_eq!(half.guest_offloads(), Offloads::CSUM);
}

/// Each lie ends the session, by a fault that names it; and where the front-end waits, it is told.
#[test]
fn lies_are_faults() {
    type Lie = (&'static str, fn(&Vmm) -> Vec<Sent>, SessionFault);
    /// Regions of one file each.
    fn table(regions: &[[u64; 4]]) -> Vec<Sent> {
        vec![regions.iter().fold(Sent::table(regions), |sent, _| sent.with(memory(BYTES)))]
    }
    /// What comes before the last is a handshake, without what it would say of queue 0 in this message.
    fn instead(vmm: &Vmm, features: u64, sent: Sent) -> Vec<Sent> {
        let mut all = vmm.handshake(features);
        let at = all.iter().position(|other| other.request == sent.request).unwrap();
        all[at] = sent;
        all
    }
    let lies: Vec<Lie> = vec![
        (
            "a number of another length",
            |_| vec![Sent::new(SET_FEATURES, [0; 7])],
            MessageFault::PayloadBytes { request: SET_FEATURES, bytes: 7 }.into(),
        ),
        (
            "nothing, longer than it is",
            |_| vec![Sent::new(GET_FEATURES, [0; 8])],
            MessageFault::PayloadBytes { request: GET_FEATURES, bytes: 8 }.into(),
        ),
        (
            "a table shorter than it says",
            |_| vec![Sent::numbers(SET_MEM_TABLE, &[2, GUEST, BYTES, USER, 0]).with(memory(BYTES))],
            MessageFault::PayloadBytes { request: SET_MEM_TABLE, bytes: 40 }.into(),
        ),
        (
            "a table of many",
            |_| vec![Sent::numbers(SET_MEM_TABLE, &[9])],
            MessageFault::TableRegions(9).into(),
        ),
        (
            "a region without its file",
            |_| vec![Sent::table(&[[GUEST, BYTES, USER, 0]])],
            MessageFault::Fds { request: SET_MEM_TABLE, fds: 0 }.into(),
        ),
        (
            "a region with two files",
            |vmm| vec![vmm.map().with(memory(BYTES))],
            MessageFault::Fds { request: SET_MEM_TABLE, fds: 1 }.into(),
        ),
        (
            "a file with a number",
            |_| vec![Sent::number(SET_FEATURES, 0).with(event())],
            MessageFault::Fds { request: SET_FEATURES, fds: 1 }.into(),
        ),
        (
            "a kick without its file",
            |_| vec![Sent::number(SET_VRING_KICK, 0)],
            MessageFault::Fds { request: SET_VRING_KICK, fds: 0 }.into(),
        ),
        (
            "no call, with its file",
            |_| vec![Sent::number(SET_VRING_CALL, 1 << 8).with(event())],
            MessageFault::Fds { request: SET_VRING_CALL, fds: 1 }.into(),
        ),
        (
            "a call with flags",
            |_| vec![Sent::number(SET_VRING_CALL, 1 << 9).with(event())],
            MessageFault::VringFd { request: SET_VRING_CALL, value: 1 << 9 }.into(),
        ),
        (
            "a configuration longer than it is",
            |_| vec![Sent::new(GET_CONFIG, [0, 100, 0].map(u32::to_ne_bytes).concat())],
            MessageFault::PayloadBytes { request: GET_CONFIG, bytes: 12 }.into(),
        ),
        (
            "a kick that polls",
            |_| vec![Sent::number(SET_VRING_KICK, 1 << 8)],
            SessionFault::NoKick { queue: 0 },
        ),
        (
            "a kick that is a file",
            |vmm| vec![Sent::number(SET_VRING_KICK, 0).with(vmm.file())],
            EventFault::NotAnEventfd.into(),
        ),
        ("features beyond", |_| vec![Sent::number(SET_FEATURES, 1 << 26)], SessionFault::Features(1 << 26)),
        (
            "protocol features beyond",
            |_| vec![Sent::number(SET_PROTOCOL_FEATURES, 3)],
            SessionFault::ProtocolFeatures(2),
        ),
        (
            "a queue beyond",
            |_| vec![Sent::state(SET_VRING_NUM, 2, 256)],
            SessionFault::NoSuchQueue { index: 2, queues: 2 },
        ),
        (
            "a queue far beyond",
            |_| vec![Sent::state(GET_VRING_BASE, 0x1_0000, 0)],
            SessionFault::NoSuchQueue { index: 0x1_0000, queues: 2 },
        ),
        (
            "no entries",
            |_| vec![Sent::state(SET_VRING_NUM, 0, 0)],
            SessionFault::RingSize { queue: 0, size: 0 },
        ),
        (
            "too many entries",
            |_| vec![Sent::state(SET_VRING_NUM, 0, 65_536)],
            SessionFault::RingSize { queue: 0, size: 65_536 },
        ),
        (
            "a split ring of no power of two",
            |vmm| instead(vmm, SPLIT, Sent::state(SET_VRING_NUM, 0, 255)),
            SessionFault::RingSize { queue: 0, size: 255 },
        ),
        (
            "a split base of 17 bits",
            |vmm| instead(vmm, SPLIT, Sent::state(SET_VRING_BASE, 0, 65_536)),
            SessionFault::RingBase { queue: 0, base: 65_536 },
        ),
        (
            "a packed base beyond the ring",
            |vmm| instead(vmm, PACKED, Sent::state(SET_VRING_BASE, 0, 0x8000_8100)),
            SessionFault::RingBase { queue: 0, base: 0x8000_8100 },
        ),
        (
            "a ring that is logged",
            |_| vec![Sent::numbers(SET_VRING_ADDR, &[1 << 32, 0, 0, 0, 0])],
            SessionFault::RingFlags { queue: 0, flags: 1 },
        ),
        (
            "a ring before memory",
            |vmm| instead(vmm, SPLIT, Sent::addrs(0, USER - 16, USER, USER)),
            SessionFault::RingOutsideMemory { queue: 0, addr: USER - 16 },
        ),
        (
            "a ring that reaches beyond memory",
            |vmm| instead(vmm, SPLIT, Sent::addrs(0, USER, USER, USER + BYTES - 2053)),
            SessionFault::RingOutsideMemory { queue: 0, addr: USER + BYTES - 2053 },
        ),
        (
            "another size while it runs",
            |vmm| {
                let mut all = vmm.handshake(SPLIT);
                all.push(Sent::state(SET_VRING_NUM, 1, 128));
                all
            },
            SessionFault::RingRuns { queue: 1 },
        ),
        (
            "other features while rings run",
            |vmm| {
                let mut all = vmm.handshake(SPLIT);
                all.push(Sent::number(SET_FEATURES, PACKED));
                all
            },
            SessionFault::FeaturesInUse,
        ),
        (
            "half enabled",
            |_| vec![Sent::state(SET_VRING_ENABLE, 0, 2)],
            SessionFault::Enable { queue: 0, value: 2 },
        ),
        ("status beyond", |_| vec![Sent::number(SET_STATUS, 256)], SessionFault::Status(256)),
        (
            "what nobody knows, without an acknowledgement",
            |_| vec![Sent::new(4711, [])],
            SessionFault::UnknownRequest(4711),
        ),
        (
            "memory that overlaps in the guest",
            |_| table(&[[0, 0x2000, USER, 0], [0x1000, 0x1000, USER + 0x2000, 0]]),
            MapFault::Guest(RegionError::Overlap(0x1000)).into(),
        ),
        (
            "memory that overlaps in the VMM",
            |_| table(&[[0, 0x2000, USER, 0], [0x2000, 0x1000, USER + 0x1000, 0]]),
            MapFault::UserAddress(USER + 0x1000).into(),
        ),
        (
            "memory beyond its file",
            |_| table(&[[0, BYTES, USER, 1]]),
            MapFault::BeyondFile { end: BYTES + 1, file_bytes: BYTES }.into(),
        ),
        (
            "memory that wraps in its file",
            |_| table(&[[0, BYTES, USER, u64::MAX]]),
            MapFault::OffsetWraps { bytes: BYTES, offset: u64::MAX }.into(),
        ),
        (
            "memory that wraps in the guest",
            |_| table(&[[u64::MAX - 1, BYTES, USER, 0]]),
            MapFault::Guest(RegionError::Wraps { guest_addr: u64::MAX - 1, bytes: BYTES }).into(),
        ),
        ("memory of nothing", |_| table(&[[0, 0, USER, 0]]), MapFault::Empty.into()),
        (
            "memory in no file",
            |_| vec![Sent::region(ADD_MEM_REG, [0, BYTES, USER, 0]).with(event())],
            MapFault::NotAFile.into(),
        ),
        (
            "memory that is there, at another offset",
            |vmm| {
                let add = |offset| Sent::region(ADD_MEM_REG, [0, 0x1000, USER, offset]).with(vmm.file());
                vec![add(0), add(0x1000)]
            },
            MapFault::UserAddress(USER).into(),
        ),
        (
            "in flight, of more queues than there are",
            |_| vec![Sent::new(GET_INFLIGHT_FD, [[0; 16].as_slice(), &[3, 0, 8, 0]].concat())],
            InflightFault::Shape { queues: 3, queue_size: 8 }.into(),
        ),
        (
            "in flight, in less than it takes",
            |_| {
                let region = [[0; 16].as_slice(), &[2, 0, 8, 0]].concat();
                vec![Sent::new(SET_INFLIGHT_FD, region).with(memory(4096))]
            },
            InflightFault::Bytes { bytes: 0, offset: 0, needed: 384 }.into(),
        ),
    ];
    let fds = OpenFds::count();
    for (lie, sent, fault) in lies {
        let mut session = session();
        let vmm = Vmm::new();
        let outcome = sent(&vmm).into_iter().try_for_each(|sent| sent.acked().to(&mut session).map(drop));
        // Without acknowledgements being negotiated, none is given.
        assert_eq!(outcome, Err(fault), "{lie}");
        drop((session, vmm));
        fds.assert_none_left();
    }
}
