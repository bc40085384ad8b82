//! VMs that are network namespaces: the kernel's TCP/IP behind a TAP each, on the same switch.
//!
//! A namespace has no name in the file system and lives as long as this process has it open, so nothing is left
//! of it however the process ends. Sockets stay in the namespace in which they were made, whichever thread uses
//! them. They block, with a timeout after which their thread looks whether it is to stop.

use super::trial::{PATIENCE, SERVER_PORT, Side, StopOnDrop, Trial, Vm};
use super::{Outcome, cannot, joined};
use crate::cli::Workload;
use crate::exit::{Failure, FailureKind};
use crate::host::{HostConfig, NetDevice, Runtime};
use crate::progress::Progress;
use hyper_switch_controlplane::learning_switch::Config as LearningConfig;
use hyper_switch_dataplane::api::VlanMode;
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_pvnet::guest::workload::Pattern;
use hyper_switch_pvnet::namespace::{Interface, Namespace, NamespaceError};
use hyper_switch_pvnet::tap::{Tap, TapError};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

/// How long a socket blocks before its thread looks whether to stop.
const SOCKET_TIMEOUT: Duration = Duration::from_millis(50);

/// The interface of each VM, in its own namespace.
const INTERFACE: &str = "vm0";

/// Bits of the network's part of the addresses, 10.0.0.0/8.
const PREFIX_BITS: u8 = 8;

/// Bytes that a stream's ends hand to the kernel, or take from it, in one call.
const CHUNK_BYTES: usize = 128 * 1024;

/// The longest UDP payload (RFC 768).
const DATAGRAM_BYTES: usize = 65_507;

/// Runs `trial` between namespaces of its own, on a switch of its own.
pub(super) fn run(
    trial: &Trial,
    optimisations: Optimisations,
    interrupted: &AtomicBool,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    // One worker that the scheduler places: it runs best beside whoever sends.
    let config = HostConfig {
        workers: vec![None],
        guests: 0,
        learning: LearningConfig::default(),
        optimisations,
        pace: Pace::default(),
    };
    let mut runtime = Runtime::start(&config).map_err(cannot("start the switch"))?;
    let mut namespaces = Vec::new();
    for vm in trial.vms() {
        let (namespace, tap) = namespace(vm)?;
        let port = runtime.attach_device(&vm.name(), VlanMode::Transparent, NetDevice::new(tap));
        port.map_err(|error| failed(vm, &error))?;
        namespaces.push(namespace);
    }
    let before = runtime.snapshot();
    let mut ends = Vec::new();
    for pair in namespaces.chunks_exact(2).enumerate() {
        let (pair, [client, server]) = (pair.0, [&pair.1[0], &pair.1[1]]);
        ends.extend(connect(trial, pair, client, server)?);
    }
    let measured = thread::scope(|scope| {
        let stop = StopOnDrop(trial);
        let mut threads = Vec::new();
        for (vm, end) in ends {
            let spawned = thread::Builder::new()
                .name(vm.name())
                .spawn_scoped(scope, move || end.talk(trial, vm.pair).map_err(|error| error.to_string()));
            threads.push((vm, spawned.map_err(cannot("start the thread of a VM"))?));
        }
        let ended = || threads.iter().any(|(_, thread)| thread.is_finished());
        let watched = trial.watch(interrupted, ended, progress);
        drop(stop);
        joined(threads)?;
        watched
    })?;
    Outcome::between(trial, measured, before, runtime.snapshot())
}

fn failed(vm: Vm, error: &dyn std::error::Error) -> Failure {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    Failure::new(FailureKind::Runtime, format!("VM {}: {error}{source}", vm.name()))
}

fn not_permitted() -> Failure {
    let message = "`pair --backend tap` needs root, or the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN: it makes \
                   network namespaces and TAP interfaces";
    Failure::new(FailureKind::NotPermitted, message)
        .with_help("`pair --backend inprocess` measures the same workloads and needs no rights")
}

/// A namespace whose one interface is a TAP with the VM's address.
fn namespace(vm: Vm) -> Result<(Namespace, Tap), Failure> {
    let refused = |error: NamespaceError| match error {
        NamespaceError::NotPermitted => not_permitted(),
        error => failed(vm, &error),
    };
    let namespace = Namespace::new().map_err(refused)?;
    // Without IPv6 the kernel sends nothing that the workload did not ask for.
    namespace.disable_ipv6().map_err(refused)?;
    let tap = namespace.run(|| {
        let tap = Tap::open(INTERFACE).map_err(|error| match error {
            TapError::NotPermitted(_) => not_permitted(),
            error => failed(vm, &error),
        })?;
        Interface::named(INTERFACE)
            .and_then(|interface| interface.set_ipv4(address(vm), PREFIX_BITS).and_then(|()| interface.up()))
            .map_err(|error| failed(vm, &error))?;
        Ok(tap)
    });
    Ok((namespace, tap.map_err(refused)??))
}

fn address(vm: Vm) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a01_0000 + vm.number() as u32 + 1)
}

