//! The report as a page.

use super::SimReport;
use crate::page::{Figure, Page};

/// The page.
pub(super) fn page(report: &SimReport, figures: &[Figure]) -> String {
    let mut page = Page::new(&report.plan.title, []);
    figures.iter().for_each(|figure| page.figure(figure));
    page.into_html()
}
