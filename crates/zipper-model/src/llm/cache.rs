//! Keys and values of what was read so far, for rows of different lengths.

use tch::{Kind, Tensor};

use crate::packing::Packing;

/// Columns of room that are added when there is none: copying all that was read so far for every token would cost the square of it.
const MORE_COLUMNS: i64 = 32;

/// Keys and values of every layer.
///
/// The columns of the prompt are padded on the right to the longest row; generated tokens follow behind the padding, all rows
/// in step. A mask hides the padding, and every row counts its positions from its own length.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// The rows that are read on, one token of each.
    rows: Packing,
    /// `[batch]`, i64: valid positions of each row, generated ones included.
    lengths: Tensor,
    /// `[batch, 1, 1, columns]`, true where there is something to attend to.
    mask: Tensor,
}

/// Rotated keys, and values, of one layer: `[batch, kv_heads, room, head_dim]` each, of which the first columns are in use.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: Tensor,
    values: Tensor,
    used: i64,
}

impl LayerCache {
    fn new((keys, values): (Tensor, Tensor)) -> Self {
        let used = keys.size()[2];
        Self { keys, values, used }
    }

    /// Adds the keys and values of one token, `[batch, kv_heads, head_dim]` each, and returns all of them,
    /// `[batch, kv_heads, columns, head_dim]`.
    pub(super) fn append(&mut self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        if self.used == self.keys.size()[2] {
            let more = |columns: &Tensor| columns.constant_pad_nd([0, 0, 0, MORE_COLUMNS]);
            (self.keys, self.values) = (more(&self.keys), more(&self.values));
        }
        self.keys.select(2, self.used).copy_(k);
        self.values.select(2, self.used).copy_(v);
        self.used += 1;
        (
            self.keys.narrow(2, 0, self.used),
            self.values.narrow(2, 0, self.used),
        )
    }

    fn select(&mut self, rows: &Tensor) {
        // The room as well: beam search selects after every token.
        let of_rows = |columns: &Tensor| columns.index_select(0, rows);
        (self.keys, self.values) = (of_rows(&self.keys), of_rows(&self.values));
    }
}

impl KvCache {
    /// # Shapes
    /// - `layers`: keys and values of `rows`, `[batch, kv_heads, columns, head_dim]` each
    pub(super) fn new(layers: Vec<(Tensor, Tensor)>, rows: &Packing) -> Self {
        let (lengths, device) = (rows.lengths(), rows.positions().device());
        let columns = lengths.iter().copied().max().unwrap_or(0);
        let rows = rows.next_tokens(&(0..lengths.len()).collect::<Vec<_>>());
        let layers = layers.into_iter().map(LayerCache::new).collect();
        let lengths = Tensor::from_slice(lengths).to_device(device);
        let column = Tensor::arange(columns, (Kind::Int64, device)).unsqueeze(0);
        let mask = column.lt_tensor(&lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1);
        Self {
            layers,
            rows,
            lengths,
            mask,
        }
    }

    /// Keeps the given rows, in the given order; a row may come several times (beam search). To adapters they remain the rows of the
    /// micro batch that they were.
    pub fn select(&mut self, rows: &[usize]) {
        self.rows = self.rows.next_tokens(rows);
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let rows = Tensor::from_slice(&rows).to_device(self.lengths.device());
        for layer in &mut self.layers {
            layer.select(&rows);
        }
        self.lengths = self.lengths.index_select(0, &rows);
        self.mask = self.mask.index_select(0, &rows);
    }

    /// `[batch]`: the position of each row's next token.
    pub(super) fn next_positions(&self) -> &Tensor {
        &self.lengths
    }

    /// Makes room for one token in each row, and returns the mask that includes it.
    pub(super) fn grow_mask(&mut self) -> Tensor {
        let column = self.mask.narrow(3, 0, 1).ones_like();
        self.mask = Tensor::cat(&[&self.mask, &column], 3);
        self.lengths += 1;
        self.mask.shallow_clone()
    }

    /// The rows, one token of each, and what was read of them in every layer.
    pub(super) fn parts(&mut self) -> (&Packing, &mut [LayerCache]) {
        (&self.rows, &mut self.layers)
    }
}
