"""Writes normalizers.json and error_rates.json: what transformers and jiwer answer, for tests/golden.rs.

    pip install -r requirements.txt && python make_golden.py

The texts are those below, then random ones from a fixed seed: number phrases, word salad, and characters that
Unicode treats specially. `python make_golden.py --normalizers N --seed S --output FILE` writes a larger or another
set for a search by hand (ZIPPER_GOLDEN_NORMALIZERS=FILE cargo test -p zipper-score --test golden).
"""

import argparse
import json
import random
from pathlib import Path

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

HERE = Path(__file__).parent
SPELLING = json.loads((HERE.parent.parent / "data" / "english_spelling.json").read_text())

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and\ttrailing \n",
    "Mr. Smith's dog won't go; Mrs. Jones'd been there, hasn't she?",
    "Y'all ain't gonna believe what Dr. Who's done -- he's got it!",
    "I'ma head out, imma coulda woulda shoulda, ma'am.",
    "Let's see: they 're here, we 've been, I 'm not, you 'll.",
    "Sen. Ald. Gen. Col. Lt. Jr. Sr. Esq. Prof. Capt. Gov. Rep. Pres. Rev. Hon. Asst. Assoc. St.",
    "mr.smith st.paul mrsx xmr hmm, mm mhm mmm uh um umm",
    "[noise] so <unk> I (laughs) said [a <b> c] (x (y) z) () (unclosed",
    "The colour of the aluminium aeroplane's theatre programme was grey, practised and organised.",
    "one", "ones", "two ones and one one", "one hundred and one", "a hundred and a half",
    "three and a half million", "two and a half", "and a half", "half and a half and a half", "5 and  a half dollars",
    "one oh one", "nineteen eighty four", "twenty twenty one", "two thousand and twenty one", "the 1960s and the 60 s",
    "274 th, 32nd, 1 st, 3 rd street", "zero", "zero zero seven", "oh zero", "zero hundred", "zero point five",
    "twenty first", "twenty-first century", "fifty fifth", "fifties", "two hundredth", "ninth nineth eighth twelfth",
    "one million two hundred thirty four thousand five hundred sixty seven",
    "nine hundred ninety nine decillion nine hundred ninety nine", "thousand thousand thousand", "hundred hundred",
    "1,234,567.89", "1,2,3", "3.0", "3.50", "1.5 million", "1.23 hundred", "1.234 hundred", "2.5 thousandths",
    "point five", "three point one four one five nine", "one point two point three million", "1 point $5", "point",
    "1 point 5 point 6 thousand", "ten point five billion dollars", "one point", "four point hundred", "point and",
    "$20 million", "$ 20", "£5.50", "€3", "20 dollars", "five dollars and seven cents", "two pounds and 50 cents",
    "zero dollars and five cents", "$0.07", "$0.50", "seven cents", "$2 and ¢7", "$3 ¢ 4", "dollars", "euro euro",
    "minus five", "minus", "plus or minus two", "negative twenty five degrees", "positive and", "-5 +3 $-4",
    "five percent", "5 per cent", "5 per annum", "percent", "per cent", "100%", "a % b", "%", "50 % 50",
    "double five", "triple oh seven", "double eleven", "double trouble", "triple", "call double seven triple nine two",
    "and", "one and two", "hundred and", "hundred and one", "hundreds and one", "two and 3", "5 thousand and 6",
    "a1b2c3", "B2B 4K mp3 10am 3pm 2nd1", "1s 1 1st 10 1.", "3...2...1...", "U.S.A. e.g. 3.14.", "v1.2.3",
    "12345678901234567890123456789012345678901234567890 million", "one " * 45, "007", "0007.10", "00", "0.0",
    "forty two hundred", "fourteen ninety two", "ninety nine nineteen", "sixty ten", "twenty five ten", "ten five",
    "three hundred twenty two thousand", "two thousand three hundred", "twelve hundred and sixty first",
    "flyer / flier", "mmm", "café naïve Ångström straße Łódź œuvre Ærøskøbing þing ðe Đorđe ẞ",
    "cafe\u0301 Mr\u0301 st\u0323 don\u2019t it\u2019s won’t", "ﬁne ℡ № ½ ² ① Ⅳ ㎏ ｆｕｌｌ １２３ ￥", "٣ apples ٣.٥ ٣.٠ ٣ million १२ thousand",
    "İstanbul ΟΔΟΣ ΟΔΟΣ. Σ ǅ ß", "a\u00a0b\u2003c\u3000d\u200be\u200df\x1cg\x1dh\x85i\u2028j", "tab\tone\r\ntwo\x0bthree\x0cfour",
    "_under_score_ mr_ _st x_1 1_", "x1² 1s٣", "i'm\u0e31 1\u200d \u200c1s", "emoji 👩‍👩‍👧 🇩🇪 👍🏽 ☺️ ok", "∑ ≠ © ® ™ § ¶ † ‡ • …",
    "Die Straße ist 5,5 km lang – „schön“, oder?", "L'été, c'était l'œuvre d'Hélène (rires) n° 1 !",
    "¿Dónde está el niño? ¡Aquí! [música]", "Perché no? È già l'una.", "Não, São Paulo é às três.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Йод", "Tiếng Việt: một nghìn chín trăm chín mươi chín",
    "日本語のテスト、「カタカナ」が ﾊﾝｶｸ です。", "한국어 시험입니다. 각 가\u1100\u1161\u11a8", "ภาษาไทย หนึ่งพันเก้าร้อย ๑๒๓ น้ำ",
    "مَرْحَبًا بِالعَالَم، كيف الحال؟ لا إله ١٢٣", "नमस्ते दुनिया क्षत्रिय", "தமிழ் மொழி", "ខ្មែរ ភាសា", "ພາສາລາວ", "မြန်မာ", "中文，测试。 ㈱ 𠮷",
    "שָׁלוֹם עוֹלָם", "Ελληνικά: το ὄρος", "e\u0328\u0301 o\u0302\u0323", "\u0301start", "\u00ad soft\u00adhyphen \ufeff bom",
]

