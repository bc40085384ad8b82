//! Which figures a plan makes: its curves, what sets of optimisations give, where the cores' time went, and what scaled
//! costs change.

use super::{PointReport, SimReport};
use crate::page::Figure;
use crate::plot::{Bars, Lines, Mark, Rows, Stacks, Value, distinct, groups, series};
use hyper_switch_sim::Account;
use hyper_switch_sim::plan::{Point, Scaled};
use hyper_switch_sim::scenario::Arch;

/// So many curves are told apart in one figure; more sets of optimisations are shown as bars.
const MOST_CURVES: usize = 6;
/// A scaled cost that changes the throughput by less is not shown, in percent.
const LEAST_CHANGE: f64 = 1.0;
/// Nor is one that changes it by less than so many standard deviations of the difference of two means of seeds.
const DEVIATIONS: f64 = 2.0;

/// What a plan's points go along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    Cores,
    IdleVms,
    Pairs,
}

impl Along {
    /// The first thing of which there are several values.
    pub(super) fn of(points: &[PointReport]) -> Along {
        let differs = |along: &Along| {
            let mut places = points.iter().map(|point| along.place(&point.point));
            let first = places.next();
            places.any(|place| Some(place) != first)
        };
        [Along::Cores, Along::IdleVms].into_iter().find(differs).unwrap_or(Along::Pairs)
    }

    /// Where a point is.
    pub(super) fn place(self, point: &Point) -> u16 {
        match self {
            Along::Cores => point.cores,
            Along::IdleVms => point.idle_vms,
            Along::Pairs => point.pairs,
        }
    }

    /// What stands at the axis.
    pub(super) fn axis(self) -> &'static str {
        match self {
            Along::Cores => "number of cores",
            Along::IdleVms => "number of idle VMs",
            Along::Pairs => "number of VM pairs",
        }
    }

    /// A place, in words.
    fn words(self, place: u16) -> String {
        let one = match self {
            Along::Cores => "core",
            Along::IdleVms => "idle VM",
            Along::Pairs => "pair",
        };
        format!("{place} {one}{}", if place == 1 { "" } else { "s" })
    }
}

/// What is shown of each point.
struct Shown {
    file: &'static str,
    axis: &'static str,
    /// What its spread is.
    note: &'static str,
    value: fn(&PointReport) -> Value,
}

const THROUGHPUT: Shown = Shown {
    file: "throughput_gbps",
    axis: "net throughput (Gb/s)",
    note: "",
    value: |point| Value::exact(point.throughput_gbps),
};

const BUSY: Shown = Shown {
    file: "busy_cores",
    axis: "cores at work",
    note: "",
    value: |point| Value::exact(point.busy_cores),
};

const LATENCY: Shown = Shown {
    file: "latency_us",
    axis: "latency (µs)",
    note: ". Points and bars are medians, error bars go up to the 99th percentile",
    value: |point| {
        let p50 = point.p50_us.unwrap_or(f64::NAN);
        Value { middle: p50, low: p50, high: point.p99_us.unwrap_or(p50) }
    },
};

/// All figures of the report.
pub(super) fn figures(report: &SimReport) -> Vec<Figure> {
    let along = Along::of(&report.points);
    let plain: Vec<_> = report.points.iter().filter(|point| point.point.scaled.is_none()).collect();
    let systems = distinct(plain.iter().map(|point| point.point.system()));
    let places = distinct(plain.iter().map(|point| along.place(&point.point)));
    let shown = if plain.iter().any(|point| point.p50_us.is_some()) { LATENCY } else { THROUGHPUT };
    let mut figures = Vec::new();
    if systems.len() > MOST_CURVES {
        figures.push(ablation(report, along, &shown, &plain));
        figures.extend(places.iter().map(|place| time_by_set(along, *place, &plain)));
    } else if places.len() > 1 {
        figures.push(curves(report, along, &shown, &plain));
        if along == Along::IdleVms {
            figures.push(curves(report, along, &BUSY, &plain));
        }
        figures.extend(systems.iter().map(|system| time_along(along, system, &plain)));
    }
    let weighed = systems.iter().flat_map(|system| places.iter().map(move |place| (system, *place)));
    figures.extend(weighed.filter_map(|(system, place)| sensitivity(along, system, place, &report.points)));
    figures
}

/// The values of points that differ by their seed alone, by what they are: the median, and the spread of all.
fn merged<K: PartialEq + Clone>(values: impl Iterator<Item = (K, Value)>) -> Vec<(K, Value)> {
    let values: Vec<_> = values.collect();
    let merge = |key: K| {
        let of_key: Vec<_> = values.iter().filter(|(of, _)| *of == key).map(|(_, value)| *value).collect();
        let mut middles: Vec<_> = of_key.iter().map(|value| value.middle).collect();
        middles.sort_by(f64::total_cmp);
        let value = Value {
            middle: middles[middles.len() / 2],
            low: of_key.iter().map(|value| value.low).fold(f64::INFINITY, f64::min),
            high: of_key.iter().map(|value| value.high).fold(f64::NEG_INFINITY, f64::max),
        };
        (key, value)
    };
    distinct(values.iter().map(|(key, _)| key.clone())).into_iter().map(merge).collect()
}

