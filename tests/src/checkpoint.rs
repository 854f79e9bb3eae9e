//! Checkpoints that nobody trained.

use zipper_checkpoint::{FORMAT_VERSION, Manifest, PartRecord};
use zipper_types::{Generation, Stage, Step, WorldSize};

/// The manifest of a checkpoint in stage 1 that two ranks of `generation` have written.
pub fn manifest(step: Step, generation: Generation, parts: Vec<PartRecord>) -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        step,
        stage: Stage::Align,
        created: "2026-01-02T03:04:05Z".to_owned(),
        world_size: WorldSize(2),
        generation,
        parts,
    }
}
