//! What a transcript looks like: text, JSON, SubRip and WebVTT.

use std::fmt::Write;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use zipper_types::Step;

/// Languages that are written without spaces between words, also where a pause was.
const WITHOUT_SPACES: [&str; 3] = ["ja", "yue", "zh"];

/// How transcripts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// Text alone; of several files on stdout a line each, its path, a tab and its text.
    #[default]
    Text,
    /// One JSON document with the segments and their times.
    Json,
    /// SubRip subtitles.
    Srt,
    /// WebVTT subtitles.
    Vtt,
}

impl Format {
    /// What the names of its files end in.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Json => "json",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
        }
    }

    /// Whether several transcripts can be in one document.
    pub(super) fn holds_several(self) -> bool {
        matches!(self, Self::Text | Self::Json)
    }

    /// A document with one transcript, of a checkpoint at `step`.
    pub(super) fn document(self, transcript: &Transcript, step: Step) -> String {
        match self {
            Self::Text => one_line(&transcript.text) + "\n",
            Self::Json => json_document(std::slice::from_ref(transcript), step) + "\n",
            Self::Srt => subrip(&transcript.segments),
            Self::Vtt => webvtt(&transcript.segments),
        }
    }
}

/// What is said in a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Transcript {
    path: String,
    language: String,
    /// How likely that language is; only where it was detected.
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f64>,
    /// Length of the file, in seconds.
    duration: f64,
    segments: Vec<Spoken>,
    /// That of all segments.
    text: String,
}

/// What is said in a segment of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Spoken {
    /// In seconds.
    pub(super) start: f64,
    /// In seconds.
    pub(super) end: f64,
    pub(super) text: String,
}

impl Transcript {
    pub(super) fn new(
        path: String,
        language: &str,
        probability: Option<f64>,
        duration: f64,
        segments: Vec<Spoken>,
    ) -> Self {
        let texts = segments.iter().map(|segment| segment.text.as_str());
        let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
        let between = if WITHOUT_SPACES.contains(&language) {
            ""
        } else {
            " "
        };
        Self {
            path,
            language: language.to_owned(),
            probability,
            duration,
            text: texts.join(between),
            segments,
        }
    }

    /// Its path, a tab and its text.
    pub(super) fn labelled(&self) -> String {
        format!("{}\t{}\n", self.path, one_line(&self.text))
    }
}

/// All of `transcripts`, in one document.
pub(super) fn json_document(transcripts: &[Transcript], step: Step) -> String {
    json!({"step": step, "files": transcripts}).to_string()
}

fn subrip(segments: &[Spoken]) -> String {
    let mut document = String::new();
    for (number, cue) in cues(segments).enumerate() {
        let (start, end) = (timestamp(cue.start, ','), timestamp(cue.end, ','));
        let text = one_line(&cue.text);
        let _ = write!(document, "{}\n{start} --> {end}\n{text}\n\n", number + 1);
    }
    document
}

fn webvtt(segments: &[Spoken]) -> String {
    let mut document = "WEBVTT\n\n".to_owned();
    for cue in cues(segments) {
        let (start, end) = (timestamp(cue.start, '.'), timestamp(cue.end, '.'));
        // Else it would be markup, or an arrow that begins another cue.
        let text = one_line(&cue.text)
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let _ = write!(document, "{start} --> {end}\n{text}\n\n");
    }
    document
}

/// The segments in which something is said: players take a cue without text for damage.
fn cues(segments: &[Spoken]) -> impl Iterator<Item = &Spoken> {
    segments.iter().filter(|segment| !segment.text.trim().is_empty())
}

/// The text in one line: a model may write any character, and an empty line ends a cue.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `hh:mm:ss` and the milliseconds behind `point`.
fn timestamp(seconds: f64, point: char) -> String {
    let millis = (seconds * 1000.0).round() as u64;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{point}{millis:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(start: f64, end: f64, text: &str) -> Spoken {
        Spoken {
            start,
            end,
            text: text.to_owned(),
        }
    }

    #[test]
    fn timestamps_carry_over() {
        for (seconds, expected) in [
            (0.0, "00:00:00,000"),
            (0.0625, "00:00:00,063"),
            (59.9996, "00:01:00,000"),
            (3599.5, "00:59:59,500"),
            (360_000.25, "100:00:00,250"),
        ] {
            assert_eq!(timestamp(seconds, ','), expected);
        }
    }

    #[test]
    fn subtitles_hold_any_text() {
        let segments = [
            spoken(0.5, 1.25, "one\n\n<two> --> & three"),
            spoken(1.5, 2.0, " "),
            spoken(61.0, 62.0, "vier"),
        ];
        assert_eq!(
            subrip(&segments),
            "1\n00:00:00,500 --> 00:00:01,250\none <two> --> & three\n\n\
             2\n00:01:01,000 --> 00:01:02,000\nvier\n\n"
        );
        assert_eq!(
            webvtt(&segments),
            "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\none &lt;two&gt; --&gt; &amp; three\n\n\
             00:01:01.000 --> 00:01:02.000\nvier\n\n"
        );
    }

    #[test]
    fn segments_are_joined_as_the_language_is_written() {
        let text = |language: &str| {
            let segments = vec![spoken(0.0, 1.0, "a"), spoken(1.0, 2.0, ""), spoken(2.0, 3.0, "b")];
            Transcript::new("talk.wav".to_owned(), language, None, 3.0, segments).text
        };
        assert_eq!((text("de"), text("ja")), ("a b".to_owned(), "ab".to_owned()));
    }
}
