//! The envelope: `{"cmd":"ports"}` is answered with `{"version":1,"ok":{"ports":[..]}}` or with
//! `{"version":1,"error":{"message":"..","help":".."}}`. One JSON object a line; a connection may carry any
//! number of them, one at a time.

use super::status::{FlowStatus, MacStatus, PortStatus, StatsReport};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The version of everything that goes over the socket. New fields leave it as it is: readers skip what
/// they do not know. A change of what is there raises it.
pub const VERSION: u32 = 1;

/// The most bytes of a request, its newline not counted.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Query {
    /// The ports, their state, traffic and drops
    Ports,
    /// The installed flows with their counters
    Flows,
    /// The MAC addresses that were learned
    Macs,
    /// Totals, what each core did, and why packets were dropped
    Stats,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The version that the asker speaks; [`VERSION`] if left out, for people who type.
    #[serde(default = "this_version")]
    pub version: u32,
    /// What is asked.
    pub cmd: Query,
}

/// An answer, good or bad.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The version that the daemon speaks.
    pub version: u32,
    /// `ok` or `error`.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The good or the bad part of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// What was asked for.
    Ok(Answer),
    /// Why there is none.
    Error(Refusal),
}

/// What was asked for, under the name that it was asked by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Answers [`Query::Ports`], in the order of the ports' numbers.
    Ports(Vec<PortStatus>),
    /// Answers [`Query::Flows`].
    Flows(Vec<FlowStatus>),
    /// Answers [`Query::Macs`].
    Macs(Vec<MacStatus>),
    /// Answers [`Query::Stats`].
    Stats(StatsReport),
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What went wrong.
    pub message: String,
    /// What the asker can do about it; may be empty.
    #[serde(default)]
    pub help: String,
}

fn this_version() -> u32 {
    VERSION
}

impl Refusal {
    /// A refusal with advice.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), help: help.into() }
    }
}

impl From<Result<Answer, Refusal>> for Reply {
    fn from(result: Result<Answer, Refusal>) -> Reply {
        let outcome = match result {
            Ok(answer) => Outcome::Ok(answer),
            Err(refusal) => Outcome::Error(refusal),
        };
        Reply { version: VERSION, outcome }
    }
}

impl Request {
    /// Reads one line, without its newline.
    ///
    /// # Errors
    /// The refusal to answer with, if the line is no request of this version. The version is looked at
    /// first, so that a newer client is told about versions and not about fields.
    pub fn from_line(line: &[u8]) -> Result<Request, Refusal> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(default = "this_version")]
            version: u32,
        }
        let refusal = |error: serde_json::Error| {
            Refusal::new(
                format!("this is no request: {error}"),
                r#"send one line, for example {"cmd":"ports"}"#,
            )
        };
        let Versioned { version } = serde_json::from_slice(line).map_err(refusal)?;
        if version != VERSION {
            return Err(Refusal::new(
                format!("the request has version {version}, this daemon speaks version {VERSION}"),
                "use the `hyper-switch` that the daemon was started with",
            ));
        }
        serde_json::from_slice(line).map_err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes on the wire are a promise to scripts; these are they.
    #[test]
    fn the_wire_is_as_documented() {
        let request = Request::from_line(br#"{"cmd":"ports"}"#).unwrap();
        assert_eq!(request, Request { version: 1, cmd: Query::Ports });
        let wire = |result| serde_json::to_string(&Reply::from(result)).unwrap();
        assert_eq!(wire(Ok(Answer::Macs(vec![]))), r#"{"version":1,"ok":{"macs":[]}}"#);
        assert_eq!(
            wire(Err(Refusal::new("no", "ask again"))),
            r#"{"version":1,"error":{"message":"no","help":"ask again"}}"#
        );
    }

    /// A reply comes back from its bytes as it went.
    #[test]
    fn replies_survive_the_wire() {
        for result in [Ok(Answer::Ports(vec![])), Err(Refusal::new("no", ""))] {
            let reply = Reply::from(result);
            let bytes = serde_json::to_vec(&reply).unwrap();
            assert_eq!(serde_json::from_slice::<Reply>(&bytes).unwrap(), reply);
        }
    }

    /// Whatever else a line holds, it is refused with words, also if it would exhaust a careless parser.
    #[test]
    fn nonsense_is_refused() {
        let deep = "[".repeat(MAX_REQUEST_BYTES);
        for (line, part) in [
            ("", "EOF"),
            ("ports", "expected"),
            ("{}", "missing field `cmd`"),
            (
                r#"{"cmd":"reboot"}"#,
                "unknown variant `reboot`, expected one of `ports`, `flows`, `macs`, `stats`",
            ),
            (r#"{"version":2,"cmd":"reboot"}"#, "the request has version 2, this daemon speaks version 1"),
            ("\u{0}\u{1}", "expected value"),
            (&deep, "invalid type: sequence"),
        ] {
            let refusal = Request::from_line(line.as_bytes()).unwrap_err();
            assert!(refusal.message.contains(part), "{line:.40}: {refusal}");
        }
        assert!(Request::from_line(b"\xff\xfe").is_err());
    }
}
