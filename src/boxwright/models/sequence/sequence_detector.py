"""What sequence detectors have in common: they predict the objects of an image one after the other, as tokens."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from boxwright.config import require
from boxwright.models.sequence.generate import begin_generation, finish_generation
from boxwright.models.sequence.generation import Generated, Generation
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.types import Batch, Detector, Predictions


class SequenceDetector(Detector):
    """A detector that generates a sequence of tokens, a fixed number of them per object.

    Attributes:
        config: has `max_objects`, `sampling` and `seed`.
        decoder: a `boxwright.models.sequence.generation.StepDecoder`.
        accepts_given: whether it can be given objects, a number of them, and the classes to generate.
        capacity_hint: how to make room for `{}` objects, appended to an error; empty where that is impossible.
    """

    config: Any
    decoder: Any
    accepts_given: ClassVar[bool] = True
    capacity_hint: ClassVar[str] = ""

    @property
    def capacity(self) -> int:
        """The most objects that a sequence can hold."""
        return self.config.max_objects

    @property
    def slots(self) -> tuple[str, ...]:
        """What each token of an object encodes: its `class`, or sides of its box, as `x1` or `x1 y1`.

        A second token of the same slot refines the first.
        """
        raise NotImplementedError

    def vocabulary(self, outputs: Any = None, sizes_B2: Tensor | None = None) -> Any:
        """The token ids for a canvas; has `class_tokens(positions)`, `coordinate_tokens(boxes)` and `boxes(tokens)`.

        Args:
            outputs: of `forward`, for that canvas; by default the detector's own square canvas.
            sizes_B2: valid area of the images on the detector's own canvas, where there are no outputs; by default all.
        """
        raise NotImplementedError

    def token_constraints(self, outputs: Any = None, classes: Sequence[int] | None = None) -> TokenConstraints:
        """The tokens allowed at each position, on the detector's device.

        Args:
            outputs: as in `vocabulary`.
            classes: positions of the classes that may be generated, by default all.
        """
        raise NotImplementedError

    def decoder_memory(self, outputs: Any) -> Any:
        """What `decoder` attends to: a tensor (B, cells, width), or a tuple that begins with one."""
        return outputs

    def given_tokens(self, outputs: Any, given: Batch) -> Tensor:
        """Tokens (B, slots * N) of the objects of a batch, -1 behind the last one of each image."""
        raise NotImplementedError

    def to_predictions(
        self,
        generated: Generated,
        outputs: Any = None,
        classes: Sequence[int] | Tensor | None = None,
        sizes_B2: Tensor | None = None,
    ) -> Predictions:
        """Boxes, scores and classes, in the order of the sequence.

        Args:
            generated: the sequences.
            outputs: as in `vocabulary`.
            classes: positions of the classes that may be predicted, or a mask (K,); by default all.
            sizes_B2: as in `vocabulary`.
        """
        raise NotImplementedError

    def coarse(self, tokens_S: Tensor, outputs: Any) -> Tensor:
        """The tokens of one object with neutral values in place of those that refine others."""
        return tokens_S

    def decode(self, outputs: Any) -> Predictions:
        """Generate, and turn the tokens into boxes, best first."""
        return self.to_predictions(self.generate(outputs), outputs).best_first()

    def complete(
        self, outputs: Any, batch: Batch, classes: Sequence[int] | None = None, objects: int | None = None
    ) -> Predictions:
        """See `Detector`. The batch's objects are the beginning of the sequence."""
        if not self.accepts_given:
            return super().complete(outputs, batch, classes, objects)
        return self.to_predictions(self.generate(outputs, objects, batch, classes), outputs, classes).best_first()

    @torch.no_grad()
    def generate(
        self, outputs: Any, objects: int | None = None, given: Batch | None = None, classes: Sequence[int] | None = None
    ) -> Generated:
        """Whole sequences; for the arguments see `begin_generation`."""
        return finish_generation(self.begin_generation(outputs, objects, given, classes))

    @torch.no_grad()
    def begin_generation(
        self, outputs: Any, objects: int | None = None, given: Batch | None = None, classes: Sequence[int] | None = None
    ) -> Generation:
        """Sequences of the given objects alone, ready to be continued by the configuration's sampling.

        Args:
            outputs: of `forward`.
            objects: the most in a sequence, given ones included; by default the configuration's `max_objects`.
            given: objects that each sequence begins with.
            classes: positions of the classes that may be generated, by default all.

        Raises:
            UserError: for more objects than the capacity, or no more than are given; for invalid sampling settings.
        """
        objects = self.config.max_objects if objects is None else objects
        fix = self.capacity_hint.format(objects) if objects > self.capacity else ""
        require(
            0 < objects <= self.capacity, f"objects is how many to generate, 1 to {self.capacity}, not {objects}{fix}."
        )
        given_BL = None if given is None or not given.valid_BN.any() else self.given_tokens(outputs, given)
        count = 0 if given_BL is None else given_BL.shape[1] // len(self.slots)
        full = f"{count} objects are given, and no more than {objects} can be generated, given ones included"
        require(count < objects, f"{full}: ask for objects={count + 1} at least.")
        memory = self.decoder_memory(outputs)
        images = len(memory if isinstance(memory, Tensor) else memory[0])
        sampling = self.config.sampling._replace(seed=self.seeds(images))
        constraints = self.token_constraints(outputs, classes)
        return begin_generation(self.decoder, memory, constraints, objects, sampling, given_BL)

    def seeds(self, images: int) -> tuple[int, ...]:
        """The seed of each image of a batch; without a configured seed, the same for all.

        Raises:
            UserError: for a seed that is no whole number.
        """
        first = self.config.seed
        if first is None:
            return (0,) * images
        require(isinstance(first, int), f"seed is a whole number, or None, not {first!r}.")
        return tuple(range(first, first + images))
