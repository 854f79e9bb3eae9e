//! Causal attention over packed rows, and over what was read so far.

use tch::Tensor;

use crate::packing::Packing;

/// Attention in which every token sees its own row, up to itself: of queries, keys and values.
///
/// # Shapes
/// - queries: `[tokens, heads, head_dim]`
/// - keys, values: `[tokens, kv_heads, head_dim]`
/// - returns: `[tokens, heads, head_dim]`
pub(super) fn to_own_row(rows: &Packing) -> impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor {
    move |q: &Tensor, k: &Tensor, v: &Tensor| {
        let heads = q.size()[1];
        let (k, v) = (for_every_head(k, heads), for_every_head(v, heads));
        // What follows a row in its padding is behind all of its tokens, which therefore do not see it.
        rows.attend([q, &k, &v], |[q, k, v], _padded| causal(&q, &k, &v))
    }
}

/// `[batch, time, heads, head_dim]`, in and out.
fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2));
    Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, true, None, false).transpose(1, 2)
}

/// Repeats each key or value head for the query heads that share it.
///
/// # Shapes
/// - `x`: `[tokens, kv_heads, head_dim]`
/// - returns: `[tokens, heads, head_dim]`
fn for_every_head(x: &Tensor, heads: i64) -> Tensor {
    let (tokens, kv_heads, head_dim) = x
        .size3()
        .expect("keys and values are [tokens, kv_heads, head_dim]");
    if kv_heads == heads {
        return x.shallow_clone();
    }
    let group = heads / kv_heads;
    x.unsqueeze(2)
        .expand([tokens, kv_heads, group, head_dim], false)
        .reshape([tokens, heads, head_dim])
}

/// One token of each row attends to the row's columns in which `mask` is true.
///
/// # Shapes
/// - `q`: `[batch, heads, head_dim]`
/// - `keys`, `values`: `[batch, kv_heads, columns, head_dim]`
/// - `mask`: `[batch, 1, 1, columns]`, bool
/// - returns: `[batch, heads, head_dim]`
pub(super) fn to_columns(q: &Tensor, keys: &Tensor, values: &Tensor, mask: &Tensor) -> Tensor {
    let (batch, heads, head_dim) = q.size3().expect("queries are [batch, heads, head_dim]");
    // The query heads that share keys are as good as so many queries, and keys need not be repeated.
    let kv_heads = keys.size()[1];
    let q = q.view([batch, kv_heads, heads / kv_heads, head_dim]);
    let attended =
        Tensor::scaled_dot_product_attention(&q, keys, values, Some(mask), 0.0, false, None, false);
    attended.reshape([batch, heads, head_dim])
}
