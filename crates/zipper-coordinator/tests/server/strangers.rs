//! Goal: whatever comes over the network, from strangers or from a process with a certificate that sends what it should not,
//! the coordinator serves its workers to the end of the run.
//! Method: a run of two workers while raw clients do their worst.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::Code;
use zipper_proto::v1;
use zipper_proto::v1::agent_service_client::AgentServiceClient;
use zipper_proto::v1::run_service_client::RunServiceClient;
use zipper_proto::v1::verdict;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_tls::{Authority, Role};

use crate::fleet::{Coordinator, Fleet, authority, config, endpoint, member, run_in};

const PATIENCE: Duration = Duration::from_secs(30);
/// What begins a connection of HTTP/2, and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A connection with a certificate of the launch, below gRPC.
async fn raw(authority: &Authority, address: SocketAddr) -> TlsStream<TcpStream> {
    let pem = authority.issue(Role::Node).expect("there is randomness").to_pem();
    let root = CertificateDer::pem_slice_iter(pem.as_bytes()).last();
    let mut roots = RootCertStore::empty();
    roots
        .add(root.expect("it comes last").expect("PEM"))
        .expect("an authority");
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let config = ClientConfig::builder().with_root_certificates(roots);
    let mut config = config
        .with_client_auth_cert(vec![certificate], key)
        .expect("they fit");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("coordinator.zipper.internal").expect("a name");
    let tcp = TcpStream::connect(address).await.expect("it listens");
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .expect("it is a certificate of the launch")
}

/// Waits until the peer has closed a connection.
async fn is_closed(mut stream: TlsStream<TcpStream>) {
    let mut rest = Vec::new();
    // In order or not.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the coordinator closes it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_disturb_a_run() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let address = coordinator.address;
    let mut fleet = Fleet::join(&coordinator, &store).await;

    // Thousands of connections, some of which say nothing, the others nonsense.
    let mut crowd = Vec::new();
    for wave in 0..20 {
        for number in 0..100 {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            if number % 2 == 0 {
                // It may have been closed already.
                let _ = stream.write_all(&[wave * 12; 300]).await;
            }
            crowd.push(stream);
        }
        crowd.drain(..crowd.len() / 2);
    }
    for run in ["tiny", "other"] {
        let foreign = endpoint(&authority(run), Role::Node, address);
        assert!(
            foreign.connect().await.is_err(),
            "a certificate of another launch"
        );
    }
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let mut plain = AgentServiceClient::new(plain.connect_lazy());
    let refused = plain.agent_heartbeat(v1::AgentHeartbeatRequest::default()).await;
    assert!(refused.is_err(), "there is no connection without encryption");

    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_peers_with_a_certificate_do_not_disturb_a_run() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let (authority, address) = (&coordinator.authority, coordinator.address);

    // No HTTP/2 at all.
    let mut nonsense = raw(authority, address).await;
    nonsense.write_all(&[0xa5; 4096]).await.expect("it is open");
    is_closed(nonsense).await;
    // A frame that is longer than any may be.
    let mut frames = raw(authority, address).await;
    frames.write_all(PREFACE).await.expect("it is open");
    frames
        .write_all(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
        .await
        .expect("it is open");
    is_closed(frames).await;
    // Headers that never end: they are kept open, and hold nothing up.
    let mut endless = raw(authority, address).await;
    endless.write_all(PREFACE).await.expect("it is open");
    endless
        .write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82])
        .await
        .expect("it is open");

    let channel = endpoint(authority, Role::Node, address).connect_lazy();
    let mut agents = AgentServiceClient::new(channel.clone());
    let long = v1::AgentHeartbeatRequest {
        agent: Some(v1::AgentContext {
            run: "x".repeat(2 << 20),
            ..v1::AgentContext::default()
        }),
    };
    let refused = agents.agent_heartbeat(long).await.expect_err("it is too long");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    let mut workers = WorkerServiceClient::new(channel.clone());
    let nobody = v1::JoinRequest {
        member: Some(v1::MemberContext {
            worker_id: "node7/0".to_owned(),
            ..member(0)
        }),
        node_rank: 7,
        ..v1::JoinRequest::default()
    };
    let refused = workers.join(nobody).await.expect_err("there is no node 7");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let far = v1::HeartbeatRequest {
        member: Some(fleet.members[0].clone()),
        last_completed_step: u64::MAX,
        ..v1::HeartbeatRequest::default()
    };
    let refused = workers.heartbeat(far).await.expect_err("there is no such step");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let outside = v1::ReportCheckpointPartsRequest {
        member: Some(fleet.members[0].clone()),
        step: 2,
        stage: v1::Stage::Align.into(),
        parts: vec![v1::CheckpointPart {
            path: "../../run.yaml".to_owned(),
            ..v1::CheckpointPart::default()
        }],
    };
    let refused = workers
        .report_checkpoint_parts(outside)
        .await
        .expect_err("it is outside of the checkpoint");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    // More requests than one connection may have at a time wait; those of others do not.
    let watchers: Vec<_> = (0..400)
        .map(|_| {
            let mut client = RunServiceClient::new(channel.clone());
            tokio::spawn(async move {
                let watching = client.watch(v1::WatchRequest::default()).await;
                let mut events = watching
                    .expect("whoever has a certificate may watch")
                    .into_inner();
                while let Ok(Some(_)) = events.message().await {}
            })
        })
        .collect();
    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Done);
    for watcher in watchers {
        watcher.abort();
    }
    drop(endless);
}
