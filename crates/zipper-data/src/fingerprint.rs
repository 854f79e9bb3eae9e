//! What tells one training corpus from another. Batches are drawn from the order and the lengths of utterances: a run goes on only with
//! those that it was begun with.

use serde::Deserialize;

use crate::manifest::Utterance;

/// The BLAKE3 hash, in hexadecimal, of what batches are drawn from: the languages in their order, and of each the ids and durations of its
/// utterances in theirs. How languages take turns in the manifests does not matter.
///
/// # Panics
/// If an utterance is in none of `languages`.
pub fn corpus_fingerprint<'a>(
    languages: &[String],
    utterances: impl IntoIterator<Item = &'a Utterance>,
) -> String {
    let mut of_languages = vec![blake3::Hasher::new(); languages.len()];
    for utterance in utterances {
        let hasher = &mut of_languages[utterance.language];
        hash_text(hasher, &utterance.id);
        // In microseconds: another parser of the same manifest may give another last bit.
        let microseconds = (utterance.duration * 1e6).round() as u64;
        hasher.update(&microseconds.to_le_bytes());
    }
    let mut whole = blake3::Hasher::new();
    for (language, hasher) in languages.iter().zip(&of_languages) {
        hash_text(&mut whole, language);
        whole.update(hasher.finalize().as_bytes());
    }
    whole.finalize().to_hex().to_string()
}

/// The length goes before the text, so that two lists of texts are never the same bytes.
fn hash_text(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

/// The `corpus_fingerprint` of a JSON object; nothing where none was written, as in those of earlier versions.
///
/// # Errors
/// If it is not a JSON object, or what has that name is no text.
pub fn stored_fingerprint(json: &[u8]) -> Result<Option<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Stored {
        corpus_fingerprint: Option<String>,
    }
    let stored: Stored = serde_json::from_slice(json)?;
    Ok(stored.corpus_fingerprint)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn languages() -> Vec<String> {
        ["en", "de"].map(str::to_owned).to_vec()
    }

    fn utterance(id: &str, language: usize, duration: f64) -> Utterance {
        Utterance {
            id: id.to_owned(),
            audio_filepath: PathBuf::from(format!("/data/{id}.wav")),
            offset: None,
            duration,
            text: "one".to_owned(),
            language,
            lang: languages()[language].clone(),
        }
    }

    fn corpus() -> Vec<Utterance> {
        vec![
            utterance("a", 0, 1.0),
            utterance("b", 0, 2.0),
            utterance("c", 1, 3.0),
        ]
    }

    fn fingerprint(corpus: &[Utterance]) -> String {
        corpus_fingerprint(&languages(), corpus)
    }

    /// Everything that would change a batch, each by itself.
    #[test]
    fn what_batches_are_drawn_from_changes_it() {
        let changes: [fn(&mut Vec<Utterance>); 7] = [
            |corpus| drop(corpus.pop()),
            |corpus| corpus.push(utterance("d", 1, 3.0)),
            |corpus| corpus.swap(0, 1),
            |corpus| corpus[2].id = "x".to_owned(),
            |corpus| corpus[2].duration = 3.001,
            |corpus| corpus[1].language = 1,
            |corpus| corpus.truncate(1),
        ];
        let mut found = vec![fingerprint(&corpus())];
        for change in changes {
            let mut other = corpus();
            change(&mut other);
            let of_other = fingerprint(&other);
            assert!(!found.contains(&of_other), "{other:?}");
            found.push(of_other);
        }
        let mut reversed = languages();
        reversed.reverse();
        assert!(!found.contains(&corpus_fingerprint(&reversed, &corpus())));
    }

    /// Audio may be moved, and texts may be mended: the batches are the same. Nor do they depend on how languages take turns.
    #[test]
    fn nothing_else_changes_it() {
        let mut other = corpus();
        other[0].audio_filepath = PathBuf::from("/elsewhere/a.flac");
        other[0].text = "two".to_owned();
        other[0].duration = 1.0_f64.next_up();
        other.swap(1, 2);
        other.swap(0, 1);
        assert_eq!(fingerprint(&corpus()), fingerprint(&other));
    }

    #[test]
    fn stored_ones_are_read_and_earlier_versions_wrote_none() {
        let stored = |json: &str| stored_fingerprint(json.as_bytes()).ok();
        assert_eq!(
            stored(r#"{"step": 4, "corpus_fingerprint": "ab"}"#),
            Some(Some("ab".to_owned()))
        );
        assert_eq!(stored(r#"{"step": 4}"#), Some(None));
        assert_eq!(stored("["), None);
    }
}
