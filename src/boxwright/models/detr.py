"""`detr`: a set of learned queries attends to the image, and each predicts one object or none.

        image ── backbone ── projection ── encoder: self-attention of all cells ──┐ cells and their positions
                                                                                  v
        query 1   ──┐                                                             │
        query 2     ├─ decoder: self-attention of queries, cross-attention to cells ── class or no object, box
        query 100 ──┘  (every layer has a loss, through the same heads)

Objects and queries are matched one to one, so that no NMS is needed ("End-to-end object detection with transformers",
Carion et al. 2020). Equal to facebookresearch/detr and to Hugging Face's DetrForObjectDetection
(`benchmarks/parity/parity.py`). The head of published weights has a row for each category id from 0 to 90; COCO's
classes are 80 of them. This form needs hundreds of epochs, and learns nothing from a few hundred images.

With `strides`, it is the same idea, global attention, with what was found since, so that few images suffice:

        image ── backbone ──┬─ stride  8 ────────────────────────────────┬─┐
                            ├─ stride 16 ─┬─ self-attention of all cells ─┼─┼─ cells of all maps: each proposes a class
                            └─ stride 32 ─┘        (top-down fusion)     ─┴─┘          and a box
                                                                                             │
        queries start from the best proposals ─── decoder: self-attention of queries, cross-attention to all cells;
        (in training, also from noised true boxes)         each layer refines boxes and scores

- `begin`: boxes of queries are those of the proposals, which are taught one to many; contents are learned (`both`;
  DINO, Zhang et al. 2023) or those of the cells that propose (`cells`; RT-DETR, Zhao et al. 2024);
- content and position are compared apart in cross-attention: `global_transformer.py`;
- `noisy`: noised ground-truth boxes as further queries in training (DINO): `denoising.py`;
- `rivals` (ours): scores are refined from layer to layer, and queries know which better query overlaps them:
  `duplicate_relation.py`.

Beside `deformable`, which it shares all but attention with, each query sees the whole image in every layer.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.config import require
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.layers.attention import Attention
from boxwright.models.layers.class_rows import copy_weights, shared_rows
from boxwright.models.layers.deformable_transformer import MultiScaleCells, Queries, box_encoding
from boxwright.models.layers.dropout import Dropout
from boxwright.models.layers.duplicate_relation import DuplicateBias
from boxwright.models.layers.global_transformer import GlobalDecoder, GlobalEncoder
from boxwright.models.layers.heads import box_head, head_rows, init_glorot
from boxwright.models.layers.padding import cut, valid_cells, valid_ratios
from boxwright.models.layers.post_norm import PostNormEncoderBlock, mlp, sine_2d
from boxwright.models.layers.proposals import QueryProposals, init_heads, propose, refine_queries, start_from
from boxwright.models.losses.denoising import DenoisingQueries, make_denoising_queries
from boxwright.models.losses.proposals import decode_queries, one_to_many_loss, query_losses
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
        strides: of the maps whose cells propose; empty for the published form, which has one map, of `stride`. With
            them, `stride`, `pre_norm` and `norm_twice` are not used.
        begin, noisy, rivals: found since publication; see the top of this file. They need `strides`.
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
    strides: tuple[int, ...] = ()
    begin: Literal["table", "both", "cells"] = "table"
    noisy: bool = False
    rivals: bool = False

    @property
    def published(self) -> bool:
        """Whether no cell proposes."""
        return not self.strides


PUBLISHED = DetrConfig("resnet50", 800, stride=32, dim=256, hidden=2048, encoder_layers=6, decoder_layers=6)
PROPOSING = DetrConfig(
    encoder_layers=1, queries=200, dropout=0.0, strides=(8, 16, 32), begin="cells", noisy=True, rivals=True
)
SIZES = {
    "nano": PROPOSING,
    "small": replace(
        PROPOSING, backbone="tf_efficientnet_lite1", image_size=416, dim=192, hidden=768, decoder_layers=4, queries=300
    ),
    "medium": replace(
        PROPOSING, backbone="tf_efficientnet_lite2", image_size=512, dim=256, hidden=1024, encoder_layers=2,
        decoder_layers=6, queries=300,
    ),
    "resnet50": PUBLISHED,
}  # fmt: skip


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
        shapes: rows and columns of each map that the queries attend to.
        cells, proposals: the cells and what they propose; None in the published form.
        denoising: the denoising queries and the predictions for them; only where targets were given.
        valid_ratios_B4: the valid area of the canvas, (width, height, width, height) in [0, 1].
    """

    layers: LayerPredictions
    shapes: list[tuple[int, int]]
    cells: MultiScaleCells | None
    proposals: QueryProposals | None
    denoising: tuple[DenoisingQueries, LayerPredictions] | None
    valid_ratios_B4: Tensor


