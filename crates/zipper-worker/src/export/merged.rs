//! Hugging Face directories of the frozen models with one language's adapter added to their weights: `W0 + s * B(l) A`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use safetensors::tensor::{SafeTensors, TensorView};
use tch::Tensor;
use zipper_cli::UserError;
use zipper_train::state::kind_of;
use zipper_train::trained::AdaptedModel;

use super::{Export, card, write};

/// Weights in formats that are not read, and so not changed.
const OTHER_WEIGHTS: [&str; 7] = ["bin", "pth", "pt", "h5", "msgpack", "gguf", "onnx"];

/// Writes the LLM, and the encoder if it is adapted, with `language` in them; returns the names of their folders.
pub(super) fn write_models(
    export: &Export<'_>,
    language: usize,
    folder: &Path,
) -> anyhow::Result<Vec<String>> {
    let config = &export.config.model;
    let merged = export.trained.merged();
    let scale = export.trained.adapters.spec().scale();
    let mut written = Vec::new();
    for (model, name, source) in [
        (AdaptedModel::Llm, "llm", &config.llm.path),
        (AdaptedModel::Encoder, "encoder", &config.encoder.path),
    ] {
        let pairs = export.trained.pairs(&merged, model, language);
        let deltas: BTreeMap<String, Tensor> = pairs
            .map(|(site, pair)| {
                let delta = tch::no_grad(|| pair.b.matmul(&pair.a) * scale);
                (format!("{}.weight", site.name), delta)
            })
            .collect();
        if !deltas.is_empty() {
            copy_merged(source, &folder.join(name), deltas)?;
            written.push(name.to_owned());
        }
    }
    let language = &export.config.data.languages[language];
    write(folder, "README.md", card::merged(export, language).as_bytes())?;
    Ok(written)
}

/// Copies a model's directory, adding `deltas` to the tensors of their names. Files keep their names and element types.
fn copy_merged(source: &Path, target: &Path, mut deltas: BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let unreadable = |error: std::io::Error| {
        UserError::new(format!(
            "the model in `{}` cannot be read: {error}",
            source.display()
        ))
        .hint("`--merge` needs the frozen model where the run's configuration says it is")
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(source).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    for path in paths.iter().filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if OTHER_WEIGHTS.contains(&&*extension) {
            continue;
        }
        let bytes = fs::read(path).map_err(unreadable)?;
        let bytes = if extension == "safetensors" {
            add(path, &bytes, &mut deltas)?
        } else {
            bytes
        };
        write(target, &name, &bytes)?;
    }
    match deltas.keys().next() {
        None => Ok(()),
        Some(missing) => Err(UserError::new(format!(
            "the model in `{}` has no tensor `{missing}`: is it the one that the run was made with?",
            source.display()
        ))
        .into()),
    }
}

/// A safetensors file with the deltas of its tensors added, which are taken out of `deltas`.
fn add(path: &Path, bytes: &[u8], deltas: &mut BTreeMap<String, Tensor>) -> anyhow::Result<Vec<u8>> {
    let invalid = |problem: String| UserError::new(format!("`{}`: {problem}", path.display()));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| invalid(error.to_string()))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| invalid(error.to_string()))?;
    let mut changed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, view) in file.tensors() {
        // A Whisper without its head has no `model.` before its names.
        let delta = deltas.remove(&name);
        let Some(delta) = delta.or_else(|| deltas.remove(&format!("model.{name}"))) else {
            continue;
        };
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        if shape != delta.size() {
            let problem = format!(
                "tensor `{name}` has shape {shape:?}, its adapter {:?}",
                delta.size()
            );
            return Err(invalid(problem).into());
        }
        let dtype = view.dtype();
        let kind = kind_of(dtype).ok_or_else(|| {
            invalid(format!(
                "tensor `{name}` is {dtype:?}: only floating-point weights can be merged"
            ))
        })?;
        let frozen = Tensor::from_data_size(view.data(), &shape, kind);
        let sum = (frozen.to_kind(delta.kind()) + delta).to_kind(kind).contiguous();
        let mut data = vec![0; view.data().len()];
        sum.copy_data_u8(&mut data, sum.numel());
        changed.insert(name, data);
    }
    let views = file.tensors().into_iter().map(|(name, view)| {
        let data = changed.get(&name).map_or(view.data(), Vec::as_slice);
        TensorView::new(view.dtype(), view.shape().to_vec(), data).map(|view| (name, view))
    });
    let views = views
        .collect::<Result<Vec<_>, _>>()
        .context("shapes are unchanged")?;
    Ok(safetensors::serialize(views, header.metadata().clone())?)
}
