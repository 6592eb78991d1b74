"""The replications: four networks that write sentences with a transformer of DETR's kind.

Before the official code was published, people wrote their own Pix2Seq around DETR. Their weights are what this file is
for (`boxwright import-weights`). A ResNet with frozen batch norm, one projection, then blocks that normalise after each
addition ("post-norm"), with positions added to what asks and to the keys:

        image ── resnet ── projection ── encoder ── (what the decoder looks at)
                                                            v
        >   x1  y1  x2  y2  class   x1  y1  x2  y2  class   ...

                              pretrained      mmdet           stable            unofficial
    repository                Pretrained-     Pix2seq-        Stable-           Unofficial-
                              Pix2Seq         mmdetection     Pix2Seq           Pix2Seq
    written by                gaopengcuhk     Sharpiless      gaopengcuhk       gaopengcuhk
    an object                 x1 y1 x2 y2 c   x1 y1 x2 y2 c   cx cy w h c       cx cy w h c
    coordinates               pixels of 1333  pixels of 1333  of the image      of the image
    cells are numbered        1, 2, 3...      1, 2, 3...      0 to 2 pi         0 to 2 pi
    padding has numbers       yes             no              no                no
    padding is looked at      yes             yes             no                no
    the decoder knows places  no              no              from a table      from a table
    boxes are written in      any words       any words       coordinates       any words but for the first box
    classes are written in    any words       any words       any words         any words, the end too
    the end, and noise        never written   never written   never written     the end is written
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.config import require
from boxwright.models.backbones.frozen_resnet import FrozenResNet
from boxwright.models.layers.class_rows import choose_ids
from boxwright.models.layers.kv_cache import KeysValues, KVCache
from boxwright.models.layers.post_norm import (
    PostNormDecoderBlock,
    PostNormEncoderBlock,
    sine_2d,
)
from boxwright.models.sequence.generate import Generated, generate
from boxwright.models.sequence.likelihood import sentence_log_probs
from boxwright.models.sequence.targets import ordered
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.types import Batch, Detector, Predictions, image_mask, pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; padding is zero behind them
WORDS = 5  # an object: four coordinates and its class
LONG_SIDE = 1333  # pixels that the last coordinate means where coordinates are pixels
JITTER = 0.2  # most that a side of a repeated box moves, relative to its size
NOISE_WEIGHT = {
    "pretrained": 0.1,
    "mmdet": 0.1,
    "stable": 0.01,
    "unofficial": 1.0,
}  # in the loss, of the word for noise
END_WEIGHT = {"pretrained": 1.0, "mmdet": 1.0, "stable": 0.01, "unofficial": 1.0}  # and of the end
IGNORED = -100  # what cross-entropy passes over
Variant = Literal["pretrained", "mmdet", "stable", "unofficial"]


@dataclass(frozen=True)
class ReplicationConfig:
    """The shape of a replication.

    Attributes:
        variant: which of the four; see the top of this file.
        backbone: a ResNet of torchvision.
        image_size: the longest side of an image, in pixels.
        encoder_layers, decoder_layers, dim, hidden, heads, dropout: of the transformer.
        max_objects: objects in a sentence.
        coordinates: values that a coordinate can take; they are the first words.
        first_class: the word for class number 0.
        vocabulary: words that are scored.
        length: places in the decoder's table, if it has one.
        class_ids: the number of each class; COCO's numbers have holes. Empty: 0, 1, 2...
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

    @property
    def placed(self) -> bool:
        """Whether it is one of the two with a table of places, which have more in common than that."""
        return self.variant in ("stable", "unofficial")

    @property
    def start(self) -> int:
        """The word that a sentence is begun with; in the other two its number is that of the end, never read."""
        return self.vocabulary - 2

    @property
    def end(self) -> int:
        """The word behind the last object."""
        return self.vocabulary - (3 if self.placed else 2)

    @property
    def noise(self) -> int:
        """The word for an object that is none; `unofficial` does not know it."""
        return self.vocabulary - (5 if self.placed else 1)