class Detr(Detector):
    """The detector with object queries and global attention (Carion et al. 2020).

    Args:
        config: its architecture.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.

    Raises:
        UserError: for classes without a row of the head, and for settings of proposals without `strides`.
    """

    square_canvas = False
    explained_as = "queries"
    fp32_modules = ("classify", "locate", "rivalry", "aim", "place", "propose")

    rows_K: Tensor

    def __init__(self, config: DetrConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        c = config
        proposing = c.begin != "table"
        require(
            proposing == bool(c.strides) and (proposing or not (c.noisy or c.rivals)),
            "`strides`, `noisy` and `rivals` need begin='both' or 'cells', and these need `strides`.",
        )
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        self.register_buffer("rows_K", head_rows(c.class_ids, c.class_rows, self.names), persistent=False)
        self.backbone = Backbone(c.backbone, c.strides or [c.stride], pretrained, c.dilated)
        classes, channels = c.class_rows or len(names), self.backbone.channels
        self.proposing = ProposingTransformer(c, channels, classes) if proposing else None
        if self.proposing is None:
            self.projection = nn.Conv2d(channels[-1], c.dim, 1)
            self.encoder = DetrEncoder(c)
            self.decoder = DetrDecoder(c)
            self.classify = nn.Linear(c.dim, classes + 1)  # the last row: no object
            self.locate = box_head(c.dim)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the timm network."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> DetrOutputs:
        """Predictions of all layers. A batch is padded only as far as its largest image, as in the published code.

        With targets, and if `noisy`, noised ground-truth boxes go through the decoder as further queries
        (`denoising`), which the matched queries don't attend to.
        """
        ratios_B4 = valid_ratios(images_BCHW, sizes_B2)
        if self.proposing is not None:
            filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.backbone.mean)
            known = None if targets is None else targets_of(targets, ratios_B4, self.rows_K)
            return self.proposing(self.backbone(filled_BCHW), mask_BHW, ratios_B4, known)
        cells = self.encode(images_BCHW, sizes_B2)
        states_LBQE = torch.stack(self.decoder(cells))
        layers = LayerPredictions(self.classify(states_LBQE).float(), self.locate(states_LBQE).float().sigmoid())
        return DetrOutputs(layers, [cells.grid], None, None, None, ratios_B4)

    def encode(self, images_BCHW: Tensor, sizes_B2: Tensor) -> EncodedCells:
        """The encoded cells of a batch, in the published form."""
        filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.backbone.mean)
        features_BCHW = self.projection(self.backbone(filled_BCHW)[-1])
        return self.encoder(features_BCHW, valid_cells(mask_BHW, features_BCHW))

    def loss(self, outputs: DetrOutputs, batch: Batch) -> dict[str, Tensor]:
        """`class`, `l1` and `giou` of each decoder layer, counted from 1; of the proposals (`..._0`) and the denoising
        queries (`noisy_...`), where there are any.
        """
        targets = targets_of(batch, outputs.valid_ratios_B4, self.rows_K)
        if outputs.cells is None or outputs.proposals is None:
            terms, _ = set_loss(outputs.layers, targets)
            return by_layer(terms)
        assert outputs.denoising or not self.config.noisy, "the loss needs outputs of a forward pass with targets"
        losses = one_to_many_loss(outputs.cells, outputs.proposals, targets)
        return losses | query_losses(outputs.layers, outputs.denoising, targets, aware=True)

    @torch.no_grad()
    def decode(self, outputs: DetrOutputs) -> Predictions:
        """The queries and classes with the highest scores; in the published form, one class of each query."""
        if outputs.proposals is not None:
            return decode_queries(outputs.layers, self.rows_K, outputs.valid_ratios_B4)
        scores_BQK = outputs.layers.logits_LBQR[-1].softmax(-1)[..., self.rows_K]
        scores_BQ, labels_BQ = scores_BQK.max(-1)
        boxes_BQ4 = cxcywh_to_xyxy(outputs.layers.boxes_LBQ4[-1]).clamp(0, 1) * outputs.valid_ratios_B4[:, None]
        return Predictions(boxes_BQ4, scores_BQ, labels_BQ).best_first()

    def feature_maps(self) -> FeatureMaps:
        """The backbone's maps."""
        return FeatureMaps(self.backbone, self.backbone.strides)

    def attention_layers(self) -> AttentionLayers:
        """Self-attention of the encoder, cross-attention of the decoder."""
        part = self if self.proposing is None else self.proposing
        encoder = [layer.attention for layer in part.encoder.layers]
        decoder = [layer.cross_attention for layer in part.decoder.layers]
        return AttentionLayers(encoder, decoder)  # type: ignore[arg-type]

    def query_layers(self, outputs: DetrOutputs) -> QueryLayers:
        """Scores of the classes, without "no object"."""
        logits_LBQR = outputs.layers.logits_LBQR
        scores_LBQR = logits_LBQR.softmax(-1) if outputs.proposals is None else logits_LBQR.sigmoid()
        return QueryLayers(scores_LBQR[..., self.rows_K], cxcywh_to_xyxy(outputs.layers.boxes_LBQ4), outputs.shapes)

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> "Detr":
        """See `Detector`. The new head has one row per class, where a published one has rows that stand for none."""
        size = image_size or self.image_size
        config = replace(self.config, image_size=size, class_rows=0, class_ids=())
        detector = Detr(config, names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        rows = shared_rows(self.names, self.rows_K.tolist(), names)
        if self.proposing is None:
            rows = [*rows, (-1, -1)]  # the last: no object
            copy_weights(self, detector, {"classify.weight": rows, "classify.bias": rows})
        else:
            copy_weights(self, detector, dict.fromkeys(self.proposing.class_tensors("proposing."), rows))
        return detector


class ProposingTransformer(nn.Module):
    """All behind the backbone where queries start from proposals.

    Args:
        c: the architecture.
        channels: of the backbone's maps.
        classes: rows of the heads.
    """

    def __init__(self, c: DetrConfig, channels: list[int], classes: int):
        super().__init__()
        self.dim, self.queries, heads, layers = c.dim, c.queries, c.decoder_heads or c.heads, c.decoder_layers
        self.encoder = GlobalEncoder(channels, c.dim, c.hidden, c.heads, c.encoder_layers, c.dropout)
        self.decoder = GlobalDecoder(c.dim, c.decoder_hidden or c.hidden, heads, len(channels), layers, c.dropout)
        self.classify = nn.ModuleList(nn.Linear(c.dim, classes) for _ in range(layers + 1))  # the last: of proposals
        self.locate = nn.ModuleList(box_head(c.dim) for _ in range(layers + 1))
        self.content_embedding = nn.Parameter(torch.randn(c.queries, c.dim)) if c.begin == "both" else None
        self.propose = nn.Sequential(nn.Linear(c.dim, c.dim), nn.LayerNorm(c.dim))
        self.place = nn.Sequential(nn.Linear(2 * c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, c.dim))
        self.label_embedding = nn.Parameter(torch.randn(classes, c.dim)) if c.noisy else None
        self.rivalry = DuplicateBias(heads, layers) if c.rivals else None
        init_glorot(self.propose)
        init_glorot(self.place)
        init_heads(self.classify, self.locate, c.rivals)

    def forward(
        self, features: list[Tensor], mask_BHW: Tensor, ratios_B4: Tensor, targets: Targets | None
    ) -> DetrOutputs:
        """Predictions of all layers, and what they come from.

        Args:
            features: the backbone's maps, (B, C, H, W) each.
            mask_BHW: False where a pixel is padding.
            ratios_B4: the valid area of the canvas.
            targets: objects, from which denoising queries are made.
        """
        cells = self.encoder(features, [valid_cells(mask_BHW, x_BCHW) for x_BCHW in features])
        proposals = propose(cells, self.propose, self.classify[-1], self.locate[-1])
        queries = self.start_queries(proposals)
        if targets is None or self.label_embedding is None:
            layers = self.predict_layers(cells, queries)
            return DetrOutputs(layers, list(cells.shapes), cells, proposals, None, ratios_B4)
        noised = make_denoising_queries(targets, self.label_embedding)
        denoised, layers = noised.split(self.predict_layers(cells, noised.prepended_to(queries)))
        return DetrOutputs(layers, list(cells.shapes), cells, proposals, (noised, denoised), ratios_B4)

    def start_queries(self, proposals: QueryProposals) -> Queries:
        """Input of the decoder: as many queries as the configuration says, or as there are cells."""
        return start_from(proposals, self.queries, self.content_embedding, self.rivalry is not None)

    def predict_layers(self, cells: MultiScaleCells, queries: Queries) -> LayerPredictions:
        """Predictions of each decoder layer."""
        layers = [
            lambda x, positions, boxes, mask, layer=layer: layer(x, positions, boxes, cells, mask)
            for layer in self.decoder.layers
        ]
        return LayerPredictions(*refine_queries(queries, layers, self._place, self.classify, self.locate, self.rivalry))

    def _place(self, boxes_BQ4: Tensor) -> Tensor:
        """Position encodings of boxes, (B, Q, E)."""
        return self.place(box_encoding(boxes_BQ4, self.dim))

    def class_tensors(self, prefix: str) -> list[str]:
        """Names of the tensors with a row for each class."""
        heads = [f"classify.{n}.{kind}" for n in range(len(self.classify)) for kind in ("weight", "bias")]
        return [prefix + name for name in [*heads, "label_embedding"]]


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
    """Self-attention of all cells of the map; position encodings are added again in each layer."""

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