NUMBER_WORDS = (
    "o oh zero one two three four five six seven eight nine ten eleven twelve thirteen fifteen nineteen ones sixes "
    "tens first second third fifth eighth nineth twelfth thirteenth twenty thirty forty ninety twenties fiftieth "
    "hundred thousand million billion decillion hundreds thousandth millions minus negative plus positive pound pounds "
    "euro dollars dollar cent cents per percent and double triple point half a the of apples is 1 2 0 10 100 1000 007 "
    "3.5 2.0 1,000 1.25 $5 £7.50 €0 ¢9 5% 1st 1960s 20th x1 1x . , - $ %"
).split()
SALAD = (
    "won't can't let's y'all i'm he's she'd they've we'll isn't it's 'd 's been gone done got mr mr. mrs. dr st. col "
    "um uh hmm colour organise grey café straße [x] <y> (z) ( ) [ ] < > don’t U.S. a.b 1.2. hello, world! "
    "The AND and a half twenty one $5 5% . ' \" - — & + = ~ ^ ` \t \n"
).split(" ")
CHARACTERS = (
    [chr(c) for c in range(0x1C, 0x180)]
    + list("\u0300\u0301\u0323\u0328\u0345\u093e\u094d\u0e31\u0e49\u20dd\u200b\u200c\u200d\u2060\ufe0f\u3099")
    + list("ΣσςİıŒœØøÆæßẞđÐþŁｱｶﾞ１２½²①Ⅳ℡㎏ﬁ各가각กำเ๑งا١ﷺकषि中国𠮷👩🇩🇪👍🏽€£¢%$.")
    + [" "] * 60
)


def random_texts(count, seed):
    rng = random.Random(seed)
    for index in range(count):
        kind = index % 4
        if kind < 2:
            yield " ".join(rng.choices(NUMBER_WORDS, k=rng.randint(2, 9)))
        elif kind == 2:
            yield rng.choice(["", " "]).join(rng.choices(SALAD + [" "] * 20, k=rng.randint(2, 14)))
        else:
            yield "".join(rng.choices(CHARACTERS, k=rng.randint(1, 24)))


def normalizer_cases(texts):
    normalizers = {
        "basic": BasicTextNormalizer(),
        "letters": BasicTextNormalizer(split_letters=True),
        "english": EnglishTextNormalizer(SPELLING),
    }
    return [{"text": text, **{name: run(text) for name, run in normalizers.items()}} for text in texts]


PAIRS = [
    ("", ""), ("", "a b"), ("a", ""), (" ", "  "), ("a b c", "a b c"), ("a b c", "a x c d"), ("a b c d", "b c"),
    ("the cat sat", "cat the sat"), ("a  b", "a b"), ("a\tb", "a b"), ("a\t b", "a b"), (" a\u00a0b ", "a b"),
    ("\x1ca b\x1d", "a b"), ("a \n b", "a b"), ("kitten", "sitting"), ("日本語です", "日本 語でした"),
    ("หนึ่งร้อย", "หนึงรอย"), ("e\u0301", "é"), ("👩‍👧", "👩"), ("einhundert eins", "ein hundert eins"),
]


def pair_cases():
    rng = random.Random(7)
    words = "a b c dd eee fünf élan 五 ก 한국".split()
    pairs = list(PAIRS)
    for _ in range(60):
        reference = rng.choices(words, k=rng.randint(1, 12))
        hypothesis = [w for w in reference if rng.random() > 0.2]
        for _ in range(rng.randint(0, 3)):
            hypothesis.insert(rng.randint(0, len(hypothesis)), rng.choice(words))
        pairs.append((" ".join(reference), " ".join(hypothesis)))

    cases = []
    for reference, hypothesis in pairs:
        case = {"reference": reference, "hypothesis": hypothesis}
        for unit, process in (("words", jiwer.process_words), ("characters", jiwer.process_characters)):
            found = process(reference, hypothesis)
            case[unit] = {
                "edits": found.substitutions + found.deletions + found.insertions,
                "length": found.hits + found.substitutions + found.deletions,
            }
        case["wer"] = float(jiwer.wer(reference, hypothesis))
        case["cer"] = float(jiwer.cer(reference, hypothesis))
        cases.append(case)
    references, hypotheses = [list(side) for side in zip(*pairs)]
    corpus = {"wer": jiwer.wer(references, hypotheses), "cer": jiwer.cer(references, hypotheses)}
    return {"pairs": cases, "corpus": corpus}


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, indent=0) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--normalizers", type=int, default=460, help="random texts beside the fixed ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write only the normalizers' cases, here")
    arguments = parser.parse_args()
    cases = normalizer_cases(TEXTS + list(random_texts(arguments.normalizers, arguments.seed)))
    if arguments.output:
        write(arguments.output, cases)
        return
    write(HERE / "normalizers.json", cases)
    write(HERE / "error_rates.json", pair_cases())


main()
