//! The Speech-LLM on tch: frozen Whisper encoder, trained projector, frozen causal LLM, Zipper-LoRA adapters.
//!
//! Owns the mathematics of the forward pass and the reading of Hugging Face directories. Never holds async code,
//! networking, optimizers or the training loop.
//!
//! Reading order: [`param`], [`init`] (first values), [`packing`], [`linear`], [`hub`] (directories), [`encoder`], [`projector`], [`llm`],
//! [`adapter`], [`prompt`], [`speech_llm`] (the whole), `cross_entropy` and `ctc` (its losses), `carry` (how gradients go on into a later
//! backward pass), [`generate`], [`lid_head`] (which language is spoken).

mod carry;
mod cross_entropy;
mod ctc;
mod error;

pub mod adapter;
pub mod encoder;
pub mod generate;
pub mod hub;
pub mod init;
pub mod lid_head;
pub mod linear;
pub mod llm;
pub mod packing;
pub mod param;
pub mod projector;
pub mod prompt;
pub mod speech_llm;

pub use error::ModelError;
