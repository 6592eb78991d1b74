"""Where the queries and cells of a detector attend, layer by layer and head by head.

A forward pass is recorded: the inputs of every attention layer are kept, from which the attention of any query of the
decoder, or of any cell of the encoder, is computed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from boxwright.models.layers.attention import Attention
from boxwright.types import Batch, Detector

NEAR = 0.03  # how far from a pixel points count as attention to it: a standard deviation, in fractions of the image


@dataclass
class CellMap:
    """Attention to all cells of one feature map: weights (heads, rows, columns), which sum to 1 per head.

    Where cells of several maps are attended to, it is the finest: the weight of a coarser cell is spread over its area.
    """

    weights_HRC: np.ndarray

    def head(self, number: int) -> CellMap:
        """The map of one head."""
        return CellMap(self.weights_HRC[number : number + 1])


@dataclass
class PointMap:
    """Attention to P sampling points of each head H on each feature map V.

    Attributes:
        points_HVP2: x and y in fractions of the image.
        weights_HVP: sum to 1 per head.
    """

    points_HVP2: np.ndarray
    weights_HVP: np.ndarray

    def head(self, number: int) -> PointMap:
        """The map of one head."""
        return PointMap(self.points_HVP2[number : number + 1], self.weights_HVP[number : number + 1])


AttentionMap = CellMap | PointMap


class RecordedCall(NamedTuple):
    """An attention layer and the inputs of its forward pass."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class RecordedPass:
    """A forward pass on one image: L decoder layers, Q queries, K classes.

    Attributes:
        scores_LQK: class scores after each layer, in [0, 1].
        boxes_LQ4: xyxy in fractions of the image, after each layer.
        names: the classes.
        map_shapes: rows and columns of each feature map, finest first.
        encoder, decoder: the attention layers, first to last.
        n_encoded: cells that the encoder's layers get, where not those of all maps.
    """

    scores_LQK: np.ndarray
    boxes_LQ4: np.ndarray
    names: tuple[str, ...]
    map_shapes: list[tuple[int, int]]
    encoder: list[RecordedCall]
    decoder: list[RecordedCall]
    n_encoded: int | None = None

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.scores_LQK)

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        return self.scores_LQK.shape[1]

    def best(self, most: int) -> list[int]:
        """Up to `most` queries, highest score first."""
        return np.argsort(-self.scores_LQK[-1].max(-1), kind="stable")[:most].tolist()

    def prediction(self, query: int, layer: int = -1) -> tuple[int, float]:
        """The most probable class of a query after a layer, and its score."""
        label = int(self.scores_LQK[layer, query].argmax())
        return label, float(self.scores_LQK[layer, query, label])

    def box(self, query: int, layer: int = -1) -> tuple[float, float, float, float]:
        """The box of a query after a layer, xyxy in fractions of the image."""
        x1, y1, x2, y2 = self.boxes_LQ4[layer, query].tolist()
        return x1, y1, x2, y2

    def box_centre(self, query: int) -> tuple[float, float]:
        """Centre (x, y) of the last box of a query in fractions of the image, clipped to it."""
        x1, y1, x2, y2 = self.box(query)
        return min(max((x1 + x2) / 2, 0.0), 1.0), min(max((y1 + y2) / 2, 0.0), 1.0)

    def query_maps(self, query: int) -> list[AttentionMap]:
        """Attention of a query in each decoder layer."""
        return [self._maps(call, [query])[0] for call in self.decoder]

    def pixel_maps(self, point: tuple[float, float]) -> list[list[AttentionMap]]:
        """Attention of the cells that contain a point, one cell on each feature map, in each encoder layer.

        An encoder may leave out the finest maps.

        Args:
            point: x and y in fractions of the image.
        """
        shapes = self.map_shapes if self.n_encoded is None else self._last_maps(self.n_encoded)
        starts = np.cumsum([0] + [rows * columns for rows, columns in shapes])
        rows = [int(start) + _cell(point, shape) for start, shape in zip(starts, shapes, strict=False)]
        return [self._maps(call, rows) for call in self.encoder]

    def attention_to(self, point: tuple[float, float]) -> np.ndarray:
        """How much each query attends to a point in the last decoder layer, (Q,), mean over the heads."""
        maps = self._maps(self.decoder[-1], range(self.n_queries))
        return np.array([_attention_at(attention_map, point) for attention_map in maps])

    def _last_maps(self, cells: int) -> list[tuple[int, int]]:
        """The coarsest maps that have this many cells together."""
        counts = np.cumsum([rows * columns for rows, columns in reversed(self.map_shapes)]).tolist()
        return self.map_shapes[-1 - counts.index(cells) :]

    @torch.no_grad()
    def _maps(self, call: RecordedCall, rows: Sequence[int]) -> list[AttentionMap]:
        """Attention of some queries or cells, by their positions among the layer's inputs."""
        layer, chosen = call.layer, list(rows)
        if isinstance(layer, Attention):
            x_BLE, keys_values = call.args
            weights_HLM = layer.weights(x_BLE[:, chosen], keys_values, call.kwargs["mask"])[0]
            shapes = self._last_maps(weights_HLM.shape[-1])
            return [CellMap(_array(_on_finest(weights_HM, shapes))) for weights_HM in weights_HLM.unbind(1)]
        x_BLE, reference_BLVX, *_, shapes = call.args
        points = layer.sampling_points(x_BLE[:, chosen], reference_BLVX[:, chosen], shapes)
        pairs = zip(points.locations_BQHVP2[0], points.weights_BQHVP[0], strict=True)
        return [PointMap(_array(points_HVP2), _array(weights_HVP)) for points_HVP2, weights_HVP in pairs]


