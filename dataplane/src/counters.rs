//! Counters: plain numbers that one core adds to and anyone reads.
//!
//! Each core has its own set for every port and every flow, so that counting shares no cache line and needs
//! no atomic step. A reader adds the cores up; each number is exact, a set of them is not one instant.
//!
//! The ledger, for every port: what came from the VM is somewhere, and what was offered to it is too.
//!
//! ```text
//!   tx.frames + tx.replicated = tx.forwarded + sum(tx.drops) + held for the control plane
//!   rx.offered                = rx.frames    + sum(rx.drops) + waiting in the internal queue
//!   sum over all ports of tx.forwarded = sum over all ports of rx.offered
//! ```

use crate::api::{DropReason, Nanos};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};
use zerocopy::FromZeros;

/// How many drop reasons there are.
pub const DROP_REASONS: usize = DropReason::ALL.len();

/// A number that one core adds to.
#[derive(FromZeros)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        // One writer, so no atomic addition is needed.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident / $live:ident { $($(#[$field_doc:meta])* $field:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)+
        }

        impl $name {
            /// Adds another's numbers to these.
            pub fn add(&mut self, other: &$name) {
                $(self.$field += other.$field;)+
            }
        }

        #[derive(FromZeros)]
        pub(crate) struct $live {
            $(pub(crate) $field: Counter,)+
        }

        impl $live {
            fn read(&self) -> $name {
                $name { $($field: self.$field.get(),)+ }
            }
        }
    };
}

counters! {
    /// What a VM transmitted and what became of it. Drops apart.
    TxCounters / LiveTx {
        /// Frames taken from the VM.
        frames,
        /// Their bytes.
        bytes,
        /// Copies beyond the first that flows asked for.
        replicated,
        /// Copies handed on to a port.
        forwarded,
        /// Upcalls made for its packets.
        upcalls,
        /// Entries into the switch to switch its ring: its transmit hypercalls.
        entries,
        /// Nanoseconds of the host's clock for which any core switched its frames.
        switching_ns,
    }
}

counters! {
    /// What was offered to a VM and what became of it. Drops apart.
    RxCounters / LiveRx {
        /// Frames that flows sent to the port.
        offered,
        /// Frames handed over.
        frames,
        /// Their bytes.
        bytes,
        /// Copies made into the VM's memory, or into the device.
        copies,
        /// Bytes of these copies, `virtio_net_hdr` included.
        copied_bytes,
        /// Frames among them that were finished or cut in memory of the switch first, for want of an offload.
        finished,
        /// Entries into the switch to fill its ring: its receive hypercalls.
        entries,
        /// Notifications sent to the VM.
        notifications,
        /// Nanoseconds of the host's clock for which any core copied frames for it.
        copying_ns,
    }
}

counters! {
    /// What a core did: how it entered the switch, and how its lookups ended.
    CoreActivity / LiveActivity {
        /// Entries for a sender.
        transmit_entries,
        /// Entries for a receiver.
        receive_entries,
        /// Entries as an idle core.
        idle_entries,
        /// Entries by a timer.
        timer_entries,
        /// Rings and queues left to an idle core.
        handovers,
        /// In the exact-match cache.
        cache_hits,
        /// In the megaflow table.
        table_hits,
        /// Nowhere.
        misses,
    }
}

/// One port's counters on one core.
#[derive(FromZeros)]
#[repr(align(64))]
pub(crate) struct LivePort {
    pub(crate) tx: LiveTx,
    pub(crate) rx: LiveRx,
    tx_drops: [Counter; DROP_REASONS],
    rx_drops: [Counter; DROP_REASONS],
}

impl LivePort {
    #[cold]
    pub(crate) fn drop_tx(&self, reason: DropReason) {
        self.tx_drops[reason as usize].add(1);
    }

    #[cold]
    pub(crate) fn drop_rx(&self, reason: DropReason, frames: u64) {
        self.rx_drops[reason as usize].add(frames);
    }
}

