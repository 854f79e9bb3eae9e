//! What training made, without the frozen models around it: for tools that take a run's result away or look into it.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};
use zipper_config::RunConfig;
use zipper_model::adapter::{AdapterPlace, Adapters, LoraPair, MergedAdapters};
use zipper_model::linear::LoraSite;
use zipper_model::param::ParamScope;
use zipper_types::{Stage, Step, Variant};

use crate::TrainError;
use crate::replica::spec;
use crate::state::{TrainState, from_safetensors, parameters_part, read_part, restore, scope_name};

/// What the names of the projector's parameters begin with.
pub(crate) const PROJECTOR: &str = "projector.";
/// What the names of the encoder's layers begin with, in Whisper's own files.
const ENCODER: &str = "model.encoder.";

/// Adapters and projector of a checkpoint, on the CPU.
pub struct Trained {
    /// Completed optimizer steps.
    pub step: Step,
    /// The stage that they belong to.
    pub stage: Stage,
    /// Parameters of the projector by their name in it, such as `linear1.weight`.
    pub projector: BTreeMap<String, Tensor>,
    /// The adapters with the banks of all languages.
    pub adapters: Adapters,
    sites: Vec<LoraSite>,
}

/// The model that an adapted layer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdaptedModel {
    /// The language model.
    Llm,
    /// The speech encoder.
    Encoder,
}

impl Trained {
    /// Reads a checkpoint of a run with this configuration, whose parts `read` returns by their names, in their order.
    ///
    /// # Errors
    /// What `read` returns, or [`TrainError::State`] if a part is not what this version writes.
    pub fn read<E: From<TrainError>>(
        config: &RunConfig,
        mut read: impl FnMut(&[String]) -> Result<Vec<Vec<u8>>, E>,
    ) -> Result<Self, E> {
        let state = TrainState::read(&mut read)?;
        let languages = &config.data.languages;
        let mut tensors_of = |scope| {
            let name = parameters_part(&scope_name(scope, languages));
            let bytes = read_part(&name, &mut read)?;
            Ok::<_, E>(from_safetensors(&name, &bytes)?)
        };
        let mut shared = tensors_of(ParamScope::Shared)?;
        let spec = spec(config, state.stage);
        // Where nothing is shared, every bank has all layers.
        let sites = if spec.variant == Variant::Independent {
            sites(&tensors_of(ParamScope::Bank(0))?, "B")
        } else {
            sites(&shared, "B_shared")
        };
        let double = shared.values().any(|tensor| tensor.kind() == Kind::Double);
        let place = AdapterPlace {
            device: Device::Cpu,
            kind: if double { Kind::Double } else { Kind::Float },
            banks: (0..languages.len()).collect::<BTreeSet<_>>(),
        };
        let adapters = Adapters::sharded(spec, &sites, config.seed, place).map_err(TrainError::from)?;
        let params: Vec<_> = adapters.params().iter().collect();
        restore(&params, languages, &mut read)?;
        shared.retain(|name, _| name.starts_with(PROJECTOR));
        let projector = shared.into_iter();
        let projector = projector.map(|(name, tensor)| (name[PROJECTOR.len()..].to_owned(), tensor));
        Ok(Self {
            step: state.step,
            stage: state.stage,
            projector: projector.collect(),
            adapters,
            sites,
        })
    }

    /// A and B(l) of every adapted layer for all languages.
    pub fn merged(&self) -> MergedAdapters {
        let every: Vec<usize> = (0..self.adapters.spec().num_languages).collect();
        tch::no_grad(|| self.adapters.merge(&every))
    }

    /// The adapted layers of one model, each with its pair for `language`.
    ///
    /// # Panics
    /// If there is no such language.
    pub fn pairs<'a>(
        &'a self,
        merged: &'a MergedAdapters,
        model: AdaptedModel,
        language: usize,
    ) -> impl Iterator<Item = (&'a LoraSite, LoraPair)> {
        let sites = self.sites.iter().enumerate();
        sites
            .filter(move |(_, site)| model_of(site) == model)
            .map(move |(id, site)| (site, merged.pair(id, language)))
    }
}

fn model_of(site: &LoraSite) -> AdaptedModel {
    if site.name.starts_with(ENCODER) {
        AdaptedModel::Encoder
    } else {
        AdaptedModel::Llm
    }
}

/// The adapted layers, told by the names and shapes of their matrices: `lora.<layer>.A` is `[r, d_in]`, and B `[d_out, columns]`.
fn sites(tensors: &BTreeMap<String, Tensor>, b: &str) -> Vec<LoraSite> {
    let found = tensors.iter().filter_map(|(name, a)| {
        let name = name.strip_prefix("lora.")?.strip_suffix(".A")?;
        let b = tensors.get(&format!("lora.{name}.{b}"))?;
        // `model.layers.3.self_attn.q_proj`: the one part that is a number.
        let layer = name.split('.').find_map(|part| part.parse().ok())?;
        Some(LoraSite {
            name: name.to_owned(),
            layer,
            d_in: a.size()[1],
            d_out: b.size()[0],
        })
    });
    let mut sites: Vec<LoraSite> = found.collect();
    // By number, and not `layers.10` before `layers.2`.
    sites.sort_by_key(|site| (model_of(site), site.layer));
    sites
}
