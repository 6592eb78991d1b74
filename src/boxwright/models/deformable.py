"""`deformable`: queries that look at a few points on several maps, begin where cells propose, and correct themselves.

        image ── backbone ──┬─ stride  8 ─┐
                            ├─ stride 16 ─┼─ encoder: each cell looks at a few points on all maps ──┐
                            └─ stride 32 ─┘        │ every cell proposes a class and a box          │
                                                   v                                                v
        the best proposals are where the queries begin ─── decoder: the queries look at each other, then at points
        (in training: and true boxes that were shaken)     around their boxes; each layer moves the boxes

"Deformable DETR" (Zhu et al. 2021) in its three published forms, and with what was learned since, each a switch of the
configuration and a block of its own:

- `begin = "both"`: boxes from the proposals, contents learned (mixed query selection; DINO, Zhang et al. 2023); or
  `"cells"`: contents, too, from the cells that propose (RT-DETR, Zhao et al. 2024);
- `noisy`: true boxes, shaken, as further queries in training (contrastive denoising; DINO): `denoising.py`;
- `forward_twice`: a layer's boxes are taught by the layer behind it, too (look forward twice; DINO);
- `aware`: the score of a class is taught to be the overlap of the box (quality focal loss, Li et al. 2020);
- `many`: in the encoder several cells learn from each object (task-aligned assignment, Feng et al. 2021);
- `fused`: coarse maps are added to finer ones before the encoder (a feature pyramid, Lin et al. 2017);
- `rivals` (ours): scores are corrected from layer to layer, as boxes are, beginning with those of the proposals, and
  the queries are told who overlaps them and scores better (as in `dense`): `rivals.py`.

The published forms are equal to Hugging Face's DeformableDetrForObjectDetection (`benchmarks/parity/parity.py`).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.config import require
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.layers.class_rows import copy_weights, shared_rows
from boxwright.models.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableEncoder,
    Maps,
    MultiScaleCells,
    Queries,
    box_codes,
    inverse_sigmoid,
)
from boxwright.models.layers.duplicate_relation import DuplicateBias
from boxwright.models.layers.heads import begin_glorot, box_head, rows_of
from boxwright.models.layers.padding import cut, extent, seen_cells
from boxwright.models.losses.denoising import denoising_loss, shake
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, by_layer, focal_set_loss, truth_of
from boxwright.models.losses.task_aligned import candidates, one_to_many, rows, taught
from boxwright.types import AttentionLayers, Batch, Detector, Predictions, QueryLayers

PRIOR = 0.01  # the score of an untrained query
SIDE = 0.05  # of a proposal on the finest map, before it is corrected; twice that on the next one


@dataclass(frozen=True)
class DeformableConfig:
    """The shape of a `deformable`.

    Attributes:
        backbone: a timm model with feature maps at the strides.
        image_size: side of the canvas, in pixels.
        strides: input pixels per cell of the backbone's maps.
        extra_levels: further maps behind them, each half of the one before.
        dilated: the last stage keeps stride 16 by dilation.
        dim, hidden, heads: of the transformer.
        decoder_hidden, decoder_heads: where they are others in the decoder; else 0.
        encoder_layers, decoder_layers: how many.
        encoder_points, decoder_points: that a head looks at on each map.
        queries: objects that can be said at most.
        dropout: in training.
        begin: where queries come from: a learned `table`, the encoder's `proposals`, `both`, or its `cells`.
        refine: each layer moves the boxes of the one before.
        forward_twice, noisy, aware, many, fused, rivals: what was learned since; see the top of this file.
        class_rows: classes that the heads can tell; 0 for as many as there are names.
        class_ids: the row of each class; empty for 0, 1, 2...
    """

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 320
    strides: tuple[int, ...] = (8, 16, 32)
    extra_levels: int = 0
    dilated: bool = False
    dim: int = 128
    hidden: int = 512
    heads: int = 8
    decoder_hidden: int = 0
    decoder_heads: int = 0
    encoder_layers: int = 1
    decoder_layers: int = 3
    encoder_points: int = 4
    decoder_points: int = 4
    queries: int = 300
    dropout: float = 0.0
    begin: Literal["table", "proposals", "both", "cells"] = "both"
    refine: bool = True
    forward_twice: bool = True
    noisy: bool = True
    aware: bool = True
    many: bool = True
    fused: bool = True
    rivals: bool = True
    class_rows: int = 0
    class_ids: tuple[int, ...] = ()

    @property
    def proposes_anything(self) -> bool:
        """Whether proposals are of any object, told by the first row alone, as published; else each is of a class."""
        return self.begin == "proposals" and not self.many


PUBLISHED = DeformableConfig(
    "resnet50", 800, extra_levels=1, dim=256, hidden=1024, encoder_layers=6, decoder_layers=6, dropout=0.1,
    begin="table", refine=False, forward_twice=False, noisy=False, aware=False, many=False, fused=False,
    rivals=False,
)  # fmt: skip
SIZES = {
    "nano": DeformableConfig(),
    "small": DeformableConfig("tf_efficientnet_lite1", 416, dim=192, hidden=768, decoder_layers=4, queries=500),
    "medium": DeformableConfig(
        "tf_efficientnet_lite2", 512, dim=256, hidden=1024, encoder_layers=2, decoder_layers=6, queries=700
    ),
    "resnet50": DeformableConfig(
        "resnet50", 800, extra_levels=1, dim=256, hidden=1024, encoder_layers=6, decoder_layers=6
    ),
}


class Proposals(NamedTuple):
    """What each cell of the encoder says: scores, and boxes (centre and size) before the sigmoid; its state, and False
    where a cell is padding or too near the edge."""

    logits_BTR: Tensor
    boxes_BT4: Tensor
    states_BTE: Tensor
    usable_BT: Tensor


class DeformableOutputs(NamedTuple):
    """The encoded cells, what they propose, and the part of the canvas that is image, as (w, h, w, h) in [0, 1]."""

    cells: MultiScaleCells
    proposals: Proposals | None
    extent_B4: Tensor


class Deformable(Detector):
    """The detector of queries that look at points.

    Args:
        config: its shape.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.

    Raises:
        UserError: for classes without a row, and for noisy or rival queries that do not begin as `both` or `cells` do.
    """

    explained_as = "queries"
    rows_K: Tensor

    def __init__(self, config: DeformableConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        c = config
        modern = c.begin in ("both", "cells")
        require(
            modern or not (c.noisy or c.rivals),
            f"noisy and rival queries need begin='both' or 'cells', not {c.begin!r}.",
        )
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        self.register_buffer("rows_K", rows_of(c.class_ids, c.class_rows, self.names), persistent=False)
        classes, levels = c.class_rows or len(names), len(c.strides) + c.extra_levels
        self.backbone = Backbone(c.backbone, c.strides, pretrained, c.dilated)
        self.maps = Maps(self.backbone.channels, c.extra_levels, c.dim, c.fused)
        self.encoder = DeformableEncoder(
            c.dim, c.hidden, c.heads, levels, c.encoder_points, c.encoder_layers, c.dropout
        )
        hidden, among = c.decoder_hidden or c.hidden, c.decoder_heads or c.heads
        self.decoder = DeformableDecoder(c.dim, hidden, among, levels, c.decoder_points, c.decoder_layers, c.dropout)
        heads = (c.decoder_layers if c.refine else 1) + (c.begin != "table")  # the last one of the proposals
        self.classify = nn.ModuleList(nn.Linear(c.dim, classes) for _ in range(heads))
        self.locate = nn.ModuleList(box_head(c.dim) for _ in range(heads))
        if c.begin in ("table", "both"):
            self.content_embedding = nn.Parameter(torch.randn(c.queries, c.dim))
        if c.begin == "table":
            self.place_embedding = nn.Parameter(torch.randn(c.queries, c.dim))
            self.point = nn.Linear(c.dim, 2)
        else:
            self.propose = nn.Sequential(nn.Linear(c.dim, c.dim), nn.LayerNorm(c.dim))
        if c.begin == "proposals":
            self.ask = nn.Sequential(nn.Linear(2 * c.dim, 2 * c.dim), nn.LayerNorm(2 * c.dim))
        if modern:
            self.place = nn.Sequential(nn.Linear(2 * c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, c.dim))
        if c.noisy:
            self.label_embedding = nn.Parameter(torch.randn(classes, c.dim))
        self.rivalry = DuplicateBias(among, c.decoder_layers) if c.rivals else None
        self._begin()

    def _begin(self) -> None:
        """Scores begin at `PRIOR`, or as those that they correct; boxes begin where their queries are, and small if
        those have no size.
        """
        for name in ("point", "propose", "ask", "place"):
            begin_glorot(getattr(self, name, nn.Identity()))
        for classify in self.classify:
            nn.init.constant_(classify.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        for classify in self.classify[:-1] if self.config.rivals else ():
            nn.init.zeros_(classify.weight)  # type: ignore[arg-type]
            nn.init.zeros_(classify.bias)  # type: ignore[arg-type]
        for locate in self.locate:
            nn.init.zeros_(locate[-1].weight)  # type: ignore[index,arg-type]
            nn.init.zeros_(locate[-1].bias)  # type: ignore[index,arg-type]
        if self.config.begin == "table":
            nn.init.constant_(self.locate[0][-1].bias[2:], -2.0)  # type: ignore[index,arg-type]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The timm network's."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> DeformableOutputs:
        """The encoded cells and what they propose. A batch is padded only as far as its largest image."""
        filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.backbone.mean)
        maps = self.maps(self.backbone(filled_BCHW))
        cells = self.encoder(maps, [seen_cells(mask_BHW, x_BEHW) for x_BEHW in maps])
        proposals = None if self.config.begin == "table" else self._propose(cells)
        return DeformableOutputs(cells, proposals, extent(images_BCHW, sizes_B2))

    def _propose(self, cells: MultiScaleCells) -> Proposals:
        """Each cell's box is a correction of a square around it; those of cells at the edge are not used."""
        places_BT2, level_T = cells.places_BT2, cells.level_T
        sides_BT2 = (SIDE * 2.0**level_T)[:, None].expand_as(places_BT2)
        squares_BT4 = torch.cat([places_BT2, sides_BT2], -1)
        usable_BT = ((squares_BT4 > 0.01) & (squares_BT4 < 0.99)).all(-1) & ~cells.hidden_BT
        states_BTE = self.propose(cells.x_BTE * usable_BT[..., None])
        beyond = torch.inf if self.config.begin == "proposals" else 0.0  # as published: such boxes end in the corner
        from_BT4 = torch.logit(squares_BT4).masked_fill(~usable_BT[..., None], beyond)
        boxes_BT4 = self.locate[-1](states_BTE).float() + from_BT4
        return Proposals(self.classify[-1](states_BTE).float(), boxes_BT4, states_BTE, usable_BT)

    def queries(self, raw: DeformableOutputs) -> Queries:
        """Where the decoder begins: as many queries as the configuration says, or as there are cells."""
        c, images = self.config, raw.cells.x_BTE.shape[0]
        if raw.proposals is None:
            places_BQE = self.place_embedding.expand(images, -1, -1)
            contents_BQE = self.content_embedding.expand(images, -1, -1)
            return Queries(contents_BQE, self.point(places_BQE).float().sigmoid(), places_BQE)
        proposals, best_BQ = raw.proposals, self._best(raw.proposals)
        boxes_BQ4 = rows(proposals.boxes_BT4.detach(), best_BQ).sigmoid()
        if c.begin == "proposals":
            places_BQE, contents_BQE = self.ask(box_codes(boxes_BQ4, c.dim)).chunk(2, -1)
            return Queries(contents_BQE, boxes_BQ4, places_BQE)
        if c.begin == "both":
            contents_BQE = self.content_embedding[: best_BQ.shape[1]].expand(images, -1, -1)
        else:
            contents_BQE = rows(proposals.states_BTE.detach(), best_BQ)
        logits_BQR = rows(proposals.logits_BTR.detach(), best_BQ) if c.rivals else None
        return Queries(contents_BQE, boxes_BQ4, None, logits_BQR=logits_BQR)

    def _best(self, proposals: Proposals) -> Tensor:
        """Which cells propose best, (B, Q); the published form teaches no row but the first."""
        if self.config.proposes_anything:
            score_BT = proposals.logits_BTR[..., 0]
        else:
            score_BT = proposals.logits_BTR.amax(-1).masked_fill(~proposals.usable_BT, -torch.inf)
        return score_BT.topk(min(self.config.queries, score_BT.shape[1])).indices

    def say(self, cells: MultiScaleCells, queries: Queries) -> LayerPredictions:
        """What each layer of the decoder says."""
        c, apart_BQQ, scores_BQR = self.config, queries.apart_BQQ, queries.logits_BQR
        boxes_BQX = taught_BQX = queries.boxes_BQX
        mask = None if apart_BQQ is None else apart_BQQ[:, None]
        if self.rivalry is not None:
            assert scores_BQR is not None
            scores_BQR = self.rivalry.lowered(scores_BQR, cxcywh_to_xyxy(boxes_BQX), apart_BQQ)
        x_BQE, logits, boxes = queries.contents_BQE, [], []
        for n, layer in enumerate(self.decoder.layers):
            places_BQE = queries.places_BQE
            if places_BQE is None:
                places_BQE = self.place(box_codes(boxes_BQX, c.dim))
            if self.rivalry is not None:
                mask = self.rivalry(n, scores_BQR, cxcywh_to_xyxy(boxes_BQX), apart_BQQ)
            x_BQE = layer(x_BQE, places_BQE, boxes_BQX, cells, mask)
            head = n if c.refine else 0
            moved_BQ4 = self.locate[head](x_BQE).float()
            logits.append(self.classify[head](x_BQE).float())
            boxes.append(_move(taught_BQX, moved_BQ4))
            if self.rivalry is not None:
                logits[-1] = scores_BQR + logits[-1]
                scores_BQR = logits[-1].detach()
            if c.refine:
                taught_BQX = _move(boxes_BQX, moved_BQ4)
                boxes_BQX = taught_BQX.detach()
                taught_BQX = taught_BQX if c.forward_twice else boxes_BQX
        return LayerPredictions(torch.stack(logits), torch.stack(boxes))

    def loss(self, raw: DeformableOutputs, batch: Batch) -> dict[str, Tensor]:
        """`class`, `l1` and `giou` of each layer of the decoder, counted from 1; the same of the proposals (`..._0`)
        and of the shaken boxes (`noisy_...`).
        """
        truth = truth_of(batch, raw.extent_B4, self.rows_K)
        queries, shaken = self.queries(raw), None
        if self.config.noisy:
            shaken = shake(truth, self.label_embedding)
            queries = shaken.in_front_of(queries)
        said = self.say(raw.cells, queries)
        losses: dict[str, Tensor] = {}
        if raw.proposals is not None:
            losses |= {f"{name}_0": value for name, value in self._proposal_loss(raw, truth).items()}
        if shaken is not None:
            noisy, said = shaken.split(said)
            terms = denoising_loss(noisy, shaken, truth, self.config.aware)
            losses |= by_layer({f"noisy_{name}": values for name, values in terms.items()})
        terms, _ = focal_set_loss(said, truth, self.config.aware)
        return losses | by_layer(terms)

    def _proposal_loss(self, raw: DeformableOutputs, truth: Targets) -> dict[str, Tensor]:
        """Of what the encoder's cells propose; the published form only tells objects from background, by row 0."""
        proposals, cells = raw.proposals, raw.cells
        assert proposals is not None
        boxes_BT4 = proposals.boxes_BT4.sigmoid()
        if self.config.many:
            corners_BT4, truth_BN4 = cxcywh_to_xyxy(boxes_BT4), cxcywh_to_xyxy(truth.boxes_BN4)
            pairs_BNT = candidates(cells.places_BT2, cells.reach_BT2, truth_BN4, truth.valid_BN)
            pairs_BNT &= proposals.usable_BT[:, None]
            quality_BNT = one_to_many(proposals.logits_BTR, corners_BT4, truth_BN4, truth.rows_BN, pairs_BNT)
            return taught(proposals.logits_BTR, corners_BT4, truth_BN4, truth.rows_BN, quality_BNT)
        if self.config.begin == "proposals":
            truth = truth._replace(rows_BN=torch.zeros_like(truth.rows_BN))
        terms, _ = focal_set_loss(
            LayerPredictions(proposals.logits_BTR[None], boxes_BT4[None]), truth, self.config.aware
        )
        return {name: value[0] for name, value in terms.items()}

    @torch.no_grad()
    def decode(self, raw: DeformableOutputs) -> Predictions:
        """The queries and classes with the highest scores, as many as there are queries; nothing is suppressed."""
        said = self.say(raw.cells, self.queries(raw))
        scores_BQK = said.logits_LBQR[-1].sigmoid()[..., self.rows_K]
        classes = scores_BQK.shape[-1]
        scores_BD, index_BD = scores_BQK.flatten(1).topk(scores_BQK.shape[1])
        boxes_BQ4 = cxcywh_to_xyxy(said.boxes_LBQ4[-1]).clamp(0, 1) * raw.extent_B4[:, None]
        boxes_BD4 = boxes_BQ4.gather(1, (index_BD // classes)[..., None].expand(-1, -1, 4))
        return Predictions(boxes_BD4, scores_BD, index_BD % classes)

    def attention_layers(self) -> AttentionLayers:
        """Deformable attention of encoder and decoder."""
        encoder, decoder = ([layer.attention for layer in part.layers] for part in (self.encoder, self.decoder))
        return AttentionLayers(encoder, decoder)  # type: ignore[arg-type]

    def query_layers(self, outputs: DeformableOutputs) -> QueryLayers:
        """Scores and boxes of each decoder layer."""
        said = self.say(outputs.cells, self.queries(outputs))
        scores_LBQK = said.logits_LBQR.sigmoid()[..., self.rows_K]
        return QueryLayers(scores_LBQK, cxcywh_to_xyxy(said.boxes_LBQ4), list(outputs.cells.shapes))

    def with_classes(
        self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True
    ) -> "Deformable":
        """See `Detector`. Heads of other rows, as published weights have them, become ones of a row a class."""
        size = image_size or self.image_size
        config = replace(self.config, image_size=size, class_rows=0, class_ids=())
        detector = Deformable(config, names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        rows = shared_rows(self.names, self.rows_K.tolist(), names)
        by_row = {f"classify.{n}.{kind}": rows for n in range(len(self.classify)) for kind in ("weight", "bias")}
        if self.config.proposes_anything:
            last = len(self.classify) - 1
            by_row |= {f"classify.{last}.{kind}": [(0, 0)] for kind in ("weight", "bias")}  # any object, as published
        copy_weights(self, detector, {**by_row, "label_embedding": rows})
        return detector


def _move(boxes_BQX: Tensor, by_BQ4: Tensor) -> Tensor:
    """Boxes moved before the sigmoid; of mere points, the sizes are what they are moved by."""
    return (by_BQ4 + nn.functional.pad(inverse_sigmoid(boxes_BQX), (0, 4 - boxes_BQX.shape[-1]))).sigmoid()
