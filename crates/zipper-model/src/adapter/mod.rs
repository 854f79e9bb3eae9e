//! Zipper-LoRA: low-rank adapters whose B matrices are shared between languages column by column (docs/concepts.md).
//!
//! `y = W0 x + s * B(l) A x` with `s = alpha / r`: A is shared by all languages, B(l) is put together out of a shared
//! `B_shared` and the language's own `B_l` ("bank"). Names as in the paper (arXiv 2603.17558):
//!
//! | symbol | here | shape |
//! | --- | --- | --- |
//! | `A`, `A_l` | `lora.<site>.A` | `[r, d_in]` |
//! | `B_shared` | `lora.<site>.B_shared` | `[d_out, r]`; static: `[d_out, r_s]` |
//! | `B_l` | `lora.<site>.B` | `[d_out, r]`; static: `[d_out, r - r_s]` |
//! | `e_l` | row l of `lid.weight` | `[L, lid_dim]` |
//! | router | `router.<unit>.weight`, `router.<unit>.bias` | `[r, lid_dim]`, `[r]` |
//!
//! Owns the parameters, the merging once per step, the delta of each row and its dropout. Never decides when a bank is
//! updated, nor which banks are on this rank: it makes those it is told to.
//!
//! Reading order: this file, `build` (the parameters), `sharing` (the formulas), `merged` (forward passes), `last_pass`
//! (how gradients get back to the parameters), `banks` (banks that are lent between ranks), `dropout`, `insight` (what has been
//! learnt, for people).

mod banks;
mod build;
mod dropout;
mod error;
mod insight;
mod last_pass;
mod merged;
mod sharing;

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{AdapterConfig, BankInit, RouterConfig};
use zipper_types::Variant;

use build::Builder;
pub use error::AdapterError;
pub use insight::GateShares;
pub use last_pass::LastPass;
pub use merged::{AdaptedRows, LoraPair, MergedAdapters};
use merged::{Matrices, MergedSite};

use crate::linear::LoraSite;
use crate::param::Param;

/// What the adapters of one stage look like.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// How B is shared.
    pub variant: Variant,
    /// LoRA rank r.
    pub rank: usize,
    /// LoRA alpha.
    pub alpha: f64,
    /// Probability that an input feature of A is dropped in training.
    pub dropout: f64,
    /// Columns of B that are shared; only `static` looks at it.
    pub shared_rank: usize,
    /// What the banks start stage 2 from.
    pub init: BankInit,
    /// The router; only `hard` and `soft` look at it.
    pub router: RouterConfig,
    /// Number of languages L.
    pub num_languages: usize,
}

impl AdapterSpec {
    /// Stage 1: one LoRA for all languages, whatever the configured variant.
    pub fn for_align(config: &AdapterConfig, num_languages: usize) -> Self {
        Self {
            variant: Variant::Shared,
            ..Self::from_config(config, num_languages)
        }
    }

    /// Stage 2: the configured variant.
    pub fn from_config(config: &AdapterConfig, num_languages: usize) -> Self {
        Self {
            variant: config.variant,
            rank: config.rank,
            alpha: config.alpha,
            dropout: config.dropout,
            shared_rank: config.shared_columns(),
            init: config.init,
            router: config.router.clone(),
            num_languages,
        }
    }

    /// `s = alpha / r`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Columns of B that belong to each language: all, those that `static` does not share, or none.
    pub fn bank_columns(&self) -> usize {
        match self.variant {
            Variant::Shared => 0,
            Variant::Static => self.rank - self.shared_rank,
            Variant::Independent | Variant::Hard | Variant::Soft => self.rank,
        }
    }

    /// `zipper-config` refuses other values, by the names of their keys.
    fn assert_valid(&self) {
        assert!(self.num_languages > 0, "adapters need a language");
        assert!(self.rank > 0, "rank {}", self.rank);
        assert!(self.alpha > 0.0 && self.alpha.is_finite(), "alpha {}", self.alpha);
        assert!((0.0..1.0).contains(&self.dropout), "dropout {}", self.dropout);
        if self.variant == Variant::Static {
            let shared_rank = self.shared_rank;
            assert!(
                (1..self.rank).contains(&shared_rank),
                "{shared_rank} shared columns of {}",
                self.rank
            );
        }
        if self.variant.has_router() {
            let RouterConfig {
                lid_dim,
                initial_gate,
                ..
            } = self.router;
            assert!(lid_dim > 0, "LID embeddings of width {lid_dim}");
            assert!(
                initial_gate > 0.0 && initial_gate < 1.0,
                "gates begin at {initial_gate}"
            );
        }
    }

