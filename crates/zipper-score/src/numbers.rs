//! Spoken English numbers become digits: `one hundred and five dollars` becomes `$105`.
//!
//! [`write_in_digits`] works in three passes: separate what is written together, read the words one by one with a
//! [`Reader`] that holds the number spoken so far, and tidy up money and the word "one".
//!
//! The patterns' `\b` differs from Python's only beside joiners (U+200C, U+200D) and numerals that are not decimal
//! digits, such as the Ethiopic ones: the text is free of marks here.

use std::collections::HashMap;
use std::sync::LazyLock;

use num_bigint::BigUint;
use regex::{Captures, Regex};

use crate::text::{Edge, matches_char, pattern, replace_phrase, split_words};

static AND_A_HALF: LazyLock<Regex> = LazyLock::new(|| pattern(r"\band[\s\x1c-\x1f]+a[\s\x1c-\x1f]+half\b"));
static LETTER_DIGIT: LazyLock<Regex> = LazyLock::new(|| pattern(r"([a-z])([0-9])"));
static DIGIT_LETTER: LazyLock<Regex> = LazyLock::new(|| pattern(r"([0-9])([a-z])"));
static SPACED_SUFFIX: LazyLock<Regex> = LazyLock::new(|| pattern(r"([0-9])[\s\x1c-\x1f]+(st|nd|rd|th|s)\b"));
static CURRENCY_AND_CENTS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b"));
static ONLY_CENTS: LazyLock<Regex> = LazyLock::new(|| pattern(r"[€£$]0.([0-9]{1,2})\b"));
static NUMERAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\d+(\.\d+)?$"));
static DECIMAL_DIGIT: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\d$"));

/// Rewrites the numbers of cleaned lower-case `text`, and joins all words by single spaces.
pub(crate) fn write_in_digits(text: &str) -> String {
    let separated = separate(text);
    let words: Vec<&str> = split_words(&separated).collect();
    tidy(&Reader::default().read(&words))
}

/// Says "and a half" as "point five", and puts a space between letters and digits except before `1960s` or `1st`.
fn separate(text: &str) -> String {
    let segments: Vec<&str> = AND_A_HALF.split(text).collect();
    let mut parts = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let Some(last) = split_words(segment).last() else {
            continue;
        };
        parts.push(*segment);
        if index + 1 < segments.len() {
            let after_number = NumberWord::parse(last)
                .is_some_and(|last| last.is_decimal() || matches!(last, NumberWord::Multiplier(_)));
            parts.push(if after_number { "point five" } else { "and a half" });
        }
    }
    let joined = parts.join(" ");
    let spaced = LETTER_DIGIT.replace_all(&joined, "${1} ${2}");
    let spaced = DIGIT_LETTER.replace_all(&spaced, "${1} ${2}");
    SPACED_SUFFIX.replace_all(&spaced, "${1}${2}").into_owned()
}

/// Joins dollars and cents, writes an amount below one unit in cents, and leaves a lone 1 as a word.
fn tidy(text: &str) -> String {
    let joined = CURRENCY_AND_CENTS.replace_all(text, |found: &Captures<'_>| {
        format!("{}{}.{:0>2}", &found[1], &found[2], &found[3])
    });
    let cents = ONLY_CENTS.replace_all(&joined, |found: &Captures<'_>| {
        let digits = found[1].strip_prefix('0').unwrap_or(&found[1]);
        format!("¢{}", if digits.is_empty() { "0" } else { digits })
    });
    let one = replace_phrase(&cents, "1", "one", Edge::WholeWord);
    replace_phrase(&one, "1s", "ones", Edge::WholeWord)
}

/// A word that can be part of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberWord {
    Zero,
    /// One to nineteen.
    Unit(u8),
    /// Twenty, thirty, to ninety.
    Tens(u8),
    /// A power of ten from hundred on, by its exponent.
    Multiplier(u8),
    /// An ordinal or a plural, which ends the number: `fifth`, `twenties`, `hundredth`.
    Suffixed(Stem, &'static str),
    /// Plus or minus, before the number.
    Sign(char),
    /// Written before the number, spoken after it.
    Currency(char),
    Per,
    Percent,
    And,
    Point,
    /// The next digit so many times.
    Repeat(usize),
}

/// What an ordinal or a plural is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stem {
    Unit(u8),
    Tens(u8),
    Multiplier(u8),
}

static NUMBER_WORDS: LazyLock<HashMap<String, NumberWord>> = LazyLock::new(number_words);

