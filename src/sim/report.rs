//! What came of a plan, for people and programs. The fields are the keys of the JSON document.

use super::figures::figures;
use super::page::page;
use super::validation::Validation;
use crate::exit::Failure;
use crate::folder;
use crate::table::{Column, Table};
use hyper_switch_sim::costs::CostTable;
use hyper_switch_sim::plan::{Plan, Point, Published};
use hyper_switch_sim::saturation::Limit;
use hyper_switch_sim::scenario::{Outcome, VmOutcome};
use serde::Serialize;
use std::path::Path;

/// What came of a plan. With `--json` printed as it is. It has nothing that differs when it is simulated again.
#[derive(Clone, Debug, Serialize)]
pub struct SimReport {
    /// The version of this program.
    pub version: String,
    /// The plan, with the seed that was used.
    pub plan: Plan,
    /// What work cost.
    pub costs: CostTable,
    /// Whether every point is there, and of `--measure` every round; else a signal ended it before.
    pub complete: bool,
    /// What was published, beside what came of it here.
    pub published: Vec<Comparison>,
    /// What was measured on real threads, beside it, if that was asked for.
    pub validation: Option<Validation>,
    /// What came of each point, in the order of the plan.
    pub points: Vec<PointReport>,
    /// The plan as it was written.
    #[serde(skip)]
    pub plan_text: String,
}

/// What was published, and the same as it was simulated.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What was published.
    #[serde(flatten)]
    pub published: Published,
    /// With how many pairs it is here.
    pub simulated_pairs: u16,
    /// Net throughput here, in Gb/s.
    pub simulated_gbps: f64,
    /// How much more it is here, in percent.
    pub deviation_percent: f64,
}

impl Comparison {
    /// Compares what was published with the highest of the points that it can be; none if there is no such point.
    pub fn of(published: &Published, points: &[PointReport]) -> Option<Comparison> {
        let is_meant = |point: &&PointReport| {
            point.point.arch == published.arch
                && point.point.scaled.is_none()
                && published.pairs.is_none_or(|pairs| pairs == point.point.pairs)
        };
        let best = points
            .iter()
            .filter(is_meant)
            .max_by(|one, other| one.throughput_gbps.total_cmp(&other.throughput_gbps))?;
        Some(Comparison {
            published: published.clone(),
            simulated_pairs: best.point.pairs,
            simulated_gbps: best.throughput_gbps,
            deviation_percent: 100.0 * (best.throughput_gbps / published.gbps - 1.0),
        })
    }

    /// Its row in a table: architecture, where, published, simulated, deviation, source.
    pub(super) fn cells(&self) -> Vec<String> {
        let Comparison { published, simulated_pairs, simulated_gbps, deviation_percent } = self;
        let place = match published.pairs {
            Some(pairs) => format!("at {pairs} pairs"),
            None => format!("peak, here at {simulated_pairs} pairs"),
        };
        vec![
            published.arch.name().to_owned(),
            place,
            published.gbps.to_string(),
            format!("{simulated_gbps:.2}"),
            format!("{deviation_percent:+.1}"),
            published.source.clone(),
        ]
    }
}

/// What came of one point.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// Its number in the plan, from 1.
    pub number: usize,
    /// Where in the matrix it is.
    #[serde(flatten)]
    pub point: Point,
    /// Net throughput, in Gb/s.
    pub throughput_gbps: f64,
    /// Frames that programs took, a second.
    pub frames_per_s: f64,
    /// The time within which half of the requests were answered; none if nobody asked.
    pub p50_us: Option<f64>,
    /// The time within which 99 of 100 requests were answered.
    pub p99_us: Option<f64>,
    /// Entries by VMs for each frame that a program took.
    pub entries_per_frame: f64,
    /// Interrupts of VMs for each frame that a program took.
    pub interrupts_per_frame: f64,
    /// Cores that were at work on average.
    pub busy_cores: f64,
    /// What there was not more of, the widest first.
    pub used_up: Vec<Limit>,
    /// All that was counted.
    pub outcome: Outcome,
}

/// The titles of the table's and the CSV's columns.
const COLUMNS: [&str; 19] = [
    "point",
    "arch",
    "optimisations",
    "cost",
    "cores",
    "pairs",
    "idle VMs",
    "seed",
    "Gb/s",
    "frames/s",
    "p50 us",
    "p99 us",
    "entries",
    "interrupts",
    "busy cores",
    "copies x",
    "dropped",
    "trace",
    "used up",
];

/// What the titles of the columns do not say.
pub(super) const LEGEND: &str = "entries (of VMs) and interrupts are for each frame that a program took; copies x: how many times as long as alone copies \
                      take, as all share the memory; trace is a hash of all events; used up is what there was not more of";

