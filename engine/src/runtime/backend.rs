//! Which backend a server runs on: chosen by name, never silently exchanged.

use std::fmt;
use std::str::FromStr;

/// A backend of the runtime seam, by its name on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// `glommio`: io_uring with registered buffers.
    #[default]
    Glommio,
    /// `monoio`: io_uring.
    Monoio,
    /// `monoio-epoll`: where io_uring is forbidden; slower, file I/O blocks the shard.
    MonoioEpoll,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Glommio, Self::Monoio, Self::MonoioEpoll];

    /// Whether it cannot run without io_uring.
    #[must_use]
    pub fn needs_io_uring(self) -> bool {
        self != Self::MonoioEpoll
    }

    fn name(self) -> &'static str {
        match self {
            Self::Glommio => "glommio",
            Self::Monoio => "monoio",
            Self::MonoioEpoll => "monoio-epoll",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Not the name of a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such runtime: {0:?}; there are glommio, monoio, monoio-epoll")]
pub struct UnknownBackend(pub String);

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        Self::ALL.into_iter().find(|backend| backend.name() == name).ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_is_found_by_its_name_and_nothing_else() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
        assert_eq!(Backend::default().to_string(), "glommio");
        let error = "tokio".parse::<Backend>().unwrap_err();
        assert!(Backend::ALL.iter().all(|backend| error.to_string().contains(&backend.to_string())));
    }
}
