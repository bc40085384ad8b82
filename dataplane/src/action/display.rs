//! How actions are written: `set_field:eth_dst=02:00:00:00:00:01,push_vlan:0x8100,output:3`.

use super::{Action, FieldValue};
use core::fmt::{self, Display, Formatter};
use core::net::{Ipv4Addr, Ipv6Addr};

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Action::Output(port) => write!(f, "output:{port}"),
            Action::Controller => f.write_str("controller"),
            Action::Set(value) => write!(f, "set_field:{value}"),
            Action::PushVlan(tpid) => write!(f, "push_vlan:{tpid:#06x}"),
            Action::PopVlan => f.write_str("pop_vlan"),
        }
    }
}

impl Display for FieldValue {
    /// Writes `name=value`, as matches write it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name())?;
        match *self {
            FieldValue::EthDst(a)
            | FieldValue::EthSrc(a)
            | FieldValue::ArpSha(a)
            | FieldValue::ArpTha(a)
            | FieldValue::NdSll(a)
            | FieldValue::NdTll(a) => {
                let [a, b, c, d, e, g] = a;
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            FieldValue::Ipv4Src(a)
            | FieldValue::Ipv4Dst(a)
            | FieldValue::ArpSpa(a)
            | FieldValue::ArpTpa(a) => Ipv4Addr::from_bits(a).fmt(f),
            FieldValue::Ipv6Src(a) | FieldValue::Ipv6Dst(a) | FieldValue::NdTarget(a) => {
                Ipv6Addr::from(a).fmt(f)
            }
            FieldValue::EthType(n) => write!(f, "{n:#06x}"),
            FieldValue::Ipv6Flabel(n) => write!(f, "{n:#07x}"),
            FieldValue::MplsLabel(n) => n.fmt(f),
            FieldValue::VlanVid(n) | FieldValue::L4Src(n) | FieldValue::L4Dst(n) | FieldValue::ArpOp(n) => {
                n.fmt(f)
            }
            FieldValue::VlanPcp(n)
            | FieldValue::IpDscp(n)
            | FieldValue::IpEcn(n)
            | FieldValue::IcmpType(n)
            | FieldValue::IcmpCode(n)
            | FieldValue::MplsTc(n) => n.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PortId;
    use std::string::ToString;

    #[test]
    fn actions_are_written_as_matches_are() {
        let written = |action: Action| action.to_string();
        assert_eq!(written(Action::Output(PortId(3))), "output:3");
        assert_eq!(written(Action::PushVlan(0x8100)), "push_vlan:0x8100");
        let set = |value| Action::Set(value);
        assert_eq!(
            written(set(FieldValue::EthDst([2, 0, 0, 0, 0, 10]))),
            "set_field:eth_dst=02:00:00:00:00:0a"
        );
        assert_eq!(written(set(FieldValue::Ipv4Src(0x0a00_0001))), "set_field:ipv4_src=10.0.0.1");
        assert_eq!(written(set(FieldValue::L4Dst(80))), "set_field:tp_dst=80");
        assert_eq!(written(set(FieldValue::EthType(0x800))), "set_field:eth_type=0x0800");
    }
}
