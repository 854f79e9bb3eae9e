//! What those who show the run to people may ask and say.

use tokio::sync::{mpsc, oneshot, watch};
use zipper_proto::v1::watch_response::Event as Watched;

use super::history::{History, Recent};
use super::owner::Message;
use crate::state::Overview;

/// Looks at a run, and tells watchers what it sees.
pub(crate) struct Watcher {
    messages: mpsc::Sender<Message>,
    history: History,
}

impl Watcher {
    pub(super) fn new(messages: mpsc::Sender<Message>, history: History) -> Self {
        Self { messages, history }
    }

    /// What watchers are told.
    pub(crate) fn history(&self) -> watch::Receiver<Recent> {
        self.history.subscribe()
    }

    /// What the state looks like; nothing once the run is over.
    pub(crate) async fn overview(&self) -> Option<Overview> {
        let (answer, answered) = oneshot::channel();
        let question = Message::Ask(Box::new(move |state| {
            // Who asked may be gone.
            let _ = answer.send(state.overview());
        }));
        self.messages.send(question).await.ok()?;
        answered.await.ok()
    }

    /// Tells all watchers, unless the run has ended.
    pub(crate) fn tell(&self, event: Watched) {
        self.history.add(event);
    }
}
