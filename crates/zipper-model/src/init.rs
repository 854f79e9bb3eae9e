//! Initial values: a pure function of (seed, parameter name), so that they depend neither on the order in which
//! parameters are made nor on the machine or the device.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

/// Values uniform in `[-bound, bound)`.
///
/// # Shapes
/// - returns: `shape`, f32, on the CPU
pub fn uniform(seed: u64, name: &str, shape: &[i64], bound: f64) -> Tensor {
    let mut random = stream(seed, name);
    let values: Vec<f32> = (0..count(shape))
        .map(|_| ((random.random::<f64>() * 2.0 - 1.0) * bound) as f32)
        .collect();
    Tensor::from_slice(&values).view(shape)
}

/// Values of a normal distribution around 0, by the Box-Muller transform.
///
/// # Shapes
/// - returns: `shape`, f32, on the CPU
pub fn normal(seed: u64, name: &str, shape: &[i64], deviation: f64) -> Tensor {
    let mut random = stream(seed, name);
    let values: Vec<f32> = (0..count(shape))
        .map(|_| {
            // `1 - u` is in (0, 1], where the logarithm is finite.
            let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
            let angle = std::f64::consts::TAU * random.random::<f64>();
            (radius * angle.cos() * deviation) as f32
        })
        .collect();
    Tensor::from_slice(&values).view(shape)
}

fn count(shape: &[i64]) -> i64 {
    shape.iter().product()
}

fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let values = uniform(1, "a", &[3, 4], 0.5);
        assert_eq!(values, uniform(1, "a", &[3, 4], 0.5));
        assert_ne!(values, uniform(1, "b", &[3, 4], 0.5));
        assert_ne!(values, uniform(2, "a", &[3, 4], 0.5));
    }

    #[test]
    fn distributions_have_the_asked_for_spread() {
        let values = uniform(3, "u", &[10_000], 0.5);
        assert!(values.abs().max().double_value(&[]) <= 0.5);
        assert!((values.std(true).double_value(&[]) - 0.5 / 3f64.sqrt()).abs() < 0.01);
        let values = normal(3, "n", &[10_000], 0.2);
        assert!(values.mean(Kind::Double).double_value(&[]).abs() < 0.01);
        assert!((values.std(true).double_value(&[]) - 0.2).abs() < 0.01);
    }
}
