//! What guests send each other, and how it is known to have come.

use crate::world::{DEADLINE, Guest};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

/// The port on which echo servers listen.
const ECHO: u16 = 7;

/// Sends numbered datagrams from `client` to the address of `server`, one at a time, and has each come back.
pub fn echo(client: &Guest, server: &Guest, datagrams: u32) {
    echo_to(client, server, server.address, datagrams);
}

/// As [`echo`], to an `address` of the server's that is not its first.
pub fn echo_to(client: &Guest, server: &Guest, address: Ipv4Addr, datagrams: u32) {
    let (asking, answering) = (client.udp(0), server.udp(ECHO));
    asking.connect((address, ECHO)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..datagrams {
                let (number, from) = receive_from(&answering);
                answering.send_to(&number.to_be_bytes(), from).unwrap();
            }
        });
        for number in 0..datagrams {
            asking.send(&number.to_be_bytes()).unwrap();
            assert_eq!(receive_from(&asking).0, number, "of {} from {address}", client.interface);
        }
    });
}

fn receive_from(socket: &UdpSocket) -> (u32, std::net::SocketAddr) {
    let mut number = [0; 4];
    let (bytes, from) = socket.recv_from(&mut number).expect("a datagram before the deadline");
    assert_eq!(bytes, 4);
    (u32::from_be_bytes(number), from)
}

/// The period of a stream's bytes; prime, so that no segment or buffer hides a shift.
const PERIOD: usize = 65_521;

/// Sends `bytes` from `client` to the address of `server` over TCP and compares all of them there.
pub fn stream(client: &Guest, server: &Guest, bytes: usize) {
    const CHUNK: usize = 64 * 1024;
    let pattern: Vec<u8> = (0..PERIOD + CHUNK).map(|at| (at % PERIOD % 251) as u8).collect();
    let listener = server.tcp_listener(6000);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = client.tcp_connect((server.address, 6000));
            stream.set_write_timeout(Some(DEADLINE)).unwrap();
            let mut sent = 0;
            while sent < bytes {
                let chunk = &pattern[sent % PERIOD..][..CHUNK.min(bytes - sent)];
                stream.write_all(chunk).unwrap();
                sent += chunk.len();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (mut received, mut chunk) = (0, vec![0; CHUNK]);
        loop {
            let count = stream.read(&mut chunk).unwrap();
            if count == 0 {
                break;
            }
            assert!(chunk[..count] == pattern[received % PERIOD..][..count], "at byte {received}");
            received += count;
        }
        assert_eq!(received, bytes);
    });
}
