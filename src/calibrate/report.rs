//! What `calibrate` shows: each row with its spread and with what it means, the copies, and how well the table foretells
//! what the switch as a whole takes.

use super::exits::Exits;
use super::figure::Figure;
use super::switching::frames_at_once;
use super::table::{BASE, DEBUG_BUILD, FOREIGN, Measured};
use crate::exit::{Failure, FailureKind};
use crate::machine::Machine;
use crate::table::{Column, Table, count};
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_sim::costs::{Cost, CostTable, Kind, Locality, Unit};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// All of it.
#[derive(Serialize)]
pub struct Calibration {
    machine: Machine,
    batches: usize,
    costs: Vec<CostReport>,
    /// A VM's, if there is a KVM that runs one; the first kind is the table's `hypervisor_entry`.
    exits: Option<Exits>,
    copies: Vec<CopyReport>,
    checks: Vec<Check>,
    #[serde(skip)]
    table: CostTable,
    #[serde(skip)]
    written: Option<PathBuf>,
}

/// A row of the table.
#[derive(Serialize)]
struct CostReport {
    name: Cost,
    value: f64,
    unit: Unit,
    /// What its batches came to, if it was measured.
    measured: Option<Figure>,
    kind: Kind,
    meaning: &'static str,
    source: String,
}

/// A copy of so many bytes.
#[derive(Serialize)]
struct CopyReport {
    locality: Locality,
    bytes: u32,
    ns: f64,
    measured: Option<Figure>,
    kind: Kind,
}

/// A frame's whole way through the switch, in entries of several.
#[derive(Serialize)]
struct Check {
    frame_bytes: usize,
    frames_per_entry: u32,
    measured: Figure,
    /// What the table adds up to.
    table_ns: f64,
}

impl Calibration {
    pub(super) fn new(machine: Machine, batches: usize, measured: Measured) -> Result<Calibration, Failure> {
        let table = measured.table(&machine).map_err(|error| {
            Failure::new(FailureKind::Runtime, format!("what was measured makes no table: {error}"))
        })?;
        let costs = table.rows().iter().map(|row| CostReport {
            name: row.name,
            value: row.value,
            unit: row.unit,
            measured: measured.figure(row.name),
            kind: row.kind,
            meaning: row.name.meaning(),
            source: row.source.clone(),
        });
        let copies = table.copies().flat_map(|(locality, row)| {
            let figures = measured.copy(locality);
            row.points.iter().enumerate().map(move |(at, (bytes, ns))| CopyReport {
                locality,
                bytes: *bytes,
                ns: *ns,
                measured: figures.map(|figures| figures[at].1),
                kind: row.kind,
            })
        });
        let checks = measured.whole.map(|(frame_bytes, measured)| {
            let frames_per_entry = frames_at_once(frame_bytes);
            let entries = 2.0 * table.get(Cost::SwitchEntry) / f64::from(frames_per_entry);
            let frame = table.get(Cost::SwitchFrame) + table.get(Cost::CopyFrame);
            let copy = table.copy(Locality::Own, (frame_bytes + VNET_HDR_BYTES) as u32);
            Check { frame_bytes, frames_per_entry, measured, table_ns: entries + frame + copy }
        });
        let (costs, copies, checks) = (costs.collect(), copies.collect(), checks.into());
        let exits = measured.exits.as_ref().ok().copied();
        Ok(Calibration { machine, batches, costs, exits, copies, checks, table, written: None })
    }

    /// The table alone.
    pub(super) fn into_table(self) -> CostTable {
        self.table
    }

    /// Writes the table to a file.
    pub(super) fn write(&mut self, path: &Path) -> Result<(), Failure> {
        fs::write(path, self.table.to_string()).map_err(|error| cannot_write(path, &error))?;
        self.written = Some(path.to_owned());
        Ok(())
    }

    /// All of it as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.machine.lines() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<9} {value}");
        }
        let mut costs = Table::new([
            Column::left("cost"),
            Column::right("ns"),
            Column::right("quartiles"),
            Column::left("kind"),
            Column::left("what it is"),
        ]);
        for row in &self.costs {
            costs.row([
                row.name.to_string(),
                match row.unit {
                    Unit::Nanoseconds => number(row.value),
                    Unit::Times => format!("{} times", number(row.value)),
                },
                row.measured.map_or_else(String::new, quartiles),
                row.kind.to_string(),
                row.name.brief().to_owned(),
            ]);
        }
        let mut copies = Table::new([
            Column::left("copy"),
            Column::right("bytes"),
            Column::right("ns"),
            Column::right("quartiles"),
            Column::right("GB/s"),
            Column::left("kind"),
        ]);
        for row in &self.copies {
            copies.row([
                row.locality.to_string(),
                count(row.bytes.into()),
                number(row.ns),
                row.measured.map_or_else(String::new, quartiles),
                format!("{:.1}", f64::from(row.bytes) / row.ns),
                row.kind.to_string(),
            ]);
        }
        let mut checks = Table::new([
            Column::right("frame bytes"),
            Column::right("frames an entry"),
            Column::right("measured ns"),
            Column::right("quartiles"),
            Column::right("by the table"),
            Column::right("ratio"),
        ]);
        for check in &self.checks {
            checks.row([
                count(check.frame_bytes as u64),
                check.frames_per_entry.to_string(),
                number(check.measured.median_ns),
                quartiles(check.measured),
                number(check.table_ns),
                format!("{:.2}", check.table_ns / check.measured.median_ns),
            ]);
        }
        let _ = writeln!(
            text,
            "\nMedians of {} batches{DEBUG_BUILD}, and the quartiles on both sides.\n\n{costs}",
            self.batches
        );
        if let Some(Exits { program, .. }) = self.exits {
            let _ = writeln!(
                text,
                "{} is a VM exit that KVM deals with in the kernel: a doorbell that is an eventfd.\nOne that goes out to the \
                 program and back, as without ioeventfd, takes {} ns ({}).\n",
                Cost::HypervisorEntry,
                number(program.median_ns),
                quartiles(program)
            );
        }
        let _ = writeln!(text, "Not measured:");
        let (foreign, assumed): (Vec<_>, Vec<_>) = self
            .costs
            .iter()
            .filter(|row| row.measured.is_none())
            .partition(|row| row.source.starts_with(FOREIGN));
        for row in assumed {
            let _ = writeln!(text, "  {}: {}", row.name, row.source);
        }
        let foreign: Vec<_> = foreign.iter().map(|row| row.name.name()).collect();
        let _ = write!(
            text,
            "  As in the table `{BASE}`, where each has its source: {}.\n\n\
             Copies from one ring's buffers to another's, by who wrote the bytes last: this core, a core that shares a \
             cache,\na core that does not.\n\n{copies}\n\
             A frame from ring to ring on one core, as the switch takes it and as the table adds it up:\n\n{checks}",
            foreign.join(", ")
        );
        if let Some(path) = &self.written {
            let _ = writeln!(text, "\nThe table is in {}.", path.display());
        }
        text
    }
}

pub(super) fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::from_io(format_args!("cannot write the cost table {}", path.display()), error)
}

fn quartiles(figure: Figure) -> String {
    format!("{} to {}", number(figure.low_ns), number(figure.high_ns))
}

/// Nanoseconds to three digits or more.
fn number(ns: f64) -> String {
    if ns < 100.0 { format!("{ns:.1}") } else { count(ns.round() as u64) }
}
