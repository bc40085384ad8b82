//! The program: reads the command line, does what it says, and ends with a documented exit code.

#![forbid(unsafe_code)]

use hyper_switch::cli::{Command, CtlOptions, Invocation, PairOptions, SimOptions, SimRun};
use hyper_switch::ctl::{client, render};
use hyper_switch::exit::{Failure, FailureKind};
use hyper_switch::{calibrate, daemon, pair, sim, swarm, vm};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Invocation::from_command_line().and_then(execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is closed, the exit code has to say it all.
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(&failure)
        }
    }
}

fn execute(invocation: Invocation) -> Result<(), Failure> {
    invocation.log.install();
    match invocation.command {
        Command::Ctl(options) => ctl(&options),
        Command::Run(options) => print(&daemon::run(&options)?),
        Command::Pair(options) if options.is_experiment() => experiment(&options),
        Command::Pair(options) => {
            let report = pair::run(&options)?;
            if options.json { print_json(&report) } else { print(&report.render()) }
        }
        Command::Calibrate(options) => {
            let calibration = calibrate::run(&options)?;
            if options.json { print_json(&calibration) } else { print(&calibration.render()) }
        }
        Command::Sim(SimOptions::List) => print(&sim::list()),
        Command::Sim(SimOptions::Print(plan)) => print(&sim::text(&plan)?),
        Command::Sim(SimOptions::Run(options)) => simulate(&options),
        Command::Sim(SimOptions::Swarm(options)) => {
            let report = swarm::run(&options)?;
            let printed = if options.json { print_json(&report) } else { print(&report.render()) };
            printed.and(report.outcome())
        }
        Command::Vm(options) if options.print_command => print(&vm::commands(&options)?),
        Command::Vm(options) => {
            let report = vm::run(&options)?;
            if options.json { print_json(&report) } else { print(&report.render()) }
        }
        Command::Guest(part) => part
            .play(&mut std::io::stdout().lock())
            .map_err(|error| Failure::from_io(format_args!("cannot {}", part.name()), &error)),
    }
}

fn experiment(options: &PairOptions) -> Result<(), Failure> {
    let (report, outcome) = pair::explore(options)?;
    if let Some(folder) = &options.report {
        report.write(folder)?;
    }
    let printed = if options.json { print_json(&report) } else { print(&report.render()) };
    printed.and(outcome)
}

fn simulate(options: &SimRun) -> Result<(), Failure> {
    let report = sim::run(options)?;
    if let Some(folder) = &options.report {
        report.write(folder)?;
    }
    if options.json { print_json(&report) } else { print(&report.render()) }
}

fn ctl(options: &CtlOptions) -> Result<(), Failure> {
    let answer = client::ask(&options.ctl_socket, options.query)?;
    if options.json { print_json(&answer) } else { print(&render::render(&answer)) }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    match serde_json::to_string_pretty(value) {
        Ok(json) => print(&format!("{json}\n")),
        Err(error) => Err(Failure::new(FailureKind::Runtime, format!("cannot write JSON: {error}"))),
    }
}

/// Writes to standard output. A reader that has seen enough, as `head` has, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::from_io("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}
