"""Fill the numbers of the README's table of detectors from comparisons.

    python runs/readme_detectors.py COMPARISON [COMPARISON ...]

A COMPARISON is the folder of `boxwright compare`; several are the same comparison with other seeds, of which the table
has the mean and the line below it the largest difference. The first three columns stay as they are; detectors that were
not compared get a dash. Times are left out, as they depend on what else the machine did. `runs/compare_bccd.sh` calls
this.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from textwrap import fill as fill_lines
from typing import Any

README = Path(__file__).parents[1] / "README.md"
WORDS = 3  # columns in front of the numbers
HEAD = ("AP", "AP50", "ECE", "M param.")
NUMBERS = "Numbers: "  # how the line below the table begins


def numbers(row: dict[str, Any]) -> tuple[float, ...]:
    """What `HEAD` names, of one detector of a comparison."""
    stats = row["stats"]
    return stats["AP"], stats["AP50"], stats["ECE"], row["cost"]["parameters"] / 1e6


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """The mean over seeds as text; a dash for what is unknown."""
    means = [mean(each) for each in zip(*map(numbers, rows), strict=True)] if rows else [-1.0] * len(HEAD)
    digits = (3, 3, 3, 1)
    return ["-" if value < 0 else f"{value:.{n}f}" for value, n in zip(means, digits, strict=True)]


def line_below(comparisons: list[dict[str, Any]]) -> str:
    """Data, settings and script of the numbers."""
    first = comparisons[0]
    terms, seeds = first["terms"], [str(c["terms"]["seed"]) for c in comparisons]
    budget = f"{terms['epochs']} epochs" if terms["epochs"] else f"{terms['minutes']:g} minutes"
    settings = f"{Path(terms['data']).name}, {terms['image_size']} px, size {terms['size']}, {budget} each"
    measured = f"AP and ECE on {first['images']} images"
    repeated = f"seed {seeds[0]}"
    if len(seeds) > 1:
        repeated = f"mean of the seeds {', '.join(seeds)}, at most {largest_difference(comparisons):.3f} AP apart"
    return fill_lines(f"{NUMBERS}{settings}; {measured}; {repeated} (`runs/compare_bccd.sh`).", 120)


def largest_difference(comparisons: list[dict[str, Any]]) -> float:
    """Of the AP of a detector, between seeds."""
    aps: dict[str, list[float]] = {}
    for row in (row for c in comparisons for row in c["rows"]):
        aps.setdefault(row["model"], []).append(row["stats"]["AP"])
    return max(max(each) - min(each) for each in aps.values())


def fill(text: str, comparisons: list[dict[str, Any]]) -> str:
    """The README with these numbers in its table of detectors."""
    head, found, tail = text.partition("| `--model` |")
    assert found, "the README has no table that begins with --model"
    table, gap, after = (found + tail).partition("\n\n")
    lines = []
    for number, line in enumerate(table.splitlines()):
        words = [cell.strip() for cell in line.strip("|").split("|")][:WORDS]
        model = words[0].strip("`")
        rows = [row for c in comparisons for row in c["rows"] if row["model"] == model]
        more = list(HEAD) if number == 0 else ["---:"] * len(HEAD) if number == 1 else cells(rows)
        lines.append(f"| {' | '.join([*words, *more])} |")
    if after.startswith(NUMBERS):
        after = after.partition("\n\n")[2]
    return "\n".join([head + lines[0], *lines[1:], "", line_below(comparisons)]) + gap + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path)
    a = parser.parse_args()
    comparisons = [json.loads((folder / "comparison.json").read_text()) for folder in a.comparisons]
    terms = [{key: value for key, value in c["terms"].items() if key != "seed"} for c in comparisons]
    assert all(each == terms[0] for each in terms), "the comparisons differ in more than their seed"
    README.write_text(fill(README.read_text(), comparisons))


if __name__ == "__main__":
    main()
