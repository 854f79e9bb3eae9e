//! How B(l) is put together out of what is shared and what belongs to a language (docs/concepts.md): pure functions.
//!
//! | symbol | argument | shape |
//! | --- | --- | --- |
//! | `B_shared` | `shared` | `[d_out, r]`; static: `[d_out, r_s]` |
//! | `B_l` of P languages | `banks` | `[P, d_out, r]`; static: `[P, d_out, r - r_s]` |
//! | `e_l` | `lid` | `[P, lid_dim]` |
//! | router `W`, `b` | `weight`, `bias` | `[r, lid_dim]`, `[r]` |
//! | `g_l` | `gates` | `[P, r]` |
//!
//! They work in whatever float type they are given; a `[P, d_out, r]` result holds one B(l) for each language.

use tch::Tensor;

/// `g_l = sigmoid(W e_l + b)`: the share of column j of B that language l takes from `B_shared`.
pub(super) fn gates(lid: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    lid.linear(weight, Some(bias)).sigmoid()
}

/// Rounds the gates to 0 or 1 (1 from 0.5 on) and passes gradients through as if it had not (straight-through).
///
/// The added term is exactly zero, so that the values are exactly 0 and 1.
pub(super) fn straight_through(gates: &Tensor) -> Tensor {
    let rounded = gates.ge(0.5).to_kind(gates.kind());
    rounded + (gates - gates.detach())
}

/// `soft` and `hard`: column j is `g_l[j] * B_shared[:, j] + (1 - g_l[j]) * B_l[:, j]`.
///
/// Linear interpolation keeps three values exact: `B_l` where the gate is 0, `B_shared` where it is 1, and their common
/// value where the two are equal, so that stage 2 starts with exactly the B of stage 1 (Initial-B).
pub(super) fn mix(shared: &Tensor, banks: &Tensor, gates: &Tensor) -> Tensor {
    banks.lerp_tensor(&shared.unsqueeze(0), &gates.unsqueeze(1))
}

/// `static`: the shared columns first, the language's own after them.
pub(super) fn join_columns(shared: &Tensor, banks: &Tensor) -> Tensor {
    let (languages, d_out, _) = banks.size3().expect("banks are stacked by language");
    Tensor::cat(
        &[
            shared.unsqueeze(0).expand([languages, d_out, -1], false),
            banks.shallow_clone(),
        ],
        2,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_of_exactly_a_half_is_shared() {
        // The third is a number for which `1 + g - g` is not 1 in f32.
        let gates = Tensor::from_slice(&[0.499_999_97f32, 0.5, 0.500_000_06, 0.9]).set_requires_grad(true);
        let rounded = straight_through(&gates);
        assert_eq!(rounded.detach(), Tensor::from_slice(&[0f32, 1.0, 1.0, 1.0]));
        rounded
            .dot(&Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]))
            .backward();
        assert_eq!(gates.grad(), Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]));
    }
}
