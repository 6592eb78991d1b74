"""`detr`: a set of learned queries attends to the image, and each predicts one object or none.

        image ── backbone ── projection ── encoder: self-attention of all cells ──┐ cells and their positions
                                                                                  v
        query 1   ──┐                                                             │
        query 2     ├─ decoder: self-attention of queries, cross-attention to cells ── class or no object, box
        query 100 ──┘  (every layer has a loss, through the same heads)

Objects and queries are matched one to one, so that no NMS is needed ("End-to-end object detection with transformers",
Carion et al. 2020). Equal to facebookresearch/detr and to Hugging Face's DetrForObjectDetection
(`benchmarks/parity/parity.py`). The head of published weights has a row for each category id from 0 to 90; COCO's
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
from boxwright.models.layers.heads import box_head, head_rows, init_glorot
from boxwright.models.layers.padding import cut, valid_cells, valid_ratios
from boxwright.models.layers.post_norm import PostNormEncoderBlock, mlp, sine_2d
from boxwright.models.losses.set_criterion import (
    LayerPredictions,
    Targets,
    assign,
    box_losses,
    by_layer,
    scatter_to_queries,
    targets_of,
)
from boxwright.types import AttentionLayers, Batch, Detector, FeatureMaps, Predictions, QueryLayers

NO_OBJECT_WEIGHT = 0.1  # weight of queries without an object in the classification loss (DETR, section 3.1)


@dataclass(frozen=True)
class DetrConfig:
    """The architecture of a `detr`.

    Attributes:
        backbone: a timm model with a feature map at the stride.
        image_size: side of the canvas, in pixels.
        stride: canvas pixels per cell of the encoder, 32 or 16.
        dilated: stride 16 comes from a dilated last stage (DC5), not from the stage before it.
        dim, hidden, heads: width, MLP width and attention heads of the transformer.
        decoder_hidden, decoder_heads: those of the decoder where they differ from these; else 0.
        encoder_layers, decoder_layers: numbers of layers.
        queries: the most objects that can be predicted per image.
        dropout: rate in training.
        pre_norm: layer norm before attention and MLP instead of after the residual addition.
        norm_twice: the norm behind each layer's predictions is also the input of the next layer, and the last layer's
            output goes through it twice, as in Hugging Face's networks trained with `auxiliary_loss`.
        class_rows: classes of the head; 0 for as many as there are names.
        class_ids: the head's row of each class; empty for 0, 1, 2...
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
    """The encoded cells of the map, row by row: what the queries attend to.

    Attributes:
        x_BME: their states.
        positions_BME: their position encodings.
        valid_B11M: False where a cell is padding.
        grid: rows and columns of the map.
    """

    x_BME: Tensor
    positions_BME: Tensor
    valid_B11M: Tensor
    grid: tuple[int, int]


class DetrOutputs(NamedTuple):
    """Outputs of the network for a batch.

    Attributes:
        layers: predictions of each decoder layer.
        valid_ratios_B4: the valid area of the canvas, (width, height, width, height) in [0, 1].
        grid: rows and columns of the cells.
    """

    layers: LayerPredictions
    valid_ratios_B4: Tensor
    grid: tuple[int, int]


