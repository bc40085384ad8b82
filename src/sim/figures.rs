//! Which figures a plan makes.

use super::SimReport;
use crate::page::Figure;
use crate::plot::{Lines, Mark, Value, series};

pub(super) fn figures(report: &SimReport) -> Vec<Figure> {
    let values = report.points.iter().map(|point| {
        let value = point.throughput_gbps;
        (point.point.system(), f64::from(point.point.pairs), Value { middle: value, low: value, high: value })
    });
    let lines = Lines {
        title: report.plan.title.clone(),
        x_axis: "number of VM pairs".to_owned(),
        y_axis: "net throughput (Gb/s)".to_owned(),
        series: series(values),
        marks: Vec::<Mark>::new(),
    };
    vec![Figure {
        file: "throughput_gbps.svg".to_owned(),
        caption: report.plan.title.clone(),
        svg: lines.to_svg(),
    }]
}
