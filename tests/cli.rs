//! The program as a user and a script meet it: what it prints, where, and the exit code.

use hyper_switch_sim::costs::{Cost, CostTable, Kind, Locality};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

struct Said {
    code: i32,
    out: String,
    err: String,
}

/// Runs the program in `folder`, with none of our environment that it looks at.
fn run_in(folder: &Path, arguments: &[&str]) -> Said {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_hyper-switch"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

fn run(arguments: &[&str]) -> Said {
    run_in(tempfile::tempdir().unwrap().path(), arguments)
}

/// `--help` names the commands, shows examples, and documents the exit codes; all on standard output.
#[test]
fn help_teaches() {
    let said = run(&["--help"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    for part in [
        "run",
        "pair",
        "sim",
        "vm",
        "ctl",
        "Examples:",
        "Exit codes:",
        "  0  success",
        "  6  no daemon answers",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let run_help = run(&["run", "--help"]).out;
    for part in ["--port", "--cores", "--config", "--ctl", "--log", "tap:hp0,name=web,access=10", "[[port]]"]
    {
        assert!(run_help.contains(part), "{part}: {run_help}");
    }
}

/// Without a command the help is shown, and it counts as a mistake.
#[test]
fn no_command_is_a_mistake() {
    let said = run(&[]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("Usage: hyper-switch"), "{}", said.err);
}

/// A port that makes no sense is refused with the offending part and what would be right.
#[test]
fn a_bad_port_is_a_usage_error() {
    for (spec, part) in [
        ("hp0", "`hp0` does not say what the port is; write tap:NAME, packet:INTERFACE or vhost-user:PATH"),
        ("tap:hp0,acess=1", "`acess=1` is no option of a port; there are name=NAME, access=VID"),
        ("tap:a-name-beyond-all-bounds", "it has 24 bytes, 15 are allowed"),
    ] {
        let said = run(&["run", "--port", spec]);
        assert_eq!((said.code, said.out.as_str()), (2, ""));
        assert!(said.err.contains(part), "{}", said.err);
    }
}

/// A switch without a port is refused with an example of one that has some.
#[test]
fn no_port_is_a_usage_error() {
    let said = run(&["run"]);
    let expected = "\
error: the switch has no port
help: give it some, for example: hyper-switch run --port tap:hp0 --port tap:hp1
";
    assert_eq!((said.code, said.err.as_str()), (2, expected));
}

/// A mistake in the configuration file is shown with the file, the line, the key and what would be right.
#[test]
fn a_bad_configuration_is_shown_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = "# two VMs\n[[port]]\ntap = \"hp0\"\nacess = 10\n";
    std::fs::write(folder.path().join("switch.toml"), file).unwrap();
    let said = run_in(folder.path(), &["run", "--config", "switch.toml"]);
    let expected = "\
error: switch.toml, line 4: unknown field `acess`, expected one of `tap`, `packet`, `vhost-user`, `role`, `queues`, `name`, `access`, `trunk`, `vm`
 4 | acess = 10
   | ^^^^^
help: `hyper-switch run --help` shows a file with every key
";
    assert_eq!((said.code, said.err.as_str()), (3, expected));
}

/// A configuration file that is not there is an error of the configuration, and is named.
#[test]
fn a_missing_configuration_is_named() {
    let said = run(&["run", "--config", "nowhere.toml"]);
    assert_eq!(said.code, 3);
    assert!(
        said.err.starts_with("error: cannot read the configuration file nowhere.toml: No such"),
        "{}",
        said.err
    );
}

/// The same name on the command line and in the file is refused, and both places are named.
#[test]
fn duplicates_name_both_places() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.toml"), "[[port]]\ntap = \"hp1\"\nname = \"a\"\n").unwrap();
    let said = run_in(folder.path(), &["run", "--config", "s.toml", "--port", "tap:hp0,name=a"]);
    let expected = "\
error: two ports are named `a`: `--port` number 1 of the command line, and s.toml, line 1
help: give one of them another name with `name=`
";
    assert_eq!((said.code, said.err.as_str()), (3, expected));
}

/// Without QEMU `vm` says how to get it.
#[test]
fn vm_without_qemu_says_how_to_get_it() {
    let program = env!("CARGO_BIN_EXE_hyper-switch");
    let output = Command::new(program).arg("vm").env("PATH", "").env_remove("RUST_LOG").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.starts_with("error: there is no qemu-system-x86_64 for the guests\nhelp: on Debian, "),
        "{said}"
    );
}

