//! Dropout masks that depend on nothing but (row seed, adapted layer, position, feature).
//!
//! A mask is a hash of a counter, not the output of a generator that has a state: whether a feature is dropped is
//! decided by hashing its coordinates. So the mask of an utterance is the same on every rank and device, in every
//! micro batch and beside every neighbour, and padding after the row's end changes nothing.
//!
//! The hash is the finalizer of `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)
//! on the coordinates of a position and of a feature, which are small, and one multiply and xor-shift round for each
//! pair of them, which are many. All arithmetic is on 64-bit integers that wrap around.

use tch::{Device, Kind, Tensor};
use zipper_aten::fused::{self, DropoutHashes};

use super::merged::Activation;
use crate::packing::Packing;

/// `2^64` divided by the golden ratio, odd: the counter increment of `SplitMix64`.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER_1: u64 = 0xbf58_476d_1ce4_e5b9;
const MULTIPLIER_2: u64 = 0x94d0_49bb_1331_11eb;

/// What tells the masks of one adapted layer from those of another, from the layer's name.
pub(super) fn site_key(name: &str) -> u64 {
    name.bytes().fold(INCREMENT, |key, byte| {
        finalize(key ^ u64::from(byte)).wrapping_add(INCREMENT)
    })
}

/// Row seeds as a tensor `[rows]`.
pub(super) fn seed_tensor(seeds: &[u64], device: Device) -> Tensor {
    let bits: Vec<i64> = seeds.iter().map(|&seed| seed.cast_signed()).collect();
    Tensor::from_slice(&bits).to_device(device)
}

/// Activations of which some features are dropped.
#[derive(Debug)]
pub(super) struct Dropped {
    /// `[tokens, features]`.
    pub(super) x: Tensor,
    pub(super) hashes: DropoutHashes,
}

impl Activation for Dropped {
    /// `dropout(x) M^T`, without the factor `1 / (1 - rate)`.
    fn product(&self, matrix: &Tensor) -> Tensor {
        if fused::takes(&self.x) && fused::takes(matrix) {
            return fused::dropped_product(&self.x, matrix, &self.hashes);
        }
        let kept = self.x.masked_fill(&mask(&self.hashes), 0.0);
        kept.linear(matrix, None::<Tensor>)
    }

    fn split(&self, lengths: &[i64]) -> Vec<Self> {
        let xs = self.x.split_with_sizes(lengths, 0);
        let of_tokens = self.hashes.of_tokens.split_with_sizes(lengths, 0);
        let parts = xs.into_iter().zip(of_tokens);
        parts
            .map(|(x, of_tokens)| Self {
                x,
                hashes: DropoutHashes {
                    of_tokens,
                    of_features: self.hashes.of_features.shallow_clone(),
                    ..self.hashes
                },
            })
            .collect()
    }
}

/// What decides which features are dropped, each with probability `rate`, of tokens that are packed as `rows` says.
///
/// # Shapes
/// - `seeds`: `[rows]`, from [`seed_tensor`]
pub(super) fn hashes(
    seeds: &Tensor,
    site_key: u64,
    rows: &Packing,
    features: i64,
    rate: f64,
) -> DropoutHashes {
    let counted = |counter: &Tensor| counter * INCREMENT.cast_signed();
    let of_rows = finalize_all(seeds + site_key.cast_signed());
    let of_tokens = of_rows.index_select(0, rows.row_of_token()) + counted(rows.positions());
    let features = Tensor::arange(features, (Kind::Int64, seeds.device()));
    DropoutHashes {
        of_tokens: finalize_all(of_tokens),
        of_features: finalize_all(counted(&features) + MULTIPLIER_2.cast_signed()),
        multiplier: MULTIPLIER_1.cast_signed(),
        threshold: threshold(rate),
    }
}

/// `[tokens, features]`, bool, true where dropped.
fn mask(hashes: &DropoutHashes) -> Tensor {
    let mut hash = xor_shift(hashes.of_tokens.unsqueeze(1) + &hashes.of_features, 32);
    hash.g_mul_scalar_(hashes.multiplier).lt(hashes.threshold)
}

