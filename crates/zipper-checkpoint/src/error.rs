//! What can go wrong with a run's objects.

use std::error::Error;
use std::{io, iter};

use zipper_types::Advised;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such object.
    NotFound,
    /// The object is there already, and not the same.
    AlreadyExists,
    /// An object is there but is not what was written: take an older checkpoint.
    Damaged,
    /// The run URL, the environment or the version of Zipper does not fit: a person has to change something.
    Config,
    /// There is no room: the disk is full, or a quota is used up.
    Full,
    /// The store refuses the credentials, or what they may do.
    Denied,
    /// The store could not be read or written.
    Io,
}

impl ErrorKind {
    /// Whether the same request may succeed later, when nothing is changed but the world: a server comes back, somebody makes
    /// room, credentials are renewed.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Full | Self::Denied | Self::Io)
    }
}

/// A failed operation on a run's objects. Objects are named by their full URL.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is no such object.
    #[error("`{object}` does not exist")]
    NotFound {
        /// URL of the object.
        object: String,
    },
    /// Create-if-absent found something there.
    #[error("`{object}` exists already{detail}")]
    AlreadyExists {
        /// URL of the object.
        object: String,
        /// What it holds instead, when that is known.
        detail: &'static str,
    },
    /// An object is not what was written.
    #[error("`{object}` is damaged: expected {expected}, found {found}")]
    Damaged {
        /// URL of the object.
        object: String,
        /// What the manifest or the format promises.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A manifest of a format that this version does not know.
    #[error(
        "`{object}` has format version {found}, and this version of Zipper reads up to {supported}: \
         use the version that wrote it, or a newer one"
    )]
    FutureFormat {
        /// URL of the manifest.
        object: String,
        /// Its version.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// The run URL or the environment cannot be used.
    #[error("run URL `{url}`: {problem}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A name that cannot be an object of a run.
    #[error("`{path}` cannot be the path of an object: {problem}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The bucket of the run URL is not there.
    #[error(
        "cannot {action} `{object}`: there is no such bucket; make it, or mend its name in the run URL or the endpoint"
    )]
    NoBucket {
        /// `read`, `write`, `list` or `delete`.
        action: &'static str,
        /// URL of the object.
        object: String,
        /// Whether it was there before: then it may come back.
        was_there: bool,
    },
    /// The store does not keep the one promise that coordination rests on.
    #[error(
        "the object store of `{url}` ignores the condition of a conditional write (`If-None-Match: *`): two coordinators could \
         write the same run; use a store that honours it"
    )]
    Unconditional {
        /// The run.
        url: String,
    },
    /// There is no room.
    #[error("cannot {action} `{object}`: there is no room left")]
    Full {
        /// `write`, for the most part.
        action: &'static str,
        /// URL of the object.
        object: String,
        /// What the store said.
        source: Box<object_store::Error>,
    },
    /// The store refused.
    #[error("cannot {action} `{object}`: {reason}")]
    Denied {
        /// `read`, `write`, `list` or `delete`.
        action: &'static str,
        /// URL of the object.
        object: String,
        /// What is wrong and what to look at.
        reason: &'static str,
        /// What the store said.
        source: Box<object_store::Error>,
    },
    /// The store failed.
    #[error("cannot {action} `{object}`")]
    Io {
        /// `read`, `write`, `list` or `delete`.
        action: &'static str,
        /// URL of the object.
        object: String,
        /// What the store said.
        source: Box<object_store::Error>,
    },
}

