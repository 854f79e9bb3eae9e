//! Zipper-LoRA: low-rank adapters whose B matrices are shared between languages column by column (DESIGN 2).
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
//! updated: a bank whose language is not merged just gets no gradient.
//!
//! Reading order: this file, `sharing` (the formulas), `merged` (forward and backward), `dropout`.

mod dropout;
mod error;
mod merged;
mod sharing;

use std::collections::BTreeMap;

use tch::{Device, Tensor};
use zipper_config::schema::{AdapterConfig, BankInit, RouterConfig, RouterGranularity};
use zipper_types::Variant;

pub use error::AdapterError;
pub use merged::{AdaptedRows, LoraPair, MergedAdapters};
use merged::{Matrices, MergedSite};

use crate::init;
use crate::linear::LoraSite;
use crate::param::{Param, ParamRole, ParamScope};

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
            shared_rank: config.shared_rank.unwrap_or(config.rank / 2),
            init: config.init,
            router: config.router.clone(),
            num_languages,
        }
    }

    /// `s = alpha / r`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    fn check(&self) -> Result<(), AdapterError> {
        if self.num_languages == 0 {
            return Err(AdapterError::NoLanguages);
        }
        let in_range = |key, value: String, good: bool, expected: &str| {
            if good {
                Ok(())
            } else {
                Err(AdapterError::OutOfRange {
                    key,
                    value,
                    expected: expected.to_owned(),
                })
            }
        };
        in_range("rank", self.rank.to_string(), self.rank > 0, "at least 1")?;
        let alpha_good = self.alpha.is_finite() && self.alpha > 0.0;
        in_range("alpha", self.alpha.to_string(), alpha_good, "a number above 0")?;
        let dropout_good = (0.0..1.0).contains(&self.dropout);
        in_range(
            "dropout",
            self.dropout.to_string(),
            dropout_good,
            "at least 0 and below 1",
        )?;
        if self.variant == Variant::Static {
            let expected = format!("at least 1 and below `adapter.rank` ({})", self.rank);
            let good = (1..self.rank).contains(&self.shared_rank);
            in_range("shared_rank", self.shared_rank.to_string(), good, &expected)?;
        }
        if self.variant.has_router() {
            let lid_dim = self.router.lid_dim;
            in_range("router.lid_dim", lid_dim.to_string(), lid_dim > 0, "at least 1")?;
        }
        Ok(())
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

/// The trainable adapters of every adapted layer.
///
/// The tensors below are handles to those in `params`: same storage, same gradient.
#[derive(Debug)]
pub struct Adapters {
    spec: AdapterSpec,
    device: Device,
    params: Vec<Param>,
    sites: Vec<SiteAdapter>,
    router: Option<Router>,
}

#[derive(Debug)]
struct SiteAdapter {
    site: LoraSite,
    /// One A for all languages, or one each.
    a: Vec<Tensor>,
    b_shared: Option<Tensor>,
    /// One `B_l` for each language, or none.
    banks: Vec<Tensor>,
    /// Index of its router.
    unit: usize,
}

#[derive(Debug)]
struct Router {
    lid: Tensor,
    units: Vec<RouterUnit>,
    names: Vec<String>,
}

#[derive(Debug)]
struct RouterUnit {
    weight: Tensor,
    bias: Tensor,
}

