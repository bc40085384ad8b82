//! Messages of the vhost-user protocol: bytes to requests and replies to bytes (QEMU's
//! `docs/interop/vhost-user.rst`, "Message Specification"). Numbers are in the machine's byte order.
//!
//! A request is checked here as far as it can be by itself: its version, its payload's length, how many file
//! descriptors came with it, counts and flags. What it means in its place is [`super::session`]'s matter.

use arrayvec::ArrayVec;
use core::mem::size_of;
use std::os::fd::OwnedFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most file descriptors that one message may carry ("at most 8 descriptors").
pub const MAX_FDS: usize = 8;
/// The most regions that one `SET_MEM_TABLE` may name.
pub const MAX_TABLE_REGIONS: usize = 8;
/// Bytes of configuration space that a message may be about, as QEMU bounds them.
pub const MAX_CONFIG_BYTES: usize = 256;
/// The most bytes that a payload may have: those of a configuration space behind its head; a full table of
/// memory regions has four fewer.
pub const MAX_PAYLOAD_BYTES: usize = size_of::<ConfigHead>() + MAX_CONFIG_BYTES;
/// Bytes of a message's header.
pub const HEADER_BYTES: usize = size_of::<Header>();

/// The file descriptors of one message, in order.
pub type Fds = ArrayVec<OwnedFd, MAX_FDS>;

/// The version in the two lowest bits of a header's flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What stands before each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The request's number.
    pub request: u32,
    /// Version, whether it is a reply, whether it wants one.
    pub flags: u32,
    /// Bytes of payload.
    pub size: u32,
}

impl Header {
    /// The header of a front-end's request, checked: bytes of payload are in bounds.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Header, MessageFault> {
        let header: Header = zerocopy::transmute!(bytes);
        let Header { request, flags, size } = header;
        if flags & VERSION_MASK != VERSION {
            return Err(MessageFault::Version { request, flags });
        }
        if flags & REPLY != 0 {
            return Err(MessageFault::UnaskedReply { request });
        }
        if size as usize > MAX_PAYLOAD_BYTES {
            return Err(MessageFault::PayloadBytes { request, bytes: size as usize });
        }
        Ok(header)
    }

    /// Whether the front-end waits for an answer, if that was negotiated (`REPLY_ACK`).
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A ring and a number: its size, its base, or whether it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// The ring.
    pub index: u32,
    /// The number.
    pub num: u32,
}

/// Where a ring lies, in the front-end's user addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddr {
    /// The ring.
    pub index: u32,
    /// `VHOST_VRING_F_LOG` is the one flag.
    pub flags: u32,
    /// Descriptor table; of a packed ring its descriptors.
    pub descriptor: u64,
    /// Used ring; of a packed ring the device's event area.
    pub used: u64,
    /// Available ring; of a packed ring the driver's event area.
    pub available: u64,
    /// Where writes to the used ring would be logged.
    pub log: u64,
}

/// A part of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Where the guest sees it.
    pub guest_addr: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Where the front-end sees it.
    pub user_addr: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
}

/// The in-flight region that is asked for or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InflightDescription {
    /// Its bytes.
    pub mmap_size: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
    /// Rings that it has room for.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// QEMU sends its structure with the padding at its end; others may send it without.
    padding: u32,
}

impl InflightDescription {
    /// Bytes of it without the padding at its end.
    const UNPADDED: usize = 20;

    /// A region of `bytes` from its file's start.
    pub fn new(bytes: u64, queues: u16, queue_size: u16) -> InflightDescription {
        InflightDescription { mmap_size: bytes, mmap_offset: 0, queues, queue_size, padding: 0 }
    }

    fn parse(payload: &[u8]) -> Option<InflightDescription> {
        let mut padded = [0; size_of::<InflightDescription>()];
        let fits = (Self::UNPADDED..=padded.len()).contains(&payload.len());
        fits.then(|| {
            padded[..payload.len()].copy_from_slice(payload);
            zerocopy::transmute!(padded)
        })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ConfigHead {
    offset: u32,
    size: u32,
    flags: u32,
}

/// A range of the device's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigRange {
    /// Its first byte.
    pub offset: u32,
    /// Its bytes, of which as many followed.
    pub size: u32,
    /// 1 for live migration, which may write what a guest may not.
    pub flags: u32,
}

/// A ring and an eventfd, or that there is none.
#[derive(Debug)]
pub struct VringFd {
    /// The ring.
    pub index: u8,
    /// The eventfd; without one, the other side polls or is to be polled.
    pub fd: Option<OwnedFd>,
}

/// What a front-end asks for, with the file descriptors that belong to it.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(MemoryRegion, OwnedFd)>),
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    SendRarp([u8; 6]),
    NetSetMtu(u64),
    GetConfig(ConfigRange),
    SetConfig(ConfigRange),
    GetInflightFd(InflightDescription),
    SetInflightFd(InflightDescription, OwnedFd),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(MemoryRegion, OwnedFd),
    RemMemReg(MemoryRegion),
    SetStatus(u64),
    GetStatus,
    /// Any other: one that belongs to a protocol feature that is not offered, or to none that is known.
    Other,
}

