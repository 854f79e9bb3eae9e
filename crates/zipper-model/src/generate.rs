//! Decoding: greedy and beam search, as `generate` of transformers does them.

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::linear::LinearDelta;
use crate::speech_llm::{Example, SpeechLlm};

/// How to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Hypotheses kept for each utterance; 1 is greedy.
    pub beam: usize,
    /// Longest transcript, in tokens.
    pub max_new_tokens: usize,
}

impl SpeechLlm {
    /// Writes the transcripts of `examples`.
    ///
    /// With a beam, every example takes `beam` consecutive rows of the micro batch: `adapters` must know as many.
    ///
    /// # Errors
    /// [`ModelError`] if a language has no name or tokens cannot be decoded.
    pub fn generate(
        &self,
        examples: &[Example<'_>],
        adapters: Option<&dyn LinearDelta>,
        options: &GenerateOptions,
    ) -> Result<Vec<String>, ModelError> {
        let tokens = self.generate_tokens(examples, adapters, options)?;
        tokens
            .iter()
            .map(|tokens| Ok(self.prompt().decode(tokens)?.trim().to_owned()))
            .collect()
    }

    /// Like [`SpeechLlm::generate`], but the token ids, without the one that ended the text.
    ///
    /// # Errors
    /// [`ModelError`] if a language has no name.
    pub fn generate_tokens(
        &self,
        examples: &[Example<'_>],
        adapters: Option<&dyn LinearDelta>,
        options: &GenerateOptions,
    ) -> Result<Vec<Vec<i64>>, ModelError> {
        if options.beam <= 1 {
            return self.greedy(examples, adapters, options.max_new_tokens);
        }
        self.beam_search(examples, adapters, options)
    }

    fn greedy(
        &self,
        examples: &[Example<'_>],
        adapters: Option<&dyn LinearDelta>,
        max_new_tokens: usize,
    ) -> Result<Vec<Vec<i64>>, ModelError> {
        let mut decoding = self.start(examples, adapters)?;
        let mut texts = vec![Vec::new(); examples.len()];
        // The examples that have not ended, one for each row of the decoding.
        let mut running: Vec<usize> = (0..examples.len()).collect();
        for _ in 0..max_new_tokens {
            let tokens = i64s(&decoding.logits.argmax(-1, false));
            let goes_on = |row: &usize| !self.prompt().stops().contains(&tokens[*row]);
            let rows: Vec<usize> = (0..tokens.len()).filter(goes_on).collect();
            if rows.is_empty() {
                break;
            }
            if rows.len() < running.len() {
                // What has ended costs nothing any more.
                running = rows.iter().map(|&row| running[row]).collect();
                decoding.cache.select(&rows);
            }
            let tokens: Vec<i64> = rows.iter().map(|&row| tokens[row]).collect();
            for (&example, &token) in running.iter().zip(&tokens) {
                texts[example].push(token);
            }
            self.feed(&mut decoding, &tokens, adapters);
        }
        Ok(texts)
    }

    fn beam_search(
        &self,
        examples: &[Example<'_>],
        adapters: Option<&dyn LinearDelta>,
        options: &GenerateOptions,
    ) -> Result<Vec<Vec<i64>>, ModelError> {
        let beam = options.beam;
        let repeated: Vec<Example<'_>> = examples
            .iter()
            .flat_map(|&example| std::iter::repeat_n(example, beam))
            .collect();
        let mut decoding = self.start(&repeated, adapters)?;
        let mut searches: Vec<BeamSearch> = examples.iter().map(|_| BeamSearch::new(beam)).collect();
        // The examples that are not done, whose hypotheses are the rows of the decoding, `beam` for each.
        let mut running: Vec<usize> = (0..examples.len()).collect();
        for length in 1..=options.max_new_tokens {
            let log_probs = decoding.logits.log_softmax(-1, Kind::Float);
            let (mut rows, mut tokens) = (Vec::new(), Vec::new());
            let mut first = 0;
            running.retain(|&example| {
                let log_probs = log_probs.narrow(0, first as i64, beam as i64);
                let chosen = searches[example].advance(&log_probs, length, self.prompt().stops());
                let goes_on = !searches[example].is_done();
                if goes_on {
                    rows.extend(chosen.iter().map(|&(parent, _)| first + parent));
                    tokens.extend(chosen.iter().map(|&(_, token)| token));
                }
                first += beam;
                goes_on
            });
            if running.is_empty() {
                break;
            }
            decoding.cache.select(&rows);
            self.feed(&mut decoding, &tokens, adapters);
        }
        Ok(searches
            .into_iter()
            .map(|search| search.best(options.max_new_tokens))
            .collect())
    }

    /// Reads the prompts and the speech.
    fn start(
        &self,
        examples: &[Example<'_>],
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Decoding, ModelError> {
        let rows = self.rows(examples, None)?;
        let (hidden, cache) = self.llm().prefill(&rows.embeddings, &rows.packing, adapters);
        let last: Vec<i64> = rows.packing.ends().map(|end| end - 1).collect();
        let last = Tensor::from_slice(&last).to_device(hidden.device());
        Ok(Decoding {
            logits: self.llm().logits(&hidden.index_select(0, &last)),
            cache,
        })
    }

    /// Reads one more token in each row.
    fn feed(&self, decoding: &mut Decoding, tokens: &[i64], adapters: Option<&dyn LinearDelta>) {
        let tokens = Tensor::from_slice(tokens).to_device(decoding.logits.device());
        let embedded = self.llm().embed(&tokens);
        let hidden = self.llm().decode(&embedded, adapters, &mut decoding.cache);
        decoding.logits = self.llm().logits(&hidden);
    }
}

/// Where decoding stands.
struct Decoding {
    /// `[rows, vocab]`: scores of the next token.
    logits: Tensor,
    cache: crate::llm::KvCache,
}

/// Beam search over one utterance, with transformers' defaults: length penalty 1, early stopping by the best score that a running
/// hypothesis could still reach at its present length.
#[derive(Debug)]
struct BeamSearch {
    beam: usize,
    /// Sum of log probabilities and tokens, best first.
    running: Vec<(f64, Vec<i64>)>,
    /// Mean log probability and tokens of hypotheses that ended, at most `beam`, best first.
    finished: Vec<(f64, Vec<i64>)>,
    done: bool,
}

impl BeamSearch {
    fn new(beam: usize) -> Self {
        // All rows hold the same prompt at first: only one of them may be continued.
        let mut running = vec![(f64::NEG_INFINITY, Vec::new()); beam];
        running[0].0 = 0.0;
        Self {
            beam,
            running,
            finished: Vec::new(),
            done: false,
        }
    }

    /// Takes the scores of the next token, `[beam, vocab]`, and returns for each new running hypothesis the row it goes
    /// on from and its token. `length` counts the new token.
    fn advance(&mut self, log_probs: &Tensor, length: usize, stops: &[i64]) -> Vec<(usize, i64)> {
        let vocab = log_probs.size()[1];
        let sums: Vec<f32> = self.running.iter().map(|(sum, _)| *sum as f32).collect();
        let sums = Tensor::from_slice(&sums)
            .to_device(log_probs.device())
            .unsqueeze(1);
        // Each row has at most `stops.len()` endings, so that `beam` of these candidates can go on.
        let candidates = ((1 + stops.len()) * self.beam) as i64;
        let (scores, indices) = (log_probs + sums).view([-1]).topk(candidates, 0, true, true);
        let scores = Vec::<f64>::try_from(scores.to_kind(Kind::Double)).expect("scores are one row");
        let mut chosen = Vec::with_capacity(self.beam);
        let mut running = Vec::with_capacity(self.beam);
        for (rank, (score, index)) in scores.into_iter().zip(i64s(&indices)).enumerate() {
            let (parent, token) = ((index / vocab) as usize, index % vocab);
            let text = &self.running[parent].1;
            if stops.contains(&token) {
                // transformers looks at the first `beam` candidates only for endings.
                if rank < self.beam {
                    self.finished.push((score / length as f64, text.clone()));
                }
            } else if running.len() < self.beam {
                chosen.push((parent, token));
                running.push((score, text.iter().copied().chain([token]).collect()));
            }
        }
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(self.beam);
        self.running = running;
        let reachable = self.running[0].0 / length as f64;
        self.done = self.finished.len() == self.beam && self.finished[self.beam - 1].0 >= reachable;
        chosen
    }

    fn is_done(&self) -> bool {
        self.done
    }

    /// The best hypothesis; those that were still running when the length ran out count too.
    fn best(mut self, max_new_tokens: usize) -> Vec<i64> {
        if !self.done {
            let cut = self
                .running
                .into_iter()
                .map(|(sum, text)| (sum / max_new_tokens as f64, text));
            self.finished.extend(cut);
            self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        }
        self.finished
            .into_iter()
            .next()
            .map(|(_, text)| text)
            .unwrap_or_default()
    }
}

fn i64s(tensor: &Tensor) -> Vec<i64> {
    Vec::<i64>::try_from(tensor).expect("token ids are one row of i64")
}
