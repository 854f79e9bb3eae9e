//! Connections of those who have proved that they belong to the launch.
//!
//! Handshakes are made beside each other, so that a peer that says nothing holds up nobody; of too many, the oldest makes
//! room, as one of this run takes milliseconds. Places are given to peers with a certificate only: strangers cannot take them up.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

use crate::TlsError;
use crate::credentials::Credentials;
use crate::refusals::{Reason, Refusals};

/// Connections that wait to be served.
const WAITING: usize = 64;
/// Pause after the system could not give a connection: it has no more file handles.
const PAUSE: Duration = Duration::from_millis(100);

/// What those who connect can cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are open at a time.
    pub connections: usize,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
}

impl Limits {
    /// Those of a run with this many processes that may connect.
    pub fn of_processes(processes: usize) -> Self {
        Self {
            // Each has up to three, and new ones while the old are not known to be dead.
            connections: 64 + 8 * processes,
            handshakes: 256,
            handshake: Duration::from_secs(10),
        }
    }
}

/// A stream of connections.
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
}

impl Incoming {
    /// Takes in those who connect to `listener` and show a certificate of the authority of `credentials`. The others are
    /// counted in `refusals`.
    ///
    /// # Errors
    /// If the credentials cannot be used.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        listener: TcpListener,
        credentials: &Credentials,
        limits: Limits,
        refusals: Refusals,
    ) -> Result<Self, TlsError> {
        let acceptor = TlsAcceptor::from(Arc::new(credentials.server_config()?));
        let (taken_in, connections) = mpsc::channel(WAITING);
        let door = Door {
            acceptor,
            limits,
            refusals,
            places: Arc::new(Semaphore::new(limits.connections)),
            taken_in,
        };
        tokio::spawn(attend(listener, door));
        Ok(Self { connections })
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections
            .poll_recv(context)
            .map(|connection| connection.map(Ok))
    }
}

/// What each handshake needs.
#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    limits: Limits,
    refusals: Refusals,
    places: Arc<Semaphore>,
    taken_in: mpsc::Sender<Connection>,
}

/// Accepts until nobody takes connections any more.
async fn attend(listener: TcpListener, door: Door) {
    let mut handshakes: VecDeque<(AbortHandle, IpAddr)> = VecDeque::new();
    // Said once, not ten times a second.
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = door.taken_in.closed() => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => {
                failing = false;
                accepted
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        "connections cannot be accepted: {error}; if that is the limit of open files, raise it (`ulimit -n`)"
                    );
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        if handshakes.len() >= door.limits.handshakes {
            handshakes.retain(|(handshake, _)| !handshake.is_finished());
        }
        if handshakes.len() >= door.limits.handshakes
            && let Some((oldest, from)) = handshakes.pop_front()
        {
            oldest.abort();
            door.refusals.add(Reason::Crowded, from);
        }
        let handshake = tokio::spawn(door.clone().shake_hands(socket, peer.ip()));
        handshakes.push_back((handshake.abort_handle(), peer.ip()));
    }
}

impl Door {
    async fn shake_hands(self, socket: TcpStream, peer: IpAddr) {
        // Requests are small and waited for.
        let _ = socket.set_nodelay(true);
        let stream = match timeout(self.limits.handshake, self.acceptor.accept(socket)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!("the handshake with {peer} failed: {error}");
                return self.refusals.add(Reason::of(&error), peer);
            }
            Err(_) => return self.refusals.add(Reason::Unfinished, peer),
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return self.refusals.add(Reason::Crowded, peer);
        };
        let connection = Connection {
            stream,
            _place: place,
        };
        // The server may be at its end.
        let _ = self.taken_in.send(connection).await;
    }
}

/// An encrypted connection from a process of this launch.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
