//! Adapters merged for one step: what the forward pass multiplies by, and how its gradients get back.

use tch::{Device, Tensor};
use zipper_aten::fused::{self, DropoutHashes, LowRank};

use super::dropout::{self, Dropped};
use super::{Adapters, LastPass};
use crate::linear::{Linear, LinearDelta, SiteId, is_few_rows};
use crate::packing::Packing;

/// The pair (A, B(l)) that a language comes down to at one adapted layer: an ordinary LoRA adapter.
#[derive(Debug)]
pub struct LoraPair {
    /// `[r, d_in]`, detached.
    pub a: Tensor,
    /// `[d_out, r]`, detached, without the scale `alpha / r`.
    pub b: Tensor,
}

/// A and B(l) of every adapted layer for the languages of one step, made by [`super::Adapters::merge`].
///
/// B(l) is constant during the step, so it is computed once and not for each micro batch: the forward passes use
/// detached copies, in which gradients add up, and the step's [`LastPass`] takes them through the merging once.
#[derive(Debug)]
pub struct MergedAdapters {
    /// Sorted, without duplicates; a language's place in it is its slot.
    pub(super) languages: Vec<usize>,
    pub(super) sites: Vec<MergedSite>,
    pub(super) scale: f64,
    pub(super) dropout: f64,
    pub(super) device: Device,
}

#[derive(Debug)]
pub(super) struct MergedSite {
    /// What tells its dropout masks from those of other layers.
    pub(super) key: u64,
    pub(super) a: Matrices,
    /// Leaves of their own where B(l) is put together, else parameters.
    pub(super) b: Matrices,
    /// Whether B(l) is put together.
    pub(super) merges: bool,
}

/// One matrix for all languages, or one for each slot.
#[derive(Debug)]
pub(super) enum Matrices {
    Common(Tensor),
    BySlot(Vec<Tensor>),
}

/// The languages of a micro batch's rows, as slots.
#[derive(Debug)]
enum Slots {
    /// All rows have the same language.
    Same(usize),
    /// The slot of each row.
    Mixed(Vec<usize>),
}

impl Slots {
    fn of_row(&self, row: usize) -> usize {
        match self {
            Self::Same(slot) => *slot,
            Self::Mixed(slots) => slots[row],
        }
    }

    /// Neighbouring tokens with the same slot: the slot of each run, and its length.
    fn runs(&self, rows: &Packing) -> (Vec<usize>, Vec<i64>) {
        let (mut of_runs, mut lengths) = (Vec::new(), Vec::new());
        for (&row, &length) in rows.numbers().iter().zip(rows.lengths()) {
            let slot = self.of_row(row);
            match lengths.last_mut() {
                Some(last) if of_runs.last() == Some(&slot) => *last += length,
                _ => {
                    of_runs.push(slot);
                    lengths.push(length);
                }
            }
        }
        (of_runs, lengths)
    }
}

/// What is multiplied by the matrices of its rows: `[tokens, n]`.
pub(super) trait Activation: Sized {
    /// `x M^T`, `[tokens, m]`, of a matrix `[m, n]`.
    fn product(&self, matrix: &Tensor) -> Tensor;

    /// Neighbouring tokens, as many as `lengths` says.
    fn split(&self, lengths: &[i64]) -> Vec<Self>;
}

impl Activation for Tensor {
    fn product(&self, matrix: &Tensor) -> Tensor {
        self.linear(matrix, None::<Tensor>)
    }

    fn split(&self, lengths: &[i64]) -> Vec<Self> {
        self.split_with_sizes(lengths, 0)
    }
}

impl Matrices {
    /// Copies without history in which gradients add up.
    pub(super) fn leaves(self) -> Self {
        let leaf = |matrix: &Tensor| matrix.detach().set_requires_grad(matrix.requires_grad());
        match self {
            Self::Common(matrix) => Self::Common(leaf(&matrix)),
            Self::BySlot(matrices) => Self::BySlot(matrices.iter().map(leaf).collect()),
        }
    }

    fn of_slot(&self, slot: usize) -> &Tensor {
        match self {
            Self::Common(matrix) => matrix,
            Self::BySlot(matrices) => &matrices[slot],
        }
    }

    /// The matrix of all rows, if it is the same.
    fn of_all(&self, slots: &Slots) -> Option<&Tensor> {
        match (self, slots) {
            (Self::Common(matrix), _) => Some(matrix),
            (Self::BySlot(matrices), Slots::Same(slot)) => Some(&matrices[*slot]),
            (Self::BySlot(_), Slots::Mixed(_)) => None,
        }
    }

    /// `M x` with the M of each token's row: one multiplication for every run of rows of one language.
    ///
    /// # Shapes
    /// - `input`: `[tokens, n]`
    /// - returns: `[tokens, m]` for matrices `[m, n]`
    fn multiply(&self, input: &impl Activation, slots: &Slots, rows: &Packing) -> Tensor {
        if let Some(matrix) = self.of_all(slots) {
            return input.product(matrix);
        }
        // Languages that do not occur must not get a gradient, not even a zero: it may be summed already.
        let (slots, lengths) = slots.runs(rows);
        let parts = input.split(&lengths);
        let products = parts.iter().zip(slots);
        let products = products.map(|(part, slot)| part.product(self.of_slot(slot)));
        Tensor::cat(&products.collect::<Vec<_>>(), 0)
    }
}