/// `sim` shows its plans and simulates them; a plan that it prints is read again as the same.
#[test]
fn sim_simulates_plans() {
    let folder = tempfile::tempdir().unwrap();
    let list = run(&["sim", "--list"]);
    assert_eq!(list.code, 0, "{}", list.err);
    assert!(list.out.contains("fig2") && list.out.contains("Pairwise scalability"), "{}", list.out);
    let table = run(&["sim", "smoke"]);
    assert_eq!(table.code, 0, "{}", table.err);
    assert!(table.out.contains("published 10, which is "), "{}", table.out);
    let text = run(&["sim", "smoke", "--print"]).out;
    std::fs::write(folder.path().join("mine.toml"), text).unwrap();
    let mine = run_in(folder.path(), &["sim", "mine.toml", "--jobs", "1", "--report", "out"]);
    assert_eq!((mine.code, mine.out), (0, table.out));
    let json = run_in(folder.path(), &["sim", "mine.toml", "--json"]).out;
    let written = std::fs::read_to_string(folder.path().join("out/results.json")).unwrap();
    assert_eq!(json.trim_end(), written);
    assert!(folder.path().join("out/index.html").exists());
}

/// A trace is of one point, and has a line for each of its events.
#[test]
fn sim_writes_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let said = run_in(folder.path(), &["sim", "smoke", "--point", "3", "--trace", "t", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).expect(&said.err);
    let trace = std::fs::read_to_string(folder.path().join("t")).unwrap();
    assert_eq!(json["points"][0]["outcome"]["events"], trace.lines().count());
    let said = run_in(folder.path(), &["sim", "smoke", "--trace", "t"]);
    let expected = "error: --trace is for one point, and smoke has 8\nhelp: choose one by --point N\n";
    assert_eq!((said.code, said.err.as_str()), (2, expected));
}

/// What is wrong with a plan is shown where it is, and what is right.
#[test]
fn sim_says_what_is_wrong_with_a_plan() {
    let folder = tempfile::tempdir().unwrap();
    let text = run(&["sim", "smoke", "--print"]).out.replace("pairs = [1, 2]", "pair = [1, 2]");
    std::fs::write(folder.path().join("mine.toml"), text).unwrap();
    let said = run_in(folder.path(), &["sim", "mine.toml"]);
    let expected = "\
error: mine.toml, line 21: unknown field `pair`, expected one of `arch`, `optimisations`, `pairs`, `vms_per_core`, `cores`, `idle_vms`, `scale`, `scale_each`, `repeat`
 21 | pair = [1, 2]
    | ^^^^
help: `hyper-switch sim fig2 --print` shows a plan, `hyper-switch sim --help` every key
";
    assert_eq!((said.code, said.err.as_str()), (3, expected));
    for (arguments, code, message) in [
        (
            &["sim", "fig3"][..],
            2,
            "error: the program carries no plan `fig3`, and there is no file of that name\nhelp: there are fig2, ",
        ),
        (&["sim", "no/plan"], 3, "error: cannot read the plan no/plan: No such file"),
        (&["sim", "smoke", "--point", "9"], 2, "error: --point 9: smoke has points 1 to 8"),
        (
            &["sim", "smoke", "--costs", "none"],
            3,
            "error: there is no cost table `none` in the program, nor a file none: ",
        ),
        (&["sim", "smoke", "--report", "/proc/x"], 1, "error: cannot make the folder /proc/x: "),
        (
            &["sim", "smoke", "--point", "1", "--trace", "/proc/x"],
            1,
            "error: cannot write the trace /proc/x: ",
        ),
    ] {
        let said = run_in(folder.path(), arguments);
        assert_eq!(said.code, code, "{}", said.err);
        assert!(said.err.starts_with(message), "{}", said.err);
    }
}

