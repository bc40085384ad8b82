//! What real threads came to, beside the same as it was simulated.

use super::report::PointReport;
use crate::exit::{Failure, FailureKind};
use crate::experiment::{ExperimentReport, Metric, Spread};
use crate::page::Figure;
use crate::plot::{Bars, Value, distinct, groups};
use crate::table::{Column, Table};
use hyper_switch_sim::plan::Point;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Real points beside simulated ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// The command that measured.
    pub command: String,
    /// The points that are in both.
    pub points: Vec<Validated>,
    /// Half of the points deviate by no more, in percent.
    pub median_error_percent: f64,
    /// Pairs of points with as many VMs whose measurements lie apart, and how many of these are in the same order here.
    pub apart: usize,
    /// See above.
    pub in_order: usize,
}

/// A point, measured and simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validated {
    /// Where in the matrix it is.
    #[serde(flatten)]
    pub point: Point,
    /// Net throughput as measured, in Gb/s.
    pub measured_gbps: Spread,
    /// As simulated.
    pub simulated_gbps: f64,
    /// How much more that is, in percent.
    pub error_percent: f64,
}

/// Reads what `pair --report` has written.
///
/// # Errors
/// The file cannot be read, or is something else.
pub fn read(path: &Path) -> Result<ExperimentReport, Failure> {
    let refused = |why: String| {
        let message = format!("{}: {why}", path.display());
        Failure::new(FailureKind::Configuration, message)
            .with_help("--measured takes the results.json of `hyper-switch pair --report DIR`")
    };
    let text = fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| refused(error.to_string()))
}

impl Validation {
    /// Compares the points that are in both.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn of(measured: &ExperimentReport, simulated: &[PointReport]) -> Result<Validation, Failure> {
        let validated = |point: &PointReport| {
            let is_same = |real: &&crate::experiment::PointReport| {
                (real.point.arch.name(), real.point.optimisations, real.point.pairs)
                    == (point.point.arch.name(), point.point.optimisations, point.point.pairs)
            };
            let real = measured.points.iter().find(is_same)?;
            let spread = real.metrics.get(&Metric::Throughput)?;
            Some(Validated {
                point: point.point,
                measured_gbps: spread.clone(),
                simulated_gbps: point.throughput_gbps,
                error_percent: 100.0 * (point.throughput_gbps / spread.median - 1.0),
            })
        };
        let points: Vec<_> = simulated.iter().filter_map(validated).collect();
        if points.is_empty() {
            let message = "what was measured has no point of this plan with a throughput";
            return Err(Failure::new(FailureKind::Usage, message).with_help(
                "the plan's text says which `hyper-switch pair` command goes with it: sim PLAN --print",
            ));
        }
        let mut errors: Vec<_> = points.iter().map(|point| point.error_percent.abs()).collect();
        errors.sort_by(f64::total_cmp);
        let (mut apart, mut in_order) = (0, 0);
        for (at, one) in points.iter().enumerate() {
            for other in points[at + 1..].iter().filter(|other| other.point.pairs == one.point.pairs) {
                let (low, high) = if one.measured_gbps.median <= other.measured_gbps.median {
                    (one, other)
                } else {
                    (other, one)
                };
                if low.measured_gbps.max < high.measured_gbps.min {
                    apart += 1;
                    in_order += usize::from(low.simulated_gbps < high.simulated_gbps);
                }
            }
        }
        let median_error_percent = errors[errors.len() / 2];
        Ok(Validation { command: measured.command.clone(), points, median_error_percent, apart, in_order })
    }

    /// What it comes to, in a sentence.
    pub(super) fn sentence(&self) -> String {
        format!(
            "half of the {} points deviate by no more than {:.1} %; of {} pairs of points with as many VMs whose measurements \
             lie apart, {} are in the same order",
            self.points.len(),
            self.median_error_percent,
            self.apart,
            self.in_order
        )
    }

    /// The titles of the table's columns, and whether they are of words.
    pub(super) const COLUMNS: [(&str, bool); 7] = [
        ("optimisations", true),
        ("pairs", false),
        ("measured Gb/s", false),
        ("lowest", false),
        ("highest", false),
        ("simulated Gb/s", false),
        ("error %", false),
    ];

    /// The rows of the table.
    pub(super) fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.points.iter().map(|Validated { point, measured_gbps, simulated_gbps, error_percent }| {
            let Spread { median, min, max, .. } = measured_gbps;
            vec![
                set(point),
                point.pairs.to_string(),
                format!("{median:.2}"),
                format!("{min:.2}"),
                format!("{max:.2}"),
                format!("{simulated_gbps:.2}"),
                format!("{error_percent:+.1}"),
            ]
        })
    }

    /// The table and the sentence, as text that ends with a newline.
    pub(super) fn render(&self) -> String {
        let column = |(title, is_words)| if is_words { Column::left(title) } else { Column::right(title) };
        let mut table = Table::new(Self::COLUMNS.map(column));
        self.rows().for_each(|row| table.row(row.try_into().expect("a cell for each column")));
        format!("beside what was measured by: {}\n\n{table}\n{}\n", self.command, self.sentence())
    }

    /// A figure for each number of pairs: what was measured and what was simulated, side by side.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let figure = |pairs: u16| {
            let points = self.points.iter().filter(|validated| validated.point.pairs == pairs);
            let values = points.flat_map(|validated| {
                let Spread { median, min, max, .. } = validated.measured_gbps;
                let name = set(&validated.point);
                [
                    (name.clone(), "measured".to_owned(), Value { middle: median, low: min, high: max }),
                    (name, "simulated".to_owned(), Value::exact(validated.simulated_gbps)),
                ]
            });
            let (groups, series) = groups(values);
            let title = format!("Measured and simulated, {pairs} pair{}", if pairs == 1 { "" } else { "s" });
            let bars = Bars {
                title,
                x_axis: "optimisations that are on".to_owned(),
                y_axis: "net throughput (Gb/s)".to_owned(),
                groups,
                series,
            };
            let sentence = self.sentence();
            let caption = format!(
                "With {pairs} pairs. Error bars go from the lowest to the highest of the measured runs. Of all points: {sentence}"
            );
            Figure { file: format!("measured-{pairs}.svg"), caption, svg: bars.to_svg() }
        };
        distinct(self.points.iter().map(|validated| validated.point.pairs)).into_iter().map(figure).collect()
    }
}

