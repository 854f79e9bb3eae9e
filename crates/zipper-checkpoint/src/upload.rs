//! Large objects: written in pieces, several at a time, so that whatever is interrupted is found again.
//!
//! A server keeps the pieces of an upload that was never completed, out of sight and on the bill. So each upload is noted in
//! `uploads/` before its first piece, and the note goes when the upload is complete or given up: a note that stays is an upload
//! that was interrupted. (An upload without pieces, of a writer killed before the note, holds nothing.)

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::store::{PARALLEL, RunStore};
use crate::{CheckpointError, ErrorKind, Result, folder, layout};

/// How many pieces S3 takes at most.
const MOST_PIECES: u64 = 10_000;

/// An upload that is under way, or was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The object, relative to the run.
    path: String,
    /// How the server calls the upload.
    upload: String,
}

impl Note {
    /// Where it is written. Ids have characters that paths have not.
    fn at(&self) -> String {
        let hash = blake3::hash(format!("{}\n{}", self.path, self.upload).as_bytes()).to_hex();
        format!("{}/{}.json", layout::UPLOADS, &hash[..32])
    }
}

impl RunStore {
    /// Writes an object, replacing what is there; a large one in pieces, several at a time.
    ///
    /// # Errors
    /// As [`RunStore::put`].
    pub(crate) async fn put_large(&self, path: &str, bytes: Bytes) -> Result<()> {
        let size = bytes.len() as u64;
        let piece = self
            .options()
            .multipart_bytes
            .max(size.div_ceil(MOST_PIECES))
            .max(1);
        match &self.place().multipart {
            Some(multipart) if size > piece => self.put_pieces(multipart.as_ref(), path, bytes, piece).await,
            _ => self.put(path, bytes).await,
        }
    }

    async fn put_pieces(
        &self,
        multipart: &dyn MultipartStore,
        path: &str,
        bytes: Bytes,
        piece: u64,
    ) -> Result<()> {
        let location = self.location(path)?;
        self.meter().write(0);
        let upload = self.answer("write", path, multipart.create_multipart(&location).await)?;
        let note = Note {
            path: path.to_owned(),
            upload,
        };
        let json = serde_json::to_vec(&note).expect("a note has only strings");
        self.put(&note.at(), json.into()).await?;
        let size = bytes.len() as u64;
        let pieces = (0..size).step_by(piece as usize).enumerate();
        let sent: object_store::Result<Vec<PartId>> = stream::iter(pieces)
            .map(|(index, start)| {
                let content = bytes.slice(start as usize..size.min(start + piece) as usize);
                self.meter().write(content.len());
                multipart.put_part(&location, &note.upload, index, content.into())
            })
            .buffered(PARALLEL)
            .try_collect()
            .await;
        let complete = match self.answer("write", path, sent) {
            Ok(parts) => self.complete(multipart, &location, &note, size, parts).await,
            Err(error) => Err(error),
        };
        match complete {
            Ok(()) => {
                // A note that stays is collected; the object is there.
                let _ = self.delete(&note.at()).await;
                Ok(())
            }
            Err(error) => {
                // Whether it can be given up now or is collected later: the error is what counts.
                let _ = self.give_up(multipart, &note).await;
                Err(error)
            }
        }
    }

    async fn complete(
        &self,
        multipart: &dyn MultipartStore,
        location: &Path,
        note: &Note,
        size: u64,
        parts: Vec<PartId>,
    ) -> Result<()> {
        self.meter().write(0);
        let completed = multipart.complete_multipart(location, &note.upload, parts).await;
        // A request that was repeated inside the client finds no upload when the first one did succeed.
        if matches!(completed, Err(object_store::Error::NotFound { .. })) {
            self.meter().read();
            let head = self.place().store.head(location).await;
            if head.is_ok_and(|found| found.size == size) {
                return Ok(());
            }
        }
        self.answer("write", &note.path, completed)?;
        Ok(())
    }

    /// Ends an upload without its object, and forgets it.
    async fn give_up(&self, multipart: &dyn MultipartStore, note: &Note) -> Result<()> {
        let location = self.location(&note.path)?;
        self.meter().delete();
        let aborted = multipart.abort_multipart(&location, &note.upload).await;
        match self.answer("delete", &note.path, aborted) {
            // Not there: complete, or given up already.
            Ok(()) | Err(CheckpointError::NotFound { .. }) => self.delete(&note.at()).await,
            Err(error) => Err(error),
        }
    }

    /// Gives up the interrupted uploads of objects that `over` says nobody writes any more. Returns how many.
    ///
    /// # Errors
    /// As [`RunStore::delete`].
    pub(crate) async fn collect_uploads(&self, over: impl Fn(&str) -> bool) -> Result<usize> {
        let Some(multipart) = &self.place().multipart else {
            let folder = self.place().folder.as_deref();
            return Ok(folder.map_or(0, |folder| folder::collect_staged(folder, over)));
        };
        let mut collected = 0;
        for path in self.list(layout::UPLOADS).await? {
            let bytes = match self.get(&path).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            let Ok(note) = serde_json::from_slice::<Note>(&bytes) else {
                continue;
            };
            if over(&note.path) {
                self.give_up(multipart.as_ref(), &note).await?;
                collected += 1;
            }
        }
        Ok(collected)
    }
}
