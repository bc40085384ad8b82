//! `vhost-user:` ports, with VMMs of the tests' own: no rights are needed.
//!
//! | module | noun |
//! | --- | --- |
//! | [`front_end`] | the protocol's messages, made byte by byte |
//! | [`vm`] | memory, rings and a driver |
//! | [`stream`] | two VMs that talk all the time, whom others must not harm |
//! | [`talk`] | what arrives, in every kind of ring, and what the daemon says of it |
//! | [`hostile`], [`rings`] | VMMs that lie on the socket; VMs that lie in their memory |
//! | [`returns`], [`changes`] | who goes and comes back; what changes while frames flow |

pub mod changes;
mod front_end;
pub mod hostile;
pub mod returns;
pub mod rings;
mod stream;
pub mod talk;
mod vm;

use crate::world::{Daemon, Place, eventually};
use front_end::FrontEnd;
use hyper_switch::ctl::status::PortState;
use std::path::PathBuf;
use stream::Stream;
use vm::{Shape, Vm};

/// A daemon with four ports: two for VMs that talk all the time, one to be attacked, and one for whoever talks to
/// that.
struct Arena {
    stream: Stream,
    peer: (Vm, FrontEnd),
    daemon: Daemon,
    place: Place,
    /// Faults of the victim's that were counted before the next attack.
    faults: u64,
}

/// The port that is attacked.
const VICTIM: &str = "victim";

impl Arena {
    fn new() -> Arena {
        let place = Place::without_network();
        let socket = |name| place.folder.path().join(name);
        let ports = ["one", "two", "victim", "peer"]
            .map(|name| format!("vhost-user:{},queues=2", socket(name).display()));
        let daemon = Daemon::start(&place, &ports.each_ref().map(String::as_str));
        let stream = Stream::start([&socket("one"), &socket("two")]);
        let peer = Vm::start(4, Shape::SPLIT, &socket("peer"));
        Arena { stream, peer, daemon, place, faults: 0 }
    }

    /// Ends all, the daemon last and cleanly.
    fn stop(self) {
        drop(self.stream);
        self.daemon.stop();
    }

    fn socket(&self) -> PathBuf {
        self.place.folder.path().join(VICTIM)
    }

    /// The port is down for this reason, nobody else is harmed, and an honest VM comes and talks.
    fn recovers(&mut self, what: &str, reason: &str) {
        self.is_down(what, reason);
        self.is_unharmed(what);
    }

    fn is_down(&mut self, what: &str, reason: &str) {
        let mut last = None;
        let waited = format!("{what}: the port is down because of `{reason}`");
        eventually(&waited, || {
            let state = self.daemon.port(VICTIM).state;
            let found = matches!(&state, PortState::Down { reason: why } if why.contains(reason));
            if !found && last.as_ref() != Some(&state) {
                println!("{what}: {state:?}");
            }
            last = Some(state);
            found.then_some(())
        });
        let faults = self.daemon.port(VICTIM).vmm.expect("a VMM's status").faults;
        assert!(faults > self.faults, "{what}: it is counted");
    }

    fn is_unharmed(&mut self, what: &str) {
        println!("{what}: an honest VM comes");
        self.faults = self.daemon.port(VICTIM).vmm.expect("a VMM's status").faults;
        self.stream.goes_on();
        let (mut honest, _front_end) = Vm::start(3, Shape::SPLIT, &self.socket());
        let peer = &mut self.peer.0;
        honest.find(peer);
        peer.find(&mut honest);
        honest.talk_to(peer, 8);
        peer.talk_to(&mut honest, 8);
        let now = self.daemon.port(VICTIM);
        let vmm = now.vmm.expect("a VMM's status");
        assert_eq!((now.state, vmm.present, vmm.faults), (PortState::Up, true, self.faults));
    }
}
