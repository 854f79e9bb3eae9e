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
        let metrics = store.get_if_there(layout::TRAIN_METRICS).await?;
        let metrics = metrics.unwrap_or_default();
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
        if last > 0 {
            self.show_latest();
        }
    }

    /// Shows the newest step of the series. What was drawn of it while the run went on stays: it tells more than its line in the
    /// metrics.
    pub fn show_latest(&mut self) {
        let newest = self.series.last_step();
        let shown = self.picture.latest.as_ref();
        if shown.is_none_or(|shown| shown.step != newest) {
            self.picture.latest = self.series.latest();
        }
    }
}

/// The last picture that was written, with what the journal knows since.
async fn read_picture(store: &RunStore, config: &RunConfig) -> Result<Picture, CheckpointError> {
    let written = store.get_if_there(layout::STATUS).await?;
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
    note_newer(&mut picture, notes.into_iter().map(|(_, note)| note));
    Ok(picture)
}

/// Takes in what was written after the picture.
fn note_newer(picture: &mut Picture, notes: impl Iterator<Item = Note>) {
    let known = picture.written.clone();
    for note in notes {
        // RFC 3339 in UTC: earlier is smaller. Times have whole seconds, so what is of the same second may be news: said twice is
        // better than lost.
        if note.at().is_some_and(|at| at >= known.as_str()) {
            picture.note(&note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gates::Gates;
    use crate::journal::Ended;
    use crate::picture::{Latest, Phase};

    fn drawn(step: u64) -> Picture {
        Picture {
            latest: Some(Latest {
                step,
                gates: Some(Gates::default()),
                ..Latest::default()
            }),
            ..Picture::default()
        }
    }

    /// Goal: what was drawn of the newest step stays, with the gates that the metrics do not have; what was drawn of another does not.
    #[test]
    fn what_was_drawn_of_the_newest_step_stays() {
        let line = r#"{"step":3,"stage":"zipper","loss":2.5}"#;
        for (step, stays) in [(3, true), (2, false), (4, false)] {
            let mut past = Past {
                picture: drawn(step),
                series: Series::read(&["en".to_owned()], [line].into_iter()),
            };
            past.catch_up();
            let latest = past.picture.latest.unwrap_or_default();
            assert_eq!((latest.step, latest.gates.is_some()), (3, stays), "drawn: {step}");
        }
        let mut past = Past {
            picture: drawn(3),
            series: Series::default(),
        };
        past.catch_up();
        assert!(past.picture.latest.is_some(), "there are no metrics yet");
        past.show_latest();
        assert_eq!(past.picture.latest, None, "every step is made again");
    }

    /// Goal: an entry of the second in which the last picture was written is not lost, and said once where the picture has it.
    #[test]
    fn entries_of_the_same_second_count() {
        let at = |second: u32| format!("2026-01-01T00:00:0{second}Z");
        let end = |second| Note::End {
            ended: Some(Ended::Done),
            verdict: String::new(),
            at: at(second),
        };
        for (second, phase) in [(4, Phase::Training), (5, Phase::Done), (6, Phase::Done)] {
            let mut picture = Picture {
                phase: Phase::Training,
                written: at(5),
                ..Picture::default()
            };
            note_newer(&mut picture, [end(second)].into_iter());
            assert_eq!(picture.phase, phase, "second {second}");
            let lines = picture.timeline.len();
            note_newer(&mut picture, [end(second)].into_iter());
            assert_eq!(picture.timeline.len(), lines);
        }
    }
}
