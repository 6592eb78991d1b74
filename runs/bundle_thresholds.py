"""Give the shipped detector the score thresholds of a run of the same recipe that held training images out.

    python runs/bundle_thresholds.py RUN src/boxwright/bundled

The shipped detector has learned from all training images, and its scores on them are too high to choose on; the test
images are for reporting. RUN is `boxwright train BCCD`, which trains on four fifths of the training images, and stores
with its weights the thresholds of best F1 on the others. They are written into the header of the shipped file, whose
tensors stay as they are, and into its model card with what they give on the test split.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from boxwright.checkpoints.detector_file import load_detector
from boxwright.checkpoints.header import store_in_card
from boxwright.data.cache import build
from boxwright.data.read import read
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect
from boxwright.evaluation.thresholds import PRECISION, Choice
from boxwright.thresholds import Thresholds

BEFORE = "| known weakness |"  # the row of the model card that the new ones stand above


def main(run: Path, target: Path) -> None:
    """Write them, and print the rows."""
    own = Thresholds.from_card(load_detector(run / "last.safetensors").card)
    assert own.chosen_on, f"{run} stores no thresholds"
    thresholds = replace(own, chosen_on=f"{own.chosen_on}, held out of a run of the same recipe")
    file = target / "dense-nano-bccd.safetensors"
    store_in_card(file, thresholds.to_card())

    shipped, dataset = load_detector(file), read(target / "bccd")
    records = dataset.splits["test"]
    report = score(records, detect(shipped, build(records, shipped.image_size)), dataset.names)
    before, now = (report.thresholds.overall(Choice(None, one), each=True).in_use for one in (Thresholds(), thresholds))
    classes = [(name, report.thresholds.row(name, Choice(None, thresholds)).in_use) for name in dataset.names]
    rows = [
        f"| objects count | {thresholds.describe(dataset.names)} |",
        f"| test split, at these | precision {now.precision:.3f}, recall {now.recall:.3f} (at 0.5 for all: "
        f"{before.precision:.3f}, {before.recall:.3f}); "
        + "; ".join(f"{name} {point.precision:.3f}, {point.recall:.3f}" for name, point in classes)
        + " |",
        f"| test split, any threshold | at a precision of {PRECISION} or more, recall up to "
        f"{report.thresholds.curve.recall_at(PRECISION):.3f}; expected calibration error {report.ece:.3f} |",
    ]
    card = target / "MODEL_CARD.md"
    heads = [row.partition(" | ")[0] for row in rows]
    kept = [line for line in card.read_text().splitlines() if line.partition(" | ")[0] not in heads]
    place = next(number for number, line in enumerate(kept) if line.startswith(BEFORE))
    card.write_text("\n".join([*kept[:place], *rows, *kept[place:], ""]))
    print("\n".join(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    main(**vars(parser.parse_args()))
