//! What each piece of work takes on a machine, and where each figure is from.
//!
//! A table is a file of TOML, complete in itself: one row for each [`Cost`], and one for each [`Locality`] of a copy.
//!
//! ```toml
//! name = "opteron"
//! description = "The machine, and how the figures were come by."
//!
//! [[cost]]
//! name = "hypervisor_entry"
//! value = 680
//! unit = "ns"
//! kind = "cited"
//! source = "Authors, title, venue, year"
//!
//! [copy.own]                         # and copy.shared, copy.remote
//! points = [[64, 15], [65536, 11000]] # bytes, ns: linear between, proportional below the first and beyond the last
//! kind = "assumed"
//! source = "Why one would think so"
//! ```
//!
//! The simulator charges an entry of n frames `switch_entry + n * switch_frame`, after `hypervisor_entry` if it is a
//! hypercall; a frame's copy `copy_frame + copy(locality, bytes)`; a notification `notify` to the core that sends it.

mod copy;
mod cost;

pub use copy::Locality;
pub use cost::Cost;

use copy::Curve;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The tables that the program carries, by name.
const EMBEDDED: [(&str, &str); 1] = [("opteron", include_str!("../costs/opteron.toml"))];

/// A complete table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Draft", into = "Draft")]
pub struct CostTable {
    draft: Draft,
    ns: [f64; Cost::ALL.len()],
    curves: [Curve; Locality::ALL.len()],
}

/// What a table's file says, before anything of it was checked; a checked one has its rows in the order of [`Cost::ALL`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    name: String,
    description: String,
    cost: Vec<CostRow>,
    copy: CopyRows,
}

/// A figure, and where it is from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostRow {
    /// What it is.
    pub name: Cost,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: Unit,
    /// How it was come by.
    pub kind: Kind,
    /// Where it is from: a publication; a command and a machine; what it was fitted to; the reason to assume it.
    pub source: String,
}

/// What a copy takes, and where the figures are from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRow {
    /// Bytes and nanoseconds, fewest bytes first.
    pub points: Vec<(u32, f64)>,
    /// How they were come by.
    pub kind: Kind,
    /// As for [`CostRow::source`].
    pub source: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyRows {
    own: CopyRow,
    shared: CopyRow,
    remote: CopyRow,
}

/// The unit of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Nanoseconds.
    #[default]
    #[serde(rename = "ns")]
    Nanoseconds,
    /// So many times as much.
    #[serde(rename = "times")]
    Times,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Nanoseconds => "ns",
            Unit::Times => "times",
        })
    }
}

/// How a figure was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Measured, on the machine that the table is of.
    Measured,
    /// Taken or derived from a publication.
    Cited,
    /// Chosen such that the simulation's result agrees with a published one.
    Fitted,
    /// An estimate.
    Assumed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Measured => "measured",
            Kind::Cited => "cited",
            Kind::Fitted => "fitted",
            Kind::Assumed => "assumed",
        })
    }
}

/// Which row of a table. Written as in a table: `hypervisor_entry`, `copy.own`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Row {
    /// One figure.
    Cost(Cost),
    /// The points of a copy.
    Copy(Locality),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Cost(cost) => cost.fmt(f),
            Row::Copy(locality) => write!(f, "copy.{locality}"),
        }
    }
}

impl Row {
    /// All of them, in the order of a table.
    pub fn all() -> impl Iterator<Item = Row> {
        Cost::ALL.into_iter().map(Row::Cost).chain(Locality::ALL.into_iter().map(Row::Copy))
    }
}

impl From<Row> for String {
    fn from(row: Row) -> String {
        row.to_string()
    }
}

impl TryFrom<String> for Row {
    type Error = NoRow;

    fn try_from(name: String) -> Result<Row, NoRow> {
        Row::all().find(|row| row.to_string() == name).ok_or(NoRow(name))
    }
}

/// A name that no row has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no cost `{0}`; there are {all}", all = Row::all().map(|row| row.to_string()).collect::<Vec<_>>().join(", "))]
pub struct NoRow(String);

/// Why a text is no cost table.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CostError {
    /// No TOML, or not of a table's form.
    #[error("no cost table: {0}")]
    Form(#[from] toml::de::Error),
    /// A row is missing.
    #[error("the table has no row `{0}`")]
    Missing(Cost),
    /// A row comes twice.
    #[error("the table has the row `{0}` twice")]
    Twice(Cost),
    /// A figure that no work can take.
    #[error("`{row}` is {value}, not a number of at least 0")]
    Value {
        /// Where.
        row: Cost,
        /// What it says.
        value: f64,
    },
    /// A figure in another unit than it has.
    #[error("`{0}` is in another unit")]
    Unit(Cost),
    /// The points of a copy are not those of a function that grows.
    #[error("the points of `{0}` need bytes of more than 0 that grow, and nanoseconds that do not shrink")]
    Points(Row),
    /// A row that does not say where it is from.
    #[error("`{0}` has no source")]
    Source(Row),
}

impl CostTable {
    /// The table that a text in TOML is.
    ///
    /// # Errors
    /// The text is none, or a row is missing, comes twice, has an impossible figure or no source.
    pub fn load(text: &str) -> Result<CostTable, CostError> {
        CostTable::check(toml::from_str(text)?)
    }

