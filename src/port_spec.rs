//! What the user asks a port to be: the device behind it, its name, its part in VLANs, its VM.
//!
//! On the command line a port is `KIND:DEVICE[,name=NAME][,access=VID | ,trunk=VID+VID+..][,vm=PID]`, a vhost-user port
//! with `[,server | ,client][,queues=N]` besides; in a configuration file it is a table with the same keys. Both end
//! here, as a [`PortSpec`].

use hyper_switch_dataplane::api::VlanMode;
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// The most bytes of an interface's name, the kernel's `IFNAMSIZ` less the terminating zero.
pub const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// The most bytes of a port's name.
pub const MAX_PORT_NAME_BYTES: usize = 63;

/// The most bytes of a Unix socket's path, the kernel's `sun_path` less the terminating zero.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The most queue pairs of a vhost-user port.
pub const MAX_QUEUE_PAIRS: u16 = 8;

/// A port to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// What is behind the port.
    pub attachment: Attachment,
    /// The port's name: as the user gave it, or else the interface's or the socket's.
    pub name: PortName,
    /// Its part in VLANs.
    pub vlan: VlanMode,
    /// The process that its VM is, if the user said so: its threads tell the VM's run state.
    pub vm: Option<ProcessId>,
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A TAP interface, created when it is not there.
    Tap(InterfaceName),
    /// An existing interface, attached to over AF_PACKET.
    Packet(InterfaceName),
    /// A VM whose VMM is on the other side of a Unix socket.
    VhostUser(VhostUser),
}

/// A vhost-user socket, and what is offered there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUser {
    /// Where it is.
    pub path: SocketPath,
    /// Who waits for whom.
    pub role: SocketRole,
    /// Queue pairs that the VM may use, 1 to [`MAX_QUEUE_PAIRS`].
    pub queues: QueuePairs,
}

/// Which end of a socket the switch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketRole {
    /// It makes the socket, and VMMs connect.
    #[default]
    Server,
    /// It connects to the VMM's socket, again whenever that is there again.
    Client,
}

impl Attachment {
    /// The kind of port, as the user writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Attachment::Tap(_) => "tap",
            Attachment::Packet(_) => "packet",
            Attachment::VhostUser(_) => "vhost-user",
        }
    }

    /// What the port takes for itself: a network interface's name, or a socket's path.
    pub fn device(&self) -> &str {
        match self {
            Attachment::Tap(interface) | Attachment::Packet(interface) => interface.as_str(),
            Attachment::VhostUser(VhostUser { path, .. }) => path.as_str(),
        }
    }

    /// The name of a port that was given none: its interface's, or that of its socket's file.
    fn port_name(&self) -> Result<PortName, PortSpecError> {
        let device = self.device();
        PortName::try_from(device.rsplit('/').next().unwrap_or(device).to_owned())
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.device())
    }
}

