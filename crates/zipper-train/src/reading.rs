//! What is read of an utterance before the encoder's turn, and a thread that reads the next step's utterances meanwhile.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use tch::Tensor;
use zipper_config::schema::AugmentConfig;
use zipper_data::{Augmentation, Features, LogMel, Padding, Utterance};
use zipper_plan::UtteranceRef;

use crate::TrainError;
use crate::cache::Cache;

/// What there is of an utterance.
pub(crate) enum Input {
    /// The encoder's output, `[frames, width]`, f16, on the CPU.
    Kept(Tensor),
    /// What the encoder is to read, and where its output is to be kept, if anywhere.
    Features(Features, Option<PathBuf>),
}

/// Reads utterances, in any thread.
pub(crate) struct Reader {
    pub(crate) log_mel: LogMel,
    pub(crate) padding: Padding,
    pub(crate) cache: Option<Cache>,
}

impl Reader {
    /// Reads one utterance: the encoder's output where it was kept and nothing is changed about the utterance.
    ///
    /// # Errors
    /// [`TrainError::Audio`] naming the utterance, [`TrainError::Cache`].
    pub(crate) fn read(
        &self,
        utterance: &Utterance,
        augmentation: Option<Augmentation<'_>>,
    ) -> Result<Input, TrainError> {
        // Looked up before the audio is read: what is made of it is never kept under the name of a file that replaces it meanwhile.
        let kept_in = self.kept_in(utterance, augmentation.is_some())?;
        if let Some(frames) = kept_in.as_deref().and_then(Cache::read) {
            return Ok(Input::Kept(frames));
        }
        Ok(Input::Features(self.features(utterance, augmentation)?, kept_in))
    }

    /// Where the encoder's output is kept; nothing if it is not.
    ///
    /// # Errors
    /// [`TrainError::Cache`] if the audio file cannot be looked at.
    fn kept_in(&self, utterance: &Utterance, is_changed: bool) -> Result<Option<PathBuf>, TrainError> {
        let cache = self.cache.as_ref().filter(|_| !is_changed);
        cache.map(|cache| cache.file_of(utterance)).transpose()
    }

    fn features(
        &self,
        utterance: &Utterance,
        augmentation: Option<Augmentation<'_>>,
    ) -> Result<Features, TrainError> {
        let mut samples = utterance.decode().map_err(|source| TrainError::Audio {
            id: utterance.id.clone(),
            source,
        })?;
        if let Some(augmentation) = augmentation {
            samples = augmentation.samples(samples);
        }
        let mut features = self.log_mel.compute(&samples, self.padding);
        if let Some(augmentation) = augmentation {
            augmentation.mask(&mut features);
        }
        Ok(features)
    }
}

/// What a step needs of an utterance: its id, and the seed of its augmentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    id: String,
    seed: Option<u64>,
}

impl Key {
    fn new(utterance: &Utterance, seed: Option<u64>) -> Self {
        Self {
            id: utterance.id.clone(),
            seed,
        }
    }
}

/// The utterances that one rank takes at one step, each with the seed of its augmentation.
pub(crate) struct Reading {
    pub(crate) corpus: Arc<Vec<Vec<Utterance>>>,
    pub(crate) utterances: Vec<(UtteranceRef, Option<u64>)>,
    pub(crate) augment: AugmentConfig,
}

struct Job {
    reading: Reading,
    results: Sender<(Key, Result<Input, TrainError>)>,
}

/// Reads ahead in a thread of its own.
///
/// It holds what two steps need: the one that is being made and the next one.
pub(crate) struct ReadAhead {
    jobs: Sender<Job>,
    current: Expected,
    next: Expected,
}

/// What the thread reads for one step.
#[derive(Default)]
struct Expected {
    arrived: HashMap<Key, Result<Input, TrainError>>,
    outstanding: HashSet<Key>,
    results: Option<Receiver<(Key, Result<Input, TrainError>)>>,
}

impl ReadAhead {
    /// Starts the thread, which ends with this value.
    ///
    /// # Errors
    /// [`TrainError::Thread`] if there can be no more threads.
    pub(crate) fn start(reader: Arc<Reader>) -> Result<Self, TrainError> {
        let (jobs, received) = mpsc::channel::<Job>();
        let read_all = move || {
            for job in received {
                read(&reader, &job);
            }
        };
        thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(read_all)
            .map_err(TrainError::Thread)?;
        Ok(Self {
            jobs,
            current: Expected::default(),
            next: Expected::default(),
        })
    }

    /// Begins to read for the step after the one that is made now. What was asked for before is what this one takes.
    pub(crate) fn request(&mut self, reading: Reading) {
        self.current = std::mem::take(&mut self.next);
        let keys = reading
            .utterances
            .iter()
            .map(|&(at, seed)| Key::new(&reading.corpus[at.language][at.index], seed));
        let outstanding = keys.collect();
        let (results, receiver) = mpsc::channel();
        if self.jobs.send(Job { reading, results }).is_ok() {
            self.next = Expected {
                arrived: HashMap::new(),
                outstanding,
                results: Some(receiver),
            };
        }
    }

