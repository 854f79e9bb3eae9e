//! Cross-crate tests: see `tests/e2e`.
