//! Operations on CPUs, in f32 and f64, with gradients: what is several passes over memory in libtorch and one here, and a product that
//! oneDNN makes instead of MKL.
//!
//! Like tch's own operations without `f_`, they panic where tensors do not fit each other.

use tch::{Device, Kind, Tensor};

use crate::ffi;

/// Whether the operations of this module take such a tensor.
pub fn takes(x: &Tensor) -> bool {
    x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::Double) && x.is_contiguous()
}

/// Whether the operations of this module take such a tensor as a weight or bias, to which they give no gradient.
pub fn takes_frozen(weight: &Tensor) -> bool {
    takes(weight) && !weight.requires_grad()
}

/// `x / sqrt(mean(x^2) + eps) * weight`, the means over the last dimension. `weight` gets no gradient.
///
/// # Shapes
/// - `x`: `[.., width]`, `weight`: `[width]`
/// - returns: the shape of `x`
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let width = x.size().last().copied();
    assert!(
        takes(x) && is_beside(weight, x) && width == Some(weight.numel() as i64),
        "RMS norm of {x:?} with weights {weight:?}"
    );
    ffi::rms_norm(x, weight, eps).unwrap_or_else(|error| panic!("RMS norm of {x:?}: {error}"))
}

/// Rotary positions: with both halves `a` and `b` of a head, `a cos - b sin` and `b cos + a sin`. Cosines and sines get no gradient.
///
/// # Shapes
/// - `x`: `[tokens, heads, head_dim]`
/// - `cos`, `sin`: `[tokens, 1, head_dim]`, both halves alike
/// - returns: the shape of `x`
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let fits = matches!(x.size()[..], [tokens, _, head_dim]
        if head_dim % 2 == 0 && cos.size() == [tokens, 1, head_dim] && sin.size() == cos.size());
    assert!(
        fits && takes(x) && is_beside(cos, x) && is_beside(sin, x),
        "rotation of {x:?} by {cos:?} and {sin:?}"
    );
    ffi::rotate(x, cos, sin).unwrap_or_else(|error| panic!("rotation of {x:?}: {error}"))
}

/// `silu(gate) * up`.
///
/// # Shapes
/// - `gate`, `up`: `[tokens, width]`
/// - returns: the same
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    assert!(
        takes(gate) && is_beside(up, gate) && gate.dim() == 2 && gate.size() == up.size(),
        "SwiGLU of {gate:?} and {up:?}"
    );
    ffi::swiglu(gate, up).unwrap_or_else(|error| panic!("SwiGLU of {gate:?}: {error}"))
}

/// `x W^T + b`, of which only `x` gets a gradient. In f32 large products are oneDNN's, where libtorch's own `linear` takes MKL's.
///
/// # Shapes
/// - `x`: `[rows, d_in]`, `weight`: `[d_out, d_in]`, `bias`: `[d_out]`
/// - returns: `[rows, d_out]`
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    check_linear(x, weight, bias);
    ffi::frozen_linear(x, weight, bias)
        .unwrap_or_else(|error| panic!("product of {x:?} with {weight:?}: {error}"))
}

/// What LoRA adds to a layer: `scale dropout(x) A^T B^T`. The factor `1 / (1 - rate)` of dropout belongs into the scale.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[r, d_in]`.
    pub a: &'a Tensor,
    /// `[d_out, r]`.
    pub b: &'a Tensor,
    /// What low-rank products are multiplied by.
    pub scale: f64,
    /// What is dropped of `x`; nothing where nothing is.
    pub dropout: Option<&'a DropoutHashes>,
}

/// [`frozen_linear`] and what LoRA adds, with gradients of `x`, A and B.
///
/// # Shapes
/// As [`frozen_linear`].
pub fn adapted_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: &LowRank<'_>) -> Tensor {
    check_linear(x, weight, bias);
    let fits = matches!((&weight.size()[..], &lora.a.size()[..], &lora.b.size()[..]),
        (&[d_out, d_in], &[r, of_a], &[of_b, as_r]) if d_in == of_a && d_out == of_b && r == as_r);
    assert!(
        fits && is_beside(lora.a, x)
            && is_beside(lora.b, x)
            && lora.dropout.is_none_or(|hashes| hashes.fits(x)),
        "{lora:?} for {x:?} and {weight:?}"
    );
    ffi::adapted_linear(x, weight, bias, lora)
        .unwrap_or_else(|error| panic!("product of {x:?} with {weight:?} and {lora:?}: {error}"))
}

