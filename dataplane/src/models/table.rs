//! The flow table while it changes: a core that is inside finds whole flows, and nothing that was freed.

use super::{check, check_bounded, spawn};
use crate::action::Action;
use crate::api::{FlowId, FlowSpec, Nanos, PortId};
use crate::epoch::Epochs;
use crate::flow::table::{Decision, Flow, FlowIndex, FlowTable, FlowWriter};
use crate::key::{FlowKey, Match};
use alloc::sync::Arc;

struct Shared {
    epochs: Epochs,
    table: FlowTable,
}

/// A table for one core, and its writer.
fn table(max_flows: usize, max_masks: usize) -> (Arc<Shared>, FlowWriter) {
    let shared = Shared { epochs: Epochs::new(1), table: FlowTable::new(max_flows, max_masks, 1) };
    (Arc::new(shared), FlowWriter::new(max_flows))
}

fn key(in_port: u32) -> FlowKey {
    FlowKey { in_port, ..FlowKey::ZERO }
}

/// A flow for packets of `in_port`, to the ports `to`: one port's is a single output, more make a program.
fn spec(id: u64, mask: u32, in_port: u32, to: &[u16]) -> FlowSpec {
    let matches = Match::new(key(in_port), FlowKey { in_port: mask, ..FlowKey::ZERO });
    FlowSpec { id: FlowId(id), matches, actions: to.iter().map(|to| Action::Output(PortId(*to))).collect() }
}

fn install(shared: &Shared, writer: &mut FlowWriter, spec: &FlowSpec) -> bool {
    writer.install(&shared.table, &shared.epochs, spec, Nanos(0)).is_ok()
}

/// The ports that a flow sends to.
fn outputs(flow: Flow<'_>) -> std::vec::Vec<u16> {
    match flow.decision() {
        Decision::Single(port) => [port.0].into(),
        Decision::Program(program) => {
            let ports = program.actions.iter().map(|action| match action {
                Action::Output(port) => port.0,
                other => unreachable!("{other:?}"),
            });
            ports.collect()
        }
    }
}

/// A place that goes from one flow to another. A core that looks at it finds the one, the other, or none, and
/// never one's match with the other's actions. Caught: a relaxed store of `live` when a flow is installed, a
/// relaxed load of it in `covering`, a place that is used again at once, no fence in `Epochs::enter` or `advance`.
#[test]
fn a_place_holds_one_flow_at_a_time() {
    check(|| {
        let (shared, mut writer) = table(1, 1);
        assert!(install(&shared, &mut writer, &spec(1, u32::MAX, 1, &[1])));
        let core = spawn(&shared, |shared| {
            let _inside = shared.epochs.enter(0);
            for in_port in [1, 2] {
                if let Some(flow) = shared.table.covering(FlowIndex(0), &key(in_port)) {
                    assert_eq!(outputs(flow), [in_port as u16]);
                }
            }
        });
        writer.remove(&shared.table, &shared.epochs, FlowId(1)).unwrap();
        let second = spec(2, u32::MAX, 2, &[2]);
        let at_once = install(&shared, &mut writer, &second);
        core.join().unwrap();
        assert!(at_once || install(&shared, &mut writer, &second), "the core has left");
        assert_eq!(shared.table.find(&key(2)).map(outputs), Some([2].into()));
    });
}

/// A flow whose actions change: a core finds the old or the new, whole, and from a barrier on the new. Caught: a
/// relaxed swap of the program, a program freed at once, a relaxed load of it in `decision`.
#[test]
fn actions_are_changed_whole() {
    check(|| {
        let (shared, mut writer) = table(1, 1);
        assert!(install(&shared, &mut writer, &spec(1, u32::MAX, 1, &[1, 1])));
        let core = spawn(&shared, |shared| {
            let _inside = shared.epochs.enter(0);
            let found = outputs(shared.table.covering(FlowIndex(0), &key(1)).unwrap());
            assert!([&[1, 1][..], &[2], &[3, 3]].contains(&&found[..]), "{found:?}");
        });
        for to in [&[2][..], &[3, 3]] {
            let actions = spec(1, u32::MAX, 1, to).actions;
            assert!(writer.modify(&shared.table, &shared.epochs, FlowId(1), &actions));
        }
        writer.reclaim(&shared.table, &shared.epochs);
        core.join().unwrap();
        assert_eq!(shared.table.find(&key(1)).map(outputs), Some([3, 3].into()));
    });
}

/// A subtable that grows: a flow that was there is found throughout, and one that comes is found when its barrier
/// has passed. Caught: a relaxed swap of the cells, cells freed at once.
#[test]
fn a_subtable_that_grows_loses_no_flow() {
    check_bounded(3, || {
        let (shared, mut writer) = table(13, 1);
        for id in 0..12 {
            assert!(install(&shared, &mut writer, &spec(id, u32::MAX, id as u32, &[id as u16])));
        }
        let core = spawn(&shared, |shared| {
            let _inside = shared.epochs.enter(0);
            assert_eq!(shared.table.find(&key(7)).map(outputs), Some([7].into()));
            let new = shared.table.find(&key(12)).map(outputs);
            assert!(new.is_none() || new == Some([12].into()));
        });
        assert!(install(&shared, &mut writer, &spec(12, u32::MAX, 12, &[12])));
        writer.reclaim(&shared.table, &shared.epochs);
        core.join().unwrap();
        assert_eq!(shared.table.find(&key(12)).map(outputs), Some([12].into()));
    });
}

/// A subtable that is taken out while one that has just come moves to its place: what a core finds is right, though
/// it may find nothing. Caught: a subtable freed at once, a relaxed swap or load of it.
#[test]
fn a_subtable_that_goes_is_followed_by_nobody() {
    check_bounded(3, || {
        let (shared, mut writer) = table(2, 2);
        assert!(install(&shared, &mut writer, &spec(1, 0xff, 1, &[1])));
        let core = spawn(&shared, |shared| {
            let _inside = shared.epochs.enter(0);
            for in_port in [1, 2] {
                let found = shared.table.find(&key(in_port)).map(outputs);
                assert!(found.is_none() || found == Some([in_port as u16].into()));
            }
        });
        assert!(install(&shared, &mut writer, &spec(2, 0xffff, 2, &[2])));
        writer.remove(&shared.table, &shared.epochs, FlowId(1)).unwrap();
        writer.reclaim(&shared.table, &shared.epochs);
        core.join().unwrap();
        assert_eq!(shared.table.find(&key(2)).map(outputs), Some([2].into()));
    });
}
