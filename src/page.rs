//! A report as one page of HTML, which holds all that it shows: no script, no style and no picture from elsewhere.

use std::fmt::{Arguments, Write};

const STYLE: &str = "\
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #111; background: #fff }
figure { margin: 1.5em 0 } figure svg { max-width: 100%; height: auto } figcaption { color: #444 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th.word, td.word { text-align: left } td.text { text-align: left; white-space: normal; min-width: 30em }
tr.marked td { background: #fff4d6 } dt { font-weight: bold; float: left; width: 8em } dd { margin-left: 9em }
code { background: #f3f3f3; padding: .1em .3em } pre { background: #f3f3f3; padding: .7em; overflow-x: auto }";

/// A picture of a report.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The name of its file, without a folder.
    pub file: String,
    /// What it shows, in sentences without the last one's full stop.
    pub caption: String,
    /// The picture.
    pub svg: String,
}

/// How a column's cells are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cells {
    /// To the left.
    Words,
    /// To the right.
    Numbers,
    /// To the left, in several lines.
    Text,
}

/// A page that is being written.
pub struct Page {
    html: String,
}

impl Page {
    /// A page that begins with a heading and facts, each with its name.
    pub fn new<'f>(title: &str, facts: impl IntoIterator<Item = (&'f str, &'f str)>) -> Page {
        let title = escaped(title);
        let mut page = Page {
            html: format!(
                "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n\
                 <meta charset=\"utf-8\"/>\n<title>Hyper-Switch: {title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n\
                 <body>\n<h1>{title}</h1>\n<dl>\n"
            ),
        };
        for (name, value) in facts {
            page.push(format_args!("<dt>{name}</dt><dd>{}</dd>\n", escaped(value)));
        }
        page.html.push_str("</dl>\n");
        page
    }

    /// Adds a heading.
    pub fn heading(&mut self, text: &str) {
        self.push(format_args!("<h2>{}</h2>\n", escaped(text)));
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.push(format_args!("<p>{}</p>\n", escaped(text)));
    }

    /// Adds text that keeps its lines.
    pub fn verbatim(&mut self, text: &str) {
        self.push(format_args!("<pre>{}</pre>\n", escaped(text)));
    }

    /// Adds a picture.
    pub fn figure(&mut self, Figure { caption, svg, .. }: &Figure) {
        self.push(format_args!("<figure>\n{svg}<figcaption>{}.</figcaption>\n</figure>\n", escaped(caption)));
    }

    /// Adds a table: its columns, and its rows, each with whether it is marked.
    pub fn table<T: AsRef<str>>(
        &mut self,
        columns: &[(&str, Cells)],
        rows: impl IntoIterator<Item = (bool, Vec<T>)>,
    ) {
        self.html.push_str("<div class=\"wide\">\n<table>\n");
        let titles = columns.iter().map(|(title, _)| *title);
        self.row("th", false, columns, titles);
        for (is_marked, cells) in rows {
            self.row("td", is_marked, columns, cells.iter().map(T::as_ref));
        }
        self.html.push_str("</table>\n</div>\n");
    }

    fn row<'c>(
        &mut self,
        tag: &str,
        is_marked: bool,
        columns: &[(&str, Cells)],
        cells: impl Iterator<Item = &'c str>,
    ) {
        self.html.push_str(if is_marked { "<tr class=\"marked\">" } else { "<tr>" });
        for (cell, (_, kind)) in cells.zip(columns) {
            let class = match kind {
                Cells::Numbers => "",
                Cells::Words => " class=\"word\"",
                Cells::Text if tag == "th" => " class=\"word\"",
                Cells::Text => " class=\"text\"",
            };
            self.push(format_args!("<{tag}{class}>{}</{tag}>", escaped(cell)));
        }
        self.html.push_str("</tr>\n");
    }

    /// The page, which ends with where programs find the same.
    pub fn into_html(mut self) -> String {
        self.html.push_str("<p>The same for programs: <a href=\"results.csv\">results.csv</a> and ");
        self.html.push_str("<a href=\"results.json\">results.json</a>.</p>\n</body>\n</html>\n");
        self.html
    }

    fn push(&mut self, text: Arguments<'_>) {
        self.html.write_fmt(text).expect("a string takes all");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// For tests of pages: what the page is as XML, once it is known to be well-formed, to load nothing and to run nothing.
#[cfg(test)]
pub(crate) fn read_page(html: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(html, options).expect(html);
    for node in document.descendants() {
        assert!(!["script", "img", "link", "iframe", "object"].contains(&node.tag_name().name()), "{node:?}");
        assert!(node.attributes().all(|attribute| attribute.name() != "src"), "{node:?}");
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that the page is well-formed whatever it is told, and that what is between tags comes through as it is.
    #[test]
    fn a_page_is_well_formed() {
        let mut page = Page::new("<a> & b", [("seed", "<7>")]);
        page.heading("&");
        page.paragraph("</p>");
        page.verbatim("a\n <b>");
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_owned();
        page.figure(&Figure { file: "x.svg".into(), caption: "1 < 2".into(), svg });
        let columns = [("<n>", Cells::Numbers), ("w", Cells::Words), ("t", Cells::Text)];
        page.table(&columns, [(true, vec!["<1>", "&", "x"]), (false, vec!["2", "", ""])]);
        let html = page.into_html();
        let document = read_page(&html);
        let text: String = document.descendants().filter_map(|node| node.text()).collect();
        for part in ["<a> & b", "<7>", "</p>", "a\n <b>", "1 < 2.", "<n>", "<1>"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let marked = document.descendants().filter(|node| node.attribute("class") == Some("marked"));
        assert_eq!(marked.count(), 1);
    }
}
