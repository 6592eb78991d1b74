"""`detr`: a set of learned queries looks at the image, and each says one object or none.

        image ── backbone ── projection ── encoder: all cells look at each other ──┐ cells, and where they are
                                                                                   v
        query 1   ──┐                                                              │
        query 2     ├─ decoder: the queries look at each other, then at the cells ─┴── class or nothing, box
        query 100 ──┘  (each layer's answer is taught, with the same heads)

Objects and queries are matched one to one, so that nothing has to be suppressed ("End-to-end object detection with
transformers", Carion et al. 2020). Equal to facebookresearch/detr and to Hugging Face's DetrForObjectDetection
(`benchmarks/parity/parity.py`); of published weights the head has a row for each number from 0 to 90, and COCO's
classes are 80 of them.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.layers.attention import Attention
from boxwright.models.layers.class_rows import copy_weights, shared_rows
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.heads import begin_glorot, box_head, rows_of
from boxwright.models.layers.padding import cut, extent, seen_cells
from boxwright.models.layers.post_norm import PostNormEncoderBlock, mlp, sine_2d
from boxwright.models.losses.set_criterion import (
    LayerPredictions,
    Targets,
    assign,
    box_losses,
    by_layer,
    give,
    truth_of,
)
from boxwright.types import AttentionLayers, Batch, Detector, Predictions, QueryLayers

NOTHING_WEIGHT = 0.1  # of queries without an object, in the loss of the class


@dataclass(frozen=True)
class DetrConfig:
    """The shape of a `detr`.

    Attributes:
        backbone: a timm model with a feature map at the stride.
        image_size: side of the canvas, in pixels.
        stride: input pixels per cell that the encoder looks at, 32 or 16.
        dilated: stride 16 comes of a dilated last stage (DC5), not of the stage before.
        dim, hidden, heads: of the transformer.
        decoder_hidden, decoder_heads: where they are others in the decoder; else 0.
        encoder_layers, decoder_layers: how many.
        queries: objects that can be said at most.
        dropout: in training.
        pre_norm: norm before attention and MLP, not after the addition.
        norm_twice: the norm behind each layer's answer is also what the next layer begins with, and the last answer
            goes through it twice: Hugging Face's networks that were trained with `auxiliary_loss`.
        class_rows: classes that the head can tell; 0 for as many as there are names.
        class_ids: the row of each class; empty for 0, 1, 2...
    """

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 320
    stride: int = 16
    dilated: bool = False
    dim: int = 128
    hidden: int = 512
    heads: int = 8
    decoder_hidden: int = 0
    decoder_heads: int = 0
    encoder_layers: int = 3
    decoder_layers: int = 3
    queries: int = 100
    dropout: float = 0.1
    pre_norm: bool = False
    norm_twice: bool = False
    class_rows: int = 0
    class_ids: tuple[int, ...] = ()


PUBLISHED = DetrConfig("resnet50", 800, stride=32, dim=256, hidden=2048, encoder_layers=6, decoder_layers=6)
SIZES = {
    "nano": DetrConfig(),
    "small": DetrConfig(
        "tf_efficientnet_lite1", 416, dim=192, hidden=768, encoder_layers=4, decoder_layers=4, queries=150
    ),
    "medium": DetrConfig(
        "tf_efficientnet_lite2", 512, dim=256, hidden=1024, encoder_layers=6, decoder_layers=6, queries=200
    ),
    "resnet50": PUBLISHED,
}


class EncodedCells(NamedTuple):
    """What the queries look at: encoded cells, where they are, and which of them are image."""

    x_BME: Tensor
    places_BME: Tensor
    seen_B11M: Tensor
    grid: tuple[int, int]  # rows and columns


class DetrOutputs(NamedTuple):
    """What all layers say, and the part of the canvas that is image, as (width, height, width, height) in [0, 1]."""

    said: LayerPredictions
    extent_B4: Tensor
    grid: tuple[int, int]  # rows and columns of the cells


class Detr(Detector):
    """The detector of learned queries.

    Args:
        config: its shape.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.

    Raises:
        UserError: for classes without a row.
    """

    explained_as = "queries"
    rows_K: Tensor

    def __init__(self, config: DetrConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        c = config
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        self.register_buffer("rows_K", rows_of(c.class_ids, c.class_rows, self.names), persistent=False)
        self.backbone = Backbone(c.backbone, [c.stride], pretrained, c.dilated)
        self.projection = nn.Conv2d(self.backbone.channels[-1], c.dim, 1)
        self.encoder = DetrEncoder(c)
        self.decoder = DetrDecoder(c)
        self.classify = nn.Linear(c.dim, (c.class_rows or len(names)) + 1)  # the last row: nothing
        self.locate = box_head(c.dim)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The timm network's."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> DetrOutputs:
        """What all layers say. A batch is padded only as far as its largest image, as the originals do it."""
        cells = self.encode(images_BCHW, sizes_B2)
        states_LBQE = torch.stack(self.decoder(cells))
        said = LayerPredictions(self.classify(states_LBQE).float(), self.locate(states_LBQE).float().sigmoid())
        return DetrOutputs(said, extent(images_BCHW, sizes_B2), cells.grid)

    def encode(self, images_BCHW: Tensor, sizes_B2: Tensor) -> EncodedCells:
        """What the queries look at."""
        filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.backbone.mean)
        features_BCHW = self.projection(self.backbone(filled_BCHW)[-1])
        return self.encoder(features_BCHW, seen_cells(mask_BHW, features_BCHW))

    def loss(self, raw: DetrOutputs, batch: Batch) -> dict[str, Tensor]:
        """`class`, `l1` and `giou` of each layer, counted from 1."""
        truth = truth_of(batch, raw.extent_B4, self.rows_K)
        terms, _ = set_loss(raw.said, truth)
        return by_layer(terms)

    @torch.no_grad()
    def decode(self, raw: DetrOutputs) -> Predictions:
        """The likeliest class of each query of the last layer."""
        scores_BQK = raw.said.logits_LBQR[-1].softmax(-1)[..., self.rows_K]
        scores_BQ, labels_BQ = scores_BQK.max(-1)
        boxes_BQ4 = cxcywh_to_xyxy(raw.said.boxes_LBQ4[-1]).clamp(0, 1) * raw.extent_B4[:, None]
        return Predictions(boxes_BQ4, scores_BQ, labels_BQ).best_first()

    def attention_layers(self) -> AttentionLayers:
        """Self-attention of the encoder, cross-attention of the decoder."""
        encoder = [layer.attention for layer in self.encoder.layers]
        decoder = [layer.cross_attention for layer in self.decoder.layers]
        return AttentionLayers(encoder, decoder)  # type: ignore[arg-type]

    def query_layers(self, outputs: DetrOutputs) -> QueryLayers:
        """Scores of the classes, without "no object"."""
        scores_LBQK = outputs.said.logits_LBQR.softmax(-1)[..., self.rows_K]
        return QueryLayers(scores_LBQK, cxcywh_to_xyxy(outputs.said.boxes_LBQ4), [outputs.grid])

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> "Detr":
        """See `Detector`. A head of other rows, as published weights have it, becomes one of a row a class."""
        size = image_size or self.image_size
        config = replace(self.config, image_size=size, class_rows=0, class_ids=())
        detector = Detr(config, names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        rows = [*shared_rows(self.names, self.rows_K.tolist(), names), (-1, -1)]  # the last: no object
        copy_weights(self, detector, {"classify.weight": rows, "classify.bias": rows})
        return detector


def set_loss(said: LayerPredictions, truth: Targets) -> tuple[dict[str, Tensor], Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,), weighted 1, 5 and 2; and the assignment (L, B, N).

    The cross-entropy of the classes is a weighted mean, in which queries without an object count a tenth.
    """
    matched_LBN = assign(said, truth, said.logits_LBQR.softmax(-1), torch.neg)
    rows = said.logits_LBQR.shape[-1]
    wanted_LBQ = give(truth.rows_BN, matched_LBN, said.logits_LBQR.shape[2], rows - 1)
    weights_R = torch.ones(rows, device=wanted_LBQ.device)
    weights_R[-1] = NOTHING_WEIGHT
    each_LBQ = F.cross_entropy(said.logits_LBQR.movedim(-1, 1), wanted_LBQ, weights_R, reduction="none")
    classes_L = each_LBQ.sum((1, 2)) / weights_R[wanted_LBQ].sum((1, 2))
    return {"class": classes_L, **box_losses(said, truth, matched_LBN)}, matched_LBN


