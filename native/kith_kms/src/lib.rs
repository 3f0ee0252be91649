//! A key service over HTTP, as a provider of key-encryption keys.
//!
//! [`Kms`] is a [`KeyService`] for [`kith_vault`]. It speaks HTTP/1.1 on a Unix socket, on TCP, or on TCP with TLS and mutual
//! TLS, one request on one connection:
//!
//! ```text
//! POST /create_dek_for_thread {"thread_id"}            -> {"key_id", "wrapped"}
//! POST /encrypt               {"key_id", "plaintext"}  -> {"ciphertext"}
//! POST /decrypt               {"key_id", "ciphertext"} -> {"plaintext"}
//! GET  /get_wrapped?key_id=                            -> {"wrapped"}
//! ```
//!
//! Bytes are standard base64, a nonce stands before its ciphertext. 404 says that there is no such key, 400 or 422 that the
//! bytes do not decrypt; everything else that is not 200 is a service that does not work.
//!
//! # Bounds
//!
//! A call ends: a connection within `connect_timeout`, an attempt on it within `timeout`, and there are `retries` more of
//! these, of what may be done twice. To make a key may not: it is tried again only where no connection came about. After a
//! call has failed, others fail at once for the time of `pause`. An answer has at most [`MAX_ANSWER_BYTES`].
//!
//! # What is erased
//!
//! Requests and answers are erased after use, and what is decoded of them. Below that are the buffers of TLS and of the
//! kernel, which are not; a Unix socket has only the latter.

#![forbid(unsafe_code)]

mod calls;
mod connection;
mod endpoint;
mod exchange;
mod tls;
mod wire;

use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    time::{Duration, Instant},
};

use kith_vault::{KeyService, ServiceCiphertext, ServiceError, ServiceKey};
use parking_lot::Mutex;
use thiserror::Error;
use zeroize::Zeroizing;

pub use calls::{Call, Failure, Operation, record};
use endpoint::Endpoint;
pub use exchange::MAX_ANSWER_BYTES;
use exchange::{Answer, Request};
use tls::Tls;

/// How a key service is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// `unix:///path/of/socket`, `https://host:port/path`, or `http://host:port/path`.
    pub url: String,
    /// For `https`: the certificates, in PEM, of those who may have signed the service's.
    pub ca_file: Option<PathBuf>,
    /// For mutual TLS: certificates and private key, in PEM. The key's file is refused unless its mode is strict.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether `http` to another machine is allowed, where everybody on the way reads keys.
    pub cleartext: bool,
    /// For a connection.
    pub connect_timeout: Duration,
    /// For request and answer on it, TLS included.
    pub timeout: Duration,
    /// How often more, of what may be repeated.
    pub retries: u32,
    /// For how long nothing is asked after a call has failed.
    pub pause: Duration,
    /// Whether `aad` and `key_version` are on the wire, which not every service knows.
    pub extended: bool,
}

/// Why a key service cannot be used as it is configured.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

/// A key service.
pub struct Kms {
    // The library of TLS does not say that it survives a panic. Nothing of one call is left to the next.
    inner: AssertUnwindSafe<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    tls: Option<Tls>,
    config: Config,
    down_until: Mutex<Option<Instant>>,
}

