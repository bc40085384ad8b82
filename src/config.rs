//! What `run` is to do: the command line and the configuration file, combined into [`RunOptions`].
//!
//! The file is TOML and says what the command line says, and the control plane's limits besides. Ports of
//! both add up; of anything that there is one of, the command line's wins. An error in the file names the
//! file, the line and the key, and shows the line.

use crate::exit::{Failure, FailureKind};
use crate::optimisations::OptimisationSet;
use crate::port_spec::{PortSpec, PortTable};
use crate::source::Source;
use crate::{core_list::CoreList, ctl::socket, log_filter::LogFilter};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// A configuration file that uses every key; shown by `run --help`.
pub const EXAMPLE: &str = "\
cores = \"0,2-3\"                  # the cores that switch; all if left out
optimisations = \"all\"            # or none, or some of preempt,batch,offload
ctl = \"/run/hyper-switch/ctl.sock\"
log = \"info\"                     # what the log shows

[learning]                       # all keys may be left out
mac_ageing_s = 300               # a MAC address is forgotten after this silence
flow_idle_s = 10                 # a flow is removed after this silence
max_macs = 32768                 # MAC addresses that are remembered, of all ports
max_macs_per_port = 4096         # and of one port, so that none can crowd out the others

[[port]]
tap = \"hp0\"                      # a TAP interface, made if it is not there
name = \"web\"                     # the interface's name if left out
access = 10                      # one VLAN, untagged
vm = 4242                        # the process that its VM is, to know when that runs

[[port]]
packet = \"eth1\"                  # an existing interface
trunk = [10, 20]                 # several VLANs, tagged

[[port]]
vhost-user = \"/run/vm1.sock\"    # a VM, by its VMM's vhost-user socket
role = \"server\"                  # the switch makes the socket; client: the VMM does
queues = 2                       # queue pairs, 1 to 8
";

/// What `hyper-switch run` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The ports, at least one. Names and interfaces are unique.
    pub ports: Vec<PortSpec>,
    /// The cores that switch; all that the process may use if `None`.
    pub cores: Option<CoreList>,
    /// The optimisations that are on.
    pub optimisations: OptimisationSet,
    /// Where the control socket is to be.
    pub ctl_socket: PathBuf,
    /// The control plane's limits.
    pub learning: LearningOptions,
}

/// Limits of MAC learning and of the flows that come of it. What is `None` is for the control plane to
/// choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningOptions {
    /// Seconds of silence after which a MAC address is forgotten.
    pub mac_ageing_s: Option<NonZeroU64>,
    /// Seconds without a packet after which a flow is removed.
    pub flow_idle_s: Option<NonZeroU64>,
    /// MAC addresses that are remembered, of all ports together.
    pub max_macs: Option<NonZeroU32>,
    /// MAC addresses that are remembered of one port.
    pub max_macs_per_port: Option<NonZeroU32>,
}

/// The part of the options that the command line gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandLine {
    pub(crate) ports: Vec<PortSpec>,
    pub(crate) cores: Option<CoreList>,
    pub(crate) optimisations: Option<OptimisationSet>,
    pub(crate) ctl: Option<PathBuf>,
}

/// The part of the options that a configuration file gave.
#[derive(Debug, Default)]
pub(crate) struct ConfigFile {
    ports: Vec<(PortSpec, Place)>,
    cores: Option<CoreList>,
    optimisations: Option<OptimisationSet>,
    ctl: Option<PathBuf>,
    learning: LearningOptions,
    /// Which log events to show.
    pub(crate) log: Option<LogFilter>,
}

/// Where the user wrote something.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In a `--port` of the command line, counted from 1.
    CommandLine(usize),
    /// In a file.
    File { path: PathBuf, line: usize },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::CommandLine(number) => write!(f, "`--port` number {number} of the command line"),
            Place::File { path, line } => write!(f, "{}, line {line}", path.display()),
        }
    }
}

impl ConfigFile {
    /// Reads the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<ConfigFile, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot read the configuration file {}: {error}", path.display());
            Failure::new(FailureKind::Configuration, message)
        })?;
        ConfigFile::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<ConfigFile, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            #[serde(default)]
            port: Vec<Spanned<PortTable>>,
            cores: Option<CoreList>,
            optimisations: Option<OptimisationSet>,
            ctl: Option<PathBuf>,
            log: Option<LogFilter>,
            #[serde(default)]
            learning: LearningOptions,
        }

        let source = Source { path, text };
        let fault = |span, message: &str| {
            source.fault(span, message).with_help("`hyper-switch run --help` shows a file with every key")
        };
        let document: Document =
            toml::from_str(text).map_err(|e| fault(e.span().unwrap_or_default(), e.message()))?;
        let mut ports = Vec::with_capacity(document.port.len());
        for table in document.port {
            let span = table.span();
            let place = Place::File { path: path.to_owned(), line: source.line(span.start).number };
            match PortSpec::try_from(table.into_inner()) {
                Ok(spec) => ports.push((spec, place)),
                Err(error) => return Err(fault(span, &error.to_string())),
            }
        }
        let Document { cores, optimisations, ctl, log, learning, .. } = document;
        Ok(ConfigFile { ports, cores, optimisations, ctl, learning, log })
    }
}