/// Why a port that was asked for makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSpecError {
    /// The part before the colon is no kind of port, or there is no colon.
    #[error(
        "`{0}` does not say what the port is; write tap:NAME, packet:INTERFACE or vhost-user:PATH, for example tap:hp0"
    )]
    NoKind(String),
    /// An option that ports do not have.
    #[error(
        "`{0}` is no option of a port; there are name=NAME, access=VID, trunk=VID+VID and vm=PID, and of a vhost-user \
         port server, client and queues=N"
    )]
    UnknownOption(String),
    /// An option of other ports.
    #[error("`{0}` is an option of vhost-user ports alone")]
    ForVhostUser(&'static str),
    /// Not a number of queue pairs.
    #[error("`{0}` is no number of queue pairs; those are 1 to 8")]
    NotQueuePairs(String),
    /// No path that a socket can have.
    #[error("`{path}` is no path of a socket: {why}")]
    SocketPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: NameFault,
    },
    /// An option that is given a second time.
    #[error("`{0}` is given twice")]
    OptionTwice(&'static str),
    /// Both ways to take part in VLANs.
    #[error("`access` and `trunk` exclude each other: a port belongs to one VLAN or carries several")]
    AccessAndTrunk,
    /// A trunk of no VLAN.
    #[error("`trunk` lists no VLAN; a port without `access` and `trunk` passes all frames as they are")]
    EmptyTrunk,
    /// A trunk that names a VLAN a second time.
    #[error("VLAN {0} is listed twice")]
    VlanTwice(u16),
    /// Not a VLAN id (IEEE 802.1Q-2018, table 9-2).
    #[error("`{0}` is no VLAN id; those are 1 to 4094")]
    NotAVlan(String),
    /// Not a process's id.
    #[error("`{0}` is no process id; those are 1 to 2147483647")]
    NotAProcess(String),
    /// The kernel accepts no such name for an interface.
    #[error("`{name}` is no name of an interface: {why}")]
    InterfaceName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: NameFault,
    },
    /// Not a name for a port.
    #[error("`{name}` is no name of a port: {why}")]
    PortName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: NameFault,
    },
    /// A table of a configuration file with no device, or with several.
    #[error("a port is a `tap`, a `packet` or a `vhost-user` port; give it exactly one of the three keys")]
    NotOneAttachment,
}

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It has too many bytes.
    #[error("it has {bytes} bytes, {most} are allowed")]
    TooLong {
        /// Bytes that it has.
        bytes: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// It has a character that is not allowed.
    #[error("it contains {0:?}")]
    Character(char),
    /// It means a directory.
    #[error("it means a directory")]
    Directory,
}

