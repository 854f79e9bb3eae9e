//! The token ids around the speech: `[before][speech][after][text][eos]`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde::Deserialize;
use tokenizers::Tokenizer;
use zipper_config::schema::{PromptConfig, PromptKind};

use crate::ModelError;
use crate::hub;
use crate::llm::{LlmConfig, TokenIds};

/// Stands for the speech in a chat message; a private-use character that no template contains.
const SPEECH: char = '\u{f8ff}';

/// Tokenizer and prompt of a model directory.
#[derive(Debug)]
pub struct Prompt {
    folder: PathBuf,
    tokenizer: Tokenizer,
    config: PromptConfig,
    bos: Option<i64>,
    eos: i64,
    /// Every token that ends a text; includes `eos`.
    stops: Vec<i64>,
    special: TokenizerConfig,
    /// Rows of the LLM's embedding.
    vocab_size: i64,
    frames: RefCell<BTreeMap<String, Frame>>,
}

/// The token ids before and after the speech, for one language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Before the speech.
    pub before: Vec<i64>,
    /// Between speech and text.
    pub after: Vec<i64>,
}

/// What tokenizer_config.json says of special tokens and chats.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    bos_token: Option<SpecialToken>,
    #[serde(default)]
    eos_token: Option<SpecialToken>,
    #[serde(default)]
    chat_template: Option<ChatTemplate>,
}

/// One chat template, or several of which one is called `default`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Clone, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// A special token is a string, or an object that holds one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Plain(String),
    Object { content: String },
}

#[derive(Debug, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

