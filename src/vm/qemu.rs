//! QEMU's command line for a guest: what the guest is, in; words, out.

use crate::port_spec::SocketRole;
use std::path::PathBuf;

/// Who executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor, under KVM.
    Kvm,
    /// QEMU, which translates them (TCG).
    Tcg,
}

/// The format of a guest's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingFormat {
    /// The split virtqueue (VIRTIO 1.2, clause 2.7)
    Split,
    /// The packed virtqueue (VIRTIO 1.2, clause 2.8)
    Packed,
}

/// A guest's NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// What is behind it.
    pub link: Link,
    /// Its address.
    pub mac: [u8; 6],
    /// The format of its rings.
    pub ring: RingFormat,
    /// Pairs of a receive and a transmit ring, 1 to 8.
    pub queues: u16,
    /// Its MTU in bytes, if it tells the guest one; a guest that is told none takes 1500.
    pub mtu: Option<u16>,
}

/// What is behind a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A vhost-user socket. QEMU connects again, or is connected to again, whenever the switch is gone.
    VhostUser {
        /// Where it is.
        socket: PathBuf,
        /// Which end of it the switch is.
        role: SocketRole,
    },
    /// A TAP interface that QEMU makes and owns; the switch attaches to it by AF_PACKET.
    Tap(String),
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Who executes its instructions.
    pub accel: Accel,
    /// Its cores.
    pub cores: u16,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its file system.
    pub image: PathBuf,
    /// Its IPv4 address and network, as in `10.77.0.1/24`.
    pub address: String,
    /// Its NIC, if it has one.
    pub nic: Option<Nic>,
    /// The file that its console is written to, while it takes commands on standard input; without one, its console
    /// is a shell there.
    pub console: Option<PathBuf>,
}

/// Memory of a guest: the kernel, the image twice while it is unpacked, and buffers for the network.
const MEMORY_MIB: u16 = 256;

impl Machine {
    /// The words behind the program's name.
    pub fn arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut add = |option: &str, value: String| words.extend([format!("-{option}"), value]);
        add("name", self.name.clone());
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            Accel::Tcg => ("tcg", "qemu64"),
        };
        add("machine", format!("pc,accel={accel},memory-backend=memory"));
        add("cpu", cpu.into());
        add("smp", self.cores.to_string());
        add("m", format!("{MEMORY_MIB}M"));
        // Memory that the switch can map: it copies from guest to guest.
        add("object", format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"));
        add("kernel", self.kernel.display().to_string());
        add("initrd", self.image.display().to_string());
        // A panic starts the guest anew, which whoever waits for it sees, as it says again that it is ready.
        let mut kernel = format!("console=ttyS0 panic=-1 address={}", self.address);
        add("display", "none".into());
        match &self.console {
            Some(console) => {
                kernel.push_str(" agent=/dev/ttyS1");
                add("serial", format!("file:{}", console.display()));
                add("serial", "stdio".into());
            }
            None => add("serial", "mon:stdio".into()),
        }
        add("append", kernel);
        if let Some(nic) = &self.nic {
            for (option, value) in nic.arguments(self.accel) {
                add(option, value);
            }
        }
        // No devices but those named here, and no files of the user's that add some.
        words.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
        words
    }
}

impl Nic {
    fn arguments(&self, accel: Accel) -> Vec<(&'static str, String)> {
        let Nic { link, mac, ring, queues, mtu } = self;
        let mut words = Vec::new();
        let several = if *queues > 1 { format!(",queues={queues}") } else { String::new() };
        match link {
            Link::VhostUser { socket, role } => {
                let end = match role {
                    SocketRole::Server => "reconnect=1",
                    SocketRole::Client => "server=on",
                };
                words.push(("chardev", format!("socket,id=switch,path={},{end}", socket.display())));
                words.push(("netdev", format!("vhost-user,id=net,chardev=switch{several}")));
            }
            Link::Tap(interface) => {
                let scripts = "script=no,downscript=no,vhost=off";
                words.push(("netdev", format!("tap,id=net,ifname={interface},{scripts}{several}")));
            }
        }
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let mut device = format!("virtio-net-pci,netdev=net,mac={mac},romfile=");
        if *queues > 1 {
            device.push_str(",mq=on");
        }
        if *ring == RingFormat::Packed {
            device.push_str(",packed=on");
        }
        if let Some(mtu) = mtu {
            device.push_str(&format!(",host_mtu={mtu}"));
        }
        // QEMU 7.2 under TCG crashes with vhost-user and MSI-X (msix_set_vector_notifiers).
        if accel == Accel::Tcg && matches!(link, Link::VhostUser { .. }) {
            device.push_str(",vectors=0");
        }
        words.push(("device", device));
        words
    }
}

