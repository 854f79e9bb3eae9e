//! What can go wrong with a run's objects.

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
    /// The store could not be read or written.
    Io,
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
            Self::FutureFormat { .. } | Self::Url { .. } | Self::Path { .. } => ErrorKind::Config,
            Self::Io { .. } => ErrorKind::Io,
        }
    }

    pub(crate) fn from_store(action: &'static str, object: String, source: object_store::Error) -> Self {
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound { object },
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
                Self::AlreadyExists { object, detail: "" }
            }
            source => Self::Io {
                action,
                object,
                source: Box::new(source),
            },
        }
    }
}
