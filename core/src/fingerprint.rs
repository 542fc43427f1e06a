//! SHA-256 fingerprints: of files, of data, of stage inputs.

use std::{fmt, fs::File, io, io::Read, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(hex(&Sha256::digest(bytes)))
    }

    /// The fingerprint of a value through its JSON text. Struct fields keep their order, so equal
    /// values have equal fingerprints.
    ///
    /// # Panics
    /// When `value` cannot be written as JSON, which for this project's own types is a bug.
    pub fn of_json(value: &impl Serialize) -> Self {
        Self::of_bytes(&serde_json::to_vec(value).expect("own types serialise to JSON"))
    }

    /// The fingerprint of a file's bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut chunk)?;
            if n == 0 {
                return Ok(Self(hex(&hasher.finalize())));
            }
            hasher.update(&chunk[..n]);
        }
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits: enough to tell runs apart on a terminal.
    pub fn short(&self) -> &str {
        &self.0[..12.min(self.0.len())]
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn fingerprints_are_sha256() {
        assert_eq!(Fingerprint::of_bytes(b"abc").as_str(), ABC);
        assert_eq!(Fingerprint::of_bytes(b"abc").short(), &ABC[..12]);
    }

    #[test]
    fn a_file_has_the_fingerprint_of_its_bytes_across_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..(1 << 20) + 7).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let found = Fingerprint::of_file(&path).unwrap();
        assert_eq!(found, Fingerprint::of_bytes(&bytes));
        assert!(Fingerprint::of_file(&folder.path().join("none")).is_err());
    }

    #[test]
    fn values_have_the_fingerprint_of_their_json() {
        let found = Fingerprint::of_json(&("a", 1));
        assert_eq!(found, Fingerprint::of_bytes(br#"["a",1]"#));
        assert_ne!(found, Fingerprint::of_json(&("a", 2)));
    }

    #[test]
    fn fingerprints_are_read_as_written() {
        let found = Fingerprint::of_bytes(b"abc");
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(text, format!("\"{ABC}\""));
        assert_eq!(serde_json::from_str::<Fingerprint>(&text).unwrap(), found);
    }
}