/// SIGINT ends a simulation with the points that are complete, and says that others are missing.
#[test]
fn sim_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    // Two points of almost an hour: one takes long to simulate, and in the other a frame takes so long that hardly
    // anything happens.
    let plan = run(&["sim", "smoke", "--print"])
        .out
        .replace("duration_ms = 2", "duration_ms = 3000000")
        .replace("pairs = [1, 2]", "pairs = [1]\narch = [\"hyper-switch\"]\nscale = { ack_frame = [1e9] }")
        .replace("optimisations = [\"all\", \"none\"]", "");
    std::fs::write(folder.path().join("long.toml"), plan).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyper-switch"))
        .args(["sim", "long.toml", "--jobs", "2"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let progress = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(progress.map(Result::unwrap).any(|line| line.contains("1 of 2 points")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("ended early: not all is there") && said.contains("ack_frame x"), "{said}");
}

/// Two points that can be measured on real threads, each for so long.
fn measurable(duration_ms: u32) -> String {
    let plan = run(&["sim", "validation", "--print"]).out;
    let (head, _) = plan.split_once("[matrix]").unwrap();
    let head = head.replace("duration_ms = 300", &format!("duration_ms = {duration_ms}"));
    format!("{head}[matrix]\narch = [\"hyper-switch\"]\noptimisations = [\"all\", \"none\"]\npairs = [1]\n")
}

/// `--measure` compares all points in each round, and what it keeps of a round is the same again by hand.
#[test]
fn sim_measures_in_rounds() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.toml"), measurable(200)).unwrap();
    let arguments = ["sim", "mine.toml", "--measure", "2", "--quick", "--json", "--report", "out"];
    let said = run_in(folder.path(), &arguments);
    let json: serde_json::Value = serde_json::from_str(&said.out).expect(&said.err);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!((&json["complete"], &json["plan"]["costs"]), (&true.into(), &"calibrated".into()));
    let validation = &json["validation"];
    assert_eq!(validation["rounds"], 2);
    let sets = |points: &serde_json::Value| {
        let points = points.as_array().unwrap().iter();
        points.map(|point| point["optimisations"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let both = ["all", "none"].map(str::to_owned);
    assert_eq!((sets(&validation["points"]), sets(&json["points"])), (both.to_vec(), both.to_vec()));
    let page = std::fs::read_to_string(folder.path().join("out/index.html")).unwrap();
    assert!(page.contains("over 2 rounds, half of the 2 points deviate by no more than"), "{page}");
    let csv = std::fs::read_to_string(folder.path().join("out/results.csv")).unwrap();
    assert!(
        csv.lines().next().unwrap().ends_with(",error_percent,error_percent_min,error_percent_max"),
        "{csv}"
    );
    for (round, at) in [("out/round-1", 0), ("out/round-2", 1)] {
        let (costs, measured) = (format!("{round}/costs.toml"), format!("{round}/measured.json"));
        let arguments = ["sim", "mine.toml", "--costs", &costs, "--measured", &measured, "--json"];
        let said = run_in(folder.path(), &arguments);
        let again: serde_json::Value = serde_json::from_str(&said.out).expect(&said.err);
        for (point, again) in [0, 1].map(|n| (&validation["points"][n], &again["validation"]["points"][n])) {
            for key in ["measured_gbps", "simulated_gbps", "error_percent"] {
                // JSON is read to within a digit of the last.
                let [first, again] =
                    [&point[key]["samples"][at], &again[key]["median"]].map(|v| v.as_f64().unwrap());
                assert!(
                    (first - again).abs() < 1e-9 * first.abs().max(1.0),
                    "{round}, {key}: {first}, {again}"
                );
            }
        }
        if validation["shown_round"] == at + 1 {
            assert_eq!(again["points"], json["points"]);
        }
    }
}

/// SIGINT ends the rounds with those that are complete.
#[test]
fn sim_rounds_are_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.toml"), measurable(300)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyper-switch"))
        .args(["sim", "mine.toml", "--measure", "1000", "--quick"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(progress.any(|line| line.contains(" left, round 2 of 1000: ")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("ended early: not all is there") && said.contains("error %"), "{said}");
}

/// A plan that threads cannot be is refused with the reason, before anything is measured.
#[test]
fn sim_measures_what_threads_can_be() {
    let said = run(&["sim", "smoke", "--measure", "1"]);
    let expected = "error: smoke cannot be measured on real threads: its switch is in a hypervisor (`machine.host` is not \"threads\")\n\
                    help: `sim validation --measure` can, ";
    assert_eq!(said.code, 2);
    assert!(said.err.starts_with(expected), "{}", said.err);
}

/// A log filter in the environment that is none is refused like one on the command line.
#[test]
fn a_bad_filter_in_the_environment_is_a_usage_error() {
    let program = env!("CARGO_BIN_EXE_hyper-switch");
    let output = Command::new(program).args(["ctl", "ports"]).env("RUST_LOG", "x=loud").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.starts_with("error: RUST_LOG is no log filter: "), "{said}");
}

/// Without a daemon `ctl` says where it looked and how to start one.
#[test]
fn ctl_without_a_daemon_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let said = run_in(folder.path(), &["ctl", "ports", "--ctl", "nobody.sock"]);
    assert_eq!((said.code, said.out.as_str()), (6, ""));
    assert!(said.err.starts_with("error: no daemon listens at nobody.sock\nhelp: "), "{}", said.err);
    assert!(said.err.contains("--ctl PATH"), "{}", said.err);
}

/// `ctl` prints a table for people and the same as JSON for scripts. The daemon is a socket that gives the
/// documented answer to the documented request.
#[test]
fn ctl_prints_tables_and_json() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let daemon = std::thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            assert_eq!(request, "{\"version\":1,\"cmd\":\"macs\"}\n");
            let entry = r#"{"vlan":0,"mac":"02:00:00:00:00:01","port":"a","age_ms":20,"new":true}"#;
            writeln!({ &stream }, r#"{{"version":1,"ok":{{"macs":[{entry}]}}}}"#).unwrap();
        }
    });
    let table = run_in(folder.path(), &["ctl", "macs", "--ctl", "s"]);
    assert_eq!(table.code, 0, "{}", table.err);
    assert_eq!(table.out, "vlan  mac                port    age\n   -  02:00:00:00:00:01  a     20 ms\n");
    let json = run_in(folder.path(), &["ctl", "macs", "--json", "--ctl", "s"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["macs"][0]["port"], "a");
    daemon.join().unwrap();
}

