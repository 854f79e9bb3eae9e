//! Profiles: `~/.aws/config` and `~/.aws/credentials`, as AWS's own tools write them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use crate::options::Environment;

/// Ways of a profile to get credentials that are not supported, and the settings that ask for them.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("sso_session", "single sign-on"),
    ("sso_start_url", "single sign-on"),
    ("credential_process", "an external process"),
    ("role_arn", "assuming a role"),
    ("source_profile", "assuming a role"),
    ("web_identity_token_file", "a web identity"),
    ("login_session", "a login session"),
];

/// Where one profile is read.
#[derive(Debug, Clone)]
pub(crate) struct ProfileFiles {
    name: String,
    /// Somebody asked for this profile by name.
    asked: bool,
    config: PathBuf,
    credentials: PathBuf,
}

/// The settings of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
    /// Of the section `[services ..]` that it names.
    services: BTreeMap<String, String>,
}

/// Settings by section; a setting under another one is `outer.inner`.
type Sections = BTreeMap<String, BTreeMap<String, String>>;

impl ProfileFiles {
    /// None when there is no home to look in, and neither a file nor a profile is named.
    pub(crate) fn of(environment: &Environment) -> Option<Self> {
        let asked = environment
            .get("AWS_PROFILE")
            .or(environment.get("AWS_DEFAULT_PROFILE"));
        let home = environment.get("HOME").map(PathBuf::from);
        let file = |variable: &str, name: &str| {
            let named = environment.get(variable).map(PathBuf::from);
            named.or_else(|| Some(home.as_ref()?.join(".aws").join(name)))
        };
        let config = file("AWS_CONFIG_FILE", "config");
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        if asked.is_none() && config.is_none() && credentials.is_none() {
            return None;
        }
        // Without a home nothing is found there; the names are for messages.
        let nowhere = |name: &str| PathBuf::from("~/.aws").join(name);
        Some(Self {
            name: asked.unwrap_or("default").to_owned(),
            asked: asked.is_some(),
            config: config.unwrap_or_else(|| nowhere("config")),
            credentials: credentials.unwrap_or_else(|| nowhere("credentials")),
        })
    }

    /// The profile, if it is there. One that somebody asked for has to be.
    pub(crate) fn read(&self) -> Result<Option<Profile>, String> {
        let config = sections(&self.config)?;
        let credentials = sections(&self.credentials)?;
        let in_config = config
            .get(&format!("profile {}", self.name))
            .or_else(|| config.get(&self.name).filter(|_| self.name == "default"));
        let in_credentials = credentials.get(&self.name);
        if in_config.is_none() && in_credentials.is_none() {
            if self.asked {
                return Err(format!(
                    "the profile `{}` (AWS_PROFILE) is neither in `{}` nor in `{}`",
                    self.name,
                    self.config.display(),
                    self.credentials.display()
                ));
            }
            return Ok(None);
        }
        let mut settings = in_config.cloned().unwrap_or_default();
        settings.extend(in_credentials.cloned().unwrap_or_default());
        let services = settings
            .get("services")
            .and_then(|services| config.get(&format!("services {services}")))
            .cloned()
            .unwrap_or_default();
        Ok(Some(Profile {
            name: self.name.clone(),
            settings,
            services,
        }))
    }

    /// When the files were changed last, and how large they are.
    fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.config, &self.credentials].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

