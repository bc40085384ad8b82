//! A vhost-user port, from the bytes on its socket to frames in the switch.
//!
//! Input: what the port offers, and a program of steps: what the VMM says, honest and not; what its guest writes in its memory
//! and its rings; entries into the switch; frames that another VM sends it; VMMs that go and come.
//!
//! - The session's answers are those that are due, and its effects tell all that changes (`host`).
//! - Lanes that run lie in memory, and the switch takes each of them.
//! - When the last VMM is gone, so are its memory and all file descriptors, the ledger holds, and who sent to the guest
//!   has its buffers back.

mod host;
mod vmm;

use super::input::Input;
use super::offers::{Lie, Offers};
use super::support::shape::{Ask, Shape};
use super::support::{Bench, VmConfig, basic, combinations, poke};
use host::{Host, Switch};
use hyper_switch_dataplane::SwitchConfig;
use hyper_switch_dataplane::api::{Action, VlanMode};
use hyper_switch_pvnet::vhost_user::session::Offer;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::BTreeMap;
use std::fs::read_dir;
use std::time::Duration;
use vmm::Vmm;

/// The steps that one input may take.
const STEPS: usize = 256;

/// A VMM, and how it is served.
struct Session {
    vmm: Vmm,
    host: Host,
    /// What the guest has offered in its rings, by their numbers.
    offers: BTreeMap<u16, Offers>,
}

pub fn run(input: &[u8]) {
    let fds = open_fds();
    let mut input = Input(input);
    let [pairs, optimisations] = input.array();
    let offer = Offer { queue_pairs: 1 + u16::from(pairs % 8), ..Offer::default() };
    let mut switch = Switch::new(usize::from(optimisations % 8));
    let mut session = Session::new(&offer);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let mut goes_on = true;
        match input.u8() % 8 {
            0..4 => session.vmm.speak(&mut input, session.host.inflight.as_ref()),
            4 => session.write(&mut input),
            5 => session.offer(&mut input),
            6 => session.enter(&mut switch, input.u8()),
            _ => match input.u8() {
                // The VMM is killed.
                0 => goes_on = false,
                shape => switch.send(shape, input.u16()),
            },
        }
        if !goes_on || session.host.serve(&mut switch).is_err() {
            session.end(&mut switch);
            session = Session::new(&offer);
        }
        switch.bench.carry_on();
        session.hear();
        switch.bench.check_ledger();
    }
    session.end(&mut switch);
    switch.end();
    assert_eq!(open_fds(), fds, "file descriptors");
}

impl Switch {
    fn new(optimisations: usize) -> Switch {
        let optimisations = combinations().nth(optimisations).expect("eight");
        let mut bench = Bench::with(SwitchConfig {
            max_ports: 9,
            cores: 1,
            max_flows: 16,
            rx_queue_frames: 16,
            held_frames: 4,
            upcalls: 4,
            optimisations,
            ..basic()
        });
        let port = bench.control.reserve("vhost-user".into(), VlanMode::Transparent).unwrap();
        let victim = bench.vm_with("victim", VmConfig { slots: 8, ..VmConfig::default() });
        bench.connect(port, &[Action::Output(victim.port)]);
        bench.connect(victim.port, &[Action::Output(port)]);
        Switch { bench, port, victim }
    }

    /// The other VM sends a frame, short or long, plain or unfinished.
    fn send(&mut self, kind: u8, bytes: u16) {
        let shape = Shape { v6: kind & 4 != 0, udp: kind & 8 != 0, ..Shape::tcp(usize::from(bytes) % 5000) };
        let ask = [Ask::Nothing, Ask::Checksum, Ask::Cuts(500), Ask::Cuts(1440)][usize::from(kind & 3)];
        let (vnet, frame) = shape.sent(ask);
        self.victim.completions();
        self.victim.send_with(&vnet, &frame);
        self.bench.transmit(&self.victim);
    }

    fn end(mut self) {
        self.bench.host.advance(Duration::from_secs(60));
        self.bench.expire(&self.victim);
        self.bench.receive(&self.victim);
        self.victim.received();
        self.victim.completions();
        assert_eq!(self.victim.outstanding(), 0, "whoever sent to it has its buffers back");
        self.bench.check_ledger();
    }
}

impl Session {
    fn new(offer: &Offer) -> Session {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        Session { vmm: Vmm::new(theirs), host: Host::new(offer.clone(), ours), offers: BTreeMap::new() }
    }

    /// The VMM reads its answers, which are all there.
    fn hear(&mut self) {
        self.vmm.listen();
        if self.host.has_answered() {
            assert_eq!(self.vmm.read, self.host.answered);
        }
    }

    /// The guest writes into one of its rings, or elsewhere.
    fn write(&self, input: &mut Input<'_>) {
        let [queue, part, bytes] = input.array();
        let at = u64::from(input.u16());
        let bytes = input.run(usize::from(bytes % 64));
        let lanes = self.host.session.lanes();
        let Some(lane) = lanes.get(usize::from(queue / 2) % lanes.len().max(1)) else { return };
        let addrs = if queue & 1 == 0 { lane.rx.addrs } else { lane.tx.addrs };
        let start = [addrs.desc, addrs.avail, addrs.used, addrs.desc][usize::from(part & 3)];
        let at = if part & 4 == 0 { at % 64 } else { at * 16 };
        // What is not memory is not written.
        let _ = poke(&self.host.session.memory(), start.wrapping_add(at), bytes);
    }

    /// The guest offers a chain.
    fn offer(&mut self, input: &mut Input<'_>) {
        let [queue, head, page, within, flags, next] = input.array();
        let bytes = u32::from(input.u16());
        let lanes = self.host.session.lanes();
        let Some(lane) = lanes.get(usize::from(queue / 2) % lanes.len().max(1)) else { return };
        let setup = if queue & 1 == 0 { &lane.rx } else { &lane.tx };
        let (format, size, addrs) = (self.host.format(), setup.size, setup.addrs);
        let new = || Offers { format, addrs, size, next: setup.base as u16 };
        let offers = self.offers.entry(setup.queue).or_insert_with(new);
        if (offers.format, offers.addrs, offers.size) != (format, addrs, size) {
            *offers = new();
        }
        let addr = (addrs.desc & !0xffff) + u64::from(page) * 4096 + u64::from(within) * 16;
        let lie = Lie { head: u16::from(head) % size, addr, bytes, flags, next };
        let memory = self.host.session.memory();
        offers.offer(&lie, |at, bytes| {
            let _ = poke(&memory, at, bytes);
        });
    }

    /// The guest kicks, or its receive ring is looked at.
    fn enter(&self, switch: &mut Switch, which: u8) {
        let connected = &self.host.connected;
        let Some((_, lane)) = connected.get(usize::from(which / 4) % connected.len().max(1)) else { return };
        let Bench { switch: entered, cx, host, .. } = &mut switch.bench;
        match which % 4 {
            0 | 1 => entered.transmit(cx, host, *lane),
            2 => entered.receive(cx, host, *lane),
            _ => entered.poll(cx, host, *lane),
        };
        switch.bench.receive(&switch.victim);
        switch.victim.received();
    }

    fn end(self, switch: &mut Switch) {
        let Session { vmm, host, .. } = self;
        drop(vmm);
        assert!(host.leave(switch), "nothing of the VMM's memory is left");
    }
}

fn open_fds() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}
