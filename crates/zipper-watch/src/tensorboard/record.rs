//! The format: events as Protocol Buffers, framed with lengths and checksums.
//!
//! The field numbers are those of TensorFlow's `event.proto` and `summary.proto`; the framing is that of its `TFRecord`:
//! length (u64, little-endian), its masked CRC-32C, the bytes, their masked CRC-32C.

use bytes::{BufMut, BytesMut};
use prost::Message;

/// Added to a rotated checksum, so that checksums of data that holds checksums stay good.
const MASK: u32 = 0xa282_ead8;
/// What the first event of a file says.
const VERSION: &str = "brain.Event:2";

/// `tensorboard.Event`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    pub(super) what: Option<What>,
}

/// What an event says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// `tensorboard.Summary`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) values: Vec<Value>,
}

/// `tensorboard.Summary.Value` with a simple value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    #[prost(float, optional, tag = "2")]
    pub(super) simple_value: Option<f32>,
}

/// The event that begins a file.
pub(super) fn begin(wall_time: f64) -> Event {
    Event {
        wall_time,
        step: 0,
        what: Some(What::FileVersion(VERSION.to_owned())),
    }
}

/// Adds an event to a file.
pub(super) fn append(file: &mut BytesMut, event: &Event) {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    file.put_slice(&length);
    file.put_u32_le(masked(&length));
    file.put_slice(&data);
    file.put_u32_le(masked(&data));
}

fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first record of a file that TensorFlow 2 wrote: an event of the time 0 that tells the version.
    #[test]
    fn a_record_is_framed_as_tensorflow_frames_it() {
        let mut file = BytesMut::new();
        append(&mut file, &begin(0.0));
        let data = b"\x1a\x0dbrain.Event:2";
        assert_eq!(file[..8], 15u64.to_le_bytes());
        assert_eq!(file[12..27], *data);
        assert_eq!(file.len(), 8 + 4 + 15 + 4);
        // How every file of TensorFlow 2 begins: its first event has 24 bytes.
        assert_eq!(
            masked(&24u64.to_le_bytes()),
            u32::from_le_bytes([0xa3, 0x7f, 0x4b, 0x22])
        );
        let checksum = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        assert_eq!(checksum(&file[8..12]), masked(&file[..8]));
        assert_eq!(checksum(&file[27..]), masked(&file[12..27]));
    }
}