fn check_name(name: &str, most: usize, forbidden: &[char]) -> Result<(), NameFault> {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !forbidden.contains(&c);
    match name.chars().find(|c| !allowed(*c)) {
        _ if name.is_empty() => Err(NameFault::Empty),
        _ if name.len() > most => Err(NameFault::TooLong { bytes: name.len(), most }),
        Some(c) => Err(NameFault::Character(c)),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[doc = $doc:literal])+ $name:ident, $check:path, $error:ident) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = PortSpecError;

            fn try_from(name: String) -> Result<$name, PortSpecError> {
                match $check(&name) {
                    Ok(()) => Ok($name(name)),
                    Err(why) => Err(PortSpecError::$error { name, why }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type! {
    /// A name that the kernel accepts for a network interface (`dev_valid_name`): 1 to 15 bytes, no slash,
    /// colon or white space, not `.` or `..`. A percent sign is refused too, as the kernel would take it
    /// for a pattern and choose another name.
    InterfaceName, check_interface_name, InterfaceName
}

name_type! {
    /// A port's name: 1 to 63 bytes without white space, control characters or commas.
    PortName, check_port_name, PortName
}

fn check_interface_name(name: &str) -> Result<(), NameFault> {
    match name {
        "." | ".." => Err(NameFault::Directory),
        _ => check_name(name, MAX_INTERFACE_NAME_BYTES, &['/', ':', '%']),
    }
}

fn check_port_name(name: &str) -> Result<(), NameFault> {
    check_name(name, MAX_PORT_NAME_BYTES, &[','])
}

/// The path of a Unix socket: 1 to 107 bytes without commas or control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketPath(String);

impl SocketPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SocketPath {
    type Error = PortSpecError;

    fn try_from(path: String) -> Result<SocketPath, PortSpecError> {
        let why = match path.chars().find(|c| c.is_control() || *c == ',') {
            _ if path.is_empty() => NameFault::Empty,
            _ if path.len() > MAX_SOCKET_PATH_BYTES => {
                NameFault::TooLong { bytes: path.len(), most: MAX_SOCKET_PATH_BYTES }
            }
            _ if path.ends_with('/') => NameFault::Directory,
            Some(c) => NameFault::Character(c),
            None => return Ok(SocketPath(path)),
        };
        Err(PortSpecError::SocketPath { path, why })
    }
}

/// A number of queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct QueuePairs(u16);

impl QueuePairs {
    /// One pair.
    pub const ONE: QueuePairs = QueuePairs(1);

    /// As a number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for QueuePairs {
    type Error = PortSpecError;

    fn try_from(number: i64) -> Result<QueuePairs, PortSpecError> {
        match u16::try_from(number) {
            Ok(pairs @ 1..=MAX_QUEUE_PAIRS) => Ok(QueuePairs(pairs)),
            _ => Err(PortSpecError::NotQueuePairs(number.to_string())),
        }
    }
}

impl FromStr for QueuePairs {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<QueuePairs, PortSpecError> {
        let number: i64 = text.parse().map_err(|_| PortSpecError::NotQueuePairs(text.to_owned()))?;
        QueuePairs::try_from(number)
    }
}

/// A VLAN id, 1 to 4094: 0 means no VLAN and 4095 is reserved (IEEE 802.1Q-2018, table 9-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "i64")]
pub struct VlanId(u16);

impl VlanId {
    /// The id as a number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for VlanId {
    type Error = PortSpecError;

    fn try_from(number: i64) -> Result<VlanId, PortSpecError> {
        match u16::try_from(number) {
            Ok(vid @ 1..=4094) => Ok(VlanId(vid)),
            _ => Err(PortSpecError::NotAVlan(number.to_string())),
        }
    }
}

impl FromStr for VlanId {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<VlanId, PortSpecError> {
        let number: i64 = text.parse().map_err(|_| PortSpecError::NotAVlan(text.to_owned()))?;
        VlanId::try_from(number)
    }
}

/// A process's id, 1 to 2147483647.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct ProcessId(u32);

impl ProcessId {
    /// The id as a number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<i64> for ProcessId {
    type Error = PortSpecError;

    fn try_from(number: i64) -> Result<ProcessId, PortSpecError> {
        match i32::try_from(number) {
            Ok(pid @ 1..) => Ok(ProcessId(pid.unsigned_abs())),
            _ => Err(PortSpecError::NotAProcess(number.to_string())),
        }
    }
}

impl FromStr for ProcessId {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<ProcessId, PortSpecError> {
        let number: i64 = text.parse().map_err(|_| PortSpecError::NotAProcess(text.to_owned()))?;
        ProcessId::try_from(number)
    }
}

fn vlan_mode(access: Option<VlanId>, trunk: Option<Vec<VlanId>>) -> Result<VlanMode, PortSpecError> {
    let vlans = match (access, trunk) {
        (None, None) => return Ok(VlanMode::Transparent),
        (Some(vlan), None) => return Ok(VlanMode::Access(vlan.get())),
        (Some(_), Some(_)) => return Err(PortSpecError::AccessAndTrunk),
        (None, Some(vlans)) => vlans,
    };
    if vlans.is_empty() {
        return Err(PortSpecError::EmptyTrunk);
    }
    let mut vids: Vec<u16> = vlans.into_iter().map(VlanId::get).collect();
    vids.sort_unstable();
    match vids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PortSpecError::VlanTwice(pair[0])),
        None => Ok(VlanMode::Trunk(vids)),
    }
}

fn set_once<T>(option: &'static str, place: &mut Option<T>, value: T) -> Result<(), PortSpecError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(PortSpecError::OptionTwice(option)),
    }
}

impl FromStr for PortSpec {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<PortSpec, PortSpecError> {
        let mut parts = text.split(',');
        let device = parts.next().unwrap_or_default();
        let mut table = PortTable::default();
        match device.split_once(':') {
            Some(("tap", name)) => table.tap = Some(InterfaceName::try_from(name.to_owned())?),
            Some(("packet", name)) => table.packet = Some(InterfaceName::try_from(name.to_owned())?),
            Some(("vhost-user", path)) => table.vhost_user = Some(SocketPath::try_from(path.to_owned())?),
            _ => return Err(PortSpecError::NoKind(device.to_owned())),
        }
        let PortTable { name, access, trunk, vm, role, queues, .. } = &mut table;
        for option in parts {
            match option.split_once('=') {
                Some(("name", value)) => set_once("name", name, PortName::try_from(value.to_owned())?)?,
                Some(("access", value)) => set_once("access", access, value.parse()?)?,
                Some(("trunk", value)) => {
                    let vlans = value.split('+').map(str::parse).collect::<Result<Vec<VlanId>, _>>()?;
                    set_once("trunk", trunk, vlans)?;
                }
                Some(("vm", value)) => set_once("vm", vm, value.parse()?)?,
                Some(("queues", value)) => set_once("queues", queues, value.parse()?)?,
                None if option == "server" => set_once("server or client", role, SocketRole::Server)?,
                None if option == "client" => set_once("server or client", role, SocketRole::Client)?,
                _ => return Err(PortSpecError::UnknownOption(option.to_owned())),
            }
        }

