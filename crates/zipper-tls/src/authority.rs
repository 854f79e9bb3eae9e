//! The certificate authority of one launch.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

use crate::TlsError;
use crate::credentials::Credentials;

/// The name by which clients know the coordinator, wherever it is: addresses change, the certificate does not.
pub(crate) const COORDINATOR: &str = "coordinator.zipper.internal";
/// Certificates are valid from this long before they were made: clocks of nodes differ, and are set.
const EARLIER: Duration = Duration::from_hours(24);

/// What the holder of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one server of a run. Nothing else may be taken for it.
    Coordinator,
    /// zipper-launch itself.
    Launcher,
    /// Node agents and the workers that they start.
    Node,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Launcher => "launcher",
            Self::Node => "node",
        }
    }
}

/// Makes the certificates of one launch. Its private key is nowhere but in this value.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    name: String,
    lifetime: Duration,
}

impl Authority {
    /// An authority like no other, for a launch of `run`; what it issues is valid for `lifetime`.
    ///
    /// # Errors
    /// [`TlsError::Issue`] if the system has no randomness.
    pub fn new(run: &str, lifetime: Duration) -> Result<Self, TlsError> {
        let name = format!("zipper run {run}");
        let failed = failed(&name);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
        let mut params = params(&name, lifetime);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(&failed)?;
        Ok(Self {
            issuer,
            name,
            lifetime,
        })
    }

    /// Credentials for a part of the launch. Each time with another key.
    ///
    /// # Errors
    /// [`TlsError::Issue`] if the system has no randomness.
    pub fn issue(&self, role: Role) -> Result<Credentials, TlsError> {
        let name = format!("{} of {}", role.name(), self.name);
        let failed = failed(&name);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
        let mut params = params(&name, self.lifetime);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        if role == Role::Coordinator {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let name = COORDINATOR.try_into().map_err(&failed)?;
            params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(&failed)?;
        Ok(Credentials::new(
            self.issuer.pem(),
            certificate.pem(),
            key.serialize_pem(),
        ))
    }
}

fn params(name: &str, lifetime: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - EARLIER).into();
    params.not_after = (now + lifetime).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn failed(what: &str) -> impl Fn(rcgen::Error) -> TlsError + use<> {
    let what = what.to_owned();
    move |source| TlsError::Issue {
        what: what.clone(),
        source,
    }
}