/// One flow's counters on one core.
#[derive(FromZeros)]
pub(crate) struct LiveFlow {
    pub(crate) packets: Counter,
    pub(crate) bytes: Counter,
    /// When it was last used; 0 is never.
    pub(crate) used: Counter,
}

/// One core's counters.
pub(crate) struct CoreCounters {
    pub(crate) ports: Box<[LivePort]>,
    pub(crate) flows: Box<[LiveFlow]>,
    pub(crate) activity: LiveActivity,
}

impl CoreCounters {
    /// Counters for as many ports and flows. Pages that are never counted on are never touched.
    pub(crate) fn new(ports: usize, flows: usize) -> CoreCounters {
        let too_many = "the counters of one core fit memory";
        CoreCounters {
            ports: <[LivePort]>::new_box_zeroed_with_elems(ports).expect(too_many),
            flows: <[LiveFlow]>::new_box_zeroed_with_elems(flows).expect(too_many),
            activity: LiveActivity::new_zeroed(),
        }
    }
}

/// A port's counters, all cores together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCounters {
    /// What the VM transmitted.
    pub tx: TxCounters,
    /// What it was to receive.
    pub rx: RxCounters,
    /// Drops of what it transmitted, by [`DropReason`] as a number.
    pub tx_drops: [u64; DROP_REASONS],
    /// Drops of what it was to receive, likewise.
    pub rx_drops: [u64; DROP_REASONS],
}

impl PortCounters {
    pub(crate) fn read<'a>(cores: impl Iterator<Item = &'a CoreCounters>, port: usize) -> PortCounters {
        let mut sum = PortCounters {
            tx: TxCounters::default(),
            rx: RxCounters::default(),
            tx_drops: [0; DROP_REASONS],
            rx_drops: [0; DROP_REASONS],
        };
        for core in cores {
            let live = &core.ports[port];
            sum.tx.add(&live.tx.read());
            sum.rx.add(&live.rx.read());
            for reason in 0..DROP_REASONS {
                sum.tx_drops[reason] += live.tx_drops[reason].get();
                sum.rx_drops[reason] += live.rx_drops[reason].get();
            }
        }
        sum
    }

    /// The numbers that came since `base`, an earlier reading of the same port, was taken.
    #[must_use]
    pub fn since(mut self, base: &PortCounters) -> PortCounters {
        macro_rules! subtract {
            ($($field:ident),+ of $part:ident) => { $(self.$part.$field -= base.$part.$field;)+ };
        }
        subtract!(frames, bytes, replicated, forwarded, upcalls, entries, switching_ns of tx);
        subtract!(offered, frames, bytes, copies, copied_bytes, finished, entries, notifications, copying_ns of rx);
        for reason in 0..DROP_REASONS {
            self.tx_drops[reason] -= base.tx_drops[reason];
            self.rx_drops[reason] -= base.rx_drops[reason];
        }
        self
    }

    /// The drops that there were, with their reasons: first those of what the VM transmitted.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let sums = self.tx_drops.iter().zip(&self.rx_drops).map(|(tx, rx)| tx + rx);
        DropReason::ALL.iter().copied().zip(sums).filter(|(_, count)| *count > 0)
    }
}

pub(crate) fn read_activity<'a>(cores: impl Iterator<Item = &'a CoreCounters>) -> CoreActivity {
    cores.fold(CoreActivity::default(), |mut sum, core| {
        sum.add(&core.activity.read());
        sum
    })
}

/// A flow's packets, bytes and last use, all cores together.
pub(crate) fn read_flow<'a>(
    cores: impl Iterator<Item = &'a CoreCounters>,
    flow: usize,
) -> (u64, u64, Option<Nanos>) {
    cores.map(|core| &core.flows[flow]).fold((0, 0, None), |(packets, bytes, used), live| {
        let last = live.used.get();
        (
            packets.wrapping_add(live.packets.get()),
            bytes.wrapping_add(live.bytes.get()),
            used.max((last != 0).then_some(Nanos(last))),
        )
    })
}
