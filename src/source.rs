//! A file that the user wrote, and where in it a mistake is.

use crate::exit::{Failure, FailureKind};
use std::ops::Range;
use std::path::Path;

/// A file's text, to point into.
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
}

pub(crate) struct Line<'a> {
    /// Counted from 1.
    pub(crate) number: usize,
    text: &'a str,
    /// Where in the file the line starts.
    start: usize,
}

impl<'a> Source<'a> {
    /// The line that the byte at `offset` is in.
    pub(crate) fn line(&self, offset: usize) -> Line<'a> {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let text = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        Line { number: before.matches('\n').count() + 1, text, start }
    }

    /// An error about `span`, with its line shown and the span underlined as far as the line goes.
    pub(crate) fn fault(&self, span: Range<usize>, message: &str) -> Failure {
        let line = self.line(span.start);
        let width = |range: Range<usize>| self.text.get(range).map_or(0, |text| text.chars().count());
        let indent = width(line.start..span.start);
        let underlined = width(span.start..span.end.min(line.start + line.text.len())).max(1);
        let (path, number, text) = (self.path.display(), line.number, line.text);
        let gutter = " ".repeat(number.to_string().len());
        let message = format!(
            "{path}, line {number}: {message}\n {number} | {text}\n {gutter} | {}{}",
            " ".repeat(indent),
            "^".repeat(underlined),
        );
        Failure::new(FailureKind::Configuration, message)
    }
}