impl Profile {
    fn get(&self, name: &str) -> Option<&str> {
        self.settings
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn region(&self) -> Option<&str> {
        self.get("region")
    }

    pub(crate) fn endpoint(&self) -> Option<&str> {
        let of_s3 = self.services.get("s3.endpoint_url").map(String::as_str);
        of_s3.or_else(|| self.get("endpoint_url"))
    }

    /// `addressing_style = virtual` under `s3 =`.
    pub(crate) fn virtual_hosted(&self) -> bool {
        self.get("s3.addressing_style") == Some("virtual")
    }

    /// Its keys. None when it has none and asks for none.
    pub(crate) fn credentials(&self) -> Result<Option<AwsCredential>, String> {
        match (self.get("aws_access_key_id"), self.get("aws_secret_access_key")) {
            (Some(key_id), Some(secret_key)) => Ok(Some(AwsCredential {
                key_id: key_id.to_owned(),
                secret_key: secret_key.to_owned(),
                token: self.get("aws_session_token").map(str::to_owned),
            })),
            (None, None) => {
                let way = UNSUPPORTED
                    .iter()
                    .find(|(setting, _)| self.get(setting).is_some());
                way.map_or(Ok(None), |(setting, way)| {
                    Err(format!(
                        "{self} gets its credentials by {way} (`{setting}`), which is not supported: put keys in the profile \
                         (`aws configure export-credentials` prints them) or in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    ))
                })
            }
            (Some(_), None) => Err(format!(
                "{self} has aws_access_key_id, but no aws_secret_access_key"
            )),
            (None, Some(_)) => Err(format!(
                "{self} has aws_secret_access_key, but no aws_access_key_id"
            )),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the profile `{}`", self.name)
    }
}

/// The sections of a file; none when there is no such file.
fn sections(path: &PathBuf) -> Result<Sections, String> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|problem| format!("`{}`, {problem}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Sections::new()),
        Err(error) => Err(format!("`{}` cannot be read: {error}", path.display())),
    }
}

/// Reads sections in brackets with `name = value`, comments, and settings that are indented under another one. No value is
/// repeated in a message: it may be a secret.
fn parse(text: &str) -> Result<Sections, String> {
    let mut sections = Sections::new();
    let mut section: Option<String> = None;
    let mut outer: Option<String> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let indented = line.starts_with([' ', '\t']);
        let content = without_comment(line);
        if content.is_empty() {
            continue;
        }
        let problem = |what: &str| Err(format!("line {number}: {what}"));
        if let Some(name) = content.strip_prefix('[') {
            let Some(name) = name.strip_suffix(']') else {
                return problem("the name of a section ends with `]`");
            };
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            (section, outer) = (Some(name), None);
            continue;
        }
        let Some((name, value)) = content.split_once('=') else {
            return problem("a setting is written `name = value`");
        };
        let Some(settings) = section.as_ref().and_then(|name| sections.get_mut(name)) else {
            return problem("a setting is in a section: `[default]` comes first");
        };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        match &outer {
            Some(outer) if indented => settings.insert(format!("{outer}.{name}"), value.to_owned()),
            _ => {
                outer = value.is_empty().then(|| name.clone());
                settings.insert(name, value.to_owned())
            }
        };
    }
    Ok(sections)
}

/// A comment is a line that begins with `#` or `;`, or what follows them after a space.
fn without_comment(line: &str) -> &str {
    let line = line.trim();
    if line.starts_with(['#', ';']) {
        return "";
    }
    let end = [" #", " ;", "\t#", "\t;"]
        .iter()
        .filter_map(|mark| line.find(mark))
        .min()
        .unwrap_or(line.len());
    line[..end].trim_end()
}

/// The keys of a profile, read again when its files change, and when a server has refused them.
pub(crate) struct ProfileCredentials {
    files: ProfileFiles,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Of the files when they were read; none: read again.
    stamp: Option<[Option<(SystemTime, u64)>; 2]>,
    credentials: Option<Arc<AwsCredential>>,
}

impl ProfileCredentials {
    pub(crate) fn new(files: ProfileFiles) -> Self {
        Self {
            files,
            known: Mutex::default(),
        }
    }

    /// The files are read again before the next request.
    pub(crate) fn read_again(&self) {
        self.known().stamp = None;
    }

    /// The keys as the files have them now. Files that cannot be read while somebody writes them do not matter.
    fn current(&self) -> Result<Arc<AwsCredential>, String> {
        let mut known = self.known();
        let stamp = self.files.stamp();
        if known.stamp == Some(stamp)
            && let Some(credentials) = &known.credentials
        {
            return Ok(Arc::clone(credentials));
        }
        let read = self.files.read().and_then(|profile| {
            let credentials = profile.map(|profile| profile.credentials()).transpose()?;
            credentials
                .flatten()
                .ok_or_else(|| format!("the profile `{}` has no keys any more", self.files.name))
        });
        match (read, &known.credentials) {
            (Ok(credentials), _) => {
                let credentials = Arc::new(credentials);
                *known = Known {
                    stamp: Some(stamp),
                    credentials: Some(Arc::clone(&credentials)),
                };
                Ok(credentials)
            }
            (Err(problem), Some(before)) => {
                tracing::warn!("{problem}; the keys from before are used");
                Ok(Arc::clone(before))
            }
            (Err(problem), None) => Err(problem),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the keys.
impl fmt::Debug for ProfileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileCredentials")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for ProfileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.current().map_err(|problem| object_store::Error::Generic {
            store: "S3",
            source: problem.into(),
        })
    }
}

#[cfg(test)]
mod tests;
