//! Lookup alone: from a key to its flow, without rings, parsing or copies, in batches of 64 as the switch does it.
//!
//! Hits in the exact-match cache for 1, 100 and 10,000 flows, and misses through 1 and 64 masks, the worst that
//! the table allows. It asserts what was found.
//!
//! `cargo bench -p hyper-switch-dataplane --bench lookup`; instructions:
//! `valgrind --tool=callgrind --toggle-collect='*Switch*covered*' target/release/deps/lookup-HASH --bench 'hit/100$' --profile-time 1`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_dataplane::{Control, CoreContext, Switch, SwitchConfig};
use std::sync::Arc;

const BATCH: usize = 64;

fn switch() -> (Arc<Switch>, Control, CoreContext) {
    let (switch, control) = Switch::new(SwitchConfig { cores: 1, seed: 7, ..SwitchConfig::default() });
    let cx = switch.core_context(CoreId(0)).unwrap();
    (switch, control, cx)
}

fn key(flow: u32) -> FlowKey {
    FlowKey { in_port: 1, eth_type: 0x0800, ip_proto: 17, ip4_src: flow, l4_dst: 53, ..FlowKey::ZERO }
}

fn install(control: &mut Control, id: u64, key: FlowKey, mask: FlowKey) {
    let actions = [Action::Output(PortId(2))].into();
    control.install(&FlowSpec { id: FlowId(id), matches: Match::new(key, mask), actions }, Nanos(1)).unwrap();
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(BATCH as u64));
    for flows in [1u32, 100, 10_000] {
        let (switch, mut control, mut cx) = switch();
        let mask = FlowKey { in_port: u32::MAX, ip4_src: u32::MAX, l4_dst: u16::MAX, ..FlowKey::ZERO };
        (0..flows).for_each(|flow| install(&mut control, u64::from(flow) + 1, key(flow), mask));
        let keys: Vec<_> = (0..flows.max(BATCH as u32)).map(|at| key(at % flows)).collect();
        let mut batches = keys.chunks_exact(BATCH).cycle();
        group.bench_function(BenchmarkId::new("hit", flows), |bencher| {
            bencher.iter(|| assert_eq!(switch.covered(&mut cx, batches.next().unwrap()), BATCH));
        });
    }
    for masks in [1u32, 64] {
        let (switch, mut control, mut cx) = switch();
        for bit in 0..masks {
            // Disjoint flows of different masks that no key of the test meets.
            let mask = FlowKey { ip4_dst: 1 << (bit % 32), in_port: 1 + bit / 32, ..FlowKey::ZERO };
            install(&mut control, u64::from(bit) + 1, mask, mask);
        }
        let keys: Vec<_> = (0..BATCH as u32).map(|at| FlowKey { in_port: 0, ..key(at) }).collect();
        group.bench_function(BenchmarkId::new("miss, masks", masks), |bencher| {
            bencher.iter(|| assert_eq!(switch.covered(&mut cx, &keys), 0));
        });
    }
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
