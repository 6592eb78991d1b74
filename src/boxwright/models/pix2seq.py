"""`pix2seq`: detection as language modelling, the objects of an image as one sequence of tokens.

        image ── backbone ── encoder ── bridge ──┐ (what the decoder attends to)
                                                 v
        >   y1  x1  y2  x2 class   y1  x1  y2  x2 class   y1  x1  y2  x2 noise   ...
            └─ first object ───┘   └─ second object ──┘   └─ nothing there ──┘

Every token comes from one vocabulary: 1000 coordinates, the classes, and the noise token. Objects come in any order.
After the last object the decoder goes on with boxes that are none: their class is noise, and their scores are low
("Pix2seq: a language modeling framework for object detection", Chen et al. 2022). Architecture, sequences, loss and
scores are those of google-research/pix2seq, its ResNet replaced by any timm backbone.

That form needs hundreds of epochs of COCO. The sizes nano, small and medium learn from a few hundred images: they copy
objects from the proposals of a dense head, one decoder step each, in the same tokens
(`boxwright.models.sequence.proposal_decoder`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.config import require
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.backbones.pix2seq_stems import PATCHES, is_stem, make_stem
from boxwright.models.layers.attention import EncoderBlock, Mlp, dense, norm
from boxwright.models.layers.class_rows import choose_ids
from boxwright.models.layers.position_encoding import resize_2d, sincos_2d
from boxwright.models.sequence.copying_detector import CopyingConfig, CopyingDetector
from boxwright.models.sequence.decoder import SequenceDecoder, lengthened, table
from boxwright.models.sequence.generation import Generated
from boxwright.models.sequence.likelihood import Scores, log_probs, score_objects
from boxwright.models.sequence.proposals import ProposalOutputs
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.targets import encode_targets, training_sequences
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import Vocabulary
from boxwright.types import Batch, Predictions, image_mask, pixels

PADDING = 0.3  # colour of the canvas outside the valid area, in [0, 1]; it is attended to
OBJECT_TOKENS = 5  # four coordinates and a class
Positions = Literal["learned", "sincos"]


@dataclass(frozen=True)
class Pix2SeqConfig(CopyingConfig):
    """The shape of a `pix2seq` detector.

    Attributes:
        backbone: a timm model with a feature map at the stride; `patches`, one convolution, as a plain ViT has it; or
            `pix2seq_resnet50` (101, 152, 200; `x0.5` behind it halves its width), the published code's, at 16 or 32.
        image_size: side of the canvas, in pixels.
        stride: canvas pixels per cell of the encoder.
        grid: rows and columns of the table of learned cell positions; by default those of `image_size`.
        encoder_positions: kind of the cells' positions, in the encoder and again in the bridge.
        cls_token: put a learned cell in front of all others.
        bridge: from encoder to decoder, a projection and a norm, then nothing (`linear`), positions (`linear_p`), or
            positions and an MLP (`mlp`).
        encoder_layers, encoder_dim, encoder_hidden, encoder_heads: blocks, width, MLP width and heads of the encoder.
        decoder_layers, decoder_dim, decoder_hidden, decoder_heads: the same of the decoder.
        decoder_positions: kind of the tokens' positions.
        shared_embedding: one table of embeddings for input and output tokens.
        output_bias: each token's logit has a bias.
        max_objects: objects in a sequence, noise included; the most that are detected.
        length: tokens in a sequence, at least 5 x max_objects; the rest is padding.
        bins: values of a coordinate.
        first_coordinate: id of the first coordinate.
        vocabulary: number of ids.
        class_ids: the label of each class, from 1; empty for 1, 2, 3... Published weights have COCO's, with gaps.
        dropout: rate inside the MLPs and before the encoder.
        drop_path: rate of stochastic depth, the same in every layer.
        sentences: sequences of each image in a training step, with different order and noise.
        noise: sequences are filled up with noise objects, and never end; else they end after the last object.
        grammar: coordinate slots hold only coordinates, class slots only classes; else any token may stand anywhere.
        top_p: more than 0 draws tokens from the nucleus (the published code has 0.4). With 0, and no `top_k`, the most
            probable tokens are generated.
        nucleus, top_k, temperature, repeats, beams: see `boxwright.models.sequence.sampling.Sampling`.
        end_bias: added to the logit of the end token; -inf never ends. By default -inf where sequences are filled up
            with noise, else 0.
        scores: see `boxwright.models.sequence.likelihood.score_objects`.
        seed: of the draws: image i of a batch draws with seed + i. By default all images draw with seed 0.
        proposals: cells of a dense head from which objects are copied, one decoder step each (ours); 0 for the
            published form. With proposals, sequences are always filled up with noise, and what describes stride and
            grid, encoder, bridge, positions, embeddings of tokens and `sentences` is not used.
        channels, depth: see `CopyingConfig`.
    """

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 320
    stride: int = 16
    grid: tuple[int, int] | None = None
    encoder_positions: Positions = "sincos"
    cls_token: bool = False
    bridge: Literal["linear", "linear_p", "mlp"] = "mlp"
    encoder_layers: int = 3
    encoder_dim: int = 256
    encoder_hidden: int = 1024
    encoder_heads: int = 8
    decoder_layers: int = 3
    decoder_dim: int = 256
    decoder_hidden: int = 1024
    decoder_heads: int = 8
    decoder_positions: Positions = "learned"
    shared_embedding: bool = True
    output_bias: bool = True
    max_objects: int = 100
    length: int = 512
    bins: int = 1000
    first_coordinate: int = 1000
    vocabulary: int = 3000
    class_ids: tuple[int, ...] = ()
    dropout: float = 0.1
    drop_path: float = 0.1
    sentences: int = 1
    noise: bool = True
    grammar: bool = True
    top_p: float = 0.0
    nucleus: Literal["official", "standard"] = "official"
    top_k: int = 0
    temperature: float = 1.0
    repeats: bool = True
    beams: int = 1
    end_bias: float | None = None
    scores: Scores = "full"
    seed: int | None = None

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        usual = -math.inf if self.noise else 0.0
        end_bias = usual if self.end_bias is None else self.end_bias
        return Sampling(
            self.top_p, self.nucleus, self.top_k, self.temperature, 0, end_bias, self.repeats, self.beams
        )  # fmt: skip


_NANO = Pix2SeqConfig(
    encoder_layers=0, decoder_layers=2, decoder_dim=128, decoder_hidden=512,
    length=500, dropout=0.0, drop_path=0.0, proposals=200,
)  # fmt: skip
SIZES = {
    "nano": _NANO,
    "small": replace(
        _NANO, backbone="tf_efficientnet_lite1", image_size=416, decoder_layers=3,
        decoder_dim=160, decoder_hidden=640, proposals=300, channels=128, depth=3,
    ),
    "medium": replace(
        _NANO, backbone="tf_efficientnet_lite2", image_size=512, decoder_layers=4,
        decoder_dim=192, decoder_hidden=768, proposals=400, channels=160, depth=4,
    ),
    # The published ones. Their stems have no ImageNet weights: they are initialised at random, with the full rate.
    "resnet50": Pix2SeqConfig(
        "pix2seq_resnet50", 640, 32, encoder_layers=6, decoder_layers=6,
    ),
    "resnet50-c4": Pix2SeqConfig(
        "pix2seq_resnet50", 640, 16, encoder_layers=12, encoder_dim=512, encoder_hidden=2048, encoder_heads=16,
        decoder_layers=8, decoder_dim=512, decoder_hidden=2048, decoder_heads=16,
    ),
    "vit-b": Pix2SeqConfig(
        "patches", 640, 16, encoder_layers=12, encoder_dim=768, encoder_hidden=3072, encoder_heads=12,
        decoder_layers=6, decoder_dim=512, decoder_hidden=2048, decoder_heads=16,
    ),
    "vit-l": Pix2SeqConfig(
        "patches", 640, 16, encoder_layers=24, encoder_dim=1024, encoder_hidden=4096, encoder_heads=16,
        decoder_layers=8, decoder_dim=512, decoder_hidden=2048, decoder_heads=16,
    ),
}  # fmt: skip


class Pix2Seq(CopyingDetector):
    """The sequence detector of Chen et al. 2022.

    Args:
        config: its shape.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.

    Raises:
        UserError: for more classes than the vocabulary has tokens, or a length that does not hold all objects.
    """

    explained_as = "sequence"

    def __init__(self, config: Pix2SeqConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        self.config, self.names, self.image_size = config, tuple(names), config.image_size
        most, needed = self.vocabulary().max_classes, OBJECT_TOKENS * config.max_objects
        labels = config.class_ids or range(1, len(names) + 1)
        fits = len(labels) == len(names) and all(1 <= label <= most for label in labels)
        require(fits, f"pix2seq has words for {most} classes, not for these {len(names)}; raise first_coordinate.")
        require(
            needed <= config.length, f"{config.max_objects} objects are {needed} words, over length={config.length}."
        )
        c = config
        if c.proposals:
            require(c.noise, "pix2seq with proposals fills sequences up with noise: leave noise=True.")
            require(
                not is_stem(c.backbone),
                f"{c.backbone} is a backbone of pix2seq's published sizes, such as --size resnet50 and vit-b; "
                "the others take a timm model.",
            )
            self.add_proposals(c.decoder_layers, c.decoder_dim, c.decoder_hidden, c.decoder_heads, pretrained)
            return
        published = make_stem(c.backbone, c.stride, c.encoder_dim)
        self.backbone = published or Backbone(c.backbone, [c.stride], pretrained)
        self.encoder = Pix2SeqEncoder(self.backbone.channels[0], c)
        self.bridge = Bridge(c)
        self.decoder = SequenceDecoder(
            c.vocabulary, c.length, OBJECT_TOKENS, c.decoder_layers, c.decoder_dim, c.decoder_hidden, c.decoder_heads,
            c.dropout, c.drop_path, c.decoder_positions == "learned", c.shared_embedding, c.output_bias,
        )  # fmt: skip

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> Tensor | ProposalOutputs:
        """The encoded cells, (B, cells, decoder_dim), or proposals; H and W may be any size."""
        if self.proposer is not None:
            return self.propose(images_BCHW, sizes_B2)
        return self.encode(self.features(images_BCHW, sizes_B2))

    def features(self, images_BCHW: Tensor, sizes_B2: Tensor) -> Tensor:
        """The backbone's map, (B, channels, H / stride, W / stride), rounded up (by `patches`, down)."""
        mask_B1HW = image_mask(images_BCHW, sizes_B2)[:, None]
        filled_BCHW = pixels(images_BCHW).where(mask_B1HW, PADDING)
        return self.backbone(filled_BCHW.contiguous(memory_format=torch.channels_last))[0]

    def encode(self, features_BCHW: Tensor) -> Tensor:
        """From the backbone's map to the encoded cells."""
        height, width = features_BCHW.shape[-2:]
        return self.bridge(self.encoder(features_BCHW), height, width)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`tokens`: cross-entropy of the next token, averaged with the tokens' weights. With proposals, see
        `CopyingDetector.copying_loss`.
        """
        if self.proposer is not None:
            return self.copying_loss(outputs, batch)
        c = self.config
        inputs_BL, targets_BL, weights_BL = training_sequences(
            batch, self.vocabulary(), c.max_objects, c.length, c.sentences, c.noise
        )
        each_BL = -log_probs(self.decoder, outputs, inputs_BL, targets_BL)
        return {"tokens": (each_BL * weights_BL).sum() / (weights_BL.sum() + 1e-9)}

    def likelihood(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Detector`. Objects stand in the data set's order, their classes are noise in the inputs (as in half of
        training), and no noise objects follow; the end token counts where sequences end.
        """
        c = self.config
        inputs_BL, targets_BL, weights_BL = encode_targets(batch, self.vocabulary(), c.max_objects, not c.noise)
        each_BL = log_probs(self.decoder, self.decoder_memory(outputs), inputs_BL, targets_BL)
        return (each_BL * weights_BL).sum(1), weights_BL.sum(1)

    @property
    def capacity(self) -> int:
        """As many objects as the table of positions holds."""
        return self.config.length // OBJECT_TOKENS

    @property
    def slots(self) -> tuple[str, ...]:
        """See `SequenceDetector`."""
        return ("y1", "x1", "y2", "x2", "class")

    def vocabulary(self, outputs: Any = None, sizes_B2: Tensor | None = None) -> Vocabulary:
        """See `SequenceDetector`. The same for all canvases."""
        c = self.config
        return Vocabulary(c.bins, c.first_coordinate, c.vocabulary, c.class_ids)

    def canvas_vocabulary(self, size: torch.Size) -> Vocabulary:
        """See `CopyingDetector`. The same for all canvases."""
        return self.vocabulary()

    def token_constraints(self, outputs: Any = None, classes: Sequence[int] | None = None) -> TokenConstraints:
        """See `SequenceDetector`."""
        device = self.decoder.norm.weight.device
        return self.vocabulary().token_constraints(len(self.names), classes, not self.config.grammar, device)

    @torch.no_grad()
    def to_predictions(
        self,
        generated: Generated,
        outputs: Any = None,
        classes: Sequence[int] | Tensor | None = None,
        sizes_B2: Tensor | None = None,
    ) -> Predictions:
        """See `SequenceDetector`.

        By default the score is the probability of the best class among all tokens of the vocabulary at the class slot,
        whichever token was generated there, noise included.
        """
        scores_BD, labels_BD = score_objects(generated, self.config.scores, OBJECT_TOKENS, classes)
        boxes_BD4 = self.vocabulary().boxes(generated.tokens_BL.unflatten(1, (-1, OBJECT_TOKENS))[..., :4])
        boxes_BD4[..., 2:] = torch.maximum(boxes_BD4[..., :2], boxes_BD4[..., 2:])  # a reversed box is an empty one
        return Predictions(boxes_BD4, scores_BD, labels_BD)

    def lengthen_positions(self, more: int) -> None:
        """See `CopyingDetector`."""
        c, decoder = self.config, self.decoder
        require(c.decoder_positions == "learned", "only learned positions can be lengthened; these are sines.")
        decoder.position_embedding = lengthened(decoder.position_embedding, OBJECT_TOKENS, c.max_objects, more)

    def config_for(self, objects: int) -> Pix2SeqConfig:
        """See `CopyingDetector`."""
        c = self.config
        length = c.length + OBJECT_TOKENS * (objects - c.max_objects)
        return replace(c, max_objects=objects, length=length)

    def given_tokens(self, outputs: Any, given: Batch) -> Tensor:
        """See `SequenceDetector`."""
        vocabulary = self.vocabulary()
        classes_BN1 = vocabulary.class_tokens(given.labels_BN)[..., None]
        tokens_BN5 = torch.cat([vocabulary.coordinate_tokens(given.boxes_BN4), classes_BN1], -1)
        return tokens_BN5.where(given.valid_BN[..., None], -1).flatten(1)

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> "Pix2Seq":
        """See `Detector`. The vocabulary stays; new classes get ids that are free."""
        if self.proposer is not None:
            return self._copying_with_classes(names, image_size or self.image_size, pretrained)
        c, known = self.config, range(1, self.vocabulary().max_classes + 1)
        ids = choose_ids(self.names, c.class_ids, names, known)
        size, grid = image_size or self.image_size, self.encoder.positions.grid
        detector = Pix2Seq(replace(c, image_size=size, grid=grid, class_ids=ids), names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        detector.load_state_dict(self.state_dict())
        return detector

    def _copying_with_classes(self, names: tuple[str, ...], image_size: int, pretrained: bool) -> "Pix2Seq":
        detector = Pix2Seq(replace(self.config, image_size=image_size, class_ids=()), names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        self.copy_to(detector)
        return detector


class Pix2SeqEncoder(nn.Module):
    """Self-attention over the cells of the backbone's map."""

    def __init__(self, channels: int, c: Pix2SeqConfig):
        super().__init__()
        patches = c.backbone == PATCHES  # their convolution is already the projection
        self.dropout = nn.Dropout(0.0 if patches else c.dropout)
        self.stem_projection = nn.Identity() if patches else dense(channels, c.encoder_dim)
        self.stem_norm = norm(c.encoder_dim)
        self.positions = CellPositions(c, c.encoder_dim)
        self.cls_token_embedding = nn.Parameter(table(1, c.encoder_dim)) if c.cls_token else None
        self.layers = nn.ModuleList(
            EncoderBlock(c.encoder_dim, c.encoder_hidden, c.encoder_heads, c.dropout, c.drop_path)
            for _ in range(c.encoder_layers)
        )
        self.norm = norm(c.encoder_dim)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """(B, H * W, encoder_dim) of a feature map, and one cell more with a cls token; positions are added once."""
        height, width = features_BCHW.shape[-2:]
        x_BME = self.stem_norm(self.stem_projection(self.dropout(features_BCHW.flatten(2).transpose(1, 2))))
        x_BME = x_BME + self.positions(height, width, x_BME.device)
        if self.cls_token_embedding is not None:
            x_BME = torch.cat([self.cls_token_embedding.expand(x_BME.shape[0], -1, -1), x_BME], 1)
        for layer in self.layers:
            x_BME = layer(x_BME)
        return self.norm(x_BME)


class Bridge(nn.Module):
    """From the encoder's width to the decoder's: projection, norm, positions again, one MLP."""

    def __init__(self, c: Pix2SeqConfig):
        super().__init__()
        self.projection, self.norm = dense(c.encoder_dim, c.decoder_dim), norm(c.decoder_dim)
        self.positions = None if c.bridge == "linear" else CellPositions(c, c.decoder_dim)
        hidden = c.decoder_dim * (c.encoder_hidden // c.encoder_dim)  # the encoder's ratio, as in the published code
        self.mlp = Mlp(c.decoder_dim, hidden, c.dropout, c.drop_path) if c.bridge == "mlp" else nn.Identity()

    def forward(self, x_BME: Tensor, height: int, width: int) -> Tensor:
        """(B, M, decoder_dim) of all cells; a cls token, which comes first, has no position."""
        x_BME = self.norm(self.projection(x_BME))
        if self.positions is not None:
            extra = x_BME.shape[1] - height * width
            x_BME = x_BME + F.pad(self.positions(height, width, x_BME.device), (0, 0, extra, 0))
        return self.mlp(x_BME)


class CellPositions(nn.Module):
    """Positions of cells, as sines and cosines or as a learned table."""

    def __init__(self, c: Pix2SeqConfig, dim: int):
        super().__init__()
        round_up = c.backbone != PATCHES
        side = (c.image_size + (c.stride - 1) * round_up) // c.stride
        self.dim, self.grid = dim, c.grid or (side, side)
        learned = c.encoder_positions == "learned"
        self.embedding = nn.Parameter(table(math.prod(self.grid), dim)) if learned else None

    def forward(self, height: int, width: int, device: torch.device) -> Tensor:
        """(height * width, dim)."""
        if self.embedding is not None:
            return resize_2d(self.embedding, self.grid, (height, width))
        return sincos_2d(height, width, self.dim, device)