/// A sentence about error bars, if there are any because of seeds.
fn of_seeds(points: &[&PointReport]) -> String {
    match distinct(points.iter().map(|point| point.point.seed)).len() {
        1 => String::new(),
        seeds => format!(". Medians of {seeds} seeds, with what is lowest and highest"),
    }
}

/// A line a system, and what was published beside it.
fn curves(report: &SimReport, along: Along, shown: &Shown, points: &[&PointReport]) -> Figure {
    let values =
        merged(points.iter().map(|point| {
            ((point.point.system(), f64::from(along.place(&point.point))), (shown.value)(point))
        }));
    let series = series(values.into_iter().map(|((system, place), value)| (system, place, value)));
    let curve_of = |arch: Arch| {
        let is_of = |point: &&&PointReport| point.point.arch == arch;
        let fullest =
            points.iter().filter(is_of).max_by_key(|point| point.point.optimisations.map(|set| set.len()))?;
        series.iter().position(|(name, _)| *name == fullest.point.system())
    };
    let published = || report.plan.published.iter().filter(|_| shown.file == THROUGHPUT.file);
    let marks: Vec<_> = published()
        .filter_map(|published| {
            let (kind, x) = match published.pairs {
                Some(_) if along != Along::Pairs => return None,
                Some(pairs) => ("published", Some(f64::from(pairs))),
                None => ("published peak", None),
            };
            let name = format!("{kind}: {}", published.gbps);
            Some(Mark { name, series: curve_of(published.arch)?, x, y: published.gbps })
        })
        .collect();
    let mut caption =
        format!("{}, by the {}{}{}", sentence(shown.axis), along.axis(), shown.note, of_seeds(points));
    if !marks.is_empty() {
        caption.push_str(". Dashed, or hollow: what was published, in the colour of its curve");
    }
    for published in published() {
        caption.push_str(&format!(
            "; {} {} Gb/s: {}",
            published.arch.name(),
            published.gbps,
            published.source.trim_end_matches('.')
        ));
    }
    let lines = Lines {
        title: report.plan.title.clone(),
        x_axis: along.axis().to_owned(),
        y_axis: shown.axis.to_owned(),
        series,
        marks,
    };
    Figure { file: format!("{}.svg", shown.file), caption, svg: lines.to_svg() }
}

/// A group of bars for each set of optimisations, in it one for each place.
fn ablation(report: &SimReport, along: Along, shown: &Shown, points: &[&PointReport]) -> Figure {
    let values =
        merged(points.iter().map(|point| {
            ((set_of(&point.point), along.words(along.place(&point.point))), (shown.value)(point))
        }));
    let (groups, series) = groups(values.into_iter().map(|((set, place), value)| (set, place, value)));
    let bars = Bars {
        title: report.plan.title.clone(),
        x_axis: "optimisations that are on".to_owned(),
        y_axis: shown.axis.to_owned(),
        groups,
        series,
    };
    Figure {
        file: format!("ablation-{}.svg", shown.file),
        caption: format!(
            "{}, by the optimisations that are on{}{}",
            sentence(shown.axis),
            shown.note,
            of_seeds(points)
        ),
        svg: bars.to_svg(),
    }
}

/// The optimisations that are on; for an architecture without, its name.
fn set_of(point: &Point) -> String {
    point.optimisations.map_or_else(|| point.arch.name().to_owned(), |set| set.to_string())
}

/// Where the cores' time went along one curve.
fn time_along(along: Along, system: &str, points: &[&PointReport]) -> Figure {
    let of_system = points.iter().filter(|point| point.point.system() == *system).copied();
    let stacks = stacks(
        format!("{system}: where the cores' time went"),
        along.axis(),
        of_system.map(|point| (along.place(&point.point).to_string(), point)).collect(),
    );
    Figure {
        file: format!("time-{}.svg", file_name(system)),
        caption: format!("Where the time of all cores went, in cores: {system}, by the {}", along.axis()),
        svg: stacks.to_svg(),
    }
}

/// A system's name, as a part of a file's.
fn file_name(system: &str) -> String {
    system.replace([' ', ')'], "").replace(['(', ','], "-")
}

