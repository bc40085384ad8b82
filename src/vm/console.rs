//! The conversation with a guest over a serial port of its own: a line is a command, or a part of its answer.
//!
//! ```text
//! host   1 ping -c 1 10.77.0.2
//! guest  hs ready                        once a boot, before anything else
//! guest  hs 1|64 bytes from 10.77.0.2    a line that the command printed
//! guest  hs 1|exit code 0                the last line of its answer
//! ```
//!
//! Lines that do not begin so are noise: of firmware, of a kernel, of a boot that broke off in the middle of a line.

/// Something that the guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has booted and takes commands.
    Ready,
    /// A command printed a line.
    Line {
        /// The command's number.
        id: u64,
        /// The line.
        text: String,
    },
    /// A command has ended.
    Ended {
        /// The command's number.
        id: u64,
        /// Its exit code.
        code: i32,
    },
}

/// What the guest said by `line`; none if it is noise.
pub fn parse(line: &str) -> Option<Said> {
    let said = line.trim_end_matches('\r').strip_prefix("hs ")?;
    if said == "ready" {
        return Some(Said::Ready);
    }
    let (id, text) = said.split_once('|')?;
    let id = id.parse().ok()?;
    match text.strip_prefix("exit code ").and_then(|code| code.parse().ok()) {
        Some(code) => Some(Said::Ended { id, code }),
        None => Some(Said::Line { id, text: text.to_owned() }),
    }
}

/// The line that has the guest execute `command`, which has to be one line.
pub fn command(id: u64, command: &str) -> String {
    assert!(!command.contains('\n'), "a command of several lines: {command:?}");
    format!("{id} {command}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of line is read, with what serial ports put at its end; what is not ours is noise.
    #[test]
    fn lines_are_read_and_noise_is_not() {
        let line = |id, text: &str| Some(Said::Line { id, text: text.into() });
        for (text, said) in [
            ("hs ready\r", Some(Said::Ready)),
            ("hs 1|64 bytes from 10.77.0.2: seq=0\r", line(1, "64 bytes from 10.77.0.2: seq=0")),
            ("hs 2|", line(2, "")),
            ("hs 2|a|b", line(2, "a|b")),
            ("hs 2|exit code 0", Some(Said::Ended { id: 2, code: 0 })),
            ("hs 2|exit code -1\r", Some(Said::Ended { id: 2, code: -1 })),
            ("hs 2|exit code unknown", line(2, "exit code unknown")),
            ("[    1.2] hs: ready", None),
            ("[    1.2] random: crng init done hs ready", None),
            ("hs", None),
            ("hs x|y", None),
            ("hs 99999999999999999999|y", None),
            ("", None),
        ] {
            assert_eq!(parse(text), said, "{text:?}");
        }
        assert_eq!(command(7, "ls /"), "7 ls /\n");
    }
}
