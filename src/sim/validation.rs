//! What real threads came to, beside the same as it was simulated.

use super::report::PointReport;
use crate::exit::{Failure, FailureKind};
use crate::experiment::{ExperimentReport, Metric, Spread};
use crate::page::Figure;
use crate::plot::{Bars, Rows, Value, distinct, groups};
use crate::table::{Column, Table};
use hyper_switch_sim::plan::Point;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Real points beside simulated ones, which were compared in one round or several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// The command that measured.
    pub command: String,
    /// How often all was calibrated, measured and simulated.
    pub rounds: usize,
    /// The round, numbered from 1, whose costs and simulated points the report has: the one in the middle, by the sum of
    /// all simulated throughputs.
    pub shown_round: usize,
    /// The points that are in both.
    pub points: Vec<Validated>,
    /// Half of the points deviate by no more, in percent.
    pub median_error_percent: f64,
    /// Pairs of points with as many VMs whose measurements lie apart, in the same order in each round.
    pub apart: usize,
    /// How many of these are in that order here, by the medians of what was simulated.
    pub in_order: usize,
}

/// A point, measured and simulated, over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validated {
    /// Where in the matrix it is.
    #[serde(flatten)]
    pub point: Point,
    /// Net throughput as measured, in Gb/s: all runs of all rounds.
    pub measured_gbps: Spread,
    /// As simulated, a sample a round.
    pub simulated_gbps: Spread,
    /// How much more that is than the median that was measured in the same round, in percent, a sample a round.
    pub error_percent: Spread,
    /// As measured, a round each.
    #[serde(skip)]
    measured_rounds: Vec<Spread>,
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
    /// Compares the points that are in both. Each round is what was measured and what was simulated, of the same points
    /// in all rounds.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn of(
        command: String,
        rounds: &[(&ExperimentReport, &[PointReport])],
    ) -> Result<Validation, Failure> {
        let points: Vec<_> = rounds
            .first()
            .into_iter()
            .flat_map(|(_, simulated)| simulated.iter())
            .filter_map(|point| Validated::of(point.point, rounds))
            .collect();
        let errors = points.iter().map(|point| point.error_percent.median.abs()).collect();
        let Some(Spread { median: median_error_percent, .. }) = Spread::of(errors) else {
            let message = "what was measured has no point of this plan with a throughput";
            return Err(Failure::new(FailureKind::Usage, message).with_help(
                "the plan's text says which `hyper-switch pair` command goes with it: sim PLAN --print",
            ));
        };
        let (mut apart, mut in_order) = (0, 0);
        for (at, one) in points.iter().enumerate() {
            for other in points[at + 1..].iter().filter(|other| other.point.pairs == one.point.pairs) {
                let (low, high) = match (one.is_below(other), other.is_below(one)) {
                    (true, _) => (one, other),
                    (_, true) => (other, one),
                    _ => continue,
                };
                apart += 1;
                in_order += usize::from(low.simulated_gbps.median < high.simulated_gbps.median);
            }
        }
        let rounds = rounds.len();
        Ok(Validation { command, rounds, shown_round: 1, points, median_error_percent, apart, in_order })
    }

    /// What it comes to, in a sentence.
    pub(super) fn sentence(&self) -> String {
        let over = match self.rounds {
            1 => String::new(),
            rounds => format!("over {rounds} rounds, "),
        };
        format!(
            "{over}half of the {} points deviate by no more than {:.1} %; of {} pairs of points with as many VMs whose \
             measurements lie apart, {} are in the same order",
            self.points.len(),
            self.median_error_percent,
            self.apart,
            self.in_order
        )
    }

    /// What the medians are of, and which round the rest of the report is; nothing to say of a single one.
    pub(super) fn note(&self) -> Option<String> {
        (self.rounds > 1).then(|| {
            format!(
                "Each error is the median over {} rounds of what was simulated beside what was measured in the same round. The \
                 costs and the other figures of this report are those of round {}, the one in the middle.",
                self.rounds, self.shown_round
            )
        })
    }

    /// The titles of the table's columns, and whether they are of words.
    pub(super) const COLUMNS: [(&str, bool); 8] = [
        ("optimisations", true),
        ("pairs", false),
        ("measured Gb/s", false),
        ("lowest to highest", false),
        ("simulated Gb/s", false),
        ("lowest to highest", false),
        ("error %", false),
        ("lowest to highest", false),
    ];

    /// The rows of the table.
    pub(super) fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.points.iter().map(|Validated { point, measured_gbps, simulated_gbps, error_percent, .. }| {
            let gbps = |Spread { median, min, max, .. }: &Spread| {
                [format!("{median:.2}"), format!("{min:.2} to {max:.2}")]
            };
            let Spread { median, min, max, .. } = error_percent;
            let error = [format!("{median:+.1}"), format!("{min:+.1} to {max:+.1}")];
            let place = [set(point), point.pairs.to_string()];
            [place, gbps(measured_gbps), gbps(simulated_gbps), error].concat()
        })
    }

    /// The names of the columns for programs: those of JSON, each with its minimum and maximum over the rounds.
    pub(super) fn csv_columns() -> impl Iterator<Item = String> {
        let keys = ["measured_gbps", "simulated_gbps", "error_percent"];
        keys.into_iter().flat_map(|key| ["", "_min", "_max"].map(|end| format!("{key}{end}")))
    }

    /// What a point has in these columns; nothing in each if it was not measured.
    pub(super) fn csv_cells(&self, point: &Point) -> Vec<String> {
        let Some(found) = self.points.iter().find(|validated| validated.point == *point) else {
            return Self::csv_columns().map(|_| String::new()).collect();
        };
        let Validated { measured_gbps, simulated_gbps, error_percent, .. } = found;
        let spreads = [measured_gbps, simulated_gbps, error_percent].into_iter();
        spreads
            .flat_map(|spread| [spread.median, spread.min, spread.max])
            .map(|value| value.to_string())
            .collect()
    }

    /// The table and the sentence, as text that ends with a newline.
    pub(super) fn render(&self) -> String {
        let column = |(title, is_words)| if is_words { Column::left(title) } else { Column::right(title) };
        let mut table = Table::new(Self::COLUMNS.map(column));
        self.rows().for_each(|row| table.row(row.try_into().expect("a cell for each column")));
        let note = self.note().map_or_else(String::new, |note| format!("{note}\n"));
        format!("beside what was measured by: {}\n\n{table}\n{}\n{note}", self.command, self.sentence())
    }

    /// A figure for each number of pairs: what was measured and what was simulated, side by side.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let figure = |pairs: u16| {
            let points = self.points.iter().filter(|validated| validated.point.pairs == pairs);
            let errors = points.clone().map(|validated| validated.error_percent.median.abs()).collect();
            let values = points.flat_map(|validated| {
                let value =
                    |spread: &Spread| Value { middle: spread.median, low: spread.min, high: spread.max };
                let name = set(&validated.point);
                [
                    (name.clone(), "measured".to_owned(), value(&validated.measured_gbps)),
                    (name, "simulated".to_owned(), value(&validated.simulated_gbps)),
                ]
            });
            let (groups, series) = groups(values);
            let title = format!("Measured and simulated, {}", words(pairs));
            let bars = Bars {
                title,
                x_axis: format!(
                    "optimisations that are on; half of all points deviate by no more than {:.1} %",
                    self.median_error_percent
                ),
                y_axis: "net throughput (Gb/s)".to_owned(),
                groups,
                series,
            };
            let sentence = self.sentence();
            let caption = format!(
                "Medians, and the lowest and highest {}. Of these points half deviate by no more than {:.1} %. Of all points: \
                 {sentence}",
                if self.rounds == 1 { "run" } else { "of the rounds" },
                Spread::of(errors).map_or(f64::NAN, |errors| errors.median),
            );
            Figure { file: format!("measured-{pairs}.svg"), caption, svg: bars.to_svg() }
        };
        let pairs = distinct(self.points.iter().map(|validated| validated.point.pairs));
        pairs.into_iter().map(figure).chain([self.errors()]).collect()
    }

    /// How much each point deviates: of the slow ones, the other figures hardly show it.
    fn errors(&self) -> Figure {
        let rows = distinct(self.points.iter().map(|validated| set(&validated.point)));
        let bars = |pairs: u16| {
            let error = |row: &String| {
                let is_meant = |of: &&Validated| of.point.pairs == pairs && set(&of.point) == *row;
                self.points.iter().find(is_meant).map_or(0.0, |of| of.error_percent.median)
            };
            (words(pairs), rows.iter().map(error).collect())
        };
        let series = distinct(self.points.iter().map(|validated| validated.point.pairs));
        let series = series.into_iter().map(bars).collect();
        let figure = Rows {
            title: "What is simulated beyond what is measured".to_owned(),
            x_axis: "error (%)".to_owned(),
            rows,
            series,
        };
        let caption = format!("The error of each point: {}", self.sentence());
        Figure { file: "errors.svg".to_owned(), caption, svg: figure.to_svg() }
    }
}