class DetrEncoder(nn.Module):
    """All cells of the map look at each other; where they are is said anew to each layer."""

    def __init__(self, c: DetrConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            PostNormEncoderBlock(c.dim, c.hidden, c.heads, c.dropout, c.pre_norm) for _ in range(c.encoder_layers)
        )
        self.norm = nn.LayerNorm(c.dim) if c.pre_norm else nn.Identity()
        begin_glorot(self)

    def forward(self, features_BEHW: Tensor, seen_BHW: Tensor) -> EncodedCells:
        """The encoded cells, row by row."""
        places_BME = sine_2d(seen_BHW, features_BEHW.shape[1], normalised=True).to(features_BEHW.dtype)
        seen_B11M = seen_BHW.flatten(1)[:, None, None]
        x_BME = features_BEHW.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x_BME = layer(x_BME, places_BME, seen_B11M)
        height, width = features_BEHW.shape[-2:]
        return EncodedCells(self.norm(x_BME), places_BME, seen_B11M, (height, width))


class DetrDecoder(nn.Module):
    """Layers that turn empty queries into objects; the same norm stands behind each layer's answer."""

    def __init__(self, c: DetrConfig):
        super().__init__()
        self.query_embedding = nn.Parameter(torch.randn(c.queries, c.dim))
        self.layers = nn.ModuleList(DetrDecoderBlock(c) for _ in range(c.decoder_layers))
        self.norm, self.norm_twice = nn.LayerNorm(c.dim), c.norm_twice
        begin_glorot(self)

    def forward(self, cells: EncodedCells) -> list[Tensor]:
        """What each layer makes of the queries, normed, (B, Q, E) each."""
        queries_BQE = self.query_embedding.expand(cells.x_BME.shape[0], -1, -1)
        x_BQE = torch.zeros_like(queries_BQE)
        states = []
        for layer in self.layers:
            x_BQE = layer(x_BQE, queries_BQE, cells)
            states.append(self.norm(x_BQE))
            if self.norm_twice:
                x_BQE = states[-1]
        return [*states[:-1], self.norm(states[-1])] if self.norm_twice else states


