//! Where the service is.

use std::{net::IpAddr, path::PathBuf};

use crate::ConfigError;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Endpoint {
    Unix {
        path: PathBuf,
    },
    Tcp {
        host: String,
        port: u16,
        base: String,
    },
    Tls {
        host: String,
        port: u16,
        base: String,
    },
}

impl Endpoint {
    pub(crate) fn parse(url: &str, cleartext: bool) -> Result<Self, ConfigError> {
        let bad = || {
            ConfigError(
                "expected a url like unix:///run/kms.sock, https://kms.example:8443 or http://127.0.0.1:8200"
                    .into(),
            )
        };
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad());
        }
        if let Some(path) = url.strip_prefix("unix://") {
            if !path.starts_with('/') || path.len() == 1 {
                return Err(bad());
            }
            if path.len() > MAX_SOCKET_PATH {
                return Err(ConfigError(format!(
                    "expected the path of a socket to have at most {MAX_SOCKET_PATH} bytes, got {}",
                    path.len()
                )));
            }
            return Ok(Self::Unix { path: path.into() });
        }

        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(bad()),
        };
        let (authority, base) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') || base.contains(['?', '#']) {
            return Err(bad());
        }
        let (host, port) = split_port(authority, if tls { 443 } else { 80 }).ok_or_else(bad)?;
        let base = base.trim_end_matches('/').to_owned();
        if tls {
            return Ok(Self::Tls { host, port, base });
        }
        if !cleartext && !is_loopback(&host) {
            return Err(ConfigError(
                "expected https, or http to this machine: over http everybody on the way reads keys".into(),
            ));
        }
        Ok(Self::Tcp { host, port, base })
    }

    /// The path before that of an operation.
    pub(crate) fn base(&self) -> &str {
        match self {
            Self::Unix { .. } => "",
            Self::Tcp { base, .. } | Self::Tls { base, .. } => base,
        }
    }

    /// The value of the field `Host`.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Unix { .. } => "localhost".into(),
            Self::Tcp { host, port, .. } | Self::Tls { host, port, .. } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Tcp { host, port, .. } | Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

fn split_port(authority: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, rest)
    } else {
        match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        }
    };
    if host.is_empty() {
        return None;
    }
    let port = match port {
        "" => default,
        port => port
            .strip_prefix(':')?
            .parse()
            .ok()
            .filter(|port| *port != 0)?,
    };
    Some((host.to_owned(), port))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// What an address of a Unix socket has room for, on every system.
const MAX_SOCKET_PATH: usize = 103;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_kinds_of_urls_are_understood() {
        let tcp = |host: &str, port, base: &str| Endpoint::Tcp {
            host: host.into(),
            port,
            base: base.into(),
        };
        let cases = [
            (
                "unix:///run/kms.sock",
                Endpoint::Unix {
                    path: "/run/kms.sock".into(),
                },
            ),
            ("http://127.0.0.1:8200", tcp("127.0.0.1", 8200, "")),
            ("http://localhost/kms/", tcp("localhost", 80, "/kms")),
            ("http://[::1]:1", tcp("::1", 1, "")),
            (
                "https://kms.example",
                Endpoint::Tls {
                    host: "kms.example".into(),
                    port: 443,
                    base: String::new(),
                },
            ),
        ];
        for (url, endpoint) in cases {
            assert_eq!(Endpoint::parse(url, false), Ok(endpoint), "{url}");
        }
        assert_eq!(tcp("::1", 1, "").authority(), "[::1]:1");
    }

    #[test]
    fn anything_else_is_refused() {
        for url in [
            "",
            "kms",
            "ftp://localhost",
            "unix://run/kms.sock",
            "unix:///",
            "http://",
            "http://:80",
            "http://localhost:0",
            "http://localhost:65536",
            "http://localhost:http",
            "http://user@localhost",
            "http://localhost/?key=1",
            "http://local host",
            "http://local\r\nhost",
            "http://[::1",
            "http://[kms]:1",
            &format!("unix:///{}", "x".repeat(103)),
        ] {
            assert!(Endpoint::parse(url, true).is_err(), "{url}");
        }
    }

    #[test]
    fn http_stays_on_this_machine_unless_it_is_allowed_to_leave() {
        for url in [
            "http://kms.example",
            "http://10.0.0.1",
            "http://localhost.example",
        ] {
            assert!(Endpoint::parse(url, false).is_err());
            assert!(Endpoint::parse(url, true).is_ok());
        }
    }
}
