//! The store: where the ranks of a run find each other.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::error::{CollectiveError, Operation};
use crate::ffi::{Failure, RawStore};

/// A connection to a key-value store over TCP (c10d's `TCPStore`), under some prefix of its keys.
///
/// The store itself lives in the process that called [`Store::serve`], until that value and every prefix and group made
/// from it are gone: keep it in a process that outlives the generations.
pub struct Store {
    pub(crate) raw: RawStore,
    timeout: Duration,
}

impl Store {
    /// Starts a store on a free port of `host`, and returns it with the port.
    ///
    /// `host` is an address of this machine that the other ranks can reach; the store listens on no other. `timeout`
    /// bounds every later wait for a key.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Network`] when `host` is not an address of this machine.
    pub fn serve(host: &str, timeout: Duration) -> Result<(Self, u16), CollectiveError> {
        let operation = || operation("start of a store", host.to_owned());
        let from_io = |source: std::io::Error| CollectiveError::from_io(operation(), timeout, &source);
        let listener = TcpListener::bind((host, 0)).map_err(from_io)?;
        let port = listener.local_addr().map_err(from_io)?.port();
        let raw = timed(operation, timeout, || {
            RawStore::serve(listener, host, port, timeout)
        })?;
        Ok((Self { raw, timeout }, port))
    }

    /// Connects to a store that another process serves, trying until `timeout`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Timeout`] or [`crate::ErrorKind::Network`] when there is none.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, CollectiveError> {
        let operation = || operation("connection to the store", format!("{host}:{port}"));
        let raw = timed(operation, timeout, || RawStore::connect(host, port, timeout))?;
        Ok(Self { raw, timeout })
    }

    /// The same store with `prefix` before every key: what is written under one prefix is not seen under another.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Other`] when `prefix` holds a NUL character.
    pub fn prefix(&self, prefix: &str) -> Result<Self, CollectiveError> {
        let operation = || operation("prefix of the store", prefix.to_owned());
        let raw = timed(operation, self.timeout, || self.raw.prefix(prefix))?;
        Ok(Self {
            raw,
            timeout: self.timeout,
        })
    }
}

fn operation(name: &'static str, what: String) -> Operation {
    Operation {
        name,
        what,
        place: None,
    }
}

fn timed<T>(
    operation: impl FnOnce() -> Operation,
    timeout: Duration,
    call: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, CollectiveError> {
    let start = Instant::now();
    call().map_err(|failure| {
        CollectiveError::from_failure(operation(), &failure, start.elapsed(), timeout, false)
    })
}
