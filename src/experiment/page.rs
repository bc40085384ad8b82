//! The report as one page of HTML, which holds all that it shows: no script, no style and no picture from elsewhere.

use super::figures::Figure;
use super::{ExperimentReport, LEGEND};
use std::fmt::Write;

const STYLE: &str = "\
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #111; background: #fff }
figure { margin: 1.5em 0 } figure svg { max-width: 100%; height: auto } figcaption { color: #444 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th.word, td.word { text-align: left } dt { font-weight: bold; float: left; width: 8em } dd { margin-left: 9em }
code { background: #f3f3f3; padding: .1em .3em }";

/// The page.
pub(super) fn page(report: &ExperimentReport, figures: &[Figure]) -> String {
    let mut facts = vec![("command", report.command.as_str()), ("version", report.version.as_str())];
    let conditions = report.conditions();
    facts.push(("conditions", &conditions));
    facts.extend(report.machine.lines());
    let mut html = format!(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <title>Hyper-Switch: pairs of VMs</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n\
         <h1>Pairs of VMs</h1>\n<dl>\n"
    );
    for (name, value) in facts {
        push(&mut html, format_args!("<dt>{name}</dt><dd>{}</dd>\n", escaped(value)));
    }
    html.push_str("</dl>\n");
    for Figure { caption, svg, .. } in figures {
        let caption = escaped(caption);
        push(&mut html, format_args!("<figure>\n{svg}<figcaption>{caption}. "));
        html.push_str("Points and bars are medians, error bars go from the lowest to the highest run.");
        html.push_str("</figcaption>\n</figure>\n");
    }
    html.push_str("<div class=\"wide\">\n<table>\n");
    row(&mut html, "th", &ExperimentReport::titles().map(str::to_owned));
    for point in &report.points {
        row(&mut html, "td", &point.cells());
    }
    push(&mut html, format_args!("</table>\n</div>\n<p>{LEGEND}.</p>\n"));
    html.push_str("<p>The same for programs: <a href=\"results.csv\">results.csv</a> and ");
    html.push_str("<a href=\"results.json\">results.json</a>.</p>\n</body>\n</html>\n");
    html
}

fn row(html: &mut String, tag: &str, cells: &[String]) {
    html.push_str("<tr>");
    for (index, cell) in cells.iter().enumerate() {
        let class = if index < super::WORDS { " class=\"word\"" } else { "" };
        push(html, format_args!("<{tag}{class}>{}</{tag}>", escaped(cell)));
    }
    html.push_str("</tr>\n");
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("a string takes all");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::figures::figures;
    use super::super::tests::report;
    use super::*;
    use roxmltree::{Document, ParsingOptions};

    /// Holds that the page is well-formed, shows every figure, every point and the conditions, loads nothing and runs
    /// nothing. What is between tags comes through as it is, however it looks.
    #[test]
    fn a_page_holds_it_all() {
        let report = report();
        let page = page(&report, &figures(&report));
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        let document = Document::parse_with_options(&page, options).expect(&page);
        let count = |tag| document.descendants().filter(|node| node.tag_name().name() == tag).count();
        assert_eq!((count("svg"), count("figcaption"), count("tr")), (2, 2, 1 + report.points.len()));
        assert_eq!((count("script"), count("img"), count("link")), (0, 0, 0));
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
