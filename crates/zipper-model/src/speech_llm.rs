//! The whole: encoder frames in, loss or transcript out.
//!
//! A row is `[bos][prompt][speech][text]`, and the loss is on the text and the eos that follows it.

use tch::{Device, Kind, Reduction, Tensor};
use zipper_config::schema::ModelConfig;

use crate::ModelError;
use crate::linear::{LinearDelta, LoraSite};
use crate::llm::CausalLm;
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
    /// `[batch]`, f32 (f64 in an f64 model), differentiable: negative log-likelihood of each row's text and eos, in nats.
    pub sums: Tensor,
    /// Target tokens of each row.
    pub tokens: Vec<i64>,
    /// `[]`, differentiable: CTC of the texts, summed over the rows, in nats; nothing unless the configuration weighs it, or without
    /// gradients.
    pub ctc: Option<Tensor>,
}

/// Rows as the LLM reads them.
pub(crate) struct Rows {
    /// `[tokens, hidden]`.
    pub(crate) embeddings: Tensor,
    pub(crate) packing: Packing,
    /// `[time, hidden]` each: what the projector made of the speech, in its own element type.
    speech: Vec<Tensor>,
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
        })
    }

    /// Gives the projector the initial values of `seed` again, in new parameters.
    pub fn reset_projector(&mut self, config: &ModelConfig, seed: u64) {
        let kind = self.projector.params()[0].tensor.kind();
        let d_llm = self.llm.config().hidden_size;
        self.projector = Projector::new(&config.projector, self.d_encoder, d_llm, seed, self.device, kind);
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
        let hidden = self.llm.forward(&rows.embeddings, &rows.packing, adapters);
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
        let losses = self.llm.logits(&hidden).cross_entropy_loss(
            &tensor(&targets),
            None::<&Tensor>,
            Reduction::None,
            -100,
            0.0,
        );
        let zeros = Tensor::zeros([examples.len() as i64], (losses.kind(), self.device));
        let wants_ctc = self.has_ctc && rows.speech.iter().any(Tensor::requires_grad);
        Ok(Nll {
            ctc: wants_ctc.then(|| self.ctc(&rows.speech, &texts)),
            sums: zeros.index_add(0, &tensor(&row_of_target), &losses),
            tokens: texts.iter().map(|text| text.len() as i64 + 1).collect(),
        })
    }

    /// Connectionist temporal classification (Graves et al., ICML 2006) with the LLM's embeddings as those of the classes, as in CJST (arXiv
    /// 2411.07607): the score of a token at a frame is how much the projector's output is like its embedding. A text that is longer than
    /// its speech has no alignment, and counts as 0.
    ///
    /// # Shapes
    /// - `speech`: `[time, hidden]` each
    /// - returns: `[]`, summed over the utterances
    fn ctc(&self, speech: &[Tensor], texts: &[Vec<i64>]) -> Tensor {
        let lengths: Vec<i64> = speech.iter().map(|speech| speech.size()[0]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let side_by_side: Vec<Tensor> = speech
            .iter()
            .map(|speech| speech.constant_pad_nd([0, 0, 0, longest - speech.size()[0]]))
            .collect();
        let speech = Tensor::stack(&side_by_side, 1);
        let scores = self.llm.likeness(&speech.to_kind(self.llm.kind()));
        let text_lengths: Vec<i64> = texts.iter().map(|text| text.len() as i64).collect();
        let targets = Tensor::from_slice(&texts.concat()).to_device(self.device);
        Tensor::ctc_loss(
            &scores.log_softmax(-1, speech.kind()),
            &targets,
            &lengths[..],
            &text_lengths[..],
            self.prompt.eos(),
            Reduction::Sum,
            true,
        )
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
        let speech = self.projector.forward(&frames);
        let of_llm: Vec<Tensor> = speech
            .iter()
            .map(|speech| speech.to_kind(self.llm.kind()))
            .collect();
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
            speech,
        })
    }
}
