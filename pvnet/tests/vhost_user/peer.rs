//! The `vhost` crate's front-end, which Cloud Hypervisor and others are made with, as a peer that is not ours.

use crate::OpenFds;
use crate::vmm::{BYTES, GUEST, USER, memory};
use hyper_switch_pvnet::vhost_user::features::{Features, ProtocolFeatures};
use hyper_switch_pvnet::vhost_user::session::{Effect, Offer, Session};
use hyper_switch_pvnet::vhost_user::socket::{Connection, SocketFault};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Serves a front-end until it goes. Answers all effects, and how many lanes there were at each.
fn serve(socket: UnixStream, offer: Offer) -> Vec<(Effect, usize)> {
    let mut connection = Connection::new(socket.into());
    let mut session = Session::new(offer).unwrap();
    let mut effects = Vec::new();
    loop {
        let (message, fds) = match connection.recv() {
            Ok(Some(arrived)) => arrived,
            Ok(None) => {
                poll(&mut [PollFd::new(&connection, PollFlags::IN)], None).unwrap();
                continue;
            }
            Err(fault) => {
                assert_eq!(fault, SocketFault::Closed);
                return effects;
            }
        };
        let handled = session.handle(&message, fds).unwrap();
        if handled.effect != Effect::None {
            effects.push((handled.effect, session.lanes().len()));
        }
        let reply = match handled.effect {
            Effect::Stop => session.stopped((0..4).map(|queue| (queue, stood(queue)))),
            Effect::Lanes => {
                session
                    .lanes()
                    .iter()
                    .filter_map(|lane| lane.tx.call.as_ref())
                    .for_each(|call| call.signal());
                handled.reply
            }
            _ => handled.reply,
        };
        reply.map_or(Ok(()), |reply| connection.send(reply)).unwrap();
    }
}

/// Where a packed queue stood: at its number, with both wrap counters 1.
fn stood(queue: u16) -> u32 {
    0x8000_8000 | u32::from(queue) << 16 | u32::from(queue)
}

#[test]
fn a_peers_handshake() {
    let fds = OpenFds::count();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let offer = Offer { queue_pairs: 2, mac: Some([2, 0, 0, 0, 0, 9]), ..Offer::default() };
    let switch = thread::spawn(move || serve(ours, offer));

    let mut peer = Frontend::from_stream(theirs, 4);
    let features = peer.get_features().unwrap();
    assert_eq!(features, Features::ALL.0);
    let protocol = peer.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), ProtocolFeatures::ALL.0);
    peer.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    peer.set_features(features).unwrap();
    peer.set_protocol_features(VhostUserProtocolFeatures::from_bits_truncate(protocol.bits())).unwrap();
    peer.set_owner().unwrap();
    assert_eq!(peer.get_queue_num().unwrap(), 4);
    assert_eq!(peer.get_max_mem_slots().unwrap(), 509);
    let (_, config) = peer.get_config(0, 6, VhostUserConfigFlags::empty(), &[0; 6]).unwrap();
    assert_eq!(config, [2, 0, 0, 0, 0, 9]);

    let file = memory(BYTES);
    let region = |at: u64, bytes| VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST + at,
        memory_size: bytes,
        userspace_addr: USER + at,
        mmap_offset: at,
        mmap_handle: file.as_raw_fd(),
    };
    peer.set_mem_table(&[region(0, 0x8000), region(0x8000, 0x8000)]).unwrap();
    let asked = VhostUserInflight { num_queues: 4, queue_size: 128, ..VhostUserInflight::default() };
    let (inflight, inflight_file) = peer.get_inflight_fd(&asked).unwrap();
    peer.set_inflight_fd(&inflight, inflight_file.as_raw_fd()).unwrap();

    let events: Vec<_> = (0..8).map(|_| EventFd::new(0).unwrap()).collect();
    for queue in 0..4_u64 {
        let at = USER + queue * 0x4000;
        let index = queue as usize;
        peer.set_vring_num(index, 128).unwrap();
        let addrs = VringConfigData {
            queue_max_size: 128,
            queue_size: 128,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at + 0x2000,
            avail_ring_addr: at + 0x1000,
            log_addr: None,
        };
        peer.set_vring_addr(index, &addrs).unwrap();
        peer.set_vring_base(index, 0).unwrap();
        peer.set_vring_call(index, &events[index]).unwrap();
        peer.set_vring_kick(index, &events[4 + index]).unwrap();
        peer.set_vring_enable(index, true).unwrap();
    }
    assert_eq!(events[1].read().unwrap(), 2, "called at both times that there were lanes");
    peer.add_mem_region(&region(0x1_0000, 0x1000)).unwrap();
    peer.remove_mem_region(&region(0x1_0000, 0x1000)).unwrap();
    // Cloud Hypervisor pauses so.
    peer.set_vring_enable(3, false).unwrap();
    peer.set_vring_enable(3, true).unwrap();

    for queue in [2, 3, 1] {
        assert_eq!(peer.get_vring_base(queue.into()).unwrap(), stood(queue));
    }
    // Failing is told, and is not the end.
    assert!(peer.set_config(0, VhostUserConfigFlags::empty(), &[1]).is_err());
    drop((peer, events, file, inflight_file));

    let effects = switch.join().unwrap();
    let expected = [
        (Effect::Lanes, 1),
        (Effect::Lanes, 2),
        (Effect::Memory, 2),
        (Effect::Memory, 2),
        (Effect::Enabled, 2),
        (Effect::Enabled, 2),
        (Effect::Stop, 1),
        (Effect::Stop, 0),
    ];
    assert_eq!(effects, expected);
    fds.assert_none_left();
}