class DetrDecoderBlock(nn.Module):
    """The queries look at each other, then at the cells, then an MLP."""

    def __init__(self, c: DetrConfig):
        super().__init__()
        self.pre_norm, heads = c.pre_norm, c.decoder_heads or c.heads
        self.self_attention, self.cross_attention = Attention(c.dim, heads), Attention(c.dim, heads)
        self.mlp = mlp(c.dim, c.decoder_hidden or c.hidden, c.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(c.dim) for _ in range(3))
        self.dropout = Dropout(c.dropout)

    def forward(self, x_BQE: Tensor, queries_BQE: Tensor, cells: EncodedCells) -> Tensor:
        """The next layer's view of the queries, which are told apart by `queries_BQE` alone."""
        if self.pre_norm:
            x_BQE = x_BQE + self.dropout(self._consult(self.norm1(x_BQE), queries_BQE))
            x_BQE = x_BQE + self.dropout(self._look(self.norm2(x_BQE), queries_BQE, cells))
            return x_BQE + self.dropout(self.mlp(self.norm3(x_BQE)))
        x_BQE = self.norm1(x_BQE + self.dropout(self._consult(x_BQE, queries_BQE)))
        x_BQE = self.norm2(x_BQE + self.dropout(self._look(x_BQE, queries_BQE, cells)))
        return self.norm3(x_BQE + self.dropout(self.mlp(x_BQE)))

    def _consult(self, x_BQE: Tensor, queries_BQE: Tensor) -> Tensor:
        placed_BQE = x_BQE + queries_BQE
        return self.self_attention(placed_BQE, self.self_attention.keys_values(placed_BQE, x_BQE))

    def _look(self, x_BQE: Tensor, queries_BQE: Tensor, cells: EncodedCells) -> Tensor:
        seen = self.cross_attention.keys_values(cells.x_BME + cells.places_BME, cells.x_BME)
        return self.cross_attention(x_BQE + queries_BQE, seen, mask=cells.seen_B11M)