/// The sockets of a pair, made in their namespaces; TCP's are connected.
fn connect(
    trial: &Trial,
    pair: usize,
    client: &Namespace,
    server: &Namespace,
) -> Result<[(Vm, End); 2], Failure> {
    let [a, b] = [Side::Client, Side::Server].map(|side| Vm { pair, side });
    let at = SocketAddr::from((address(b), SERVER_PORT));
    let inside = |vm, namespace: &Namespace, make: &(dyn Fn() -> io::Result<End> + Sync)| {
        let made = namespace.run(make).map_err(|error| failed(vm, &error))?;
        made.map(|end| (vm, end)).map_err(|error| failed(vm, &error))
    };
    if trial.workload == Workload::Udp {
        let receiver = inside(b, server, &|| Ok(End::Receiver(with_timeouts(UdpSocket::bind(at)?)?)))?;
        let sender = inside(a, client, &|| {
            let socket = UdpSocket::bind((address(a), 0))?;
            socket.connect(at)?;
            Ok(End::Sender(with_timeouts(socket)?))
        })?;
        return Ok([sender, receiver]);
    }
    let listener = server.run(|| TcpListener::bind(at)).map_err(|error| failed(b, &error))?;
    let listener = listener.map_err(|error| failed(b, &error))?;
    let accept = || {
        // The timeout of accept(2) too: it ends however the handshake goes.
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
        listener.accept().map(|(stream, _)| stream)
    };
    let stream = trial.workload == Workload::Stream;
    let (_, first) = inside(a, client, &|| {
        let socket = with_timeouts(TcpStream::connect_timeout(&at, PATIENCE)?)?;
        socket.set_nodelay(!stream)?;
        Ok(if stream { End::Source(socket) } else { End::Asker(socket) })
    })?;
    let second = accept().and_then(with_timeouts).and_then(|socket| {
        socket.set_nodelay(!stream)?;
        Ok(if stream { End::Sink(socket) } else { End::Echo(socket) })
    });
    Ok([(a, first), (b, second.map_err(|error| failed(b, &error))?)])
}

fn with_timeouts<S: AsFd>(socket: S) -> io::Result<S> {
    set_socket_timeout(&socket, Timeout::Recv, Some(SOCKET_TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Send, Some(SOCKET_TIMEOUT))?;
    Ok(socket)
}

/// One end of a pair: its socket and its part in the workload.
enum End {
    Source(TcpStream),
    Sink(TcpStream),
    Asker(TcpStream),
    Echo(TcpStream),
    Sender(UdpSocket),
    Receiver(UdpSocket),
}

impl End {
    /// Does its part until the trial stops.
    fn talk(self, trial: &Trial, pair: usize) -> io::Result<()> {
        let talked = match self {
            End::Source(socket) => source(trial, pair, socket),
            End::Sink(socket) => sink(trial, pair, socket),
            End::Asker(socket) => ask(trial, pair, socket),
            End::Echo(socket) => echo(trial, socket),
            End::Sender(socket) => send(trial, &socket),
            End::Receiver(socket) => receive(trial, pair, &socket),
        };
        // The peer may have stopped first, and so have closed the connection.
        talked.or_else(|error| if trial.is_stopping() { Ok(()) } else { Err(error) })
    }
}

/// Does a socket's call again until it succeeds or the trial stops, which is none.
fn until_stopped<T>(trial: &Trial, mut call: impl FnMut() -> io::Result<T>) -> io::Result<Option<T>> {
    while !trial.is_stopping() {
        match call() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            done => return done.map(Some),
        }
    }
    Ok(None)
}

/// Reads something from a connection that must not end; none when the trial stops.
fn read<'b>(trial: &Trial, socket: &mut TcpStream, into: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
    match until_stopped(trial, || socket.read(into))? {
        Some(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the peer closed the connection")),
        read => Ok(read.and_then(|bytes| into.get(..bytes))),
    }
}

fn source(trial: &Trial, pair: usize, mut socket: TcpStream) -> io::Result<()> {
    let pattern = Pattern::new(trial.pair_seed(pair));
    let mut offset = 0;
    while let Some(bytes) = until_stopped(trial, || socket.write(pattern.run(offset, CHUNK_BYTES)))? {
        offset += bytes as u64;
    }
    Ok(())
}

fn sink(trial: &Trial, pair: usize, mut socket: TcpStream) -> io::Result<()> {
    let pattern = Pattern::new(trial.pair_seed(pair));
    let (mut buffer, mut offset) = (vec![0; CHUNK_BYTES], 0);
    while let Some(bytes) = read(trial, &mut socket, &mut buffer)? {
        if !pattern.matches(offset, bytes) {
            return Err(io::Error::other(format!("the stream is corrupt behind byte {offset}")));
        }
        offset += bytes.len() as u64;
        trial.arrived(pair, offset);
    }
    Ok(())
}

fn ask(trial: &Trial, pair: usize, mut socket: TcpStream) -> io::Result<()> {
    let mut answered: u64 = 0;
    loop {
        let asked = Instant::now();
        let question = [answered as u8];
        if until_stopped(trial, || socket.write(&question))?.is_none() {
            return Ok(());
        }
        match read(trial, &mut socket, &mut [0])? {
            None => return Ok(()),
            Some(answer) if answer != question => {
                return Err(io::Error::other(format!("answer {answered} is not the question")));
            }
            Some(_) => {}
        }
        trial.answered_in(pair, asked.elapsed().as_nanos() as u64);
        answered += 1;
        trial.arrived(pair, answered);
    }
}

fn echo(trial: &Trial, mut socket: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while read(trial, &mut socket, &mut byte)?.is_some() {
        if until_stopped(trial, || socket.write(&byte))?.is_none() {
            break;
        }
    }
    Ok(())
}

fn send(trial: &Trial, socket: &UdpSocket) -> io::Result<()> {
    let datagram = vec![0; trial.datagram_bytes()];
    loop {
        match until_stopped(trial, || socket.send(&datagram)) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            // The interface's queue is full; this datagram is lost, as on any network.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {}
            Err(error) => return Err(error),
        }
    }
}

fn receive(trial: &Trial, pair: usize, socket: &UdpSocket) -> io::Result<()> {
    let (mut buffer, mut received) = (vec![0; DATAGRAM_BYTES], 0);
    while until_stopped(trial, || socket.recv(&mut buffer))?.is_some() {
        received += 1;
        trial.arrived(pair, received);
    }
    Ok(())
}
