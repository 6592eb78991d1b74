"""What can be wrong in a data set, how bad each fault is, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how bad it is, whether training refuses the data for it, and how to mend it."""

    level: Level
    fatal: bool
    mend: str


KINDS: dict[str, Kind] = {
    # What cannot be used: training refuses.
    "broken-file": Kind("error", True, "write the file again with the tool that made it"),
    "broken-record": Kind("error", True, "complete the record or remove it"),
    "missing-image": Kind("error", True, "restore the image or remove its record"),
    "undecodable-image": Kind("error", True, "restore the image from its source or remove it and its record"),
    "missing-split": Kind("error", True, "correct the path or remove the split"),
    "unknown-class": Kind("error", True, "add the class to the class list or correct the object"),
    "duplicate-class": Kind("error", True, "give every class a name of its own"),
    "class-lists-differ": Kind("error", True, "give every split the same classes"),
    "duplicate-id": Kind("error", True, "give every image an id of its own"),
    "wrong-shape": Kind("error", True, "correct width, height and boxes; an image that EXIF turns counts as turned"),
    # What training passes over.
    "orphan-annotation": Kind("error", False, "restore the image or remove the annotation"),
    "not-a-number": Kind("error", False, "draw the box again or remove it"),
    "reversed-box": Kind("error", False, "exchange the corners or remove the box"),
    "empty-box": Kind("error", False, "draw the box again or remove it"),
    "box-outside": Kind("error", False, "cut the box to the image; check that width and height are not exchanged"),
    "wrong-size": Kind("error", False, "correct width and height, and the boxes if they were drawn at another size"),
    "shared-image": Kind("error", False, "keep the image in one split only"),
    # What looks wrong and may be right.
    "tiny-box": Kind("warning", False, "look at the box: it is less than a pixel wide or high"),
    "odd-size": Kind("warning", False, "look at the object: its class is usually of quite another size"),
    "duplicate-box": Kind("warning", False, "remove one of the two boxes"),
    "duplicate-image": Kind("warning", False, "keep the image once"),
    "duplicate-annotation-id": Kind("warning", False, "number the annotations again"),
    "similar-classes": Kind("warning", False, "make them one class if they mean the same"),
    "class-ids-differ": Kind("warning", False, "number the categories alike in every file"),
    "class-count": Kind("warning", False, "correct `nc` or `names`"),
    "unused-class": Kind("warning", False, "annotate some or remove the class"),
    "empty-split": Kind("warning", False, "add images or remove the split; it is left out"),
    "missing-annotation": Kind("warning", False, "annotate the image; it counts as background"),
    # What is good to know.
    "background-image": Kind("note", False, "nothing to do: images without objects are used as background"),
    "unlisted-image": Kind("note", False, "nothing to do: images that no annotation mentions are not used"),
    "heading": Kind("note", False, "nothing to do: the category only names a group of others and is left out"),
}


@dataclass(frozen=True)
class Fault:
    """Something wrong in a data set.

    Attributes:
        kind: a key of `KINDS`.
        where: file, with line or record.
        what: what is wrong there, as half a sentence.
    """

    kind: str
    where: str
    what: str

    @property
    def level(self) -> Level:
        """How bad it is: ``error``, ``warning`` or ``note``."""
        return KINDS[self.kind].level

    @property
    def mend(self) -> str:
        """What to do about it."""
        return KINDS[self.kind].mend

    @property
    def fatal(self) -> bool:
        """True when training refuses the data set because of it."""
        return KINDS[self.kind].fatal

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.mend}"
