//! Which processors this process may use, and which of them share caches, as the kernel's files tell it.
//!
//! What they do not tell is not known, which is no error: work is then spread without regard to caches.

use crate::core_list::CoreList;
use hyper_switch_dataplane::host::{CoreId, CoreSet};
use hyper_switch_dataplane::policy::offload::Topology;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::path::Path;

/// The numbers of the processors that the calling thread may run on, ascending.
pub(crate) fn usable_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None);
    allowed.map_or_else(|_| Vec::new(), |cpus| (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)).collect())
}

/// Has the calling thread run on this processor and no other.
///
/// # Errors
/// The machine has no such processor, or does not give it to us.
pub fn pin_to(cpu: usize) -> Result<(), Errno> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus)
}

/// Which of `cpus` share caches for data, by the files of `/sys` under `root`. Core `n` is the `n`th of `cpus`.
pub(crate) fn topology(root: &Path, cpus: &[usize]) -> Topology {
    let sharing = |cpu: &usize| {
        let caches = (0..).map_while(|index| {
            let cache = root.join(format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}"));
            let read = |name| fs::read_to_string(cache.join(name)).ok();
            Some((read("type")?, read("shared_cpu_list")?))
        });
        caches.filter(|(kind, _)| kind.trim() != "Instruction").fold(CoreSet::EMPTY, |set, (_, list)| {
            // A list that we do not understand is as good as none.
            let sharers = list.trim().parse::<CoreList>();
            let sharers = sharers.iter().flat_map(CoreList::cores);
            let known = sharers.filter_map(|cpu| cpus.binary_search(cpu).ok());
            known.fold(set, |set, core| set.with(CoreId(core as u16)))
        })
    };
    Topology::new(cpus.iter().map(sharing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cores: &[u16]) -> CoreSet {
        cores.iter().fold(CoreSet::EMPTY, |set, core| set.with(CoreId(*core)))
    }

    /// Holds that cores share what caches for data tell, in the numbering of the cores that may be used, and that what
    /// is missing or garbled is unknown. By a machine of a few files.
    #[test]
    fn a_machine_of_files() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, index, kind, list) in [
            (2, 0, "Data", "2,6"),
            (2, 1, "Instruction", "0-7"),
            (2, 2, "Unified", "2-3,6-7"),
            (3, 0, "Data", "3"),
            (5, 0, "Data", "5,x"),
        ] {
            let cache = root.path().join(format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}"));
            fs::create_dir_all(&cache).unwrap();
            fs::write(cache.join("type"), format!("{kind}\n")).unwrap();
            fs::write(cache.join("shared_cpu_list"), format!("{list}\n")).unwrap();
        }
        let expected = Topology::new([set(&[0, 1, 3]), set(&[1]), set(&[]), set(&[])]);
        assert_eq!(topology(root.path(), &[2, 3, 5, 6]), expected);
    }

    /// Holds that this machine's files are read, if there are any: a core shares its caches with itself.
    #[test]
    fn this_machine() {
        let cpus = usable_cpus();
        assert!(!cpus.is_empty());
        let known = topology(Path::new("/"), &cpus);
        for core in (0..cpus.len()).map(|core| CoreId(core as u16)) {
            let sharing = known.sharing(core);
            assert!(sharing.is_empty() || sharing.contains(core), "{core:?}: {known:?}");
        }
    }
}
