"""Manifests of a demo corpus: JSON lines, and a line on the terminal that says what is in them."""

import json


def write(folder, split, lines):
    """Writes `lines` to `<folder>/<split>.jsonl` and prints utterances and minutes by language."""
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    minutes = {}
    for line in lines:
        minutes[line["lang"]] = minutes.get(line["lang"], 0.0) + line["duration"] / 60
    listed = ", ".join(f"{language} {amount:.1f}" for language, amount in minutes.items())
    print(f"{folder.name}: {split}: {len(lines)} utterances, {sum(minutes.values()):.1f} min ({listed})", flush=True)
