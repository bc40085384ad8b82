//! shim, replaced by the merged one
use super::Action;
use crate::key::{HEADER_BYTES, extract::Layout};
use hyper_switch_pvnet::header::VnetHdr;
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; HEADER_BYTES + 8],
    len: usize,
}
impl Header {
    pub const EMPTY: Header = Header { bytes: [0; HEADER_BYTES + 8], len: 0 };
    pub fn new(b: &[u8]) -> Header {
        let mut h = Header::EMPTY;
        h.bytes[..b.len()].copy_from_slice(b);
        h.len = b.len();
        h
    }
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
pub fn edit(_: &[Action], _: &mut Header, _: &mut Layout, _: &mut VnetHdr) -> Result<(), ()> {
    Err(())
}
