"""The replications: four sequence detectors around a transformer of DETR's kind.

Before the official code was published, people wrote their own Pix2Seq around DETR. Their weights are what this file is
for (`boxwright import-weights`). A ResNet with frozen batch norm, one projection, then blocks that normalise after each
addition ("post-norm"), with position encodings added to queries and keys:

        image ── resnet ── projection ── encoder ── (what the decoder attends to)
                                                            v
        >   x1  y1  x2  y2  class   x1  y1  x2  y2  class   ...

                              pretrained      mmdet           stable            unofficial
    repository                Pretrained-     Pix2seq-        Stable-           Unofficial-
                              Pix2Seq         mmdetection     Pix2Seq           Pix2Seq
    author                    gaopengcuhk     Sharpiless      gaopengcuhk       gaopengcuhk
    an object                 x1 y1 x2 y2 c   x1 y1 x2 y2 c   cx cy w h c       cx cy w h c
    coordinates               pixels of 1333  pixels of 1333  of the image      of the image
    positions of cells        1, 2, 3...      1, 2, 3...      0 to 2 pi         0 to 2 pi
    padding has positions     yes             no              no                no
    padding is attended to    yes             yes             no                no
    positions of tokens       none            none            a table           a table
    tokens of a box           any             any             coordinates       any but in the first box
    tokens of a class         any             any             any               any, the end too
    the end, and noise        never           never           never             the end is generated
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import per_side
from boxwright.config import require
from boxwright.models.backbones.frozen_resnet import FrozenResNet
from boxwright.models.layers.class_rows import choose_ids
from boxwright.models.layers.kv_cache import KeysValues, KVCache
from boxwright.models.layers.post_norm import (
    PostNormDecoderBlock,
    PostNormEncoderBlock,
    sine_2d,
)
from boxwright.models.sequence.generation import Generated
from boxwright.models.sequence.likelihood import score_objects, sequence_log_probs
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.models.sequence.targets import order_objects
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.types import Batch, Predictions, image_mask, pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; padding is zero after normalisation
OBJECT_TOKENS = 5  # four coordinates and a class
LONG_SIDE = 1333  # pixels that the last coordinate means where coordinates are pixels
JITTER = 0.2  # the most that a side of a repeated box moves, relative to its size
NOISE_WEIGHT = {
    "pretrained": 0.1,
    "mmdet": 0.1,
    "stable": 0.01,
    "unofficial": 1.0,
}  # of the noise token in the loss
END_WEIGHT = {"pretrained": 1.0, "mmdet": 1.0, "stable": 0.01, "unofficial": 1.0}  # of the end token
IGNORED = -100  # a target that has no loss
Variant = Literal["pretrained", "mmdet", "stable", "unofficial"]


@dataclass(frozen=True)
class ReplicationConfig:
    """The shape of a replication.

    Attributes:
        variant: which of the four; see the top of this file.
        backbone: a ResNet of torchvision.
        image_size: the longest side of an image, in pixels.
        encoder_layers, decoder_layers, dim, hidden, heads, dropout: of the transformer.
        max_objects: objects in a sequence.
        coordinates: values of a coordinate; they are the first tokens.
        first_class: the token of class id 0.
        vocabulary: number of tokens.
        length: rows of the decoder's table of positions, if it has one.
        class_ids: the id of each class; COCO's have gaps. Empty: 0, 1, 2...
    """

    variant: Variant = "pretrained"
    backbone: str = "resnet50"
    image_size: int = 1333
    encoder_layers: int = 6
    decoder_layers: int = 6
    dim: int = 256
    hidden: int = 1024
    heads: int = 8
    dropout: float = 0.1
    max_objects: int = 100
    coordinates: int = 2001
    first_class: int = 2001
    vocabulary: int = 2094
    length: int = 0
    class_ids: tuple[int, ...] = ()
    sampling: ClassVar[Sampling] = Sampling()
    seed: ClassVar[None] = None

    @property
    def has_positions(self) -> bool:
        """Whether it is one of the two variants with a table of positions, which have more in common than that."""
        return self.variant in ("stable", "unofficial")

    @property
    def start(self) -> int:
        """The start token; without a table of positions its id is that of the end, which is no input otherwise."""
        return self.vocabulary - 2

    @property
    def end(self) -> int:
        """The token behind the last object."""
        return self.vocabulary - (3 if self.has_positions else 2)

    @property
    def noise(self) -> int:
        """The class of an object that is none; `unofficial` has no such token."""
        return self.vocabulary - (5 if self.has_positions else 1)


class EncoderMemory(NamedTuple):
    """What the decoder attends to.

    Attributes:
        keys_BME: encoded cells plus their position encodings.
        values_BME: the encoded cells.
        valid_BM: False where a cell is padding that must not be attended to.
    """

    keys_BME: Tensor
    values_BME: Tensor
    valid_BM: Tensor


class ReplicationOutputs(NamedTuple):
    """The encoded images, and the canvas they lie on.

    Attributes:
        memory: what the decoder attends to.
        sizes_B2: valid area of each image, as in `Batch`.
        canvas: height and width, in pixels.
    """

    memory: EncoderMemory
    sizes_B2: Tensor
    canvas: tuple[int, int]


@dataclass(frozen=True)
class ReplicationVocabulary:
    """The token ids for images on one canvas.

    Attributes:
        config: of the detector.
        class_tokens_K: id of each class.
        sizes_B2: valid area of each image, in canvas pixels.
        canvas: height and width, in pixels.
    """

    config: ReplicationConfig
    class_tokens_K: Tensor
    sizes_B2: Tensor
    canvas: tuple[int, int]

    @property
    def valid_ratios(self) -> Tensor:
        """(B, 1, 4): width, height, width, height of the valid area in [0, 1] of the canvas."""
        canvas_2 = torch.tensor(self.canvas, device=self.sizes_B2.device)
        return per_side(self.sizes_B2 / canvas_2)[:, None]

    def class_tokens(self, positions: Tensor) -> Tensor:
        """Ids of class positions, of any shape."""
        return self.class_tokens_K[positions]

    def coordinate_tokens(self, boxes_BM4: Tensor) -> Tensor:
        """Ids (B, M, 4) of boxes xyxy in [0, 1] of the canvas; rounded down, as published."""
        last = self.config.coordinates - 1
        if self.config.has_positions:
            low_BM2, high_BM2 = (boxes_BM4 / self.valid_ratios).split(2, -1)
            values_BM4 = torch.cat([(low_BM2 + high_BM2) / 2, high_BM2 - low_BM2], -1)
        else:
            values_BM4 = boxes_BM4 * self._canvas_4 / LONG_SIDE
        return (values_BM4 * last).floor().long().clamp(0, last)

    def object_tokens(self, boxes_BM4: Tensor, labels_BM: Tensor) -> Tensor:
        """Ids (B, M, 5) of boxes and class positions."""
        return torch.cat([self.coordinate_tokens(boxes_BM4), self.class_tokens(labels_BM)[..., None]], -1)

    def boxes(self, tokens_BM4: Tensor) -> Tensor:
        """Boxes xyxy in [0, 1] of the canvas; a reversed box becomes an empty one."""
        values_BM4 = tokens_BM4 / (self.config.coordinates - 1)
        if self.config.has_positions:
            centre_BM2, half_BM2 = values_BM4[..., :2], values_BM4[..., 2:] / 2
            return torch.cat([centre_BM2 - half_BM2, centre_BM2 + half_BM2], -1) * self.valid_ratios
        values_BM4 = values_BM4 * LONG_SIDE / self._canvas_4
        return torch.cat([values_BM4[..., :2], torch.maximum(values_BM4[..., :2], values_BM4[..., 2:])], -1)

    @property
    def _canvas_4(self) -> Tensor:
        return per_side(torch.tensor(self.canvas, device=self.sizes_B2.device))


class Replication(SequenceDetector):
    """A sequence detector with the network of one of the replications.

    Args:
        config: its shape.
        names: the classes.
        pretrained: no effect: all weights come from a checkpoint.

    Raises:
        UserError: for classes without a token.
    """

    square_canvas = False
    accepts_given = False

    class_tokens_K: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: ReplicationConfig, names: tuple[str, ...], pretrained: bool = False):
        super().__init__()
        c = config
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        numbers = c.class_ids or tuple(range(len(names)))
        fits = len(numbers) == len(names) and all(0 <= number < max_classes(c) for number in numbers)
        require(fits, f"this {c.variant} replication has words for {max_classes(c)} classes, not for {len(names)}.")
        self.register_buffer("class_tokens_K", torch.tensor(numbers) + c.first_class, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.backbone = FrozenResNet(c.backbone)
        self.projection = nn.Sequential(nn.Conv2d(self.backbone.channels[0], c.dim, 1))
        if not c.has_positions:
            self.projection.append(nn.GroupNorm(32, c.dim))
        self.encoder = nn.ModuleList(
            PostNormEncoderBlock(c.dim, c.hidden, c.heads, c.dropout) for _ in range(c.encoder_layers)
        )
        self.decoder = ReplicationDecoder(c)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the ResNet."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> ReplicationOutputs:
        """The encoded images. A batch is padded only as far as its largest image, as in the published code."""
        cut_BCHW = images_BCHW
        if not torch.compiler.is_exporting():  # a graph gets images of one size, without padding
            height, width = sizes_B2.amax(0).tolist()
            cut_BCHW = images_BCHW[..., :height, :width]
        mask_BHW = image_mask(cut_BCHW, sizes_B2)
        normed_BCHW = (pixels(cut_BCHW) - self.mean) / self.std * mask_BHW[:, None]
        features_BCHW = self.features(normed_BCHW)
        valid_BHW = F.interpolate(mask_BHW[:, None].float(), size=features_BCHW.shape[-2:])[:, 0].bool()
        canvas = (images_BCHW.shape[-2], images_BCHW.shape[-1])
        return ReplicationOutputs(self.encode(features_BCHW, valid_BHW), sizes_B2, canvas)

    def features(self, normed_BCHW: Tensor) -> Tensor:
        """From normalised pixels to the encoder's input, (B, dim, H / 32, W / 32)."""
        return self.projection(self.backbone(normed_BCHW.contiguous(memory_format=torch.channels_last))[0])

    def encode(self, features_BCHW: Tensor, valid_BHW: Tensor) -> EncoderMemory:
        """From the projected map and its valid mask to what the decoder attends to."""
        c = self.config
        counted_BHW = valid_BHW | (c.variant == "pretrained")
        valid_BM = valid_BHW.flatten(1) | (not c.has_positions)
        positions_BME = sine_2d(counted_BHW, c.dim, c.has_positions).to(features_BCHW.dtype)
        added_BME = positions_BME.half().to(positions_BME) if c.variant == "stable" else positions_BME  # as published
        x_BME = features_BCHW.flatten(2).transpose(1, 2)
        for block in self.encoder:
            x_BME = block(x_BME, added_BME, valid_BM[:, None, None])
        return EncoderMemory(x_BME + positions_BME, x_BME, valid_BM)

    def loss(self, outputs: ReplicationOutputs, batch: Batch) -> dict[str, Tensor]:
        """`tokens`: cross-entropy of the next token, after the last layer; of `unofficial`, after every layer."""
        c, vocabulary = self.config, self.vocabulary(outputs)
        boxes_BM4, labels_BM, real_BM = order_objects(batch.boxes_BN4, batch.labels_BN, batch.valid_BN, c.max_objects)
        tokens_BM5 = vocabulary.object_tokens(boxes_BM4, labels_BM)
        targets_BL = self.target_tokens(tokens_BM5, real_BM)
        if c.variant != "unofficial":
            ratios_B14 = vocabulary.valid_ratios
            noised_BM4, labels_BM = with_noise(boxes_BM4 / ratios_B14, labels_BM, real_BM, len(self.names))
            tokens_BM5 = vocabulary.object_tokens(noised_BM4 * ratios_B14, labels_BM)
        inputs_BL = F.pad(tokens_BM5.flatten(1), (1, 0), value=c.start)[:, : targets_BL.shape[1]]
        states = self.decoder.states(inputs_BL, outputs.memory)
        states = states if c.variant == "unofficial" else states[-1:]
        logits_NBLV = torch.stack([self.decoder.head(x_BLE) for x_BLE in states])
        return {"tokens": self.cross_entropy(logits_NBLV, targets_BL)}

    def likelihood(self, outputs: ReplicationOutputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Detector`. Objects stand in the data set's order; the decoder reads their true classes, and the end is
        not counted.
        """
        most = self.config.max_objects
        tokens_BM5 = self.vocabulary(outputs).object_tokens(batch.boxes_BN4[:, :most], batch.labels_BN[:, :most])
        counted_BL = batch.valid_BN[:, :most].repeat_interleave(OBJECT_TOKENS, 1)
        each_BL = sequence_log_probs(tokens_BM5.flatten(1), self.decoder, outputs.memory, self.config.start)
        return (each_BL * counted_BL).sum(1), counted_BL.sum(1)

    def target_tokens(self, tokens_BM5: Tensor, real_BM: Tensor) -> Tensor:
        """Targets (B, L): the tokens of real objects, which come first, then the end or that the rest is noise."""
        c = self.config
        rest_5 = torch.full((OBJECT_TOKENS,), IGNORED, device=tokens_BM5.device)
        if c.variant in ("pretrained", "stable"):
            rest_5[0] = c.end
        if c.variant != "unofficial":
            rest_5[-1] = c.noise
        targets_BL = F.pad(torch.where(real_BM[..., None], tokens_BM5, rest_5).flatten(1), (0, 1), value=c.end)
        if c.variant == "unofficial":
            targets_BL[:, -1] = IGNORED
            targets_BL.scatter_(1, OBJECT_TOKENS * real_BM.sum(1, keepdim=True), c.end)
        return targets_BL[:, :-1] if c.variant == "mmdet" else targets_BL

    def cross_entropy(self, logits_NBLV: Tensor, targets_BL: Tensor) -> Tensor:
        """Of N layers' logits, with each variant's token weights; with positions, the mean is weighted by them, too."""
        c = self.config
        weights_V = logits_NBLV.new_ones(c.vocabulary)
        weights_V[c.noise], weights_V[c.end] = NOISE_WEIGHT[c.variant], END_WEIGHT[c.variant]
        targets = targets_BL.expand(len(logits_NBLV), -1, -1).flatten()
        each = F.cross_entropy(logits_NBLV.flatten(0, 2), targets, weights_V, reduction="none", ignore_index=IGNORED)
        counted = targets != IGNORED
        return each.sum() / (weights_V[targets[counted]].sum() if c.has_positions else counted.sum())

    @property
    def slots(self) -> tuple[str, ...]:
        """See `SequenceDetector`."""
        return ("cx", "cy", "w", "h", "class") if self.config.has_positions else ("x1", "y1", "x2", "y2", "class")

    def vocabulary(
        self, outputs: ReplicationOutputs | None = None, sizes_B2: Tensor | None = None
    ) -> ReplicationVocabulary:
        """See `SequenceDetector`. Where coordinates are fractions of the image, ids depend on the valid area."""
        if outputs is not None:
            return ReplicationVocabulary(self.config, self.class_tokens_K, outputs.sizes_B2, outputs.canvas)
        side = self.image_size
        whole_12 = torch.full((1, 2), side, device=self.class_tokens_K.device)
        sizes_B2 = whole_12 if sizes_B2 is None else sizes_B2
        return ReplicationVocabulary(self.config, self.class_tokens_K, sizes_B2, (side, side))

    def token_constraints(
        self, outputs: ReplicationOutputs | None = None, classes: Sequence[int] | None = None
    ) -> TokenConstraints:
        """See `SequenceDetector`; by the rule of the published code, for whichever classes."""
        c, device = self.config, self.class_tokens_K.device
        position_P = torch.arange(OBJECT_TOKENS * c.max_objects, device=device)
        boxes = {
            "stable": position_P % OBJECT_TOKENS < OBJECT_TOKENS - 1,
            "unofficial": position_P < OBJECT_TOKENS - 1,
        }
        in_box_P = boxes.get(c.variant, torch.zeros_like(position_P, dtype=torch.bool))
        others = {"stable": c.vocabulary - 6, "unofficial": c.vocabulary}.get(c.variant, c.end)
        limit_P = torch.where(in_box_P, c.coordinates, others)
        allowed_PV = torch.arange(c.vocabulary, device=device) < limit_P[:, None]
        coordinates = range(c.coordinates)
        return TokenConstraints(c.start, c.end, allowed_PV, self.class_tokens_K, coordinates=coordinates)

    def decoder_memory(self, outputs: ReplicationOutputs) -> EncoderMemory:
        """See `SequenceDetector`."""
        return outputs.memory

    @torch.no_grad()
    def to_predictions(
        self,
        generated: Generated,
        outputs: ReplicationOutputs | None = None,
        classes: Sequence[int] | Tensor | None = None,
        sizes_B2: Tensor | None = None,
    ) -> Predictions:
        """See `SequenceDetector`.

        A coordinate is the most probable one at its slot, a class the most probable of the names at its slot,
        whichever tokens were generated. The score is the probability of the class among all tokens, and 0 behind the
        end.
        """
        assert generated.coordinates_BNC is not None
        scores_BN, labels_BN = score_objects(generated, "full", OBJECT_TOKENS, classes)
        ended_BN = (generated.tokens_BL == self.config.end).cumsum(1).unflatten(1, (-1, OBJECT_TOKENS)).any(-1)
        boxes_BN4 = self.vocabulary(outputs, sizes_B2).boxes(generated.coordinates_BNC)
        return Predictions(boxes_BN4, scores_BN.masked_fill(ended_BN, 0), labels_BN)

    def with_classes(
        self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True
    ) -> "Replication":
        """See `Detector`. The vocabulary stays; new classes get ids that are free."""
        ids = choose_ids(self.names, self.config.class_ids, names, range(max_classes(self.config)))
        detector = Replication(replace(self.config, image_size=image_size or self.image_size, class_ids=ids), names)
        detector.load_state_dict(self.state_dict())
        return detector


def with_noise(boxes_BM4: Tensor, labels_BM: Tensor, real_BM: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Boxes in [0, 1] of the image, the real ones first, and their classes, with noise in all other rows.

    As in Pretrained-Pix2Seq: half are jittered real boxes with their class, half are random.
    """
    corner_BM2 = torch.rand_like(boxes_BM4[..., :2])
    random_BM4 = torch.cat([corner_BM2, (corner_BM2 + torch.rand_like(corner_BM2)).clamp(max=1)], -1)
    count_B1 = real_BM.sum(1, keepdim=True)
    pick_BM = (torch.rand(real_BM.shape, device=real_BM.device) * count_B1).long()
    picked_BM4 = boxes_BM4.gather(1, pick_BM[..., None].expand(-1, -1, 4))
    sides_BM4 = (picked_BM4[..., 2:] - picked_BM4[..., :2]).repeat(1, 1, 2)
    moved_BM4 = (picked_BM4 + (2 * torch.rand_like(picked_BM4) - 1) * JITTER * sides_BM4).clamp(0, 1)
    repeats_BM = (torch.rand(real_BM.shape, device=real_BM.device) < 0.5) & (count_B1 > 0)
    noise_BM4 = torch.where(repeats_BM[..., None], moved_BM4, random_BM4)
    noise_labels_BM = torch.where(repeats_BM, labels_BM.gather(1, pick_BM), torch.randint_like(labels_BM, classes))
    return torch.where(real_BM[..., None], boxes_BM4, noise_BM4), torch.where(real_BM, labels_BM, noise_labels_BM)


def max_classes(c: ReplicationConfig) -> int:
    """How many class ids have a token."""
    return (c.vocabulary - 6 if c.has_positions else c.end) - c.first_class


class ReplicationDecoder(nn.Module):
    """A `boxwright.models.sequence.generation.StepDecoder` of post-norm blocks.

    Where the start token has an embedding of its own, the table has one row more than there are tokens.
    """

    def __init__(self, c: ReplicationConfig):
        super().__init__()
        self.has_positions, self.dropout = c.has_positions, nn.Dropout(c.dropout)
        self.token_embedding = nn.Parameter(torch.randn(c.vocabulary - (not c.has_positions), c.dim))
        if c.has_positions:
            self.position_embedding = nn.Parameter(torch.randn(c.length, c.dim))
            self.input_norm = nn.LayerNorm(c.dim)
        self.layers = nn.ModuleList(
            PostNormDecoderBlock(c.dim, c.hidden, c.heads, c.dropout) for _ in range(c.decoder_layers)
        )
        self.norm = nn.LayerNorm(c.dim)
        hidden = [layer for _ in range(2 * c.has_positions) for layer in (nn.Linear(c.dim, c.dim), nn.ReLU())]
        self.head = nn.Sequential(*hidden, nn.Linear(c.dim, c.vocabulary))

    def forward(self, tokens_BL: Tensor, memory: EncoderMemory) -> Tensor:
        """Logits (B, L, V) of what follows each token of whole sequences."""
        return self.head(self.states(tokens_BL, memory)[-1]).float()

    def states(self, tokens_BL: Tensor, memory: EncoderMemory) -> list[Tensor]:
        """The normed states (B, L, dim) behind each layer; `head` turns any of them into logits."""
        x_BLE, positions_LE = self._embed(tokens_BL, torch.arange(tokens_BL.shape[1], device=tokens_BL.device))
        states = []
        for layer, image in zip(self.layers, self._image(memory), strict=True):
            x_BLE = layer(x_BLE, positions_LE, image, memory.valid_BM[:, None, None])
            states.append(self.norm(x_BLE))
        return states

    def start(self, memory: EncoderMemory, length: int, per_image: int = 1) -> KVCache:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        return KVCache.empty(self._image(memory), length, per_image, memory.valid_BM[:, None, None])

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache, slot: int = 0) -> Tensor:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        x_BLE, positions_LE = self._embed(tokens_BL, positions_L)
        step = cache.step_positions(positions_L)
        for layer, sequence, image in zip(self.layers, cache.sequence, cache.image, strict=True):
            x_BLE = layer(x_BLE, positions_LE, image, cache.valid_B11M, sequence, step)
        return self.head(self.norm(x_BLE[:, -1])).float()

    def _image(self, memory: EncoderMemory) -> list[KeysValues]:
        """Keys and values of the images for each layer."""
        return [layer.cross_attention.keys_values(memory.keys_BME, memory.values_BME) for layer in self.layers]  # type: ignore[union-attr,operator]

    def _embed(self, tokens_BL: Tensor, positions_L: Tensor) -> tuple[Tensor, Tensor | float]:
        """Embeddings of the tokens, and of their positions, which each layer adds again to queries and keys."""
        x_BLE = self.token_embedding[tokens_BL]
        if not self.has_positions:
            return x_BLE, 0.0
        positions_LE = self.position_embedding[positions_L]
        return self.dropout(self.input_norm(x_BLE + positions_LE)), positions_LE