impl Validated {
    /// What the rounds came to at a point; nothing if one of them has no throughput there.
    fn of(point: Point, rounds: &[(&ExperimentReport, &[PointReport])]) -> Option<Validated> {
        let is_real = |real: &&crate::experiment::PointReport| {
            (real.point.arch.name(), real.point.optimisations, real.point.pairs)
                == (point.arch.name(), point.optimisations, point.pairs)
        };
        let throughputs = |(measured, simulated): &(&ExperimentReport, &[PointReport])| {
            let real = measured.points.iter().find(is_real)?.metrics.get(&Metric::Throughput)?;
            let simulated = simulated.iter().find(|simulated| simulated.point == point)?;
            Some((real.clone(), simulated.throughput_gbps))
        };
        let (measured_rounds, simulated): (Vec<Spread>, Vec<f64>) =
            rounds.iter().map(throughputs).collect::<Option<_>>()?;
        let error = |(real, simulated): (&Spread, &f64)| 100.0 * (simulated / real.median - 1.0);
        let errors = measured_rounds.iter().zip(&simulated).map(error).collect();
        let runs = measured_rounds.iter().flat_map(|real| real.samples.iter().copied()).collect();
        Some(Validated {
            point,
            measured_gbps: Spread::of(runs)?,
            simulated_gbps: Spread::of(simulated)?,
            error_percent: Spread::of(errors)?,
            measured_rounds,
        })
    }