impl Adapters {
    /// Makes fresh adapters: every A uniform as in PEFT (Kaiming with a = sqrt 5, which is within `1 / sqrt(d_in)`), every
    /// B zero, so that the model starts unchanged.
    ///
    /// LID embeddings are standard normal and router weights uniform within `1 / sqrt(lid_dim)` with zero biases, as
    /// PyTorch's `Embedding` and `Linear` start: the gates begin around 0.5 and differ a little between languages and
    /// columns. Every value depends only on `seed` and the parameter's name and language.
    ///
    /// # Errors
    /// [`AdapterError`] if a setting is out of range, a layer cannot have the rank, or there are no languages.
    ///
    /// # Panics
    /// If two sites have the same name.
    pub fn new(
        spec: AdapterSpec,
        sites: &[LoraSite],
        seed: u64,
        device: Device,
    ) -> Result<Self, AdapterError> {
        spec.check()?;
        let mut builder = Builder {
            spec: &spec,
            seed,
            device,
            params: Vec::new(),
        };
        let mut adapters = Vec::with_capacity(sites.len());
        for site in sites {
            spec.check_site(site)?;
            adapters.push(builder.shared_of(site));
        }
        let router = builder.router(&mut adapters);
        for language in 0..spec.num_languages {
            for adapter in &mut adapters {
                builder.add_bank(adapter, language);
            }
        }
        let params = builder.params;
        let mut names: Vec<_> = params.iter().map(|param| (param.scope, &param.name)).collect();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]),
            "two adapted layers have the same name"
        );
        Ok(Self {
            spec,
            device,
            params,
            sites: adapters,
            router,
        })
    }

    /// What they look like.
    pub fn spec(&self) -> &AdapterSpec {
        &self.spec
    }

    /// All parameters: the shared ones, then the banks language by language. The order depends only on spec and sites.
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
                for a in &target.a {
                    a.shallow_clone().copy_(&source.a[0]);
                }
                if let Some(shared) = &target.b_shared {
                    shared.shallow_clone().copy_(&b.narrow(1, 0, shared.size()[1]));
                }
                for bank in &target.banks {
                    // A bank holds the last columns of B: all of them, except with `static`.
                    let columns = bank.size()[1];
                    let start = b.narrow(1, self.spec.rank as i64 - columns, columns);
                    match self.spec.init {
                        BankInit::Stage1 => bank.shallow_clone().copy_(&start),
                        BankInit::Zero => {
                            let _ = bank.shallow_clone().zero_();
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
        let gates = tch::no_grad(|| router.gates(&router.lid));
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
    /// If a language is not below the number of languages.
    pub fn merge(&self, languages: &[usize]) -> MergedAdapters {
        let mut languages = languages.to_vec();
        languages.sort_unstable();
        languages.dedup();
        if let Some(&last) = languages.last() {
            assert!(last < self.spec.num_languages, "there is no language {last}");
        }
        let gates = self.gates_of(&languages);
        let sites = self
            .sites
            .iter()
            .map(|adapter| adapter.merge(self.spec.variant, &languages, gates.get(adapter.unit)))
            .collect();
        let (scale, dropout, device) = (self.spec.scale(), self.spec.dropout, self.device);
        MergedAdapters {
            languages,
            sites,
            scale,
            dropout,
            device,
        }
    }

    /// What each router says about `languages`, `[P, r]` each: 0 or 1 for `hard`. Empty without a router.
    fn gates_of(&self, languages: &[usize]) -> Vec<Tensor> {
        let Some(router) = &self.router else {
            return Vec::new();
        };
        let languages: Vec<i64> = languages.iter().map(|&language| language as i64).collect();
        let lid = router
            .lid
            .index_select(0, &Tensor::from_slice(&languages).to_device(self.device));
        let gates = router.gates(&lid);
        match self.spec.variant {
            Variant::Hard => gates.iter().map(sharing::straight_through).collect(),
            _ => gates,
        }
    }
}

impl Router {
    fn gates(&self, lid: &Tensor) -> Vec<Tensor> {
        self.units
            .iter()
            .map(|unit| sharing::gates(lid, &unit.weight, &unit.bias))
            .collect()
    }
}

impl SiteAdapter {
    fn merge(&self, variant: Variant, languages: &[usize], gates: Option<&Tensor>) -> MergedSite {
        let of_languages = |all: &[Tensor]| -> Vec<Tensor> {
            languages
                .iter()
                .map(|&language| all[language].shallow_clone())
                .collect()
        };
        let key = dropout::site_key(&self.site.name);
        let Some(shared) = &self.b_shared else {
            let (a, b) = (of_languages(&self.a), of_languages(&self.banks));
            return MergedSite {
                key,
                a: Matrices::BySlot(a),
                b: Matrices::BySlot(b),
                graph: None,
            };
        };
        let a = Matrices::Common(self.a[0].shallow_clone());
        if variant == Variant::Shared {
            return MergedSite {
                key,
                a,
                b: Matrices::Common(shared.shallow_clone()),
                graph: None,
            };
        }
        if languages.is_empty() {
            return MergedSite {
                key,
                a,
                b: Matrices::BySlot(Vec::new()),
                graph: None,
            };
        }
        let banks = Tensor::stack(&of_languages(&self.banks), 0);
        let merged = match gates {
            Some(gates) => sharing::mix(shared, &banks, gates),
            None => sharing::join_columns(shared, &banks),
        };
        let leaves = merged.detach().unbind(0);
        let leaves = leaves
            .iter()
            .map(|leaf| leaf.set_requires_grad(merged.requires_grad()))
            .collect();
        MergedSite {
            key,
            a,
            b: Matrices::BySlot(leaves),
            graph: Some(merged),
        }
    }
}

/// Makes the parameters of [`Adapters`], in their order.
struct Builder<'a> {
    spec: &'a AdapterSpec,
    seed: u64,
    device: Device,
    params: Vec<Param>,
}

impl Builder<'_> {
    /// Adds a parameter and returns a handle to it.
    fn add(&mut self, name: String, scope: ParamScope, role: ParamRole, value: &Tensor) -> Tensor {
        let param = Param::new(name, scope, role, &value.to_device(self.device));
        let handle = param.tensor.shallow_clone();
        self.params.push(param);
        handle
    }

    fn add_a(&mut self, site: &LoraSite, scope: ParamScope) -> Tensor {
        let name = format!("lora.{}.A", site.name);
        let seed_name = match scope {
            ParamScope::Shared => name.clone(),
            ParamScope::Bank(language) => format!("{name}/{language}"),
        };
        let bound = 1.0 / (site.d_in as f64).sqrt();
        let value = init::uniform(self.seed, &seed_name, &[self.spec.rank as i64, site.d_in], bound);
        self.add(name, scope, ParamRole::Lora, &value)
    }

    fn add_zero_b(&mut self, site: &LoraSite, scope: ParamScope, columns: usize) -> Tensor {
        let suffix = if scope == ParamScope::Shared {
            "B_shared"
        } else {
            "B"
        };
        let value = Tensor::zeros([site.d_out, columns as i64], (tch::Kind::Float, Device::Cpu));
        self.add(
            format!("lora.{}.{suffix}", site.name),
            scope,
            ParamRole::Lora,
            &value,
        )
    }

    /// The part of one layer's adapter that all languages share.
    fn shared_of(&mut self, site: &LoraSite) -> SiteAdapter {
        let columns = match self.spec.variant {
            Variant::Independent => None,
            Variant::Static => Some(self.spec.shared_rank),
            Variant::Shared | Variant::Hard | Variant::Soft => Some(self.spec.rank),
        };
        let a = if columns.is_some() {
            vec![self.add_a(site, ParamScope::Shared)]
        } else {
            Vec::new()
        };
        let b_shared = columns.map(|columns| self.add_zero_b(site, ParamScope::Shared, columns));
        SiteAdapter {
            site: site.clone(),
            a,
            b_shared,
            banks: Vec::new(),
            unit: 0,
        }
    }

    /// What belongs to one language in one layer's adapter.
    fn add_bank(&mut self, adapter: &mut SiteAdapter, language: usize) {
        let scope = ParamScope::Bank(language);
        let columns = match self.spec.variant {
            Variant::Shared => return,
            Variant::Static => self.spec.rank - self.spec.shared_rank,
            Variant::Independent | Variant::Hard | Variant::Soft => self.spec.rank,
        };
        if self.spec.variant == Variant::Independent {
            adapter.a.push(self.add_a(&adapter.site, scope));
        }
        adapter.banks.push(self.add_zero_b(&adapter.site, scope, columns));
    }

    /// LID embeddings and routers, where the variant has them; tells each layer which router is its own.
    fn router(&mut self, adapters: &mut [SiteAdapter]) -> Option<Router> {
        if !self.spec.variant.has_router() {
            return None;
        }
        let (rank, lid_dim) = (self.spec.rank as i64, self.spec.router.lid_dim as i64);
        let lid = init::normal(
            self.seed,
            "lid.weight",
            &[self.spec.num_languages as i64, lid_dim],
            1.0,
        );
        let lid = self.add(
            "lid.weight".to_owned(),
            ParamScope::Shared,
            ParamRole::Router,
            &lid,
        );
        let mut indices = BTreeMap::new();
        let mut router = Router {
            lid,
            units: Vec::new(),
            names: Vec::new(),
        };
        for adapter in adapters {
            let unit = unit_name(&adapter.site, self.spec.router.granularity);
            adapter.unit = *indices.entry(unit.clone()).or_insert_with(|| {
                router.units.push(self.router_unit(&unit, rank, lid_dim));
                router.names.push(unit);
                router.units.len() - 1
            });
        }
        Some(router)
    }

    fn router_unit(&mut self, unit: &str, rank: i64, lid_dim: i64) -> RouterUnit {
        let name = format!("router.{unit}.weight");
        let weight = init::uniform(self.seed, &name, &[rank, lid_dim], 1.0 / (lid_dim as f64).sqrt());
        let weight = self.add(name, ParamScope::Shared, ParamRole::Router, &weight);
        let bias = Tensor::zeros([rank], (tch::Kind::Float, Device::Cpu));
        let bias = self.add(
            format!("router.{unit}.bias"),
            ParamScope::Shared,
            ParamRole::Router,
            &bias,
        );
        RouterUnit { weight, bias }
    }
}

/// The part of the model whose router decides for `site`.
fn unit_name(site: &LoraSite, granularity: RouterGranularity) -> String {
    match granularity {
        RouterGranularity::Linear => site.name.clone(),
        RouterGranularity::Layer => layer_path(site),
        RouterGranularity::Model => "model".to_owned(),
    }
}

/// The path of the transformer layer that `site` is in: `model.layers.3` of `model.layers.3.self_attn.q_proj`. The path
/// and not the index, because encoder and LLM both have a layer 3.
fn layer_path(site: &LoraSite) -> String {
    let index = site.layer.to_string();
    let parts: Vec<&str> = site.name.split('.').collect();
    match parts.iter().position(|part| *part == index) {
        Some(at) => parts[..=at].join("."),
        None => format!("layers.{index}"),
    }
}
