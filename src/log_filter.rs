//! Which log events are shown: a filter in the notation of `tracing_subscriber`'s `EnvFilter`.

use std::str::FromStr;
use tracing_subscriber::filter::{EnvFilter, ParseError};

/// The environment variable that is asked when the command line has no filter.
const VARIABLE: &str = "RUST_LOG";

/// A valid filter, for example `info` or `warn,hyper_switch=debug`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The filter in the environment variable `RUST_LOG`; `None` if that is unset or empty.
    ///
    /// # Errors
    /// What is wrong with it, if it is no filter.
    pub fn from_environment() -> Result<Option<LogFilter>, ParseError> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => text.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// Shows the events that pass the filter on standard error from now on, for the whole process. Has no
    /// effect when events are shown somewhere already.
    pub fn install(&self) {
        use std::io::IsTerminal;
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(&self.0))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .finish();
        // Fails only if another subscriber is there, as in tests that share a process.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }
}

impl FromStr for LogFilter {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<LogFilter, ParseError> {
        EnvFilter::try_new(text).map(|_| LogFilter(text.to_owned()))
    }
}

impl TryFrom<String> for LogFilter {
    type Error = ParseError;

    fn try_from(text: String) -> Result<LogFilter, ParseError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filters are taken as they are, and what is none is refused.
    #[test]
    fn filters_are_checked() {
        assert_eq!(
            "warn,hyper_switch=debug".parse::<LogFilter>().unwrap().as_str(),
            "warn,hyper_switch=debug"
        );
        let error = "hyper_switch=loud".parse::<LogFilter>().unwrap_err();
        assert!(error.to_string().contains("expected one of \"off\", \"error\""), "{error}");
    }
}
