//! The whole: encoder frames in, loss or transcript out.
//!
//! A row is `[before][speech][after][text]` (see [`crate::prompt`]), and the loss is on the text and the eos that follows it.

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{CtcOutput, ModelConfig};

use crate::ModelError;
use crate::cross_entropy::{CrossEntropy, cross_entropy};
use crate::ctc::Heard;
use crate::linear::{LinearDelta, LoraSite};
use crate::llm::{CausalLm, LayerInputs};
use crate::packing::Packing;
use crate::param::trainable_kind;
use crate::projector::Projector;
use crate::prompt::Prompt;

/// Projector, LLM and prompt.
#[derive(Debug)]
pub struct SpeechLlm {
    projector: Projector,
    llm: CausalLm,
    prompt: Prompt,
    device: Device,
    d_encoder: i64,
    has_ctc: bool,
    ctc_output: CtcOutput,
    recomputes_activations: bool,
}

/// One utterance as the Speech-LLM sees it.
#[derive(Debug, Clone, Copy)]
pub struct Example<'a> {
    /// Encoder frames, `[time, d_encoder]`.
    pub frames: &'a Tensor,
    /// Language code.
    pub language: &'a str,
}

/// Loss of a micro batch.
#[derive(Debug)]
pub struct Nll {
    /// `[batch]`, f32 (f64 in an f64 model), without history: negative log-likelihood of each row's text and eos, in nats.
    pub sums: Tensor,
    /// `[]`: their sum, differentiable.
    pub total: Total,
    /// Target tokens of each row.
    pub tokens: Vec<i64>,
    /// `[]`, differentiable: CTC of the texts, summed over the rows, in nats; nothing unless the configuration weighs it, or without
    /// gradients.
    pub ctc: Option<Tensor>,
}

/// The sum of a micro batch's losses, for the backward pass.
#[derive(Debug)]
pub enum Total {
    /// `[]`, differentiable by everything that is trained.
    Whole(Tensor),
    /// The loss has been taken back to the LLM's last layer; [`SpeechLlm::take_back`] does the rest.
    Recomputed(Recomputed),
}

/// What is kept of the forward pass of an LLM whose layers are computed again in the backward pass.
#[derive(Debug)]
pub struct Recomputed {
    inputs: LayerInputs,
    packing: Packing,
}

/// Rows as the LLM reads them.
pub(crate) struct Rows {
    /// `[tokens, hidden]`.
    pub(crate) embeddings: Tensor,
    pub(crate) packing: Packing,
    /// The speech in tokens, if a loss is made of that.
    heard: Option<Heard>,
}

impl SpeechLlm {
    /// Loads the LLM and its tokenizer as `kind`, and makes a new projector from `seed`.
    ///
    /// # Errors
    /// [`ModelError`] naming what is missing, wrong or not supported.
    pub fn load(
        config: &ModelConfig,
        d_encoder: i64,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let llm = CausalLm::load(&config.llm.path, device, kind)?;
        let prompt = Prompt::load(&config.llm.path, &config.prompt, llm.config())?;
        let projector = Projector::new(
            &config.projector,
            d_encoder,
            llm.config().hidden_size,
            seed,
            device,
            trainable_kind(kind),
        );
        Ok(Self {
            projector,
            llm,
            prompt,
            device,
            d_encoder,
            has_ctc: config.projector.ctc_weight > 0.0,
            ctc_output: config.projector.ctc_output,
            recomputes_activations: false,
        })
    }

    /// Gives the projector the initial values of `seed` again, in new parameters.
    pub fn reset_projector(&mut self, config: &ModelConfig, seed: u64) {
        let kind = self.projector.params()[0].tensor.kind();
        let d_llm = self.llm.config().hidden_size;
        self.projector = Projector::new(&config.projector, self.d_encoder, d_llm, seed, self.device, kind);
    }

    /// From now on losses keep of the LLM's layers only what goes into them: less memory, and their forward passes twice.
    pub fn recompute_activations(&mut self) {
        self.recomputes_activations = true;
    }

    /// The trained part.
    pub fn projector(&self) -> &Projector {
        &self.projector
    }

    pub(crate) fn llm(&self) -> &CausalLm {
        &self.llm
    }

    pub(crate) fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// Attaches adapters to the LLM; see [`CausalLm::lora_sites`].
    ///
    /// # Errors
    /// [`ModelError::UnknownTarget`].
    pub fn lora_sites(&mut self, targets: &[String]) -> Result<Vec<LoraSite>, ModelError> {
        self.llm.lora_sites(targets)
    }

