//! The files of a report.

use super::figures::figures;
use super::page::page;
use super::{ExperimentReport, Metric};
use crate::exit::Failure;
use crate::folder;
use std::path::Path;

impl ExperimentReport {
    /// Writes `results.csv`, `results.json`, an SVG for each figure and `index.html` into `folder`, over what is
    /// there of them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let figures = figures(self);
        folder::write(folder, self, self.csv(), &figures, &page(self, &figures))
    }

    /// A line a point: where it is in the matrix, the conditions, and each metric's median, minimum and maximum;
    /// empty where it was not measured.
    fn csv(&self) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let place = ["workload", "arch", "optimisations", "pairs"];
        let conditions = ["seconds", "repeat", "seed", "entry_cost_ns", "frame_bytes", "rate_per_s"];
        let metrics =
            Metric::ALL.map(|metric| ["", "_min", "_max"].map(|end| format!("{}{end}", metric.key())));
        let metrics = metrics.as_flattened().iter().map(String::as_str);
        writer.write_record(place.into_iter().chain(conditions).chain(metrics))?;
        for report in &self.points {
            let point = report.point;
            let mut cells = vec![
                point.workload.name().to_owned(),
                point.arch.name().to_owned(),
                point.optimisations.map_or(String::new(), |set| set.to_string()),
                point.pairs.to_string(),
                self.seconds.to_string(),
                self.repeat.to_string(),
                self.seed.to_string(),
                self.entry_cost_ns.to_string(),
                self.frame_bytes.map_or(String::new(), |bytes| bytes.to_string()),
                self.rate_per_s.map_or(String::new(), |rate| rate.to_string()),
            ];
            for metric in Metric::ALL {
                let spread = report.metrics.get(&metric);
                let values = spread.map(|spread| [spread.median, spread.min, spread.max]);
                cells.extend(
                    values.map_or([const { String::new() }; 3], |values| values.map(|x| x.to_string())),
                );
            }
            writer.write_record(cells)?;
        }
        folder::written(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;
    use crate::experiment::Point;
    use std::collections::BTreeSet;
    use std::fs;

    /// Holds that a program that reads the CSV finds each point with its metrics under the names that JSON has too.
    #[test]
    fn csv_is_read_as_it_was_written() {
        let report = report();
        let csv = report.csv().unwrap();
        let mut reader = csv::Reader::from_reader(csv.as_slice());
        let headers = reader.headers().unwrap().clone();
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), report.points.len());
        for (record, expected) in records.iter().zip(&report.points) {
            let cell = |name: &str| &record[headers.iter().position(|found| found == name).expect(name)];
            let Point { workload, arch, optimisations, pairs } = expected.point;
            assert_eq!((cell("workload"), cell("arch")), (workload.name(), arch.name()));
            let set = (!cell("optimisations").is_empty()).then(|| cell("optimisations").parse().unwrap());
            assert_eq!((set, cell("pairs").parse()), (optimisations, Ok(pairs)));
            assert_eq!((cell("repeat"), cell("seed"), cell("entry_cost_ns")), ("3", "7", "1000"));
            assert_eq!((cell("frame_bytes"), cell("rate_per_s")), ("1500", ""));
            for metric in Metric::ALL {
                let cells =
                    ["", "_min", "_max"].map(|end| cell(&format!("{}{end}", metric.key())).parse().ok());
                let spread = expected.metrics.get(&metric);
                let values = spread.map(|spread| [spread.median, spread.min, spread.max].map(Some));
                assert_eq!(cells, values.unwrap_or_default(), "{metric:?}");
            }
        }
    }

    /// Holds which files there are, and that a folder that is not there is named.
    #[test]
    fn a_report_is_a_few_files() {
        let folder = tempfile::tempdir().unwrap();
        report().write(folder.path()).unwrap();
        let names =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let expected = [
            "index.html",
            "results.csv",
            "results.json",
            "stream-ablation-throughput_gbps.svg",
            "stream-throughput_gbps.svg",
        ];
        assert_eq!(names.collect::<BTreeSet<_>>(), expected.map(str::to_owned).into());
        let failure = report().write(Path::new("/proc/none")).unwrap_err();
        assert!(failure.message.starts_with("cannot write /proc/none/results.csv: "), "{failure}");
    }
}