/// Where the cores' time went at one place with each set of optimisations.
fn time_by_set(along: Along, place: u16, points: &[&PointReport]) -> Figure {
    let there = points.iter().filter(|point| along.place(&point.point) == place).copied();
    let words = along.words(place);
    let stacks = stacks(
        format!("{words}: where the cores' time went"),
        "optimisations that are on",
        there.map(|point| (set_of(&point.point), point)).collect(),
    );
    Figure {
        file: format!("time-{place}.svg"),
        caption: format!(
            "Where the time of all cores went, in cores: {words}, by the optimisations that are on"
        ),
        svg: stacks.to_svg(),
    }
}

/// A pile for each name: the cores' time by account, as the mean of its points.
fn stacks(title: String, x_axis: &str, points: Vec<(String, &PointReport)>) -> Stacks {
    let groups = distinct(points.iter().map(|(name, _)| name.clone()));
    let cores = |point: &PointReport, account: Account| {
        point.outcome.share(account) * point.outcome.cores_ns.len() as f64
    };
    let part = |account: &Account| {
        let height = |group: &String| {
            mean(points.iter().filter(|(name, _)| name == group).map(|(_, point)| cores(point, *account)))
        };
        (account.name().replace('_', " "), groups.iter().map(height).collect())
    };
    Stacks {
        title,
        x_axis: x_axis.to_owned(),
        y_axis: "cores at work".to_owned(),
        // All of them, lest a colour be another account in another figure.
        parts: Account::ALL.iter().map(part).collect(),
        groups,
    }
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count().max(1) as f64
}

/// How the throughput of one system at one place changes with each cost that is scaled, those first that change it most;
/// none if none is.
fn sensitivity(along: Along, system: &str, place: u16, points: &[PointReport]) -> Option<Figure> {
    let is_of = |point: &&PointReport| point.point.system() == *system && along.place(&point.point) == place;
    let of_system = || points.iter().filter(is_of);
    let with = |scaled: Option<Scaled>| {
        let of_cost = of_system().filter(move |point| point.point.scaled == scaled);
        of_cost.map(|point| point.throughput_gbps)
    };
    let plain_gbps = mean(with(None));
    let changes: Vec<_> = distinct(of_system().filter_map(|point| point.point.scaled))
        .into_iter()
        .map(|scaled| {
            let change = 100.0 * (mean(with(Some(scaled))) / plain_gbps - 1.0);
            (scaled.row.to_string(), scaled.factor, change)
        })
        .collect();
    // By as much the means of some seeds differ from those of others.
    let seeds = with(None).count() as f64;
    let variance =
        mean(with(None).map(|gbps| (gbps / plain_gbps - 1.0).powi(2))) * seeds / (seeds - 1.0).max(1.0);
    let least = (100.0 * DEVIATIONS * (2.0 * variance / seeds).sqrt()).max(LEAST_CHANGE);
    let weight = |row: &String| {
        changes.iter().filter(|(of, ..)| of == row).map(|(.., change)| change.abs()).fold(0.0, f64::max)
    };
    let all = distinct(changes.iter().map(|(row, ..)| row.clone()));
    let mut rows: Vec<_> = all.iter().filter(|row| weight(row) >= least).cloned().collect();
    rows.sort_by(|one, other| weight(other).total_cmp(&weight(one)));
    let mut factors = distinct(changes.iter().map(|(_, factor, _)| *factor));
    factors.sort_by(f64::total_cmp);
    let bars = |factor: f64| {
        let bar = |row: &String| {
            let found = changes.iter().find(|(of, by, _)| of == row && *by == factor);
            found.map_or(0.0, |(.., change)| *change)
        };
        (format!("cost x {factor}"), rows.iter().map(bar).collect())
    };
    let series = factors.into_iter().map(bars).collect();
    let figure = Rows {
        title: format!("{system}, {}: what each cost weighs", along.words(place)),
        x_axis: "change of net throughput (%)".to_owned(),
        series,
        rows: rows.clone(),
    };
    (!all.is_empty()).then(|| Figure {
        file: format!("sensitivity-{}-{place}.svg", file_name(system)),
        caption: format!(
            "How much the net throughput of {system} with {} changes if one cost is another. {} of {} costs change \
             it by less than {least:.1} %, within which is what chance makes of it, and are not shown",
            along.words(place),
            all.len() - rows.len(),
            all.len()
        ),
        svg: figure.to_svg(),
    })
}

