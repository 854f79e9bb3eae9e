//! Goal: what is laid beside what is right: seeds together, each cell beside its own baselines, steps to a loss that all reach; and what
//! is written says it. Method: a comparison small enough to be computed by hand.

use std::collections::BTreeMap;

use zipper_report::render::{RenderError, files, text};
use zipper_report::{Comparison, Costs, Group, Run, Sample};
use zipper_score::Counts;

const AXES: [&str; 4] = ["adapter.variant", "adapter.init", "model.encoder.context", "seed"];

/// A run whose utterance in German has `de` errors of 10, and that in Thai `th` of 10.
fn run(values: [&str; 4], [de, th]: [u64; 2], losses: &[f64]) -> Run {
    let mut sample = Sample::default();
    sample.add(
        "de",
        "de-1",
        Counts {
            edits: de,
            length: 10,
        },
    );
    sample.add(
        "th",
        "th-1",
        Counts {
            edits: th,
            length: 10,
        },
    );
    Run {
        values: values.map(str::to_owned).to_vec(),
        tests: BTreeMap::from([("human".to_owned(), sample.clone())]),
        silenced: BTreeMap::from([("human".to_owned(), sample)]),
        losses: (1..).map(|step| 10 * step).zip(losses.iter().copied()).collect(),
        costs: Costs {
            parameters: Some(1_234_567),
            throughput: 20.0,
            memory: Some(3 << 29),
        },
    }
}

fn comparison() -> Comparison {
    let groups = [("high", "de"), ("low", "th")].map(|(name, lang)| Group {
        name: name.to_owned(),
        languages: vec![lang.to_owned()],
    });
    let runs = [
        run(["shared", "stage1", "native", "1"], [2, 8], &[2.0, 1.0]),
        run(["shared", "stage1", "native", "2"], [4, 8], &[2.0, 1.0]),
        run(["independent", "stage1", "native", "1"], [5, 5], &[2.0, 0.5]),
        run(["soft", "stage1", "native", "1"], [3, 4], &[1.0, 0.4]),
        run(["soft", "zero", "native", "1"], [3, 2], &[3.0, 0.8]),
        run(["soft", "zero", "chunked", "1"], [9, 9], &[3.0, 0.9]),
    ];
    let axes = AXES.map(str::to_owned);
    Comparison::new(
        "demo",
        &axes,
        groups.to_vec(),
        &runs,
        vec!["hard-zero-native-1".to_owned()],
    )
}

/// A file of the report.
fn file(comparison: &Comparison, name: &str) -> String {
    let files = files(comparison).expect("a report can be written");
    let found = files.into_iter().find(|(file, _)| file == name);
    found.unwrap_or_else(|| panic!("no `{name}`")).1
}

#[test]
fn seeds_are_put_together() {
    let comparison = comparison();
    assert_eq!(
        comparison.axes,
        ["adapter.variant", "adapter.init", "model.encoder.context"]
    );
    assert_eq!(comparison.cells.len(), 5);
    let shared = &comparison.cells[0];
    assert_eq!(shared.seeds, 2);
    // 2 + 4 of 20.
    assert_eq!(shared.tests["human"].rate("de"), Some(0.3));
    assert_eq!(shared.spread("human", &["de".to_owned()]), Some((0.2, 0.4)));
}

#[test]
fn a_baseline_has_the_same_other_settings() {
    let comparison = comparison();
    let baseline = |cell: usize, variant| {
        let found = comparison.baseline(&comparison.cells[cell], variant);
        found.map(|cell| cell.values.join(" "))
    };
    assert_eq!(
        baseline(2, "independent").as_deref(),
        Some("independent stage1 native")
    );
    // `shared` has one cell for both values of `adapter.init`.
    assert_eq!(baseline(3, "shared").as_deref(), Some("shared stage1 native"));
    assert_eq!(baseline(4, "shared"), None, "nothing was chunked but `soft`");
    assert_eq!(baseline(0, "shared"), None, "not with itself");
}

#[test]
fn steps_are_counted_to_a_loss_that_all_reach() {
    let comparison = comparison();
    // Means of the first and of the first two losses: 3.0 and 1.95 are the worst.
    assert_eq!(comparison.common_loss(), Some(1.95));
    let steps: Vec<_> = comparison.cells.iter().map(|cell| cell.steps_to(1.95)).collect();
    assert_eq!(steps, [Some(20), Some(20), Some(10), Some(20), Some(20)]);
}

