//! Keys that have a value for each language.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The key of the languages that are not named.
pub(crate) const DEFAULT: &str = "default";

/// A value for each language by its code, `default` for those that are not named: `{en: english, default: basic}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ByLanguage<T>(BTreeMap<String, T>);

impl<T> Default for ByLanguage<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Copy> ByLanguage<T> {
    /// The value for `lang`; nothing where neither it nor `default` is there.
    pub fn get(&self, lang: &str) -> Option<T> {
        self.0.get(lang).or_else(|| self.0.get(DEFAULT)).copied()
    }

    /// The languages that are named.
    pub(crate) fn languages(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|key| *key != DEFAULT)
    }
}
