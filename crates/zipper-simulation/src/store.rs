//! A process's way to the run's store: requests are slow and get lost, the store is away at times, and a write that is under way
//! arrives even if who sent it is gone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::watch;
use tokio::time::sleep;
use zipper_simstore::{Faults, FaultyStore, RandomFaults, Request};

use crate::truth::Truth;

/// How long a store that is away takes to fail.
const AWAY: Duration = Duration::from_millis(200);

/// Whether a process goes on.
#[derive(Clone)]
pub(crate) struct Pause(Arc<watch::Sender<Going>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    On,
    Paused,
    /// It was paused when it was killed.
    Ended,
}

impl Pause {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Going::On)))
    }

    pub(crate) fn set(&self, paused: bool) {
        self.0.send_if_modified(|going| {
            let ended = *going == Going::Ended;
            if !ended {
                *going = if paused { Going::Paused } else { Going::On };
            }
            !ended
        });
    }

    /// The process is dead.
    pub(crate) fn end(&self) {
        self.0.send_if_modified(|going| {
            let paused = *going == Going::Paused;
            if paused {
                *going = Going::Ended;
            }
            paused
        });
    }

    /// Waits until the process goes on; says whether it does.
    pub(crate) async fn pass(&self) -> bool {
        let mut going = self.0.subscribe();
        let going = going.wait_for(|going| *going != Going::Paused).await;
        *going.expect("the sender is held here") == Going::On
    }
}

/// What happens to the requests of one process.
pub(crate) struct StoreFaults {
    pub(crate) process: u64,
    pub(crate) truth: Truth,
    pub(crate) random: RandomFaults,
    /// For everybody.
    pub(crate) away: Arc<AtomicBool>,
    /// For this process.
    pub(crate) cut: Arc<AtomicBool>,
    pub(crate) pause: Pause,
}

impl StoreFaults {
    async fn reach(&self) -> Result<()> {
        let alive = self.pause.pass().await;
        if !alive || self.away.load(Ordering::Relaxed) || self.cut.load(Ordering::Relaxed) {
            sleep(AWAY).await;
            return Err(zipper_simstore::faults::lost("the store is away"));
        }
        Ok(())
    }
}

#[async_trait]
impl Faults for StoreFaults {
    async fn before(&self, request: &Request) -> Result<()> {
        self.truth.asks(self.process, request);
        self.reach().await?;
        self.random.before(request).await?;
        if self.pause.pass().await {
            Ok(())
        } else {
            Err(zipper_simstore::faults::lost("the client is dead"))
        }
    }

    async fn after(&self, request: &Request) -> Result<()> {
        self.truth.had_effect(self.process, request);
        self.reach().await?;
        self.random.after(request).await
    }
}

/// A store to which writes go on their own: they arrive also when nobody waits for the answer any more.
pub(crate) struct OnTheWay(pub(crate) Arc<FaultyStore>);

impl fmt::Debug for OnTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnTheWay")
    }
}

impl fmt::Display for OnTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnTheWay")
    }
}

#[async_trait]
impl ObjectStore for OnTheWay {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (store, location) = (Arc::clone(&self.0), location.clone());
        let put = async move { store.put_opts(&location, payload, opts).await };
        tokio::spawn(put)
            .await
            .expect("the store does not panic, and nobody ends the task")
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
