//! Every frame and every buffer is somewhere, once.
//!
//! The ledger of a port is the one in the head of `dataplane::counters`. Beside it stand what the VM's own driver has
//! counted and what lies in its rings:
//!
//! ```text
//!   handed to the VM    = frames that its driver took  + used receive buffers that it has not looked at
//!   taken from the VM   = buffers that it has back     + used transmit buffers that it has not looked at + in flight
//! ```

use super::{Broken, Look, NicLook, Parts, Rule};
use hyper_switch_dataplane::PortState;
use hyper_switch_dataplane::PortStatus;

/// Frames since the VM was connected.
pub(super) struct Since {
    /// From it.
    pub(super) taken: u64,
    /// To it.
    pub(super) handed: u64,
}

fn equal(rule: Rule, left: u64, right: u64, says: impl FnOnce() -> String) -> Result<(), Broken> {
    if left == right { Ok(()) } else { Err((rule, format!("{}: {left} against {right}", says()))) }
}

/// The port's own books.
pub(super) fn port(port: &PortStatus) -> Result<(), Broken> {
    let counters = &port.counters;
    let tx_drops: u64 = counters.tx_drops.iter().sum();
    let rx_drops: u64 = counters.rx_drops.iter().sum();
    let name = &port.info.name;
    let tx = &counters.tx;
    equal(Rule::Conservation, tx.frames + tx.replicated, tx.forwarded + tx_drops + port.held as u64, || {
        format!("frames from {name} and their copies, and what was forwarded, dropped and held")
    })?;
    equal(
        Rule::Conservation,
        counters.rx.offered,
        counters.rx.frames + rx_drops + port.waiting as u64,
        || format!("frames offered to {name}, and what was handed over, dropped and waits"),
    )
}

/// The port's books beside those of the VM's driver.
pub(super) fn nic(port: &PortStatus, nic: &NicLook, since: &Since) -> Result<(), Broken> {
    let NicLook { standing, counters, .. } = nic;
    let name = &port.info.name;
    if port.state != PortState::Up {
        return Err((Rule::Guest, format!("{name} keeps the rules and its port is {:?}", port.state)));
    }
    if counters.rx_bad_header > 0 {
        return Err((Rule::Damage, format!("{name} was handed a frame with an impossible virtio_net_hdr")));
    }
    let back = counters.tx_frames - u64::from(standing.tx_out);
    equal(
        Rule::Completion,
        since.taken,
        back + u64::from(standing.tx_unread) + port.in_flight as u64,
        || format!("frames taken from {name}, and its buffers that came back or are in flight"),
    )?;
    let (unread, untaken) = (u64::from(standing.rx_unread), since.handed.wrapping_sub(counters.rx_frames));
    let agrees = match nic.parts {
        Parts::Whole => untaken == unread,
        Parts::Spread => (untaken == 0) == (unread == 0) && untaken <= unread,
        Parts::Cut => true,
    };
    if agrees {
        return Ok(());
    }
    Err((
        Rule::Conservation,
        format!(
            "{name} was handed {} frames, and its driver took {} and finds {unread} used buffers",
            since.handed, counters.rx_frames
        ),
    ))
}

/// What is forwarded is offered to someone.
pub(super) fn between(ports: &[PortStatus]) -> Result<(), Broken> {
    let forwarded = ports.iter().map(|port| port.counters.tx.forwarded).sum();
    let offered = ports.iter().map(|port| port.counters.rx.offered).sum();
    equal(Rule::Conservation, forwarded, offered, || {
        "frames forwarded by all ports, and offered to all".into()
    })
}

/// When nobody has sent for long, nothing is left.
pub(super) fn rest(look: &Look) -> Result<(), Broken> {
    let port = &look.port;
    let left = (port.in_flight, port.waiting, port.held);
    if left != (0, 0, 0) {
        let (in_flight, waiting, held) = left;
        let says = format!("{} has {in_flight} in flight, {waiting} waiting, {held} held", port.info.name);
        return Err((Rule::Leak, says));
    }
    match &look.nic {
        Some(NicLook { standing, .. }) if standing.tx_out > standing.tx_unread => {
            let out = standing.tx_out - standing.tx_unread;
            Err((Rule::Leak, format!("{} misses {out} transmit buffers", port.info.name)))
        }
        _ => Ok(()),
    }
}
