//! A trial, drawn from a seed: a machine, VMs, what they do, how the switch is bounded, and what is done to them.

use crate::costs::{Cost, CostRow, CostTable, Kind};
use crate::guest::NicShape;
use crate::lies::Lie;
use crate::machine::Machine;
use crate::random::Random;
use crate::scenario::{Arch, HostKind, Scenario, VmSpec};
use crate::scheduler::SchedulerConfig;
use crate::trial::{Change, Deed, Setup, VmSetup};
use crate::{Side, Workload};
use hyper_switch_dataplane::SwitchConfig;
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_pvnet::guest::doorbell;
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::ring::RingFormat;
use hyper_switch_pvnet::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use std::time::Duration;

/// What was drawn.
pub(super) struct Draw {
    pub(super) scenario: Scenario,
    pub(super) setup: Setup,
    /// The kinds of things in it.
    pub(super) drawn: Vec<&'static str>,
}

/// The kinds of things that can be drawn: each comes often.
pub(super) const ALL: [&str; 22] = [
    "one core",
    "several cores",
    "more VMs than cores",
    "wide costs",
    "pairs",
    "all to one",
    "a ring of VMs",
    "several receivers",
    "stream",
    "datagrams",
    "bursts",
    "requests",
    "packed rings",
    "split rings",
    "no event index",
    "small rings",
    "spread frames",
    "small queues",
    "liars",
    "dying VMs",
    "changed flows",
    "troubled control plane",
];

/// The stream of what is drawn before a run.
const DRAW_STREAM: u64 = 1 << 33;

/// All receive buffers together take the largest frame.
const RX_BYTES: u64 = (VNET_HDR_BYTES + MAX_FRAME_BYTES) as u64;

/// How long after VMs have fallen silent everything is to be at rest, beside twice the switch's patience.
const REST: Duration = Duration::from_secs(1);

/// Draws a trial.
pub(super) fn draw(seed: u64) -> Draw {
    let mut random = Random::new(seed, DRAW_STREAM);
    let mut drawn = Vec::new();
    let random = &mut random;
    let cores = random.within(1, 8) as u16;
    let vms = vms(random, &mut drawn);
    drawn.push(if cores == 1 { "one core" } else { "several cores" });
    if vms.len() > cores.into() {
        drawn.push("more VMs than cores");
    }
    let active = Duration::from_micros(random.within(1_200, 8_000));
    let switch = switch(random, &mut drawn);
    let optimisations = Optimisations {
        preemptive_copy: random.chance(0.5),
        batching: random.chance(0.5),
        offload: random.chance(0.5),
    };
    // An idle thread that was put off in the midst of the switch keeps what it claimed until its core is idle again,
    // and a VM that waits for that may keep it off its core: no bound holds there.
    let host =
        if !optimisations.offload && random.chance(0.3) { HostKind::Threads } else { HostKind::Hypervisor };
    let scenario = Scenario {
        seed,
        machine: Machine { cores, cores_per_cache: random.within(1, 4) as u16 },
        scheduler: scheduler(random, host, &mut drawn),
        costs: costs(random, &mut drawn),
        host,
        arch: Arch::HyperSwitch,
        optimisations,
        pace: Pace {
            delay: Duration::from_micros(random.pick(&[0, 5, 50, 200])),
            count: random.pick(&[1, 4, 64]),
        },
        doorbell: doorbell::Pace {
            delay_ns: random.pick(&[0, 2_000, 20_000, 100_000]),
            count: random.pick(&[2, 8, 64]),
        },
        domain_vcpus: 1,
        vms: vms.iter().map(|(spec, _)| *spec).collect(),
        socket_copies: random.chance(0.5),
        verifies: true,
        jitter: random.pick(&[0.0, 0.1, 0.5]),
        quantum: Duration::from_micros(random.pick(&[2, 10, 30])),
        warmup: Duration::ZERO,
        duration: active + REST + 2 * switch.patience,
    };
    let mut setup = Setup {
        vms: vms.into_iter().map(|(_, setup)| setup).collect(),
        switch: SwitchConfig { optimisations: scenario.optimisations, pace: scenario.pace, seed, ..switch },
        deeds: Vec::new(),
    };
    shapes(random, &scenario, &mut setup, &mut drawn);
    let active_ns = active.as_nanos() as u64;
    setup.deeds = deeds(random, &scenario, &mut setup, active_ns, &mut drawn);
    setup.deeds.push((active_ns, Deed::Quiet));
    setup.deeds.sort_by_key(|(at_ns, _)| *at_ns);
    Draw { scenario, setup, drawn }
}

