//! Lookup: from a packet's key to the flow that says what to do with it.
//!
//! First this core's [exact-match cache](cache), then the [megaflow table](table): one hash table for each
//! mask, entries disjoint, so that the first hit is the only one. A miss is an upcall.
//!
//! What each costs: the cache a hash of the key, one load and one masked compare, whatever the number of
//! masks; the table the same once for every mask. Since installed flows do not overlap, *any* live flow that
//! covers a key is *the* flow for it: the cache may name a flow that has meanwhile been replaced by another,
//! and the compare settles it. So nothing ever needs to be flushed.

pub(crate) mod cache;
pub(crate) mod hash;
pub(crate) mod table;
