//! The manifest: what a checkpoint consists of.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zipper_types::{Generation, Stage, Step, WorldSize};

use crate::{CheckpointError, Result, layout};

/// The manifest format that this version writes, and the newest that it reads.
///
/// Version 2 came with `object`, for parts that are not at their plain names, and with a checksum of the manifest itself.
pub const FORMAT_VERSION: u32 = 2;

/// The first format with a checksum of the manifest itself.
const SEALED_SINCE: u32 = 2;

/// One object of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Relative to the checkpoint's directory: `banks/de.safetensors`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 hash of the bytes, in hexadecimal.
    pub blake3: String,
    /// Where it is, relative to the checkpoint's directory, if not at `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

impl PartRecord {
    /// Where it is, relative to the checkpoint's directory.
    #[must_use]
    pub fn object(&self) -> &str {
        self.object.as_deref().unwrap_or(&self.path)
    }

    /// Describes `bytes` as the part at `path`.
    #[must_use]
    pub fn of(path: &str, bytes: &[u8]) -> Self {
        Self {
            path: path.to_owned(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
            object: None,
        }
    }

    /// Whether what was `found` is what was written. `object` is the URL for the message.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`], naming the object, what was expected and what was found.
    pub(crate) fn check(&self, object: String, found: &Self) -> Result<()> {
        if found.bytes != self.bytes {
            let (expected, found) = (format!("{} bytes", self.bytes), format!("{} bytes", found.bytes));
            return Err(CheckpointError::Damaged {
                object,
                expected,
                found,
            });
        }
        if found.blake3 != self.blake3 {
            let (expected, found) = (
                format!("blake3 {}", self.blake3),
                format!("blake3 {}", found.blake3),
            );
            return Err(CheckpointError::Damaged {
                object,
                expected,
                found,
            });
        }
        Ok(())
    }
}

/// What a checkpoint is and what it consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The checkpoint holds the state after this many steps.
    pub step: Step,
    /// The stage of that step.
    pub stage: Stage,
    /// When it was written, in RFC 3339.
    pub created: String,
    /// How many ranks wrote it. It can be loaded by any number.
    pub world_size: WorldSize,
    /// The generation that wrote it.
    pub generation: Generation,
    /// Its objects, the manifest excepted.
    pub parts: Vec<PartRecord>,
}

/// A manifest as it is stored.
#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    manifest: Manifest,
    /// [`Manifest::seal`].
    #[serde(rename = "manifest_blake3")]
    seal: Option<String>,
}

impl Manifest {
    /// The record of the part at `path`, relative to the checkpoint.
    #[must_use]
    pub fn part(&self, path: &str) -> Option<&PartRecord> {
        self.parts.iter().find(|part| part.path == path)
    }

    /// Size of all parts together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        let sealed = Sealed {
            manifest: self.clone(),
            seal: Some(self.seal()),
        };
        let mut json = serde_json::to_vec_pretty(&sealed).expect("a manifest has only strings and numbers");
        json.push(b'\n');
        json.into()
    }

    /// BLAKE3 hash of what the manifest says.
    fn seal(&self) -> String {
        let json = serde_json::to_vec(self).expect("a manifest has only strings and numbers");
        blake3::hash(&json).to_hex().to_string()
    }

    /// Reads the manifest of the checkpoint after `step` steps. `object` is its URL for messages.
    pub(crate) fn from_bytes(step: Step, object: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let damaged = |expected: String, found: String| CheckpointError::Damaged {
            object: object.to_owned(),
            expected,
            found,
        };
        let unreadable = |error: serde_json::Error| {
            damaged(
                "a checkpoint manifest".to_owned(),
                format!("{} bytes that are not one ({error})", bytes.len()),
            )
        };
        // The version first: of a newer format we know nothing else.
        let Version { format_version } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format_version > FORMAT_VERSION {
            let (found, supported) = (format_version, FORMAT_VERSION);
            return Err(CheckpointError::FutureFormat {
                object: object.to_owned(),
                found,
                supported,
            });
        }
        if format_version == 0 {
            return Err(damaged("a format version from 1 on".to_owned(), "0".to_owned()));
        }
        let Sealed { manifest, seal } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format_version >= SEALED_SINCE {
            let expected = manifest.seal();
            if seal.as_ref() != Some(&expected) {
                return Err(damaged(
                    format!("a manifest with the checksum {expected}"),
                    seal.map_or("none".to_owned(), |seal| format!("checksum {seal}")),
                ));
            }
        }
        if manifest.step != step {
            return Err(damaged(
                format!("the manifest of step {step}"),
                format!("that of step {}", manifest.step),
            ));
        }
        Ok(manifest)
    }

    /// The first part that cannot be one, with the reason.
    pub(crate) fn bad_part(&self) -> Option<(&str, &'static str)> {
        let mut seen = BTreeSet::new();
        self.parts.iter().find_map(|part| {
            let path = part.path.as_str();
            let problem = if layout::is_own(path) {
                "it is the checkpoint's own, and no part"
            } else if !seen.insert(path) {
                "the manifest lists it twice"
            } else {
                return None;
            };
            Some((path, problem))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no single flipped bit in a manifest goes unnoticed. Method: flip each.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut part = PartRecord::of("banks/de.safetensors", b"a bank");
        part.object = Some("generation-4/banks/de.safetensors".to_owned());
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            step: Step(500),
            stage: Stage::Zipper,
            created: "2026-01-02T03:04:05Z".to_owned(),
            world_size: WorldSize(4),
            generation: Generation(4),
            parts: vec![part, PartRecord::of("state.json", b"{}")],
        };
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(Step(500), "m", &bytes).unwrap(), manifest);
        for bit in 0..bytes.len() * 8 {
            let mut harmed = bytes.to_vec();
            harmed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = Manifest::from_bytes(Step(500), "m", &harmed) {
                assert_eq!(read, manifest, "bit {bit}: {}", String::from_utf8_lossy(&harmed));
            }
        }
    }
}
