//! The machine: its cores, and which of them share a cache or a socket.

use crate::costs::Locality;
use hyper_switch_dataplane::host::{CoreId, CoreSet};
use hyper_switch_dataplane::policy::offload::Topology;
use serde::{Deserialize, Serialize};

/// A machine of equal sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Cores, numbered through: at least one, at most [`CoreSet::CAPACITY`].
    pub cores: u16,
    /// Neighbours that share a cache: [`Locality::Shared`] to each other.
    pub cores_per_cache: u16,
}

impl Machine {
    /// From a core to another's cache.
    pub fn locality(&self, here: CoreId, there: CoreId) -> Locality {
        let group = |core: CoreId| core.0 / self.cores_per_cache.max(1);
        match () {
            () if here == there => Locality::Own,
            () if group(here) == group(there) => Locality::Shared,
            () => Locality::Remote,
        }
    }

    /// The cores that share a cache with each, as the switch is told.
    pub fn topology(&self) -> Topology {
        let cores = || (0..self.cores).map(CoreId);
        let near = |core| {
            let shares = cores().filter(|other| self.locality(core, *other) != Locality::Remote);
            shares.fold(CoreSet::EMPTY, CoreSet::with)
        };
        Topology::new(cores().map(near))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_cache() {
        let machine = Machine { cores: 8, cores_per_cache: 4 };
        let locality = |here, there| machine.locality(CoreId(here), CoreId(there));
        assert_eq!(locality(5, 5), Locality::Own);
        assert_eq!(locality(4, 7), Locality::Shared);
        assert_eq!(locality(3, 4), Locality::Remote);
        let near =
            |core| machine.topology().sharing(CoreId(core)).iter().map(|core| core.0).collect::<Vec<_>>();
        assert_eq!((near(2), near(6)), (vec![0, 1, 2, 3], vec![4, 5, 6, 7]));
    }
}
