"""The tensors of the loop that generates objects: one declaration, which its start, its step and its end share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor
from torch.export import Dim

Role = Literal["carried", "constant", "input", "collected"]
CHANGING = "BGLN"  # axes of any size: images, given objects, tokens, objects
CELLS = "M"  # changes with the canvas, if that is not square


@dataclass(frozen=True)
class LoopTensor:
    """One tensor.

    Attributes:
        name: in the graph.
        example: a value.
        axes: what each axis counts, in the letters of shape suffixes.
        role: `carried` from object to object; `constant` for an image, computed before the loop; `input` of the file;
            or `collected`, a part of each object, stacked behind the loop.
    """

    name: str
    example: Tensor
    axes: str
    role: Role

    def stacked(self) -> LoopTensor:
        """The same of several objects, as the loop gives it."""
        return replace(self, example=self.example.repeat(3, *[1] * self.example.ndim), axes=f"N{self.axes}")

    def shape(self, square_canvas: bool) -> dict[int, Any] | None:
        """The axes of any size, as `torch.export` takes them."""
        changing = CHANGING if square_canvas else CHANGING + CELLS
        return {axis: Dim.DYNAMIC for axis, letter in enumerate(self.axes) if letter in changing} or None


@dataclass(frozen=True)
class LoopTensors:
    """Several of them, in the order in which modules take and return them."""

    entries: tuple[LoopTensor, ...]

    def only(self, *roles: Role) -> LoopTensors:
        """Those of these roles."""
        return LoopTensors(tuple(entry for entry in self.entries if entry.role in roles))

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [entry.name for entry in self.entries]

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """Their examples."""
        return tuple(entry.example for entry in self.entries)

    def shapes(self, square_canvas: bool) -> tuple[dict[int, Any] | None, ...]:
        """`LoopTensor.shape` of each."""
        return tuple(entry.shape(square_canvas) for entry in self.entries)

    def pack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Their values, by name, in order."""
        return tuple(tensors[name] for name in self.names)

    def unpack(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Values in order, by name."""
        return dict(zip(self.names, tensors, strict=True))
