//! `zipper-worker inspect`: what the router of a checkpoint decides, and which languages' banks are alike, as numbers.

use tch::Tensor;
use zipper_cli::{ExitStatus, UserError};
use zipper_report::insight::{Insight, Unit};
use zipper_train::trained::Trained;
use zipper_types::{Stage, Variant};

use crate::print_line;
use crate::source::{self, Source};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: source::Choice,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let source = Source::open(&arguments.source)?;
    let config = &source.config;
    let trained = Trained::read(config, |names| source.parts.read(names))?;
    if trained.stage == Stage::Align {
        let problem = format!(
            "step {} belongs to stage 1, in which all languages share one adapter",
            source.step
        );
        return Err(UserError::new(problem)
            .hint("look at a checkpoint of stage 2")
            .into());
    }
    let spec = trained.adapters.spec();
    let insight = Insight {
        run: source.store.url().to_owned(),
        step: source.step.0,
        variant: spec.variant,
        rank: spec.rank,
        languages: config.data.languages.clone(),
        units: match spec.variant {
            Variant::Hard | Variant::Soft => units(&trained)?,
            Variant::Static => vec![static_unit(spec.rank, spec.shared_rank, spec.num_languages)],
            Variant::Shared | Variant::Independent => Vec::new(),
        },
        bank_similarity: trained
            .adapters
            .bank_similarity()
            .map(|similarity| rows(&similarity))
            .transpose()?,
    };
    print_line(&serde_json::to_string(&insight)?)?;
    Ok(ExitStatus::Done)
}

fn units(trained: &Trained) -> anyhow::Result<Vec<Unit>> {
    let Some(gates) = trained.adapters.gates() else {
        return Ok(Vec::new());
    };
    let names = trained.adapters.router_units().iter();
    names
        .zip(gates.unbind(0))
        .map(|(name, gates)| {
            Ok(Unit {
                name: name.clone(),
                gates: Vec::<Vec<f32>>::try_from(gates.to_kind(tch::Kind::Float))?,
            })
        })
        .collect()
}

/// With `static` the first columns are shared in every layer.
fn static_unit(rank: usize, shared_rank: usize, num_languages: usize) -> Unit {
    let gates = (0..rank).map(|column| f32::from(u8::from(column < shared_rank)));
    Unit {
        name: "every layer".to_owned(),
        gates: vec![gates.collect(); num_languages],
    }
}

fn rows(matrix: &Tensor) -> anyhow::Result<Vec<Vec<f64>>> {
    Ok(Vec::<Vec<f64>>::try_from(matrix.to_kind(tch::Kind::Double))?)
}