fn scheduler(random: &mut Random, host: HostKind, drawn: &mut Vec<&'static str>) -> SchedulerConfig {
    if host == HostKind::Threads && random.chance(0.5) {
        drawn.push("cores lost in the midst of the switch");
        return SchedulerConfig::Eevdf {
            slice_us: random.pick(&[50, 700, 3_000]),
            tick_us: random.pick(&[100, 1_000, 4_000]),
        };
    }
    SchedulerConfig::Credit {
        slice_us: random.pick(&[50, 200, 1_000, 30_000]),
        bonus_us: random.pick(&[0, 20, 200, 1_000]),
        pinned: random.chance(0.2),
    }
}

fn costs(random: &mut Random, drawn: &mut Vec<&'static str>) -> CostTable {
    let mut table = CostTable::embedded("opteron").expect("the program carries it");
    if random.chance(0.5) {
        drawn.push("wide costs");
        for cost in Cost::ALL {
            // From a tenth to ten times.
            let value = table.get(cost) * 10_f64.powf(2.0 * random.unit() - 1.0);
            let source = "drawn".to_owned();
            let row = CostRow { name: cost, value, unit: cost.unit(), kind: Kind::Assumed, source };
            table.set(row).expect("a tenth to ten times of a cost is a cost");
        }
    }
    table
}

fn switch(random: &mut Random, drawn: &mut Vec<&'static str>) -> SwitchConfig {
    let usual = SwitchConfig { max_flows: 256, ..SwitchConfig::default() };
    if random.chance(0.4) {
        return SwitchConfig { patience: Duration::from_millis(random.pick(&[1, 5, 100])), ..usual };
    }
    drawn.push("small queues");
    SwitchConfig {
        max_flows: random.pick(&[4, 16, 256, 256]),
        rx_queue_frames: random.pick(&[2, 8, 32, 128]),
        held_frames: random.pick(&[1, 4, 32]),
        upcalls: random.pick(&[1, 3, 32]),
        patience: Duration::from_millis(random.pick(&[1, 2, 5, 20])),
        ..usual
    }
}

fn frame_bytes(random: &mut Random) -> usize {
    match random.below(20) {
        0..8 => 60,
        8..12 => random.within(75, 300) as usize,
        12..18 => random.within(300, 1_514) as usize,
        18 => 9_014,
        _ => random.within(9_014, 65_000) as usize,
    }
}

/// What a client does by itself: it may have several receivers.
fn one_way(random: &mut Random, drawn: &mut Vec<&'static str>) -> Workload {
    let frame_bytes = frame_bytes(random);
    if random.chance(0.5) {
        drawn.push("datagrams");
        let rate_per_s = random.chance(0.6).then(|| 10_f64.powf(4.0 + 2.0 * random.unit()));
        return Workload::Datagrams { frame_bytes, rate_per_s };
    }
    drawn.push("bursts");
    let rate_per_s = 10_f64.powf(4.5 + 2.0 * random.unit());
    let (on_us, off_us) = (10.0 + 200.0 * random.unit(), 10.0 + 300.0 * random.unit());
    Workload::Bursts { frame_bytes, rate_per_s, on_us, off_us }
}

fn both_ways(random: &mut Random, drawn: &mut Vec<&'static str>) -> Workload {
    let frame_bytes = frame_bytes(random).max(75);
    if random.chance(0.5) {
        drawn.push("stream");
        let window_bytes = frame_bytes as u64 * random.within(2, 64);
        return Workload::Stream { frame_bytes, window_bytes, ack_every: random.within(1, 4) as u32 };
    }
    drawn.push("requests");
    Workload::Requests { frame_bytes, think_us: random.pick(&[0.0, 5.0, 60.0]), server_computes: false }
}

fn vms(random: &mut Random, drawn: &mut Vec<&'static str>) -> Vec<(VmSpec, VmSetup)> {
    let count = random.within(2, 10) as u16;
    let mut vms = match random.below(4) {
        0 => {
            drawn.push("all to one");
            let workload = one_way(random, drawn);
            let vm = |number: u16| {
                let (peer, side) = if number == 0 { (1, Side::Server) } else { (0, Side::Client) };
                (VmSpec { peer, side, workload }, VmSetup { is_eager: number > 1, ..VmSetup::default() })
            };
            (0..count).map(vm).collect()
        }
        1 => {
            drawn.push("a ring of VMs");
            let vm = |number: u16, workload| {
                let spec = VmSpec { peer: (number + 1) % count, side: Side::Client, workload };
                (spec, VmSetup { is_eager: true, ..VmSetup::default() })
            };
            (0..count).map(|number| vm(number, one_way(random, drawn))).collect::<Vec<_>>()
        }
        _ => {
            drawn.push("pairs");
            let mut vms = Vec::new();
            for pair in 0..count.div_ceil(2) {
                let workload = match random.below(16) {
                    0 => Workload::Idle,
                    1..9 => both_ways(random, drawn),
                    _ => one_way(random, drawn),
                };
                for (number, side) in [(2 * pair, Side::Client), (2 * pair + 1, Side::Server)] {
                    vms.push((VmSpec { peer: number ^ 1, side, workload }, VmSetup::default()));
                }
            }
            vms
        }
    };
    let count = vms.len() as u64;
    for (number, (spec, setup)) in vms.iter_mut().enumerate() {
        let is_one_way = matches!(spec.workload, Workload::Datagrams { .. } | Workload::Bursts { .. });
        if spec.side == Side::Client && is_one_way && random.chance(0.4) {
            let others = (0..random.within(1, 3)).map(|_| random.below(count) as u16);
            setup.others =
                others.filter(|other| *other != spec.peer && usize::from(*other) != number).collect();
            if !setup.others.is_empty() {
                drawn.push("several receivers");
            }
        }
        setup.is_eager |= spec.side == Side::Client && random.chance(0.1);
    }
    vms
}

