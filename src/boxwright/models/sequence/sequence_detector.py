"""What detectors that write sentences have in common: how a sentence is begun, written and turned into objects."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from boxwright.config import require
from boxwright.models.sequence.generate import begin, finish
from boxwright.models.sequence.generation import Generated, Generation
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.types import Batch, Detector, Predictions


class SequenceDetector(Detector):
    """A detector that writes the objects of an image one after the other.

    Its words, and how they are read, are its own.

    Attributes:
        config: has `max_objects`, `sampling` and `seed`.
        decoder: a `boxwright.models.sequence.generation.StepDecoder`.
        more_room: how to make room for more objects (of them, `{}`), said after what is wrong; empty if that cannot be.
    """

    config: Any
    decoder: Any
    more_room = ""

    @property
    def room(self) -> int:
        """The most objects that a sentence can have."""
        return self.config.max_objects

    @property
    def slots(self) -> tuple[str, ...]:
        """What each word of an object says: its `class`, or the sides of its box, as `x1` or `x1 y1`.

        A word that says what an earlier one has said says it more exactly.
        """
        raise NotImplementedError

    def words(self, raw: Any = None) -> Any:
        """The vocabulary for images of the size of `raw`; by default for those of the detector's own canvas."""
        raise NotImplementedError

    def grammar(
        self, words: Any, classes: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> TokenConstraints:
        """Which of these words each place of a sentence may hold, if only some classes are to be said."""
        raise NotImplementedError

    def memory(self, raw: Any) -> Tensor:
        """What the decoder looks at, (B, cells, width)."""
        raise NotImplementedError

    def given_words(self, raw: Any, given: Batch) -> Tensor:
        """The words (B, slots * N) of the objects of a batch, -1 behind the last of each image."""
        raise NotImplementedError

    def read(self, said: Generated, raw: Any = None, classes: Sequence[int] | Tensor | None = None) -> Predictions:
        """Boxes and classes in the order in which they were written; of these classes only, where some are named.

        Args:
            said: sentences.
            raw: of which they are; by default images of the detector's own canvas.
            classes: positions of these, or a mask (K,); by default all.
        """
        raise NotImplementedError

    def roughly(self, tokens_W: Tensor, raw: Any) -> Tensor:
        """The words of an object as they stand for it before the more exact ones are written."""
        return tokens_W

    def decode(self, raw: Any) -> Predictions:
        """Write, and read boxes and classes off the sentence."""
        return self.read(self.write(raw), raw).best_first()

    def complete(
        self, raw: Any, batch: Batch, classes: Sequence[int] | None = None, objects: int | None = None
    ) -> Predictions:
        """What is missing in the batch: its objects are the beginning of the sentence."""
        return self.read(self.write(raw, objects, batch, classes), raw, classes).best_first()

    @torch.no_grad()
    def write(
        self, raw: Any, objects: int | None = None, given: Batch | None = None, classes: Sequence[int] | None = None
    ) -> Generated:
        """Sentences as the settings have it; for the arguments see `draft`."""
        return finish(self.draft(raw, objects, given, classes))

    @torch.no_grad()
    def draft(
        self, raw: Any, objects: int | None = None, given: Batch | None = None, classes: Sequence[int] | None = None
    ) -> Generation:
        """Sentences of which only the given objects stand, to be written as the settings have it.

        Args:
            raw: of the images.
            objects: in a sentence, given ones included; by default all that it holds.
            given: objects that are said already.
            classes: positions of those that may be said, by default all.

        Raises:
            UserError: for more objects than there is room for, or no more than are given; for settings that cannot be.
        """
        objects = self.config.max_objects if objects is None else objects
        mend = self.more_room.format(objects) if objects > self.room else ""
        require(0 < objects <= self.room, f"objects is how many to say, 1 to {self.room}, not {objects}{mend}.")
        given_BL = None if given is None or not given.valid_BN.any() else self.given_words(raw, given)
        count = 0 if given_BL is None else given_BL.shape[1] // len(self.slots)
        full = f"{count} objects are given, and no more than {objects} can be said, given ones included"
        require(count < objects, f"{full}: ask for objects={count + 1} at least.")
        memory_BME = self.memory(raw)
        sampling = self.config.sampling._replace(seed=self.seeds(len(memory_BME)))
        grammar = self.grammar(self.words(raw), classes, memory_BME.device)
        return begin(self.decoder, raw, grammar, objects, sampling, given_BL)

    def seeds(self, images: int) -> tuple[int, ...]:
        """What each image of a batch begins to draw with; without a seed, all draw alike.

        Raises:
            UserError: for a seed that is no whole number.
        """
        first = self.config.seed
        if first is None:
            return (0,) * images
        require(isinstance(first, int), f"seed is a whole number, or None, not {first!r}.")
        return tuple(range(first, first + images))
