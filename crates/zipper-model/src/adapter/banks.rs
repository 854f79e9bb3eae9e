//! Banks that are lent: a rank that decodes a language whose bank it does not own gets a copy of the weights for a while.

use tch::Tensor;

use super::{Adapters, Bank};

impl Adapters {
    /// Whether the bank of `language` is here, its own or lent; always where there are no banks.
    pub fn has_bank(&self, language: usize) -> bool {
        self.columns_of_bank() == 0 || self.sites.iter().all(|site| site.banks.contains_key(&language))
    }

    /// All weights of a bank in one row, to be sent.
    ///
    /// # Shapes
    /// - returns: `[bank_len]`, detached
    ///
    /// # Panics
    /// If the bank is not here.
    pub fn bank_weights(&self, language: usize) -> Tensor {
        let weights: Vec<Tensor> = self
            .sites
            .iter()
            .map(|site| site.bank(language))
            .flat_map(|bank| bank.a.iter().chain([&bank.b]))
            .map(|tensor| tensor.detach().reshape([-1]))
            .collect();
        Tensor::cat(&weights, 0)
    }

    /// Elements of one bank; the same for every language.
    pub fn bank_len(&self) -> i64 {
        let (rank, columns) = (self.spec.rank as i64, self.columns_of_bank());
        self.sites
            .iter()
            .map(|site| {
                let a = if site.a.is_none() {
                    rank * site.site.d_in
                } else {
                    0
                };
                a + columns * site.site.d_out
            })
            .sum()
    }

    /// A place for [`Adapters::bank_weights`] that another rank sends.
    pub fn empty_bank(&self) -> Tensor {
        Tensor::zeros([self.bank_len()], (self.place.kind, self.place.device))
    }

    /// Takes a copy of another rank's bank in, until [`Adapters::return_banks`]. It is no parameter.
    ///
    /// # Panics
    /// If the bank is here already, or `weights` is not of [`Adapters::bank_len`].
    pub fn borrow_bank(&mut self, language: usize, weights: &Tensor) {
        assert_eq!(weights.size(), [self.bank_len()], "a whole bank in one row");
        let (rank, columns) = (self.spec.rank as i64, self.columns_of_bank());
        let mut offset = 0;
        let mut take = |shape: [i64; 2]| {
            let part = weights.narrow(0, offset, shape[0] * shape[1]).view(shape);
            offset += shape[0] * shape[1];
            part
        };
        for site in &mut self.sites {
            let a = site.a.is_none().then(|| take([rank, site.site.d_in]));
            let b = take([site.site.d_out, columns]);
            let before = site.banks.insert(language, Bank { a, b });
            assert!(
                before.is_none(),
                "the bank of language {language} is here already"
            );
        }
    }

    /// Lets go of every bank that was lent to this rank.
    pub fn return_banks(&mut self) {
        let own = &self.place.banks;
        for site in &mut self.sites {
            site.banks.retain(|language, _| own.contains(language));
        }
    }

    /// Columns of B that a bank holds; 0 where there are no banks.
    fn columns_of_bank(&self) -> i64 {
        self.spec.bank_columns() as i64
    }
}