/// How the VMs' rings are made.
fn shapes(random: &mut Random, scenario: &Scenario, setup: &mut Setup, drawn: &mut Vec<&'static str>) {
    let largest_bytes = scenario.vms.iter().map(|vm| vm.workload.frame_bytes(vm.side)).max().unwrap_or(60);
    let takes_any = (VNET_HDR_BYTES + largest_bytes.max(MIN_FRAME_BYTES)) as u64;
    let spreads = random.chance(0.2);
    let is_small = random.chance(0.4);
    for vm in &mut setup.vms {
        let ring = random.pick(&[RingFormat::Split, RingFormat::Packed]);
        let mut slots = || match (ring, is_small) {
            (RingFormat::Split, true) => random.pick(&[2, 4, 16]),
            (RingFormat::Split, false) => random.pick(&[32, 64, 256]),
            (RingFormat::Packed, true) => random.within(2, 20) as u16,
            (RingFormat::Packed, false) => random.within(20, 256) as u16,
        };
        let (rx_slots, tx_slots) = (slots(), slots());
        let least = RX_BYTES.div_ceil(rx_slots.into());
        let rx_buffer_bytes = if spreads { least } else { least.max(takes_any) }.min(RX_BYTES) as u32;
        let event_idx = random.chance(0.6);
        vm.shape = Some(NicShape { ring, event_idx, rx_slots, rx_buffer_bytes, tx_slots });
        drawn.push(if ring == RingFormat::Packed { "packed rings" } else { "split rings" });
        if !event_idx {
            drawn.push("no event index");
        }
        if u64::from(rx_buffer_bytes) < takes_any {
            drawn.push("spread frames");
        }
    }
    if is_small {
        drawn.push("small rings");
    }
}

/// What is done until `end_ns`.
fn deeds(
    random: &mut Random,
    scenario: &Scenario,
    setup: &mut Setup,
    end_ns: u64,
    drawn: &mut Vec<&'static str>,
) -> Vec<(u64, Deed)> {
    let mut deeds = Vec::new();
    let count = scenario.vms.len() as u64;
    if random.chance(0.3) {
        drawn.push("liars");
        for _ in 0..random.within(1, 2) {
            let liar = random.below(count) as u16;
            setup.vms[usize::from(liar)].is_liar = true;
            for _ in 0..random.within(1, 5) {
                deeds.push((random.below(end_ns), Deed::Lie(liar, random.pick(&Lie::ALL))));
            }
        }
    }
    if random.chance(0.3) {
        drawn.push("dying VMs");
        for _ in 0..random.within(1, 4) {
            let (vm, at_ns) = (random.below(count) as u16, random.below(end_ns));
            deeds.push((at_ns, Deed::Kill(vm)));
            if random.chance(0.8) {
                deeds.push((at_ns + random.below(end_ns / 2), Deed::Revive(vm)));
            }
        }
    }
    if random.chance(0.3) {
        drawn.push("troubled control plane");
        for _ in 0..random.within(1, 3) {
            let (at_ns, times) = (random.below(end_ns), random.within(2, 20));
            deeds.push((at_ns, random.pick(&[Deed::CrashPlane, Deed::SilencePlane, Deed::SlowPlane(times)])));
            deeds.push((at_ns + random.below(end_ns / 2), Deed::RestorePlane));
        }
    }
    // Where nothing else makes the control plane change flows.
    if deeds.is_empty() && setup.switch.max_flows >= 256 && random.chance(0.7) {
        drawn.push("changed flows");
        for _ in 0..random.within(1, 12) {
            let from = random.below(count) as u16;
            let (spec, extra) = (&scenario.vms[usize::from(from)], &setup.vms[usize::from(from)]);
            let to = random.pick(&[&[spec.peer][..], &extra.others].concat());
            let mut now_to: Vec<_> =
                (0..count as u16).filter(|vm| *vm != from && random.chance(0.3)).collect();
            if random.chance(0.4) {
                now_to = vec![to];
            }
            let by = random.pick(&[Change::Modify, Change::Replace]);
            deeds.push((random.below(end_ns), Deed::Redirect { from, to, now_to, by }));
        }
    }
    deeds
}