fn check_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) {
    let fits = matches!((&x.size()[..], &weight.size()[..]), (&[_, d_in], &[d_out, of_weight])
        if d_in == of_weight && bias.is_none_or(|bias| bias.size() == [d_out] && is_beside(bias, x)));
    assert!(
        fits && takes(x) && is_beside(weight, x),
        "product of {x:?} with {weight:?} and {bias:?}"
    );
}

/// What decides whether a feature of a token is dropped: with `h` the sum of both hashes, whether the signed number
/// `(h ^ (h >> 32)) * multiplier` is below the threshold. All arithmetic wraps around, and shifts fill up with zeros.
#[derive(Debug)]
pub struct DropoutHashes {
    /// `[tokens]`, i64.
    pub of_tokens: Tensor,
    /// `[features]`, i64.
    pub of_features: Tensor,
    /// Mixes the bits of a sum of two hashes.
    pub multiplier: i64,
    /// What lies below it is dropped.
    pub threshold: i64,
}

/// `x a^T` where some features of `x` count as zero. The others are as they are, without a factor for those that are missing. No copy
/// of `x` is kept for the gradient.
///
/// # Shapes
/// - `x`: `[tokens, features]`, `a`: `[n, features]`
/// - returns: `[tokens, n]`
pub fn dropped_product(x: &Tensor, a: &Tensor, hashes: &DropoutHashes) -> Tensor {
    let fits = matches!((&x.size()[..], &a.size()[..]), (&[_, features], &[_, of_a]) if features == of_a);
    assert!(
        fits && takes(x) && is_beside(a, x) && hashes.fits(x),
        "product of {x:?} with {a:?}, dropped by {hashes:?}"
    );
    ffi::dropped_product(x, a, hashes).unwrap_or_else(|error| panic!("product of {x:?} with {a:?}: {error}"))
}

impl DropoutHashes {
    /// Whether they are those of `x`.
    fn fits(&self, x: &Tensor) -> bool {
        let is_list = |list: &Tensor, length: i64| {
            list.device() == Device::Cpu
                && list.kind() == Kind::Int64
                && list.is_contiguous()
                && list.size() == [length]
        };
        matches!(x.size()[..], [tokens, features]
            if is_list(&self.of_tokens, tokens) && is_list(&self.of_features, features))
    }
}

