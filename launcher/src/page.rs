//! The status page as zipper-launch knows it: where it is, and the token that it needs outside loopback.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use zipper_config::RunConfig;

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;
/// Name of the file with the token, in the folder of the logs.
const TOKEN_FILE: &str = "status-page.token";

/// The page of one launch.
pub(crate) struct Page {
    /// Outside loopback.
    token: Option<(PathBuf, String)>,
    /// Where it is served, once a coordinator has said so; the next one serves it there, too.
    address: Mutex<Option<SocketAddr>>,
}

impl Page {
    /// Makes a token where one is needed, in a file that only its owner can read.
    pub(crate) fn prepare(config: &RunConfig, logs: &Path) -> anyhow::Result<Self> {
        let watching = &config.watching;
        let needs_token = watching.page && !watching.listen.ip().is_loopback();
        Ok(Self {
            token: needs_token.then(|| make_token(logs)).transpose()?,
            address: Mutex::new(None),
        })
    }

    /// What a coordinator is told.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let address = address.map(|address| format!("--page={address}"));
        let token = self.token.as_ref();
        let token = token.map(|(file, _)| format!("--page-token={}", file.display()));
        address.into_iter().chain(token).collect()
    }

    /// A coordinator says where it serves the page, if it does.
    pub(crate) fn served(&self, said: &serde_json::Value) {
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said.as_str().and_then(|said| said.parse().ok());
        // One that could not listen there is not the last word: the next one tries again.
        *address = said.or(*address);
    }

    /// What people are told: the page's URL, with the token only where `secretly` says that nobody else reads it.
    pub(crate) fn announcement(&self, secretly: bool) -> Option<String> {
        let address = (*self.address.lock().unwrap_or_else(PoisonError::into_inner))?;
        let host = if address.ip().is_unspecified() {
            format!("{}:{}", zipper_cli::hostname(), address.port())
        } else {
            address.to_string()
        };
        Some(match &self.token {
            None => format!("status page: http://{host}/"),
            Some((_, token)) if secretly => format!("status page: http://{host}/?token={token}"),
            Some((file, _)) => format!(
                "status page: http://{host}/?token=.. with the token in `{}`",
                file.display()
            ),
        })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some((file, _)) = &self.token {
            // It opens nothing any more.
            let _ = fs::remove_file(file);
        }
    }
}

fn make_token(logs: &Path) -> anyhow::Result<(PathBuf, String)> {
    let mut bytes = [0; TOKEN_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("there is no randomness for the status page's token")?;
    let token = bytes.iter().fold(String::new(), |mut token, byte| {
        // Writing to a string does not fail.
        let _ = write!(token, "{byte:02x}");
        token
    });
    let path = logs.join(TOKEN_FILE);
    // A file that is there could be readable for others.
    let _ = fs::remove_file(&path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    writeln!(file, "{token}").with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok((path, token))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(listen: &str) -> RunConfig {
        let text = "{name: a, model: {encoder: {path: e}, llm: {path: l}}, data: {languages: [en], train: [t]}, training: {align: {steps: 1, lr: 1.0}, zipper: {steps: 1, lr: 1.0}, batch_audio_seconds: 1}}";
        let listen = format!("watching.listen={listen}");
        zipper_config::from_str(text, "test", &[listen]).expect("a configuration")
    }

    /// Goal: outside loopback there is a token, which only its owner can read, other at each launch, and not in what others read.
    #[test]
    fn tokens_are_for_their_owner_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let local = Page::prepare(&config("127.0.0.1:0"), folder.path())?;
        assert!(local.arguments().is_empty() && local.announcement(true).is_none());
        local.served(&serde_json::json!("127.0.0.1:41234"));
        assert_eq!(
            local.announcement(true).as_deref(),
            Some("status page: http://127.0.0.1:41234/")
        );
        let outside = Page::prepare(&config("0.0.0.0:0"), folder.path())?;
        let file = folder.path().join(TOKEN_FILE);
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&file)?;
        outside.served(&serde_json::json!("0.0.0.0:41234"));
        let arguments = outside.arguments();
        assert!(
            arguments.iter().all(|word| !word.contains(token.trim())),
            "{arguments:?}"
        );
        let told = |secretly| outside.announcement(secretly).unwrap_or_default();
        assert!(told(true).contains(token.trim()) && !told(false).contains(token.trim()));
        drop(outside);
        assert!(!file.exists());
        let next = Page::prepare(&config("0.0.0.0:0"), folder.path())?;
        assert_ne!(
            next.token.as_ref().map(|(_, token)| token.as_str()),
            Some(token.trim())
        );
        Ok(())
    }
}
