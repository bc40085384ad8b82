//! How the program ends: what failed, what the user can do about it, and the exit code that a script sees.

use std::fmt;
use std::process::ExitCode;

/// What kind of thing went wrong. Each kind has one exit code; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The program began its work and could not finish it.
    Runtime,
    /// The command line makes no sense. The code is the one that clap exits with.
    Usage,
    /// The configuration file cannot be read, or makes no sense.
    Configuration,
    /// The operating system wants more rights for this, usually root's.
    NotPermitted,
    /// An interface or a socket belongs to another process.
    InUse,
    /// No daemon answers on the control socket.
    NoDaemon,
}

impl FailureKind {
    /// All kinds, in the order of their exit codes.
    pub const ALL: [FailureKind; 6] = [
        FailureKind::Runtime,
        FailureKind::Usage,
        FailureKind::Configuration,
        FailureKind::NotPermitted,
        FailureKind::InUse,
        FailureKind::NoDaemon,
    ];

    /// The exit code of a failure of this kind.
    pub fn code(self) -> u8 {
        match self {
            FailureKind::Runtime => 1,
            FailureKind::Usage => 2,
            FailureKind::Configuration => 3,
            FailureKind::NotPermitted => 4,
            FailureKind::InUse => 5,
            FailureKind::NoDaemon => 6,
        }
    }

    /// A few words for `--help`.
    pub fn explain(self) -> &'static str {
        match self {
            FailureKind::Runtime => "a failure at run time",
            FailureKind::Usage => "the command line makes no sense",
            FailureKind::Configuration => "the configuration file makes no sense",
            FailureKind::NotPermitted => "not permitted (most of the switch's work needs root)",
            FailureKind::InUse => "an interface or a socket is in use by another process",
            FailureKind::NoDaemon => "no daemon answers on the control socket",
        }
    }
}

/// The paragraph of `--help` that lists the exit codes.
pub fn exit_codes_help() -> String {
    let mut text = String::from("Exit codes:\n  0  success");
    for kind in FailureKind::ALL {
        text.push_str(&format!("\n  {}  {}", kind.code(), kind.explain()));
    }
    text
}

/// Why the program ends without having done what it was asked. Shown as `error: MESSAGE` and, where there
/// is something to do about it, `help: HELP`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// Decides the exit code.
    pub kind: FailureKind,
    /// What went wrong: the thing, its value and the bound it broke.
    pub message: String,
    /// What the user can do about it.
    pub help: Option<String>,
}

impl Failure {
    /// A failure of this kind that says only what went wrong.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), help: None }
    }

    /// The same failure with advice.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Failure {
        Failure { help: Some(help.into()), ..self }
    }

    /// An input or output error of the operating system met while doing `what`; its kind follows from the
    /// error's.
    pub fn from_io(what: impl fmt::Display, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::PermissionDenied => FailureKind::NotPermitted,
            ErrorKind::AddrInUse | ErrorKind::ResourceBusy => FailureKind::InUse,
            _ => FailureKind::Runtime,
        };
        Failure::new(kind, format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\nhelp: {help}"),
            None => Ok(()),
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> ExitCode {
        ExitCode::from(failure.kind.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    /// Scripts rely on the codes, so they are listed here a second time, with the help that names them.
    #[test]
    fn exit_codes_are_as_documented() {
        assert_eq!(FailureKind::ALL.map(FailureKind::code), [1, 2, 3, 4, 5, 6]);
        let help = exit_codes_help();
        for kind in FailureKind::ALL {
            assert!(help.contains(&format!("\n  {}  {}", kind.code(), kind.explain())), "{help}");
        }
    }

    /// What the operating system says decides between "run me as root", "someone has it" and the rest.
    #[test]
    fn an_io_error_keeps_its_meaning() {
        let of = |errno| Failure::from_io("cannot open x", &std::io::Error::from(errno));
        assert_eq!(of(Errno::PERM).kind, FailureKind::NotPermitted);
        assert_eq!(of(Errno::ACCESS).kind, FailureKind::NotPermitted);
        assert_eq!(of(Errno::ADDRINUSE).kind, FailureKind::InUse);
        assert_eq!(of(Errno::BUSY).kind, FailureKind::InUse);
        assert_eq!(of(Errno::NODEV).kind, FailureKind::Runtime);
        assert_eq!(of(Errno::NODEV).to_string(), "error: cannot open x: No such device (os error 19)");
    }

    /// A failure with advice prints two lines, and without it one.
    #[test]
    fn a_failure_prints_its_help() {
        let failure = Failure::new(FailureKind::Usage, "no port");
        assert_eq!(failure.to_string(), "error: no port");
        assert_eq!(failure.with_help("add one").to_string(), "error: no port\nhelp: add one");
    }
}
