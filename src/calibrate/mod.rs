//! `hyper-switch calibrate`: measures on this machine what the simulator charges for, and makes a cost table of it.
//!
//! | file | noun |
//! | --- | --- |
//! | `figure` | a figure: the median of batches, and their spread |
//! | `core` | work on a core of its own |
//! | `apart` | guests at home on two cores |
//! | `copying` | copies, by size and by who wrote the bytes |
//! | `switching` | the switch and its guests' drivers |
//! | `relaying` | the threads of what it is compared with |
//! | `waking` | threads that wake each other up |
//! | `exits` | a virtual machine of KVM's that leaves its guest's code |
//! | `table` | the table that all of it goes into |
//! | `report` | what is shown |
//!
//! What is measured is what VMs of this process pay (`hyper-switch pair`), so that their runs and simulated ones can be
//! compared. An entry is a call there and costs nothing besides, or what `--entry-cost` says, and a plan that is compared with
//! `pair` sets the same. The table has a VM exit of KVM's instead, where there is a KVM that runs a guest.

mod apart;
mod copying;
mod core;
mod exits;
mod figure;
mod relaying;
mod report;
mod switching;
mod table;
mod waking;

pub use figure::Figure;
pub use report::Calibration;

use crate::cli::CalibrateOptions;
use crate::exit::{Failure, FailureKind};
use crate::host::{topology, usable_cpus};
use crate::machine::Machine;
use crate::pair::Contender;
use crate::progress::Progress;
use copying::SIZES;
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_sim::costs::{CostTable, Locality};
use std::fs::OpenOptions;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use table::Measured;

/// Frame sizes by which the table is compared with the switch as a whole.
const CHECKED_BYTES: [usize; 3] = [60, switching::FRAME_BYTES, 65_536];

/// How much is measured.
struct Effort {
    batches: usize,
    /// About how long all of it takes.
    expected: Duration,
}

impl Effort {
    fn of(quick: bool) -> Effort {
        if quick {
            Effort { batches: 5, expected: Duration::from_secs(1) }
        } else {
            Effort { batches: 201, expected: Duration::from_secs(8) }
        }
    }
}

/// Is told what is measured next, and may end it by a failure.
type Watch<'w> = &'w mut dyn FnMut(&str) -> Result<(), Failure>;

/// Measures.
///
/// # Errors
/// The machine does not let this process use the cores that it says it may use, or the table cannot be written.
pub fn run(options: &CalibrateOptions) -> Result<Calibration, Failure> {
    let effort = Effort::of(options.quick);
    if let Some(path) = &options.out {
        // Before the time is spent; what is there stays until there is something better.
        let opened = OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| report::cannot_write(path, &error))?;
    }
    let begin = Instant::now();
    let mut progress = Progress::start("calibrate", effort.expected, options.json);
    let measured = measure(&effort, &mut |what| {
        progress.update(begin.elapsed(), what);
        Ok(())
    })?;
    drop(progress);
    let mut calibration = Calibration::new(Machine::this(), effort.batches, measured)?;
    if let Some(path) = &options.out {
        calibration.write(path)?;
    }
    Ok(calibration)
}

/// About how long [`cost_table`] takes.
pub(crate) fn expected(quick: bool) -> Duration {
    Effort::of(quick).expected
}

/// Measures the cost table alone.
///
/// # Errors
/// As of [`run`], and those of `watch`.
pub(crate) fn cost_table(quick: bool, watch: Watch<'_>) -> Result<CostTable, Failure> {
    let effort = Effort::of(quick);
    let measured = measure(&effort, watch)?;
    Ok(Calibration::new(Machine::this(), effort.batches, measured)?.into_table())
}

fn measure(effort: &Effort, now: Watch<'_>) -> Result<Measured, Failure> {
    let cpus = usable_cpus();
    let Some(&cpu) = cpus.first() else {
        return Err(Failure::new(FailureKind::Runtime, "the kernel does not say which cores may be used"));
    };
    let sharing = topology(Path::new("/"), &cpus).sharing(CoreId(0));
    let is_near = |at: &usize| sharing.contains(CoreId(*at as u16));
    // The highest number is the least likely to be another thread of the same core.
    let near = (1..cpus.len()).rev().find(is_near).map(|at| cpus[at]);
    let far = (1..cpus.len()).find(|at| !is_near(at)).map(|at| cpus[at]);
    // Before threads wait for each other.
    for cpu in [Some(cpu), near, far].into_iter().flatten() {
        thread::scope(|scope| core::on_core(scope, cpu, || ()).join())?;
    }

    let batches = effort.batches;

    let mut copies = Vec::new();
    for (locality, writer) in [(Locality::Own, Some(cpu)), (Locality::Shared, near), (Locality::Remote, far)]
    {
        if let Some(writer) = writer {
            now(&format!("copies of what core {writer} wrote, on core {cpu}"))?;
            let points = SIZES.into_iter().zip(copying::measure(cpu, writer, batches)?).collect();
            copies.push((locality, points));
        }
    }
    now("frames through the switch")?;
    let (switching, whole) = thread::scope(|scope| {
        let work = || {
            let whole = CHECKED_BYTES.map(|bytes| (bytes, switching::ring_to_ring(bytes, batches)));
            (switching::measure(batches), whole)
        };
        core::on_core(scope, cpu, work).join()
    })?;
    now("frames through the switches of others")?;
    let vhost = relaying::measure(cpu, Contender::Vhost, batches)?;
    let driver_domain = relaying::measure(cpu, Contender::DriverDomain, batches)?;
    now("a core that threads take turns on")?;
    let (preemption, nap) = (waking::preemptions(cpu, batches)?, waking::naps(cpu, batches)?);
    now("timers and interrupts")?;
    let (timer, interrupt, claim) = thread::scope(|scope| {
        let work = || (waking::timer(batches), waking::interrupt(batches), waking::claim(batches));
        core::on_core(scope, cpu, work).join()
    })?;
    now("exits of a virtual machine")?;
    let exits = thread::scope(|scope| core::on_core(scope, cpu, || exits::measure(batches)).join())?;
    let mut line = None;
    let waking = match near.or(far) {
        None => None,
        Some(other) => {
            now("guests on two cores")?;
            line = Some(apart::line(cpu, other, batches)?);
            now("threads that wake each other up")?;
            Some(waking::wakings(cpu, other, batches)?)
        }
    };
    Ok(Measured {
        copies,
        switching,
        vhost,
        driver_domain,
        whole,
        preemption,
        nap,
        timer,
        interrupt,
        claim,
        exits,
        line,
        waking,
    })
}