/// A command line as a shell reads it.
pub fn quoted(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
    let quote = |word: &String| match word {
        word if !word.is_empty() && word.chars().all(plain) => word.clone(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(nic: Option<Nic>) -> Machine {
        Machine {
            name: "a".into(),
            accel: Accel::Tcg,
            cores: 1,
            kernel: "/boot/vmlinuz".into(),
            image: "/tmp/the image".into(),
            address: "10.77.0.1/24".into(),
            nic,
            console: None,
        }
    }

    /// Holds the whole command line as a user pastes it, with the words that need quotes in them.
    #[test]
    fn a_guest_is_a_command_line() {
        let nic = Nic {
            link: Link::VhostUser { socket: "/tmp/a.sock".into(), role: SocketRole::Server },
            mac: [0x52, 0x54, 0, 0x77, 0, 1],
            ring: RingFormat::Split,
            queues: 1,
            mtu: None,
        };
        let expected = "-name a -machine pc,accel=tcg,memory-backend=memory -cpu qemu64 -smp 1 -m 256M \
                        -object memory-backend-memfd,id=memory,size=256M,share=on -kernel /boot/vmlinuz \
                        -initrd '/tmp/the image' -display none -serial mon:stdio \
                        -append 'console=ttyS0 panic=-1 address=10.77.0.1/24' \
                        -chardev socket,id=switch,path=/tmp/a.sock,reconnect=1 \
                        -netdev vhost-user,id=net,chardev=switch \
                        -device virtio-net-pci,netdev=net,mac=52:54:00:77:00:01,romfile=,vectors=0 \
                        -nodefaults -no-user-config";
        assert_eq!(quoted(&machine(Some(nic)).arguments()), expected);
        assert_eq!(quoted(&["it's".into(), String::new()]), r"'it'\''s' ''");
    }

    /// Each thing that can be chosen is in the words that QEMU has for it, and nothing that was not chosen.
    #[test]
    fn choices_are_words() {
        let nic = |link: Link, ring, queues| Nic {
            link,
            mac: [2; 6],
            ring,
            queues,
            mtu: (queues > 1).then_some(9000),
        };
        let tap = || Link::Tap("hs0".into());
        let socket = || Link::VhostUser { socket: "/s".into(), role: SocketRole::Client };
        let line = |nic| quoted(&machine(Some(nic)).arguments());
        for (nic, parts, absent) in [
            (
                nic(tap(), RingFormat::Packed, 1),
                &["tap,id=net,ifname=hs0,script=no,downscript=no,vhost=off ", ",packed=on "][..],
                &["mq=on", "queues", "vectors", "chardev", "mtu"][..],
            ),
            (
                nic(socket(), RingFormat::Split, 4),
                &[",path=/s,server=on ", "chardev=switch,queues=4 ", ",mq=on,host_mtu=9000,vectors=0 "],
                &["packed", "tap,", "reconnect"],
            ),
        ] {
            let line = line(nic);
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
            assert!(!absent.iter().any(|part| line.contains(part)), "{line}");
        }
        let kvm = Machine { accel: Accel::Kvm, console: Some("/tmp/c".into()), ..machine(None) };
        let line = quoted(&kvm.arguments());
        for part in ["accel=kvm", "-cpu host", "-serial file:/tmp/c -serial stdio", " agent=/dev/ttyS1'"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("vectors") && !line.contains("netdev"), "{line}");
    }
}
