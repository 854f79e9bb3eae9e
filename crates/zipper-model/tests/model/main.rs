//! Holds encoder, projector, LLM, prompt and decoding to what transformers, PEFT and torch.nn compute
//! (`tests/golden/make_model_golden.py`), and checks that broken model directories are refused with a clear message.

mod ctc;
mod decoding;
mod encoder;
mod errors;
mod llm;
mod projector;
mod prompt;
mod support;
