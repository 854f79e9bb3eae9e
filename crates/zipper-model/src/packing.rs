//! Rows of different lengths, one behind the other: no padding is ever multiplied.

use std::cell::OnceCell;

use tch::{Device, Kind, Tensor};

/// Which tokens of a packed activation `[tokens, ..]` belong to which row: row after row, each as long as it is.
#[derive(Debug)]
pub struct Packing {
    lengths: Vec<i64>,
    /// Which row of its micro batch each of them is.
    numbers: Vec<usize>,
    /// How many rows the micro batch has: all of these, or more.
    batch: usize,
    /// `[tokens]`, i64.
    row_of_token: Tensor,
    /// `[tokens]`, i64.
    positions: Tensor,
    /// Made when it is asked for first: not every device needs it.
    padding: OnceCell<Padding>,
}

/// Where tokens are when rows lie side by side.
#[derive(Debug)]
struct Padding {
    /// `[rows * longest]`, i64: the token at each place, a row's last one in its padding.
    tokens: Tensor,
    /// `[tokens]`, i64: the place of each token.
    places: Tensor,
    /// `[rows, longest]`, bool: whether a token of the row itself is there.
    in_row: Tensor,
}

impl Packing {
    /// Rows of `lengths` tokens each.
    pub fn new(lengths: Vec<i64>, device: Device) -> Self {
        let batch = lengths.len();
        Self::of_batch(lengths, (0..batch).collect(), batch, device)
    }

    fn of_batch(lengths: Vec<i64>, numbers: Vec<usize>, batch: usize, device: Device) -> Self {
        let rows = (0i64..).zip(&lengths);
        let row_of_token: Vec<i64> = rows
            .flat_map(|(row, &length)| std::iter::repeat_n(row, length as usize))
            .collect();
        let positions: Vec<i64> = lengths.iter().flat_map(|&length| 0..length).collect();
        Self {
            row_of_token: Tensor::from_slice(&row_of_token).to_device(device),
            positions: Tensor::from_slice(&positions).to_device(device),
            padding: OnceCell::new(),
            lengths,
            numbers,
            batch,
        }
    }

    /// `rows` rows of `length` tokens each.
    pub fn uniform(rows: i64, length: i64, device: Device) -> Self {
        Self::new(vec![length; rows as usize], device)
    }

