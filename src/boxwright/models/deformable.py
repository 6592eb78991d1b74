"""`deformable`: queries that sample a few points on several maps, start from proposals, and refine their boxes.

        image ── backbone ──┬─ stride  8 ─┐
                            ├─ stride 16 ─┼─ encoder: each cell samples a few points on all maps ──┐
                            └─ stride 32 ─┘        │ every cell proposes a class and a box         │
                                                   v                                               v
        queries start from the best proposals ────────── decoder: self-attention of queries, then points
        (in training, also from noised true boxes)       around their boxes; each layer refines the boxes

"Deformable DETR" (Zhu et al. 2021) in its three published forms, and with what was found since, each a switch of the
configuration and a block of its own:

- `begin = "both"`: boxes from the proposals, contents learned (mixed query selection; DINO, Zhang et al. 2023); or
  `"cells"`: contents, too, from the cells that propose (RT-DETR, Zhao et al. 2024);
- `noisy`: noised ground-truth boxes as further queries in training (contrastive denoising; DINO): `denoising.py`;
- `forward_twice`: the loss of a layer also reaches the layer before it through the boxes (look forward twice; DINO);
- `aware`: the target of a class score is the IoU of the box (quality focal loss, Li et al. 2020);
- `many`: in the encoder several cells are assigned to each object (task-aligned assignment, Feng et al. 2021);
- `fused`: coarse maps are added to finer ones before the encoder (a feature pyramid, Lin et al. 2017);
- `rivals` (ours): scores are refined from layer to layer, as boxes are, starting from those of the proposals, and
  queries know which better query overlaps them (as in `dense`): `duplicate_relation.py`.

The published forms are equal to Hugging Face's DeformableDetrForObjectDetection (`benchmarks/parity/parity.py`).
"""

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
    box_encoding,
)
from boxwright.models.layers.duplicate_relation import DuplicateBias
from boxwright.models.layers.heads import box_head, head_rows, init_glorot
from boxwright.models.layers.padding import cut, valid_cells, valid_ratios
from boxwright.models.layers.proposals import (
    QueryProposals,
    best_cells,
    init_heads,
    propose,
    refine_queries,
    start_from,
)
from boxwright.models.losses.denoising import DenoisingQueries, make_denoising_queries
from boxwright.models.losses.proposals import decode_queries, one_to_many_loss, one_to_one_loss, query_losses
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, targets_of
from boxwright.models.losses.task_aligned import gather_rows
from boxwright.types import AttentionLayers, Batch, Detector, FeatureMaps, Predictions, QueryLayers


