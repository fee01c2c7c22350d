"""Writes the tables of README's results from the recorded runs.

    python docs/readme_results.py

A table stands between `<!-- results: NAME -->` and `<!-- end -->`, NAME that of a JSON file in
`experiments/results`.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "experiments" / "results"

_TABLE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)
_ROWS = (("predicted", "prediction"), ("ground truth", "ground_truth"))


def table(record: dict) -> str:
    """mIoU in % by iterations of propagation, a row for each kind of affinity, as Markdown."""
    evaluations = record["evaluation"]
    iterations = evaluations["prediction"]["iterations"]
    lines = ["| affinity | " + " | ".join(map(str, iterations)) + " |"]
    lines.append("|---" * (1 + len(iterations)) + "|")
    for name, kind in _ROWS:
        cells = [f"{100 * value:.2f}" for value in evaluations[kind]["mean_iou"]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_results(text: str) -> str:
    """The text with its tables as the recorded runs have them now."""

    def written(found):
        record = json.loads((RESULTS / f"{found[2]}.json").read_text(encoding="utf-8"))
        return f"{found[1]}{table(record)}{found[3]}"

    return _TABLE.sub(written, text)


if __name__ == "__main__":
    README.write_text(with_results(README.read_text(encoding="utf-8")), encoding="utf-8")
