//! The report as a page.

use super::SimReport;
use super::figures::used_up_along;
use super::report::LEGEND;
use super::validation::Validation;
use crate::page::{Cells, Figure, Page};
use hyper_switch_sim::costs::{CostTable, Kind};

/// The page.
pub(super) fn page(report: &SimReport, figures: &[Figure]) -> String {
    let (conditions, seed) = (report.conditions(), report.plan.seed.to_string());
    let mut page = Page::new(
        &report.plan.title,
        [("conditions", conditions.as_str()), ("seed", &seed), ("version", &report.version)],
    );
    page.paragraph(report.plan.shows.trim());
    figures.iter().for_each(|figure| page.figure(figure));
    if !report.published.is_empty() {
        page.heading("Beside what was published");
        let columns = [
            ("arch", Cells::Words),
            ("where", Cells::Words),
            ("published Gb/s", Cells::Numbers),
            ("simulated Gb/s", Cells::Numbers),
            ("deviation %", Cells::Numbers),
            ("source", Cells::Text),
        ];
        page.table(&columns, report.published.iter().map(|comparison| (false, comparison.cells())));
    }
    if let Some(validation) = &report.validation {
        page.heading("Beside what was measured");
        page.paragraph(&format!("By {}: {}.", validation.command, validation.sentence()));
        validation.note().iter().for_each(|note| page.paragraph(note));
        let columns = Validation::COLUMNS
            .map(|(title, is_words)| (title, if is_words { Cells::Words } else { Cells::Numbers }));
        page.table(&columns, validation.rows().map(|row| (false, row)));
    }
    page.heading("What is used up");
    let columns = [("", Cells::Words), ("at", Cells::Words), ("used up", Cells::Text)];
    page.table(&columns, used_up_along(report).into_iter().map(|range| (false, range.to_vec())));
    page.heading("All points");
    let columns = SimReport::titles()
        .map(|(title, is_words)| (title, if is_words { Cells::Words } else { Cells::Numbers }));
    page.table(&columns, report.rows().map(|row| (false, row.to_vec())));
    page.paragraph(&format!("{LEGEND}."));
    page.heading("The plan");
    page.verbatim(&report.plan_text);
    page.heading(&format!("The costs: {}", report.costs.name()));
    costs(&mut page, &report.costs);
    page.into_html()
}

/// The cost table. What is not from elsewhere, that is, fitted or assumed, is marked.
fn costs(page: &mut Page, costs: &CostTable) {
    page.paragraph(costs.description().trim());
    page.paragraph("Marked rows are fitted, or assumed; the others are measured, or cited.");
    let is_marked = |kind: Kind| matches!(kind, Kind::Fitted | Kind::Assumed);
    let rows = costs.rows().iter().map(|row| {
        let value = format!("{} {}", row.value, row.unit);
        (is_marked(row.kind), vec![row.name.to_string(), value, row.kind.to_string(), row.source.clone()])
    });
    let copies = costs.copies().map(|(locality, row)| {
        let points: Vec<_> = row.points.iter().map(|(bytes, ns)| format!("{bytes} B {ns} ns")).collect();
        let name = format!("copy.{locality}");
        (is_marked(row.kind), vec![name, points.join(", "), row.kind.to_string(), row.source.clone()])
    });
    let columns =
        [("cost", Cells::Words), ("value", Cells::Text), ("kind", Cells::Words), ("source", Cells::Text)];
    page.table(&columns, rows.chain(copies));
}

#[cfg(test)]
mod tests {
    use super::super::figures::figures;
    use super::super::tests::report;
    use super::super::text;
    use super::*;
    use crate::page::read_page;
    use hyper_switch_sim::costs::Row;

    /// Holds that the page of each plan is well-formed, loads nothing, and shows all figures, the points, the plan as it is
    /// written, what was published with its source, and every cost with its source, marked if it is fitted or assumed.
    #[test]
    fn a_page_holds_it_all() {
        for (name, plan) in hyper_switch_sim::plan::embedded() {
            let report = report(plan);
            let figures = figures(&report);
            assert!(!figures.is_empty(), "{name}");
            let html = page(&report, &figures);
            let document = read_page(&html);
            let count = |tag| document.descendants().filter(|node| node.tag_name().name() == tag).count();
            assert_eq!((count("svg"), count("figcaption")), (figures.len(), figures.len()), "{name}");
            let marked =
                document.descendants().filter(|node| node.attribute("class") == Some("marked")).count();
            let is_marked = |kind: Kind| u32::from(matches!(kind, Kind::Fitted | Kind::Assumed));
            let rows = report.costs.rows().iter().map(|row| is_marked(row.kind));
            let copies = report.costs.copies().map(|(_, row)| is_marked(row.kind));
            assert_eq!(marked as u32, rows.chain(copies).sum::<u32>());
            let all: String = document.descendants().filter_map(|node| node.text()).collect();
            assert!(all.contains(&text(name).unwrap()), "{name}");
            let sources = report.plan.published.iter().map(|published| published.source.clone());
            for part in Row::all().map(|row| row.to_string()).chain(sources) {
                assert!(all.contains(&part), "{name}: {part}");
            }
        }
    }
}
