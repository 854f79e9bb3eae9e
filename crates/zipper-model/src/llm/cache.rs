//! Keys and values of what was read so far, for rows of different lengths.

use tch::{Device, Kind, Tensor};

/// Keys and values of every layer.
///
/// The columns of the prompt are padded on the right to the longest row; generated tokens follow behind the padding, all rows
/// in step. A mask hides the padding, and every row counts its positions from its own length.
#[derive(Debug)]
pub struct KvCache {
    /// `[batch, kv_heads, columns, head_dim]` each, rotated keys.
    layers: Vec<(Tensor, Tensor)>,
    /// `[batch]`, i64: valid positions of each row, generated ones included.
    lengths: Tensor,
    /// `[batch, 1, 1, columns]`, true where there is something to attend to.
    mask: Tensor,
}

impl KvCache {
    pub(super) fn new(layers: Vec<(Tensor, Tensor)>, lengths: &[i64], columns: i64, device: Device) -> Self {
        let lengths = Tensor::from_slice(lengths).to_device(device);
        let column = Tensor::arange(columns, (Kind::Int64, device)).unsqueeze(0);
        let mask = column.lt_tensor(&lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1);
        Self {
            layers,
            lengths,
            mask,
        }
    }

    /// Keeps the given rows, in the given order; a row may come several times (beam search).
    ///
    /// # Shapes
    /// - `rows`: `[new batch]`, i64
    pub fn select(&mut self, rows: &Tensor) {
        for (k, v) in &mut self.layers {
            *k = k.index_select(0, rows);
            *v = v.index_select(0, rows);
        }
        self.lengths = self.lengths.index_select(0, rows);
        self.mask = self.mask.index_select(0, rows);
    }

    /// `[batch, 1]`: the position of each row's next token.
    pub(super) fn next_positions(&self) -> Tensor {
        self.lengths.unsqueeze(1)
    }

    /// Makes room for one token in each row, and returns the mask that includes it.
    pub(super) fn grow_mask(&mut self) -> Tensor {
        let column = self.mask.narrow(3, 0, 1).ones_like();
        self.mask = Tensor::cat(&[&self.mask, &column], 3);
        self.lengths += 1;
        self.mask.shallow_clone()
    }

    /// Adds the keys and values of one token to a layer, and returns all of them.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let (keys, values) = &mut self.layers[layer];
        *keys = Tensor::cat(&[&*keys, k], 2);
        *values = Tensor::cat(&[&*values, v], 2);
        (keys.shallow_clone(), values.shallow_clone())
    }
}
