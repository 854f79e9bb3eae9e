//! Connectionist temporal classification (Graves et al., ICML 2006) between projector and LLM, with the LLM's embeddings as those of the
//! classes, as in CJST (arXiv 2411.07607): the score of a token at a frame is how much the projector's output is like its embedding.

use tch::{Reduction, Tensor};

use crate::llm::CausalLm;

/// Speech in tokens of the LLM.
pub(crate) struct Heard {
    /// `[time of all utterances, vocab]`: the logarithm of each token's probability, f32 (f64 in an f64 model).
    log_probs: Tensor,
    /// Frames of each utterance.
    lengths: Vec<i64>,
}

impl Heard {
    /// Scores what the projector made of speech.
    ///
    /// # Shapes
    /// - `speech`: `[time, hidden]` each
    pub(crate) fn new(llm: &CausalLm, speech: &[Tensor]) -> Self {
        let likeness = llm.likeness(&Tensor::cat(speech, 0).to_kind(llm.kind()));
        Self {
            log_probs: likeness.log_softmax(-1, likeness.kind()),
            lengths: speech.iter().map(|speech| speech.size()[0]).collect(),
        }
    }

    /// The negative log-likelihood of `texts`, in nats. A text that is longer than its speech has no alignment, and counts as 0.
    ///
    /// # Shapes
    /// - `texts`: tokens of each utterance
    /// - returns: `[]`, summed over the utterances
    pub(crate) fn loss(&self, blank: i64, texts: &[Vec<i64>]) -> Tensor {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let side_by_side: Vec<Tensor> = self
            .log_probs
            .split_with_sizes(&self.lengths, 0)
            .into_iter()
            .map(|utterance| utterance.constant_pad_nd([0, 0, 0, longest - utterance.size()[0]]))
            .collect();
        let text_lengths: Vec<i64> = texts.iter().map(|text| text.len() as i64).collect();
        let targets = Tensor::from_slice(&texts.concat()).to_device(self.log_probs.device());
        Tensor::ctc_loss(
            &Tensor::stack(&side_by_side, 1),
            &targets,
            &self.lengths[..],
            &text_lengths[..],
            blank,
            Reduction::Sum,
            true,
        )
    }

    /// Means of the LLM's embeddings: for each frame, or for each token that is heard.
    ///
    /// # Shapes
    /// - returns: for each utterance `[time, hidden]`, or with `by_token` `[tokens, hidden]` with at least one
    pub(crate) fn embeddings(&self, llm: &CausalLm, blank: i64, by_token: bool) -> Vec<Tensor> {
        let posteriors = self.log_probs.exp();
        if by_token {
            let (posteriors, lengths) = joined(&posteriors, &self.lengths, blank);
            llm.mean_embeddings(&posteriors).split_with_sizes(lengths, 0)
        } else {
            llm.mean_embeddings(&posteriors)
                .split_with_sizes(&self.lengths, 0)
        }
    }
}

/// Neighbours with the same likeliest token become one, their mean, and blanks are left out; of an utterance that is nothing but blanks the
/// first frame is kept.
///
/// # Shapes
/// - `posteriors`: `[time of all utterances, vocab]`
/// - returns: `[tokens of all utterances, vocab]`, and how many of them each utterance has
fn joined(posteriors: &Tensor, lengths: &[i64], blank: i64) -> (Tensor, Vec<i64>) {
    let likeliest = Vec::<i64>::try_from(posteriors.argmax(-1, false)).expect("one token for each frame");
    let (mut frames, mut token_of_frame, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    let (mut first, mut count) = (0, 0);
    for &length in lengths {
        let before = count;
        let mut last = blank;
        for frame in first..first + length {
            let token = likeliest[frame as usize];
            if token != blank {
                count += i64::from(token != last);
                frames.push(frame);
                token_of_frame.push(count - 1);
            }
            last = token;
        }
        if count == before {
            frames.push(first);
            token_of_frame.push(count);
            count += 1;
        }
        tokens.push(count - before);
        first += length;
    }
    let device = posteriors.device();
    let index = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    let (frames, token_of_frame) = (index(&frames), index(&token_of_frame));
    let sums = Tensor::zeros([count, posteriors.size()[1]], (posteriors.kind(), device));
    let sums = sums.index_add(0, &token_of_frame, &posteriors.index_select(0, &frames));
    let frames_of_token = token_of_frame.bincount::<Tensor>(None, count);
    let means = sums / frames_of_token.to_kind(posteriors.kind()).unsqueeze(1);
    (means, tokens)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// Posteriors of frames with a likeliest token each, which has the weight that is named; the others share the rest.
    fn posteriors(frames: &[(i64, f32)]) -> Tensor {
        const VOCAB: i64 = 4;
        let rows: Vec<f32> = frames
            .iter()
            .flat_map(|&(likeliest, weight)| {
                (0..VOCAB).map(move |token| {
                    if token == likeliest {
                        weight
                    } else {
                        (1.0 - weight) / (VOCAB - 1) as f32
                    }
                })
            })
            .collect();
        Tensor::from_slice(&rows).view([-1, VOCAB])
    }

    #[test]
    fn neighbours_are_joined_and_blanks_left_out() {
        let frames = posteriors(&[
            // aa, blank, a, b: three tokens.
            (1, 0.9),
            (1, 0.7),
            (0, 0.9),
            (1, 0.6),
            (2, 0.8),
            // Nothing but blanks.
            (0, 0.5),
            (0, 0.6),
            // What ends the one before does not go on in this one.
            (2, 0.9),
        ]);
        let (tokens, lengths) = joined(&frames, &[5, 2, 1], 0);
        assert_eq!(lengths, [3, 1, 1]);
        let expected = posteriors(&[(1, 0.8), (1, 0.6), (2, 0.8), (0, 0.5), (2, 0.9)]);
        assert!((tokens - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn every_frame_that_is_read_has_a_gradient() {
        let frames = posteriors(&[(1, 0.9), (1, 0.7), (0, 0.9), (3, 0.6)]).set_requires_grad(true);
        let (tokens, _) = joined(&frames, &[4], 0);
        tokens.sum(Kind::Float).backward();
        let gradient = frames.grad().sum_dim_intlist(1i64, false, Kind::Float);
        assert_eq!(Vec::<f32>::try_from(gradient).unwrap(), [2.0, 2.0, 0.0, 4.0]);
    }
}
