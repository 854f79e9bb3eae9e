//! One client's view of a store in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::faults::Faults;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Writes an object, or replaces it.
    Put,
    /// Writes an object that must not be there.
    Create,
    /// Reads an object or a part of it.
    Get,
    /// Asks for an object's size.
    Head,
    /// Lists objects.
    List,
    /// Deletes an object.
    Delete,
    /// Begins an upload in pieces.
    Begin,
    /// Writes a piece.
    Piece,
    /// Makes an object of the pieces.
    Complete,
    /// Gives an upload up.
    Abort,
}

/// A request of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Of all of this client, from 0.
    pub number: usize,
    /// What it does.
    pub kind: RequestKind,
    /// To which object, or below which folder.
    pub path: String,
    /// How many bytes it sends.
    pub bytes: usize,
}

/// What clients share: the objects, and the uploads in pieces that are neither complete nor given up.
#[derive(Debug, Default)]
pub struct Backing {
    memory: InMemory,
    uploads: Mutex<BTreeMap<MultipartId, OpenUpload>>,
}

/// An upload that is neither complete nor given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The object that it would be.
    pub path: String,
    /// How many pieces the store keeps for it.
    pub pieces: usize,
}

impl Backing {
    /// An empty store.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The uploads that are neither complete nor given up.
    #[must_use]
    pub fn open_uploads(&self) -> Vec<OpenUpload> {
        self.uploads().values().cloned().collect()
    }

    fn uploads(&self) -> MutexGuard<'_, BTreeMap<MultipartId, OpenUpload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The view that one client has of a store: its requests meet its faults.
pub struct FaultyStore {
    inner: Arc<Backing>,
    faults: Arc<dyn Faults>,
    requests: Arc<Mutex<Vec<Request>>>,
    unconditional: bool,
}

impl FaultyStore {
    /// A view of `inner`, which other clients may have views of, too.
    #[must_use]
    pub fn new(inner: Arc<Backing>, faults: Arc<dyn Faults>) -> Self {
        Self {
            inner,
            faults,
            requests: Arc::default(),
            unconditional: false,
        }
    }

    /// As some servers do: the condition of a conditional write is ignored.
    #[must_use]
    pub fn ignoring_conditions(mut self) -> Self {
        self.unconditional = true;
        self
    }

    /// What this client has asked for so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Runs a request between its faults.
    async fn meet<T>(
        &self,
        kind: RequestKind,
        path: &Path,
        bytes: usize,
        effect: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let request = self.note(kind, path, bytes);
        self.faults.before(&request).await?;
        let result = effect.await;
        self.faults.after(&request).await?;
        result
    }

    fn note(&self, kind: RequestKind, path: &Path, bytes: usize) -> Request {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let request = Request {
            number: requests.len(),
            kind,
            path: path.to_string(),
            bytes,
        };
        requests.push(request.clone());
        request
    }

    fn view(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            faults: Arc::clone(&self.faults),
            requests: Arc::clone(&self.requests),
            unconditional: self.unconditional,
        }
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

/// What S3 answers about an upload that is complete or given up, and memory does not.
fn no_upload(path: &Path) -> impl FnOnce(Error) -> Error {
    let path = path.to_string();
    move |source| Error::NotFound {
        path,
        source: source.into(),
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        let kind = if matches!(opts.mode, PutMode::Overwrite) {
            RequestKind::Put
        } else {
            RequestKind::Create
        };
        if self.unconditional {
            opts.mode = PutMode::Overwrite;
        }
        let bytes = payload.content_length();
        self.meet(
            kind,
            location,
            bytes,
            self.inner.memory.put_opts(location, payload, opts),
        )
        .await
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotSupported {
            source: "uploads go piece by piece: MultipartStore".into(),
        })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let kind = if options.head {
            RequestKind::Head
        } else {
            RequestKind::Get
        };
        let got = self
            .meet(kind, location, 0, self.inner.memory.get_opts(location, options))
            .await?;
        let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let extensions = got.extensions.clone();
        let bytes = got.bytes().await?;
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter([Ok::<Bytes, Error>(bytes)]).boxed()),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let view = Arc::new(self.view());
        locations
            .and_then(move |location| {
                let view = Arc::clone(&view);
                async move {
                    let one = stream::iter([Ok(location.clone())]).boxed();
                    let delete = async { view.inner.memory.delete_stream(one).try_collect::<Vec<_>>().await };
                    view.meet(RequestKind::Delete, &location, 0, delete).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let view = self.view();
        let prefix = prefix.cloned().unwrap_or_default();
        let listed = async move {
            let list = async {
                view.inner
                    .memory
                    .list(Some(&prefix))
                    .try_collect::<Vec<_>>()
                    .await
            };
            view.meet(RequestKind::List, &prefix, 0, list).await
        };
        stream::once(listed)
            .map_ok(|objects| stream::iter(objects.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        let list = self.inner.memory.list_with_delimiter(prefix);
        self.meet(RequestKind::List, &path, 0, list).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copy = self.inner.memory.copy_opts(from, to, options);
        self.meet(RequestKind::Put, to, 0, copy).await
    }
}

#[async_trait]
impl MultipartStore for FaultyStore {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let begin = async {
            let id = self.inner.memory.create_multipart(path).await?;
            let upload = OpenUpload {
                path: path.to_string(),
                pieces: 0,
            };
            self.inner.uploads().insert(id.clone(), upload);
            Ok(id)
        };
        self.meet(RequestKind::Begin, path, 0, begin).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let bytes = data.content_length();
        let put = async {
            let put = self.inner.memory.put_part(path, id, part_idx, data).await;
            let part = put.map_err(no_upload(path))?;
            if let Some(upload) = self.inner.uploads().get_mut(id) {
                upload.pieces += 1;
            }
            Ok(part)
        };
        self.meet(RequestKind::Piece, path, bytes, put).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let complete = async {
            let completed = self.inner.memory.complete_multipart(path, id, parts).await;
            let completed = completed.map_err(no_upload(path))?;
            self.inner.uploads().remove(id);
            Ok(completed)
        };
        self.meet(RequestKind::Complete, path, 0, complete).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let abort = async {
            let aborted = self.inner.memory.abort_multipart(path, id).await;
            aborted.map_err(no_upload(path))?;
            self.inner.uploads().remove(id);
            Ok(())
        };
        self.meet(RequestKind::Abort, path, 0, abort).await
    }
}
