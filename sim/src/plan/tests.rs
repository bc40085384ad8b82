//! What a plan may say, and how it is told that it may not.

use super::*;

const SMALL: &str = "\
name = 'small'
title = 'Small'
shows = 'That it works.'
machine = { cores = 4, cores_per_cache = 2 }
run = { duration_ms = 1 }
workload = { kind = 'requests', frame_bytes = 64 }
";

fn parse(rest: &str) -> Result<Plan, PlanError> {
    Plan::parse(&format!("{SMALL}{rest}"))
}

fn points(rest: &str) -> Vec<String> {
    parse(rest).unwrap().points().iter().map(Point::to_string).collect()
}

/// Holds that each plan that the program carries is one, under its name, and can be run.
#[test]
fn the_carried_plans_are_sound() {
    for (name, text) in embedded() {
        let plan = Plan::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plan.name, name);
        let costs = plan.cost_table(Path::new("")).unwrap();
        assert_eq!(plan.scenarios(&costs).unwrap().len(), plan.points().len());
        assert!(!plan.shows.starts_with('\n') && !plan.shows.contains("   "), "{name}: {}", plan.shows);
    }
}

/// Holds that the example is a plan, and has every key that there is.
#[test]
fn the_example_has_every_key() {
    let plan = Plan::parse(EXAMPLE).unwrap();
    plan.scenarios(&plan.cost_table(Path::new("")).unwrap()).unwrap();
    for strange in
        ["strange = 1\n[machine]", "[machine]\nstrange = 1", "[run]\nstrange = 1", "[matrix]\nstrange = 1"]
    {
        let table = strange.lines().find(|line| line.starts_with('[')).unwrap();
        let error = Plan::parse(&EXAMPLE.replace(table, strange)).unwrap_err().to_string();
        // The message lists the keys that there are, in backticks, behind the strange one.
        for key in error.split('`').skip(3).step_by(2) {
            assert!(EXAMPLE.contains(&format!("{key} = ")) || EXAMPLE.contains(&format!("[{key}]")), "{key}");
        }
    }
}

/// Holds that the figure of the paper is as it is to be measured: three curves, 1 to 16 pairs, a second each.
#[test]
fn fig2_is_the_papers() {
    let plan = Plan::parse(embedded().next().unwrap().1).unwrap();
    let expected: Vec<_> =
        Arch::ALL.into_iter().flat_map(|arch| (1..=16).map(move |n| (arch, n, 32))).collect();
    assert_eq!(plan.points().iter().map(|p| (p.arch, p.pairs, p.cores)).collect::<Vec<_>>(), expected);
    assert_eq!(plan.run.duration_ms, 1_000.0);
    assert_eq!(plan.published.iter().map(|p| p.gbps).collect::<Vec<_>>(), [81.0, 31.0, 47.0]);
}

/// Holds that every combination is a point, in the documented order, and that what is left out has its default.
#[test]
fn a_matrix_is_every_combination() {
    assert_eq!(
        points("matrix = { pairs = [1] }"),
        [
            "hyper-switch (all), 1 pair on 4 cores",
            "driver-domain, 1 pair on 4 cores",
            "vhost, 1 pair on 4 cores"
        ]
    );
    let rest =
        "matrix = { arch = ['vhost', 'hyper-switch'], optimisations = ['none', 'batch'], pairs = [2, 1] }";
    let systems = ["vhost", "hyper-switch (none)", "hyper-switch (batch)"];
    let expected = systems
        .map(|system| [format!("{system}, 2 pairs on 4 cores"), format!("{system}, 1 pair on 4 cores")])
        .concat();
    assert_eq!(points(rest), expected);
    assert_eq!(
        points("matrix = { arch = ['hyper-switch'], optimisations = ['each'], pairs = [1] }").len(),
        8
    );
    assert_eq!(
        points("matrix = { arch = ['vhost'], cores = [8, 16], vms_per_core = [0.1, 1], idle_vms = [3] }"),
        ["1 pair on 8", "4 pairs on 8", "1 pair on 16", "8 pairs on 16"]
            .map(|words| format!("vhost, {words} cores, 3 idle VMs"))
    );
    assert_eq!(
        points("matrix = { arch = ['vhost'], pairs = [1], scale = { 'copy.own' = [0.5, 2], notify = [3] } }"),
        ["", ", notify x 3", ", copy.own x 0.5", ", copy.own x 2"]
            .map(|words| format!("vhost, 1 pair on 4 cores{words}"))
    );
    let each =
        points("matrix = { arch = ['vhost'], pairs = [1], scale_each = [2], scale = { notify = [3] } }");
    assert_eq!(each.len(), 1 + Row::all().count());
    assert!(each.contains(&"vhost, 1 pair on 4 cores, notify x 3".to_owned()), "{each:?}");
}

