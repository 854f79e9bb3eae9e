//! How a run's store is used, and the environment that says how to reach it.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

/// How long requests may take, and how large they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// How long a failed request is repeated by itself before it is an error. Where a lease is renewed it is well under the lease's time
    /// to live, so that the answer is not older than the right that it is about.
    pub retry_timeout: Duration,
    /// How long one request may take, its body included.
    pub request_timeout: Duration,
    /// Larger objects are read and written in pieces of this size, several at a time. S3 asks for at least 5 MiB.
    pub multipart_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            retry_timeout: Duration::from_mins(1),
            request_timeout: Duration::from_secs(30),
            multipart_bytes: 64 << 20,
        }
    }
}

/// The environment variables that say how an object store is reached: `AWS_*`, `HOME`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub(crate) fn of_process() -> Self {
        let variables = env::vars_os();
        variables
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("AWS_") || name == "HOME")
            .collect()
    }

    /// The value of `name`; one that is empty counts as not set.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether `name` is set to `true`.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .keys()
            .filter_map(|name| Some((name.as_str(), self.get(name)?)))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Self { variables }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: of what the process was given, that is looked at which says how a store is reached, and nothing else.
    #[test]
    fn the_environment_is_what_stores_need() {
        let found = Environment::of_process();
        let home = env::var("HOME").ok().filter(|home| !home.is_empty());
        assert_eq!(found.get("HOME"), home.as_deref());
        let is_ours = |name: &str| name == "HOME" || name.starts_with("AWS_");
        assert!(found.iter().all(|(name, _)| is_ours(name)), "{found:?}");
    }
}