class EncoderMemory(NamedTuple):
    """What the decoder looks at: encoded cells with their positions, the cells alone, and which may be looked at."""

    keys_BME: Tensor
    values_BME: Tensor
    seen_BM: Tensor


class ReplicationOutputs(NamedTuple):
    """What the decoder looks at, the sizes of the images, and height and width of the canvas."""

    memory: EncoderMemory
    sizes_B2: Tensor
    canvas: tuple[int, int]


class Replication(Detector):
    """The detector that writes as the replications do.

    Args:
        config: its shape.
        names: the classes.
        pretrained: means nothing here: all weights come from a checkpoint.

    Raises:
        UserError: for classes without a word.
    """

    class_words: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: ReplicationConfig, names: tuple[str, ...], pretrained: bool = False):
        super().__init__()
        c = config
        self.config, self.names, self.image_size = c, tuple(names), c.image_size
        numbers = c.class_ids or tuple(range(len(names)))
        fits = len(numbers) == len(names) and all(0 <= number < most_classes(c) for number in numbers)
        require(fits, f"this {c.variant} replication has words for {most_classes(c)} classes, not for {len(names)}.")
        self.register_buffer("class_words", torch.tensor(numbers) + c.first_class, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.backbone = FrozenResNet(c.backbone)
        self.projection = nn.Sequential(nn.Conv2d(self.backbone.channels[0], c.dim, 1))
        if not c.placed:
            self.projection.append(nn.GroupNorm(32, c.dim))
        self.encoder = nn.ModuleList(
            PostNormEncoderBlock(c.dim, c.hidden, c.heads, c.dropout) for _ in range(c.encoder_layers)
        )
        self.decoder = ReplicationDecoder(c)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The ResNet's."""
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> ReplicationOutputs:
        """What the decoder looks at. A batch is padded only as far as its largest image, as the originals do it."""
        cut_BCHW = images_BCHW
        if not torch.compiler.is_exporting():  # a graph gets images of one size, without padding
            height, width = sizes_B2.amax(0).tolist()
            cut_BCHW = images_BCHW[..., :height, :width]
        mask_BHW = image_mask(cut_BCHW, sizes_B2)
        normed_BCHW = (pixels(cut_BCHW) - self.mean) / self.std * mask_BHW[:, None]
        features_BCHW = self.features(normed_BCHW)
        seen_BHW = F.interpolate(mask_BHW[:, None].float(), size=features_BCHW.shape[-2:])[:, 0].bool()
        return ReplicationOutputs(
            self.encode(features_BCHW, seen_BHW), sizes_B2, (images_BCHW.shape[-2], images_BCHW.shape[-1])
        )

    def features(self, normed_BCHW: Tensor) -> Tensor:
        """From normalised pixels to the encoder's input, (B, dim, H / 32, W / 32)."""
        return self.projection(self.backbone(normed_BCHW.contiguous(memory_format=torch.channels_last))[0])

    def encode(self, features_BCHW: Tensor, seen_BHW: Tensor) -> EncoderMemory:
        """From the projected map, and where it is image, to what the decoder looks at."""
        c = self.config
        numbered_BHW = seen_BHW | (c.variant == "pretrained")
        seen_BM = seen_BHW.flatten(1) | (not c.placed)
        positions_BME = sine_2d(numbered_BHW, c.dim, c.placed).to(features_BCHW.dtype)
        added_BME = positions_BME.half().to(positions_BME) if c.variant == "stable" else positions_BME  # as published
        x_BME = features_BCHW.flatten(2).transpose(1, 2)
        for block in self.encoder:
            x_BME = block(x_BME, added_BME, seen_BM[:, None, None])
        return EncoderMemory(x_BME + positions_BME, x_BME, seen_BM)

    def loss(self, raw: ReplicationOutputs, batch: Batch) -> dict[str, Tensor]:
        """`tokens`: cross-entropy of the next word, after the last layer; of `unofficial`, after every layer."""
        boxes_BM4, labels_BM, real_BM = ordered(
            batch.boxes_BN4, batch.labels_BN, batch.valid_BN, self.config.max_objects
        )
        read_BM5 = self.words(boxes_BM4, labels_BM, raw)
        said_BL = self.targets(read_BM5, real_BM)
        if self.config.variant != "unofficial":
            noise_BM4, labels_BM = with_noise(boxes_BM4 / image_part(raw), labels_BM, real_BM, len(self.names))
            read_BM5 = self.words(noise_BM4 * image_part(raw), labels_BM, raw)
        begun_BL = F.pad(read_BM5.flatten(1), (1, 0), value=self.config.start)[:, : said_BL.shape[1]]
        states = self.decoder.states(begun_BL, raw.memory)
        judged = states if self.config.variant == "unofficial" else states[-1:]
        return {"tokens": self.cross_entropy(torch.stack([self.decoder.head(x_BLE) for x_BLE in judged]), said_BL)}

    def likelihood(self, raw: ReplicationOutputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the true sentence of each image, and how many words it has, each (B,).

        Objects stand in the order in which the data set has them; classes are read as they are, and what is behind the
        last object does not count.
        """
        most = self.config.max_objects
        said_BL = self.words(batch.boxes_BN4[:, :most], batch.labels_BN[:, :most], raw).flatten(1)
        real_BL = batch.valid_BN[:, :most].repeat_interleave(WORDS, 1)
        each_BL = sentence_log_probs(said_BL, self.decoder, raw.memory, self.config.start)
        return (each_BL * real_BL).sum(1), real_BL.sum(1)

    def words(self, boxes_BM4: Tensor, labels_BM: Tensor, raw: ReplicationOutputs) -> Tensor:
        """Objects as words, (B, M, 5), of boxes xyxy in [0, 1] of the canvas; coordinates are always rounded down."""
        c = self.config
        if c.placed:
            low_BM2, high_BM2 = (boxes_BM4 / image_part(raw)).split(2, -1)
            values_BM4 = torch.cat([(low_BM2 + high_BM2) / 2, high_BM2 - low_BM2], -1)
        else:
            values_BM4 = boxes_BM4 * torch.tensor(raw.canvas, device=boxes_BM4.device).flip(-1).repeat(2) / LONG_SIDE
        bins_BM4 = (values_BM4 * (c.coordinates - 1)).floor().long().clamp(0, c.coordinates - 1)
        return torch.cat([bins_BM4, self.class_words[labels_BM][..., None]], -1)

    def targets(self, words_BM5: Tensor, real_BM: Tensor) -> Tensor:
        """What should be said, (B, L): the real objects, which come first, then the end or that the rest is noise."""
        c = self.config
        rest_5 = torch.full((WORDS,), IGNORED, device=words_BM5.device)
        if c.variant in ("pretrained", "stable"):
            rest_5[0] = c.end
        if c.variant != "unofficial":
            rest_5[-1] = c.noise
        said_BL = F.pad(torch.where(real_BM[..., None], words_BM5, rest_5).flatten(1), (0, 1), value=c.end)
        if c.variant == "unofficial":
            said_BL[:, -1] = IGNORED
            said_BL.scatter_(1, WORDS * real_BM.sum(1, keepdim=True), c.end)
        return said_BL[:, :-1] if c.variant == "mmdet" else said_BL

    def cross_entropy(self, scores_NBLV: Tensor, targets_BL: Tensor) -> Tensor:
        """Of N layers' scores, with each variant's weights; where places are known, the mean is weighted, too."""
        c = self.config
        weights_V = scores_NBLV.new_ones(c.vocabulary)
        weights_V[c.noise], weights_V[c.end] = NOISE_WEIGHT[c.variant], END_WEIGHT[c.variant]
        targets = targets_BL.expand(len(scores_NBLV), -1, -1).flatten()
        each = F.cross_entropy(scores_NBLV.flatten(0, 2), targets, weights_V, reduction="none", ignore_index=IGNORED)
        counted = targets != IGNORED
        return each.sum() / (weights_V[targets[counted]].sum() if c.placed else counted.sum())

    def decode(self, raw: ReplicationOutputs) -> Predictions:
        """Write, and read boxes and classes off the sentence, best first."""
        return self.read(self.write(raw), raw).best_first()

    def write(self, raw: ReplicationOutputs) -> Generated:
        """The most probable words one after the other."""
        return generate(self.decoder, raw.memory, self.grammar(), self.config.max_objects)

    def grammar(self) -> TokenConstraints:
        """Which words each place of a sentence may hold, by the rule of the original."""
        c, device = self.config, self.class_words.device
        place_L = torch.arange(WORDS * c.max_objects, device=device)
        boxes = {"stable": place_L % WORDS < WORDS - 1, "unofficial": place_L < WORDS - 1}
        in_box_L = boxes.get(c.variant, torch.zeros_like(place_L, dtype=torch.bool))
        words = {"stable": c.vocabulary - 6, "unofficial": c.vocabulary}.get(c.variant, c.end)
        limit_L = torch.where(in_box_L, c.coordinates, words)
        return TokenConstraints(
            c.start, c.end, torch.arange(c.vocabulary, device=device) < limit_L[:, None], self.class_words
        )

    @torch.no_grad()
    def read(self, said: Generated, raw: ReplicationOutputs) -> Predictions:
        """Boxes and classes in the order in which they were written.

        A coordinate is the most probable one at its place, a class the most probable of the names at its place,
        whichever words were written there. The score is the probability of the class among all words; behind the end
        it is 0.
        """
        words_BN5 = said.tokens_BL.unflatten(1, (-1, WORDS))
        coordinates_BN4 = words_BN5[..., :-1]
        if bool((coordinates_BN4 >= self.config.coordinates).any()):
            begun_BL = F.pad(said.tokens_BL[:, :-1], (1, 0), value=self.config.start)
            scores_BN5V = self.decoder(begun_BL, raw.memory).unflatten(1, (-1, WORDS))
            coordinates_BN4 = scores_BN5V[:, :, :-1, : self.config.coordinates].argmax(-1)
        return self.found(coordinates_BN4, said, raw)

    def found(self, coordinates_BN4: Tensor, said: Generated, raw: ReplicationOutputs) -> Predictions:
        """Boxes of these coordinates, with the classes and scores of sentences."""
        best_BN, labels_BN = said.class_log_probs_BNK.max(-1)
        ended_BN = (said.tokens_BL == self.config.end).cumsum(1).unflatten(1, (-1, WORDS)).any(-1)
        return Predictions(self.boxes(coordinates_BN4, raw), best_BN.exp().masked_fill(ended_BN, 0), labels_BN)

    def boxes(self, coordinates_BN4: Tensor, raw: ReplicationOutputs) -> Tensor:
        """Boxes xyxy in [0, 1] of the canvas; a reversed box becomes an empty one."""
        said_BN4 = coordinates_BN4 / (self.config.coordinates - 1)
        if self.config.placed:
            centre_BN2, half_BN2 = said_BN4[..., :2], said_BN4[..., 2:] / 2
            return torch.cat([centre_BN2 - half_BN2, centre_BN2 + half_BN2], -1) * image_part(raw)
        said_BN4 = said_BN4 * LONG_SIDE / torch.tensor(raw.canvas, device=said_BN4.device).flip(-1).repeat(2)
        return torch.cat([said_BN4[..., :2], torch.maximum(said_BN4[..., :2], said_BN4[..., 2:])], -1)

    def with_classes(
        self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True
    ) -> "Replication":
        """See `Detector`. The vocabulary stays; new classes get ids that are free."""
        ids = choose_ids(self.names, self.config.class_ids, names, range(most_classes(self.config)))
        detector = Replication(replace(self.config, image_size=image_size or self.image_size, class_ids=ids), names)
        detector.load_state_dict(self.state_dict())
        return detector


def image_part(raw: ReplicationOutputs) -> Tensor:
    """Width, height, width, height of the images as fractions of the canvas, (B, 1, 4)."""
    canvas_2 = torch.tensor(raw.canvas, device=raw.sizes_B2.device)
    return (raw.sizes_B2 / canvas_2).flip(-1).repeat(1, 2)[:, None]


def with_noise(boxes_BM4: Tensor, labels_BM: Tensor, real_BM: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Boxes in [0, 1] of the image, the real ones first, and their classes, with noise in all other rows.

    By the law of Pretrained-Pix2Seq: half are real boxes, moved a little, with their class; half are anything.
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


def most_classes(c: ReplicationConfig) -> int:
    """How many class numbers have a word."""
    return (c.vocabulary - 6 if c.placed else c.end) - c.first_class


class ReplicationDecoder(nn.Module):
    """A decoder as the engine knows it (`boxwright.models.sequence.generate.StepDecoder`), of post-norm blocks.

    Its table of words has one row more than there are words where sentences begin with a vector of their own.
    """

    def __init__(self, c: ReplicationConfig):
        super().__init__()
        self.placed, self.dropout = c.placed, nn.Dropout(c.dropout)
        self.token_embedding = nn.Parameter(torch.randn(c.vocabulary - (not c.placed), c.dim))
        if c.placed:
            self.position_embedding = nn.Parameter(torch.randn(c.length, c.dim))
            self.input_norm = nn.LayerNorm(c.dim)
        self.layers = nn.ModuleList(
            PostNormDecoderBlock(c.dim, c.hidden, c.heads, c.dropout) for _ in range(c.decoder_layers)
        )
        self.norm = nn.LayerNorm(c.dim)
        hidden = [layer for _ in range(2 * c.placed) for layer in (nn.Linear(c.dim, c.dim), nn.ReLU())]
        self.head = nn.Sequential(*hidden, nn.Linear(c.dim, c.vocabulary))

    def forward(self, tokens_BL: Tensor, memory: EncoderMemory) -> Tensor:
        """Scores (B, L, V) of what follows each word of given sentences."""
        return self.head(self.states(tokens_BL, memory)[-1]).float()

    def states(self, tokens_BL: Tensor, memory: EncoderMemory) -> list[Tensor]:
        """What each layer makes of given sentences, normed, (B, L, dim) each; `head` scores any of them."""
        x_BLE, places_LE = self._embed(tokens_BL, torch.arange(tokens_BL.shape[1], device=tokens_BL.device))
        states = []
        for layer, image in zip(self.layers, self._image(memory), strict=True):
            x_BLE = layer(x_BLE, places_LE, image, memory.seen_BM[:, None, None])
            states.append(self.norm(x_BLE))
        return states

    def start(self, memory: EncoderMemory, length: int, each: int = 1) -> KVCache:
        """An empty cache for `each` sentences an image, of at most this length."""
        return KVCache.empty(self._image(memory), length, each, memory.seen_BM[:, None, None])

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache) -> Tensor:
        """Scores (B, V) of what follows the last of these words, which stand at these positions of their sentences."""
        x_BLE, places_LE = self._embed(tokens_BL, positions_L)
        place = cache.place(positions_L)
        for layer, sentence, image in zip(self.layers, cache.sentence, cache.image, strict=True):
            x_BLE = layer(x_BLE, places_LE, image, cache.seen_B11M, sentence, place)
        return self.head(self.norm(x_BLE[:, -1])).float()

    def _image(self, memory: EncoderMemory) -> list[KeysValues]:
        """The image's keys and values for each layer."""
        return [layer.cross_attention.keys_values(memory.keys_BME, memory.values_BME) for layer in self.layers]  # type: ignore[union-attr,operator]

    def _embed(self, tokens_BL: Tensor, positions_L: Tensor) -> tuple[Tensor, Tensor | float]:
        """The words, and the places that each layer adds again to what asks."""
        x_BLE = self.token_embedding[tokens_BL]
        if not self.placed:
            return x_BLE, 0.0
        places_LE = self.position_embedding[positions_L]
        return self.dropout(self.input_norm(x_BLE + places_LE)), places_LE
