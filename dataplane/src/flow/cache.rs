//! The exact-match cache: each core's own, from the hash of a key to the flow's place in the table.
//!
//! An entry is eight bytes, half of the hash and the place, two to a bucket; it holds no key. Whether the flow
//! at that place is live and covers the key is asked of the flow itself, see the [module head](super).

use super::table::FlowIndex;
use alloc::boxed::Box;
use zerocopy::FromZeros;

/// Buckets, a power of two: 64 KiB a core, a fraction of its second-level cache.
const BUCKETS: usize = 4096;

/// One core's cache.
pub(crate) struct ExactMatchCache {
    /// Each entry: upper half of the hash, and the place plus one; 0 is empty. The first is the newer.
    buckets: Box<[[u64; 2]; BUCKETS]>,
}

impl ExactMatchCache {
    pub(crate) fn new() -> ExactMatchCache {
        ExactMatchCache { buckets: <[_; BUCKETS]>::new_box_zeroed().expect("a cache fits memory") }
    }

    /// Starts the load of the bucket for `hash`.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        crate::prefetch(&raw const self.buckets[hash as usize & (BUCKETS - 1)]);
    }

    /// The flow's place that the cache remembers for `hash`, or one that no flow has. Whether a flow is there, live,
    /// and covers the key is for the caller to ask the table.
    #[inline]
    pub(crate) fn guess(&self, hash: u64) -> FlowIndex {
        let [newer, older] = self.buckets[hash as usize & (BUCKETS - 1)];
        let entry = if newer >> 32 == hash >> 32 { newer } else { older };
        // An empty entry's number wraps to one that no flow has.
        FlowIndex(if entry >> 32 == hash >> 32 { (entry as u32).wrapping_sub(1) } else { u32::MAX })
    }

    /// Remembers the place of the flow for `hash`.
    #[inline]
    pub(crate) fn insert(&mut self, hash: u64, index: FlowIndex) {
        let bucket = &mut self.buckets[hash as usize & (BUCKETS - 1)];
        let entry = hash >> 32 << 32 | u64::from(index.0 + 1);
        if bucket[0] >> 32 != entry >> 32 {
            bucket[1] = bucket[0];
        }
        bucket[0] = entry;
    }
}
