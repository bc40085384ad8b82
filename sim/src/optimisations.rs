//! The three optimisations of the data plane, as the user writes them: `all`, `none`, or a list as in
//! `preempt,batch`.

use hyper_switch_dataplane::policy::Optimisations;
use std::fmt;
use std::str::FromStr;

/// Which optimisations are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct OptimisationSet {
    /// Preemptive copy: whoever delivers a notification copies first.
    pub preempt: bool,
    /// VM-state-aware batching of notifications and of the transmit hypercall.
    pub batch: bool,
    /// Offload of switching and copying to idle cores.
    pub offload: bool,
}

impl OptimisationSet {
    /// All of them.
    pub const ALL: OptimisationSet = OptimisationSet { preempt: true, batch: true, offload: true };
    /// None of them: the basic form.
    pub const NONE: OptimisationSet = OptimisationSet { preempt: false, batch: false, offload: false };

    /// All eight combinations, from none to all, smaller ones first.
    pub fn each() -> [OptimisationSet; 8] {
        [0b000, 0b001, 0b010, 0b100, 0b011, 0b101, 0b110, 0b111].map(|bits| OptimisationSet {
            preempt: bits & 0b001 != 0,
            batch: bits & 0b010 != 0,
            offload: bits & 0b100 != 0,
        })
    }

    /// How many are on.
    pub fn len(self) -> usize {
        self.named().filter(|(_, on)| *on).count()
    }

    /// Whether none is on.
    pub fn is_empty(self) -> bool {
        self == OptimisationSet::NONE
    }

    fn named(self) -> impl Iterator<Item = (&'static str, bool)> {
        [("preempt", self.preempt), ("batch", self.batch), ("offload", self.offload)].into_iter()
    }
}

/// What switches, in words: an architecture's name, and what is on of its optimisations if it has them.
pub fn system(arch: &str, optimisations: Option<OptimisationSet>) -> String {
    match optimisations {
        Some(set) => format!("{arch} ({set})"),
        None => arch.to_owned(),
    }
}

impl fmt::Display for OptimisationSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            OptimisationSet::ALL => f.write_str("all"),
            OptimisationSet::NONE => f.write_str("none"),
            set => {
                let on: Vec<_> = set.named().filter_map(|(name, on)| on.then_some(name)).collect();
                f.write_str(&on.join(","))
            }
        }
    }
}

/// Why a text names no set of optimisations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// A name that none has.
    #[error("`{0}` is no optimisation; there are preempt, batch and offload, or all or none of them")]
    Unknown(String),
    /// The same name twice.
    #[error("`{0}` is named twice")]
    Twice(String),
}

impl FromStr for OptimisationSet {
    type Err = SetError;

    fn from_str(text: &str) -> Result<OptimisationSet, SetError> {
        match text {
            "all" => return Ok(OptimisationSet::ALL),
            "none" => return Ok(OptimisationSet::NONE),
            _ => {}
        }
        let mut set = OptimisationSet::NONE;
        for name in text.split(',') {
            let on = match name {
                "preempt" => &mut set.preempt,
                "batch" => &mut set.batch,
                "offload" => &mut set.offload,
                _ => return Err(SetError::Unknown(name.to_owned())),
            };
            if std::mem::replace(on, true) {
                return Err(SetError::Twice(name.to_owned()));
            }
        }
        Ok(set)
    }
}

impl From<OptimisationSet> for Optimisations {
    fn from(OptimisationSet { preempt, batch, offload }: OptimisationSet) -> Optimisations {
        Optimisations { preemptive_copy: preempt, batching: batch, offload }
    }
}

impl From<OptimisationSet> for String {
    fn from(set: OptimisationSet) -> String {
        set.to_string()
    }
}

impl TryFrom<String> for OptimisationSet {
    type Error = SetError;

    fn try_from(text: String) -> Result<OptimisationSet, SetError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Holds that all eight sets are read as they are written, and come in order of their size.
    #[test]
    fn each_set_is_read_as_it_is_written() {
        let each = OptimisationSet::each();
        assert_eq!(each.iter().collect::<BTreeSet<_>>().len(), 8);
        assert!(each.is_sorted_by_key(|set| set.len()));
        for set in each {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        assert_eq!("offload,batch,preempt".parse(), Ok(OptimisationSet::ALL));
        assert_eq!("batch,preempt".parse::<OptimisationSet>().unwrap().to_string(), "preempt,batch");
    }

    /// Holds that a name that is none, is missing, or comes twice is refused, and named.
    #[test]
    fn nonsense_is_refused() {
        for (text, message) in [
            ("", "`` is no optimisation"),
            ("fast", "`fast` is no optimisation; there are preempt, batch and offload"),
            ("batch,", "`` is no optimisation"),
            ("all,batch", "`all` is no optimisation"),
            ("batch,offload,batch", "`batch` is named twice"),
        ] {
            let error = text.parse::<OptimisationSet>().unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }
}
