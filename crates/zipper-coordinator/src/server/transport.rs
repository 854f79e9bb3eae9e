//! The server as the network sees it: who may connect, and what a peer may cost.

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::Router;
use zipper_proto::v1::agent_service_server::AgentServiceServer;
use zipper_proto::v1::run_service_server::RunServiceServer;
use zipper_proto::v1::worker_service_server::WorkerServiceServer;
use zipper_tls::{Credentials, Incoming, Limits, Refusals, TlsError};

use super::service::Services;
use crate::state::Crew;

/// Requests of one connection at a time. A worker has a long poll, a heartbeat and a few reports.
const STREAMS: u32 = 256;
/// Bytes of a worker's request: the transcripts of its part of a test set are the longest.
const WORKER_MESSAGE: usize = 64 << 20;
/// Bytes of any other request.
const MESSAGE: usize = 1 << 20;
/// Bytes of a request's headers.
const HEADERS: u32 = 16 << 10;
/// How long a request may take to arrive and be answered; a long poll takes a minute at most.
const REQUEST: Duration = Duration::from_mins(2);
/// How often a peer that is silent is asked whether it is there, and how long it may take to say so.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The connections of a run's own processes.
pub(super) fn incoming(
    listener: TcpListener,
    credentials: &Credentials,
    crew: Crew,
    refusals: Refusals,
) -> Result<Incoming, TlsError> {
    let nodes = crew.nodes as usize;
    let processes = nodes + nodes * crew.workers_per_node as usize;
    Incoming::new(listener, credentials, Limits::of_processes(processes), refusals)
}

/// All services, with limits.
pub(super) fn router(services: Services) -> Router {
    Server::builder()
        .timeout(REQUEST)
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .http2_keepalive_interval(Some(ASK_EVERY))
        .http2_keepalive_timeout(Some(ANSWER_WITHIN))
        .add_service(WorkerServiceServer::new(services.clone()).max_decoding_message_size(WORKER_MESSAGE))
        .add_service(AgentServiceServer::new(services.clone()).max_decoding_message_size(MESSAGE))
        .add_service(RunServiceServer::new(services).max_decoding_message_size(MESSAGE))
}
