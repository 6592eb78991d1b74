"""Where a detector of queries looked: at which cells or points each layer gathered what it needed.

A pass over an image is watched: the inputs of every attention are kept, so that one can ask afterwards where any query
of the decoder, or any pixel of the encoder, looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.types import Batch, Detector

NEAR = 0.03  # how far from a pixel points count as looking at it, as a deviation in fractions of the image


@dataclass
class Cells:
    """Where something looks in a layer of a `detr`: the share of each cell, (heads, rows, columns), 1 in sum a head."""

    shares_HRC: np.ndarray

    def head(self, number: int) -> Cells:
        """Of one head alone."""
        return Cells(self.shares_HRC[number : number + 1])


@dataclass
class Points:
    """Where something looks in a layer of a `deformable`: x and y of points in fractions of the image, of each head H
    on each map V, and how much it takes of each, 1 in sum a head.
    """

    places_HVP2: np.ndarray
    weights_HVP: np.ndarray

    def head(self, number: int) -> Points:
        """Of one head alone."""
        return Points(self.places_HVP2[number : number + 1], self.weights_HVP[number : number + 1])


Look = Cells | Points


@dataclass
class Pass:
    """What a detector made of one image: L layers of the decoder, Q queries, K classes.

    Attributes:
        scores_LQK: of each class, after each layer.
        boxes_LQ4: xyxy in fractions of the image, after each layer.
        names: the classes.
        shapes: rows and columns of each map, finest first; a `detr` has one.
        encoder, decoder: the attentions of the layers, with what they were given.
    """

    scores_LQK: np.ndarray
    boxes_LQ4: np.ndarray
    names: tuple[str, ...]
    shapes: list[tuple[int, int]]
    encoder: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]
    decoder: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return len(self.scores_LQK)

    @property
    def queries(self) -> int:
        """How many there are."""
        return self.scores_LQK.shape[1]

    def best(self, most: int) -> list[int]:
        """Up to `most` queries, those that are surest of an object first."""
        return np.argsort(-self.scores_LQK[-1].max(-1), kind="stable")[:most].tolist()

    def said(self, query: int, layer: int = -1) -> tuple[int, float]:
        """The likeliest class of a query after a layer, and its score."""
        label = int(self.scores_LQK[layer, query].argmax())
        return label, float(self.scores_LQK[layer, query, label])

    def box(self, query: int, layer: int = -1) -> tuple[float, float, float, float]:
        """Of a query after a layer, xyxy in fractions of the image."""
        x1, y1, x2, y2 = self.boxes_LQ4[layer, query].tolist()
        return x1, y1, x2, y2

    def middle(self, query: int) -> tuple[float, float]:
        """Of its last box, x and y in fractions of the image, inside it."""
        x1, y1, x2, y2 = self.box(query)
        return min(max((x1 + x2) / 2, 0.0), 1.0), min(max((y1 + y2) / 2, 0.0), 1.0)

    def query_looks(self, query: int) -> list[Look]:
        """Where a query looked in each layer of the decoder."""
        return [self._look(noted, [query])[0] for noted in self.decoder]

    def pixel_looks(self, point: tuple[float, float]) -> list[list[Look]]:
        """Where the cells that hold a point looked in each layer of the encoder: on each map one cell.

        Args:
            point: x and y in fractions of the image.
        """
        cells = [_cell(point, shape) for shape in self.shapes]
        starts = np.cumsum([0] + [rows * columns for rows, columns in self.shapes])
        return [self._look(noted, [int(s) + c for s, c in zip(starts, cells, strict=False)]) for noted in self.encoder]

    def lookers(self, point: tuple[float, float]) -> np.ndarray:
        """How much each query looked at a point in the last layer of the decoder, (Q,), the mean over its heads."""
        looks = self._look(self.decoder[-1], range(self.queries))
        return np.array([_share(look, point) for look in looks])

    @torch.no_grad()
    def _look(self, noted: tuple[Any, tuple[Any, ...], dict[str, Any]], rows: Sequence[int]) -> list[Look]:
        """Where these queries or cells look with this attention."""
        attention, given, named = noted
        chosen = list(rows)
        if isinstance(attention, Attention):
            x_BLE, seen = given
            shares_HLM = attention.weights(x_BLE[:, chosen], seen, named["mask"])[0]
            return [Cells(_array(shares_HLM[:, n].unflatten(-1, self.shapes[0]))) for n in range(len(chosen))]
        x_BLE, places_BLVX, *_, shapes = given
        points = attention.sampling_points(x_BLE[:, chosen], places_BLVX[:, chosen], shapes)
        pairs = zip(points.locations_BQHVP2[0], points.weights_BQHVP[0], strict=True)
        return [Points(_array(places_HVP2), _array(weights_HVP)) for places_HVP2, weights_HVP in pairs]


@torch.no_grad()
def watch(detector: Detector, batch: Batch) -> Pass:
    """Let the detector look at one image.

    Args:
        detector: one that is explained as queries, in evaluation mode, on the device of the batch.
        batch: of one image, so that no padding is looked at; boxes are not looked at.
    """
    assert len(batch) == 1
    attention = detector.attention_layers()
    with _noting([*attention.encoder, *attention.decoder]) as noted:
        said = detector.query_layers(detector(batch.images_BCHW, batch.sizes_B2))
    return Pass(
        _array(said.scores_LBQK[:, 0]),
        _array(said.boxes_LBQ4[:, 0]),
        detector.names,
        said.map_shapes,
        [(one, *noted[one]) for one in attention.encoder],
        [(one, *noted[one]) for one in attention.decoder],
    )


@contextmanager
def _noting(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What these modules are given while they compute."""
    noted: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        noted[module] = given, named

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def _cell(point: tuple[float, float], shape: tuple[int, int]) -> int:
    """The cell of a map that holds a point."""
    (x, y), (rows, columns) = point, shape
    return min(int(y * rows), rows - 1) * columns + min(int(x * columns), columns - 1)


def _share(look: Look, point: tuple[float, float]) -> float:
    """How much of a look falls on a point."""
    if isinstance(look, Cells):
        return float(look.shares_HRC.mean(0).flat[_cell(point, look.shares_HRC.shape[1:])])  # type: ignore[arg-type]
    apart_HVP = ((look.places_HVP2 - np.array(point)) ** 2).sum(-1)
    return float((look.weights_HVP * np.exp(-apart_HVP / (2 * NEAR**2))).sum((1, 2)).mean())


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
