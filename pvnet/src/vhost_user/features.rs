//! Feature bits: what a port offers, and what a front-end took of it (VIRTIO 1.2, clauses 5.1.3 and 6; vhost-user,
//! "Protocol features").
//!
//! The control queue is the front-end's. A driver's commands (addresses, VLAN filter, number of queue pairs)
//! are answered by the VMM, and what a port sees of them is `SET_VRING_ENABLE`. QEMU offers its guest what it
//! answers by itself, whatever the back-end offers (`CTRL_VQ`, `CTRL_RX`, `CTRL_VLAN`, `CTRL_MAC_ADDR`,
//! `STATUS` and `MAC` are not among those that its `vhost_net.c` asks a back-end for), but `MQ`, `MTU`,
//! `GUEST_ANNOUNCE` and all offloads only where the back-end does. Cloud Hypervisor offers its guest nothing,
//! `CTRL_VQ` and `MQ` included, that the back-end does not, but `MAC`. So all of them are offered, and that
//! some are taken changes nothing here.

use crate::header::Offloads;
use crate::ring::device::QueueFeatures;

/// A set of VIRTIO feature bits of a network device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

#[allow(missing_docs, reason = "the names are the specification's own")]
impl Features {
    pub const CSUM: Features = Features(1 << 0);
    pub const GUEST_CSUM: Features = Features(1 << 1);
    pub const MTU: Features = Features(1 << 3);
    pub const MAC: Features = Features(1 << 5);
    pub const GUEST_TSO4: Features = Features(1 << 7);
    pub const GUEST_TSO6: Features = Features(1 << 8);
    pub const GUEST_ECN: Features = Features(1 << 9);
    pub const HOST_TSO4: Features = Features(1 << 11);
    pub const HOST_TSO6: Features = Features(1 << 12);
    pub const HOST_ECN: Features = Features(1 << 13);
    pub const MRG_RXBUF: Features = Features(1 << 15);
    pub const STATUS: Features = Features(1 << 16);
    pub const CTRL_VQ: Features = Features(1 << 17);
    pub const CTRL_RX: Features = Features(1 << 18);
    pub const CTRL_VLAN: Features = Features(1 << 19);
    pub const GUEST_ANNOUNCE: Features = Features(1 << 21);
    pub const MQ: Features = Features(1 << 22);
    pub const CTRL_MAC_ADDR: Features = Features(1 << 23);
    pub const RING_INDIRECT_DESC: Features = Features(1 << 28);
    pub const RING_EVENT_IDX: Features = Features(1 << 29);
    /// vhost-user's own: `VHOST_USER_F_PROTOCOL_FEATURES`.
    pub const PROTOCOL_FEATURES: Features = Features(1 << 30);
    pub const VERSION_1: Features = Features(1 << 32);
    pub const RING_PACKED: Features = Features(1 << 34);
    pub const GUEST_USO4: Features = Features(1 << 54);
    pub const GUEST_USO6: Features = Features(1 << 55);
    pub const HOST_USO: Features = Features(1 << 56);
}

impl Features {
    /// All that a port can do, however many queue pairs it has and whatever its address.
    pub const ALL: Features = Features(
        Features::CSUM.0
            | Features::GUEST_CSUM.0
            | Features::MTU.0
            | Features::MAC.0
            | Features::GUEST_TSO4.0
            | Features::GUEST_TSO6.0
            | Features::GUEST_ECN.0
            | Features::HOST_TSO4.0
            | Features::HOST_TSO6.0
            | Features::HOST_ECN.0
            | Features::MRG_RXBUF.0
            | Features::STATUS.0
            | Features::CTRL_VQ.0
            | Features::CTRL_RX.0
            | Features::CTRL_VLAN.0
            | Features::GUEST_ANNOUNCE.0
            | Features::MQ.0
            | Features::CTRL_MAC_ADDR.0
            | Features::RING_INDIRECT_DESC.0
            | Features::RING_EVENT_IDX.0
            | Features::PROTOCOL_FEATURES.0
            | Features::VERSION_1.0
            | Features::RING_PACKED.0
            | Features::GUEST_USO4.0
            | Features::GUEST_USO6.0
            | Features::HOST_USO.0,
    );

