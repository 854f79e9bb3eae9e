//! The shapes of the layers that adapters go to, read from the headers of the model files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use safetensors::tensor::Metadata;
use zipper_cli::UserError;
use zipper_config::schema::{ModelConfig, ProjectorKind};
use zipper_plan::{ProjectorShape, SiteShape};

/// Longest header that is read: far more than the largest models have.
const LONGEST_HEADER: u64 = 100 << 20;

/// Tensor shapes by name, of all files of a Hugging Face directory.
pub(crate) struct Shapes {
    folder: String,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl Shapes {
    /// Reads the header of every `*.safetensors` in `folder`.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let name = folder.display().to_string();
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list `{name}`"))?;
        let mut tensors = BTreeMap::new();
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list `{name}`"))?.path();
            if path.extension().is_some_and(|ending| ending == "safetensors") {
                tensors.extend(header(&path)?);
            }
        }
        if tensors.is_empty() {
            let error = UserError::new(format!("there is no *.safetensors file in `{name}`"));
            return Err(error
                .hint("models are Hugging Face directories as published")
                .into());
        }
        Ok(Self {
            folder: name,
            tensors,
        })
    }

    /// How many numbers the tensors have whose names `counts`.
    pub(crate) fn parameters(&self, counts: impl Fn(&str) -> bool) -> u64 {
        let counted = self.tensors.iter().filter(|(name, _)| counts(name));
        counted
            .map(|(_, shape)| shape.iter().map(|&size| size as u64).product::<u64>())
            .sum()
    }

    /// The linear layers inside `layers` (`model.layers.`) whose last name is one of `targets`.
    fn sites(&self, layers: &str, targets: &[String]) -> Vec<SiteShape> {
        let site = |(name, shape): (&String, &Vec<usize>)| {
            let layer = name.strip_suffix(".weight")?;
            let target = layer.rsplit('.').next()?;
            let inside = layer.contains(layers) && targets.iter().any(|wanted| wanted == target);
            match (inside, shape.as_slice()) {
                (true, &[d_out, d_in]) => Some(SiteShape {
                    name: layer.to_owned(),
                    d_in: d_in as u64,
                    d_out: d_out as u64,
                }),
                _ => None,
            }
        };
        self.tensors.iter().filter_map(site).collect()
    }

    /// One dimension of the tensor whose name ends so.
    fn dimension(&self, ending: &str, axis: usize) -> anyhow::Result<u64> {
        let found = self.tensors.iter().find(|(name, _)| name.ends_with(ending));
        let size = found.and_then(|(_, shape)| shape.get(axis)).ok_or_else(|| {
            UserError::new(format!(
                "no tensor in `{}` is called `..{ending}`: is it the right model?",
                self.folder
            ))
        })?;
        Ok(*size as u64)
    }
}

/// Everything that is adapted, and the projector.
pub(crate) struct ModelShapes {
    pub(crate) sites: Vec<SiteShape>,
    pub(crate) projector: ProjectorShape,
}

impl ModelShapes {
    /// Reads the shapes of both models of a run.
    pub(crate) fn read(
        model: &ModelConfig,
        targets: &[String],
        encoder_targets: &[String],
    ) -> anyhow::Result<Self> {
        let (encoder, llm) = (Shapes::read(&model.encoder.path)?, Shapes::read(&model.llm.path)?);
        let mut sites = llm.sites("model.layers.", targets);
        sites.extend(encoder.sites("encoder.layers.", encoder_targets));
        let d_encoder = encoder.dimension("encoder.conv1.weight", 0)?;
        let d_llm = llm.dimension("embed_tokens.weight", 1)?;
        let projector = match model.projector.kind {
            ProjectorKind::Conv => ProjectorShape::Conv { d_encoder, d_llm },
            ProjectorKind::Stack => ProjectorShape::Stack {
                d_encoder,
                d_llm,
                stack: model.projector.stack as u64,
                hidden: model.projector.hidden.map_or(d_encoder, |hidden| hidden as u64),
            },
        };
        Ok(Self { sites, projector })
    }
}

/// Names and shapes in a file, without reading its tensors.
fn header(path: &Path) -> anyhow::Result<BTreeMap<String, Vec<usize>>> {
    let name = path.display();
    let broken = |problem: String| UserError::new(format!("`{name}` is not a safetensors file: {problem}"));
    let mut file = File::open(path).with_context(|| format!("cannot open `{name}`"))?;
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|error| broken(error.to_string()))?;
    let announced = u64::from_le_bytes(length);
    if announced > LONGEST_HEADER {
        return Err(broken(format!("its header is said to have {announced} bytes")).into());
    }
    let mut bytes = Vec::new();
    file.take(announced)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read `{name}`"))?;
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
    let shapes = metadata.tensors().into_iter();
    Ok(shapes.map(|(name, info)| (name, info.shape.clone())).collect())
}