/// `calibrate --out` writes a table that the simulator reads, with all rows, and what was measured is a time that work
/// can take; `--json` shows the same figures. What it takes is not judged.
#[test]
fn calibrate_writes_a_cost_table() {
    let folder = tempfile::tempdir().unwrap();
    let said = run_in(folder.path(), &["calibrate", "--quick", "--json", "--out", "costs.toml"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let table = CostTable::load(&std::fs::read_to_string(folder.path().join("costs.toml")).unwrap()).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let costs = shown["costs"].as_array().unwrap();
    assert_eq!(costs.len(), Cost::ALL.len());
    let exit = &table.rows()[Cost::HypervisorEntry as usize];
    assert_eq!(shown["exits"]["kernel"].is_object(), exit.kind == Kind::Measured, "{}", shown["exits"]);
    for (row, shown) in table.rows().iter().zip(costs) {
        assert_eq!(
            (shown["name"].as_str(), shown["value"].as_f64()),
            (Some(row.name.name()), Some(row.value))
        );
        if row.kind == Kind::Measured {
            assert!(row.value > 0.0, "{}: {}", row.name, row.value);
            assert!(shown["measured"]["low_ns"].as_f64() <= shown["measured"]["high_ns"].as_f64(), "{shown}");
        }
    }
    for cost in
        [Cost::Dispatch, Cost::Timer, Cost::SwitchEntry, Cost::SwitchFrame, Cost::CopyFrame, Cost::SendFrame]
    {
        assert_eq!(table.rows()[cost as usize].kind, Kind::Measured, "{cost}");
    }
    for locality in Locality::ALL {
        assert!(table.copy(locality, 64) > 0.0 && table.copy(locality, 65_536) > table.copy(locality, 64));
    }
}

/// `calibrate` for people shows each row with what it means, and the switch as a whole beside what the table foretells.
#[test]
fn calibrate_explains_its_rows() {
    let said = run(&["calibrate", "--quick"]);
    assert_eq!(said.code, 0, "{}", said.err);
    for cost in Cost::ALL {
        let line = said.out.lines().find(|line| line.split(' ').next() == Some(cost.name()));
        assert!(line.is_some_and(|line| line.ends_with(cost.brief())), "{cost}: {}", said.out);
    }
    for part in ["quartiles", "65,536", "remote", "by the table"] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let measured = said.out.contains("hypervisor_entry is a VM exit that KVM deals with in the kernel");
    let unmeasured = said
        .out
        .lines()
        .any(|line| line.starts_with("  hypervisor_entry: ") && line.contains("A VM exit is not measured: "));
    assert!(measured != unmeasured, "{}", said.out);
}

/// A table that cannot be written is refused before anything is measured.
#[test]
fn calibrate_needs_a_place_to_write() {
    let said = run(&["calibrate", "--out", "nowhere/costs.toml"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(
        said.err.starts_with("error: cannot write the cost table nowhere/costs.toml: No such"),
        "{}",
        said.err
    );
}
