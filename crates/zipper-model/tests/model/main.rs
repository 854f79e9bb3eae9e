//! Goal: encoder, projector, LLM, prompt and decoding are what transformers, PEFT and torch.nn compute, and broken model directories are
//! refused with a clear message. Method: golden files (`tests/golden/make_model_golden.py`), and directories that are broken here.

mod ctc;
mod decoding;
mod encoder;
mod errors;
mod llm;
mod projector;
mod prompt;
mod support;