@dataclass(frozen=True)
class DeformableConfig:
    """The architecture of a `deformable`.

    Attributes:
        backbone: a timm model with feature maps at the strides.
        image_size: side of the canvas, in pixels.
        strides: canvas pixels per cell of the backbone's maps.
        extra_levels: further maps behind them, each half as large as the one before.
        dilated: the last stage keeps stride 16 by dilation.
        dim, hidden, heads: width, MLP width and attention heads of the transformer.
        decoder_hidden, decoder_heads: the same of the decoder, where they differ; else 0.
        encoder_layers, decoder_layers: numbers of layers.
        encoder_points, decoder_points: points that a head samples on each map.
        queries: the most objects that can be predicted per image.
        dropout: rate in training.
        begin: where queries start: from a learned `table`, the encoder's `proposals`, `both`, or its `cells`.
        refine: each layer refines the boxes of the one before.
        forward_twice, noisy, aware, many, fused, rivals: found since publication; see the top of this file.
        class_rows: classes of the heads; 0 for as many as there are names.
        class_ids: the heads' row of each class; empty for 0, 1, 2...
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
        """Whether proposals are class-agnostic, scored by the first row alone, as published; else each has a class."""
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


class DeformableOutputs(NamedTuple):
    """Outputs of the network for a batch.

    Attributes:
        cells: the encoded cells of all maps.
        proposals: of the encoder, if queries start from them.
        layers: predictions of each decoder layer for the matched queries.
        denoising: the denoising queries and the predictions for them; only where targets were given.
        valid_ratios_B4: the valid area of the canvas, (width, height, width, height) in [0, 1].
    """

    cells: MultiScaleCells
    proposals: QueryProposals | None
    layers: LayerPredictions
    denoising: tuple[DenoisingQueries, LayerPredictions] | None
    valid_ratios_B4: Tensor


class Deformable(Detector):
    """The detector with deformable attention (Zhu et al. 2021).

    Args:
        config: its architecture.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.

    Raises:
        UserError: for classes without a row, and for `noisy` or `rivals` where `begin` is not `both` or `cells`.
    """

    square_canvas = False
    explained_as = "queries"
    fp32_modules = ("classify", "locate", "rivalry", "offset", "weight", "place", "propose")

    rows_K: Tensor

    def __init__(self, config: DeformableConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        c = config
        modern = c.begin in ("both", "cells")
        require(
            modern or not (c.noisy or c.rivals),
            f"`noisy` and `rivals` need begin='both' or 'cells', not {c.begin!r}.",
        )
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        self.register_buffer("rows_K", head_rows(c.class_ids, c.class_rows, self.names), persistent=False)
        classes, levels = c.class_rows or len(names), len(c.strides) + c.extra_levels
        self.backbone = Backbone(c.backbone, c.strides, pretrained, c.dilated)
        self.maps = Maps(self.backbone.channels, c.extra_levels, c.dim, c.fused)
        self.encoder = DeformableEncoder(
            c.dim, c.hidden, c.heads, levels, c.encoder_points, c.encoder_layers, c.dropout
        )
        hidden, heads = c.decoder_hidden or c.hidden, c.decoder_heads or c.heads
        self.decoder = DeformableDecoder(c.dim, hidden, heads, levels, c.decoder_points, c.decoder_layers, c.dropout)
        count = (c.decoder_layers if c.refine else 1) + (c.begin != "table")  # heads; the last one for the proposals
        self.classify = nn.ModuleList(nn.Linear(c.dim, classes) for _ in range(count))
        self.locate = nn.ModuleList(box_head(c.dim) for _ in range(count))
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
        self.rivalry = DuplicateBias(heads, c.decoder_layers) if c.rivals else None
        self._init_weights()

    def _init_weights(self) -> None:
        """See `init_heads`; where queries start from points, their boxes are small."""
        for name in ("point", "propose", "ask", "place"):
            init_glorot(getattr(self, name, nn.Identity()))
        init_heads(self.classify, self.locate, self.config.rivals)
        if self.config.begin == "table":
            nn.init.constant_(self.locate[0][-1].bias[2:], -2.0)  # type: ignore[index,arg-type]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the timm network."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> DeformableOutputs:
        """Predictions of all layers. A batch is padded only as far as its largest image, as in the published code.

        With targets, noised ground-truth boxes go through the decoder as further queries (`denoising`), which the
        matched queries don't attend to.
        """
        filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.backbone.mean)
        maps = self.maps(self.backbone(filled_BCHW))
        cells = self.encoder(maps, [valid_cells(mask_BHW, x_BEHW) for x_BEHW in maps])
        proposals = None if self.config.begin == "table" else self._propose(cells)
        ratios_B4 = valid_ratios(images_BCHW, sizes_B2)
        queries = self.start_queries(cells, proposals)
        if targets is None or not self.config.noisy:
            return DeformableOutputs(cells, proposals, self.predict_layers(cells, queries), None, ratios_B4)
        noised = make_denoising_queries(targets_of(targets, ratios_B4, self.rows_K), self.label_embedding)
        denoised, layers = noised.split(self.predict_layers(cells, noised.prepended_to(queries)))
        return DeformableOutputs(cells, proposals, layers, (noised, denoised), ratios_B4)

    def _propose(self, cells: MultiScaleCells) -> QueryProposals:
        """In the published form, the boxes of cells that are not used end in the corner."""
        unusable = torch.inf if self.config.begin == "proposals" else 0.0
        return propose(cells, self.propose, self.classify[-1], self.locate[-1], unusable)

    def start_queries(self, cells: MultiScaleCells, proposals: QueryProposals | None) -> Queries:
        """Input of the decoder: as many queries as the configuration says, or as there are cells."""
        c, images = self.config, cells.x_BTE.shape[0]
        if proposals is None:
            positions_BQE = self.place_embedding.expand(images, -1, -1)
            contents_BQE = self.content_embedding.expand(images, -1, -1)
            return Queries(contents_BQE, self.point(positions_BQE).float().sigmoid(), positions_BQE)
        if c.begin != "proposals":
            contents_QE = self.content_embedding if c.begin == "both" else None
            return start_from(proposals, c.queries, contents_QE, c.rivals)
        boxes_BQ4 = gather_rows(proposals.boxes_BT4.detach(), self._best(proposals)).sigmoid()
        positions_BQE, contents_BQE = self.ask(box_encoding(boxes_BQ4, c.dim)).chunk(2, -1)
        return Queries(contents_BQE, boxes_BQ4, positions_BQE)

    def _best(self, proposals: QueryProposals) -> Tensor:
        """The cells with the best proposals, (B, Q); in the published form only the first row has a loss."""
        if not self.config.proposes_anything:
            return best_cells(proposals, self.config.queries)
        score_BT = proposals.logits_BTR[..., 0]
        return score_BT.topk(min(self.config.queries, score_BT.shape[1])).indices

    def predict_layers(self, cells: MultiScaleCells, queries: Queries) -> LayerPredictions:
        """Predictions of each decoder layer."""
        c, count = self.config, self.config.decoder_layers
        layers = [
            lambda x, positions, boxes, mask, layer=layer: layer(x, positions, boxes, cells, mask)
            for layer in self.decoder.layers
        ]
        classify, locate = ([part[n if c.refine else 0] for n in range(count)] for part in (self.classify, self.locate))
        logits_LBQR, boxes_LBQ4 = refine_queries(
            queries, layers, self._place, classify, locate, self.rivalry, c.refine, c.forward_twice
        )
        return LayerPredictions(logits_LBQR, boxes_LBQ4)

    def _place(self, boxes_BQ4: Tensor) -> Tensor:
        """Position encodings of boxes, (B, Q, E)."""
        return self.place(box_encoding(boxes_BQ4, self.config.dim))

    def loss(self, outputs: DeformableOutputs, batch: Batch) -> dict[str, Tensor]:
        """`class`, `l1` and `giou` of each decoder layer, counted from 1; the same of the proposals (`..._0`) and of
        the denoising queries (`noisy_...`).
        """
        targets, c = targets_of(batch, outputs.valid_ratios_B4, self.rows_K), self.config
        assert outputs.denoising or not c.noisy, "the loss needs outputs of a forward pass with targets"
        losses: dict[str, Tensor] = {}
        if outputs.proposals is not None:
            losses = self._proposal_loss(outputs.cells, outputs.proposals, targets)
        return losses | query_losses(outputs.layers, outputs.denoising, targets, c.aware)

    def _proposal_loss(self, cells: MultiScaleCells, proposals: QueryProposals, targets: Targets) -> dict[str, Tensor]:
        """Losses of the proposals; in the published form they only distinguish objects from background, by row 0."""
        if self.config.many:
            return one_to_many_loss(cells, proposals, targets)
        if self.config.begin == "proposals":
            targets = targets._replace(rows_BN=torch.zeros_like(targets.rows_BN))
        return one_to_one_loss(proposals, targets, self.config.aware)

    def decode(self, outputs: DeformableOutputs) -> Predictions:
        """The queries and classes with the highest scores, as many as there are queries; no suppression."""
        return decode_queries(outputs.layers, self.rows_K, outputs.valid_ratios_B4)

    def feature_maps(self) -> FeatureMaps:
        """The encoder's input: the backbone's maps at one width, and the further ones."""
        strides, extra = list(self.config.strides), self.config.extra_levels
        return FeatureMaps(self.maps, strides + [strides[-1] << n for n in range(1, extra + 1)])

    def attention_layers(self) -> AttentionLayers:
        """Deformable attention of encoder and decoder."""
        encoder, decoder = ([layer.attention for layer in part.layers] for part in (self.encoder, self.decoder))
        return AttentionLayers(encoder, decoder)  # type: ignore[arg-type]

    def query_layers(self, outputs: DeformableOutputs) -> QueryLayers:
        """Scores and boxes of each decoder layer."""
        layers = outputs.layers
        scores_LBQK = layers.logits_LBQR.sigmoid()[..., self.rows_K]
        return QueryLayers(scores_LBQK, cxcywh_to_xyxy(layers.boxes_LBQ4), list(outputs.cells.shapes))

    def with_classes(
        self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True
    ) -> "Deformable":
        """See `Detector`. New heads have one row per class, where published ones have rows that stand for none."""
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
