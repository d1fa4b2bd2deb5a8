//! The group's secret: a file of 64 hexadecimal digits that only its owner can read.

use super::nonce::Nonces;
use crate::limits::SECRET_BYTES;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The secret can't be used.
#[derive(Debug)]
pub enum SecretError {
    /// The file can't be read or made.
    Io(io::Error),
    /// Others than its owner have rights on the file (its mode).
    Open(u32),
    /// The content is something else.
    Content,
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretError::Io(e) => e.fmt(f),
            SecretError::Open(mode) => {
                write!(
                    f,
                    "its mode is {mode:04o}, but only its owner may have rights on it (0600)"
                )
            }
            SecretError::Content => {
                write!(
                    f,
                    "it does not consist of {} hexadecimal digits",
                    2 * SECRET_BYTES
                )
            }
        }
    }
}

impl std::error::Error for SecretError {}

/// Reads the secret.
pub fn load(path: &Path) -> Result<[u8; SECRET_BYTES], SecretError> {
    let file = File::open(path).map_err(SecretError::Io)?;
    let mode = file
        .metadata()
        .map_err(SecretError::Io)?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Open(mode));
    }
    let mut text = Vec::new();
    let most = 2 * SECRET_BYTES as u64 + 2;
    file.take(most)
        .read_to_end(&mut text)
        .map_err(SecretError::Io)?;
    let digits = text.trim_ascii_end();
    let mut secret = [0; SECRET_BYTES];
    if digits.len() != 2 * SECRET_BYTES {
        return Err(SecretError::Content);
    }
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).ok_or(SecretError::Content);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).expect("two digits");
    }
    Ok(secret)
}

/// Makes a fresh secret, durable; there must be no such file yet.
pub fn create(path: &Path) -> Result<(), SecretError> {
    let make = || {
        let mut secret = Nonces::new()?
            .fresh()?
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>();
        secret.push('\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(secret.as_bytes())?;
        file.sync_all()
    };
    make().map_err(SecretError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn a_secret_is_made_once_read_back_and_kept_to_its_owner() {
        let path = std::env::temp_dir().join(format!("pgr-secret-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        create(&path).unwrap();
        let secret = load(&path).unwrap();
        assert_ne!(secret, [0; SECRET_BYTES]);
        assert!(matches!(create(&path), Err(SecretError::Io(_))));
        assert_eq!(load(&path).unwrap(), secret);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let open = load(&path).unwrap_err().to_string();
        assert_eq!(
            open,
            "its mode is 0640, but only its owner may have rights on it (0600)"
        );
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for wrong in ["", "12", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66)] {
            fs::write(&path, wrong).unwrap();
            assert!(matches!(load(&path), Err(SecretError::Content)), "{wrong}");
        }
        fs::write(&path, "a".repeat(64)).unwrap();
        assert_eq!(load(&path).unwrap(), [0xaa; SECRET_BYTES]);
        fs::remove_file(&path).unwrap();
    }
}