    /// Whether all of `others` are in it.
    pub fn has(self, others: Features) -> bool {
        self.0 & others.0 == others.0
    }

    /// Those that are not in `others`.
    pub fn without(self, others: Features) -> Features {
        Features(self.0 & !others.0)
    }

    /// Whether the rings are packed (clause 2.8).
    pub fn packed(self) -> bool {
        self.has(Features::RING_PACKED)
    }

    /// Whether a frame may be spread over several receive buffers.
    pub fn mergeable(self) -> bool {
        self.has(Features::MRG_RXBUF)
    }

    /// What the rings' sides agreed on.
    pub fn queue_features(self) -> QueueFeatures {
        QueueFeatures {
            event_idx: self.has(Features::RING_EVENT_IDX),
            indirect: self.has(Features::RING_INDIRECT_DESC),
        }
    }

    /// What the guest takes uncut and unfinished. One kind of UDP segmentation stands for both
    /// (`Offloads::USO`), so it is taken only with both.
    pub fn guest_offloads(self) -> Offloads {
        let uso = Features(Features::GUEST_USO4.0 | Features::GUEST_USO6.0);
        let tso = [Features::GUEST_TSO4, Features::GUEST_TSO6];
        self.offloads([Features::GUEST_CSUM, tso[0], tso[1], Features::GUEST_ECN, uso])
    }

    /// What the guest may send uncut and unfinished.
    pub fn host_offloads(self) -> Offloads {
        let tso = [Features::HOST_TSO4, Features::HOST_TSO6];
        self.offloads([Features::CSUM, tso[0], tso[1], Features::HOST_ECN, Features::HOST_USO])
    }

    /// Those of checksum, TSO for IPv4 and IPv6, ECN and USO whose features were taken.
    fn offloads(self, features: [Features; 5]) -> Offloads {
        let each = [Offloads::CSUM, Offloads::TSO4, Offloads::TSO6, Offloads::ECN, Offloads::USO];
        let taken = features.into_iter().zip(each).filter(|(feature, _)| self.has(*feature));
        taken.fold(Offloads::NONE, |offloads, (_, offload)| offloads | offload)
    }
}

/// A set of vhost-user's protocol features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolFeatures(pub u64);

#[allow(missing_docs, reason = "the names are the specification's own")]
impl ProtocolFeatures {
    pub const MQ: ProtocolFeatures = ProtocolFeatures(1 << 0);
    pub const RARP: ProtocolFeatures = ProtocolFeatures(1 << 2);
    pub const REPLY_ACK: ProtocolFeatures = ProtocolFeatures(1 << 3);
    pub const NET_MTU: ProtocolFeatures = ProtocolFeatures(1 << 4);
    pub const CONFIG: ProtocolFeatures = ProtocolFeatures(1 << 9);
    pub const INFLIGHT_SHMFD: ProtocolFeatures = ProtocolFeatures(1 << 12);
    pub const RESET_DEVICE: ProtocolFeatures = ProtocolFeatures(1 << 13);
    pub const CONFIGURE_MEM_SLOTS: ProtocolFeatures = ProtocolFeatures(1 << 15);
    pub const STATUS: ProtocolFeatures = ProtocolFeatures(1 << 16);
}

impl ProtocolFeatures {
    /// All that are offered. What is not: logging (`VHOST_F_LOG_ALL`, and so live migration), requests to the
    /// front-end, page faults in user space, notification without eventfds.
    pub const ALL: ProtocolFeatures = ProtocolFeatures(
        ProtocolFeatures::MQ.0
            | ProtocolFeatures::RARP.0
            | ProtocolFeatures::REPLY_ACK.0
            | ProtocolFeatures::NET_MTU.0
            | ProtocolFeatures::CONFIG.0
            | ProtocolFeatures::INFLIGHT_SHMFD.0
            | ProtocolFeatures::RESET_DEVICE.0
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS.0
            | ProtocolFeatures::STATUS.0,
    );

    /// Whether all of `others` are in it.
    pub fn has(self, others: ProtocolFeatures) -> bool {
        self.0 & others.0 == others.0
    }
}