/// A message that no front-end may send, whatever came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each field is named in the message")]
pub enum MessageFault {
    /// The protocol has one version.
    #[error("request {request}: flags {flags:#x} are not of version 1")]
    Version { request: u32, flags: u32 },
    /// Nothing was asked of the front-end.
    #[error("request {request}: a reply to nothing")]
    UnaskedReply { request: u32 },
    /// The payload is not as long as the request says, or longer than any.
    #[error("request {request}: a payload of {bytes} bytes")]
    PayloadBytes { request: u32, bytes: usize },
    /// Too few or too many file descriptors.
    #[error("request {request}: {fds} file descriptors")]
    Fds { request: u32, fds: usize },
    /// More regions than a table holds.
    #[error("a table of {0} memory regions")]
    TableRegions(u32),
    /// Bits beside the ring's index and the flag that no file descriptor came.
    #[error("request {request}: {value:#x} is no ring and flag")]
    VringFd { request: u32, value: u64 },
}

/// One message, whole.
#[derive(Debug)]
pub struct Message {
    /// Its header, checked.
    pub header: Header,
    /// As many bytes as the header says.
    pub payload: ArrayVec<u8, MAX_PAYLOAD_BYTES>,
}

impl Message {
    /// What the message asks for. File descriptors that it should not have are a fault, and closed.
    pub fn request(&self, fds: Fds) -> Result<Request, MessageFault> {
        let request = self.header.request;
        let mut fds = Arrived { request, fds };
        let decoded = match request {
            1 => self.empty(Request::GetFeatures)?,
            2 => Request::SetFeatures(self.plain()?),
            3 => self.empty(Request::SetOwner)?,
            4 => self.empty(Request::ResetOwner)?,
            5 => Request::SetMemTable(self.table(&mut fds)?),
            8 => Request::SetVringNum(self.plain()?),
            9 => Request::SetVringAddr(self.plain()?),
            10 => Request::SetVringBase(self.plain()?),
            11 => Request::GetVringBase(self.plain()?),
            12 => Request::SetVringKick(self.vring_fd(&mut fds)?),
            13 => Request::SetVringCall(self.vring_fd(&mut fds)?),
            14 => Request::SetVringErr(self.vring_fd(&mut fds)?),
            15 => self.empty(Request::GetProtocolFeatures)?,
            16 => Request::SetProtocolFeatures(self.plain()?),
            17 => self.empty(Request::GetQueueNum)?,
            18 => Request::SetVringEnable(self.plain()?),
            19 => {
                let [a, b, c, d, e, f, _, _] = self.plain()?;
                Request::SendRarp([a, b, c, d, e, f])
            }
            20 => Request::NetSetMtu(self.plain()?),
            24 => Request::GetConfig(self.config()?),
            25 => Request::SetConfig(self.config()?),
            31 => Request::GetInflightFd(self.inflight()?),
            32 => Request::SetInflightFd(self.inflight()?, fds.take()?),
            34 => self.empty(Request::ResetDevice)?,
            36 => self.empty(Request::GetMaxMemSlots)?,
            37 => Request::AddMemReg(self.single_region()?, fds.take()?),
            38 => {
                // "For compatibility with existing incorrect implementations, the back-end MAY accept messages
                // with one file descriptor", which it closes.
                if fds.fds.len() == 1 {
                    fds.take()?;
                }
                Request::RemMemReg(self.single_region()?)
            }
            39 => Request::SetStatus(self.plain()?),
            40 => self.empty(Request::GetStatus)?,
            _ => {
                fds.fds.clear();
                Request::Other
            }
        };
        fds.none_left().map(|()| decoded)
    }

    fn wrong_length(&self) -> MessageFault {
        MessageFault::PayloadBytes { request: self.header.request, bytes: self.payload.len() }
    }

    fn empty(&self, request: Request) -> Result<Request, MessageFault> {
        if self.payload.is_empty() { Ok(request) } else { Err(self.wrong_length()) }
    }

    /// A payload that is one value, no more and no less.
    fn plain<T: FromBytes>(&self) -> Result<T, MessageFault> {
        T::read_from_bytes(&self.payload).map_err(|_| self.wrong_length())
    }