/// What was used up along each curve: the curve, its part, and what it was there.
pub(super) fn used_up_along(report: &SimReport) -> Vec<[String; 3]> {
    let along = Along::of(&report.points);
    // One seed tells it as well as all.
    let is_plain =
        |point: &&PointReport| point.point.scaled.is_none() && point.point.seed == report.plan.seed;
    let plain: Vec<_> = report.points.iter().filter(is_plain).collect();
    let names = |point: &PointReport| point.used_up.iter().map(|limit| limit.name()).collect::<Vec<_>>();
    let mut ranges = Vec::new();
    for system in distinct(plain.iter().map(|point| point.point.system())) {
        let of_system: Vec<_> = plain.iter().filter(|point| point.point.system() == system).collect();
        for range in of_system.chunk_by(|one, other| names(one) == names(other)) {
            let [first, .., last] = [range[0], range[range.len() - 1]];
            let places = [first, last].map(|point| along.place(&point.point));
            let place = match places {
                [from, to] if from == to => along.words(to),
                [from, to] => format!("{from} to {}", along.words(to)),
            };
            let words = match (first.used_up(), last.used_up()) {
                (one, other) if one == other => one,
                (one, other) => format!("{one} … {other}"),
            };
            ranges.push([system.clone(), place, words]);
        }
    }
    ranges
}

/// With a capital.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::super::text;
    use super::*;

    fn files(plan: &str) -> Vec<String> {
        figures(&report(&text(plan).unwrap())).into_iter().map(|figure| figure.file).collect()
    }

    /// Holds which figures each form of a plan makes: curves and where the time went along each; bars where there are more
    /// sets of optimisations than curves can show; what scaled costs change.
    #[test]
    fn figures_are_by_what_differs() {
        let systems = ["hyper-switch-all", "driver-domain", "vhost"];
        let curves = |file: &str| {
            let times = systems.map(|system| format!("time-{system}.svg"));
            [file.to_owned()].into_iter().chain(times).collect::<Vec<_>>()
        };
        for plan in ["fig2", "many-core", "oversubscription"] {
            assert_eq!(files(plan), curves("throughput_gbps.svg"), "{plan}");
        }
        assert_eq!(files("idle-vms")[..2], ["throughput_gbps.svg", "busy_cores.svg"]);
        assert_eq!(files("latency-blocked")[..2], ["latency_us.svg", "time-hyper-switch-all.svg"]);
        assert_eq!(
            files("ablation"),
            ["ablation-throughput_gbps", "time-1", "time-4", "time-8", "time-16"].map(|n| format!("{n}.svg"))
        );
        let sensitivity = files("sensitivity");
        let expected =
            systems.map(|system| [4, 16].map(|pairs| format!("sensitivity-{system}-{pairs}.svg"))).concat();
        assert!(sensitivity.ends_with(&expected), "{sensitivity:?}");
    }

    /// Holds that what was published is drawn, across as a peak and hollow at a place, and its source said; and that a figure of
    /// latencies has none of it.
    #[test]
    fn what_was_published_is_drawn() {
        let plan = text("smoke").unwrap();
        let peak = &figures(&report(&plan))[0];
        assert!(
            peak.svg.contains("published peak: 10") && peak.caption.contains("hyper-switch 10 Gb/s: Nobody")
        );
        let placed = &figures(&report(&plan.replace("gbps = 10", "gbps = 10\npairs = 2")))[0];
        assert!(placed.svg.contains("published: 10"), "{}", placed.svg);
        let latency = plan.replace("window_bytes = 65536", "").replace("\"stream\"", "\"requests\"");
        let latency = &figures(&report(&latency))[0];
        assert!(!latency.svg.contains("published") && !latency.caption.contains("published"));
    }

    /// Holds that points which differ by their seed alone are one value: the median, between the lowest and the highest.
    #[test]
    fn seeds_are_one_value() {
        let values = [("a", 1.0), ("b", 5.0), ("a", 9.0), ("a", 2.0)];
        let merged = merged(values.into_iter().map(|(key, value)| (key, Value::exact(value))));
        assert_eq!(merged, [("a", Value { middle: 2.0, low: 1.0, high: 9.0 }), ("b", Value::exact(5.0))]);
        let idle = &figures(&report(&text("idle-vms").unwrap()))[0];
        // A marker a place and line, and one a line in the legend.
        assert_eq!(idle.svg.matches("<polygon ").count(), 3 * (5 + 1));
        assert!(idle.caption.contains("Medians of 5 seeds"), "{}", idle.caption);
    }

    /// Holds that a curve is told by what was used up along it, and that a new part begins where something else is.
    #[test]
    fn curves_are_told_by_what_is_used_up() {
        let mut report = report(&text("fig2").unwrap());
        report.points.truncate(4);
        report.points[3].used_up.truncate(1);
        let ranges = used_up_along(&report);
        let [system, first, words] = &ranges[0];
        assert_eq!([system.as_str(), first.as_str()], ["hyper-switch (all)", "1 to 3 pairs"]);
        assert!(words.starts_with("all cores") && words.contains(" … all cores"), "{words}");
        let last = ["hyper-switch (all)", "4 pairs", "all cores (100 % busy)"].map(str::to_owned);
        assert_eq!(ranges[1..], [last]);
    }
}
