//! What is trained and on what: the model (Qwen2.5-7B behind whisper-large-v3, rank 16, `soft`) and corpora that nobody has.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zipper_plan::{AdapterShape, Inventory, ProjectorShape, SiteShape};
use zipper_types::Variant;

/// Hours of the largest language; the k-th has the k-th part of it.
const HOURS: f64 = 960.0;
pub(crate) const CHARACTERS_PER_SECOND: f64 = 14.0;

/// Transformer layers of the LLM.
pub(crate) const LAYERS: usize = 28;
/// Adapted layers, as many as there are routers.
pub(crate) const SITES: usize = 28 * 7;
const PROJECTOR: ProjectorShape = ProjectorShape::Conv {
    d_encoder: 1280,
    d_llm: 3584,
};
const LID_DIM: u64 = 64;

/// Utterances of 2 to 20 s; the k-th language has a k-th of the hours of the first, and at least one utterance.
pub(crate) fn durations(languages: usize) -> Vec<Vec<f64>> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    (1..=languages)
        .map(|place| {
            let (mut durations, mut left) = (Vec::new(), HOURS * 3600.0 / place as f64);
            while left > 0.0 {
                let seconds: f64 = random.random_range(2.0..20.0);
                durations.push(seconds);
                left -= seconds;
            }
            durations
        })
        .collect()
}

/// Shared parameters whose gradients are complete only when backward ends.
pub(crate) fn late_parameters(languages: u64) -> u64 {
    PROJECTOR.parameters() + languages * LID_DIM
}

/// Parameters of Zipper-LoRA on Qwen2.5-7B behind whisper-large-v3: rank 16, `soft`, f32.
pub(crate) fn qwen(languages: u64) -> Inventory {
    let shapes = [
        ("q_proj", 3584, 3584),
        ("k_proj", 3584, 512),
        ("v_proj", 3584, 512),
        ("o_proj", 3584, 3584),
        ("gate_proj", 3584, 18_944),
        ("up_proj", 3584, 18_944),
        ("down_proj", 18_944, 3584),
    ];
    let sites: Vec<SiteShape> = (0..LAYERS)
        .flat_map(|_| shapes)
        .map(|(name, d_in, d_out)| SiteShape {
            name: name.to_owned(),
            d_in,
            d_out,
        })
        .collect();
    let adapter = AdapterShape {
        variant: Variant::Soft,
        rank: 16,
        shared_rank: 8,
        lid_dim: LID_DIM,
        routers: SITES as u64,
        languages,
    };
    Inventory::new(PROJECTOR, &adapter, &sites, 4)
}
