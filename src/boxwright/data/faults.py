"""Faults of a data set: what can be wrong, how bad it is, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class FaultKind:
    """How bad a kind of fault is, whether training refuses the data because of it, and how to fix it."""

    level: Level
    fatal: bool
    fix: str


FAULT_KINDS: dict[str, FaultKind] = {
    # Training refuses these.
    "broken-file": FaultKind("error", True, "write the file again with the tool that made it"),
    "broken-record": FaultKind("error", True, "complete the record or remove it"),
    "missing-image": FaultKind("error", True, "restore the image or remove its record"),
    "ambiguous-image": FaultKind("error", True, "write the folder in front of the name, or rename one of the files"),
    "undecodable-image": FaultKind("error", True, "restore the image from its source or remove it and its record"),
    "missing-split": FaultKind("error", True, "correct the path or remove the split"),
    "unknown-class": FaultKind("error", True, "add the class to the class list or correct the object"),
    "duplicate-class": FaultKind("error", True, "give every class a name of its own"),
    "control-character": FaultKind("error", True, "give the class a name of letters, signs and spaces"),
    "duplicate-id": FaultKind("error", True, "give every image an id of its own"),
    "wrong-shape": FaultKind(
        "error", True, "correct width, height and boxes; an image that EXIF turns counts as turned"
    ),
    "not-fractions": FaultKind("error", True, "divide x and width by the image's width, y and height by its height"),
    "unmatched-label": FaultKind("error", True, "give the label file the name of its image, or remove it"),
    "empty-data": FaultKind("error", True, "give a folder with at least one annotated image"),
    # Training refuses these, but they can be converted and evaluated.
    "nothing-to-learn": FaultKind("error", False, "annotate some objects that are not marked to be ignored"),
    "no-held-out": FaultKind("error", False, "give the split images of its own, or remove it and use `--val 0.2`"),
    "too-few-objects": FaultKind("warning", False, "annotate more images, or give others with --val-data"),
    "no-train-split": FaultKind("warning", False, "call the split to train on `train`, or name it with --train-split"),
    # Training leaves these out, or cuts boxes to the image.
    "orphan-annotation": FaultKind("error", False, "restore the image or remove the annotation"),
    "not-a-number": FaultKind("error", False, "draw the box again or remove it"),
    "reversed-box": FaultKind("error", False, "exchange the corners or remove the box"),
    "empty-box": FaultKind("error", False, "draw the box again or remove it"),
    "box-outside": FaultKind("error", False, "cut the box to the image; check that width and height are not exchanged"),
    "wrong-size": FaultKind(
        "error", False, "correct width and height, and the boxes if they were drawn at another size"
    ),
    "shared-image": FaultKind("error", False, "keep the image in one split only"),
    # May be right.
    "tiny-box": FaultKind("warning", False, "look at the box: it is less than a pixel wide or high"),
    "odd-size": FaultKind("warning", False, "look at the object: its class is usually of quite another size"),
    "duplicate-box": FaultKind("warning", False, "remove one of the two boxes"),
    "duplicate-image": FaultKind("warning", False, "keep the image once"),
    "duplicate-annotation-id": FaultKind("warning", False, "number the annotations again"),
    "similar-classes": FaultKind("warning", False, "make them one class if they mean the same"),
    "class-lists-differ": FaultKind("warning", False, "correct a misspelt class; those of all lists are used"),
    "untrained-class": FaultKind("warning", False, "annotate some in the training images, or remove the class"),
    "class-ids-differ": FaultKind("warning", False, "number the categories alike in every file"),
    "class-count": FaultKind("warning", False, "correct `nc` or `names`"),
    "ignored-object": FaultKind("warning", False, "look at the objects: ignored ones are not learned and not scored"),
    "unused-class": FaultKind("warning", False, "annotate some or remove the class"),
    "empty-split": FaultKind("warning", False, "add images or remove the split; it is left out"),
    "unnamed-class": FaultKind("warning", False, "add a column of classes, or rename the class afterwards"),
    "shared-label": FaultKind("warning", False, "give every image a label file of its own; now each has all boxes"),
    "missing-annotation": FaultKind("warning", False, "annotate the image; it counts as background"),
    # Nothing to fix.
    "background-image": FaultKind("note", False, "nothing to do: images without objects are used as background"),
    "found-image": FaultKind("note", False, "nothing to do if these are the right files"),
    "unlisted-image": FaultKind("note", False, "nothing to do: images that no annotation mentions are not used"),
    "derived-box": FaultKind("note", False, "nothing to do: the box around the polygon or mask is used"),
    "unused-object": FaultKind("note", False, "nothing to do: only boxes, and shapes with an area, are used"),
    "unused-file": FaultKind("note", False, "nothing to do if these files are no annotations"),
    "unused-duplicate": FaultKind("note", False, "nothing to do: a category without objects is left out for the other"),
    "heading": FaultKind("note", False, "nothing to do: the category only names a group of others and is left out"),
}


@dataclass(frozen=True)
class Fault:
    """Something wrong in a data set.

    Attributes:
        kind: a key of `FAULT_KINDS`.
        where: the file, with line or record.
        what: what is wrong there, as half a sentence.
    """

    kind: str
    where: str
    what: str

    @property
    def level(self) -> Level:
        """How bad it is: ``error``, ``warning`` or ``note``."""
        return FAULT_KINDS[self.kind].level

    @property
    def fix(self) -> str:
        """How to fix it, as half a sentence."""
        return FAULT_KINDS[self.kind].fix

    @property
    def fatal(self) -> bool:
        """True when training refuses the data set because of it."""
        return FAULT_KINDS[self.kind].fatal

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"
