//! TLS 1.2 and 1.3, towards one service.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::{
    ConfigError, Failure,
    connection::{Connection, Stream, Timed},
};

pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    pub(crate) fn new(
        host: &str,
        ca_file: &Path,
        client: Option<&(PathBuf, PathBuf)>,
    ) -> Result<Self, ConfigError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| ConfigError("expected the name of a host in the url".into()))?;

        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca_file)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(ca_file, &error))?;
        }

        // A provider of its own, not that of the process, which may have others.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ConfigError(error.to_string()))?
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(certificates(chain)?, private_key(key)?)
                .map_err(|error| unusable(key, &error))?,
        };
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    pub(crate) fn over<S: Stream + 'static>(
        &self,
        stream: Timed<S>,
    ) -> Result<Box<dyn Connection>, Failure> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(|_| Failure::Tls)?;
        Ok(Box::new(StreamOwned::new(connection, stream)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() {
        return Err(ConfigError(format!(
            "expected certificates in PEM in {}, got none",
            path.display()
        )));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
    let pem = kith_vault::read_secret_file(path, MAX_KEY_BYTES)
        .map_err(|error| unusable(path, &error))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(path, &error))
}

/// What these errors say is about the form of a file, and never what is in it.
fn unusable(path: &Path, error: &dyn std::fmt::Display) -> ConfigError {
    ConfigError(format!("{} cannot be used: {error}", path.display()))
}

/// More than a key of RSA with 8,192 bits has in PEM.
const MAX_KEY_BYTES: usize = 16_384;