    fn check_site(&self, site: &LoraSite) -> Result<(), AdapterError> {
        if self.rank as i64 > site.d_in.min(site.d_out) {
            return Err(AdapterError::RankTooLarge {
                site: site.name.clone(),
                rank: self.rank,
                d_in: site.d_in,
                d_out: site.d_out,
            });
        }
        Ok(())
    }
}

/// Where adapters are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterPlace {
    /// The device of every tensor.
    pub device: Device,
    /// Element type of the parameters, see [`crate::param::trainable_kind`].
    pub kind: Kind,
    /// Ordinals of the languages whose banks are made here (docs/decisions/0003).
    pub banks: BTreeSet<usize>,
}

/// The trainable adapters of every adapted layer.
///
/// The tensors below are handles to those in `params`: same storage, same gradient.
#[derive(Debug)]
pub struct Adapters {
    spec: AdapterSpec,
    place: AdapterPlace,
    params: Vec<Param>,
    sites: Vec<SiteAdapter>,
    router: Option<Router>,
}

#[derive(Debug)]
struct SiteAdapter {
    site: LoraSite,
    /// The A of all languages; nothing with `independent`, whose banks have their own.
    a: Option<Tensor>,
    b_shared: Option<Tensor>,
    /// The banks that are here, by language: those of this rank, and those lent to it.
    banks: BTreeMap<usize, Bank>,
    /// Index of its router.
    unit: usize,
}

/// What belongs to one language in one adapted layer.
#[derive(Debug)]
struct Bank {
    a: Option<Tensor>,
    b: Tensor,
}

#[derive(Debug)]
struct Router {
    lid: Tensor,
    units: Vec<RouterUnit>,
    names: Vec<String>,
    /// The transformer layer that each unit belongs to; `model` where there is one for all.
    layers: Vec<String>,
}

#[derive(Debug)]
struct RouterUnit {
    weight: Tensor,
    bias: Tensor,
}

impl Adapters {
    /// Makes fresh adapters with all banks, in f32; see [`Adapters::sharded`].
    ///
    /// # Errors
    /// As [`Adapters::sharded`].
    pub fn new(
        spec: AdapterSpec,
        sites: &[LoraSite],
        seed: u64,
        device: Device,
    ) -> Result<Self, AdapterError> {
        let place = AdapterPlace {
            device,
            kind: Kind::Float,
            banks: (0..spec.num_languages).collect(),
        };
        Self::sharded(spec, sites, seed, place)
    }

