//! Rows of different lengths, one behind the other: no padding is ever multiplied.

use tch::{Device, Tensor};

/// Which tokens of a packed activation `[tokens, ..]` belong to which row: row after row, each as long as it is.
#[derive(Debug)]
pub struct Packing {
    lengths: Vec<i64>,
    /// `[tokens]`, i64.
    row_of_token: Tensor,
    /// `[tokens]`, i64.
    positions: Tensor,
}

impl Packing {
    /// Rows of `lengths` tokens each.
    pub fn new(lengths: Vec<i64>, device: Device) -> Self {
        let rows = (0i64..).zip(&lengths);
        let row_of_token: Vec<i64> = rows
            .flat_map(|(row, &length)| std::iter::repeat_n(row, length as usize))
            .collect();
        let positions: Vec<i64> = lengths.iter().flat_map(|&length| 0..length).collect();
        Self {
            row_of_token: Tensor::from_slice(&row_of_token).to_device(device),
            positions: Tensor::from_slice(&positions).to_device(device),
            lengths,
        }
    }

    /// `rows` rows of `length` tokens each.
    pub fn uniform(rows: i64, length: i64, device: Device) -> Self {
        Self::new(vec![length; rows as usize], device)
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.lengths.len()
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

    /// The rows of `packed` side by side, each followed by copies of its last token up to the longest.
    ///
    /// # Shapes
    /// - `packed`: `[tokens, ..]`
    /// - returns: `[rows, longest, ..]`
    ///
    /// # Panics
    /// If a row is empty.
    pub(crate) fn pad(&self, packed: &Tensor) -> Tensor {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let mut first = 0;
        let mut tokens = Vec::with_capacity(self.lengths.len() * longest as usize);
        for &length in &self.lengths {
            assert!(length > 0, "a row has tokens");
            tokens.extend((0..longest).map(|position| first + position.min(length - 1)));
            first += length;
        }
        let tokens = Tensor::from_slice(&tokens).to_device(packed.device());
        let shape = [&[self.lengths.len() as i64, longest], &packed.size()[1..]].concat();
        packed.index_select(0, &tokens).view(&shape[..])
    }

    /// What [`Packing::pad`] made of `padded`, without the padding.
    pub(crate) fn unpad(&self, padded: &Tensor) -> Tensor {
        let longest = padded.size()[1];
        let (rows, positions) = (&self.row_of_token, &self.positions);
        padded
            .flatten(0, 1)
            .index_select(0, &(rows * longest + positions))
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
        let packed = Tensor::from_slice(&[0i64, 1, 10, 20, 21, 22]).view([6, 1]);
        let padded = packing.pad(&packed);
        assert_eq!(
            Vec::<Vec<i64>>::try_from(padded.squeeze_dim(2)).unwrap(),
            [[0, 1, 1], [10, 10, 10], [20, 21, 22]]
        );
        assert_eq!(packing.unpad(&padded), packed);
        let rows = packing.split(&packed);
        assert_eq!(
            rows.iter().map(|row| row.size()[0]).collect::<Vec<_>>(),
            [2, 1, 3]
        );
    }
}