    /// One token for each of the given rows, which are still the same rows of the same micro batch.
    pub(crate) fn next_tokens(&self, rows: &[usize]) -> Self {
        let numbers = rows.iter().map(|&row| self.numbers[row]).collect();
        Self::of_batch(vec![1; rows.len()], numbers, self.batch, self.positions.device())
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Which row of its micro batch each row is.
    pub fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// Number of rows of the whole micro batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// `[tokens]`, i64: each token's place in its row, from 0.
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// `[tokens]`, i64.
    pub(crate) fn row_of_token(&self) -> &Tensor {
        &self.row_of_token
    }

    /// The length of all rows, if it is the same.
    pub(crate) fn common_length(&self) -> Option<i64> {
        let first = *self.lengths.first()?;
        self.lengths
            .iter()
            .all(|&length| length == first)
            .then_some(first)
    }

    /// The rows of `packed`, without a copy.
    pub(crate) fn split(&self, packed: &Tensor) -> Vec<Tensor> {
        packed.split_with_sizes(&self.lengths, 0)
    }

    /// Attention of every row to itself: side by side where rows are equally long or on a GPU, else one after the other.
    ///
    /// # Shapes
    /// - `qkv`: `[tokens, ..]` each
    /// - `within` takes rows side by side, `[batch, time, ..]`, and whether they are padded, and returns the same shape
    /// - returns: `[tokens, ..]`
    pub(crate) fn attend(&self, qkv: [&Tensor; 3], within: impl Fn([Tensor; 3], bool) -> Tensor) -> Tensor {
        if let Some(length) = self.common_length() {
            let rows = qkv.map(|x| x.unflatten(0, [-1, length]));
            return within(rows, false).flatten(0, 1);
        }
        if self.positions.device() == Device::Cpu {
            // Row by row there is no padding, and a call costs next to nothing.
            let [q, k, v] = qkv.map(|x| self.split(x));
            let rows = q.iter().zip(&k).zip(&v);
            let attended =
                rows.map(|((q, k), v)| within([q, k, v].map(|x| x.unsqueeze(0)), false).squeeze_dim(0));
            return Tensor::cat(&attended.collect::<Vec<_>>(), 0);
        }
        self.unpad(&within(qkv.map(|x| self.pad(x)), true))
    }

    /// The rows of `packed` side by side, each followed by copies of its last token up to the longest.
    ///
    /// # Shapes
    /// - `packed`: `[tokens, ..]`
    /// - returns: `[rows, longest, ..]`
    ///
    /// # Panics
    /// If a row is empty.
    pub(crate) fn pad(&self, packed: &Tensor) -> Tensor {
        let tokens = &self.padding().tokens;
        let shape = [&[self.lengths.len() as i64, -1], &packed.size()[1..]].concat();
        packed.index_select(0, tokens).view(&shape[..])
    }

    /// What [`Packing::pad`] made of `padded`, without the padding.
    pub(crate) fn unpad(&self, padded: &Tensor) -> Tensor {
        padded.flatten(0, 1).index_select(0, &self.padding().places)
    }

    /// `[rows, longest]`, true where [`Packing::pad`] puts a token of the row itself.
    pub(crate) fn in_row(&self) -> &Tensor {
        &self.padding().in_row
    }

    fn padding(&self) -> &Padding {
        self.padding.get_or_init(|| {
            let longest = self.lengths.iter().copied().max().unwrap_or(0);
            let (mut tokens, mut places) = (Vec::new(), Vec::new());
            for ((row, &length), end) in (0i64..).zip(&self.lengths).zip(self.ends()) {
                assert!(length > 0, "a row has tokens");
                tokens.extend((0..longest).map(|position| end - length + position.min(length - 1)));
                places.extend((0..length).map(|position| row * longest + position));
            }
            let device = self.positions.device();
            let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
            let lengths = tensor(&self.lengths).unsqueeze(1);
            Padding {
                tokens: tensor(&tokens),
                places: tensor(&places),
                in_row: Tensor::arange(longest, (Kind::Int64, device)).lt_tensor(&lengths),
            }
        })
    }

    /// The place behind each row's last token among all tokens.
    pub(crate) fn ends(&self) -> impl Iterator<Item = i64> {
        self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_and_packed_again() {
        let packing = Packing::new(vec![2, 1, 3], Device::Cpu);
        assert_eq!(packing.ends().collect::<Vec<_>>(), [2, 3, 6]);
        assert_eq!(packing.common_length(), None);
        assert_eq!(Packing::uniform(2, 3, Device::Cpu).common_length(), Some(3));
        let later = packing.next_tokens(&[2, 0]).next_tokens(&[1]);
        assert_eq!(
            (later.lengths(), later.numbers(), later.batch()),
            (&[1][..], &[0][..], 3)
        );
        let packed = Tensor::from_slice(&[0i64, 1, 10, 20, 21, 22]).view([6, 1]);
        let padded = packing.pad(&packed);
        assert_eq!(
            Vec::<Vec<i64>>::try_from(padded.squeeze_dim(2)).unwrap(),
            [[0, 1, 1], [10, 10, 10], [20, 21, 22]]
        );
        assert_eq!(packing.unpad(&padded), packed);
        assert_eq!(
            Vec::<Vec<bool>>::try_from(packing.in_row()).unwrap(),
            [[true, true, false], [true, false, false], [true, true, true]]
        );
        let rows = packing.split(&packed);
        assert_eq!(
            rows.iter().map(|row| row.size()[0]).collect::<Vec<_>>(),
            [2, 1, 3]
        );
    }
}
