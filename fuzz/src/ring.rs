//! The whole switch, over the memory of a VM that the input writes.
//!
//! Input: how the VM and the switch are made, in which format its rings are, where they begin and what is recorded of them,
//! and a program of steps: writes to the VM's memory, chains put on offer, entries into the switch, frames that an honest VM
//! sends it, time that passes. Whatever the VM does, the ledger holds, two other VMs still exchange frames, and who sent to
//! the VM or heard from it gets every buffer back.

use super::input::Input;
use super::offers::{Lie, Offers};
use super::offload::offloads;
use super::support::shape::{Ask, Shape};
use super::support::{Bench, TestVm, VmConfig, basic, combinations, frame};
use hyper_switch_dataplane::api::{Action, VlanMode};
use hyper_switch_dataplane::{PortState, QueuePair, SwitchConfig};
use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction, QueueFeatures};
use hyper_switch_pvnet::ring::{Position, QueueAddrs, RingFormat};
use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::inflight::InflightRegion;
use std::sync::Arc;
use std::time::Duration;

const SLOTS: u16 = 16;
/// The steps that one input may take.
const STEPS: usize = 256;

struct Stage {
    bench: Bench,
    config: VmConfig,
    liar: TestVm,
    victim: TestVm,
    /// How far the liar's two rings have come, the transmit ring first.
    offers: [Offers; 2],
    /// The record of the liar's chains in flight, if there is one.
    inflight: Option<Arc<InflightRegion>>,
}

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut stage = Stage::new(&mut input);
    let few = VmConfig { slots: 2, ..VmConfig::default() };
    let mut bystanders = [stage.bench.vm_with("x", few), stage.bench.vm_with("y", few)];
    stage.bench.connect(bystanders[0].port, &[Action::Output(bystanders[1].port)]);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        stage.step(&mut input);
    }
    stage.bench.check_ledger();

    let [x, y] = &mut bystanders;
    let sent = frame(x.port, y.port, 700, 1);
    assert!(x.send(&sent));
    stage.bench.transmit(x);
    stage.bench.receive(y);
    assert_eq!(y.received_frames(), [sent]);

    stage.remove_liar();
    stage.bench.receive(&stage.victim);
    stage.victim.received();
    stage.victim.completions();
    assert_eq!(stage.victim.outstanding(), 0, "whoever sent to it has its buffers back");
    stage.bench.check_ledger();
}

impl Stage {
    fn new(input: &mut Input<'_>) -> Stage {
        let [features, more, start] = input.array();
        let begins_in_the_middle = start & 2 != 0;
        let config = VmConfig {
            ring: if start & 1 == 0 { RingFormat::Split } else { RingFormat::Packed },
            slots: SLOTS,
            rx_buffer_bytes: [100, 1526, 4096, super::support::BUFFER_BYTES][usize::from(features & 3)],
            event_idx: features & 4 != 0,
            mergeable: features & 8 != 0,
            indirect: features & 16 != 0,
            pieces: 1 + u16::from(features >> 5 & 1),
            posted: if features & 64 != 0 && !begins_in_the_middle { u16::MAX } else { 0 },
            offloads: offloads(more),
        };
        let optimisations = combinations().nth(usize::from(more >> 5)).expect("eight");
        let mut bench = Bench::with(SwitchConfig {
            max_ports: 4,
            cores: 1,
            max_flows: 16,
            rx_queue_frames: 16,
            held_frames: 4,
            upcalls: 4,
            optimisations,
            ..basic()
        });
        let mut liar = TestVm::new(config, GuestMemory::anonymous);
        liar.port = bench.control.reserve("liar".into(), VlanMode::Transparent).unwrap();
        let victim = bench.vm_with("victim", VmConfig { slots: SLOTS / 2, ..VmConfig::default() });
        bench.connect(liar.port, &[Action::Output(victim.port)]);
        bench.connect(victim.port, &[Action::Output(liar.port)]);

        let mut starts = [start_of(&config); 2];
        if begins_in_the_middle {
            for (start, addrs) in starts.iter_mut().zip([liar.tx_addrs, liar.rx_addrs]) {
                let mask = if config.ring == RingFormat::Packed { 0x8000 | (SLOTS - 1) } else { u16::MAX };
                *start = Position((input.u16() & mask).into());
                // A split queue's used index stands in memory; a packed queue's first driver event is as good as any.
                liar.poke(addrs.used, &input.array::<4>());
            }
        }
        let inflight = (start & 4 != 0).then(|| record(input));
        let offers = offers(&liar, starts);
        let mut stage = Stage { bench, config, liar, victim, offers, inflight };
        stage.connect(starts);
        stage
    }