/// Holds that a scenario has what its point says: scaled costs, idle VMs, and more memory and vCPUs of the domain on a
/// larger machine, where the plan says so.
#[test]
fn scenarios_are_their_points() {
    let text = SMALL.replace("cores_per_cache = 2", "cores_per_cache = 2, of_cores = 4");
    let text =
        format!("{text}matrix = {{ pairs = [2], cores = [8], idle_vms = [5], scale = {{ notify = [2] }} }}");
    let plan = Plan::parse(&text).unwrap();
    let table = plan.cost_table(Path::new("")).unwrap();
    let scenarios = plan.scenarios(&table).unwrap();
    let [plain, scaled, ..] = &scenarios[..] else { panic!("{}", scenarios.len()) };
    assert_eq!((plain.vms.len(), plain.domain_vcpus, plain.machine.cores), (9, 14, 8));
    assert_eq!(plain.costs.get(Cost::MemoryByte), table.get(Cost::MemoryByte) / 2.0);
    assert_eq!(plain.costs.get(Cost::Notify), table.get(Cost::Notify));
    assert_eq!(scaled.costs.get(Cost::Notify), table.get(Cost::Notify) * 2.0);
}

/// Holds that each mistake is named, and that of the form also with its line.
#[test]
fn mistakes_are_named() {
    for (rest, message, line) in [
        ("", "missing field `matrix`", None),
        ("matrix = { pairs = [1] }\nsede = 1", "unknown field `sede`", Some(8)),
        ("matrix = { }", "a matrix has either `pairs` or `vms_per_core`", Some(7)),
        ("matrix = { pairs = [1], vms_per_core = [1] }", "a matrix has either `pairs`", Some(7)),
        ("matrix = { pairs = [] }", "the list is empty", Some(7)),
        ("[matrix]\npairs = [1, 2, 1]", "the list has 1 twice", Some(8)),
        ("matrix = { pairs = [0] }", "`pairs` has 0, which is not above 0", Some(7)),
        ("matrix = { vms_per_core = [nan] }", "`vms_per_core` has NaN", Some(7)),
        ("matrix = { pairs = [1], scale = { notify = [0] } }", "`scale.notify` has 0", Some(7)),
        ("matrix = { pairs = [1], scale = { speed = [2] } }", "there is no cost `speed`", Some(7)),
        ("matrix = { pairs = [1], repeat = 0 }", "expected a nonzero u16", Some(7)),
        ("matrix = { pairs = [1], optimisations = ['fast'] }", "`fast` is no optimisation", Some(7)),
        ("matrix = { pairs = [1], arch = ['xen'] }", "unknown variant `xen`", Some(7)),
        (
            "matrix = { pairs = [1] }\npublished = [{ arch = 'vhost', pairs = 2, gbps = 1, source = 'x' }]",
            "`published` number 1: no point of the matrix",
            None,
        ),
        (
            "matrix = { pairs = [1] }\npublished = [{ arch = 'vhost', gbps = 0, source = 'x' }]",
            "`published` number 1: `gbps` is not above 0",
            None,
        ),
        (
            "matrix = { pairs = [1] }\npublished = [{ arch = 'vhost', gbps = 1, source = ' ' }]",
            "`published` number 1: it has no `source`",
            None,
        ),
    ] {
        let error = parse(rest).expect_err(rest);
        let text = format!("{SMALL}{rest}");
        assert!(error.to_string().contains(message), "{rest}: {error}");
        if let Some(line) = line {
            let PlanError::Form(error) = error else { panic!("{rest}: {error:?}") };
            let start = error.span().unwrap().start;
            assert_eq!(text[..start].matches('\n').count() + 1, line, "{rest}");
        }
    }
    for (from, to, message) in [
        ("duration_ms = 1", "duration_ms = 0", "`run.duration_ms` is 0"),
        ("duration_ms = 1", "duration_ms = 1, warmup_ms = -1", "`run.warmup_ms` is -1"),
        ("duration_ms = 1", "duration_ms = 1, quantum_us = inf", "`run.quantum_us` is inf"),
    ] {
        let text = format!("{}matrix = {{ pairs = [1] }}", SMALL.replace(from, to));
        let error = Plan::parse(&text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// Holds that what only shows when the points are made is named with the point, and costs that are not there by name.
#[test]
fn impossible_points_are_named() {
    let plan = parse("matrix = { pairs = [1, 3000] }").unwrap();
    let table = plan.cost_table(Path::new("")).unwrap();
    let error = plan.scenarios(&table).unwrap_err().to_string();
    assert_eq!(
        error,
        "point 2, hyper-switch (all), 3000 pairs on 4 cores: a run has 1 to 4096 VMs, not 6000"
    );
    let plan = parse("matrix = { pairs = [65535], idle_vms = [65535] }").unwrap();
    let error = plan.scenarios(&table).unwrap_err().to_string();
    assert!(error.ends_with("idle VMs: a run has 1 to 4096 VMs, not 131070"), "{error}");
    let plan = parse("matrix = { pairs = [1], scale = { notify = [1e308] } }").unwrap();
    let error = plan.scenarios(&table).unwrap_err().to_string();
    assert!(error.starts_with("point 2, hyper-switch (all), 1 pair on 4 cores, notify x 1"), "{error}");
    let plan = Plan { costs: "none.toml".to_owned(), ..plan };
    let error = plan.cost_table(Path::new("/proc")).unwrap_err().to_string();
    assert!(
        error.starts_with("there is no cost table `none.toml` in the program, nor a file /proc/none.toml"),
        "{error}"
    );
    let plan = Plan { costs: "version".to_owned(), ..plan };
    let error = plan.cost_table(Path::new("/proc")).unwrap_err().to_string();
    assert!(error.starts_with("/proc/version: no cost table: "), "{error}");
}
