//! The parameters of the adapters: their names, shapes and first values.

use std::collections::BTreeMap;

use tch::{Device, Tensor};
use zipper_config::schema::RouterGranularity;
use zipper_types::Variant;

use super::{AdapterPlace, AdapterSpec, Bank, Router, RouterUnit, SiteAdapter};
use crate::init;
use crate::linear::{LoraSite, SiteId};
use crate::param::{Param, ParamRole, ParamScope};

/// Makes the parameters of [`super::Adapters`], in their order.
pub(super) struct Builder<'a> {
    spec: &'a AdapterSpec,
    seed: u64,
    place: &'a AdapterPlace,
    params: Vec<Param>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(spec: &'a AdapterSpec, seed: u64, place: &'a AdapterPlace) -> Self {
        Self {
            spec,
            seed,
            place,
            params: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<Param> {
        self.params
    }

    /// Adds a parameter and returns a handle to it.
    fn add(
        &mut self,
        site: Option<SiteId>,
        name: String,
        scope: ParamScope,
        role: ParamRole,
        value: &Tensor,
    ) -> Tensor {
        let value = value.to_device(self.place.device).to_kind(self.place.kind);
        let mut param = Param::new(name, scope, role, &value);
        param.site = site;
        let handle = param.tensor.shallow_clone();
        self.params.push(param);
        handle
    }

    fn add_a(&mut self, index: SiteId, site: &LoraSite, scope: ParamScope) -> Tensor {
        let name = format!("lora.{}.A", site.name);
        let seed_name = match scope {
            ParamScope::Shared => name.clone(),
            ParamScope::Bank(language) => format!("{name}/{language}"),
        };
        let bound = 1.0 / (site.d_in as f64).sqrt();
        let value = init::uniform(self.seed, &seed_name, &[self.spec.rank as i64, site.d_in], bound);
        self.add(Some(index), name, scope, ParamRole::Lora, &value)
    }

    fn add_zero_b(&mut self, index: SiteId, site: &LoraSite, scope: ParamScope, columns: usize) -> Tensor {
        let suffix = if scope == ParamScope::Shared {
            "B_shared"
        } else {
            "B"
        };
        let value = Tensor::zeros([site.d_out, columns as i64], (tch::Kind::Float, Device::Cpu));
        self.add(
            Some(index),
            format!("lora.{}.{suffix}", site.name),
            scope,
            ParamRole::Lora,
            &value,
        )
    }

    /// The part of one layer's adapter that all languages share.
    pub(super) fn shared_of(&mut self, index: SiteId, site: &LoraSite) -> SiteAdapter {
        let columns = match self.spec.variant {
            Variant::Independent => None,
            Variant::Static => Some(self.spec.shared_rank),
            Variant::Shared | Variant::Hard | Variant::Soft => Some(self.spec.rank),
        };
        let a = columns.map(|_| self.add_a(index, site, ParamScope::Shared));
        let b_shared = columns.map(|columns| self.add_zero_b(index, site, ParamScope::Shared, columns));
        SiteAdapter {
            site: site.clone(),
            a,
            b_shared,
            banks: BTreeMap::new(),
            unit: 0,
        }
    }

    /// What belongs to one language in one layer's adapter.
    pub(super) fn add_bank(&mut self, index: SiteId, adapter: &mut SiteAdapter, language: usize) {
        let scope = ParamScope::Bank(language);
        let columns = self.spec.bank_columns();
        if columns == 0 {
            return;
        }
        let own_a = self.spec.variant == Variant::Independent;
        let a = own_a.then(|| self.add_a(index, &adapter.site, scope));
        let b = self.add_zero_b(index, &adapter.site, scope, columns);
        adapter.banks.insert(language, Bank { a, b });
    }

    /// LID embeddings and routers, where the variant has them; tells each layer which router is its own.
    pub(super) fn router(&mut self, adapters: &mut [SiteAdapter]) -> Option<Router> {
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
            None,
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
            layers: Vec::new(),
        };
        for (index, adapter) in adapters.iter_mut().enumerate() {
            let unit = unit_name(&adapter.site, self.spec.router.granularity);
            adapter.unit = *indices.entry(unit.clone()).or_insert_with(|| {
                router.units.push(self.router_unit(index, &unit, rank, lid_dim));
                router.layers.push(match self.spec.router.granularity {
                    RouterGranularity::Model => unit.clone(),
                    RouterGranularity::Linear | RouterGranularity::Layer => layer_path(&adapter.site),
                });
                router.names.push(unit);
                router.units.len() - 1
            });
        }
        Some(router)
    }

    fn router_unit(&mut self, first_site: SiteId, unit: &str, rank: i64, lid_dim: i64) -> RouterUnit {
        let site = Some(first_site);
        let name = format!("router.{unit}.weight");
        let weight = init::uniform(self.seed, &name, &[rank, lid_dim], 1.0 / (lid_dim as f64).sqrt());
        let weight = self.add(site, name, ParamScope::Shared, ParamRole::Router, &weight);
        let gate = self.spec.router.initial_gate;
        let logit = (gate / (1.0 - gate)).ln();
        let bias = Tensor::full([rank], logit, (tch::Kind::Float, Device::Cpu));
        let bias = self.add(
            site,
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
