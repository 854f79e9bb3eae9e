//! README.md of what is exported: a model card as Hugging Face reads it, with a program that uses the files.

use std::fmt::Write;
use std::path::Path;

use zipper_config::schema::{CtcOutput, EncoderContext, ProjectorKind};
use zipper_score::Headline;

use super::Export;

/// The card of a language's PEFT adapter.
pub(super) fn adapter(export: &Export<'_>, language: &str) -> String {
    let base = name_of(&export.config.model.llm.path);
    let mut text = head(export, language, "peft", &base);
    let _ = write!(
        text,
        "# Speech recognition adapter: {language}\n\n\
         A LoRA adapter for `{base}`, in PEFT's format. Its base model hears by a Whisper encoder and a projector \
         (`../projector`).\n\n"
    );
    if !export.config.adapter.encoder_targets.is_empty() {
        text.push_str("The encoder has an adapter, too, in `encoder/`: load it onto the Whisper model in the same way.\n\n");
    }
    about(export, language, &mut text);
    let load = "from peft import PeftModel\n\nllm = PeftModel.from_pretrained(llm, HERE)\n";
    usage(
        export,
        language,
        (
            "HERE.parent",
            &format!("\"{}\"", export.config.model.llm.path.display()),
        ),
        load,
        &mut text,
    );
    text
}

/// The card of models with one language in their weights.
pub(super) fn merged(export: &Export<'_>, language: &str) -> String {
    let base = name_of(&export.config.model.llm.path);
    let mut text = head(export, language, "transformers", &base);
    let _ = write!(
        text,
        "# Speech recognition: {language}\n\n\
         `llm/` is `{base}` with the adapter of `{language}` merged into its weights. It hears by a Whisper encoder and a projector \
         (`projector/`).\n\n"
    );
    about(export, language, &mut text);
    usage(export, language, ("HERE", "HERE / \"llm\""), "", &mut text);
    text
}

/// What Hugging Face reads.
fn head(export: &Export<'_>, language: &str, library: &str, base: &str) -> String {
    let variant = export.trained.adapters.spec().variant;
    format!(
        "---\nlibrary_name: {library}\nbase_model: {base}\nlanguage: {language}\npipeline_tag: automatic-speech-recognition\n\
         tags: [lora, zipper-lora, {variant}]\n---\n\n"
    )
}

/// Where it comes from, and how good it is.
fn about(export: &Export<'_>, language: &str, text: &mut String) {
    let spec = export.trained.adapters.spec();
    let config = export.config;
    let _ = write!(
        text,
        "| | |\n| --- | --- |\n| run | `{}`, {} (stage `{}`) |\n| method | Zipper-LoRA (arXiv 2603.17558), variant `{}` |\n\
         | rank, alpha | {}, {} |\n| adapted layers | {} |\n| encoder | `{}`, context `{}` |\n",
        config.name,
        export.checkpoint,
        export.trained.stage.name(),
        spec.variant,
        spec.rank,
        spec.alpha,
        config.adapter.targets.join(", "),
        name_of(&config.model.encoder.path),
        context(config.model.encoder.context),
    );
    let sets = export.results.iter().flat_map(|table| &table.sets);
    for set in sets {
        if let Some(row) = set.languages.iter().find(|row| row.lang == language) {
            let (name, rate) = match row.headline {
                Some(Headline::Cer) => ("CER", row.trained.cer),
                _ => ("WER", row.trained.wer),
            };
            let _ = writeln!(
                text,
                "| {name} on `{}` | {:.1} % of {} utterances |",
                set.name,
                100.0 * rate,
                row.utterances
            );
        }
    }
    text.push('\n');
}

/// How a program loads it: `folders` are where the projector's is, and the LLM's.
fn usage(export: &Export<'_>, language: &str, folders: (&str, &str), load: &str, text: &mut String) {
    let (beside, llm) = folders;
    let model = &export.config.model;
    let _ = writeln!(
        text,
        "The projector: {}. Behind `[bos][prompt]` the model writes the transcript and its end of sequence. The prompt is `{:?}`, with \
         the speech at `{{speech}}`, or at the end if that is not in it, `{{language}}` as the language's English name and `{{lang}}` as \
         `{language}`.",
        match model.projector.kind {
            ProjectorKind::Conv =>
                "two convolutions (width 3; the second with stride 4) with GELU, two linear layers with ReLU, layer norm".to_owned(),
            ProjectorKind::Stack => format!(
                "{} frames side by side (zeros behind the last), a linear layer, GELU, a linear layer",
                model.projector.stack
            ),
        },
        model.prompt.template,
    );
    let joined = match model.projector.ctc_output {
        CtcOutput::Frames => None,
        CtcOutput::Posteriors => Some(""),
        CtcOutput::Tokens => Some(
            " Before the product with `E`, neighbours whose likeliest token is the same are averaged, and those where it is the end of \
             text are left out.",
        ),
    };
    if let Some(joined) = joined {
        let _ = write!(
            text,
            "\nThe LLM is not given the projector's output `x` but means of its own input embeddings `E`: \
             `softmax(12 / mean(|e|^2) * x E^T) E`, where the mean is over the rows `e` of `E`.{joined}\n"
        );
    }
    if model.encoder.context != EncoderContext::Padded30s {
        let _ = write!(
            text,
            "\nThe encoder was used with context `{}`: with the length of the utterance itself and not padded to 30 s.\n",
            context(model.encoder.context)
        );
    }
    let _ = write!(
        text,
        "\n```python\n\
         from pathlib import Path\n\n\
         from safetensors.torch import load_file\n\
         from transformers import AutoModelForCausalLM\n\n\
         HERE = Path(__file__).parent\n\
         llm = AutoModelForCausalLM.from_pretrained({llm})\n\
         {load}\
         projector = load_file({beside} / \"projector/projector.safetensors\")\n\
         ```\n"
    );
}

/// A model directory's own name.
fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn context(context: EncoderContext) -> &'static str {
    match context {
        EncoderContext::Native => "native",
        EncoderContext::Padded30s => "padded_30s",
        EncoderContext::Chunked => "chunked",
    }
}
