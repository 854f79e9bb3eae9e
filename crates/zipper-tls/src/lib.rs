//! Who may speak to a run. One certificate authority for each launch, made by zipper-launch and never written down
//! ([`Authority`]); what a process holds to prove that it belongs to the launch ([`Credentials`]); connections that only such
//! processes open ([`Credentials::endpoint`]) and take in ([`Incoming`]), with limits on what strangers can cost.
//!
//! There is no connection without encryption, on loopback neither. docs/security.md says what this protects from what.

mod authority;
mod credentials;
mod incoming;
mod refusals;

pub use authority::{Authority, Role};
pub use credentials::{CREDENTIALS, CREDENTIALS_FILE, Credentials};
pub use incoming::{Connection, Incoming, Limits};
pub use refusals::{Reason, Refusals};

/// Why credentials cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate could not be made.
    #[error("the certificate of {what} cannot be made")]
    Issue {
        /// Whose.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A file with credentials cannot be read or written.
    #[error("the credentials in `{path}` cannot be {done}")]
    File {
        /// The file.
        path: String,
        /// `read` or `written`.
        done: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Others than its owner can read a file with a private key.
    #[error("`{path}` holds a private key and has mode {mode:o}: it must be 600")]
    Readable {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// A file holds something else.
    #[error(
        "`{path}` does not hold the credentials of a run: there is no {missing}; only zipper-launch writes such files"
    )]
    NotCredentials {
        /// The file.
        path: String,
        /// What is not in it.
        missing: &'static str,
    },
    /// The process was not given any.
    #[error(
        "this process has no credentials of a run: zipper-launch hands them on by `{CREDENTIALS_FILE}` or `{CREDENTIALS}`"
    )]
    Missing,
    /// They are not what [`Credentials::to_pem`] writes.
    #[error("the credentials have no {0}")]
    Malformed(&'static str),
    /// The TLS library does not take them.
    #[error("the credentials cannot be used")]
    Unusable(#[from] tokio_rustls::rustls::Error),
    /// The client certificates' authority cannot be used.
    #[error("the credentials' authority cannot be used")]
    Verifier(#[from] tokio_rustls::rustls::server::VerifierBuilderError),
    /// The address of a server means nothing, or the transport does not take the credentials.
    #[error("`{address}` cannot be connected to")]
    Address {
        /// It.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
}
