//! Words and figures that fit into a line.

/// What stands between two parts of a line.
const BETWEEN: &str = "  ";

/// `1h 3m`, `2d 5h`, `48s`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", whole % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// As many of `parts` in a line as have room in `width` columns; the first ones matter most. What is left out is counted if `rest`
/// says how.
pub(super) fn fit(parts: &[String], width: usize, rest: Option<&str>) -> String {
    let mut line = String::new();
    for (index, part) in parts.iter().enumerate() {
        let between = if line.is_empty() { "" } else { BETWEEN };
        let longer = format!("{line}{between}{part}");
        let left = parts.len() - index - 1;
        let note = match rest {
            Some(rest) if left > 0 => format!("{BETWEEN}+{left} {rest}"),
            _ => String::new(),
        };
        if console::measure_text_width(&longer) + note.len() > width {
            if let Some(rest) = rest {
                let note = format!("+{} {rest}", left + 1);
                let noted = format!("{line}{between}{note}");
                return console::truncate_str(&noted, width, "").into_owned();
            }
            break;
        }
        line = longer;
    }
    if line.is_empty() {
        line = parts.first().cloned().unwrap_or_default();
    }
    console::truncate_str(&line, width, "…").into_owned()
}

/// `text` in lines of at most `width` columns, broken between words; a word that is longer is broken where it has to be.
pub(crate) fn wrap(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut rest = line.trim_end();
        loop {
            let fits = columns(rest, width);
            if fits == rest.len() {
                lines.push(rest);
                break;
            }
            // A word that begins just behind the edge fits, too.
            let after = rest[fits..].starts_with(' ');
            let space = rest[..fits]
                .rfind(' ')
                .filter(|at| !rest[..*at].trim().is_empty());
            let cut = if after { fits } else { space.unwrap_or(fits) };
            let (first, next) = rest.split_at(cut.max(1));
            lines.push(first.trim_end());
            rest = next.trim_start();
        }
    }
    lines.join("\n")
}

/// How many bytes of `text` have room in `width` columns; at least one character.
fn columns(text: &str, width: usize) -> usize {
    let ends = text
        .char_indices()
        .map(|(at, character)| at + character.len_utf8());
    let fitting = ends.take_while(|end| console::measure_text_width(&text[..*end]) <= width);
    let first = text.chars().next().map_or(0, char::len_utf8);
    fitting.last().unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_never_have_more_columns_than_there_are() {
        let parts: Vec<String> = ["en 1.23", "de 2.34", "vi 3.45", "ja 4.56"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(fit(&parts, 80, None), "en 1.23  de 2.34  vi 3.45  ja 4.56");
        assert_eq!(fit(&parts, 25, None), "en 1.23  de 2.34  vi 3.45");
        assert_eq!(fit(&parts, 25, Some("more")), "en 1.23  de 2.34  +2 more");
        assert_eq!(fit(&parts, 5, None), "en 1…");
        for width in 1..60 {
            for rest in [None, Some("more")] {
                let line = fit(&parts, width, rest);
                assert!(console::measure_text_width(&line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        for (text, width, lines) in [
            ("one two three", 7, "one two\nthree"),
            ("one two three", 8, "one two\nthree"),
            ("one two three", 20, "one two three"),
            ("abcdefgh ij", 3, "abc\ndef\ngh\nij"),
            ("  indented words", 12, "  indented\nwords"),
            ("a\n\nb", 5, "a\n\nb"),
            ("schön größer", 6, "schön\ngrößer"),
            ("", 5, ""),
        ] {
            assert_eq!(wrap(text, width), lines, "`{text}` in {width}");
        }
        let text = "worker `node1/0` (rank 1) on vm was ended by signal 9 日本語 and so on";
        for width in 2..60 {
            let wrapped = wrap(text, width);
            assert!(
                wrapped
                    .lines()
                    .all(|line| console::measure_text_width(line) <= width),
                "{width}: {wrapped}"
            );
            let words = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(words(&wrapped), words(text));
        }
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (48.9, "48s"),
            (192.0, "3m 12s"),
            (3_780.0, "1h 3m"),
            (190_800.0, "2d 5h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