/// Goal: a step whose loss was no number (`training.on_non_finite: skip`) counts for nothing, wherever in a run it is.
#[test]
fn a_loss_that_is_no_number_is_left_out() {
    let runs = [
        run(["soft", "stage1", "native", "1"], [3, 4], &[2.0, 1.0, f64::NAN]),
        run(["shared", "stage1", "native", "1"], [3, 4], &[f64::NAN, 1.0, 0.5]),
    ];
    let comparison = Comparison::new("demo", &AXES.map(str::to_owned), Vec::new(), &runs, Vec::new());
    assert_eq!(comparison.cells[0].losses, [(10, 2.0), (20, 1.5)]);
    assert_eq!(comparison.cells[1].losses, [(20, 1.0), (30, 0.75)]);
    assert_eq!(comparison.common_loss(), Some(1.5));
    let steps: Vec<_> = comparison.cells.iter().map(|cell| cell.steps_to(1.5)).collect();
    assert_eq!(steps, [Some(20), Some(20)]);
}

#[test]
fn tables_say_so() {
    let text = text(&comparison());
    assert!(text.contains("no result yet: hard-zero-native-1."), "{text}");
    let line = |words: [&str; 4]| {
        let start = format!("| {} |", words.join(" | "));
        let line = text.lines().find(|line| line.starts_with(&start));
        line.unwrap_or_else(|| panic!("no `{start}` in:\n{text}"))
            .to_owned()
    };
    // One utterance a language: every resample is the same.
    assert_eq!(
        line(["soft", "stage1", "native", "1"]),
        "| soft | stage1 | native | 1 | 30.0 (30.0..30.0) | 30.0..30.0 | +0.0 (+0.0..+0.0) | -40.0 (-40.0..-40.0) \
         | 40.0 (40.0..40.0) | 40.0..40.0 | -50.0 (-50.0..-50.0) | -20.0 (-20.0..-20.0) |"
    );
    assert_eq!(
        line(["soft", "zero", "native", "heard"]),
        "| soft | zero | native | heard | 30.0 | 20.0 |"
    );
    assert!(line(["soft", "zero", "native", "1,234,567"]).ends_with("| 20.0 | 1536 | 1.9000 | 20 |"));
}

#[test]
fn csv_has_a_line_for_each_figure() {
    let text = file(&comparison(), "report.csv");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with(
        "adapter.variant,adapter.init,model.encoder.context,set,of,name,seeds,rate,low,high,silenced,"
    ));
    let width = lines[0].split(',').count();
    assert!(
        lines.iter().all(|line| line.split(',').count() == width),
        "{text}"
    );
    // 5 cells of 2 groups and 2 languages.
    assert_eq!(lines.len(), 1 + 5 * 4);
    let prefix = "soft,zero,native,human,group,low,1,0.2,0.2,0.2,0.2,-0.75,";
    assert!(lines.iter().any(|line| line.starts_with(prefix)), "{text}");
}

#[test]
fn the_page_needs_no_network_and_takes_no_text_for_html() {
    let mut comparison = comparison();
    comparison.name = "<b>demo</b>".to_owned();
    let page = file(&comparison, "report.html");
    assert!(page.contains("&lt;b&gt;demo"));
    for outside in ["src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("<svg").count(), 2);
}

/// Goal: charts show what the tables say: a bar for each cell and group as high as its rate, a curve for each cell.
#[test]
fn charts_are_drawn_to_scale() {
    let comparison = comparison();
    let rates = file(&comparison, "rates-human.svg");
    for word in ["high", "low", "soft, zero, chunked", "WER or CER, %"] {
        assert!(rates.contains(word), "no `{word}` in\n{rates}");
    }
    // Every cell has its colour in the legend, and in a bar of each group.
    let attribute = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let mut bars = BTreeMap::<String, Vec<f64>>::new();
    for line in rates.lines().filter(|line| line.starts_with("<rect")) {
        let fill = attribute(line, "fill").expect("a colour");
        let height = attribute(line, "height").and_then(|height| height.parse().ok());
        bars.entry(fill).or_default().push(height.expect("a height"));
    }
    bars.remove("#FFFFFF");
    assert_eq!(bars.len(), comparison.cells.len(), "{bars:?}");
    let mut ratios: Vec<f64> = bars.values().map(|heights| heights[0] / heights[1]).collect();
    ratios.sort_by(f64::total_cmp);
    // 30 to 80, 50 to 50, 30 to 40, 30 to 20, 90 to 90.
    for (found, expected) in ratios.iter().zip([0.375, 0.75, 1.0, 1.0, 1.5]) {
        assert!((found - expected).abs() < 0.03, "{ratios:?}");
    }
    let losses = file(&comparison, "losses.svg");
    assert!(
        losses.matches("<polyline").count() >= comparison.cells.len(),
        "{losses}"
    );
    let pictures = file(&comparison, "report.md");
    assert!(pictures.contains("(rates-human.svg)") && pictures.contains("(losses.svg)"));
}

/// Goal: what caused an error is told once, by the chain of its causes.
#[test]
fn an_error_leaves_its_cause_to_the_chain() {
    let error = RenderError::from(csv::Error::from(std::io::Error::other("the disk is full")));
    assert_eq!(error.to_string(), "the figures cannot be written as CSV");
    let cause = std::error::Error::source(&error).expect("it has one");
    assert!(cause.to_string().contains("the disk is full"), "{cause}");
}