/// The signed number below which a part `rate` of all 64-bit integers lies.
fn threshold(rate: f64) -> i64 {
    let below = rate * 2f64.powi(64);
    (below as u64 ^ (1 << 63)).cast_signed()
}

fn finalize(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(MULTIPLIER_1);
    z = (z ^ (z >> 27)).wrapping_mul(MULTIPLIER_2);
    z ^ (z >> 31)
}

/// [`finalize`] of every element.
fn finalize_all(z: Tensor) -> Tensor {
    let mut z = xor_shift(z, 30);
    let mut z = xor_shift(z.g_mul_scalar_(MULTIPLIER_1.cast_signed()), 27);
    xor_shift(z.g_mul_scalar_(MULTIPLIER_2.cast_signed()), 31)
}

/// `z ^ (z >> bits)` with zeros shifted in: torch's own shift repeats the sign.
fn xor_shift(mut z: Tensor, bits: u32) -> Tensor {
    let mut shifted = z.bitwise_right_shift_tensor_scalar(i64::from(bits));
    let shifted = shifted.bitwise_and_((u64::MAX >> bits).cast_signed());
    z.bitwise_xor_tensor_(&shifted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(seeds: &[u64], site: &str, positions: i64, features: i64, rate: f64) -> Tensor {
        let rows = seeds.len() as i64;
        let seeds = seed_tensor(seeds, Device::Cpu);
        let packing = Packing::uniform(rows, positions, Device::Cpu);
        mask(&hashes(&seeds, site_key(site), &packing, features, rate)).view([rows, positions, features])
    }

    fn mean(mask: &Tensor) -> f64 {
        mask.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    }

    /// Five standard deviations of the mean of `count` coin flips of probability `p`.
    fn tolerance(p: f64, count: i64) -> f64 {
        5.0 * (p * (1.0 - p) / count as f64).sqrt()
    }

    #[test]
    fn the_tensor_hash_is_the_scalar_hash() {
        // Method: the same formula in Rust's u64 arithmetic, at coordinates that make the products overflow.
        let seeds = [0, 1, u64::MAX, 0x8000_0000_0000_0000, 0x0123_4567_89ab_cdef];
        let (positions, features, rate) = (3, 7, 0.37);
        let mask = dropped(&seeds, "layers.0.q_proj", positions, features, rate);
        for (row, &seed) in seeds.iter().enumerate() {
            for position in 0..positions {
                for feature in 0..features {
                    let row_hash = finalize(seed.wrapping_add(site_key("layers.0.q_proj")));
                    let position_hash =
                        finalize(row_hash.wrapping_add(INCREMENT.wrapping_mul(position as u64)));
                    let feature_hash =
                        finalize(INCREMENT.wrapping_mul(feature as u64).wrapping_add(MULTIPLIER_2));
                    let sum = position_hash.wrapping_add(feature_hash);
                    let hash = (sum ^ (sum >> 32)).wrapping_mul(MULTIPLIER_1).cast_signed();
                    let expected = (hash as f64 + 2f64.powi(63)) / 2f64.powi(64) < rate;
                    assert_eq!(mask.int64_value(&[row as i64, position, feature]) != 0, expected);
                }
            }
        }
    }

    #[test]
    fn the_configured_part_is_dropped() {
        // Method: overall, at every position and for every feature, within five standard deviations.
        let (positions, features) = (400, 300);
        for rate in [0.05, 0.1, 0.5, 0.9] {
            let mask = dropped(&[11, 12, 13], "a", positions, features, rate);
            let overall = mean(&mask);
            assert!(
                (overall - rate).abs() < tolerance(rate, 3 * positions * features),
                "{rate}: {overall}"
            );
            for (dimension, count) in [(1, 3 * features), (2, 3 * positions)] {
                let other = [0, 3 - dimension];
                let by_index = mask
                    .to_kind(Kind::Double)
                    .mean_dim(&other[..], false, Kind::Double);
                let worst = (by_index - rate).abs().max().double_value(&[]);
                assert!(
                    worst < tolerance(rate, count),
                    "{rate}, dimension {dimension}: {worst}"
                );
            }
        }
        assert!(
            mean(&dropped(&[5], "a", 50, 50, 0.0)).abs() < f64::EPSILON,
            "rate 0 drops nothing"
        );
    }

    #[test]
    fn neighbours_are_independent() {
        // Method: at rate 1/2 the exclusive or of any set of different coordinates must be a fair coin. Checked for
        // pairs at several distances, for the corners of rectangles (which a sum of two hashes alone would fail),
        // for consecutive row seeds, and for two layers.
        let (positions, features) = (600, 500);
        let a = dropped(&[7, 8], "layers.0.q_proj", positions, features, 0.5).to_kind(Kind::Int64);
        let b = dropped(&[7, 8], "layers.0.k_proj", positions, features, 0.5).to_kind(Kind::Int64);
        let fair = |bits: &Tensor, what: &str| {
            let part = mean(bits);
            assert!(
                (part - 0.5).abs() < tolerance(0.5, bits.numel() as i64),
                "{what}: {part}"
            );
        };
        let window = |dp: i64, df: i64| a.narrow(1, dp, positions - 8).narrow(2, df, features - 8);
        for (dp, df) in [(0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (0, 8), (8, 0)] {
            fair(&window(0, 0).bitwise_xor_tensor(&window(dp, df)), "pair");
        }
        for (dp, df) in [(1, 1), (1, 2), (2, 1), (4, 4), (8, 8)] {
            let corners = window(0, 0).bitwise_xor_tensor(&window(dp, 0));
            let corners = corners
                .bitwise_xor_tensor(&window(0, df))
                .bitwise_xor_tensor(&window(dp, df));
            fair(&corners, "rectangle");
        }
        fair(&a.get(0).bitwise_xor_tensor(&a.get(1)), "consecutive seeds");
        fair(&a.bitwise_xor_tensor(&b), "two layers");
    }

    #[test]
    fn a_row_s_mask_does_not_depend_on_what_is_around_it() {
        let alone = dropped(&[42], "a", 9, 13, 0.3);
        let among = dropped(&[1, 42, 3], "a", 20, 13, 0.3);
        assert_eq!(alone.get(0), among.get(1).narrow(0, 0, 9));
        assert_ne!(alone.get(0), among.get(0).narrow(0, 0, 9));
        let packing = Packing::new(vec![4, 9, 2], Device::Cpu);
        let seeds = seed_tensor(&[1, 42, 3], Device::Cpu);
        let packed = mask(&hashes(&seeds, site_key("a"), &packing, 13, 0.3));
        assert_eq!(alone.get(0), packed.narrow(0, 4, 9));
    }

    /// Goal: a product is the same where it is one pass, where it is several, as it is with a matrix that is not contiguous, and in parts.
    #[test]
    fn products_are_those_of_the_mask() {
        let packing = Packing::new(vec![4, 9, 2], Device::Cpu);
        let seeds = seed_tensor(&[1, 42, 3], Device::Cpu);
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let (x, matrix) = (random([15, 13]), random([3, 13]));
        let dropped = Dropped {
            x: x.shallow_clone(),
            hashes: hashes(&seeds, site_key("a"), &packing, 13, 0.3),
        };
        let kept = &x * mask(&dropped.hashes).logical_not();
        let expected = kept.matmul(&matrix.tr());
        let parts = dropped.split(&[5, 10]);
        let of_parts: Vec<Tensor> = parts.iter().map(|part| part.product(&matrix)).collect();
        let not_contiguous = matrix.tr().contiguous().tr();
        for product in [
            dropped.product(&matrix),
            dropped.product(&not_contiguous),
            Tensor::cat(&of_parts, 0),
        ] {
            assert!(product.allclose(&expected, 1e-12, 1e-12, false));
        }
    }
}
