//! Connections, on which everything has an end.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{Failure, endpoint::Endpoint, tls::Tls};

/// A connection, whatever it is made of.
pub(crate) trait Connection: Read + Write {}
impl<T: Read + Write> Connection for T {}

pub(crate) fn open(
    endpoint: &Endpoint,
    tls: Option<&Tls>,
    connect_timeout: Duration,
    timeout: Duration,
) -> Result<Box<dyn Connection>, Failure> {
    match endpoint {
        Endpoint::Unix { path } => {
            let stream = connect_unix(path, connect_timeout)?;
            Ok(Box::new(Timed::new(stream, timeout)))
        }
        Endpoint::Tcp { host, port, .. } => {
            let stream = connect(host, *port, connect_timeout)?;
            Ok(Box::new(Timed::new(stream, timeout)))
        }
        Endpoint::Tls { host, port, .. } => {
            let stream = Timed::new(connect(host, *port, connect_timeout)?, timeout);
            tls.ok_or(Failure::Tls)?.over(stream)
        }
    }
}

/// A service that does not take connections, while the queue of its socket is full, would hold a caller for as long as it
/// likes.
fn connect_unix(path: &Path, timeout: Duration) -> Result<UnixStream, Failure> {
    let path = path.to_owned();
    within(timeout, move || UnixStream::connect(path))
}

fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + timeout;
    let addresses = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => resolve(host, port, timeout)?,
    };
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if let Ok(stream) = TcpStream::connect_timeout(&address, left) {
            // One request, and then an answer: nothing to wait for.
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err(Failure::Connect)
}

fn resolve(host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, Failure> {
    let host = host.to_owned();
    within(timeout, move || {
        (host.as_str(), port)
            .to_socket_addrs()
            .map(|addresses| addresses.collect())
    })
}

/// What the system gives no time-out for. Its thread ends when the system has an answer.
fn within<T: Send + 'static>(
    timeout: Duration,
    body: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("kith_kms".into())
        .spawn(move || {
            let _ = sender.send(body());
        })
        .map_err(|_| Failure::Connect)?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(value)) => Ok(value),
        _ => Err(Failure::Connect),
    }
}

/// A stream with an end in time, for all that is read and written on it together.
pub(crate) struct Timed<S> {
    stream: S,
    deadline: Instant,
}

impl<S: Stream> Timed<S> {
    fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            deadline: Instant::now() + timeout,
        }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl<S: Stream> Read for Timed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        self.stream.read_within(left, buffer)
    }
}

impl<S: Stream> Write for Timed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        self.stream.write_within(left, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

pub(crate) trait Stream: Read + Write {
    fn read_within(&mut self, left: Duration, buffer: &mut [u8]) -> io::Result<usize>;
    fn write_within(&mut self, left: Duration, bytes: &[u8]) -> io::Result<usize>;
}

// Both have the same methods, and no trait of the standard library has them.
macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn read_within(&mut self, left: Duration, buffer: &mut [u8]) -> io::Result<usize> {
                self.set_read_timeout(Some(left))?;
                self.read(buffer)
            }

            fn write_within(&mut self, left: Duration, bytes: &[u8]) -> io::Result<usize> {
                self.set_write_timeout(Some(left))?;
                self.write(bytes)
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);
