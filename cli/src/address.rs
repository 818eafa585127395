//! Addresses as people write them: with a host, a port, or both.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The admin port is the data port plus this.
pub(crate) const ADMIN_OFFSET: u16 = 1000;

/// `host:port`, checked. The host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without brackets.
    pub(crate) host: String,
    /// Zero lets the kernel choose.
    pub(crate) port: u16,
}

impl Address {
    /// Parses `host:port`, `host`, `:port`, `port` or `[v6]:port`; what is missing comes from the defaults.
    ///
    /// # Errors
    ///
    /// A sentence for the user.
    pub(crate) fn parse(text: &str, default_host: &str, default_port: u16) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address; write host:port, such as 127.0.0.1:{default_port}");
        let text = text.trim();
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let (host, port) = if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        } else if let Ok(ip) = inner.parse::<Ipv6Addr>() {
            return Ok(Self { host: ip.to_string(), port: default_port });
        } else if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            ("", text)
        } else {
            text.rsplit_once(':').unwrap_or((text, ""))
        };
        let port = match port {
            "" => default_port,
            port => port.parse().map_err(|_not_a_port| wrong())?,
        };
        let host = if host.is_empty() { default_host } else { host };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if text.is_empty() || text.ends_with(':') || host.len() > 253 || !host.bytes().all(legal) {
            return Err(wrong());
        }
        Ok(Self { host: host.into(), port })
    }

    /// The address of the admin port that belongs to this data port; port zero stays zero.
    ///
    /// # Errors
    ///
    /// A sentence for the user, when the sum is no port.
    pub(crate) fn admin(&self) -> Result<Self, String> {
        let port = match self.port {
            0 => Some(0),
            port => port.checked_add(ADMIN_OFFSET),
        };
        let port = port.ok_or_else(|| format!("no admin port {ADMIN_OFFSET} above {}: give --admin", self.port))?;
        Ok(Self { host: self.host.clone(), port })
    }

    /// How this machine reaches it itself.
    #[must_use]
    pub(crate) fn seen_here(&self) -> Self {
        let host = match self.host.parse() {
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => "127.0.0.1".into(),
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => "::1".into(),
            _ => self.host.clone(),
        };
        Self { host, port: self.port }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<String> {
        Address::parse(text, "0.0.0.0", 9090).ok().map(|address| address.to_string())
    }

    #[test]
    fn what_is_missing_comes_from_the_defaults() {
        let cases = [
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("10.0.0.1", "10.0.0.1:9090"),
            ("master:9090", "master:9090"),
            ("chunk_server1", "chunk_server1:9090"),
            ("8089", "0.0.0.0:8089"),
            (":8089", "0.0.0.0:8089"),
            ("[::1]:7", "[::1]:7"),
            ("::1", "[::1]:9090"),
            ("[::]", "[::]:9090"),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text).as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", ":", "host:", "host:x", "host:65536", "99999", "http://host:1", "a b:1", "[::1", "-1:-1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_admin_port_is_a_thousand_above_and_never_wraps() {
        let admin = |port| Address { host: "h".into(), port }.admin().map(|address| address.port);
        assert_eq!(admin(9090), Ok(10090));
        assert_eq!(admin(0), Ok(0));
        assert!(admin(65000).is_err());
    }

    #[test]
    fn everywhere_is_reached_through_loopback() {
        for (text, want) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            let address = Address::parse(text, "", 1).unwrap();
            assert_eq!(address.seen_here().to_string(), want);
        }
    }
}
