//! A guest: a network namespace whose only interface is a port's.

use super::{DEADLINE, Place, ip};
use hyper_switch_pvnet::namespace::{Interface, Namespace};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

/// A namespace with the kernel's TCP/IP behind one interface.
pub struct Guest {
    pub namespace: Namespace,
    pub interface: String,
    pub address: Ipv4Addr,
    pub mac: String,
}

impl Guest {
    /// Takes the interface of `place` into a namespace of its own, as number `n`: address 10.0.0.n/24 and MAC
    /// address 02:00:00:00:00:n.
    pub fn take(place: &Place, interface: &str, n: u8) -> Guest {
        let namespace = Namespace::new().unwrap();
        namespace.disable_ipv6().unwrap();
        let file = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        place.ip(&format!("link set {interface} netns {file}"));
        let guest =
            Guest { namespace, interface: interface.into(), address: [10, 0, 0, n].into(), mac: mac_of(n) };
        guest.become_number(n);
        guest
    }

    /// Brings the interface up with the addresses of guest number `n`.
    fn become_number(&self, n: u8) {
        self.inside(|| {
            ip(&format!("link set {} address {}", self.interface, mac_of(n))).unwrap();
            let interface = Interface::named(&self.interface).unwrap();
            interface.set_ipv4([10, 0, 0, n].into(), 24).unwrap();
            interface.up().unwrap();
        });
    }

    /// The same guest, now with the addresses of number `n`.
    pub fn renumbered(mut self, n: u8) -> Guest {
        self.inside(|| Interface::named(&self.interface).unwrap().down().unwrap());
        (self.address, self.mac) = ([10, 0, 0, n].into(), mac_of(n));
        self.become_number(n);
        self
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work).unwrap()
    }

    /// Runs `ip` here. It has to succeed.
    pub fn ip(&self, arguments: &str) {
        self.inside(|| ip(arguments).unwrap());
    }

    /// The interfaces here but the loopback.
    pub fn interfaces(&self) -> Vec<String> {
        let table = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        names.filter(|name| name != "lo").collect()
    }

    /// A UDP socket of the guest's; it may broadcast, and its reads end at the deadline.
    pub fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    pub fn tcp_listener(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
    }

    pub fn tcp_connect(&self, to: (Ipv4Addr, u16)) -> TcpStream {
        self.inside(|| TcpStream::connect_timeout(&to.into(), DEADLINE).unwrap())
    }
}

fn mac_of(n: u8) -> String {
    format!("02:00:00:00:00:{n:02x}")
}