    /// Whether in each round all of its runs were slower than all of the other's.
    fn is_below(&self, other: &Validated) -> bool {
        self.measured_rounds.iter().zip(&other.measured_rounds).all(|(one, other)| one.max < other.min)
    }
}

fn words(pairs: u16) -> String {
    format!("{pairs} pair{}", if pairs == 1 { "" } else { "s" })
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
        let validation = Validation::of("pair".to_owned(), &[(&real, &simulated)]).unwrap();
        let errors: Vec<_> = validation.points.iter().map(|point| point.error_percent.median).collect();
        assert_eq!(errors, [-75.0, 0.0, 50.0, 0.0]);
        // In the middle between 0 and 50.
        assert_eq!(validation.median_error_percent, 25.0);
        // With one pair they lie apart, and the other way round; with two they overlap.
        assert_eq!((validation.apart, validation.in_order), (1, 0));
        let rendered = validation.render();
        let row = "none               1           2.00       1.00 to 3.00            3.00       3.00 to 3.00    +50.0     +50.0 to +50.0";
        assert!(rendered.contains(row), "{rendered}");
        assert!(!rendered.contains("round"), "{rendered}");
        let files: Vec<_> = validation.figures().into_iter().map(|figure| figure.file).collect();
        assert_eq!(files, ["measured-1.svg", "measured-2.svg", "errors.svg"]);
    }

    /// Holds that rounds on a machine whose speed halves between them are compared each by itself: errors are the same
    /// although measurements spread by a factor of two, and what is ahead in each round lies apart although they overlap.
    #[test]
    fn rounds_are_compared_each_by_itself() {
        let round = |speed: f64, none_1: f64| {
            let mut simulated = report(PLAN).points;
            simulated.iter_mut().for_each(|point| point.throughput_gbps *= speed);
            let points = [("all", 1, 0.5), ("none", 1, none_1), ("all", 2, 2.0), ("none", 2, 5.0)];
            (measured(&points.map(|(set, pairs, gbps)| (set, pairs, [gbps * speed; 3]))), simulated)
        };
        let of = |rounds: &[(ExperimentReport, Vec<PointReport>)]| {
            let rounds: Vec<_> =
                rounds.iter().map(|(real, simulated)| (real, simulated.as_slice())).collect();
            Validation::of("sim".to_owned(), &rounds).unwrap()
        };
        let rounds = [round(1.0, 0.75), round(0.5, 0.75), round(1.0, 1.5)];
        let validation = of(&rounds);
        let errors = validation.points.iter().map(|point| point.error_percent.median);
        let rounded: Vec<_> = errors.map(f64::round).collect();
        assert_eq!(rounded, [100.0, 0.0, 300.0, -20.0]);
        assert_eq!(validation.points[2].error_percent.min.round(), 100.0, "of the third round");
        assert_eq!(validation.median_error_percent.round(), 60.0);
        let all_1 = &validation.points[0];
        assert_eq!((all_1.measured_gbps.min, all_1.measured_gbps.max), (0.25, 0.5));
        assert_eq!((all_1.simulated_gbps.median, all_1.simulated_gbps.samples.len()), (1.0, 3));
        assert_eq!((validation.apart, validation.in_order), (2, 2));
        let cells = validation.csv_cells(&all_1.point);
        assert_eq!(cells[..4], ["0.5", "0.25", "0.5", "1"]);
        let elsewhere = Point { pairs: 7, ..all_1.point };
        assert_eq!(validation.csv_cells(&elsewhere), [const { String::new() }; 9]);
        // With a round in which the other one is ahead, they do not lie apart.
        let validation = of(&[rounds, [round(1.0, 0.25), round(1.0, 1.0), round(1.0, 1.0)]].concat());
        assert_eq!((validation.apart, validation.in_order), (1, 1));
        let rendered = validation.render();
        assert!(
            rendered.contains("over 6 rounds, half of the 4 points deviate by no more than"),
            "{rendered}"
        );
        assert!(rendered.contains("are those of round 1, the one in the middle."), "{rendered}");
    }

    /// Holds that nothing in common, and a file that is something else, are refused.
    #[test]
    fn nothing_to_compare_is_refused() {
        let nothing =
            Validation::of(String::new(), &[(&measured(&[("all", 7, [1.0; 3])]), &report(PLAN).points)]);
        assert_eq!(nothing.unwrap_err().kind, FailureKind::Usage);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        assert_eq!(read(&path).unwrap_err().kind, FailureKind::Configuration);
        fs::write(&path, "{}").unwrap();
        assert!(read(&path).unwrap_err().message.contains("results.json: missing field"));
    }
}