impl PointReport {
    /// The point with that number, and what came of it.
    pub fn of(number: usize, point: Point, used_up: Vec<Limit>, outcome: Outcome) -> PointReport {
        let sum = |count: fn(&VmOutcome) -> u64| outcome.vms.iter().map(count).sum::<u64>() as f64;
        let frames = sum(|vm| vm.taken).max(1.0);
        let us = |ns: u64| ns as f64 / 1e3;
        PointReport {
            number,
            point,
            throughput_gbps: outcome.bits_per_s() / 1e9,
            frames_per_s: outcome.frames_per_s(),
            p50_us: outcome.latency_ns.map(|latency| us(latency.p50)),
            p99_us: outcome.latency_ns.map(|latency| us(latency.p99)),
            entries_per_frame: sum(|vm| vm.transmit_calls + vm.receive_calls) / frames,
            interrupts_per_frame: sum(|vm| vm.interrupts) / frames,
            busy_cores: outcome.busy() * outcome.cores_ns.len() as f64,
            used_up,
            outcome,
        }
    }

    /// What was used up, in words.
    pub(super) fn used_up(&self) -> String {
        self.used_up.iter().map(Limit::to_string).collect::<Vec<_>>().join("; ")
    }

    /// The cells of its row: numbers with so many decimals, or all that there are.
    fn cells(&self, rounded: bool) -> [String; COLUMNS.len()] {
        let number = |value: f64, decimals: usize| {
            if rounded { format!("{value:.decimals$}") } else { value.to_string() }
        };
        let none = if rounded { "-" } else { "" };
        let optional = |value: Option<String>| value.unwrap_or_else(|| none.to_owned());
        let Point { arch, optimisations, cores, pairs, idle_vms, scaled, seed } = self.point;
        [
            self.number.to_string(),
            arch.name().to_owned(),
            optional(optimisations.map(|set| set.to_string())),
            optional(scaled.map(|scaled| scaled.to_string())),
            cores.to_string(),
            pairs.to_string(),
            idle_vms.to_string(),
            seed.to_string(),
            number(self.throughput_gbps, 2),
            number(self.frames_per_s, 0),
            optional(self.p50_us.map(|us| number(us, 1))),
            optional(self.p99_us.map(|us| number(us, 1))),
            number(self.entries_per_frame, 3),
            number(self.interrupts_per_frame, 3),
            number(self.busy_cores, 2),
            number(self.outcome.memory_slowdown, 2),
            self.outcome.dropped.to_string(),
            format!("{:016x}", self.outcome.hash),
            self.used_up(),
        ]
    }
}

impl SimReport {
    /// What came of the points of `plan` that are complete.
    pub(super) fn new(
        plan: Plan,
        costs: CostTable,
        complete: bool,
        points: Vec<PointReport>,
        plan_text: String,
    ) -> SimReport {
        let published = plan.published.iter().filter_map(|published| Comparison::of(published, &points));
        let (published, version) = (published.collect(), env!("CARGO_PKG_VERSION").to_owned());
        SimReport { version, plan, costs, complete, published, validation: None, points, plan_text }
    }

    /// What holds for all points, in a line.
    pub(super) fn conditions(&self) -> String {
        let Plan { name, seed, costs, run, .. } = &self.plan;
        let incomplete = if self.complete { "" } else { ", ended early: not all is there" };
        format!(
            "{name}, seed {seed}, costs {costs}, {} ms after {} ms of warm-up, steps of {} us{incomplete}",
            run.duration_ms, run.warmup_ms, run.quantum_us
        )
    }

    /// The titles of the table, and whether the column is one of words.
    pub(super) fn titles() -> [(&'static str, bool); COLUMNS.len()] {
        let words = ["arch", "optimisations", "cost", "trace", "used up"];
        COLUMNS.map(|title| (title, words.contains(&title)))
    }

    /// The rows of the table.
    pub(super) fn rows(&self) -> impl Iterator<Item = [String; COLUMNS.len()]> {
        self.points.iter().map(|point| point.cells(true))
    }

    /// The report as text that ends with a newline.
    pub fn render(&self) -> String {
        let column = |(title, is_words)| if is_words { Column::left(title) } else { Column::right(title) };
        let mut table = Table::new(SimReport::titles().map(column));
        self.rows().for_each(|row| table.row(row));
        let comparison = |comparison: &Comparison| {
            let [arch, place, published, simulated, deviation, ..] = &comparison.cells()[..] else {
                unreachable!()
            };
            format!("{arch}, {place}: {simulated} Gb/s; published {published}, which is {deviation} %\n")
        };
        let published: String = self.published.iter().map(comparison).collect();
        let validation = self.validation.as_ref().map(|validation| format!("\n{}", validation.render()));
        let validation = validation.unwrap_or_default();
        format!("{}\n\n{table}\n{LEGEND}\n{published}{validation}", self.conditions())
    }

    /// Writes the report, its figures and its page into `folder`, over what is there of them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let mut figures = figures(self);
        figures.splice(0..0, self.validation.iter().flat_map(Validation::figures));
        folder::write(folder, self, self.csv(), &figures, &page(self, &figures))
    }