class Detr(Detector):
    """The detector with learned object queries (Carion et al. 2020).

    Args:
        config: its architecture.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.

    Raises:
        UserError: for classes without a row of the head.
    """

    square_canvas = False
    explained_as = "queries"
    fp32_modules = ("classify", "locate")

    rows_K: Tensor

    def __init__(self, config: DetrConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        c = config
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        self.register_buffer("rows_K", head_rows(c.class_ids, c.class_rows, self.names), persistent=False)
        self.backbone = Backbone(c.backbone, [c.stride], pretrained, c.dilated)
        self.projection = nn.Conv2d(self.backbone.channels[-1], c.dim, 1)
        self.encoder = DetrEncoder(c)
        self.decoder = DetrDecoder(c)
        self.classify = nn.Linear(c.dim, (c.class_rows or len(names)) + 1)  # the last row: no object
        self.locate = box_head(c.dim)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the timm network."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> DetrOutputs:
        """Predictions of all layers. A batch is padded only as far as its largest image, as in the published code."""
        cells = self.encode(images_BCHW, sizes_B2)
        states_LBQE = torch.stack(self.decoder(cells))
        layers = LayerPredictions(self.classify(states_LBQE).float(), self.locate(states_LBQE).float().sigmoid())
        return DetrOutputs(layers, valid_ratios(images_BCHW, sizes_B2), cells.grid)

    def encode(self, images_BCHW: Tensor, sizes_B2: Tensor) -> EncodedCells:
        """The encoded cells of a batch."""
        filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.backbone.mean)
        features_BCHW = self.projection(self.backbone(filled_BCHW)[-1])
        return self.encoder(features_BCHW, valid_cells(mask_BHW, features_BCHW))

    def loss(self, outputs: DetrOutputs, batch: Batch) -> dict[str, Tensor]:
        """`class`, `l1` and `giou` of each decoder layer, counted from 1."""
        targets = targets_of(batch, outputs.valid_ratios_B4, self.rows_K)
        terms, _ = set_loss(outputs.layers, targets)
        return by_layer(terms)

    @torch.no_grad()
    def decode(self, outputs: DetrOutputs) -> Predictions:
        """The most probable class of each query after the last layer."""
        scores_BQK = outputs.layers.logits_LBQR[-1].softmax(-1)[..., self.rows_K]
        scores_BQ, labels_BQ = scores_BQK.max(-1)
        boxes_BQ4 = cxcywh_to_xyxy(outputs.layers.boxes_LBQ4[-1]).clamp(0, 1) * outputs.valid_ratios_B4[:, None]
        return Predictions(boxes_BQ4, scores_BQ, labels_BQ).best_first()

    def feature_maps(self) -> FeatureMaps:
        """The backbone's map."""
        return FeatureMaps(self.backbone, self.backbone.strides)

    def attention_layers(self) -> AttentionLayers:
        """Self-attention of the encoder, cross-attention of the decoder."""
        encoder = [layer.attention for layer in self.encoder.layers]
        decoder = [layer.cross_attention for layer in self.decoder.layers]
        return AttentionLayers(encoder, decoder)  # type: ignore[arg-type]

    def query_layers(self, outputs: DetrOutputs) -> QueryLayers:
        """Scores of the classes, without "no object"."""
        scores_LBQK = outputs.layers.logits_LBQR.softmax(-1)[..., self.rows_K]
        return QueryLayers(scores_LBQK, cxcywh_to_xyxy(outputs.layers.boxes_LBQ4), [outputs.grid])

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> "Detr":
        """See `Detector`. The new head has one row per class, where a published one has rows that stand for none."""
        size = image_size or self.image_size
        config = replace(self.config, image_size=size, class_rows=0, class_ids=())
        detector = Detr(config, names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        rows = [*shared_rows(self.names, self.rows_K.tolist(), names), (-1, -1)]  # the last: no object
        copy_weights(self, detector, {"classify.weight": rows, "classify.bias": rows})
        return detector


def set_loss(layers: LayerPredictions, targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
    """`class`, `l1` and `giou` of each layer, (L,), weighted 1, 5 and 2; and the assignment (L, B, N).

    The cross-entropy of the classes is a weighted mean, in which queries without an object have a tenth of the weight.
    """
    matched_LBN = assign(layers, targets, layers.logits_LBQR.softmax(-1), torch.neg)
    rows = layers.logits_LBQR.shape[-1]
    wanted_LBQ = scatter_to_queries(targets.rows_BN, matched_LBN, layers.logits_LBQR.shape[2], rows - 1)
    weights_R = torch.ones(rows, device=wanted_LBQ.device)
    weights_R[-1] = NO_OBJECT_WEIGHT
    each_LBQ = F.cross_entropy(layers.logits_LBQR.movedim(-1, 1), wanted_LBQ, weights_R, reduction="none")
    classes_L = each_LBQ.sum((1, 2)) / weights_R[wanted_LBQ].sum((1, 2))
    return {"class": classes_L, **box_losses(layers, targets, matched_LBN)}, matched_LBN


class DetrEncoder(nn.Module):
    """Self-attention of all cells of the map; position encodings are added anew in each layer."""

    def __init__(self, c: DetrConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            PostNormEncoderBlock(c.dim, c.hidden, c.heads, c.dropout, c.pre_norm) for _ in range(c.encoder_layers)
        )
        self.norm = nn.LayerNorm(c.dim) if c.pre_norm else nn.Identity()
        init_glorot(self)

    def forward(self, features_BEHW: Tensor, valid_BHW: Tensor) -> EncodedCells:
        """The encoded cells, row by row."""
        positions_BME = sine_2d(valid_BHW, features_BEHW.shape[1], normalised=True).to(features_BEHW.dtype)
        valid_B11M = valid_BHW.flatten(1)[:, None, None]
        x_BME = features_BEHW.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x_BME = layer(x_BME, positions_BME, valid_B11M)
        height, width = features_BEHW.shape[-2:]
        return EncodedCells(self.norm(x_BME), positions_BME, valid_B11M, (height, width))


class DetrDecoder(nn.Module):
    """Layers that turn empty queries into objects; every layer's output goes through the same norm."""

    def __init__(self, c: DetrConfig):
        super().__init__()
        self.query_embedding = nn.Parameter(torch.randn(c.queries, c.dim))
        self.layers = nn.ModuleList(DetrDecoderBlock(c) for _ in range(c.decoder_layers))
        self.norm, self.norm_twice = nn.LayerNorm(c.dim), c.norm_twice
        init_glorot(self)

    def forward(self, cells: EncodedCells) -> list[Tensor]:
        """Normalised states of the queries after each layer, (B, Q, E) each."""
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
    """Self-attention of the queries, cross-attention to the cells, then an MLP."""

    def __init__(self, c: DetrConfig):
        super().__init__()
        self.pre_norm, heads = c.pre_norm, c.decoder_heads or c.heads
        self.self_attention, self.cross_attention = Attention(c.dim, heads), Attention(c.dim, heads)
        self.mlp = mlp(c.dim, c.decoder_hidden or c.hidden, c.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(c.dim) for _ in range(3))
        self.dropout = Dropout(c.dropout)

    def forward(self, x_BQE: Tensor, queries_BQE: Tensor, cells: EncodedCells) -> Tensor:
        """States of the queries after this layer; `queries_BQE` are their learned positions."""
        if self.pre_norm:
            x_BQE = x_BQE + self.dropout(self._attend_queries(self.norm1(x_BQE), queries_BQE))
            x_BQE = x_BQE + self.dropout(self._attend_cells(self.norm2(x_BQE), queries_BQE, cells))
            return x_BQE + self.dropout(self.mlp(self.norm3(x_BQE)))
        x_BQE = self.norm1(x_BQE + self.dropout(self._attend_queries(x_BQE, queries_BQE)))
        x_BQE = self.norm2(x_BQE + self.dropout(self._attend_cells(x_BQE, queries_BQE, cells)))
        return self.norm3(x_BQE + self.dropout(self.mlp(x_BQE)))

    def _attend_queries(self, x_BQE: Tensor, queries_BQE: Tensor) -> Tensor:
        positioned_BQE = x_BQE + queries_BQE
        return self.self_attention(positioned_BQE, self.self_attention.keys_values(positioned_BQE, x_BQE))

    def _attend_cells(self, x_BQE: Tensor, queries_BQE: Tensor, cells: EncodedCells) -> Tensor:
        keys_values = self.cross_attention.keys_values(cells.x_BME + cells.positions_BME, cells.x_BME)
        return self.cross_attention(x_BQE + queries_BQE, keys_values, mask=cells.valid_B11M)
