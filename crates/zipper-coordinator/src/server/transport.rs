//! The server as the network sees it: who may connect, and what a peer may cost.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
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
/// Bytes of a request. What is decoded can take some thirty times as much.
const MESSAGE: usize = 1 << 20;
/// Bytes of the two that can be longer: the transcripts of a worker's part of a test set, and the names of its part of a checkpoint.
const LONG_MESSAGE: usize = 64 << 20;
const LONG: [&str; 2] = ["/CompleteTask", "/ReportCheckpointParts"];
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
    Incoming::new(
        listener,
        credentials,
        Limits::of_processes(crew.processes()),
        refusals,
    )
}

/// All services, with limits.
pub(super) fn router(services: Services) -> Router {
    Server::builder()
        .timeout(REQUEST)
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .http2_keepalive_interval(Some(ASK_EVERY))
        .http2_keepalive_timeout(Some(ANSWER_WITHIN))
        .add_service(Workers::new(&services))
        .add_service(AgentServiceServer::new(services.clone()).max_decoding_message_size(MESSAGE))
        .add_service(RunServiceServer::new(services).max_decoding_message_size(MESSAGE))
}

/// The service of workers, with a limit of its own for each kind of request: tonic has one for a service.
#[derive(Clone)]
struct Workers {
    usual: WorkerServiceServer<Services>,
    long: WorkerServiceServer<Services>,
}

impl Workers {
    fn new(services: &Services) -> Self {
        let limited = |limit| WorkerServiceServer::new(services.clone()).max_decoding_message_size(limit);
        Self {
            usual: limited(MESSAGE),
            long: limited(LONG_MESSAGE),
        }
    }
}

impl NamedService for Workers {
    const NAME: &'static str = <WorkerServiceServer<Services> as NamedService>::NAME;
}

impl Service<Request<Body>> for Workers {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if LONG.iter().any(|long| path.ends_with(long)) {
            self.long.call(request)
        } else {
            self.usual.call(request)
        }
    }
}