fn is_beside(other: &Tensor, x: &Tensor) -> bool {
    takes(other) && other.kind() == x.kind()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(shape, (kind, Device::Cpu))
    }

    /// Goal: an operation and its gradients are those of the same formula in libtorch's operations. Method: outputs and gradients of a sum
    /// with random weights; widths that are no multiple of what a processor takes at a time, more rows than one thread gets.
    fn assert_alike(
        inputs: &[Tensor],
        fused: impl Fn(&[Tensor]) -> Tensor,
        formula: impl Fn(&[Tensor]) -> Tensor,
    ) {
        let weights = formula(inputs).randn_like();
        let [ours, theirs] = [&fused as &dyn Fn(&[Tensor]) -> Tensor, &formula].map(|make| {
            let inputs: Vec<Tensor> = inputs
                .iter()
                .map(|input| input.detach().set_requires_grad(true))
                .collect();
            let output = make(&inputs);
            let sum = (&output * &weights).sum(output.kind());
            let gradients = Tensor::run_backward(&[sum], &inputs.iter().collect::<Vec<_>>(), false, false);
            let mut tensors = gradients;
            tensors.push(output.detach());
            tensors
        });
        let tolerance = match inputs[0].kind() {
            Kind::Double => 1e-13,
            _ => 1e-5,
        };
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours.size(), theirs.size());
            let largest = |x: &Tensor| x.abs().max().double_value(&[]);
            let (worst, scale) = (largest(&(ours - theirs)), largest(theirs));
            assert!(
                worst < tolerance * scale,
                "tensor {index}: {worst} at values up to {scale}"
            );
        }
    }

    const KINDS: [Kind; 2] = [Kind::Float, Kind::Double];
    /// Rows, inputs and outputs of layers: such as MKL and such as oneDNN multiply.
    const LAYERS: [[i64; 3]; 3] = [[1, 5, 7], [300, 77, 65], [700, 111, 113]];

    #[test]
    fn rms_norms_are_the_formula() {
        tch::manual_seed(1);
        for kind in KINDS {
            for shape in [vec![700, 77], vec![3, 5, 64], vec![1, 33]] {
                let weight = random(&shape[shape.len() - 1..], kind);
                assert_alike(
                    &[random(&shape, kind)],
                    |x| rms_norm(&x[0], &weight, 1e-5),
                    |x| {
                        let mean_square = x[0].square().mean_dim(-1, true, kind);
                        &x[0] * (mean_square + 1e-5).rsqrt() * &weight
                    },
                );
            }
        }
    }

    #[test]
    fn rotations_are_the_formula() {
        tch::manual_seed(2);
        for kind in KINDS {
            let half = random(&[500, 1, 7], kind);
            let angles = Tensor::cat(&[&half, &half], -1);
            let (cos, sin) = (angles.cos(), angles.sin());
            assert_alike(
                &[random(&[500, 3, 14], kind)],
                |x| rotate(&x[0], &cos, &sin),
                |x| {
                    let halves = x[0].chunk(2, -1);
                    let turned = Tensor::cat(&[halves[1].neg(), halves[0].shallow_clone()], -1);
                    &x[0] * &cos + turned * &sin
                },
            );
        }
    }

    #[test]
    fn swiglu_is_the_formula() {
        tch::manual_seed(3);
        for kind in KINDS {
            for shape in [[900, 77], [1, 5]] {
                assert_alike(
                    &[random(&shape, kind), random(&shape, kind)],
                    |x| swiglu(&x[0], &x[1]),
                    |x| x[0].silu() * &x[1],
                );
            }
        }
    }

    #[test]
    fn frozen_products_are_the_formula() {
        tch::manual_seed(5);
        for kind in KINDS {
            for [rows, d_in, d_out] in LAYERS {
                let (weight, bias) = (random(&[d_out, d_in], kind), random(&[d_out], kind));
                for bias in [None, Some(&bias)] {
                    assert_alike(
                        &[random(&[rows, d_in], kind)],
                        |x| frozen_linear(&x[0], &weight, bias),
                        |x| x[0].linear(&weight, bias),
                    );
                }
            }
        }
    }

    #[test]
    fn adapted_products_are_the_formula() {
        tch::manual_seed(6);
        for kind in KINDS {
            for [rows, d_in, d_out] in LAYERS {
                let (weight, bias) = (random(&[d_out, d_in], kind), random(&[d_out], kind));
                let (hashes, kept) = dropout(rows, d_in);
                let kept = kept.to_kind(kind);
                let inputs = [
                    random(&[rows, d_in], kind),
                    random(&[3, d_in], kind),
                    random(&[d_out, 3], kind),
                ];
                for (bias, dropout) in [
                    (None, None),
                    (Some(&bias), None),
                    (None, Some(&hashes)),
                    (Some(&bias), Some(&hashes)),
                ] {
                    assert_alike(
                        &inputs,
                        |x| {
                            let lora = LowRank {
                                a: &x[1],
                                b: &x[2],
                                scale: 0.7,
                                dropout,
                            };
                            adapted_linear(&x[0], &weight, bias, &lora)
                        },
                        |x| {
                            let low_rank = match dropout {
                                None => x[0].matmul(&x[1].tr()),
                                Some(_) => (&x[0] * &kept).matmul(&x[1].tr()),
                            };
                            x[0].linear(&weight, bias) + low_rank.matmul(&x[2].tr()) * 0.7
                        },
                    );
                }
            }
        }
    }

    #[test]
    fn dropped_products_are_the_formula() {
        tch::manual_seed(4);
        let (tokens, features) = (600, 77);
        let (hashes, kept) = dropout(tokens, features);
        for kind in KINDS {
            let kept = kept.to_kind(kind);
            assert_alike(
                &[random(&[tokens, features], kind), random(&[5, features], kind)],
                |x| dropped_product(&x[0], &x[1], &hashes),
                |x| (&x[0] * &kept).linear(&x[1], None::<Tensor>),
            );
        }
    }

    /// Hashes that drop a quarter, and `[tokens, features]` in f64: 1 where something is kept, by the definition of [`DropoutHashes`] in
    /// Rust's own arithmetic.
    fn dropout(tokens: i64, features: i64) -> (DropoutHashes, Tensor) {
        let list =
            |length: i64| Tensor::randint_low(i64::MIN, i64::MAX, [length], (Kind::Int64, Device::Cpu));
        let hashes = DropoutHashes {
            of_tokens: list(tokens),
            of_features: list(features),
            multiplier: 0xbf58_476d_1ce4_e5b9_u64.cast_signed(),
            threshold: -i64::MAX / 2,
        };
        let numbers = |list: &Tensor| Vec::<i64>::try_from(list).unwrap();
        let of_features = numbers(&hashes.of_features);
        let kept: Vec<f64> = numbers(&hashes.of_tokens)
            .iter()
            .flat_map(|&token| of_features.iter().map(move |&feature| (token, feature)))
            .map(|(token, feature)| {
                let sum = token.cast_unsigned().wrapping_add(feature.cast_unsigned());
                let hash = (sum ^ (sum >> 32)).wrapping_mul(hashes.multiplier.cast_unsigned());
                f64::from(u8::from(hash.cast_signed() >= hashes.threshold))
            })
            .collect();
        if kept.len() > 10_000 {
            let share = kept.iter().sum::<f64>() / kept.len() as f64;
            assert!((share - 0.75).abs() < 0.01, "{share}");
        }
        (hashes, Tensor::from_slice(&kept).view([tokens, features]))
    }

    /// The loops for processors without AVX2, which libtorch can be told to take this one for.
    #[test]
    fn older_processors_compute_the_same() {
        let tests = std::env::current_exe().unwrap();
        let output = std::process::Command::new(tests)
            .args(["fused::tests", "--skip", "older_processors"])
            .env("ATEN_CPU_CAPABILITY", "default")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("7 passed"), "{said}");
    }

    /// What the kernels would read beyond its end is refused.
    #[test]
    fn what_does_not_fit_is_refused() {
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        let x = zeros(&[4, 6], Kind::Float);
        // By the checks before the kernels: how their messages begin, and how they go on.
        let refused: [(&dyn Fn() -> Tensor, &str, &str); 6] = [
            (
                &|| frozen_linear(&x, &zeros(&[3, 5], Kind::Float), None),
                "product of ",
                " and None",
            ),
            (
                &|| rms_norm(&x, &zeros(&[5], Kind::Float), 1e-5),
                "RMS norm of ",
                " with weights ",
            ),
            (
                &|| rms_norm(&x, &zeros(&[6], Kind::Double), 1e-5),
                "RMS norm of ",
                " with weights ",
            ),
            (
                &|| swiglu(&x, &zeros(&[4, 5], Kind::Float)),
                "SwiGLU of ",
                " and ",
            ),
            (&|| swiglu(&x.tr(), &x.tr()), "SwiGLU of ", " and "),
            (
                &|| {
                    let angles = zeros(&[3, 1, 6], Kind::Float);
                    rotate(&x.view([4, 1, 6]), &angles, &angles)
                },
                "rotation of ",
                " by ",
            ),
        ];
        for (make, begins, goes_on) in refused {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
            let panic = result.expect_err(begins);
            let said = panic.downcast_ref::<String>().expect("a message");
            assert!(said.starts_with(begins) && said.contains(goes_on), "{said}");
        }
    }
}