impl NumberWord {
    fn parse(word: &str) -> Option<Self> {
        NUMBER_WORDS.get(word).copied()
    }

    /// Whether the word can follow "point".
    fn is_decimal(self) -> bool {
        matches!(self, Self::Zero | Self::Unit(_) | Self::Tens(_))
    }

    /// The digits that "double" and "triple" repeat, if they can repeat this word.
    fn repeatable(self) -> Option<u8> {
        match self {
            Self::Zero => Some(0),
            Self::Unit(unit) => Some(unit),
            _ => None,
        }
    }
}

/// From one on.
const UNITS: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
                     fifteen sixteen seventeen eighteen nineteen";

/// What the tens from 20 on begin with.
const TENS: [&str; 8] = [
    "twent", "thirt", "fort", "fift", "sixt", "sevent", "eight", "ninet",
];

/// Powers of ten with their exponents.
const MULTIPLIERS: [(&str, u8); 12] = [
    ("hundred", 2),
    ("thousand", 3),
    ("million", 6),
    ("billion", 9),
    ("trillion", 12),
    ("quadrillion", 15),
    ("quintillion", 18),
    ("sextillion", 21),
    ("septillion", 24),
    ("octillion", 27),
    ("nonillion", 30),
    ("decillion", 33),
];

/// Words that nothing is made from.
const OTHERS: [(&str, NumberWord); 22] = [
    ("o", NumberWord::Zero),
    ("oh", NumberWord::Zero),
    ("zero", NumberWord::Zero),
    ("zeroth", NumberWord::Suffixed(Stem::Unit(0), "th")),
    ("minus", NumberWord::Sign('-')),
    ("negative", NumberWord::Sign('-')),
    ("plus", NumberWord::Sign('+')),
    ("positive", NumberWord::Sign('+')),
    ("pound", NumberWord::Currency('£')),
    ("pounds", NumberWord::Currency('£')),
    ("euro", NumberWord::Currency('€')),
    ("euros", NumberWord::Currency('€')),
    ("dollar", NumberWord::Currency('$')),
    ("dollars", NumberWord::Currency('$')),
    ("cent", NumberWord::Currency('¢')),
    ("cents", NumberWord::Currency('¢')),
    ("per", NumberWord::Per),
    ("percent", NumberWord::Percent),
    ("and", NumberWord::And),
    ("point", NumberWord::Point),
    ("double", NumberWord::Repeat(2)),
    ("triple", NumberWord::Repeat(3)),
];

fn number_words() -> HashMap<String, NumberWord> {
    let mut words: HashMap<String, NumberWord> = HashMap::new();
    for (unit, name) in (1..).zip(UNITS.split(' ')) {
        let plural = if name == "six" {
            "sixes".to_owned()
        } else {
            format!("{name}s")
        };
        // As upstream: "nineth" is known and "ninth" is not.
        let (ordinal, ending) = match name {
            "one" => ("first".to_owned(), "st"),
            "two" => ("second".to_owned(), "nd"),
            "three" => ("third".to_owned(), "rd"),
            "five" => ("fifth".to_owned(), "th"),
            "twelve" => ("twelfth".to_owned(), "th"),
            _ if name.ends_with('t') => (format!("{name}h"), "th"),
            _ => (format!("{name}th"), "th"),
        };
        words.insert(name.to_owned(), NumberWord::Unit(unit));
        words.insert(plural, NumberWord::Suffixed(Stem::Unit(unit), "s"));
        words.insert(ordinal, NumberWord::Suffixed(Stem::Unit(unit), ending));
    }
    for (tens, stem) in (20..).step_by(10).zip(TENS) {
        words.insert(format!("{stem}y"), NumberWord::Tens(tens));
        words.insert(format!("{stem}ies"), NumberWord::Suffixed(Stem::Tens(tens), "s"));
        words.insert(
            format!("{stem}ieth"),
            NumberWord::Suffixed(Stem::Tens(tens), "th"),
        );
    }
    for (name, exponent) in MULTIPLIERS {
        words.insert(name.to_owned(), NumberWord::Multiplier(exponent));
        words.insert(
            format!("{name}s"),
            NumberWord::Suffixed(Stem::Multiplier(exponent), "s"),
        );
        words.insert(
            format!("{name}th"),
            NumberWord::Suffixed(Stem::Multiplier(exponent), "th"),
        );
    }
    words.extend(OTHERS.map(|(name, word)| (name.to_owned(), word)));
    words
}

/// The number spoken so far.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// A quantity that further words can add to or multiply.
    Quantity(BigUint),
    /// Digits one after the other, perhaps with a point: telephone numbers, years, decimals.
    Digits(String),
}

