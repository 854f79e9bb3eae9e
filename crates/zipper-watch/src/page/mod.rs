//! The status page: plain HTTP, read-only, everything that it needs inside the program.
//!
//! | path | what |
//! | --- | --- |
//! | `/` | the page |
//! | `/events` | server-sent events: `picture` whenever it has changed, `steps` as they are made; first of all both as a whole |
//! | `/api/picture` | the [`Picture`] as JSON |
//! | `/api/steps` | all steps in columns |
//! | `/api/flight/{generation}` | the flight records of a generation that was broken |
//! | `/metrics` | for Prometheus |
//!
//! Reading order: [`Shown`] (what there is to show), `access` (who may see it), `live` (server-sent events), `assets`.

mod access;
mod assets;
mod live;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use zipper_checkpoint::{RunStore, layout};
use zipper_proto::v1;
use zipper_types::Generation;

pub use access::Access;

use crate::picture::Picture;
use crate::prometheus::Prometheus;
use crate::series::Series;

/// Points that a chart starts with: more cannot be told apart on a screen.
const MOST_POINTS: usize = 4000;
/// Pages that are open at the same time.
const MOST_WATCHERS: usize = 64;
/// Ranks whose flight records are shown.
const MOST_RECORDS: usize = 16;

/// What is shown; cheap to clone.
#[derive(Clone)]
pub struct Shown {
    inner: Arc<Inner>,
}

struct Inner {
    store: RunStore,
    now: Mutex<Now>,
    /// Counts changes; what changed is looked up.
    changes: watch::Sender<u64>,
    watchers: Semaphore,
}

/// What is known now.
struct Now {
    picture: Arc<Picture>,
    series: Series,
    prometheus: Prometheus,
    /// Nothing will change any more.
    over: bool,
}

impl Inner {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// Shows a run that has come so far.
    pub fn new(store: RunStore, picture: Picture, series: Series) -> Self {
        let now = Now {
            picture: Arc::new(picture),
            prometheus: Prometheus::new(&series),
            series,
            over: false,
        };
        Self {
            inner: Arc::new(Inner {
                store,
                now: Mutex::new(now),
                changes: watch::channel(0).0,
                watchers: Semaphore::new(MOST_WATCHERS),
            }),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Now) -> T) -> T {
        let changed = change(&mut self.inner.now());
        self.inner.changes.send_modify(|changes| *changes += 1);
        changed
    }

    /// Looks at what is shown.
    pub fn look<T>(&self, look: impl FnOnce(&Picture, &Series) -> T) -> T {
        let now = self.inner.now();
        look(&now.picture, &now.series)
    }

    /// Changes the picture.
    pub fn paint(&self, paint: impl FnOnce(&mut Picture)) {
        self.change(|now| paint(Arc::make_mut(&mut now.picture)));
    }

    /// Adds a step to the series.
    pub fn step(&self, metrics: &v1::StepMetrics) {
        self.change(|now| {
            if now.series.add(metrics)
                && let Some(point) = now.series.points().last()
            {
                now.prometheus.step(now.series.languages(), point);
            }
        });
    }

    /// Replaces what is shown by what was read anew.
    pub fn replace(&self, picture: Picture, series: Series) {
        self.change(|now| {
            now.picture = Arc::new(picture);
            now.prometheus = Prometheus::new(&series);
            now.series = series;
        });
    }

    /// Nothing more will happen: pages that are open get the last picture, and their connections end.
    pub fn close(&self) {
        self.change(|now| now.over = true);
    }
}

/// Serves the page on `listener` until [`Shown::close`].
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, shown: Shown, access: Access) -> std::io::Result<()> {
    let mut changes = shown.inner.changes.subscribe();
    let over = {
        let shown = shown.clone();
        async move {
            // The sender lives in `shown`.
            let _ = changes.wait_for(|_| shown.inner.now().over).await;
        }
    };
    axum::serve(listener, router(shown, access))
        .with_graceful_shutdown(over)
        .await
}

/// Everything that is served.
fn router(shown: Shown, access: Access) -> Router {
    Router::new()
        .route("/", get(|| async { assets::index() }))
        .route(
            "/assets/{name}",
            get(|Path(name): Path<String>| async move { assets::asset(&name) }),
        )
        .route(
            "/events",
            get(|State(shown): State<Shown>| async move { live::events(shown) }),
        )
        .route(
            "/api/picture",
            get(|State(shown): State<Shown>| async move { picture(&shown) }),
        )
        .route(
            "/api/steps",
            get(|State(shown): State<Shown>| async move { steps(&shown) }),
        )
        .route("/api/flight/{generation}", get(flight))
        .route(
            "/metrics",
            get(|State(shown): State<Shown>| async move { prometheus(&shown) }),
        )
        .with_state(shown)
        .layer(middleware::from_fn_with_state(Arc::new(access), access::check))
        .layer(middleware::map_response(|response: Response| async {
            assets::harden(response)
        }))
}

fn picture(shown: &Shown) -> Response {
    shown.look(|picture, _| Json(picture).into_response())
}

fn steps(shown: &Shown) -> Response {
    shown.look(|_, series| Json(series.columns(series.points(), MOST_POINTS)).into_response())
}

fn prometheus(shown: &Shown) -> Response {
    let usage = shown.inner.store.usage();
    let text = {
        let now = shown.inner.now();
        let age = now.picture.checkpoints.last().and_then(|newest| age(&newest.at));
        now.prometheus.render(&now.picture, usage, age)
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// Seconds since a time in RFC 3339.
fn age(at: &str) -> Option<f64> {
    let at = humantime::parse_rfc3339(at).ok()?;
    let age = SystemTime::now().duration_since(at).unwrap_or(Duration::ZERO);
    Some(age.as_secs_f64())
}

/// The flight records that the ranks of a generation left, as they wrote them.
async fn flight(State(shown): State<Shown>, Path(generation): Path<u64>) -> Response {
    let store = &shown.inner.store;
    let folder = layout::flight_dir(Generation(generation));
    let mut records = serde_json::Map::new();
    let paths = match store.list(&folder).await {
        Ok(paths) => paths,
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    for path in paths.iter().take(MOST_RECORDS) {
        let Ok(bytes) = store.get(path).await else {
            continue;
        };
        let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".json");
        if let Ok(record) = serde_json::from_slice(&bytes) {
            records.insert(name.to_owned(), record);
        }
    }
    Json(serde_json::json!({"generation": generation, "of": paths.len(), "records": records})).into_response()
}