impl Kms {
    /// Reads the configuration and its files. Nothing is sent.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let endpoint = Endpoint::parse(&config.url, config.cleartext)?;
        let tls = match (&endpoint, &config.ca_file) {
            (Endpoint::Tls { host, .. }, Some(ca_file)) => {
                Some(Tls::new(host, ca_file, config.client.as_ref())?)
            }
            (Endpoint::Tls { .. }, None) => {
                return Err(ConfigError(
                    "expected the certificates of https in a file of their own, got none".into(),
                ));
            }
            (_, None) if config.client.is_none() => None,
            _ => {
                return Err(ConfigError(
                    "expected certificates with https only, got them with another url".into(),
                ));
            }
        };
        Ok(Self {
            inner: AssertUnwindSafe(Inner {
                endpoint,
                tls,
                config,
                down_until: Mutex::new(None),
            }),
        })
    }

    /// Asks for the key of a name that no service has, to know whether it answers.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Unavailable`].
    pub fn probe(&self) -> Result<(), ServiceError> {
        match self.wrapped("kith-health") {
            Ok(_) | Err(ServiceError::KeyNotFound | ServiceError::Refused) => Ok(()),
            Err(ServiceError::Unavailable) => Err(ServiceError::Unavailable),
        }
    }

    /// The key as the service keeps it.
    ///
    /// # Errors
    ///
    /// [`ServiceError`].
    pub fn wrapped(&self, key_id: &str) -> Result<Vec<u8>, ServiceError> {
        let request = Request::get("/get_wrapped", &wire::query(key_id));
        self.call(Operation::GetWrapped, &request, |answer| {
            wire::wrapped(answer)
        })
    }

    /// One call: attempts until one is answered, or there are none left.
    fn call<T>(
        &self,
        operation: Operation,
        request: &Request,
        read: impl Fn(&Answer) -> Option<T>,
    ) -> Result<T, ServiceError> {
        calls::note(operation, || {
            let Inner {
                config, down_until, ..
            } = &*self.inner;
            if down_until
                .lock()
                .is_some_and(|until| Instant::now() < until)
            {
                return Err(Failure::Paused);
            }
            let mut attempt = 0;
            let outcome = loop {
                let outcome = self.attempt(request, &read);
                let again = match &outcome {
                    Err(failure) => failure.repeatable(operation),
                    Ok(_) => false,
                };
                if !again || attempt >= config.retries {
                    break outcome;
                }
                attempt += 1;
                std::thread::sleep(backoff(attempt));
            };
            *down_until.lock() = match &outcome {
                Err(failure) if failure.error() == ServiceError::Unavailable => {
                    Some(Instant::now() + config.pause)
                }
                _ => None,
            };
            outcome
        })
    }

    fn attempt<T>(
        &self,
        request: &Request,
        read: &impl Fn(&Answer) -> Option<T>,
    ) -> Result<T, Failure> {
        let Inner {
            endpoint,
            tls,
            config,
            ..
        } = &*self.inner;
        let mut connection = connection::open(
            endpoint,
            tls.as_ref(),
            config.connect_timeout,
            config.timeout,
        )?;
        let answer = request.send(endpoint, connection.as_mut())?;
        match answer.status {
            200 => read(&answer).ok_or(Failure::Answer),
            404 => Err(Failure::KeyNotFound),
            400 | 422 => Err(Failure::Refused),
            401 | 403 => Err(Failure::Forbidden),
            _ => Err(Failure::Status),
        }
    }
}

impl KeyService for Kms {
    fn create(&self, place: &str) -> Result<ServiceKey, ServiceError> {
        let request = Request::post("/create_dek_for_thread", &wire::create(place));
        self.call(Operation::Create, &request, wire::created)
    }

    fn encrypt(
        &self,
        key_id: &str,
        plaintext: &[u8],
        associated_data: &[u8],
    ) -> Result<ServiceCiphertext, ServiceError> {
        let aad = self.inner.config.extended.then_some(associated_data);
        let request = Request::post("/encrypt", &wire::encrypt(key_id, plaintext, aad));
        self.call(Operation::Encrypt, &request, wire::encrypted)
    }

    fn decrypt(
        &self,
        key_id: &str,
        ciphertext: &ServiceCiphertext,
        associated_data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
        let aad = self.inner.config.extended.then_some(associated_data);
        let request = Request::post("/decrypt", &wire::decrypt(key_id, ciphertext, aad));
        self.call(Operation::Decrypt, &request, wire::decrypted)
    }
}

/// From 25 ms on, doubled each time, and anything from half of it to all of it, so that many do not come back together.
fn backoff(attempt: u32) -> Duration {
    let full = 25_u64 << attempt.min(5);
    let random = {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish()
    };
    Duration::from_millis(full / 2 + random % (full / 2 + 1))
}
