//! The report as a page.

use super::{ExperimentReport, LEGEND, WORDS};
use crate::page::{Cells, Figure, Page};

/// The page.
pub(super) fn page(report: &ExperimentReport, figures: &[Figure]) -> String {
    let conditions = report.conditions();
    let mut facts = vec![("command", report.command.as_str()), ("version", report.version.as_str())];
    facts.push(("conditions", &conditions));
    facts.extend(report.machine.lines());
    let mut page = Page::new("Pairs of VMs", facts);
    figures.iter().for_each(|figure| page.figure(figure));
    let kind = |index| if index < WORDS { Cells::Words } else { Cells::Numbers };
    let titles = ExperimentReport::titles();
    let columns: Vec<_> = titles.iter().enumerate().map(|(index, title)| (*title, kind(index))).collect();
    page.table(&columns, report.points.iter().map(|point| (false, point.cells().to_vec())));
    page.paragraph(&format!("{LEGEND}."));
    page.into_html()
}

#[cfg(test)]
mod tests {
    use super::super::figures::figures;
    use super::super::tests::report;
    use super::*;
    use crate::page::read_page;

    /// Holds that the page is well-formed, shows every figure, every point and the conditions, loads nothing and runs
    /// nothing.
    #[test]
    fn a_page_holds_it_all() {
        let report = report();
        let page = page(&report, &figures(&report));
        let document = read_page(&page);
        let count = |tag| document.descendants().filter(|node| node.tag_name().name() == tag).count();
        assert_eq!((count("svg"), count("figcaption"), count("tr")), (2, 2, 1 + report.points.len()));
        let text: String = document.descendants().filter_map(|node| node.text()).collect();
        for part in [
            "hyper-switch pair --report <here>",
            "AMD EPYC & co.",
            "entry cost 1000 ns",
            "seed 7",
            "preempt,batch",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
