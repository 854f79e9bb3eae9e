//! Connectionist temporal classification (Graves et al., ICML 2006) between projector and LLM, with the LLM's embeddings as those of the
//! classes, as in CJST (arXiv 2411.07607): the score of a token at a frame is how much the projector's output is like its embedding.

use tch::{Reduction, Tensor};
use zipper_config::schema::CtcOutput;

use crate::llm::CausalLm;

/// The negative log-likelihood of `texts`, in nats. A text that is longer than its speech has no alignment, and counts as 0.
///
/// # Shapes
/// - `speech`: `[time, hidden]` each, what the projector made of it
/// - `texts`: tokens of each
/// - returns: `[]`, summed over the utterances
pub(crate) fn loss(llm: &CausalLm, blank: i64, speech: &[Tensor], texts: &[Vec<i64>]) -> Tensor {
    let lengths: Vec<i64> = speech.iter().map(|speech| speech.size()[0]).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let side_by_side: Vec<Tensor> = speech
        .iter()
        .map(|speech| speech.constant_pad_nd([0, 0, 0, longest - speech.size()[0]]))
        .collect();
    let speech = Tensor::stack(&side_by_side, 1);
    let scores = llm.likeness(&speech.to_kind(llm.kind()));
    let text_lengths: Vec<i64> = texts.iter().map(|text| text.len() as i64).collect();
    let targets = Tensor::from_slice(&texts.concat()).to_device(speech.device());
    Tensor::ctc_loss(
        &scores.log_softmax(-1, speech.kind()),
        &targets,
        &lengths[..],
        &text_lengths[..],
        blank,
        Reduction::Sum,
        true,
    )
}

/// What the LLM reads in the place of speech.
///
/// # Shapes
/// - `speech`: `[time, hidden]` each, what the projector made of it
/// - returns: as many, `[time, hidden]`, or with [`CtcOutput::Tokens`] `[tokens, hidden]` with at least one
pub(crate) fn read(llm: &CausalLm, blank: i64, output: CtcOutput, speech: Vec<Tensor>) -> Vec<Tensor> {
    if output == CtcOutput::Frames {
        return speech;
    }
    let lengths: Vec<i64> = speech.iter().map(|speech| speech.size()[0]).collect();
    let likeness = llm.likeness(&Tensor::cat(&speech, 0));
    let posteriors = likeness.softmax(-1, likeness.kind());
    let (posteriors, lengths) = match output {
        CtcOutput::Frames | CtcOutput::Posteriors => (posteriors, lengths),
        CtcOutput::Tokens => joined(&posteriors, &lengths, blank),
    };
    llm.mean_embeddings(&posteriors).split_with_sizes(&lengths, 0)
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
