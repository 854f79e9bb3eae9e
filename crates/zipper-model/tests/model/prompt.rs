//! Goal: the ids around the speech are those of the model's own tokenizer and chat template.
//! Method: golden ids of transformers, for every family.

use zipper_config::schema::{PromptConfig, PromptKind};
use zipper_model::hub::CONFIG;
use zipper_model::llm::LlmConfig;
use zipper_model::prompt::Prompt;

use crate::support::{FAMILIES, expected, models, prompt_config};

fn load(name: &str, config: &PromptConfig) -> Prompt {
    let folder = models().join(name);
    let llm = LlmConfig::read(&folder.join(CONFIG)).expect("a good config.json");
    Prompt::load(&folder, config, &llm).expect("a good tokenizer")
}

/// The golden directories hold a bos token and none, a chat template inside tokenizer_config.json and beside it.
#[test]
fn frames_equal_transformers() {
    for name in FAMILIES {
        let golden = expected(name);
        let prompt = load(name, &prompt_config(&golden));
        for (row, lang) in golden.languages.iter().enumerate() {
            let frame = prompt.frame(lang).expect("a known language");
            assert_eq!(frame.before, golden.before[row], "{name} {lang}");
            assert_eq!(frame.after, golden.after[row], "{name} {lang}");
        }
    }
}

#[test]
fn every_token_that_ends_a_text_is_known() {
    let stops = |name: &str| {
        let prompt = load(name, &prompt_config(&expected(name)));
        assert_eq!(prompt.eos(), 1);
        prompt.stops().to_vec()
    };
    assert_eq!(stops("llama_tied"), [1]);
    assert_eq!(
        stops("qwen2"),
        [1, 5, 20, 33],
        "generation_config.json names several"
    );
}

/// Before, in and behind an instruction; with a chat template as part of the user's message.
#[test]
fn speech_stands_where_the_template_says() {
    let frame = |name: &str, kind: PromptKind, template: &str| {
        let config = PromptConfig {
            kind,
            template: template.to_owned(),
            ..PromptConfig::default()
        };
        let prompt = load(name, &config);
        let frame = prompt.frame("de").expect("a known language");
        let text = |ids: &[i64]| prompt.decode(ids).expect("ids of the model");
        (text(&frame.before), text(&frame.after))
    };
    let pair = |before: &str, after: &str| (before.to_owned(), after.to_owned());
    for (template, expected) in [
        ("write {lang}", pair("write de", "")),
        ("{speech}write {lang}", pair("", "write de")),
        ("{lang}: {speech} in {language}", pair("de: ", " in German")),
    ] {
        assert_eq!(frame("qwen3", PromptKind::Plain, template), expected);
    }
    let (behind, end) = frame("qwen2", PromptKind::Chat, "write {lang}");
    let (start, before) = frame("qwen2", PromptKind::Chat, "{speech}write {lang}");
    assert_eq!(behind, format!("{start}write de"));
    assert_eq!(before, format!("write de{end}"));
}

#[test]
fn an_unknown_language_and_a_missing_template_are_refused() {
    let prompt = load("qwen3", &prompt_config(&expected("qwen3")));
    let error = prompt.frame("xx").expect_err("there is no such language");
    assert!(error.is_config());
    assert_eq!(
        error.to_string(),
        "language `xx` is not one of the languages of Whisper, nor has it a name in `model.prompt.language_names`"
    );

    let chat = PromptConfig {
        kind: PromptKind::Chat,
        template: "Write:".to_owned(),
        ..PromptConfig::default()
    };
    let error = load("qwen3", &chat)
        .frame("en")
        .expect_err("there is no chat template");
    assert!(error.is_config());
    assert!(error.to_string().contains("model.prompt.kind: plain"), "{error}");
}
