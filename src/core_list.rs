//! A list of cores as people write it: `0,2-3`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The highest core number that can be named, the kernel's own bound (`CPU_SETSIZE`) less one.
pub const MAX_CORE: usize = 1023;

/// The cores that the switch may use: at least one, each once, in ascending order. Whether this machine
/// has them is for the host to find out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct CoreList(Vec<usize>);

impl CoreList {
    /// The cores, ascending.
    pub fn cores(&self) -> &[usize] {
        &self.0
    }
}

/// Why a list of cores makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreListError {
    /// One part of the list is neither a number nor a range.
    #[error("`{0}` is neither a core nor a range of cores; write for example 0,2-3")]
    NotACore(String),
    /// The number is beyond what any kernel has.
    #[error("core {0} is beyond {MAX_CORE}, the highest that the kernel can name")]
    TooHigh(usize),
    /// A range that ends before it starts.
    #[error("the range {0}-{1} ends before it starts")]
    Reversed(usize, usize),
    /// A core that is named a second time.
    #[error("core {0} is listed twice")]
    Twice(usize),
}

impl FromStr for CoreList {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<CoreList, CoreListError> {
        let mut cores = BTreeSet::new();
        for part in text.split(',') {
            let number = |digits: &str| match digits.trim().parse::<usize>() {
                Ok(core) if core <= MAX_CORE => Ok(core),
                Ok(core) => Err(CoreListError::TooHigh(core)),
                Err(_) => Err(CoreListError::NotACore(part.trim().to_owned())),
            };
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(CoreListError::Reversed(first, last));
            }
            for core in first..=last {
                if !cores.insert(core) {
                    return Err(CoreListError::Twice(core));
                }
            }
        }
        Ok(CoreList(cores.into_iter().collect()))
    }
}

impl TryFrom<String> for CoreList {
    type Error = CoreListError;

    fn try_from(text: String) -> Result<CoreList, CoreListError> {
        text.parse()
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, core) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{core}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers and ranges are read in any order, and come out ascending.
    #[test]
    fn lists_and_ranges_are_read() {
        for (text, cores) in [("0", vec![0]), ("0,2-3", vec![0, 2, 3]), ("7, 1-2", vec![1, 2, 7])] {
            assert_eq!(text.parse::<CoreList>().unwrap().cores(), cores, "{text}");
        }
        assert_eq!("2-3,0".parse::<CoreList>().unwrap().to_string(), "0,2,3");
    }

    /// Every list that makes no sense is refused with the part that makes none.
    #[test]
    fn nonsense_is_refused_by_name() {
        for (text, message) in [
            ("", "`` is neither a core nor a range of cores; write for example 0,2-3"),
            ("0,", "`` is neither a core nor a range of cores; write for example 0,2-3"),
            ("0,x", "`x` is neither a core nor a range of cores; write for example 0,2-3"),
            ("-1", "`-1` is neither a core nor a range of cores; write for example 0,2-3"),
            ("1-2-3", "`1-2-3` is neither a core nor a range of cores; write for example 0,2-3"),
            ("0-99999", "core 99999 is beyond 1023, the highest that the kernel can name"),
            ("3-2", "the range 3-2 ends before it starts"),
            ("0-2,1", "core 1 is listed twice"),
        ] {
            assert_eq!(text.parse::<CoreList>().unwrap_err().to_string(), message, "{text}");
        }
    }
}