impl MergedAdapters {
    /// The adapters as the rows of one micro batch see them.
    ///
    /// `languages` holds each row's language. `dropout_seeds` holds one seed for each row, a hash of run seed, step and
    /// utterance; without it, or where the configured dropout is 0, nothing is dropped. Masks are counted from the
    /// row's first position. Rows of one language are best side by side: each such run is one multiplication.
    ///
    /// # Panics
    /// If a language was not merged, or if there is not one seed for each row.
    pub fn rows(&self, languages: &[usize], dropout_seeds: Option<&[u64]>) -> AdaptedRows<'_> {
        self.rows_of(languages, dropout_seeds, None)
    }

    pub(super) fn rows_of<'a>(
        &'a self,
        languages: &[usize],
        dropout_seeds: Option<&[u64]>,
        last_pass: Option<&'a LastPass<'a>>,
    ) -> AdaptedRows<'a> {
        let slots: Vec<usize> = languages.iter().map(|&language| self.slot(language)).collect();
        let same = slots.windows(2).all(|pair| pair[0] == pair[1]);
        let slots = match slots.first() {
            Some(&slot) if same => Slots::Same(slot),
            _ => Slots::Mixed(slots),
        };
        let seeds = dropout_seeds.filter(|_| self.dropout > 0.0).map(|seeds| {
            assert_eq!(seeds.len(), languages.len(), "one dropout seed for each row");
            dropout::seed_tensor(seeds, self.device)
        });
        AdaptedRows {
            merged: self,
            num_rows: languages.len(),
            slots,
            seeds,
            last_pass,
        }
    }

    /// The step's last micro batch; `adapters` are those that these were merged from.
    pub fn last_pass<'a>(&'a self, adapters: &'a Adapters) -> LastPass<'a> {
        LastPass::new(adapters, self)
    }

    /// The pair (A, B(l)) of one layer and language.
    ///
    /// # Panics
    /// If the language was not merged or the site does not exist.
    pub fn pair(&self, site: SiteId, language: usize) -> LoraPair {
        let slot = self.slot(language);
        let site = &self.sites[site];
        LoraPair {
            a: site.a.of_slot(slot).detach(),
            b: site.b.of_slot(slot).detach(),
        }
    }

    fn slot(&self, language: usize) -> usize {
        self.languages.binary_search(&language).unwrap_or_else(|_| {
            panic!(
                "language {language} was not merged for this step; merged are {:?}",
                self.languages
            )
        })
    }
}

/// The adapters of one micro batch.
#[derive(Debug)]
pub struct AdaptedRows<'a> {
    merged: &'a MergedAdapters,
    num_rows: usize,
    slots: Slots,
    /// `[rows]`; nothing where nothing is dropped.
    seeds: Option<Tensor>,
    /// Where B(l) comes from in the step's last micro batch.
    last_pass: Option<&'a LastPass<'a>>,
}

impl AdaptedRows<'_> {
    /// `s * A x`, `[tokens, r]`, in the element type of the adapters.
    fn low_rank(&self, site: &MergedSite, input: &Tensor, rows: &Packing) -> Tensor {
        let x = input.to_kind(site.a.of_slot(0).kind());
        let scale = self.scale();
        match self.dropout(site, input, rows) {
            None => site.a.multiply(&x, &self.slots, rows) * scale,
            Some(hashes) => site.a.multiply(&Dropped { x, hashes }, &self.slots, rows) * scale,
        }
    }

    /// What is dropped of the input of a layer; nothing where nothing is.
    fn dropout(&self, site: &MergedSite, input: &Tensor, rows: &Packing) -> Option<DropoutHashes> {
        assert_eq!(
            rows.batch(),
            self.num_rows,
            "the micro batch has as many rows as languages were given"
        );
        let seeds = self.seeds.as_ref()?;
        assert_eq!(
            rows.numbers().len(),
            self.num_rows,
            "dropout is for whole micro batches"
        );
        let features = input.size()[1];
        Some(dropout::hashes(
            seeds,
            site.key,
            rows,
            features,
            self.merged.dropout,
        ))
    }

    /// What low-rank products are multiplied by: s, and the factor of what is not dropped.
    fn scale(&self) -> f64 {
        let MergedAdapters { scale, dropout, .. } = self.merged;
        match self.seeds {
            None => *scale,
            Some(_) => scale / (1.0 - dropout),
        }
    }

    /// What `used` makes of a layer's B(l).
    fn with_b<T>(&self, site: SiteId, used: impl FnOnce(&Matrices) -> T) -> T {
        let merged = &self.merged.sites[site];
        match self.last_pass.filter(|_| merged.merges) {
            Some(last_pass) => used(&last_pass.b(site)),
            None => used(&merged.b),
        }
    }
}

impl LinearDelta for AdaptedRows<'_> {
    fn delta(&self, site: SiteId, input: &Tensor, rows: &Packing) -> Tensor {
        let low_rank = self.low_rank(&self.merged.sites[site], input, rows);
        self.with_b(site, |b| b.multiply(&low_rank, &self.slots, rows))
            .to_kind(input.kind())
    }

    /// In one operation with the frozen layer, where that can be done.
    fn adapted(&self, layer: &Linear, site: SiteId, input: &Tensor, rows: &Packing) -> Tensor {
        let merged = &self.merged.sites[site];
        self.with_b(site, |b| {
            let one_pair = merged.a.of_all(&self.slots).zip(b.of_all(&self.slots));
            let is_fused = |(a, b): &(&Tensor, &Tensor)| {
                let all = [input, &layer.weight, a, b];
                all.iter().all(|x| fused::takes(x) && x.kind() == input.kind()) && !is_few_rows(input)
            };
            let Some((a, b)) = one_pair.filter(is_fused) else {
                return layer.frozen(input).g_add_(&self.delta(site, input, rows));
            };
            let dropout = self.dropout(merged, input, rows);
            let lora = LowRank {
                a,
                b,
                scale: self.scale(),
                dropout: dropout.as_ref(),
            };
            fused::adapted_linear(input, &layer.weight, layer.bias.as_ref(), &lora)
        })
    }
}
