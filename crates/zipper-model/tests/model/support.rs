//! Golden files, adapters with given matrices, and comparisons.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use zipper_config::schema::{
    EncoderConfig, EncoderContext, ModelConfig, ProjectorKind, PromptConfig, PromptKind,
};
use zipper_model::linear::{LinearDelta, LoraSite, SiteId};
use zipper_model::llm::CausalLm;
use zipper_model::packing::Packing;
use zipper_model::speech_llm::{Example, SpeechLlm};

/// One directory of each family; together they have tied and untied embeddings, one and many files, f32, bf16 and f16,
/// biases and none, both layouts of config.json, and every kind of rotary scaling.
pub(crate) const FAMILIES: [&str; 4] = ["llama_tied", "llama_sharded", "qwen2", "qwen3"];
/// LLM layers that the golden LoRA adapts.
pub(crate) const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];
/// Width of the golden encoder frames.
pub(crate) const D_ENCODER: i64 = 11;
const SCALE: f64 = 5.0 / 3.0;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// `<name>.json` of a family.
#[derive(Debug, Deserialize)]
pub(crate) struct Expected {
    projector: ProjectorKind,
    prompt: PromptKind,
    template: String,
    pub(crate) languages: Vec<String>,
    pub(crate) texts: Vec<String>,
    pub(crate) before: Vec<Vec<i64>>,
    pub(crate) after: Vec<Vec<i64>>,
    pub(crate) tokens: Vec<i64>,
    pub(crate) greedy: Vec<Vec<i64>>,
    pub(crate) beam: Vec<Vec<i64>>,
    pub(crate) greedy_texts: Vec<String>,
}

/// A Speech-LLM with the golden projector and LoRA.
pub(crate) struct Golden {
    pub(crate) speech: SpeechLlm,
    pub(crate) lora: GivenLora,
    pub(crate) tensors: Tensors,
    pub(crate) expected: Expected,
}

pub(crate) fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")
}

pub(crate) fn tensors(name: &str) -> Tensors {
    let path = models().join(format!("{name}.safetensors"));
    Tensor::read_safetensors(path)
        .expect("the golden file is committed")
        .into_iter()
        .collect()
}

pub(crate) fn expected(name: &str) -> Expected {
    let path = models().join(format!("{name}.json"));
    let text = std::fs::read_to_string(path).expect("the golden file is committed");
    serde_json::from_str(&text).expect("the golden file has these keys")
}

pub(crate) fn prompt_config(expected: &Expected) -> PromptConfig {
    PromptConfig {
        kind: expected.prompt,
        template: expected.template.clone(),
        ..PromptConfig::default()
    }
}

/// Chunks of 5 encoder frames that see 7 frames to their left.
pub(crate) fn encoder_config(path: &Path, context: EncoderContext) -> EncoderConfig {
    let config =
        json!({"path": path, "context": context, "chunk_seconds": 0.1, "left_context_seconds": 0.14});
    serde_json::from_value(config).expect("the schema has these keys")
}

pub(crate) fn names(targets: &[&str]) -> Vec<String> {
    targets.iter().map(ToString::to_string).collect()
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        let (tensors, expected) = (tensors(name), expected(name));
        let config = json!({
            "encoder": {"path": models().join("whisper")},
            "projector": {"kind": expected.projector, "stack": 3, "hidden": 17},
            "llm": {"path": models().join(name)},
            "prompt": prompt_config(&expected),
        });
        let config: ModelConfig = serde_json::from_value(config).expect("the schema has these keys");
        let mut speech =
            SpeechLlm::load(&config, D_ENCODER, 1, Device::Cpu, Kind::Float).expect("a good directory");
        for param in speech.projector().params() {
            tch::no_grad(|| param.tensor.shallow_clone().copy_(&tensors[&param.name]));
        }
        let sites = speech.lora_sites(&names(&TARGETS)).expect("the targets exist");
        let lora = GivenLora::new(sites, "", &tensors);
        Self {
            speech,
            lora,
            tensors,
            expected,
        }
    }

    pub(crate) fn examples(&self) -> Vec<Example<'_>> {
        self.expected
            .languages
            .iter()
            .enumerate()
            .map(|(row, language)| Example {
                frames: &self.tensors[&format!("frames.{row}")],
                language,
            })
            .collect()
    }
}

/// LoRA with the matrices of a golden file, the same for every row.
pub(crate) struct GivenLora {
    pub(crate) sites: Vec<LoraSite>,
    first_site: SiteId,
    /// A and B of each site; leaves with gradients.
    pub(crate) pairs: Vec<(Tensor, Tensor)>,
}

impl GivenLora {
    pub(crate) fn new(sites: Vec<LoraSite>, prefix: &str, tensors: &Tensors) -> Self {
        let leaf = |site: &LoraSite, matrix: &str| {
            let value = &tensors[&format!("{prefix}lora.{}.{matrix}", site.name)];
            value.copy().set_requires_grad(true)
        };
        let pairs: Vec<(Tensor, Tensor)> = sites
            .iter()
            .map(|site| (leaf(site, "A"), leaf(site, "B")))
            .collect();
        for (site, (a, b)) in sites.iter().zip(&pairs) {
            assert_eq!(
                (a.size()[1], b.size()[0]),
                (site.d_in, site.d_out),
                "{} has another size",
                site.name
            );
        }
        Self {
            sites,
            first_site: 0,
            pairs,
        }
    }

    pub(crate) fn counted_from(mut self, first_site: SiteId) -> Self {
        self.first_site = first_site;
        self
    }

    /// Compares the gradients of A and B of every site with those of the golden file.
    pub(crate) fn check_gradients(&self, prefix: &str, tensors: &Tensors) {
        for (site, (a, b)) in self.sites.iter().zip(&self.pairs) {
            for (matrix, value) in [("A", a), ("B", b)] {
                let name = format!("{prefix}grad.lora.{}.{matrix}", site.name);
                assert_close(&name, &value.grad(), &tensors[&name]);
            }
        }
    }
}

impl LinearDelta for GivenLora {
    fn delta(&self, site: SiteId, input: &Tensor, _rows: &Packing) -> Tensor {
        let (a, b) = &self.pairs[site - self.first_site];
        input.matmul(&a.tr()).matmul(&b.tr()) * SCALE
    }
}

/// Runs the layers over rows of equal length.
///
/// # Shapes
/// - `x`: `[rows, time, hidden]`, as what is returned
pub(crate) fn forward(llm: &CausalLm, x: &Tensor, adapters: Option<&dyn LinearDelta>) -> Tensor {
    let (rows, time, _) = x.size3().expect("rows of equal length");
    let packing = Packing::uniform(rows, time, Device::Cpu);
    llm.forward(&x.flatten(0, 1), &packing, adapters)
        .unflatten(0, [rows, time])
}

/// Relative error below 1e-4: the largest difference, as a part of the largest value.
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what} has another shape");
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    let (difference, scale) = (largest(&(found - expected)), largest(expected));
    assert!(
        difference < 1e-4 * scale,
        "{what} differs by {difference} at values up to {scale}"
    );
}
