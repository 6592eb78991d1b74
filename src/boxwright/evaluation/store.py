"""Whether `evaluate` writes the thresholds that it has chosen into the weights file."""

from __future__ import annotations

from pathlib import Path

from boxwright.checkpoints.header import store_in_card
from boxwright.checkpoints.locate import find_weights, is_bundled, is_own
from boxwright.config import UserError, require
from boxwright.thresholds import Thresholds

_NOT_TO_CHOOSE_ON = ("test", "train")  # splits; scores on images learned from are too high


def require_own_file(weights: Path | str, store: bool | None) -> None:
    """Raise `UserError` where thresholds are to be stored in a file of the hub's cache, or of the package."""
    own = not store or is_own(weights)
    require(
        own, f"{weights} is a file of {_owner(weights)}, so that --store can't change it; copy it, and give the copy."
    )


def _owner(weights: Path | str) -> str:
    return "this package" if is_bundled(Path(weights)) else "the hub"


def store_thresholds(
    weights: Path | str, best: Thresholds | None, stored: Thresholds, split: str, store: bool | None
) -> str | None:
    """Write thresholds into the card of the weights file; returns why not, or None if they were written.

    Args:
        weights: the file as the user named it.
        best: what to write; None if there is nothing to write.
        stored: those that the file has.
        split: the images that they were chosen on.
        store: True replaces those that are there, False never writes; None writes them where the file has none and the
            images are for choosing.

    Raises:
        UserError: if the file can't be written, and `store` is True.
    """
    if best is None:
        return "the images allow no choice"
    if store is False:
        return "as asked"
    if store is None:
        if stored.chosen_on:
            return "they have their own; --store true replaces those"
        if split in _NOT_TO_CHOOSE_ON:
            return f"images of a split {split} are not for choosing; give --split val, or --store true to do it anyway"
        if not is_own(weights):
            return f"the file is one of {_owner(weights)}; copy it, and give the copy"
    try:
        store_in_card(find_weights(Path(weights)), best.to_card())
    except UserError as error:
        if store:
            raise
        return str(error).rstrip(".")
    return None
