//! Server-sent events: what an open page is told.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;
use zipper_types::Step;

use super::{MOST_POINTS, Shown};
use crate::picture::Picture;
use crate::series::Columns;

/// Least time between two pictures of one page.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a page hears something, so that both sides know that the other one is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Steps for a page.
#[derive(Serialize)]
struct Steps {
    /// They are all that there are: what the page has is to be forgotten.
    reset: bool,
    columns: Columns,
}

/// What one open page has.
struct Watcher {
    shown: Shown,
    changes: watch::Receiver<u64>,
    picture: Option<Arc<Picture>>,
    /// The last step that it was told of; nothing before the first time.
    step: Option<u64>,
    over: bool,
}

/// Everything as a whole, then what changes.
pub(super) fn events(shown: Shown) -> Response {
    let Ok(place) = shown.inner.watchers.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    // Given back when the connection ends.
    place.forget();
    let watcher = Watcher {
        changes: shown.inner.changes.subscribe(),
        picture: None,
        step: None,
        over: false,
        shown,
    };
    let events = stream::unfold(watcher, async |mut watcher| {
        let events = watcher.next().await?;
        Some((stream::iter(events), watcher))
    });
    let events = events.flatten().map(Ok::<Event, Infallible>);
    // An event and not a comment, of which the page would not know.
    let alive = Event::default().event("alive").data("{}");
    let keep_alive = KeepAlive::new().interval(SIGN_OF_LIFE).event(alive);
    Sse::new(events).keep_alive(keep_alive).into_response()
}

impl Watcher {
    /// What is new; nothing after the end.
    async fn next(&mut self) -> Option<Vec<Event>> {
        if self.over {
            return None;
        }
        if self.picture.is_some() {
            // Not more often than can be seen.
            sleep(PAUSE).await;
            self.changes.changed().await.ok()?;
        }
        self.changes.mark_unchanged();
        let now = self.shown.inner.now();
        self.over = now.over;
        let mut events = Vec::new();
        let series = &now.series;
        // A series that has become shorter was read anew.
        let known = self.step.filter(|step| *step <= series.last_step());
        if self.step.is_none() || self.step != Some(series.last_step()) {
            let points = known.map_or(series.points(), |step| series.after(Step(step)));
            let steps = Steps {
                reset: known.is_none(),
                columns: series.columns(points, MOST_POINTS),
            };
            self.step = Some(series.last_step());
            events.extend(event("steps", &steps));
        }
        if self.picture.as_ref() != Some(&now.picture) {
            events.extend(event("picture", now.picture.as_ref()));
            self.picture = Some(Arc::clone(&now.picture));
        }
        if self.over {
            events.push(Event::default().event("over").data("{}"));
        }
        Some(events)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shown.inner.watchers.add_permits(1);
    }
}

fn event(name: &str, data: &impl Serialize) -> Option<Event> {
    match Event::default().event(name).json_data(data) {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::warn!("the status page's `{name}` cannot be written as JSON: {error}");
            None
        }
    }
}
