//! Connections that were not taken in: how many, why, and a line about them now and then.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// A line is logged this often at most: strangers must not fill disks.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer showed no certificate.
    NoCertificate,
    /// Its certificate is of another launch or run, or not for clients; or it takes this launch for another.
    OtherRun,
    /// Its certificate is not valid at this time.
    Expired,
    /// What it said is not TLS 1.3 as this server speaks it.
    Protocol,
    /// It went away, or did not say enough in time.
    Unfinished,
    /// There are as many connections as may be.
    Crowded,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NoCertificate,
        Self::OtherRun,
        Self::Expired,
        Self::Protocol,
        Self::Unfinished,
        Self::Crowded,
    ];

    /// A word for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::OtherRun => "other_run",
            Self::Expired => "expired",
            Self::Protocol => "protocol",
            Self::Unfinished => "unfinished",
            Self::Crowded => "crowded",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NoCertificate => "it showed no certificate",
            Self::OtherRun => {
                "its certificate is not that of a client of this launch, or it takes this launch for another"
            }
            Self::Expired => "its certificate is not valid at this time",
            Self::Protocol => "it does not speak TLS 1.3",
            Self::Unfinished => "it did not finish the handshake in time",
            Self::Crowded => "there are as many connections as may be",
        }
    }

    /// What a handshake failed of.
    pub(crate) fn of(error: &std::io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match tls {
            None => Self::Unfinished,
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(Error::InvalidCertificate(why)) => match why {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                _ => Self::OtherRun,
            },
            Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => Self::Expired,
            Some(Error::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError,
            )) => Self::OtherRun,
            Some(_) => Self::Protocol,
        }
    }
}

/// Counts of refused connections. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: [AtomicU64; Reason::ALL.len()],
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    last: Option<Instant>,
    /// Refused and not told of.
    untold: u64,
}

impl Refusals {
    /// How many connections were refused for this reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.0.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// How many for each reason.
    pub fn counts(&self) -> [(Reason, u64); Reason::ALL.len()] {
        Reason::ALL.map(|reason| (reason, self.count(reason)))
    }

    pub(crate) fn add(&self, reason: Reason, peer: IpAddr) {
        self.0.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
        let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            log.untold += 1;
            return;
        }
        log.last = Some(Instant::now());
        let others = match std::mem::take(&mut log.untold) {
            0 => String::new(),
            others => format!("; {others} others were refused since this was last said"),
        };
        drop(log);
        tracing::warn!("a connection from {peer} was refused: {}{others}", reason.text());
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn reasons_are_known_by_the_errors_of_handshakes() {
        let of = |error| Reason::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(of(Error::NoCertificatesPresented), Reason::NoCertificate);
        assert_eq!(
            of(Error::InvalidCertificate(CertificateError::Expired)),
            Reason::Expired
        );
        assert_eq!(
            of(Error::InvalidCertificate(CertificateError::BadSignature)),
            Reason::OtherRun
        );
        assert_eq!(
            of(Error::AlertReceived(AlertDescription::UnknownCA)),
            Reason::OtherRun
        );
        assert_eq!(of(Error::DecryptError), Reason::Protocol);
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(Reason::of(&eof), Reason::Unfinished);
        for reason in Reason::ALL {
            assert_eq!(Reason::ALL[reason as usize], reason);
        }
    }
}
