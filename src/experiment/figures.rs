//! Which figures an experiment makes: as the paper's, a line an architecture over the number of pairs; and what each
//! set of optimisations gives, as bars.

use super::{ExperimentReport, Metric, Point, PointReport, Spread};
use crate::cli::{Arch, Workload};
use crate::optimisations::OptimisationSet;
use crate::page::Figure;
use crate::plot::{Bars, Lines, Value, distinct, groups, series};

/// What is shown over the number of pairs, where it was measured.
const OVER_PAIRS: [Metric; 5] =
    [Metric::Throughput, Metric::ThroughputPerCore, Metric::Transactions, Metric::P50, Metric::P99];
/// What is shown by sets of optimisations, where it was measured.
const ABLATION: [Metric; 3] = [Metric::Throughput, Metric::Transactions, Metric::P50];

const SPREAD: &str = "Points and bars are medians, error bars go from the lowest to the highest run";

/// All figures of the report, workload by workload.
pub(super) fn figures(report: &ExperimentReport) -> Vec<Figure> {
    let workloads = distinct(report.points.iter().map(|point| point.point.workload));
    let of_workload = |workload: Workload| {
        let points: Vec<_> = report.points.iter().filter(|point| point.point.workload == workload).collect();
        // Where throughput is measured, packets a second say the same.
        let told = |metric: &Metric| {
            *metric != Metric::Transactions || points.iter().all(|point| point.leading() == *metric)
        };
        let lines =
            OVER_PAIRS.into_iter().filter(told).filter_map(|metric| over_pairs(workload, metric, &points));
        let bars = ABLATION.into_iter().filter(told).filter_map(|metric| ablation(workload, metric, &points));
        lines.chain(bars).collect::<Vec<_>>()
    };
    workloads.into_iter().flat_map(of_workload).collect()
}

/// A line an architecture. Hyper-Switch is shown in its fullest form that was measured; the ablation shows the rest.
fn over_pairs(workload: Workload, metric: Metric, points: &[&PointReport]) -> Option<Figure> {
    let fullest = points.iter().filter_map(|point| point.point.optimisations).max_by_key(|set| set.len());
    let shown =
        points.iter().filter(|point| point.point.optimisations.is_none_or(|set| Some(set) == fullest));
    let shown = shown.filter_map(|point| {
        Some((point.point.system(), f64::from(point.point.pairs), value(point, metric)?))
    });
    let lines = Lines {
        title: format!("{}: {}", workload.name(), metric.axis()),
        x_axis: "number of VM pairs".to_owned(),
        y_axis: metric.axis().to_owned(),
        series: series(shown),
        marks: vec![],
    };
    (!lines.series.is_empty()).then(|| Figure {
        file: format!("{}-{}.svg", workload.name(), metric.key()),
        caption: format!("{}: {}, by the number of pairs of VMs. {SPREAD}", workload.name(), metric.axis()),
        svg: lines.to_svg(),
    })
}

/// A group of bars for each set of optimisations, in it one for each number of pairs; if there is more than one set.
fn ablation(workload: Workload, metric: Metric, points: &[&PointReport]) -> Option<Figure> {
    let measured =
        |point: &&PointReport| Some((point.point, point.point.optimisations?, value(point, metric)?));
    let mut shown: Vec<(Point, OptimisationSet, Value)> = points.iter().filter_map(measured).collect();
    shown.sort_by_key(|(point, set, _)| (set.len(), point.pairs));
    let name = |pairs: u16| if pairs == 1 { "1 pair".to_owned() } else { format!("{pairs} pairs") };
    let (groups, series) =
        groups(shown.iter().map(|(point, set, value)| (set.to_string(), name(point.pairs), *value)));
    let bars = Bars {
        title: format!("{}: {}, by optimisations", workload.name(), metric.axis()),
        x_axis: "optimisations that are on".to_owned(),
        y_axis: metric.axis().to_owned(),
        groups,
        series,
    };
    (bars.groups.len() > 1).then(|| Figure {
        file: format!("{}-ablation-{}.svg", workload.name(), metric.key()),
        caption: format!(
            "{}: {} of {}, by the optimisations that are on. {SPREAD}",
            workload.name(),
            metric.axis(),
            Arch::HyperSwitch.name()
        ),
        svg: bars.to_svg(),
    })
}

fn value(point: &PointReport, metric: Metric) -> Option<Value> {
    let Spread { median, min, max, .. } = point.metrics.get(&metric)?;
    Some(Value { middle: *median, low: *min, high: *max })
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    /// Holds which figures there are, that lines show each architecture once and Hyper-Switch in its fullest form,
    /// and that the ablation shows all of its forms and it alone.
    #[test]
    fn figures_show_what_was_measured() {
        let figures = figures(&report());
        let files: Vec<_> = figures.iter().map(|figure| figure.file.as_str()).collect();
        assert_eq!(files, ["stream-throughput_gbps.svg", "stream-ablation-throughput_gbps.svg"]);
        let [lines, bars] = &figures[..] else { unreachable!() };
        assert!(lines.svg.contains("hyper-switch (preempt,batch)") && lines.svg.contains("vhost"));
        assert!(!lines.svg.contains("(none)"));
        assert!(
            bars.svg.contains("preempt,batch") && bars.svg.contains("none") && bars.svg.contains("4 pairs")
        );
        assert!(!bars.svg.contains("vhost"));
    }

    /// Holds that there is no ablation of a single set.
    #[test]
    fn one_set_is_no_ablation() {
        let mut report = report();
        report.points.retain(|point| point.point.optimisations != Some(OptimisationSet::NONE));
        assert_eq!(figures(&report).len(), 1);
    }
}
