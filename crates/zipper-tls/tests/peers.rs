//! Goal: only processes of the same launch get a connection; everybody else is refused, counted by the reason, and holds up
//! nobody. Method: a listener on loopback and all kinds of peers, by this crate's own means and by rustls alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_stream::StreamExt;
use zipper_tls::{Authority, Connection, Credentials, Incoming, Limits, Reason, Refusals, Role};

/// Longest that anything here waits.
const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits {
    connections: 64,
    handshakes: 64,
    handshake: Duration::from_mins(1),
};

/// A server that keeps the connections that it is given.
struct Server {
    address: SocketAddr,
    authority: Authority,
    refusals: Refusals,
    connections: mpsc::UnboundedReceiver<Connection>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let authority = authority("a");
        let own = authority.issue(Role::Coordinator).expect("there is randomness");
        let refusals = Refusals::default();
        let mut incoming = Incoming::new(listener, &own, limits, refusals.clone()).expect("they are good");
        let (taken_in, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(connection)) = incoming.next().await {
                if taken_in.send(connection).is_err() {
                    return;
                }
            }
        });
        Self {
            address,
            authority,
            refusals,
            connections,
        }
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// A handshake that believes `server` and shows `own`. That it succeeds says little: with TLS 1.3, a server that refuses the
    /// client's certificate says so afterwards.
    async fn handshake(
        &self,
        server: &Authority,
        own: Option<&Credentials>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let pem = server.issue(Role::Node).expect("there is randomness").to_pem();
        let authority = CertificateDer::pem_slice_iter(pem.as_bytes()).last();
        let mut roots = RootCertStore::empty();
        roots
            .add(authority.expect("it comes last").expect("PEM"))
            .expect("an authority");
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match own.map(Credentials::to_pem) {
            None => config.with_no_client_auth(),
            Some(pem) => {
                let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("PEM");
                config
                    .with_client_auth_cert(vec![certificate], key)
                    .expect("they fit")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("coordinator.zipper.internal").expect("a name");
        TlsConnector::from(Arc::new(config))
            .connect(name, self.tcp().await)
            .await
    }

    /// Waits until this many were refused for this reason.
    async fn refused(&self, reason: Reason, times: u64) {
        let counted = async {
            while self.refusals.count(reason) < times {
                tokio::task::yield_now().await;
            }
        };
        let waited = timeout(PATIENCE, counted).await;
        assert!(
            waited.is_ok(),
            "waited for {times} of {reason:?}: {:?}",
            self.refusals.counts()
        );
    }

    async fn taken_in(&mut self) -> Connection {
        let connection = timeout(PATIENCE, self.connections.recv()).await;
        let connection =
            connection.unwrap_or_else(|_| panic!("waited for a connection: {:?}", self.refusals.counts()));
        connection.expect("the server lives")
    }
}

fn authority(run: &str) -> Authority {
    Authority::new(run, Duration::from_hours(1)).expect("there is randomness")
}

/// The peer is told, one way or another, that it is not welcome.
async fn is_turned_away(mut stream: TlsStream<TcpStream>) {
    let read = timeout(PATIENCE, stream.read_u8())
        .await
        .expect("it is told soon");
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test]
async fn a_process_of_the_launch_is_taken_in() {
    let mut server = Server::start(LIMITS).await;
    for role in [Role::Node, Role::Launcher] {
        let own = server.authority.issue(role).expect("there is randomness");
        let mut stream = server
            .handshake(&server.authority, Some(&own))
            .await
            .expect("welcome");
        let mut connection = server.taken_in().await;
        stream.write_all(b"hello").await.expect("it is open");
        stream.flush().await.expect("it is open");
        let mut heard = [0; 5];
        connection.read_exact(&mut heard).await.expect("it is open");
        assert_eq!(&heard, b"hello");
    }
    assert!(server.refusals.counts().iter().all(|(_, count)| *count == 0));
}

#[tokio::test]
async fn who_shows_no_certificate_is_refused() {
    let server = Server::start(LIMITS).await;
    let stream = server.handshake(&server.authority, None).await;
    is_turned_away(stream.expect("the server is who it says")).await;
    server.refused(Reason::NoCertificate, 1).await;
}

/// Also one of another launch of the same run: its authority is another one, of the same name.
#[tokio::test]
async fn who_belongs_to_another_launch_is_refused() {
    let server = Server::start(LIMITS).await;
    for (times, run) in [(1, "a"), (2, "b")] {
        let foreign = authority(run).issue(Role::Node).expect("there is randomness");
        let stream = server.handshake(&server.authority, Some(&foreign)).await;
        is_turned_away(stream.expect("the server is who it says")).await;
        server.refused(Reason::OtherRun, times).await;
    }
}

/// The other way round: a worker does not tell a coordinator of another launch anything.
#[tokio::test]
async fn a_worker_refuses_a_server_of_another_launch() {
    let server = Server::start(LIMITS).await;
    for (times, run) in [(1, "a"), (2, "b")] {
        let foreign = authority(run).issue(Role::Node).expect("there is randomness");
        let endpoint = foreign.endpoint(&format!("https://{}", server.address));
        let connected = endpoint.expect("an address").connect().await;
        assert!(connected.is_err());
        server.refused(Reason::OtherRun, times).await;
    }
}

/// A worker that was taken over cannot pose as the coordinator, nor the coordinator's certificate open connections.
#[tokio::test]
async fn certificates_are_good_for_one_role() {
    let server = Server::start(LIMITS).await;
    let coordinator = server
        .authority
        .issue(Role::Coordinator)
        .expect("there is randomness");
    let stream = server.handshake(&server.authority, Some(&coordinator)).await;
    is_turned_away(stream.expect("the server is who it says")).await;
    server.refused(Reason::OtherRun, 1).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let node = server.authority.issue(Role::Node).expect("there is randomness");
    let refusals = Refusals::default();
    let _posing = Incoming::new(listener, &node, LIMITS, refusals).expect("they are good");
    let other = server.authority.issue(Role::Node).expect("there is randomness");
    let endpoint = other.endpoint(&format!("https://{address}")).expect("an address");
    assert!(endpoint.connect().await.is_err());
}

#[tokio::test]
async fn other_protocols_are_refused() {
    let server = Server::start(LIMITS).await;
    for (times, said) in [
        (1, &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]),
        (2, b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        let mut stream = server.tcp().await;
        stream.write_all(said).await.expect("it is open");
        server.refused(Reason::Protocol, times).await;
    }
    drop(server.tcp().await);
    server.refused(Reason::Unfinished, 1).await;
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let limits = Limits {
        handshake: Duration::from_millis(50),
        ..LIMITS
    };
    let server = Server::start(limits).await;
    let mut silent = server.tcp().await;
    server.refused(Reason::Unfinished, 1).await;
    let mut rest = Vec::new();
    // The connection is closed, in order or not.
    let _ = timeout(PATIENCE, silent.read_to_end(&mut rest))
        .await
        .expect("soon");
}

/// A crowd that says nothing takes up handshakes, and no place: a process of the launch gets through.
#[tokio::test]
async fn a_silent_crowd_keeps_nobody_out() {
    let limits = Limits {
        handshakes: 8,
        ..LIMITS
    };
    let mut server = Server::start(limits).await;
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(server.tcp().await);
    }
    let own = server.authority.issue(Role::Node).expect("there is randomness");
    let _stream = server
        .handshake(&server.authority, Some(&own))
        .await
        .expect("welcome");
    server.taken_in().await;
    server.refused(Reason::Crowded, 92).await;
}

#[tokio::test]
async fn places_are_limited_and_given_back() {
    let limits = Limits {
        connections: 1,
        ..LIMITS
    };
    let mut server = Server::start(limits).await;
    let own = server.authority.issue(Role::Node).expect("there is randomness");
    let first = server.handshake(&server.authority, Some(&own)).await;
    let taken_in = server.taken_in().await;
    let second = server.handshake(&server.authority, Some(&own)).await;
    is_turned_away(second.expect("there is a server")).await;
    server.refused(Reason::Crowded, 1).await;
    drop((first, taken_in));
    let _third = server
        .handshake(&server.authority, Some(&own))
        .await
        .expect("welcome");
    server.taken_in().await;
}
