//! The machine that something was measured on, as far as it says so itself.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// What a reader of a measurement has to know about the machine. What it does not tell is `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The model of the first processor.
    pub cpu: String,
    /// The cores that this process may use.
    pub cores: String,
    /// The first core's caches, each with its size and the cores that share it.
    pub caches: String,
    /// The kernel's name, release and architecture.
    pub kernel: String,
    /// How the first core's frequency is chosen.
    pub governor: String,
    /// How much memory there is.
    pub memory: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Machine {
        Machine::read(Path::new("/"))
    }

    /// The machine whose `proc` and `sys` are in the folder `root`.
    fn read(root: &Path) -> Machine {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
        let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        let field = |path, name| text(path).and_then(|text| field(&text, name));
        let cpu0 = "sys/devices/system/cpu/cpu0";
        let caches: Vec<String> = (0..)
            .map_while(|index| {
                let of = |name| text(&format!("{cpu0}/cache/index{index}/{name}"));
                let kind = match of("type")?.as_str() {
                    "Data" => "d",
                    "Instruction" => "i",
                    _ => "",
                };
                Some(format!("L{}{kind} {} (cores {})", of("level")?, of("size")?, of("shared_cpu_list")?))
            })
            .collect();
        let kernel = ["ostype", "osrelease", "arch"].map(|name| text(&format!("proc/sys/kernel/{name}")));
        Machine {
            cpu: known(field("proc/cpuinfo", "model name")),
            cores: known(field("proc/self/status", "Cpus_allowed_list")),
            caches: known((!caches.is_empty()).then(|| caches.join(", "))),
            kernel: known(kernel.into_iter().flatten().reduce(|all, part| format!("{all} {part}"))),
            governor: known(text(&format!("{cpu0}/cpufreq/scaling_governor"))),
            memory: known(field("proc/meminfo", "MemTotal")),
        }
    }

    /// Each of it with its name, in the order in which it is read best.
    pub fn lines(&self) -> [(&'static str, &str); 6] {
        [
            ("CPU", &self.cpu),
            ("cores", &self.cores),
            ("caches", &self.caches),
            ("kernel", &self.kernel),
            ("governor", &self.governor),
            ("memory", &self.memory),
        ]
    }
}

/// The value behind the first `name:` of a file of such lines.
fn field(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that what the kernel's files say is found there, and that what is missing is unknown. By a machine of
    /// a few files.
    #[test]
    fn a_machine_is_read() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::read(root.path());
        assert!(machine.lines().iter().all(|(_, value)| *value == "unknown"), "{machine:?}");
        let caches = "sys/devices/system/cpu/cpu0/cache";
        for (path, text) in [
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC\n\nmodel name\t: other\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-1\n"),
            ("proc/meminfo", "MemTotal:       24000 kB\n"),
            ("proc/sys/kernel/ostype", "Linux\n"),
            ("proc/sys/kernel/osrelease", "6.1\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            (&format!("{caches}/index0/type"), "Data\n"),
            (&format!("{caches}/index0/level"), "1\n"),
            (&format!("{caches}/index0/size"), "32K\n"),
            (&format!("{caches}/index0/shared_cpu_list"), "0\n"),
            (&format!("{caches}/index1/type"), "Unified\n"),
            (&format!("{caches}/index1/level"), "3\n"),
            (&format!("{caches}/index1/size"), "32768K\n"),
            (&format!("{caches}/index1/shared_cpu_list"), "0-1\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine::read(root.path());
        let values = machine.lines().map(|(_, value)| value);
        let caches = "L1d 32K (cores 0), L3 32768K (cores 0-1)";
        assert_eq!(values, ["AMD EPYC", "0-1", caches, "Linux 6.1", "performance", "24000 kB"]);
    }
}
