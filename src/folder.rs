//! The folder of a report: its results for programs, its figures, and a page with all of it.

use crate::exit::{Failure, FailureKind};
use crate::page::Figure;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Writes `results.csv`, `results.json`, an SVG for each figure and `index.html` into `folder`, over what is there of them.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(
    folder: &Path,
    report: &impl Serialize,
    csv: Result<Vec<u8>, csv::Error>,
    figures: &[Figure],
    html: &str,
) -> Result<(), Failure> {
    let cannot = |what: &str, error: &dyn std::error::Error| {
        Failure::new(FailureKind::Runtime, format!("cannot write {what}: {error}"))
    };
    let json = serde_json::to_string_pretty(report).map_err(|error| cannot("JSON", &error))?;
    let csv = csv.map_err(|error| cannot("CSV", &error))?;
    let pictures = figures.iter().map(|figure| (figure.file.as_str(), figure.svg.as_bytes()));
    let texts: [(&str, &[u8]); 3] =
        [("results.csv", &csv), ("results.json", json.as_bytes()), ("index.html", html.as_bytes())];
    for (name, bytes) in texts.into_iter().chain(pictures) {
        let path = folder.join(name);
        fs::write(&path, bytes)
            .map_err(|error| Failure::from_io(format_args!("cannot write {}", path.display()), &error))?;
    }
    Ok(())
}

/// What a CSV writer has written.
pub(crate) fn written(writer: csv::Writer<Vec<u8>>) -> Result<Vec<u8>, csv::Error> {
    writer.into_inner().map_err(|error| error.into_error().into())
}