    fn table(&self, fds: &mut Arrived) -> Result<Vec<(MemoryRegion, OwnedFd)>, MessageFault> {
        let (head, mut rest) =
            <[u32; 2]>::read_from_prefix(&self.payload).map_err(|_| self.wrong_length())?;
        let [count, _padding] = head;
        if count as usize > MAX_TABLE_REGIONS {
            return Err(MessageFault::TableRegions(count));
        }
        let mut regions = Vec::new();
        for _ in 0..count {
            let (region, after) = MemoryRegion::read_from_prefix(rest).map_err(|_| self.wrong_length())?;
            regions.push((region, fds.take()?));
            rest = after;
        }
        if rest.is_empty() { Ok(regions) } else { Err(self.wrong_length()) }
    }

    fn single_region(&self) -> Result<MemoryRegion, MessageFault> {
        #[derive(FromBytes)]
        #[repr(C)]
        struct Single {
            _padding: u64,
            region: MemoryRegion,
        }
        self.plain::<Single>().map(|single| single.region)
    }

    fn vring_fd(&self, fds: &mut Arrived) -> Result<VringFd, MessageFault> {
        const NO_FD: u64 = 1 << 8;
        let value: u64 = self.plain()?;
        if value & !(0xff | NO_FD) != 0 {
            return Err(MessageFault::VringFd { request: self.header.request, value });
        }
        let fd = if value & NO_FD == 0 { Some(fds.take()?) } else { None };
        Ok(VringFd { index: value as u8, fd })
    }

    fn inflight(&self) -> Result<InflightDescription, MessageFault> {
        InflightDescription::parse(&self.payload).ok_or(self.wrong_length())
    }

    fn config(&self) -> Result<ConfigRange, MessageFault> {
        let (head, content) = ConfigHead::read_from_prefix(&self.payload).map_err(|_| self.wrong_length())?;
        let ConfigHead { offset, size, flags } = head;
        if content.len() != size as usize {
            return Err(self.wrong_length());
        }
        Ok(ConfigRange { offset, size, flags })
    }
}

/// The file descriptors of a message, handed to whatever part of it wants one.
struct Arrived {
    request: u32,
    fds: Fds,
}

impl Arrived {
    /// The next file descriptor, which must be there.
    fn take(&mut self) -> Result<OwnedFd, MessageFault> {
        self.fds.pop_at(0).ok_or(MessageFault::Fds { request: self.request, fds: 0 })
    }

    /// None came that nothing wanted.
    fn none_left(self) -> Result<(), MessageFault> {
        let fds = self.fds.len();
        if fds == 0 { Ok(()) } else { Err(MessageFault::Fds { request: self.request, fds }) }
    }
}

/// What is answered to a message: bytes, and at most one file descriptor.
#[derive(Debug)]
pub struct Reply {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// What goes with them.
    pub fd: Option<OwnedFd>,
}

impl Reply {
    fn new(request: u32, parts: &[&[u8]]) -> Reply {
        let size = parts.iter().map(|part| part.len()).sum::<usize>();
        let header = Header { request, flags: VERSION | REPLY, size: size as u32 };
        Reply { bytes: [&[header.as_bytes()], parts].concat().concat(), fd: None }
    }

    /// A number.
    pub fn number(request: u32, value: u64) -> Reply {
        Reply::new(request, &[value.as_bytes()])
    }

    /// Whether the request was carried out (`REPLY_ACK`): zero if so.
    pub fn ack(request: u32, done: bool) -> Reply {
        Reply::number(request, u64::from(!done))
    }

    /// A ring and its base.
    pub fn vring_state(request: u32, state: VringState) -> Reply {
        Reply::new(request, &[state.as_bytes()])
    }

    /// A range of the configuration space; `None` if there is none such, as which an empty payload counts.
    pub fn config(request: u32, range: ConfigRange, content: Option<&[u8]>) -> Reply {
        let ConfigRange { offset, size, flags } = range;
        match content {
            Some(content) => Reply::new(request, &[ConfigHead { offset, size, flags }.as_bytes(), content]),
            None => Reply::new(request, &[]),
        }
    }

    /// An in-flight region and its file, in as many bytes as it was asked for.
    pub fn inflight(request: u32, region: InflightDescription, asked_bytes: usize, file: OwnedFd) -> Reply {
        let bytes = region.as_bytes();
        let bytes = &bytes[..asked_bytes.clamp(InflightDescription::UNPADDED, bytes.len())];
        Reply { fd: Some(file), ..Reply::new(request, &[bytes]) }
    }
}