impl Prompt {
    /// Reads tokenizer.json, tokenizer_config.json and generation_config.json of `folder`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file that is missing or wrong, or what the model lacks.
    pub fn load(folder: &Path, config: &PromptConfig, llm: &LlmConfig) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| ModelError::Io {
            path: path.clone(),
            source,
        })?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| ModelError::Invalid {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        let special = hub::read_optional_json::<TokenizerConfig>(&folder.join("tokenizer_config.json"))?;
        let id = |token: &Option<SpecialToken>| {
            token
                .as_ref()
                .and_then(|token| tokenizer.token_to_id(token.text()))
                .map(i64::from)
        };
        // A tokenizer_config.json without a bos token says that there is none, whatever config.json says (Qwen).
        let bos = special
            .as_ref()
            .map_or(llm.bos_token_id, |special| id(&special.bos_token));
        let special = special.unwrap_or_default();
        let generation = hub::read_optional_json::<GenerationConfig>(&folder.join("generation_config.json"))?;
        let mut stops = llm.eos_token_ids.clone();
        let named = generation.and_then(|config| config.eos_token_id);
        stops.extend(named.map(TokenIds::list).unwrap_or_default());
        let eos = id(&special.eos_token)
            .or(stops.first().copied())
            .ok_or_else(|| ModelError::Invalid {
                path: folder.join(hub::CONFIG),
                problem:
                    "no end-of-text token: neither eos_token_id here nor eos_token in tokenizer_config.json"
                        .to_owned(),
            })?;
        let mut needed = bos.into_iter().chain([eos]);
        if let Some(id) = needed.find(|id| !(0..llm.vocab_size).contains(id)) {
            let problem = format!(
                "vocab_size = {}, but {id} is the bos or eos token of this file or of tokenizer_config.json",
                llm.vocab_size
            );
            return Err(ModelError::Invalid {
                path: folder.join(hub::CONFIG),
                problem,
            });
        }
        stops.push(eos);
        stops.sort_unstable();
        stops.dedup();
        Ok(Self {
            folder: folder.to_owned(),
            tokenizer,
            config: config.clone(),
            bos,
            eos,
            stops,
            special,
            vocab_size: llm.vocab_size,
            frames: RefCell::new(BTreeMap::new()),
        })
    }

    /// The token that ends a transcript in training.
    pub fn eos(&self) -> i64 {
        self.eos
    }

    /// Every token that ends a text, in order: what config.json, generation_config.json and tokenizer_config.json name.
    pub fn stops(&self) -> &[i64] {
        &self.stops
    }

    /// The ids around the speech of a language.
    ///
    /// # Errors
    /// [`ModelError::UnknownLanguage`]; [`ModelError`] if the chat template is missing or cannot be rendered.
    pub fn frame(&self, lang: &str) -> Result<Frame, ModelError> {
        if let Some(frame) = self.frames.borrow().get(lang) {
            return Ok(frame.clone());
        }
        let around = self.config.around_speech(lang);
        let (before, after) = around.ok_or_else(|| ModelError::UnknownLanguage(lang.to_owned()))?;
        let frame = match self.config.kind {
            PromptKind::Plain => {
                let mut ids: Vec<i64> = self.bos.into_iter().collect();
                ids.extend(self.encode(&before)?);
                Frame {
                    before: ids,
                    after: self.encode(&after)?,
                }
            }
            PromptKind::Chat => self.chat_frame(&format!("{before}{SPEECH}{after}"))?,
        };
        self.frames.borrow_mut().insert(lang.to_owned(), frame.clone());
        Ok(frame)
    }

    fn chat_frame(&self, message: &str) -> Result<Frame, ModelError> {
        let (path, template) = self.chat_template()?;
        let invalid = |problem: String| ModelError::Invalid {
            path: path.clone(),
            problem,
        };
        // The settings and extensions that transformers renders with.
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the usual delimiters are valid"));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(
                    minijinja::ErrorKind::InvalidOperation,
                    message,
                ))
            },
        );
        let message = context! { role => "user", content => message };
        let values = context! {
            messages => vec![message],
            add_generation_prompt => true,
            bos_token => self.special.bos_token.as_ref().map(SpecialToken::text),
            eos_token => self.special.eos_token.as_ref().map(SpecialToken::text),
        };
        let text = environment
            .render_str(&template, values)
            .map_err(|error| invalid(format!("the chat template cannot be rendered: {error}")))?;
        let (before, after) = text
            .split_once(SPEECH)
            .ok_or_else(|| invalid("the chat template drops the user's message".to_owned()))?;
        Ok(Frame {
            before: self.encode(before)?,
            after: self.encode(after)?,
        })
    }

    /// The template and the file it stands in; chat_template.jinja goes before tokenizer_config.json.
    fn chat_template(&self) -> Result<(PathBuf, String), ModelError> {
        let own_file = self.folder.join("chat_template.jinja");
        if own_file.exists() {
            let read = std::fs::read_to_string(&own_file);
            return match read {
                Ok(template) => Ok((own_file, template)),
                Err(source) => Err(ModelError::Io {
                    path: own_file,
                    source,
                }),
            };
        }
        let path = self.folder.join("tokenizer_config.json");
        let template = match &self.special.chat_template {
            Some(ChatTemplate::One(template)) => Some(template),
            Some(ChatTemplate::Named(templates)) => templates
                .iter()
                .find(|named| named.name == "default")
                .map(|named| &named.template),
            None => None,
        };
        match template {
            Some(template) => Ok((path, template.clone())),
            None => Err(ModelError::Invalid {
                path,
                problem: "no default chat_template here and no chat_template.jinja beside it; use \
                          `model.prompt.kind: plain`"
                    .to_owned(),
            }),
        }
    }

    /// Token ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| ModelError::Tokenizer(format!("cannot encode `{text}`: {error}")))?;
        let ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        match ids.iter().find(|&&id| id >= self.vocab_size) {
            None => Ok(ids),
            Some(id) => Err(ModelError::Tokenizer(format!(
                "`{text}` holds token {id}, but the LLM knows {} tokens: is tokenizer.json that of another model?",
                self.vocab_size
            ))),
        }
    }

    /// The text of token ids; special tokens are left out.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn decode(&self, ids: &[i64]) -> Result<String, ModelError> {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        self.tokenizer
            .decode(&ids, true)
            .map_err(|error| ModelError::Tokenizer(format!("cannot decode {ids:?}: {error}")))
    }
}

impl SpecialToken {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Object { content: text } => text,
        }
    }
}