impl CheckpointError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Damaged { .. } => ErrorKind::Damaged,
            Self::FutureFormat { .. } | Self::Url { .. } | Self::Path { .. } | Self::Unconditional { .. } => {
                ErrorKind::Config
            }
            Self::NoBucket { was_there, .. } => {
                if *was_there {
                    ErrorKind::Io
                } else {
                    ErrorKind::Config
                }
            }
            Self::Full { .. } => ErrorKind::Full,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::Io { .. } => ErrorKind::Io,
        }
    }

    /// URL, or path, of what it is about.
    fn object(&self) -> &str {
        match self {
            Self::NotFound { object }
            | Self::AlreadyExists { object, .. }
            | Self::Damaged { object, .. }
            | Self::FutureFormat { object, .. }
            | Self::NoBucket { object, .. }
            | Self::Full { object, .. }
            | Self::Denied { object, .. }
            | Self::Io { object, .. } => object,
            Self::Url { url, .. } | Self::Unconditional { url } => url,
            Self::Path { path, .. } => path,
        }
    }

    /// `was_there`: the store has answered before.
    pub(crate) fn from_store(
        action: &'static str,
        object: String,
        source: object_store::Error,
        was_there: bool,
    ) -> Self {
        let said = everything_said(&source);
        if said.contains("NoSuchBucket") {
            return Self::NoBucket {
                action,
                object,
                was_there,
            };
        }
        let system = system_error(&source);
        if matches!(
            system,
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        ) || ["QuotaExceeded", "StorageFull", "507 Insufficient Storage"]
            .iter()
            .any(|word| said.contains(word))
        {
            let source = Box::new(source);
            return Self::Full {
                action,
                object,
                source,
            };
        }
        match source {
            // What is missing when something is written is its folder or its upload: those come back with the next try.
            object_store::Error::NotFound { .. } if action != "write" => Self::NotFound { object },
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
                Self::AlreadyExists { object, detail: "" }
            }
            source @ (object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. }) => Self::Denied {
                action,
                object,
                reason: reason(&said),
                source: Box::new(source),
            },
            source if system == Some(io::ErrorKind::PermissionDenied) => Self::Denied {
                action,
                object,
                reason: "permission denied",
                source: Box::new(source),
            },
            source => Self::Io {
                action,
                object,
                source: Box::new(source),
            },
        }
    }
}

impl Advised for CheckpointError {
    /// [`ErrorKind::is_retryable`] of its kind.
    fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }

    fn advice(&self) -> Option<&'static str> {
        match self.kind() {
            ErrorKind::Full => Some("make room, or choose another `--run`"),
            ErrorKind::Denied => Some(
                "docs/storage.md says which permissions a run needs, and how Zipper finds endpoint, region and credentials",
            ),
            ErrorKind::Io if self.object().starts_with("s3://") => Some(
                "see whether the server runs and the endpoint (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`) is its address",
            ),
            ErrorKind::Io
            | ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Damaged
            | ErrorKind::Config => None,
        }
    }
}

/// Why an S3 server refuses, by the code in its answer.
fn reason(said: &str) -> &'static str {
    let known = [
        (
            "ExpiredToken",
            "the credentials have expired; renew them (a profile's files are read again by themselves)",
        ),
        (
            "RequestTimeTooSkewed",
            "the clock of this machine and that of the server are too far apart; set it right",
        ),
        (
            "SignatureDoesNotMatch",
            "the secret access key is not that of the access key; check AWS_SECRET_ACCESS_KEY or the profile",
        ),
        (
            "InvalidAccessKeyId",
            "the server does not know the access key; check AWS_ACCESS_KEY_ID or the profile",
        ),
    ];
    let found = known.iter().find(|(code, _)| said.contains(code));
    found.map_or(
        "the store denies access; check the credentials and what they may do in this bucket",
        |(_, reason)| reason,
    )
}

/// The messages of an error and of all that caused it.
fn everything_said(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// The operating system's error below it, if there is one.
fn system_error(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    chain(error).find_map(|error| Some(error.downcast_ref::<io::Error>()?.kind()))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: who has a folder is not told to look for a server.
    #[test]
    fn advice_is_of_the_kind_of_store() {
        let lost = |object: &str| CheckpointError::Io {
            action: "read",
            object: object.to_owned(),
            source: Box::new(object_store::Error::Generic {
                store: "any",
                source: "gone".into(),
            }),
        };
        let of_server = lost("s3://bucket/run.yaml").advice();
        assert!(of_server.is_some_and(|advice| advice.contains("`AWS_ENDPOINT_URL_S3`")));
        assert_eq!(lost("file:///runs/a/run.yaml").advice(), None);
    }

    /// Goal: what a folder's file system refuses is known as that; a folder that is missing where something is written is no missing
    /// object.
    #[test]
    fn what_a_file_system_says_depends_on_what_it_was_asked() {
        let from = |action, source| {
            let error = CheckpointError::from_store(action, "file:///runs/a/o".to_owned(), source, true);
            error.kind()
        };
        let missing = || object_store::Error::NotFound {
            path: "o".to_owned(),
            source: "gone".into(),
        };
        let refused = || object_store::Error::Generic {
            store: "LocalFileSystem",
            source: io::Error::from(io::ErrorKind::PermissionDenied).into(),
        };
        assert_eq!(from("read", missing()), ErrorKind::NotFound);
        assert_eq!(from("write", missing()), ErrorKind::Io);
        for action in ["read", "write"] {
            assert_eq!(from(action, refused()), ErrorKind::Denied);
        }
    }
}
