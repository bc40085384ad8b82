//! A plan's counterpart: what `hyper-switch pair` does on real threads that is the same. Not every plan has one.

use crate::cli::{Arch, Backend, ENTRY_COST_NS, MOST_PAIRS, Paces, PairOptions, Workload};
use crate::exit::{Failure, FailureKind};
use crate::plot::distinct;
use hyper_switch_pvnet::guest::raw;
use hyper_switch_sim::costs::Cost;
use hyper_switch_sim::plan::{Plan, Point};
use hyper_switch_sim::scenario::{self, HostKind};
use std::time::Duration;

/// What measures these points of a plan, on the first of the cores that this process may use, each point as long as it is
/// simulated.
///
/// # Errors
/// Real threads cannot be what the plan has, or there are not as many cores.
pub(super) fn counterpart(plan: &Plan, points: &[Point], usable: &[usize]) -> Result<PairOptions, Failure> {
    let refused = |why: String| {
        let message = format!("{} cannot be measured on real threads: {why}", plan.name);
        Failure::new(FailureKind::Usage, message).with_help(
            "`sim validation --measure` can, and `sim validation-two-cores --measure`; start a plan of your own from `sim \
             validation --print`, or compare with what you measured otherwise by --costs and --measured",
        )
    };
    if plan.machine.host != HostKind::Threads {
        return Err(refused("its switch is in a hypervisor (`machine.host` is not \"threads\")".into()));
    }
    if !plan.machine.bare_guests {
        return Err(refused("its guests have a stack (`machine.bare_guests` is not true)".into()));
    }
    let hyper_switch_sim::Workload::Datagrams { frame_bytes, rate_per_s: None } = plan.workload else {
        return Err(refused("its workload is other than `datagrams` without a rate".into()));
    };
    if !raw::FRAME_BYTES.contains(&frame_bytes) {
        let (least, most) = (raw::FRAME_BYTES.start(), raw::FRAME_BYTES.end());
        return Err(refused(format!("`workload.frame_bytes` is {frame_bytes}, not in {least}..={most}")));
    }
    let set = |cost| plan.set.get(&cost).copied();
    let Some(entry_ns) = set(Cost::HypervisorEntry) else {
        let why =
            "threads enter by a call, and `set.hypervisor_entry` does not say what is spun for it, if only 0";
        return Err(refused(why.into()));
    };
    if entry_ns.fract() != 0.0 || !(0.0..=ENTRY_COST_NS as f64).contains(&entry_ns) {
        let why =
            format!("`set.hypervisor_entry` is {entry_ns}, not whole nanoseconds in 0..={ENTRY_COST_NS}");
        return Err(refused(why));
    }
    if entry_ns > 0.0 && set(Cost::Interrupt) != Some(entry_ns) {
        let why =
            format!("as much as for an entry is spun for an interrupt: `set.interrupt` has to be {entry_ns}");
        return Err(refused(why));
    }
    let strange = |point: &&Point| {
        point.idle_vms > 0 || point.scaled.is_some() || point.seed != plan.seed || point.pairs > MOST_PAIRS
    };
    if let Some(point) = points.iter().find(strange) {
        let why = format!("{point}: there are up to {MOST_PAIRS} pairs, nothing idle, scaled or repeated");
        return Err(refused(why));
    }
    let [cores] = distinct(points.iter().map(|point| point.cores))[..] else {
        return Err(refused("its points differ in their cores".into()));
    };
    let Some(cores) = usable.get(..usize::from(cores)) else {
        return Err(refused(format!("it has {cores} cores, and this process may use {}", usable.len())));
    };
    let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
    Ok(PairOptions {
        backend: Backend::Inprocess,
        workloads: vec![Workload::Raw],
        archs: distinct(points.iter().map(|point| arch(point.arch))),
        optimisations: distinct(points.iter().filter_map(|point| point.optimisations)),
        pairs: distinct(points.iter().map(|point| point.pairs)),
        repeat: 1,
        report: None,
        duration: Duration::from_secs_f64(plan.run.duration_ms / 1e3),
        json: true,
        seed: plan.seed,
        frame_bytes,
        rate_per_s: None,
        entry_cost_ns: entry_ns as u64,
        cores: Some(cores.join(",").parse().expect("at least one core, none twice")),
        paces: Paces::default(),
    })
}

fn arch(arch: scenario::Arch) -> Arch {
    match arch {
        scenario::Arch::HyperSwitch => Arch::HyperSwitch,
        scenario::Arch::DriverDomain => Arch::DriverDomain,
        scenario::Arch::Vhost => Arch::Vhost,
    }
}

#[cfg(test)]
mod tests {
    use super::super::text;
    use super::*;

    fn of(text: &str) -> Result<PairOptions, Failure> {
        let plan = Plan::parse(text).unwrap();
        counterpart(&plan, &plan.points(), &[1, 3])
    }

    /// Holds that both plans that are made for it have a counterpart with the same points, in the same order.
    #[test]
    fn the_validations_have_one() {
        for (name, cores) in [("validation", &[1][..]), ("validation-two-cores", &[1, 3])] {
            let text = text(name).unwrap();
            let options = of(&text).unwrap();
            assert_eq!(options.cores.as_ref().unwrap().cores(), cores);
            assert_eq!((options.entry_cost_ns, options.frame_bytes, options.repeat), (1_000, 1_500, 1));
            let real = options.points();
            let real = real.iter().map(|point| (point.arch.name(), point.optimisations, point.pairs));
            let plan = Plan::parse(&text).unwrap().points();
            let plan = plan.iter().map(|point| (point.arch.name(), point.optimisations, point.pairs));
            assert!(real.eq(plan), "{name}");
        }
    }

    /// Holds that each reason why a plan has none is named.
    #[test]
    fn what_threads_are_not_is_refused() {
        let sound = text("validation").unwrap();
        for (from, to, why) in [
            ("host = \"threads\"", "host = \"hypervisor\"", "its switch is in a hypervisor"),
            ("bare_guests = true", "bare_guests = false", "its guests have a stack"),
            ("frame_bytes = 1500", "frame_bytes = 1500\nrate_per_s = 5.0", "`datagrams` without a rate"),
            ("frame_bytes = 1500", "frame_bytes = 65537", "is 65537, not in 60..=65536"),
            ("set = {", "set = { notify = 1 } #", "`set.hypervisor_entry` does not say"),
            ("hypervisor_entry = 1000", "hypervisor_entry = 0.5", "not whole nanoseconds in 0..=1000000"),
            ("interrupt = 1000", "interrupt = 20", "`set.interrupt` has to be 1000"),
            ("pairs = [1, 2, 3, 4]", "pairs = [1]\nidle_vms = [0, 1]", "1 idle VMs: there are"),
            ("pairs = [1, 2, 3, 4]", "pairs = [1]\nscale = { notify = [2] }", "notify x 2: there are"),
            ("pairs = [1, 2, 3, 4]", "pairs = [1]\nrepeat = 2", "there are up to 64 pairs"),
            ("pairs = [1, 2, 3, 4]", "pairs = [1]\ncores = [1, 2]", "its points differ in their cores"),
            ("cores = 1\n", "cores = 3\n", "it has 3 cores, and this process may use 2"),
        ] {
            assert!(sound.contains(from), "{from}");
            let failure = of(&sound.replacen(from, to, 1)).expect_err(to);
            assert_eq!(failure.kind, FailureKind::Usage);
            assert!(failure.message.contains(why), "{to}: {failure}");
        }
    }
}
