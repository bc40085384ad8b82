//! The whole switch, over the memory of a VM that the input writes.
//!
//! Input: how the VM and the switch are made, and a program of steps: writes to the VM's memory, chains put on offer, entries
//! into the switch, frames that an honest VM sends it, time that passes. Whatever the VM does, the ledger holds, two other
//! VMs still exchange frames, and who sent to the VM or heard from it gets every buffer back.

use super::input::Input;
use super::offload::offloads;
use super::support::shape::{Ask, Shape};
use super::support::{Bench, TestVm, VmConfig, basic, combinations, frame};
use hyper_switch_dataplane::PortState;
use hyper_switch_dataplane::SwitchConfig;
use hyper_switch_dataplane::api::Action;
use hyper_switch_pvnet::ring::{QueueAddrs, RingFormat};
use std::time::Duration;

const SLOTS: u16 = 16;
/// The steps that one input may take.
const STEPS: usize = 256;

struct Stage {
    bench: Bench,
    config: VmConfig,
    liar: TestVm,
    victim: TestVm,
    /// How far the liar's two rings have come.
    offered: [u16; 2],
}

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut stage = Stage::new(input.u8(), input.u8());
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
    fn new(features: u8, more: u8) -> Stage {
        let config = VmConfig {
            ring: RingFormat::Split,
            slots: SLOTS,
            rx_buffer_bytes: [100, 1526, 4096, super::support::BUFFER_BYTES][usize::from(features & 3)],
            event_idx: features & 4 != 0,
            mergeable: features & 8 != 0,
            indirect: features & 16 != 0,
            pieces: 1 + u16::from(features >> 5 & 1),
            posted: if features & 64 != 0 { u16::MAX } else { 0 },
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
        let liar = bench.vm_with("liar", config);
        let victim = bench.vm_with("victim", VmConfig { slots: SLOTS / 2, ..VmConfig::default() });
        bench.connect(liar.port, &[Action::Output(victim.port)]);
        bench.connect(victim.port, &[Action::Output(liar.port)]);
        let offered = [0, if config.posted == 0 { 0 } else { SLOTS / config.ring_descriptors() }];
        Stage { bench, config, liar, victim, offered }
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
                let ring = usize::from(input.u8() & 1);
                let (head, addr) = (input.u8() % SLOTS as u8, u64::from(input.u16()) * 16);
                let bytes = u32::from(input.u16());
                let (flags, next) = (input.u8() & 7, input.u8());
                let addrs = self.ring(ring as u8);
                let descriptor =
                    [&addr.to_le_bytes()[..], &bytes.to_le_bytes(), &[flags, 0, next, 0]].concat();
                self.liar.poke(addrs.desc + 16 * u64::from(head), &descriptor);
                let entry = u64::from(self.offered[ring] % SLOTS);
                self.liar.poke(addrs.avail + 4 + 2 * entry, &u16::from(head).to_le_bytes());
                self.offered[ring] = self.offered[ring].wrapping_add(1);
                self.liar.poke(addrs.avail + 2, &self.offered[ring].to_le_bytes());
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
                self.liar = self.bench.vm_with("liar", VmConfig { posted: 0, ..self.config });
                assert_eq!(self.liar.port, port, "the number is free again");
                self.offered = [0; 2];
            }
            _ => {}
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
        // Frames of its own may wait for the victim.
        self.bench.receive(&self.victim);
        self.victim.received();
        self.bench.receive(&self.victim);
        assert!((0..4).any(|_| self.bench.reap()), "nothing of the port is left");
    }
}