    /// Negative log-likelihood of the transcripts `texts`, one for each example.
    ///
    /// Scores over the vocabulary are computed at transcript positions only.
    ///
    /// # Errors
    /// [`ModelError`] if a text cannot be encoded or a language has no name.
    ///
    /// # Panics
    /// If there are not as many texts as examples, or none.
    pub fn nll(
        &self,
        examples: &[Example<'_>],
        texts: &[&str],
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Nll, ModelError> {
        assert_eq!(examples.len(), texts.len(), "every example has a text");
        let texts = texts
            .iter()
            .map(|text| self.prompt.encode(text))
            .collect::<Result<Vec<_>, _>>()?;
        let rows = self.rows(examples, Some(&texts))?;
        let (hidden, inputs) = if self.recomputes_activations && rows.embeddings.requires_grad() {
            let (hidden, inputs) = self
                .llm
                .forward_keeping_inputs(&rows.embeddings, &rows.packing, adapters);
            (hidden, Some(inputs))
        } else {
            (self.llm.forward(&rows.embeddings, &rows.packing, adapters), None)
        };
        let (mut positions, mut targets, mut row_of_target) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (text, end)) in texts.iter().zip(rows.packing.ends()).enumerate() {
            // The first is what follows the last token before the text.
            let length = text.len() as i64;
            positions.extend(end - length - 1..end);
            targets.extend(text.iter().copied().chain([self.prompt.eos()]));
            row_of_target.extend(std::iter::repeat_n(row as i64, text.len() + 1));
        }
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(self.device);
        let hidden = hidden.index_select(0, &tensor(&positions));
        let vocab = self.llm.config().vocab_size;
        let CrossEntropy { losses, total } = cross_entropy(&hidden, &tensor(&targets), vocab, |hidden| {
            self.llm.logits(hidden)
        });
        let zeros = Tensor::zeros([examples.len() as i64], (losses.kind(), self.device));
        Ok(Nll {
            ctc: rows.heard.map(|heard| heard.loss(self.prompt.eos(), &texts)),
            sums: zeros.index_add(0, &tensor(&row_of_target), &losses),
            tokens: texts.iter().map(|text| text.len() as i64 + 1).collect(),
            total: match inputs {
                None => Total::Whole(total),
                Some(inputs) => {
                    total.f_backward()?;
                    Total::Recomputed(Recomputed {
                        inputs,
                        packing: rows.packing,
                    })
                }
            },
        })
    }

    /// Computes the LLM's layers again, the last one first, and takes the loss back through each of them into its `adapters`, with
    /// what `joining` returns, which is asked once for each layer.
    ///
    /// # Shapes
    /// - returns: `[]`, differentiable by what is below the LLM; its value means nothing
    ///
    /// # Errors
    /// [`ModelError::Torch`] if a backward pass fails.
    pub fn take_back(
        &self,
        recomputed: Recomputed,
        adapters: Option<&dyn LinearDelta>,
        joining: impl FnMut() -> Option<Tensor>,
    ) -> Result<Tensor, ModelError> {
        let Recomputed { inputs, packing } = recomputed;
        self.llm.take_back(inputs, &packing, adapters, joining)
    }

    /// The embeddings of `[before][speech][after][text]` for each example.
    pub(crate) fn rows(
        &self,
        examples: &[Example<'_>],
        texts: Option<&[Vec<i64>]>,
    ) -> Result<Rows, ModelError> {
        let (mut ids, mut pieces) = (Vec::<i64>::new(), Vec::new());
        for (index, example) in examples.iter().enumerate() {
            let frame = self.prompt.frame(example.language)?;
            let text = texts.map(|texts| texts[index].as_slice()).unwrap_or_default();
            pieces.extend([frame.before.len() as i64, (frame.after.len() + text.len()) as i64]);
            ids.extend(frame.before.iter().chain(&frame.after).chain(text));
        }
        let ids = Tensor::from_slice(&ids).to_device(self.device);
        let embedded = self.llm.embed(&ids).split_with_sizes(&pieces, 0);
        let frames: Vec<Tensor> = examples
            .iter()
            .map(|example| example.frames.shallow_clone())
            .collect();
        let (of_llm, heard) = self.heard(&self.projector.forward(&frames));
        let around = embedded.chunks_exact(2);
        let lengths = around.clone().zip(&of_llm).map(|(around, speech)| {
            let length = |piece: &Tensor| piece.size()[0];
            length(&around[0]) + length(speech) + length(&around[1])
        });
        let packing = Packing::new(lengths.collect(), self.device);
        let all: Vec<&Tensor> = around
            .zip(&of_llm)
            .flat_map(|(around, speech)| [&around[0], speech, &around[1]])
            .collect();
        Ok(Rows {
            embeddings: Tensor::cat(&all, 0),
            packing,
            heard,
        })
    }

    /// What the LLM reads in the place of `speech`, which the projector made, and that speech in tokens if a loss is made of that.
    ///
    /// # Shapes
    /// - `speech`: `[time, hidden]` each
    /// - returns: as many, `[time or tokens, hidden]`
    fn heard(&self, speech: &[Tensor]) -> (Vec<Tensor>, Option<Heard>) {
        let is_trained = self.has_ctc && speech.iter().any(Tensor::requires_grad);
        if self.ctc_output == CtcOutput::Frames {
            let frames = speech.iter().map(|speech| speech.to_kind(self.llm.kind()));
            return (
                frames.collect(),
                is_trained.then(|| Heard::new(&self.llm, speech)),
            );
        }
        let heard = Heard::new(&self.llm, speech);
        let by_token = self.ctc_output == CtcOutput::Tokens;
        let read = heard.embeddings(&self.llm, self.prompt.eos(), by_token);
        (read, is_trained.then_some(heard))
    }
}
