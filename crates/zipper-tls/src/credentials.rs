//! What a process holds to prove that it belongs to a launch, and how it is handed on.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::TlsError;
use crate::authority::COORDINATOR;

/// The variable that names the file with a process' credentials.
pub const CREDENTIALS_FILE: &str = "ZIPPER_CREDENTIALS_FILE";
/// The variable that holds them where there is no file that both sides see: in the steps of a Slurm job.
pub const CREDENTIALS: &str = "ZIPPER_CREDENTIALS";

/// How long a connection, and the handshake on it, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How a certificate begins.
const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
/// How a private key begins.
const BEGIN_KEY: &str = "-----BEGIN PRIVATE KEY-----";

/// A certificate with its private key, and the one authority whose certificates are believed. All in PEM.
#[derive(Clone)]
pub struct Credentials {
    authority: String,
    certificate: String,
    key: String,
}

impl fmt::Debug for Credentials {
    /// Not the key: what is printed is logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    pub(crate) fn new(authority: String, certificate: String, key: String) -> Self {
        Self {
            authority,
            certificate,
            key,
        }
    }

    /// All of it as one text: the key, its certificate, the authority's.
    pub fn to_pem(&self) -> String {
        [&self.key, &self.certificate, &self.authority]
            .map(|part| part.trim())
            .join("\n")
    }

    /// Reads what [`Credentials::to_pem`] wrote.
    ///
    /// # Errors
    /// [`TlsError::Malformed`], which says what is missing and never what is there.
    fn from_pem(text: &str) -> Result<Self, TlsError> {
        let (key, certificates) = text
            .find(BEGIN_CERTIFICATE)
            .map(|at| text.split_at(at))
            .ok_or(TlsError::Malformed("certificate"))?;
        if !key.trim_start().starts_with(BEGIN_KEY) {
            return Err(TlsError::Malformed("private key"));
        }
        let (certificate, authority) = certificates[1..]
            .find(BEGIN_CERTIFICATE)
            .map(|at| certificates.split_at(at + 1))
            .ok_or(TlsError::Malformed("certificate of their authority"))?;
        Ok(Self::new(
            authority.to_owned(),
            certificate.to_owned(),
            key.to_owned(),
        ))
    }

    /// Writes them to a new file that only its owner can read.
    ///
    /// # Errors
    /// [`TlsError::File`], also if there is a file already.
    pub fn write(&self, path: &Path) -> Result<(), TlsError> {
        let mut options = File::options();
        let written = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(self.to_pem().as_bytes()));
        written.map_err(|source| file_error(path, "written", source))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, others than its owner could read it, or it holds something else.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        let mode = fs::metadata(path).map(|about| about.permissions().mode() & 0o777);
        let mode = mode.map_err(|source| file_error(path, "read", source))?;
        if mode & 0o077 != 0 {
            return Err(TlsError::Readable {
                path: path.display().to_string(),
                mode,
            });
        }
        let text = fs::read_to_string(path).map_err(|source| file_error(path, "read", source))?;
        Self::from_pem(&text).map_err(|error| match error {
            TlsError::Malformed(missing) => TlsError::NotCredentials {
                path: path.display().to_string(),
                missing,
            },
            error => error,
        })
    }

    /// Those that the environment of this process names ([`CREDENTIALS_FILE`]) or holds ([`CREDENTIALS`]).
    ///
    /// # Errors
    /// [`TlsError::Missing`] if there are none; else as [`Credentials::read`].
    pub fn of_this_process() -> Result<Self, TlsError> {
        match (std::env::var_os(CREDENTIALS_FILE), std::env::var(CREDENTIALS)) {
            (Some(path), _) => Self::read(Path::new(&path)),
            (None, Ok(text)) => Self::from_pem(&text),
            (None, Err(_)) => Err(TlsError::Missing),
        }
    }

    /// The way to the coordinator at `address`, `https://host:port`. Whoever answers there must have the coordinator's
    /// certificate of the same launch.
    ///
    /// # Errors
    /// [`TlsError::Address`].
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, TlsError> {
        let refused = |source| TlsError::Address {
            address: address.to_owned(),
            source,
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(Identity::from_pem(&self.certificate, &self.key))
            .domain_name(COORDINATOR)
            .timeout(CONNECT_TIMEOUT);
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(refused)?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
        endpoint.tls_config(tls).map_err(refused)
    }

    /// What a server says and asks of those who connect: TLS 1.3, HTTP/2, a certificate of the same authority.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes());
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let mut roots = RootCertStore::empty();
        roots.add(authority.map_err(|_| TlsError::Malformed("certificate of their authority"))?)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.map_err(|_| TlsError::Malformed("certificate"))?],
                key.map_err(|_| TlsError::Malformed("private key"))?,
            )?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn file_error(path: &Path, done: &'static str, source: std::io::Error) -> TlsError {
    TlsError::File {
        path: path.display().to_string(),
        done,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Role};

    fn credentials() -> Credentials {
        let authority = Authority::new("a", Duration::from_hours(1)).expect("there is randomness");
        authority.issue(Role::Node).expect("there is randomness")
    }

    #[test]
    fn what_is_written_is_read_by_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.pem");
        let written = credentials();
        written.write(&path).expect("there is no such file yet");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        let read = Credentials::read(&path).expect("it is whole");
        assert_eq!(read.to_pem(), written.to_pem());
        let refused = written
            .write(&path)
            .expect_err("another's file is not overwritten");
        assert!(
            matches!(refused, TlsError::File { done: "written", .. }),
            "{refused}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
        let refused = Credentials::read(&path).expect_err("its group could read it");
        assert!(
            matches!(refused, TlsError::Readable { mode: 0o640, .. }),
            "{refused}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.pem");
        let refused = || Credentials::read(&path).expect_err("it is no file with credentials");
        let named = |error: &TlsError| error.to_string().contains(&path.display().to_string());

        let error = refused();
        assert!(named(&error), "{error}");
        // The chain of causes tells it, so the message does not.
        let cause = std::error::Error::source(&error).expect("the system said why");
        assert!(!error.to_string().contains(&cause.to_string()), "{error}");

        let mut cut = credentials();
        cut.key.clear();
        cut.write(&path).expect("there is no such file yet");
        let error = refused();
        assert!(
            named(&error) && error.to_string().contains("there is no private key"),
            "{error}"
        );
    }

    /// Credentials are printed by accident, as part of something else.
    #[test]
    fn neither_debugging_nor_errors_show_a_key() {
        let credentials = credentials();
        let secret = credentials.key.lines().nth(1).expect("a key has lines");
        assert!(!format!("{credentials:?}").contains(secret));
        let cut = credentials.to_pem().replace(BEGIN_CERTIFICATE, "");
        let refused = Credentials::from_pem(&cut).expect_err("there are no certificates");
        assert!(!format!("{refused} {refused:?}").contains(secret));
    }

    #[test]
    fn what_is_missing_is_named() {
        let whole = credentials();
        let refused = |text: &str| {
            Credentials::from_pem(text)
                .expect_err("it is not whole")
                .to_string()
        };
        assert_eq!(refused(""), "the credentials have no certificate");
        assert_eq!(refused(&whole.authority), "the credentials have no private key");
        let half = format!("{}\n{}", whole.key, whole.certificate);
        assert_eq!(
            refused(&half),
            "the credentials have no certificate of their authority"
        );
    }
}
