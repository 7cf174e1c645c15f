//! Where a memif socket lives: a path in the filesystem, or a name in the abstract namespace.
//!
//! A path has an owner and a mode; an abstract name has neither, and is visible to every process of the same
//! network namespace. The abstract form is `"\0name"` with its exact length, as libmemif, VPP, DPDK and gomemif write it.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest path or abstract name, in bytes: `sun_path` has 108, one of which is the NUL after (before) it.
pub const ADDRESS_BYTES_MAX: usize = 107;

/// The address of a memif control socket.
///
/// In text, `@name` is abstract and everything else is a path:
/// ```
/// use peregrine_memif::SocketAddr;
/// assert_eq!("@vpp".parse(), Ok(SocketAddr::Abstract("vpp".into())));
/// assert_eq!("/run/x.sock".parse(), Ok(SocketAddr::Path("/run/x.sock".into())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketAddr {
    /// A socket file.
    Path(PathBuf),
    /// A name in the abstract namespace, without the leading NUL or `@`.
    Abstract(String),
}

/// Why a text is no socket address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddrError {
    /// No path, or nothing after the `@`.
    Empty,
    /// More than [`ADDRESS_BYTES_MAX`] bytes.
    TooLong {
        /// Bytes given.
        bytes: usize,
    },
    /// A NUL inside.
    Nul,
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("socket address is empty"),
            Self::TooLong { bytes } => {
                write!(f, "socket address has {bytes} bytes, at most {ADDRESS_BYTES_MAX} fit")
            }
            Self::Nul => f.write_str("socket address has a NUL byte"),
        }
    }
}

impl std::error::Error for AddrError {}

impl SocketAddr {
    /// The path of the socket file; `None` for an abstract name.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Abstract(_) => None,
        }
    }

    fn name_bytes(&self) -> &[u8] {
        match self {
            Self::Path(path) => path.as_os_str().as_bytes(),
            Self::Abstract(name) => name.as_bytes(),
        }
    }

    fn check(&self) -> Result<(), AddrError> {
        let name = self.name_bytes();
        match name.len() {
            0 => Err(AddrError::Empty),
            bytes if bytes > ADDRESS_BYTES_MAX => Err(AddrError::TooLong { bytes }),
            _ if name.contains(&0) => Err(AddrError::Nul),
            _ => Ok(()),
        }
    }

    /// The kernel's form: the structure and how many of its bytes count.
    pub(crate) fn to_raw(&self) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
        self.check().map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let skip = usize::from(matches!(self, Self::Abstract(_)));
        let mut raw =
            libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
        let name = self.name_bytes();
        for (to, from) in raw.sun_path.iter_mut().skip(skip).zip(name) {
            *to = *from as libc::c_char;
        }
        // A path counts its closing NUL; an abstract name its leading one.
        let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + name.len() + 1;
        Ok((raw, len as libc::socklen_t))
    }
}

impl FromStr for SocketAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let addr = match text.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(PathBuf::from(OsStr::new(text))),
        };
        addr.check().map(|()| addr)
    }
}

impl From<&Path> for SocketAddr {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl fmt::Display for SocketAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abstract_name_counts_exactly_its_bytes() {
        let (raw, len) = SocketAddr::Abstract("ab".into()).to_raw().unwrap();
        assert_eq!(len, 2 + 1 + 2);
        assert_eq!(raw.sun_path[..4], [0, b'a' as libc::c_char, b'b' as libc::c_char, 0]);
    }

    #[test]
    fn a_path_counts_its_closing_nul() {
        let (raw, len) = SocketAddr::Path("/x".into()).to_raw().unwrap();
        assert_eq!(len, 2 + 2 + 1);
        assert_eq!(raw.sun_path[..3], [b'/' as libc::c_char, b'x' as libc::c_char, 0]);
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        assert_eq!("".parse::<SocketAddr>(), Err(AddrError::Empty));
        assert_eq!("@".parse::<SocketAddr>(), Err(AddrError::Empty));
        assert_eq!("@a\0b".parse::<SocketAddr>(), Err(AddrError::Nul));
        assert_eq!("x".repeat(108).parse::<SocketAddr>(), Err(AddrError::TooLong { bytes: 108 }));
        assert!(SocketAddr::Path("y".repeat(108).into()).to_raw().is_err());
        assert!("x".repeat(107).parse::<SocketAddr>().is_ok());
    }

    #[test]
    fn text_and_back() {
        for text in ["@vpp", "/run/vpp/memif.sock"] {
            assert_eq!(text.parse::<SocketAddr>().unwrap().to_string(), text);
        }
    }
}