fn set(point: &Point) -> String {
    point.optimisations.map_or_else(|| point.arch.name().to_owned(), |set| set.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    const PLAN: &str = "\
name = 'small'
title = 'Small'
shows = 'That it works.'
machine = { cores = 4, cores_per_cache = 2 }
run = { duration_ms = 1000 }
workload = { kind = 'datagrams', frame_bytes = 64 }
matrix = { arch = ['hyper-switch'], optimisations = ['all', 'none'], pairs = [1, 2] }
";

    /// A measurement in which the throughputs of these sets of optimisations and numbers of pairs spread so.
    fn measured(points: &[(&str, u16, [f64; 3])]) -> ExperimentReport {
        let mut report = crate::experiment::tests::report();
        let template = report.points[0].clone();
        let point = |(set, pairs, samples): &(&str, u16, [f64; 3])| {
            let mut point = template.clone();
            point.point.arch = crate::cli::Arch::HyperSwitch;
            point.point.optimisations = Some(set.parse().unwrap());
            point.point.pairs = *pairs;
            point.metrics.insert(Metric::Throughput, Spread::of(samples.to_vec()).unwrap());
            point
        };
        report.points = points.iter().map(point).collect();
        report
    }

    /// Holds that points are compared by what they are, and ordered where measurements lie apart. The points of the
    /// simulated report come to 1, 2, 3 and 4 Gb/s.
    #[test]
    fn points_are_compared() {
        let simulated = report(PLAN).points;
        let all = simulated
            .iter()
            .map(|point| (point.point.optimisations, point.point.pairs, point.throughput_gbps));
        let names: Vec<_> = all.map(|(set, pairs, gbps)| (set.unwrap().to_string(), pairs, gbps)).collect();
        let expected = [("all", 1, 1.0), ("all", 2, 2.0), ("none", 1, 3.0), ("none", 2, 4.0)];
        assert_eq!(names, expected.map(|(set, pairs, gbps)| (set.to_owned(), pairs, gbps)));
        let real = measured(&[
            ("none", 1, [1.0, 2.0, 3.0]),
            ("all", 1, [3.5, 4.0, 4.5]),
            ("none", 2, [4.0, 4.0, 4.0]),
            ("preempt", 2, [1.0, 1.0, 1.0]),
            ("all", 2, [1.0, 2.0, 4.0]),
        ]);
        let validation = Validation::of(&real, &simulated).unwrap();
        let errors: Vec<_> = validation.points.iter().map(|point| point.error_percent).collect();
        assert_eq!(errors, [-75.0, 0.0, 50.0, 0.0]);
        assert_eq!(validation.median_error_percent, 50.0);
        // With one pair they lie apart, and the other way round; with two they overlap.
        assert_eq!((validation.apart, validation.in_order), (1, 0));
        let rendered = validation.render();
        assert!(
            rendered
                .contains("none               1           2.00    1.00     3.00            3.00    +50.0"),
            "{rendered}"
        );
        assert_eq!(validation.figures().len(), 2);
    }

    /// Holds that nothing in common, and a file that is something else, are refused.
    #[test]
    fn nothing_to_compare_is_refused() {
        let nothing = Validation::of(&measured(&[("all", 7, [1.0; 3])]), &report(PLAN).points);
        assert_eq!(nothing.unwrap_err().kind, FailureKind::Usage);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        assert_eq!(read(&path).unwrap_err().kind, FailureKind::Configuration);
        fs::write(&path, "{}").unwrap();
        assert!(read(&path).unwrap_err().message.contains("results.json: missing field"));
    }
}