    /// The table of this name that the program carries.
    pub fn embedded(name: &str) -> Option<CostTable> {
        let (_, text) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name)?;
        Some(CostTable::load(text).expect("the tables that the program carries are complete"))
    }

    /// The names of the tables that the program carries.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    fn check(mut draft: Draft) -> Result<CostTable, CostError> {
        draft.cost.sort_by_key(|row| row.name);
        for (at, cost) in Cost::ALL.into_iter().enumerate() {
            match draft.cost.get(at) {
                Some(row) if row.name == cost => row.check()?,
                // In order, what comes again comes next.
                Some(row) if at > 0 && row.name == Cost::ALL[at - 1] => {
                    return Err(CostError::Twice(row.name));
                }
                _ => return Err(CostError::Missing(cost)),
            }
        }
        if let Some(row) = draft.cost.get(Cost::ALL.len()) {
            return Err(CostError::Twice(row.name));
        }
        let mut curves: [Curve; Locality::ALL.len()] = Default::default();
        for (curve, locality) in curves.iter_mut().zip(Locality::ALL) {
            *curve = draft.copy.row(locality).check(locality)?;
        }
        let ns = std::array::from_fn(|at| draft.cost[at].value);
        Ok(CostTable { draft, ns, curves })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.draft.name
    }

    /// What machine it is of, and how its figures were come by.
    pub fn description(&self) -> &str {
        &self.draft.description
    }

    /// Gives it another name and description.
    pub fn rename(&mut self, name: String, description: String) {
        (self.draft.name, self.draft.description) = (name, description);
    }

    /// A figure, in its unit.
    pub fn get(&self, cost: Cost) -> f64 {
        self.ns[cost as usize]
    }

    /// Nanoseconds for a copy of so many bytes that lie there.
    pub fn copy(&self, locality: Locality, bytes: u32) -> f64 {
        self.curves[locality as usize].at(bytes)
    }

    /// Its rows of one figure, in the order of [`Cost::ALL`].
    pub fn rows(&self) -> &[CostRow] {
        &self.draft.cost
    }

    /// Its rows of copies, in the order of [`Locality::ALL`].
    pub fn copies(&self) -> impl Iterator<Item = (Locality, &CopyRow)> {
        Locality::ALL.into_iter().map(|locality| (locality, self.draft.copy.row(locality)))
    }

    /// Puts a row in the place of the one of its name.
    ///
    /// # Errors
    /// An impossible figure, or no source; the table is as before.
    pub fn set(&mut self, row: CostRow) -> Result<(), CostError> {
        row.check()?;
        let at = row.name as usize;
        self.ns[at] = row.value;
        self.draft.cost[at] = row;
        Ok(())
    }

    /// Makes a row so many times as high.
    ///
    /// # Errors
    /// By that factor it is no possible figure; the table is as before.
    pub fn scale(&mut self, row: Row, factor: f64) -> Result<(), CostError> {
        match row {
            Row::Cost(cost) => {
                let row = &self.draft.cost[cost as usize];
                self.set(CostRow { value: row.value * factor, ..row.clone() })
            }
            Row::Copy(locality) => {
                let mut row = self.draft.copy.row(locality).clone();
                row.points.iter_mut().for_each(|(_, ns)| *ns *= factor);
                self.set_copy(locality, row)
            }
        }
    }

    /// Puts other points in the place of a locality's.
    ///
    /// # Errors
    /// Points that do not grow, or no source; the table is as before.
    pub fn set_copy(&mut self, locality: Locality, row: CopyRow) -> Result<(), CostError> {
        self.curves[locality as usize] = row.check(locality)?;
        *self.draft.copy.row_mut(locality) = row;
        Ok(())
    }
}

/// The table as a file of TOML, which [`CostTable::load`] reads.
impl fmt::Display for CostTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(&self.draft).map_err(|_| fmt::Error)?)
    }
}

impl CostRow {
    fn check(&self) -> Result<(), CostError> {
        if !(self.value.is_finite() && self.value >= 0.0) {
            return Err(CostError::Value { row: self.name, value: self.value });
        }
        if self.unit != self.name.unit() {
            return Err(CostError::Unit(self.name));
        }
        if self.source.trim().is_empty() { Err(CostError::Source(Row::Cost(self.name))) } else { Ok(()) }
    }
}

impl CopyRow {
    fn check(&self, locality: Locality) -> Result<Curve, CostError> {
        let row = Row::Copy(locality);
        if self.source.trim().is_empty() {
            return Err(CostError::Source(row));
        }
        Curve::through(&self.points).ok_or(CostError::Points(row))
    }
}

impl CopyRows {
    fn row(&self, locality: Locality) -> &CopyRow {
        match locality {
            Locality::Own => &self.own,
            Locality::Shared => &self.shared,
            Locality::Remote => &self.remote,
        }
    }

    fn row_mut(&mut self, locality: Locality) -> &mut CopyRow {
        match locality {
            Locality::Own => &mut self.own,
            Locality::Shared => &mut self.shared,
            Locality::Remote => &mut self.remote,
        }
    }
}

impl TryFrom<Draft> for CostTable {
    type Error = CostError;

    fn try_from(draft: Draft) -> Result<CostTable, CostError> {
        CostTable::check(draft)
    }
}

impl From<CostTable> for Draft {
    fn from(table: CostTable) -> Draft {
        table.draft
    }
}

#[cfg(test)]
mod tests;