    /// A line a point: the columns of the table, unrounded, and those of the comparison with real threads, if there is one.
    fn csv(&self) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let compared = self.validation.iter().flat_map(|_| Validation::csv_columns());
        writer.write_record(CSV_COLUMNS.map(str::to_owned).into_iter().chain(compared))?;
        for point in &self.points {
            let compared = self.validation.iter().flat_map(|validation| validation.csv_cells(&point.point));
            writer.write_record(point.cells(false).into_iter().chain(compared))?;
        }
        folder::written(writer)
    }
}

/// The names of the columns for programs, most of them as in JSON.
const CSV_COLUMNS: [&str; COLUMNS.len()] = [
    "number",
    "arch",
    "optimisations",
    "scaled",
    "cores",
    "pairs",
    "idle_vms",
    "seed",
    "throughput_gbps",
    "frames_per_s",
    "p50_us",
    "p99_us",
    "entries_per_frame",
    "interrupts_per_frame",
    "busy_cores",
    "memory_slowdown",
    "dropped",
    "hash",
    "used_up",
];

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use std::collections::BTreeSet;
    use std::fs;

    const PLAN: &str = "\
name = 'small'
title = 'Small'
shows = 'That it works.'
machine = { cores = 4, cores_per_cache = 2 }
run = { duration_ms = 1000 }
workload = { kind = 'requests', frame_bytes = 64 }
matrix = { arch = ['hyper-switch', 'vhost'], pairs = [1, 2] }
published = [{ arch = 'vhost', gbps = 5, source = 'x' }, { arch = 'vhost', pairs = 1, gbps = 2, source = 'y' }]
";

    /// The table as a person sees it, and what was published beneath it: the peak beside the highest of the curve.
    #[test]
    fn a_report_is_rendered() {
        let expected = "\
small, seed 1, costs opteron, 1000 ms after 50 ms of warm-up, steps of 20 us, ended early: not all is there

point  arch          optimisations  cost  cores  pairs  idle VMs  seed  Gb/s  frames/s  p50 us  p99 us  entries  interrupts  busy cores  copies x  dropped  trace             used up
    1  hyper-switch  all            -         4      1         0     1  1.00      1000     5.0     9.0    0.000       0.000        1.00      1.00        0  0000000000000001  all cores (100 % busy); senders' vCPUs (1 of 1); receivers' vCPUs (1 of 1)
    2  hyper-switch  all            -         4      2         0     1  2.00      1000     5.0     9.0    0.000       0.000        1.00      1.00        0  0000000000000002  all cores (100 % busy); senders' vCPUs (2 of 2); receivers' vCPUs (2 of 2)
    3  vhost         -              -         4      1         0     1  3.00      1000     5.0     9.0    0.000       0.000        1.00      1.00        0  0000000000000003  all cores (100 % busy); senders' vCPUs (1 of 1); receivers' vCPUs (1 of 1)
    4  vhost         -              -         4      2         0     1  4.00      1000     5.0     9.0    0.000       0.000        1.00      1.00        0  0000000000000004  all cores (100 % busy); senders' vCPUs (2 of 2); receivers' vCPUs (2 of 2)

";
        let mut report = report(PLAN);
        report.complete = false;
        let rendered = report.render();
        assert!(rendered.starts_with(expected), "{rendered}");
        let published = "\
vhost, peak, here at 2 pairs: 4.00 Gb/s; published 5, which is -20.0 %
vhost, at 1 pairs: 3.00 Gb/s; published 2, which is +50.0 %
";
        assert!(rendered.ends_with(published), "{rendered}");
    }

    /// Holds that CSV has each point under the names that JSON has too, and an empty cell for what is not there.
    #[test]
    fn csv_and_json_say_the_same() {
        let report = report(PLAN);
        let csv = report.csv().unwrap();
        let mut reader = csv::Reader::from_reader(csv.as_slice());
        let headers = reader.headers().unwrap().clone();
        let json = serde_json::to_value(&report).unwrap();
        let mut rows = 0;
        for (record, point) in reader.records().map(Result::unwrap).zip(json["points"].as_array().unwrap()) {
            for (name, cell) in headers.iter().zip(&record).filter(|(name, _)| *name != "used_up") {
                let value =
                    [&point[name], &point["outcome"][name]].into_iter().find(|value| !value.is_null());
                match value {
                    None => assert_eq!(cell, "", "{name}"),
                    Some(serde_json::Value::String(text)) => assert_eq!(cell, text, "{name}"),
                    Some(number) => assert_eq!(cell.parse::<f64>().ok(), number.as_f64(), "{name}"),
                }
            }
            rows += 1;
        }
        assert_eq!(rows, report.points.len());
    }

    /// Holds which files a report is.
    #[test]
    fn a_report_is_a_few_files() {
        let folder = tempfile::tempdir().unwrap();
        report(PLAN).write(folder.path()).unwrap();
        let names =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let expected = [
            "index.html",
            "latency_us.svg",
            "results.csv",
            "results.json",
            "time-hyper-switch-all.svg",
            "time-vhost.svg",
        ];
        assert_eq!(names.collect::<BTreeSet<_>>(), expected.map(str::to_owned).into());
    }
}
