"""Writes the tables of README's results from the recorded runs.

    python docs/readme_results.py

A table stands between `<!-- results: NAME -->` and `<!-- end -->`, NAME that of a JSON file in
`experiments/results`, or of several, of which it gives means and standard deviations, without their
`_seed0`, `_seed1` and so on.
"""

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "experiments" / "results"

_TABLE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)
_ROWS = (
    ("predicted, the paper's settings", "given"),
    ("predicted, calibrated", "predicted"),
    ("ground truth", "ground_truth"),
)


def records(name: str) -> list[dict]:
    """The run of that name, or those of its seeds."""
    single = RESULTS / f"{name}.json"
    paths = [single] if single.is_file() else sorted(RESULTS.glob(f"{name}_seed*.json"))
    if not paths:
        raise FileNotFoundError(single)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def table(runs: list[dict]) -> str:
    """mIoU in % by iterations of propagation, a row for each kind of affinity, as Markdown."""
    iterations = runs[0]["evaluation"]["predicted"]["iterations"]
    lines = ["| affinity | " + " | ".join(map(str, iterations)) + " |"]
    lines.append("|---" * (1 + len(iterations)) + "|")
    for name, kind in _ROWS:
        if kind not in runs[0]["evaluation"]:
            continue
        if kind == "predicted" and not runs[0].get("calibration"):
            name = "predicted"
        values = zip(*(run["evaluation"][kind]["mean_iou"] for run in runs), strict=True)
        cells = [_cell([100 * value for value in at_once]) for at_once in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values):
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def with_results(text: str) -> str:
    """The text with its tables as the recorded runs have them now."""

    def written(found):
        return f"{found[1]}{table(records(found[2]))}{found[3]}"

    return _TABLE.sub(written, text)


if __name__ == "__main__":
    README.write_text(with_results(README.read_text(encoding="utf-8")), encoding="utf-8")