impl Value {
    fn spell(&self) -> String {
        match self {
            Self::Quantity(quantity) => quantity.to_string(),
            Self::Digits(digits) => digits.clone(),
        }
    }

    /// After "twenty" comes "one": added where there is room for it, otherwise written behind.
    fn then_unit(self, unit: u8, previous: Option<NumberWord>) -> Self {
        let room = if unit < 10 { 10_u32 } else { 100 };
        match (self, previous) {
            (Self::Digits(mut digits), Some(NumberWord::Tens(_))) if unit < 10 => {
                digits.pop();
                Self::Digits(format!("{digits}{unit}"))
            }
            (Self::Quantity(quantity), previous)
                if !matches!(previous, Some(NumberWord::Unit(_))) && is_multiple(&quantity, room) =>
            {
                Self::Quantity(quantity + unit)
            }
            (value, _) => Self::Digits(format!("{}{unit}", value.spell())),
        }
    }

    fn then_tens(self, tens: u8) -> Self {
        match self {
            Self::Quantity(quantity) if is_multiple(&quantity, 100) => Self::Quantity(quantity + tens),
            value => Self::Digits(format!("{}{tens}", value.spell())),
        }
    }

    /// Times 10 to the `exponent`: for a quantity only its last three digits ("two thousand three" times hundred is
    /// 2,300), for digits all of them. `None` if the result is not whole.
    fn times(&self, exponent: u8) -> Option<BigUint> {
        match self {
            Self::Quantity(quantity) => {
                let residual = quantity % 1000_u32;
                Some(quantity - &residual + residual * power_of_ten(exponent))
            }
            Self::Digits(digits) => shift_point(digits, exponent),
        }
    }
}

fn is_multiple(quantity: &BigUint, of: u32) -> bool {
    quantity % of == BigUint::ZERO
}

fn power_of_ten(exponent: u8) -> BigUint {
    BigUint::from(10_u32).pow(u32::from(exponent))
}

/// `digits` times 10 to the `exponent`; `None` if `digits` is no decimal number or the product is not whole.
fn shift_point(digits: &str, exponent: u8) -> Option<BigUint> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = ascii_digits(whole)?;
    let fraction = ascii_digits(fraction)?;
    let fraction = fraction.trim_end_matches('0');
    let zeros = usize::from(exponent).checked_sub(fraction.len())?;
    BigUint::parse_bytes(format!("0{whole}{fraction}{}", "0".repeat(zeros)).as_bytes(), 10)
}

/// Decimal digits of any script in ASCII; `None` if another character is among them.
fn ascii_digits(digits: &str) -> Option<String> {
    digits
        .chars()
        .map(decimal_value)
        .map(|value| value.and_then(|value| char::from_digit(value, 10)))
        .collect()
}

/// The value of a decimal digit of any script. Unicode lays them out in runs of ten that begin with zero.
fn decimal_value(digit: char) -> Option<u32> {
    let is_digit = |code: u32| char::from_u32(code).is_some_and(|c| matches_char(&DECIMAL_DIGIT, c));
    let code = u32::from(digit);
    let digits_before = (0..code).rev().take_while(|before| is_digit(*before)).count();
    is_digit(code).then_some(digits_before as u32 % 10)
}

/// Reads words and writes them out, numbers in digits.
#[derive(Debug, Default)]
struct Reader {
    /// Sign or currency of the number to come.
    prefix: Option<char>,
    value: Option<Value>,
    written: Vec<String>,
}

impl Reader {
    fn read(mut self, words: &[&str]) -> String {
        let mut index = 0;
        while let Some(&word) = words.get(index) {
            let next = words.get(index + 1).copied();
            let previous = index
                .checked_sub(1)
                .and_then(|before| NumberWord::parse(words[before]));
            let consumed_next = if let Some(known) = NumberWord::parse(word) {
                self.number_word(word, known, previous, next)
            } else {
                self.other_word(word);
                false
            };
            index += if consumed_next { 2 } else { 1 };
        }
        self.finish_number();
        self.written.join(" ")
    }

    /// A numeral, perhaps with a sign, or a word that has nothing to do with numbers.
    fn other_word(&mut self, word: &str) {
        let sign = word.chars().next().filter(|first| "+-$¢€£".contains(*first));
        let unsigned = sign.map_or(word, |sign| &word[sign.len_utf8()..]);
        if !is_numeral(unsigned) {
            self.finish_number();
            self.write(word);
            return;
        }
        if let Some(Value::Digits(digits)) = &mut self.value
            && digits.ends_with('.')
        {
            digits.push_str(word);
            return;
        }
        self.finish_number();
        self.prefix = sign.or(self.prefix);
        self.value = Some(match shift_point(unsigned, 0) {
            Some(quantity) => Value::Quantity(quantity),
            None => Value::Digits(unsigned.to_owned()),
        });
    }

