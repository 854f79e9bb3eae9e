//! Cross-entropy over a vocabulary, a few positions at a time.
//!
//! With a vocabulary of 150,000 the scores of one transcript are larger than all activations below them. So they are made for some positions,
//! taken back to what they were made of, and forgotten, before the next ones are made.

use tch::{Reduction, Tensor};

use crate::carry::carry;

/// Scores that are in memory at the same time: 64 MiB of them in f32.
const SCORES_AT_ONCE: i64 = 1 << 24;

/// What transcripts cost.
pub(crate) struct CrossEntropy {
    /// `[positions]`, without history, in nats.
    pub(crate) losses: Tensor,
    /// `[]`: their sum, differentiable by what the scores are made of.
    pub(crate) total: Tensor,
}

/// The cross-entropy of `targets`, by scores that `logits` makes of `hidden` by frozen weights.
///
/// # Shapes
/// - `hidden`: `[positions, hidden]`
/// - `targets`: `[positions]`, i64
/// - `logits`: from `[n, hidden]` to `[n, vocab]`
pub(crate) fn cross_entropy(
    hidden: &Tensor,
    targets: &Tensor,
    vocab: i64,
    logits: impl Fn(&Tensor) -> Tensor,
) -> CrossEntropy {
    in_parts(hidden, targets, (SCORES_AT_ONCE / vocab).max(1), logits)
}

fn in_parts(
    hidden: &Tensor,
    targets: &Tensor,
    positions_at_once: i64,
    logits: impl Fn(&Tensor) -> Tensor,
) -> CrossEntropy {
    let losses_of = |hidden: &Tensor, targets: &Tensor| {
        logits(hidden).cross_entropy_loss(targets, None::<&Tensor>, Reduction::None, -100, 0.0)
    };
    let positions = targets.size()[0];
    if positions <= positions_at_once {
        let losses = losses_of(hidden, targets);
        return CrossEntropy {
            total: losses.sum(losses.kind()),
            losses: losses.detach(),
        };
    }
    let leaf = hidden.detach().set_requires_grad(hidden.requires_grad());
    let parts = (0..positions).step_by(positions_at_once as usize).map(|first| {
        let length = positions_at_once.min(positions - first);
        let losses = losses_of(&leaf.narrow(0, first, length), &targets.narrow(0, first, length));
        if losses.requires_grad() {
            losses.sum(losses.kind()).backward();
        }
        losses.detach()
    });
    let losses = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
    let mut total = losses.sum(losses.kind());
    if hidden.requires_grad() {
        // Its value is 0, its derivative the gradient that has gathered in the leaf.
        let carried = carry(hidden, &leaf.grad());
        total += &carried - carried.detach();
    }
    CrossEntropy { losses, total }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const POSITIONS: i64 = 7;
    const HIDDEN: i64 = 5;
    const VOCAB: i64 = 11;

    /// Losses, sum and gradient by `hidden`, with at most `positions_at_once` scored together.
    fn found(positions_at_once: i64) -> [Tensor; 3] {
        let numbers = |count: i64, step: f64| {
            let numbers = Tensor::arange(count, (Kind::Double, Device::Cpu));
            (numbers * step).sin()
        };
        let head = numbers(VOCAB * HIDDEN, 0.7).view([VOCAB, HIDDEN]);
        let hidden = numbers(POSITIONS * HIDDEN, 1.3).view([POSITIONS, HIDDEN]);
        let hidden = hidden.set_requires_grad(true);
        let targets = Tensor::from_slice(&[0i64, 10, 3, 3, 7, 1, 9]);
        let below = &hidden * 2.0;
        let CrossEntropy { losses, total } = in_parts(&below, &targets, positions_at_once, |hidden| {
            hidden.linear(&head, None::<&Tensor>)
        });
        assert!(!losses.requires_grad());
        total.backward();
        [losses, total.detach(), hidden.grad()]
    }

    #[test]
    fn parts_are_the_whole() {
        let whole = found(POSITIONS);
        for positions_at_once in [1, 2, 3, 6] {
            for (part, whole) in found(positions_at_once).iter().zip(&whole) {
                let difference = (part - whole).abs().max().double_value(&[]);
                assert!(difference < 1e-14, "{positions_at_once} at once: {difference}");
            }
        }
    }

    #[test]
    fn without_gradients_nothing_is_taken_back() {
        let hidden = Tensor::ones([4, HIDDEN], (Kind::Double, Device::Cpu));
        let targets = Tensor::zeros([4], (Kind::Int64, Device::Cpu));
        let CrossEntropy { losses, total } = in_parts(&hidden, &targets, 3, |hidden| hidden * 1.0);
        assert_eq!(losses.size(), [4]);
        assert!((total.double_value(&[]) - 4.0 * (HIDDEN as f64).ln()).abs() < 1e-12);
    }
}
