//! An HTTP proxy before a server that does what bad networks and overloaded servers do, as long as it is told to.

use std::convert::Infallible;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderMap};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::free_port;

type Failure = Box<dyn Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Failure>;

/// How long what came before a cut has to leave the proxy.
const LAST_BYTES: Duration = Duration::from_millis(20);
/// How long the proxy may take to close and open its port.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the proxy does with each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Passes bodies on at this rate, each by itself.
    Slow {
        /// At most.
        bytes_per_second: u32,
    },
    /// Nobody listens, and what was connected is cut.
    Refuse,
    /// Takes requests and never answers.
    Hang,
    /// Answers every request with this status and passes none on.
    Answer(u16),
    /// Cuts the connection after half of the body of each request that has one; the server gets that half.
    CutRequests,
    /// Cuts the connection after half of the body of each answer that has one.
    CutAnswers,
    /// Lets the server do what it was asked, and cuts the connection instead of answering.
    LoseAnswers,
}

/// A running proxy. It ends with this value.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    end: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    mode: watch::Sender<Mode>,
    listens: Mutex<bool>,
    listens_changed: Condvar,
    requests: AtomicU64,
    harmed: AtomicU64,
}

impl Shared {
    fn set_listens(&self, listens: bool) {
        *self.listens.lock().expect("no holder panics") = listens;
        self.listens_changed.notify_all();
    }
}

impl FaultProxy {
    /// Starts a proxy for `server` on loopback.
    ///
    /// # Panics
    /// As [`FaultProxy::start_on`].
    pub fn start(server: SocketAddr) -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST.into(), server)
    }

    /// Starts a proxy for `server` on an address of this machine.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub fn start_on(host: IpAddr, server: SocketAddr) -> Self {
        let (address, listener) = free_port(host);
        let shared = Arc::new(Shared {
            server,
            mode: watch::Sender::new(Mode::Pass),
            listens: Mutex::new(true),
            listens_changed: Condvar::new(),
            requests: AtomicU64::new(0),
            harmed: AtomicU64::new(0),
        });
        let (end, mut ended) = watch::channel(());
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async {
                tokio::select! {
                    () = serve(serving, address, listener) => {}
                    // The sender is gone.
                    _ = ended.changed() => {}
                }
            });
        });
        Self {
            shared,
            address,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on. Bodies on their way keep the fate that they had, but for their speed.
    ///
    /// # Panics
    /// If the proxy has failed.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
        let listens = self.shared.listens.lock().expect("no holder panics");
        let shall_listen = mode != Mode::Refuse;
        let waited = self
            .shared
            .listens_changed
            .wait_timeout_while(listens, PATIENCE, |listens| *listens != shall_listen);
        let timed_out = waited.expect("no holder panics").1.timed_out();
        assert!(!timed_out, "the proxy on {} does not go on", self.address);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests so far that did not simply pass.
    pub fn harmed(&self) -> u64 {
        self.shared.harmed.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the proxy on {} failed", self.address);
        }
    }
}

/// Takes connections until dropped.
async fn serve(shared: Arc<Shared>, address: SocketAddr, listener: std::net::TcpListener) {
    let mut listener = TcpListener::from_std(listener).expect("a listener can be watched");
    let mut modes = shared.mode.subscribe();
    let mut connections = JoinSet::new();
    loop {
        if *modes.borrow_and_update() == Mode::Refuse {
            drop(listener);
            connections.shutdown().await;
            shared.set_listens(false);
            let _ = modes.wait_for(|mode| *mode != Mode::Refuse).await;
            listener = TcpListener::bind(address)
                .await
                .expect("nobody else takes the port");
            shared.set_listens(true);
        }
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve_connection(Arc::clone(&shared), stream));
                }
            }
            Some(_) = connections.join_next() => {}
            _ = modes.changed() => {}
        }
    }
}

async fn serve_connection(shared: Arc<Shared>, stream: TcpStream) {
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    let mut connection = hyper::server::conn::http1::Builder::new();
    // An error is what the client was to see; there is nobody else to tell.
    let _ = connection
        .keep_alive(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Answers one request; an error cuts the connection.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let mode = *shared.mode.borrow();
    if mode != Mode::Pass {
        shared.harmed.fetch_add(1, Ordering::Relaxed);
    }
    match mode {
        Mode::Refuse => return Err(cut()),
        Mode::Hang => {
            let mut modes = shared.mode.subscribe();
            let _ = modes.wait_for(|mode| *mode != Mode::Hang).await;
            return Err(cut());
        }
        Mode::Answer(status) => return refusal(request, status).await,
        Mode::Pass | Mode::Slow { .. } | Mode::CutRequests | Mode::CutAnswers | Mode::LoseAnswers => {}
    }
    let server = TcpStream::connect(shared.server).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(server)).await?;
    tokio::spawn(connection);
    let (head, body) = request.into_parts();
    let limit = (mode == Mode::CutRequests).then(|| half(&head.headers)).flatten();
    let body = shaped(Arc::clone(&shared), body, limit);
    let response = sender.send_request(Request::from_parts(head, body)).await?;
    if mode == Mode::LoseAnswers {
        return Err(cut());
    }
    let limit = (mode == Mode::CutAnswers)
        .then(|| half(response.headers()))
        .flatten();
    Ok(response.map(|body| shaped(shared, body, limit)))
}

/// An answer as S3 gives it, once the request has been heard out.
async fn refusal(request: Request<Incoming>, status: u16) -> Result<Response<Body>, Failure> {
    request.into_body().collect().await?;
    let code = if status == 503 {
        "SlowDown"
    } else {
        "InternalError"
    };
    let document = format!("<Error><Code>{code}</Code><Message>a test says so</Message></Error>");
    let body = Full::new(Bytes::from(document)).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status)?;
    Ok(response)
}

/// Half of what a body's headers promise; nothing for an empty body.
fn half(headers: &HeaderMap) -> Option<u64> {
    let length: u64 = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    (length > 0).then_some(length / 2)
}

struct Passing {
    shared: Arc<Shared>,
    body: Incoming,
    /// Bytes until the cut.
    left: Option<u64>,
}

/// A body at the speed of the present mode, cut after `limit` bytes.
fn shaped(shared: Arc<Shared>, body: Incoming, limit: Option<u64>) -> Body {
    let left = limit;
    let passing = Passing { shared, body, left };
    StreamBody::new(stream::unfold(passing, next_frame)).boxed_unsync()
}

async fn next_frame(mut passing: Passing) -> Option<(Result<Frame<Bytes>, Failure>, Passing)> {
    if passing.left == Some(0) {
        tokio::time::sleep(LAST_BYTES).await;
        return Some((Err(cut()), passing));
    }
    let frame = match passing.body.frame().await? {
        Ok(frame) => frame,
        Err(error) => return Some((Err(error.into()), passing)),
    };
    let Ok(mut data) = frame.into_data() else {
        // Trailers: S3 uses none.
        return None;
    };
    if let Some(left) = &mut passing.left {
        data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= data.len() as u64;
    }
    let mode = *passing.shared.mode.borrow();
    if let Mode::Slow { bytes_per_second } = mode {
        let seconds = data.len() as f64 / f64::from(bytes_per_second);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }
    Some((Ok(Frame::data(data)), passing))
}

fn cut() -> Failure {
    "cut by the proxy".into()
}
