//! What has been learnt, for people: how much each language shares, and which languages are alike.

use tch::{Kind, Tensor};
use zipper_types::Variant;

use super::{Adapters, SiteAdapter};

/// The share of ranks that each language takes from what all share, by transformer layer.
#[derive(Debug, Clone, PartialEq)]
pub struct GateShares {
    /// Paths of the transformer layers, `model.layers.0`; `model` where one router decides for all.
    pub layers: Vec<String>,
    /// `[L]` rows of as many shares as there are layers, 0 to 1: the mean of the gates that are used, which are 0 or 1 with `hard`.
    pub by_language: Vec<Vec<f32>>,
}

impl Adapters {
    /// How much of each layer each language shares, detached; nothing for variants without a router.
    ///
    /// # Panics
    /// If libtorch fails to copy the gates to the CPU.
    pub fn gate_shares(&self) -> Option<GateShares> {
        let router = self.router.as_ref()?;
        let gates = self.gates()?;
        let gates = match self.spec.variant {
            Variant::Hard => gates.ge(0.5).to_kind(Kind::Float),
            _ => gates.to_kind(Kind::Float),
        };
        // [units, L]
        let of_units = gates.mean_dim(2, false, Kind::Float);
        let mut layers: Vec<String> = router.layers.clone();
        layers.dedup();
        let of_layers: Vec<Tensor> = layers
            .iter()
            .map(|layer| {
                let units = (0i64..).zip(&router.layers);
                let units: Vec<i64> = units
                    .filter(|(_, of)| *of == layer)
                    .map(|(unit, _)| unit)
                    .collect();
                let units = Tensor::from_slice(&units).to_device(of_units.device());
                of_units.index_select(0, &units).mean_dim(0, false, Kind::Float)
            })
            .collect();
        let by_language = Tensor::stack(&of_layers, 1);
        Some(GateShares {
            layers,
            by_language: Vec::<Vec<f32>>::try_from(by_language).expect("shares are a matrix of f32"),
        })
    }

    /// How alike languages are by what their own banks do to the model's weights: the cosine of `B_l A` (`B_l A_l` with `independent`),
    /// over all adapted layers, apart from the mean over the languages, which all of them start from. Nothing without banks, or while a
    /// language is exactly the mean.
    ///
    /// # Shapes
    /// - returns: `[L, L]`, f64
    ///
    /// # Panics
    /// If a bank is not here.
    pub fn bank_similarity(&self) -> Option<Tensor> {
        if self.spec.bank_columns() == 0 {
            return None;
        }
        let _no_grad = tch::no_grad_guard();
        let products: Vec<Tensor> = self.sites.iter().map(|site| self.products(site)).collect();
        let products = Tensor::stack(&products, 0).sum_dim_intlist(0i64, false, Kind::Double);
        // Inner products of differences from the mean, out of those of the matrices themselves.
        let rows = products.mean_dim(0, true, Kind::Double);
        let columns = products.mean_dim(1, true, Kind::Double);
        let centred = &products - rows - columns + products.mean(Kind::Double);
        let squares = centred.diagonal(0, 0, 1);
        let scale = products.diagonal(0, 0, 1).max();
        if squares.min().double_value(&[]) <= 1e-12 * scale.double_value(&[]) {
            return None;
        }
        let lengths = squares.sqrt();
        Some(centred / lengths.outer(&lengths))
    }

    /// `[L, L]`: inner products of the languages' `B_l A_l` at one layer, `<B_a A_a, B_b A_b> = sum((B_a' B_b) * (A_a A_b'))`, which
    /// never makes a matrix of the layer's size.
    fn products(&self, site: &SiteAdapter) -> Tensor {
        let languages = self.spec.num_languages as i64;
        let columns = self.spec.bank_columns() as i64;
        let side_by_side = |matrices: Vec<Tensor>| {
            let matrices = Tensor::cat(&matrices, 0).to_kind(Kind::Double);
            matrices
                .matmul(&matrices.transpose(0, 1))
                .view([languages, columns, languages, columns])
        };
        let banks = || (0..self.spec.num_languages).map(|language| site.bank(language));
        let of_b = side_by_side(banks().map(|bank| bank.b.transpose(0, 1)).collect());
        let of_a = match &site.a {
            // A bank holds the last columns of B: all of them, except with `static`.
            Some(a) => {
                let a = a
                    .narrow(0, self.spec.rank as i64 - columns, columns)
                    .to_kind(Kind::Double);
                a.matmul(&a.transpose(0, 1)).view([1, columns, 1, columns])
            }
            None => side_by_side(
                banks()
                    .map(|bank| {
                        bank.a
                            .as_ref()
                            .expect("an independent bank has an A")
                            .shallow_clone()
                    })
                    .collect(),
            ),
        };
        (of_b * of_a).sum_dim_intlist([1i64, 3].as_slice(), false, Kind::Double)
    }
}