    /// What was read of an utterance, once; waits for it if the thread is still to come to it. Nothing if it was not asked for.
    pub(crate) fn take(
        &mut self,
        utterance: &Utterance,
        seed: Option<u64>,
    ) -> Option<Result<Input, TrainError>> {
        self.current.take(&Key::new(utterance, seed))
    }
}

impl Expected {
    fn take(&mut self, key: &Key) -> Option<Result<Input, TrainError>> {
        while self.outstanding.contains(key) {
            // The thread may be gone: then the caller reads.
            let (arrived, input) = self.results.as_ref()?.recv().ok()?;
            self.outstanding.remove(&arrived);
            self.arrived.insert(arrived, input);
        }
        self.arrived.remove(key)
    }
}

/// Reads one step's utterances, each once, until nobody waits for them.
fn read(reader: &Reader, job: &Job) {
    let mut done = HashSet::new();
    for &(at, seed) in &job.reading.utterances {
        let utterance = &job.reading.corpus[at.language][at.index];
        let key = Key::new(utterance, seed);
        if !done.insert(key.clone()) {
            continue;
        }
        let augmentation = seed.map(|seed| Augmentation::new(&job.reading.augment, seed));
        let input = reader.read(utterance, augmentation);
        if job.results.send((key, input)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zipper_data::{DurationLimits, load_corpus};

    use super::*;

    /// One language's utterances, the last of which has lost its audio.
    fn corpus(folder: &std::path::Path) -> Arc<Vec<Vec<Utterance>>> {
        zipper_tests::write_corpus(folder, 1);
        let limits = DurationLimits {
            min_seconds: 0.0,
            max_seconds: 9.0,
        };
        let languages = zipper_tests::LANGUAGES.map(|(code, _)| code.to_owned());
        let corpus = load_corpus(&[folder.join("train.jsonl")], &languages, limits);
        let mut utterances = corpus.expect("a valid manifest").utterances;
        utterances.retain(|utterance| utterance.language == 0);
        let last = utterances.last().expect("there are utterances");
        fs::remove_file(&last.audio_filepath).unwrap();
        Arc::new(vec![utterances])
    }

    fn reading(corpus: &Arc<Vec<Vec<Utterance>>>, utterances: &[(usize, Option<u64>)]) -> Reading {
        let at = |index| UtteranceRef { language: 0, index };
        Reading {
            corpus: Arc::clone(corpus),
            utterances: utterances
                .iter()
                .map(|&(index, seed)| (at(index), seed))
                .collect(),
            augment: AugmentConfig {
                speed: vec![0.5],
                ..AugmentConfig::default()
            },
        }
    }

    fn frames(input: Option<Result<Input, TrainError>>) -> Option<usize> {
        match input?.expect("its audio is there") {
            Input::Features(features, _) => Some(features.frames),
            Input::Kept(_) => panic!("nothing is kept"),
        }
    }

    /// Read ahead is what was asked for, as it was asked for, once, and not before the step it was asked for; what cannot be read is an
    /// error in its turn.
    #[test]
    fn a_step_takes_what_was_read_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(folder.path());
        let last = corpus[0].len() - 1;
        let reader = Arc::new(Reader {
            log_mel: LogMel::new(80),
            padding: Padding::None,
            cache: None,
        });
        let utterance = |index: usize| &corpus[0][index];
        let alone = |index| frames(Some(reader.read(utterance(index), None)));

        let mut ahead = ReadAhead::start(Arc::clone(&reader)).unwrap();
        ahead.request(reading(&corpus, &[(0, None), (1, None), (0, None), (last, None)]));
        assert!(
            ahead.take(utterance(0), None).is_none(),
            "it is for the next step"
        );

        ahead.request(reading(&corpus, &[(0, None), (0, Some(7))]));
        assert_eq!(frames(ahead.take(utterance(1), None)), alone(1));
        assert_eq!(frames(ahead.take(utterance(0), None)), alone(0));
        assert!(ahead.take(utterance(0), None).is_none(), "it was taken");
        assert!(ahead.take(utterance(2), None).is_none(), "nobody asked for it");
        let gone = ahead.take(utterance(last), None).expect("it was asked for");
        let problem = gone.err().expect("its file is gone").to_string();
        assert!(problem.contains(&utterance(last).id), "{problem}");

        ahead.request(reading(&corpus, &[]));
        let slow = frames(ahead.take(utterance(0), Some(7))).unwrap();
        let plain = frames(ahead.take(utterance(0), None)).unwrap();
        assert!(slow.abs_diff(2 * plain) <= 2, "half the speed: {slow}, {plain}");
    }
}