@torch.no_grad()
def record_pass(detector: Detector, batch: Batch) -> RecordedPass:
    """Run the detector on one image and record its attention.

    Args:
        detector: explained as queries, in evaluation mode, on the device of the batch.
        batch: one image, so that there is no padding; its boxes are not used.
    """
    assert len(batch) == 1
    layers = detector.attention_layers()
    with _recorded([*layers.encoder, *layers.decoder]) as calls:
        predicted = detector.query_layers(detector(batch.images_BCHW, batch.sizes_B2))
    return RecordedPass(
        _array(predicted.scores_LBQK[:, 0]),
        _array(predicted.boxes_LBQ4[:, 0]),
        detector.names,
        predicted.map_shapes,
        [calls[layer] for layer in layers.encoder],
        [calls[layer] for layer in layers.decoder],
        calls[layers.encoder[0]].args[0].shape[1] if layers.encoder else None,
    )


@contextmanager
def _recorded(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, RecordedCall]]:
    """The last call of each layer while the context is open."""
    calls: dict[nn.Module, RecordedCall] = {}

    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[layer] = RecordedCall(layer, args, kwargs)

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _on_finest(weights_HM: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Weights of the cells of several maps on the finest one, (H, rows, columns), with the same sum."""
    parts = weights_HM.split([rows * columns for rows, columns in shapes], -1)
    total_HRC = parts[0].unflatten(-1, shapes[0])
    for part_HM, (rows, columns) in zip(parts[1:], shapes[1:], strict=True):
        (row_R, height_R), (column_C, width_C) = (
            _covering(*lengths) for lengths in zip(shapes[0], (rows, columns), strict=True)
        )
        shared_HRC = part_HM.unflatten(-1, (rows, columns)) / (height_R[:, None] * width_C)
        total_HRC = total_HRC + shared_HRC[:, row_R][:, :, column_C]
    return total_HRC


def _covering(fine: int, coarse: int) -> tuple[Tensor, Tensor]:
    """The coarse row over each fine one, and the number of fine rows under each coarse one."""
    index_R = torch.arange(fine) * coarse // fine
    return index_R, index_R.bincount(minlength=coarse)


def _cell(point: tuple[float, float], shape: tuple[int, int]) -> int:
    """The cell of a feature map that contains a point."""
    (x, y), (rows, columns) = point, shape
    return min(int(y * rows), rows - 1) * columns + min(int(x * columns), columns - 1)


def _attention_at(attention_map: AttentionMap, point: tuple[float, float]) -> float:
    """The attention that falls on a point: its cell's weight, or those of the points near it; mean over the heads."""
    if isinstance(attention_map, CellMap):
        weights_RC = attention_map.weights_HRC.mean(0)
        return float(weights_RC.flat[_cell(point, weights_RC.shape)])  # type: ignore[arg-type]
    squared_HVP = ((attention_map.points_HVP2 - np.array(point)) ** 2).sum(-1)
    return float((attention_map.weights_HVP * np.exp(-squared_HVP / (2 * NEAR**2))).sum((1, 2)).mean())


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