    /// Reads a word of [`NUMBER_WORDS`]; returns whether it took the next word with it.
    fn number_word(
        &mut self,
        word: &str,
        known: NumberWord,
        previous: Option<NumberWord>,
        next: Option<&str>,
    ) -> bool {
        let next_known = next.and_then(NumberWord::parse);
        let next_is_numeral = next.is_some_and(is_numeral);
        let number_follows = next_known.is_some() || next_is_numeral;
        match known {
            NumberWord::Zero => self.append_digits("0"),
            NumberWord::Unit(unit) => self.value = Some(self.with_unit(unit, previous)),
            NumberWord::Tens(tens) => self.value = Some(self.with_tens(tens)),
            NumberWord::Multiplier(exponent) => self.value = Some(self.multiplied(exponent)),
            NumberWord::Suffixed(stem, suffix) => {
                let value = match stem {
                    Stem::Unit(unit) => self.with_unit(unit, previous),
                    Stem::Tens(tens) => self.with_tens(tens),
                    Stem::Multiplier(exponent) => self.multiplied(exponent),
                };
                self.write(&(value.spell() + suffix));
            }
            NumberWord::Sign(sign) => {
                self.finish_number();
                if number_follows {
                    self.prefix = Some(sign);
                } else {
                    self.write(word);
                }
            }
            NumberWord::Currency(symbol) if self.value.is_some() => {
                self.prefix = Some(symbol);
                self.finish_number();
            }
            NumberWord::Percent if let Some(value) = self.value.take() => self.write(&(value.spell() + "%")),
            NumberWord::Per
                if next == Some("cent")
                    && let Some(value) = self.value.take() =>
            {
                self.write(&(value.spell() + "%"));
                return true;
            }
            NumberWord::And if number_follows && matches!(previous, Some(NumberWord::Multiplier(_))) => {}
            NumberWord::Repeat(times) if let Some(digits) = next_known.and_then(NumberWord::repeatable) => {
                self.append_digits(&digits.to_string().repeat(times));
                return true;
            }
            NumberWord::Point if number_follows => {
                if next_is_numeral || next_known.is_some_and(NumberWord::is_decimal) {
                    self.append_digits(".");
                }
            }
            NumberWord::Currency(_)
            | NumberWord::Per
            | NumberWord::Percent
            | NumberWord::And
            | NumberWord::Point
            | NumberWord::Repeat(_) => {
                self.finish_number();
                self.write(word);
            }
        }
        false
    }

    fn with_unit(&mut self, unit: u8, previous: Option<NumberWord>) -> Value {
        match self.value.take() {
            None => Value::Quantity(unit.into()),
            Some(value) => value.then_unit(unit, previous),
        }
    }

    fn with_tens(&mut self, tens: u8) -> Value {
        match self.value.take() {
            None => Value::Quantity(tens.into()),
            Some(value) => value.then_tens(tens),
        }
    }

    /// What a multiplier makes of the value so far. A value that it cannot multiply is written, and the multiplier
    /// stands for itself.
    fn multiplied(&mut self, exponent: u8) -> Value {
        let Some(value) = self.value.take() else {
            return Value::Quantity(power_of_ten(exponent));
        };
        Value::Quantity(value.times(exponent).unwrap_or_else(|| {
            self.write(&value.spell());
            power_of_ten(exponent)
        }))
    }

    /// Writes `digits` behind the value so far; a quantity of zero leaves no trace.
    fn append_digits(&mut self, digits: &str) {
        let so_far = match self.value.take() {
            Some(value) if value != Value::Quantity(BigUint::ZERO) => value.spell(),
            _ => String::new(),
        };
        self.value = Some(Value::Digits(so_far + digits));
    }

    fn finish_number(&mut self) {
        if let Some(value) = self.value.take() {
            self.write(&value.spell());
        }
    }

    /// Writes a word with the prefix that waits for it, if any.
    fn write(&mut self, word: &str) {
        let prefix = self.prefix.take().map(String::from).unwrap_or_default();
        self.written.push(prefix + word);
    }
}

fn is_numeral(word: &str) -> bool {
    NUMERAL.is_match(word)
}