        PortSpec::try_from(table)
    }
}

/// A port as a table of a configuration file spells it. What concerns one key is checked as that key is
/// read, so that an error points at its line; the rest is checked by [`PortSpec::try_from`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortTable {
    tap: Option<InterfaceName>,
    packet: Option<InterfaceName>,
    #[serde(rename = "vhost-user")]
    vhost_user: Option<SocketPath>,
    role: Option<SocketRole>,
    queues: Option<QueuePairs>,
    name: Option<PortName>,
    access: Option<VlanId>,
    trunk: Option<Vec<VlanId>>,
    vm: Option<ProcessId>,
}

impl TryFrom<PortTable> for PortSpec {
    type Error = PortSpecError;

    fn try_from(mut table: PortTable) -> Result<PortSpec, PortSpecError> {
        let attachment = match (table.tap, table.packet, table.vhost_user) {
            (Some(interface), None, None) => Attachment::Tap(interface),
            (None, Some(interface), None) => Attachment::Packet(interface),
            (None, None, Some(path)) => {
                let role = table.role.take().unwrap_or_default();
                let queues = table.queues.take().unwrap_or(QueuePairs::ONE);
                Attachment::VhostUser(VhostUser { path, role, queues })
            }
            _ => return Err(PortSpecError::NotOneAttachment),
        };
        let left = [(table.role.is_some(), "server or client"), (table.queues.is_some(), "queues")];
        if let Some((_, option)) = left.iter().find(|(given, _)| *given) {
            return Err(PortSpecError::ForVhostUser(option));
        }
        let name = table.name.map_or_else(|| attachment.port_name(), Ok)?;
        Ok(PortSpec { attachment, name, vlan: vlan_mode(table.access, table.trunk)?, vm: table.vm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> InterfaceName {
        InterfaceName::try_from(name.to_owned()).unwrap()
    }

    fn port(name: &str) -> PortName {
        PortName::try_from(name.to_owned()).unwrap()
    }

    /// Each kind and each option is read, and a port without a name has its interface's.
    #[test]
    fn specs_are_read() {
        let tap = Attachment::Tap(interface("hp0"));
        let packet = Attachment::Packet(interface("eth0.7"));
        let socket = |role, queues| {
            let path = SocketPath::try_from("/run/vm1".to_owned()).unwrap();
            Attachment::VhostUser(VhostUser { path, role, queues: QueuePairs(queues) })
        };
        for (text, attachment, name, vlan, vm) in [
            ("tap:hp0", &tap, "hp0", VlanMode::Transparent, None),
            ("packet:eth0.7", &packet, "eth0.7", VlanMode::Transparent, None),
            ("tap:hp0,name=web", &tap, "web", VlanMode::Transparent, None),
            ("tap:hp0,access=10", &tap, "hp0", VlanMode::Access(10), None),
            ("tap:hp0,trunk=30+10+4094,name=up", &tap, "up", VlanMode::Trunk(vec![10, 30, 4094]), None),
            ("vhost-user:/run/vm1", &socket(SocketRole::Server, 1), "vm1", VlanMode::Transparent, None),
            (
                "vhost-user:/run/vm1,server",
                &socket(SocketRole::Server, 1),
                "vm1",
                VlanMode::Transparent,
                None,
            ),
            (
                "vhost-user:/run/vm1,queues=8,client,name=web,access=7",
                &socket(SocketRole::Client, 8),
                "web",
                VlanMode::Access(7),
                None,
            ),
            ("packet:eth0.7,vm=4242", &packet, "eth0.7", VlanMode::Transparent, Some(ProcessId(4242))),
        ] {
            let spec = PortSpec { attachment: attachment.clone(), name: port(name), vlan, vm };
            assert_eq!(text.parse(), Ok(spec), "{text}");
        }
    }

    /// Every spec that makes no sense is refused with its offending part and with what would be right.
    #[test]
    fn nonsense_is_refused_by_name() {
        let vlans = "is no VLAN id; those are 1 to 4094";
        let kinds = "does not say what the port is; write tap:NAME, packet:INTERFACE or vhost-user:PATH, for example tap:hp0";
        let options = "is no option of a port; there are name=NAME, access=VID, trunk=VID+VID and vm=PID, and of a \
                       vhost-user port server, client and queues=N";
        let pairs = "is no number of queue pairs; those are 1 to 8";
        for (text, message) in [
            ("", format!("`` {kinds}")),
            ("hp0", format!("`hp0` {kinds}")),
            ("tun:hp0", format!("`tun:hp0` {kinds}")),
            ("tap:", "`` is no name of an interface: it is empty".into()),
            (
                "tap:sixteen-bytes-xx",
                "`sixteen-bytes-xx` is no name of an interface: it has 16 bytes, 15 are allowed".into(),
            ),
            ("tap:a/b", "`a/b` is no name of an interface: it contains '/'".into()),
            ("tap:a b", "`a b` is no name of an interface: it contains ' '".into()),
            ("tap:a:b", "`a:b` is no name of an interface: it contains ':'".into()),
            ("tap:hp%d", "`hp%d` is no name of an interface: it contains '%'".into()),
            ("tap:..", "`..` is no name of an interface: it means a directory".into()),
            ("tap:a\0", "`a\0` is no name of an interface: it contains '\\0'".into()),
            ("tap:hp0,name=", "`` is no name of a port: it is empty".into()),
            ("tap:hp0,name=a,name=b", "`name` is given twice".into()),
            ("tap:hp0,", format!("`` {options}")),
            ("tap:hp0,acces=1", format!("`acces=1` {options}")),
            ("tap:hp0,access=0", format!("`0` {vlans}")),
            ("tap:hp0,access=4095", format!("`4095` {vlans}")),
            ("tap:hp0,access=ten", format!("`ten` {vlans}")),
            ("tap:hp0,trunk=", format!("`` {vlans}")),
            ("tap:hp0,trunk=1+99999999999999999999", format!("`99999999999999999999` {vlans}")),
            ("tap:hp0,vm=0", "`0` is no process id; those are 1 to 2147483647".into()),
            ("tap:hp0,vm=qemu", "`qemu` is no process id; those are 1 to 2147483647".into()),
            ("tap:hp0,vm=1,vm=2", "`vm` is given twice".into()),
            ("tap:hp0,queues=2", "`queues` is an option of vhost-user ports alone".into()),
            ("packet:hp0,client", "`server or client` is an option of vhost-user ports alone".into()),
            ("vhost-user:/a,client,server", "`server or client` is given twice".into()),
            ("vhost-user:/a,queues=0", format!("`0` {pairs}")),
            ("vhost-user:/a,queues=9", format!("`9` {pairs}")),
            ("vhost-user:/a,queues=all", format!("`all` {pairs}")),
            ("vhost-user:", "`` is no path of a socket: it is empty".into()),
            ("vhost-user:/run/", "`/run/` is no path of a socket: it means a directory".into()),
            ("vhost-user:/a b", "`a b` is no name of a port: it contains ' '".into()),
            ("tap:hp0,trunk=7+9+7", "VLAN 7 is listed twice".into()),
            (
                "tap:hp0,access=1,trunk=2",
                "`access` and `trunk` exclude each other: a port belongs to one VLAN or carries several"
                    .into(),
            ),
        ] {
            let error = text.parse::<PortSpec>().expect_err(text);
            assert_eq!(error.to_string(), message, "{text}");
        }
    }
}
