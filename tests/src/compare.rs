//! Whether two runs ended with the same parameters.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::{Dtype, SafeTensors};
use zipper_checkpoint::{Result, RunStore};
use zipper_types::Step;

/// How far parameters of two runs may be apart that differ in the order of floating-point sums, relative to each tensor's norm.
const TOLERANCE_F32: f64 = 1e-4;
/// The same where everything is computed in f64, so that rounding hides nothing.
const TOLERANCE_F64: f64 = 1e-9;

/// The trainable parameters in a checkpoint, every part read back and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// The checkpoint's step.
    pub step: Step,
    /// `banks/de.safetensors: layers.0.q_proj.b` to its values.
    tensors: BTreeMap<String, Vec<f64>>,
    /// How far others may be away from these.
    pub tolerance: f64,
}

/// The tensor in which two sets of parameters differ most.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// File and name.
    pub tensor: String,
    /// Norm of the difference over norm of the tensor; infinite where something is not a number.
    pub relative: f64,
}

impl Parameters {
    /// Those of the newest checkpoint.
    ///
    /// # Errors
    /// If a part of it cannot be read, or is not what was written.
    ///
    /// # Panics
    /// If there is none, or a part holds something else than tensors in f32 or f64.
    pub async fn newest(run: &RunStore) -> Result<Self> {
        let checkpoints = run.checkpoints();
        let step = checkpoints.latest().await?;
        let step = step.unwrap_or_else(|| panic!("`{}` has no checkpoint", run.url()));
        let manifest = checkpoints.load_manifest(step).await?;
        let (mut tensors, mut widths) = (BTreeMap::new(), BTreeSet::new());
        for part in &manifest.parts {
            let is_parameters = part.path == "shared.safetensors" || part.path.starts_with("banks/");
            let bytes = checkpoints.read_part(step, part).await?;
            if is_parameters {
                widths.extend(read(&part.path, &bytes, &mut tensors));
            }
        }
        let widest = widths.iter().max();
        let tolerance = if widest == Some(&8) {
            TOLERANCE_F64
        } else {
            TOLERANCE_F32
        };
        Ok(Self {
            step,
            tensors,
            tolerance,
        })
    }

    /// Where they differ most.
    ///
    /// # Panics
    /// If they are not the parameters of the same model.
    pub fn difference(&self, other: &Self) -> Difference {
        assert!(
            self.tensors.keys().eq(other.tensors.keys()),
            "not the same tensors: {:?} and {:?}",
            self.tensors.keys(),
            other.tensors.keys()
        );
        let differences = self.tensors.iter().map(|(tensor, expected)| {
            let found = &other.tensors[tensor];
            assert_eq!(expected.len(), found.len(), "sizes of `{tensor}`");
            let distance = norm(expected.iter().zip(found).map(|(a, b)| a - b));
            let size = norm(expected.iter().copied());
            let relative = match distance {
                0.0 => 0.0,
                _ if distance.is_nan() => f64::INFINITY,
                _ => distance / size,
            };
            let tensor = tensor.clone();
            Difference { tensor, relative }
        });
        differences
            .max_by(|a, b| a.relative.total_cmp(&b.relative))
            .expect("a model has parameters")
    }

    /// # Panics
    /// If they are of another step or differ by more than the tolerance.
    #[track_caller]
    pub fn assert_same(&self, other: &Self) {
        assert_eq!(self.step, other.step);
        let Difference { tensor, relative } = self.difference(other);
        assert!(
            relative <= self.tolerance,
            "`{tensor}` differs by {relative:e} of its norm"
        );
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Reads a file's tensors; returns the bytes of a number in each.
fn read(path: &str, bytes: &[u8], tensors: &mut BTreeMap<String, Vec<f64>>) -> BTreeSet<usize> {
    let file = SafeTensors::deserialize(bytes).unwrap_or_else(|error| panic!("`{path}`: {error}"));
    let mut widths = BTreeSet::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let values: Vec<f64> = match view.dtype() {
            Dtype::F32 => {
                let values = data.as_chunks().0.iter();
                values
                    .map(|value| f64::from(f32::from_le_bytes(*value)))
                    .collect()
            }
            Dtype::F64 => data
                .as_chunks()
                .0
                .iter()
                .copied()
                .map(f64::from_le_bytes)
                .collect(),
            other => panic!("`{path}`: `{name}` is {other:?}"),
        };
        widths.insert(data.len() / values.len());
        tensors.insert(format!("{path}: {name}"), values);
    }
    widths
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use safetensors::tensor::TensorView;
    use zipper_types::Generation;

    use super::*;

    async fn run_with(values: [f32; 2]) -> RunStore {
        let run = RunStore::in_memory();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
        let file = safetensors::serialize([("b", view)], None).unwrap();
        let checkpoints = run.checkpoints();
        let path = "banks/de.safetensors";
        let part = checkpoints
            .put_part(Step(4), "", path, Bytes::from(file))
            .await
            .unwrap();
        let manifest = crate::manifest(Step(4), Generation(1), vec![part]);
        checkpoints.publish(&manifest).await.unwrap();
        run
    }

    /// Differences are found, measured against the tensor's size, and what is not a number is not equal to anything.
    #[tokio::test]
    async fn differences_are_measured() {
        let of = async |values| Parameters::newest(&run_with(values).await).await.unwrap();
        let a = of([3.0, 4.0]).await;
        assert!(a.difference(&a).relative < f64::MIN_POSITIVE);
        let difference = a.difference(&of([3.0, 4.5]).await);
        assert_eq!(difference.tensor, "banks/de.safetensors: b");
        assert!((difference.relative - 0.1).abs() < 1e-12, "{difference:?}");
        let difference = a.difference(&of([3.0, f32::NAN]).await);
        assert!(difference.relative.is_infinite(), "{difference:?}");
    }
}