    /// Connects the liar, whose queues begin at these positions, or where their records say.
    fn connect(&mut self, starts: [Position; 2]) {
        let features = QueueFeatures { event_idx: self.config.event_idx, indirect: true };
        let queue = |at: usize, direction| {
            let layout = [self.liar.tx.layout(), self.liar.rx.layout()][at];
            let memory = self.liar.memory.clone();
            if let (RingFormat::Split, Some(region)) = (self.config.ring, &self.inflight)
                && let Ok(Some(record)) = region.record(at as u16, SLOTS)
            {
                return DeviceQueue::recorded(memory, layout, direction, features, record);
            }
            DeviceQueue::resume(memory, layout, direction, features, starts[at]).unwrap()
        };
        let (tx, rx) = (queue(0, Direction::Readable), queue(1, Direction::Writable));
        let backend = self.liar.backend(vec![QueuePair { tx, rx, enabled: true }]);
        self.bench.control.connect(self.liar.port, backend).unwrap();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 9 {
            // Anywhere in its memory.
            0 => {
                let at = u64::from(input.u16()) * 8;
                self.write(at, input);
            }
            // In one of its rings.
            1 => {
                let addrs = self.ring(input.u8());
                let base = [addrs.desc, addrs.avail, addrs.used][usize::from(input.u8() % 3)];
                let at = base + u64::from(input.u16() % 512);
                self.write(at, input);
            }
            // A descriptor and its chain on offer, whatever they say.
            2 => {
                let offers = &mut self.offers[usize::from(input.u8() & 1)];
                let (head, addr) = (input.u8() % SLOTS as u8, u64::from(input.u16()) * 16);
                let bytes = u32::from(input.u16());
                let (flags, next) = (input.u8(), input.u8());
                let lie = Lie { head: head.into(), addr, bytes, flags, next };
                offers.offer(&lie, |at, bytes| self.liar.poke(at, bytes));
            }
            // A frame where a transmit buffer is.
            3 => {
                let (slot, bytes) = (u16::from(input.u8()) % SLOTS, usize::from(input.u8()));
                let run = input.run(bytes);
                self.liar.poke(self.liar.tx_addr(slot), run);
            }
            4 => drop(self.bench.transmit(&self.liar)),
            5 => drop(self.bench.receive(&self.liar)),
            // An honest frame to it: short or long, plain or unfinished.
            6 => {
                let (kind, bytes) = (input.u8(), usize::from(input.u16()));
                let shape = Shape { v6: kind & 4 != 0, udp: kind & 8 != 0, ..Shape::tcp(bytes % 5000) };
                let ask =
                    [Ask::Nothing, Ask::Checksum, Ask::Cuts(500), Ask::Cuts(1440)][usize::from(kind & 3)];
                let (vnet, frame) = shape.sent(ask);
                self.victim.completions();
                self.victim.send_with(&vnet, &frame);
                self.bench.transmit(&self.victim);
            }
            7 => {
                self.bench.host.advance(Duration::from_millis(u64::from(input.u8()) * 50));
                self.bench.expire(&self.liar);
                self.bench.expire(&self.victim);
                self.bench.receive(&self.victim);
                self.victim.received();
            }
            // It starts anew.
            _ if self.bench.state(self.liar.port) != PortState::Up => {
                self.remove_liar();
                let port = self.liar.port;
                self.config.posted = 0;
                self.liar = self.bench.vm_with("liar", self.config);
                assert_eq!(self.liar.port, port, "the number is free again");
                self.offers = offers(&self.liar, [start_of(&self.config); 2]);
            }
            // It goes, and comes back with the same rings where they stood.
            _ => {
                assert!(self.bench.control.disconnect(self.liar.port));
                let queues = self.drain().expect("a liar with queues");
                self.connect([queues.tx.position(), queues.rx.position()]);
            }
        }
    }

    fn ring(&self, which: u8) -> QueueAddrs {
        if which & 1 == 0 { self.liar.tx_addrs } else { self.liar.rx_addrs }
    }

    /// Writes some bytes of the input to `at`, as far as that is memory.
    fn write(&self, at: u64, input: &mut Input<'_>) {
        let bytes = usize::from(input.u8() % 64);
        let run = input.run(bytes);
        if self.liar.memory.translate_whole(at, run.len() as u32).is_ok() {
            self.liar.poke(at, run);
        }
    }

    fn remove_liar(&mut self) {
        self.bench.detach(self.liar.port);
        self.drain();
    }

    /// Has nothing left of a backend that is on its way out: its queues.
    fn drain(&mut self) -> Option<QueuePair> {
        // Frames of its own may wait for the victim.
        self.bench.receive(&self.victim);
        self.victim.received();
        self.bench.receive(&self.victim);
        let mut gone = Vec::new();
        let done = (0..4).any(|_| {
            let reaped = self.bench.carry_on();
            gone.extend(reaped.gone);
            reaped.done
        });
        assert!(done, "nothing of the port is left");
        gone.pop()?.queues.pop()
    }
}

/// Where a queue of such a VM begins that was never used.
fn start_of(config: &VmConfig) -> Position {
    match config.ring {
        RingFormat::Split => Position::SPLIT_START,
        RingFormat::Packed => Position::PACKED_START,
    }
}

/// The offers of a VM whose queues begin at these positions, and whose receive buffers are posted.
fn offers(vm: &TestVm, starts: [Position; 2]) -> [Offers; 2] {
    let VmConfig { ring: format, slots: size, posted, .. } = vm.config;
    let new = |addrs, Position(start): Position| Offers { format, addrs, size, next: start as u16 };
    let mut offers = [new(vm.tx_addrs, starts[0]), new(vm.rx_addrs, starts[1])];
    if posted != 0 {
        let buffer = vm.config.ring_descriptors();
        let buffers = size / buffer;
        offers[1].skip(if format == RingFormat::Split { buffers } else { buffers * buffer });
    }
    offers
}

/// A record of two queues in which anything may stand.
fn record(input: &mut Input<'_>) -> Arc<InflightRegion> {
    let (description, file) = InflightRegion::create(2, SLOTS, false).unwrap();
    let content = usize::from(input.u16());
    let content = input.run(content.min(description.mmap_size as usize));
    rustix::io::pwrite(&file, content, 0).unwrap();
    let lost = Arc::new(EventFd::new().unwrap());
    Arc::new(InflightRegion::map(description, &file, false, &lost).unwrap())
}