impl RunOptions {
    /// Combines both sources, and checks what only both together can get wrong.
    pub(crate) fn combine(line: CommandLine, file: ConfigFile) -> Result<RunOptions, Failure> {
        let numbered = line.ports.into_iter().zip(1..);
        let mut ports: Vec<_> = numbered.map(|(spec, number)| (spec, Place::CommandLine(number))).collect();
        ports.extend(file.ports);
        if ports.is_empty() {
            return Err(Failure::new(FailureKind::Usage, "the switch has no port")
                .with_help("give it some, for example: hyper-switch run --port tap:hp0 --port tap:hp1"));
        }
        refuse_duplicates(&ports)?;
        Ok(RunOptions {
            ports: ports.into_iter().map(|(spec, _)| spec).collect(),
            cores: line.cores.or(file.cores),
            optimisations: line.optimisations.or(file.optimisations).unwrap_or(OptimisationSet::ALL),
            ctl_socket: line.ctl.or(file.ctl).unwrap_or_else(socket::default_path),
            learning: file.learning,
        })
    }
}

/// Ports are told apart by name, and an interface or a socket can be behind one port only.
fn refuse_duplicates(ports: &[(PortSpec, Place)]) -> Result<(), Failure> {
    let (mut names, mut devices) = (HashMap::new(), HashMap::new());
    for (spec, place) in ports {
        let device = spec.attachment.device();
        let (what, first, help) = if let Some(first) = devices.insert(device, place) {
            let help = "an interface or a socket can be behind one port only; remove one of the two";
            (format!("two ports take `{device}`"), first, help)
        } else if let Some(first) = names.insert(&spec.name, place) {
            let help = "give one of them another name with `name=`";
            (format!("two ports are named `{}`", spec.name), first, help)
        } else {
            continue;
        };
        let kind = match (first, place) {
            (Place::CommandLine(_), Place::CommandLine(_)) => FailureKind::Usage,
            _ => FailureKind::Configuration,
        };
        return Err(Failure::new(kind, format!("{what}: {first}, and {place}")).with_help(help));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_switch_dataplane::api::VlanMode;

    fn parse(text: &str) -> Result<ConfigFile, Failure> {
        ConfigFile::parse(Path::new("hs.toml"), text)
    }

    fn command_line(ports: &[&str]) -> CommandLine {
        CommandLine { ports: ports.iter().map(|p| p.parse().unwrap()).collect(), ..CommandLine::default() }
    }

    fn specs(texts: &[&str]) -> Vec<PortSpec> {
        command_line(texts).ports
    }

    /// The example of the help is a valid file, and every key of it arrives.
    #[test]
    fn the_example_is_read() {
        let file = parse(EXAMPLE).unwrap();
        assert_eq!(file.log.as_ref().map(LogFilter::as_str), Some("info"));
        let options = RunOptions::combine(CommandLine::default(), file).unwrap();
        let expected = RunOptions {
            ports: specs(&[
                "tap:hp0,name=web,access=10,vm=4242",
                "packet:eth1,trunk=10+20",
                "vhost-user:/run/vm1.sock,queues=2",
            ]),
            cores: Some("0,2-3".parse().unwrap()),
            optimisations: OptimisationSet::ALL,
            ctl_socket: "/run/hyper-switch/ctl.sock".into(),
            learning: LearningOptions {
                mac_ageing_s: NonZeroU64::new(300),
                flow_idle_s: NonZeroU64::new(10),
                max_macs: NonZeroU32::new(32_768),
                max_macs_per_port: NonZeroU32::new(4_096),
            },
        };
        assert_eq!(options, expected);
    }

    /// Ports of the command line and of the file add up, in this order; of the rest the command line's wins.
    #[test]
    fn the_command_line_wins_and_ports_add_up() {
        let text = "cores = '0'\noptimisations = 'batch'\nctl = '/file'\n[[port]]\ntap = 'b'";
        let line = CommandLine {
            cores: Some("1".parse().unwrap()),
            optimisations: Some(OptimisationSet::NONE),
            ..command_line(&["tap:a"])
        };
        let options = RunOptions::combine(line, parse(text).unwrap()).unwrap();
        assert_eq!(options.ports, specs(&["tap:a", "tap:b"]));
        assert_eq!(options.cores, Some("1".parse().unwrap()));
        assert_eq!(options.optimisations, OptimisationSet::NONE);
        assert_eq!(options.ctl_socket, Path::new("/file"));
        assert_eq!(options.ports[0].vlan, VlanMode::Transparent);
        let file_alone = RunOptions::combine(CommandLine::default(), parse(text).unwrap()).unwrap();
        assert_eq!(file_alone.optimisations, "batch".parse().unwrap());
        let neither = RunOptions::combine(command_line(&["tap:a"]), ConfigFile::default()).unwrap();
        assert_eq!(neither.optimisations, OptimisationSet::ALL);
    }

    /// Each mistake in a file is answered with the file, the line, the key, and what would be right.
    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, message) in [
            (
                "cores = '0'\n\n[[port]]\ntap = 'hp0'\nacess = 10\n",
                "hs.toml, line 5: unknown field `acess`, expected one of `tap`, `packet`, `vhost-user`, `role`, `queues`, `name`, `access`, `trunk`, `vm`
 5 | acess = 10
   | ^^^^^",
            ),
            (
                "core = '0'",
                "hs.toml, line 1: unknown field `core`, expected one of `port`, `cores`, `optimisations`, `ctl`, `log`, `learning`
 1 | core = '0'
   | ^^^^",
            ),
            (
                "cores = '0-x'",
                "hs.toml, line 1: `0-x` is neither a core nor a range of cores; write for example 0,2-3
 1 | cores = '0-x'
   |         ^^^^^",
            ),
            (
                "optimisations = 'each'",
                "hs.toml, line 1: `each` is no optimisation; there are preempt, batch and offload, or all or none of them
 1 | optimisations = 'each'
   |                 ^^^^^^",
            ),
            (
                "[[port]]\ntap = 'hp0'\naccess = 5000",
                "hs.toml, line 3: `5000` is no VLAN id; those are 1 to 4094
 3 | access = 5000
   |          ^^^^",
            ),
            (
                "[[port]]\ntap = 'a/b'",
                "hs.toml, line 2: `a/b` is no name of an interface: it contains '/'
 2 | tap = 'a/b'
   |       ^^^^^",
            ),
            (
                "# two of them\n[[port]]\ntap = 'a'\npacket = 'b'",
                "hs.toml, line 2: a port is a `tap`, a `packet` or a `vhost-user` port; give it exactly one of the three keys
 2 | [[port]]
   | ^^^^^^^^",
            ),
            (
                "[learning]\nmac_ageing_s = 0",
                "hs.toml, line 2: invalid value: integer `0`, expected a nonzero u64
 2 | mac_ageing_s = 0
   |                ^",
            ),
            (
                "ctl = 7",
                "hs.toml, line 1: invalid type: integer `7`, expected path string
 1 | ctl = 7
   |       ^",
            ),
            (
                "[[port]\ntap = 'a'",
                "hs.toml, line 1: unclosed array table, expected `]`
 1 | [[port]
   |        ^",
            ),
        ] {
            let failure = parse(text).expect_err(text);
            assert_eq!(failure.message, message, "{text}");
            assert_eq!(failure.kind, FailureKind::Configuration);
            assert!(failure.help.is_some());
        }
    }

    /// Two ports with one name or one interface are refused, and both places are named.
    #[test]
    fn duplicates_are_refused_with_both_places() {
        let file = "[[port]]\ntap = 'hp9'\nname = 'a'\n";
        for (line, file, kind, message) in [
            (
                &["tap:hp0", "packet:hp0,name=b"][..],
                "",
                FailureKind::Usage,
                "two ports take `hp0`: `--port` number 1 of the command line, \
                 and `--port` number 2 of the command line",
            ),
            (
                &["tap:a"],
                file,
                FailureKind::Configuration,
                "two ports are named `a`: `--port` number 1 of the command line, and hs.toml, line 1",
            ),
        ] {
            let failure = RunOptions::combine(command_line(line), parse(file).unwrap()).unwrap_err();
            assert_eq!((failure.kind, failure.message.as_str()), (kind, message));
        }
    }

    /// A switch without ports is refused, and told how to have some.
    #[test]
    fn no_port_is_refused_with_an_example() {
        let failure = RunOptions::combine(CommandLine::default(), parse("").unwrap()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.to_string().contains("hyper-switch run --port tap:hp0"), "{failure}");
    }
}