    /// Makes fresh adapters, of the banks only those that `place` names: every A uniform as in PEFT (Kaiming with a = sqrt 5, which is
    /// within `1 / sqrt(d_in)`), every B zero, so that the model starts unchanged.
    ///
    /// LID embeddings are standard normal and router weights uniform within `1 / sqrt(lid_dim)`, as PyTorch's `Embedding` and `Linear`
    /// start, with biases whose sigmoid is `router.initial_gate`, 0 for 0.5: the gates begin around it and differ a little between
    /// languages and columns. Every value depends only on `seed` and the parameter's name and language.
    ///
    /// # Errors
    /// [`AdapterError`] if a layer cannot have the rank.
    ///
    /// # Panics
    /// If a setting is one that `zipper-config` refuses, there are no languages, two sites have the same name, or `place` names a language
    /// that there is not.
    pub fn sharded(
        spec: AdapterSpec,
        sites: &[LoraSite],
        seed: u64,
        place: AdapterPlace,
    ) -> Result<Self, AdapterError> {
        spec.assert_valid();
        let mut builder = Builder::new(&spec, seed, &place);
        let mut adapters = Vec::with_capacity(sites.len());
        for (index, site) in sites.iter().enumerate() {
            spec.check_site(site)?;
            adapters.push(builder.shared_of(index, site));
        }
        let router = builder.router(&mut adapters);
        for &language in &place.banks {
            assert!(language < spec.num_languages, "there is no language {language}");
            for (index, adapter) in adapters.iter_mut().enumerate() {
                builder.add_bank(index, adapter, language);
            }
        }
        let params = builder.finish();
        let mut names: Vec<_> = params.iter().map(|param| (param.scope, &param.name)).collect();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]),
            "two adapted layers have the same name"
        );
        Ok(Self {
            spec,
            place,
            params,
            sites: adapters,
            router,
        })
    }

    /// What they look like.
    pub fn spec(&self) -> &AdapterSpec {
        &self.spec
    }

    /// All parameters that are here: the shared ones, then the banks language by language. The order depends only on
    /// spec, sites and which banks there are.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Starts stage 2 from the adapters of stage 1: A and `B_shared` are copied, and so is B into every bank (Initial-B),
    /// or zeros with [`BankInit::Zero`]. `static` copies the matching columns, `independent` also every `A_l`.
    ///
    /// With Initial-B the model computes afterwards exactly what it did at the end of stage 1, whatever the gates.
    ///
    /// # Errors
    /// [`AdapterError::NotAStart`] if `align` is not a shared adapter of the same layers and rank.
    pub fn initial_b(&mut self, align: &Self) -> Result<(), AdapterError> {
        self.check_start(align)?;
        tch::no_grad(|| {
            for (target, source) in self.sites.iter().zip(&align.sites) {
                let b = source.b_shared.as_ref().expect("a shared adapter has a shared B");
                let align_a = source.a.as_ref().expect("a shared adapter has one A");
                for a in target
                    .a
                    .iter()
                    .chain(target.banks.values().filter_map(|bank| bank.a.as_ref()))
                {
                    a.shallow_clone().copy_(align_a);
                }
                if let Some(shared) = &target.b_shared {
                    shared.shallow_clone().copy_(&b.narrow(1, 0, shared.size()[1]));
                }
                for bank in target.banks.values() {
                    // A bank holds the last columns of B: all of them, except with `static`.
                    let columns = bank.b.size()[1];
                    let start = b.narrow(1, self.spec.rank as i64 - columns, columns);
                    match self.spec.init {
                        BankInit::Stage1 => bank.b.shallow_clone().copy_(&start),
                        BankInit::Zero => {
                            let _ = bank.b.shallow_clone().zero_();
                        }
                    }
                }
            }
        });
        Ok(())
    }

    fn check_start(&self, align: &Self) -> Result<(), AdapterError> {
        let not_a_start = |reason: String| Err(AdapterError::NotAStart { reason });
        if align.spec.variant != Variant::Shared {
            return not_a_start(format!("they are `{}`, not `shared`", align.spec.variant));
        }
        if align.spec.rank != self.spec.rank {
            let (found, expected) = (align.spec.rank, self.spec.rank);
            return not_a_start(format!("their rank is {found}, stage 2 has rank {expected}"));
        }
        let sites = |adapters: &Self| {
            adapters
                .sites
                .iter()
                .map(|it| it.site.clone())
                .collect::<Vec<_>>()
        };
        if sites(align) != sites(self) {
            return not_a_start("they adapt other layers".to_owned());
        }
        Ok(())
    }

    /// The gates `g_l[j]` of all languages, detached; nothing for variants without a router.
    ///
    /// # Shapes
    /// - returns: `[units, L, r]`, the units in the order of [`Adapters::router_units`]
    pub fn gates(&self) -> Option<Tensor> {
        let router = self.router.as_ref()?;
        let gates: Vec<Tensor> = tch::no_grad(|| {
            let of_unit = |unit: &RouterUnit| sharing::gates(&router.lid, &unit.weight, &unit.bias);
            router.units.iter().map(of_unit).collect()
        });
        Some(Tensor::stack(&gates, 0))
    }

    /// What each router decides for: adapted layers, transformer layers or the whole model. Empty without a router.
    pub fn router_units(&self) -> &[String] {
        self.router.as_ref().map_or(&[], |router| &router.names)
    }

    /// Computes B(l) of every adapted layer for `languages`, in any order, once for a whole step.
    ///
    /// Other languages cost nothing and their banks get no gradient. Under [`tch::no_grad`] nothing is recorded.
    ///
    /// # Panics
    /// If the bank of a language is not here.
    pub fn merge(&self, languages: &[usize]) -> MergedAdapters {
        let mut languages = languages.to_vec();
        languages.sort_unstable();
        languages.dedup();
        let gates = self.gates_of(&languages);
        let merge = |adapter: &SiteAdapter| {
            let (a, b) = self.matrices(adapter, &languages, gates.get(adapter.unit));
            MergedSite {
                key: dropout::site_key(&adapter.site.name),
                a,
                merges: b.is_graph,
                b: if b.is_graph {
                    b.matrices.leaves()
                } else {
                    b.matrices
                },
            }
        };
        MergedAdapters {
            sites: self.sites.iter().map(merge).collect(),
            languages,
            scale: self.spec.scale(),
            dropout: self.spec.dropout,
            device: self.place.device,
        }
    }

    /// Mixtures of the languages' adapters: for each row of `weights`, one number for each language, an adapter that does to the model
    /// what theirs do together, each by its weight: `sum_l w_l B(l) A`. [`MergedAdapters::rows`] then takes the number of a mixture in
    /// place of a language. Detached. Nothing with `independent`, whose languages have an A each, so that their sum has no rank r.
    ///
    /// # Panics
    /// If a row has not as many weights as there are languages, or a bank is not here.
    pub fn merge_mixtures(&self, weights: &[Vec<f64>]) -> Option<MergedAdapters> {
        if self.spec.variant == Variant::Independent {
            return None;
        }
        let every: Vec<usize> = (0..self.spec.num_languages).collect();
        let _no_grad = tch::no_grad_guard();
        let mut merged = self.merge(&every);
        for site in &mut merged.sites {
            let Matrices::BySlot(of_languages) = &site.b else {
                continue;
            };
            let of_languages = Tensor::stack(of_languages, 0);
            let mixtures = weights.iter().map(|weights| {
                assert_eq!(weights.len(), every.len(), "a weight for each language");
                let weights = Tensor::from_slice(weights).to_device(of_languages.device());
                let weights = weights.to_kind(of_languages.kind()).view([-1, 1, 1]);
                (&of_languages * weights).sum_dim_intlist(0i64, false, of_languages.kind())
            });
            site.b = Matrices::BySlot(mixtures.collect());
        }
        // With `shared` one B serves all of them, and with every weight.
        merged.languages = (0..weights.len()).collect();
        Some(merged)
    }

    /// A and B(l) of one layer for `languages`, still connected to the parameters.
    fn matrices(
        &self,
        adapter: &SiteAdapter,
        languages: &[usize],
        gates: Option<&Tensor>,
    ) -> (Matrices, ConnectedB) {
        let banks_of = |part: fn(&Bank) -> &Tensor| -> Vec<Tensor> {
            let bank = |language: &usize| adapter.bank(*language);
            languages
                .iter()
                .map(|language| part(bank(language)).shallow_clone())
                .collect()
        };
        let a = match &adapter.a {
            Some(a) => Matrices::Common(a.shallow_clone()),
            None => Matrices::BySlot(banks_of(|bank| {
                bank.a.as_ref().expect("an independent bank has an A")
            })),
        };
        let parameters = |matrices| ConnectedB {
            matrices,
            is_graph: false,
        };
        let b = match &adapter.b_shared {
            None => parameters(Matrices::BySlot(banks_of(|bank| &bank.b))),
            Some(shared) if self.spec.variant == Variant::Shared => {
                parameters(Matrices::Common(shared.shallow_clone()))
            }
            Some(_) if languages.is_empty() => parameters(Matrices::BySlot(Vec::new())),
            Some(shared) => {
                let banks = Tensor::stack(&banks_of(|bank| &bank.b), 0);
                let merged = match gates {
                    Some(gates) => sharing::mix(shared, &banks, gates),
                    None => sharing::join_columns(shared, &banks),
                };
                ConnectedB {
                    matrices: Matrices::BySlot(merged.unbind(0)),
                    is_graph: true,
                }
            }
        };
        (a, b)
    }

    /// What each router says about `languages`, `[P, r]` each: 0 or 1 for `hard`. Empty without a router.
    fn gates_of(&self, languages: &[usize]) -> Vec<Tensor> {
        let Some(router) = &self.router else {
            return Vec::new();
        };
        let lid = self.lid_of(router, languages);
        (0..router.units.len())
            .map(|unit| self.gates_of_unit(router, unit, &lid))
            .collect()
    }

    /// LID embeddings, `[P, lid_dim]`.
    fn lid_of(&self, router: &Router, languages: &[usize]) -> Tensor {
        let languages: Vec<i64> = languages.iter().map(|&language| language as i64).collect();
        router
            .lid
            .index_select(0, &Tensor::from_slice(&languages).to_device(self.place.device))
    }

    /// What one router says about the languages of `lid`, `[P, r]`.
    fn gates_of_unit(&self, router: &Router, unit: usize, lid: &Tensor) -> Tensor {
        let RouterUnit { weight, bias } = &router.units[unit];
        let gates = sharing::gates(lid, weight, bias);
        match self.spec.variant {
            Variant::Hard => sharing::straight_through(&gates),
            _ => gates,
        }
    }
}

/// B(l) of one layer: parameters themselves, or put together out of them.
struct ConnectedB {
    matrices: Matrices,
    is_graph: bool,
}

impl SiteAdapter {
    fn bank(&self, language: usize) -> &Bank {
        self.banks
            .get(&language)
            .unwrap_or_else(|| panic!("the bank of language {language} is not on this rank"))
    }
}
