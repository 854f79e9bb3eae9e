//! What a run's store tells of it: the last picture, the journal and the metrics.

use zipper_checkpoint::{CheckpointError, ErrorKind, RunStore, layout};
use zipper_config::RunConfig;
use zipper_types::Step;

use crate::journal::Note;
use crate::picture::Picture;
use crate::series::Series;

/// What a run's store tells.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// The picture as it was last written, and what the journal knows since.
    pub picture: Picture,
    /// The steps.
    pub series: Series,
}

impl Past {
    /// Reads what there is of the run with this configuration. Nothing of it has to be there.
    ///
    /// # Errors
    /// [`CheckpointError`] if the store does not answer.
    pub async fn read(store: &RunStore, config: &RunConfig) -> Result<Self, CheckpointError> {
        let languages = &config.data.languages;
        let metrics = optional(store.get(layout::TRAIN_METRICS).await)?.unwrap_or_default();
        let metrics = String::from_utf8_lossy(&metrics);
        let series = Series::read(languages, metrics.lines());
        let mut past = Self {
            picture: read_picture(store, config).await?,
            series,
        };
        past.catch_up();
        Ok(past)
    }

    /// Takes over from the series what the picture does not know yet.
    fn catch_up(&mut self) {
        let picture = &mut self.picture;
        let newer: Vec<f64> = {
            let shown = picture.latest.as_ref().map_or(0, |latest| latest.step);
            let newer = self.series.after(Step(shown));
            newer.iter().map(|point| point.seconds).collect()
        };
        for seconds in newer {
            picture.took(seconds);
        }
        let last = self.series.last_step();
        if last > picture.step {
            picture.reached(last);
        }
        if let Some(latest) = self.series.latest() {
            picture.latest = Some(latest);
        }
    }
}

/// The last picture that was written, with what the journal knows since.
///
/// # Errors
/// [`CheckpointError`] if the store does not answer.
pub async fn read_picture(store: &RunStore, config: &RunConfig) -> Result<Picture, CheckpointError> {
    let written = optional(store.get(layout::STATUS).await)?;
    // One of another version of the program is no help, and no harm.
    let written = written.and_then(|bytes| serde_json::from_slice::<Picture>(&bytes).ok());
    let fresh = Picture::of(config, store.url());
    let mut picture = match written {
        Some(picture) => Picture {
            run: fresh.run,
            ..picture
        },
        None => fresh,
    };
    let notes = match store.journal().read_all::<Note>().await {
        Ok(notes) => notes,
        Err(error) if error.kind() == ErrorKind::Damaged => {
            tracing::warn!("the journal cannot be shown: {error}");
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let known = picture.written.clone();
    for (_, note) in notes {
        // RFC 3339 in UTC: earlier is smaller.
        if note.at().is_some_and(|at| at > known.as_str()) {
            picture.note(&note);
        }
    }
    Ok(picture)
}

/// What is there, if anything is.
fn optional<T>(read: Result<T, CheckpointError>) -> Result<Option<T>, CheckpointError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
