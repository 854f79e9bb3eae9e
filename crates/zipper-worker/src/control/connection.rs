//! The way to a coordinator that may be away for a while, and may come back at another address.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use tonic::transport::Channel;
use tonic::{Code, Status};
use zipper_checkpoint::RunStore;
use zipper_checkpoint::lease::{self, Claim};
use zipper_proto::is_away;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_tls::{Credentials, TlsError};

/// How long a request may take that is not a long poll.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to try the old address before the run is asked for a new one; and how often.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) type Client = WorkerServiceClient<Channel>;

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The worker's generation is over.
    #[error("{0}")]
    Over(String),
    /// This process is not to go on.
    #[error("{0}")]
    GivenUp(String),
    /// The coordinator was away for too long.
    #[error("{what}: this worker waited {} for the coordinator: {status}", humantime::format_duration(*.waited))]
    Away {
        /// What for.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// The last answer.
        status: Status,
    },
    /// The coordinator cannot answer it.
    #[error("{what}: {} ({:?})", status.message(), status.code())]
    Other {
        /// What was asked.
        what: &'static str,
        /// The answer.
        status: Status,
    },
}

/// A connection that is made anew when it breaks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    store: RunStore,
    credentials: Credentials,
    /// How long to wait for a coordinator that is away.
    patience: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    address: String,
    client: Client,
    /// Since when no request has been answered; and when the run was asked for an address.
    away_since: Option<Instant>,
    looked: Option<Instant>,
}

impl Connection {
    pub(super) fn new(
        address: &str,
        credentials: Credentials,
        store: RunStore,
        patience: Duration,
    ) -> Result<Self, TlsError> {
        let state = State {
            address: address.to_owned(),
            client: client(&credentials, address)?,
            away_since: None,
            looked: None,
        };
        Ok(Self {
            store,
            credentials,
            patience,
            state: Arc::new(Mutex::new(state)),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request once.
    pub(super) async fn once<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.look_for_it().await;
        let client = self.state().client.clone();
        let answer = request(client).await;
        let mut state = self.state();
        match &answer {
            Err(status) if is_away(status) => {
                state.away_since.get_or_insert_with(Instant::now);
            }
            _ => state.away_since = None,
        }
        answer.map(tonic::Response::into_inner)
    }

    /// Repeats a request while the coordinator is away, with pauses that grow and differ from worker to worker.
    pub(super) async fn send<T, F>(
        &self,
        what: &'static str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_total_delay(Some(self.patience))
            .without_max_times()
            .with_jitter();
        let answer = (|| self.once(&request)).retry(pauses).when(is_away).await;
        answer.map_err(|status| match status.code() {
            Code::Aborted => Refused::Over(status.message().to_owned()),
            Code::FailedPrecondition => Refused::GivenUp(status.message().to_owned()),
            _ if is_away(&status) => Refused::Away {
                what,
                waited: self.patience,
                status,
            },
            _ => Refused::Other { what, status },
        })
    }

    /// How long no request has been answered.
    pub(super) fn away_for(&self) -> Duration {
        self.state()
            .away_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Asks the run where its coordinator is, if the one that is known has not answered for a while.
    async fn look_for_it(&self) {
        {
            let mut state = self.state();
            let long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() > LOOK_AFTER);
            let recently = state.looked.is_some_and(|looked| looked.elapsed() < LOOK_AFTER);
            if !long(state.away_since) || recently {
                return;
            }
            state.looked = Some(Instant::now());
        }
        let found = tokio::time::timeout(LOOK_AFTER, lease::newest(&self.store)).await;
        let Ok(Ok(Some(Claim { epoch, holder, .. }))) = found else {
            return;
        };
        let mut state = self.state();
        if holder.address != state.address
            && let Ok(client) = client(&self.credentials, &holder.address)
        {
            tracing::info!("the coordinator has moved to {} (claim {epoch})", holder.address);
            state.address = holder.address;
            state.client = client;
        }
    }
}

fn client(credentials: &Credentials, address: &str) -> Result<Client, TlsError> {
    let endpoint = credentials.endpoint(address)?;
    Ok(WorkerServiceClient::new(endpoint.connect_lazy()))
}

/// A request with the usual deadline.
pub(super) fn with_timeout<T>(request: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(REQUEST_TIMEOUT);
    request
}
