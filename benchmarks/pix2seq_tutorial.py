"""The Pix2Seq of moein-shariatnia/Pix2Seq (github, a tutorial), as a peer for `peers.py`: its recipe, our own code.

What is as there: cells of 16 pixels with learned positions; PyTorch's own post-norm decoder (6 layers, width 256, 8
heads, MLP 2048, dropout 0.1) with learned positions and separate input and output embeddings; x1 y1 x2 y2 class, one
coordinate a pixel, rounded down, objects in random order, no noise objects, an end token; cross-entropy of every token
but padding; AdamW, 1e-4 for all weights, decay 1e-4, 5 % warm-up, then linear; batch 16; greedy generation.

What is not: its DeiT-III (ImageNet-21k, 384 px) is our backbone with ImageNet weights, and its pooling of channels a
linear layer; images are not distorted into a square but padded; augmentation, image size and length of training are
those of the benchmark (there 384 px and 25 epochs of VOC). Where it errs, it is not followed: an object's score is the
probability of its class token, sequences end by the end token or at the most objects of a training image (59 if that
is more) and not after 101 tokens, and the image is encoded once.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.config import Augment, Optim
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.sequence.targets import order_objects
from boxwright.training.recipes import Recipe
from boxwright.types import Batch, Detector, Predictions, pixels

STRIDE, SLOTS = 16, 5
RECIPE = Recipe(
    epochs=25,
    batch_size=16,
    augment=Augment(),  # that of the benchmark
    optim=Optim(
        lr=1e-4, backbone_factor=1.0, frozen=0.0, weight_decay=1e-4, rule="torch", beta2=0.999, schedule="linear",
        warmup=0.05, hold=0.0, clip=0.0, accumulate=1, ema=0.0, patience=0,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The published dims; `image_size` is also the number of coordinates."""

    backbone: str
    image_size: int
    objects: int = 59
    layers: int = 6
    dim: int = 256
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1


class Pix2SeqTutorial(Detector):
    """Backbone, decoder and vocabulary: coordinates, then classes, begin, end and padding."""

    def __init__(self, shape: Shape, names: tuple[str, ...]):
        super().__init__()
        self.config, self.names, self.image_size = shape, names, shape.image_size
        self.begin, self.end, self.padding = (shape.image_size + len(names) + n for n in range(3))
        self.backbone = Backbone(shape.backbone, (STRIDE,))
        self.project = nn.Linear(self.backbone.channels[0], shape.dim)
        cells, tokens = math.ceil(shape.image_size / STRIDE) ** 2, SLOTS * shape.objects + 1
        self.cell_positions = nn.Parameter(0.02 * torch.randn(cells, shape.dim))
        self.token_positions = nn.Parameter(0.02 * torch.randn(tokens, shape.dim))
        self.embed = nn.Embedding(self.padding + 1, shape.dim)
        layer = nn.TransformerDecoderLayer(shape.dim, shape.heads, shape.hidden, shape.dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, shape.layers)
        self.classify = nn.Linear(shape.dim, self.padding + 1)
        for weight in (*self.decoder.parameters(), *self.classify.parameters(), self.embed.weight):
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return self.backbone.known_parameters()

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> Tensor:
        """The projected cells with their positions, (B, M, E)."""
        cells_BME = self.project(self.backbone(pixels(images_BCHW))[0].flatten(2).mT)
        return cells_BME + self.cell_positions

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        tokens_BL = self.sequences(batch)
        logits_NV = self.logits(outputs, tokens_BL[:, :-1]).flatten(0, 1)
        return {"tokens": F.cross_entropy(logits_NV, tokens_BL[:, 1:].flatten(), ignore_index=self.padding)}

    def sequences(self, batch: Batch) -> Tensor:
        """Begin, objects in random order, end, padding: (B, 5 x objects + 2)."""
        objects = min(self.config.objects, batch.valid_BN.shape[1])
        boxes_BM4, labels_BM, valid_BM = order_objects(batch.boxes_BN4, batch.labels_BN, batch.valid_BN, objects)
        coordinates_BM4 = (boxes_BM4.clamp(0, 1) * (self.image_size - 1)).long()
        tokens_BM5 = torch.cat([coordinates_BM4, labels_BM[..., None] + self.image_size], -1)
        objects_BL = tokens_BM5.where(valid_BM[..., None], self.padding).flatten(1)
        tokens_BL = F.pad(F.pad(objects_BL, (1, 0), value=self.begin), (0, 1), value=self.padding)
        return tokens_BL.scatter(1, SLOTS * valid_BM.sum(1, keepdim=True) + 1, self.end)

    def logits(self, memory_BME: Tensor, tokens_BL: Tensor) -> Tensor:
        """Of the token behind each, (B, L, V)."""
        length = tokens_BL.shape[1]
        future_LL = torch.ones(length, length, dtype=torch.bool, device=tokens_BL.device).triu(1)
        decoded_BLE = self.decoder(
            self.embed(tokens_BL) + self.token_positions[:length], memory_BME, tgt_mask=future_LL,
            tgt_key_padding_mask=tokens_BL == self.padding,
        )  # fmt: skip
        return self.classify(decoded_BLE)

    @torch.no_grad()
    def decode(self, outputs: Tensor) -> Predictions:
        tokens_BL, probabilities_BL = self.generate(outputs)
        tokens_BM5 = tokens_BL.unflatten(1, (-1, SLOTS))
        boxes_BM4, labels_BM = tokens_BM5[..., :4], tokens_BM5[..., 4] - self.image_size
        whole_BM = (boxes_BM4 < self.image_size).all(-1) & (labels_BM >= 0) & (labels_BM < len(self.names))
        scores_BM = probabilities_BL.unflatten(1, (-1, SLOTS))[..., 4] * whole_BM
        boxes_BM4 = boxes_BM4.clamp(max=self.image_size - 1) / (self.image_size - 1)
        boxes_BM4 = torch.cat([boxes_BM4[..., :2], torch.maximum(boxes_BM4[..., :2], boxes_BM4[..., 2:])], -1)
        return Predictions(boxes_BM4, scores_BM, labels_BM.clamp(0, len(self.names) - 1)).best_first()

    def generate(self, memory_BME: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable tokens (B, L) and their probabilities, whole objects; padding from the end token on."""
        tokens_BL = torch.full((len(memory_BME), 1), self.begin, device=memory_BME.device)
        probabilities_BL = torch.zeros_like(tokens_BL, dtype=torch.float)
        ended_B = torch.zeros_like(tokens_BL[:, 0], dtype=torch.bool)
        while tokens_BL.shape[1] <= SLOTS * self.config.objects and not ended_B.all():
            best = self.logits(memory_BME, tokens_BL)[:, -1].softmax(-1).max(-1)
            ended_B = ended_B | (best.indices >= self.begin)
            next_B = best.indices.where(~ended_B, self.padding)
            tokens_BL = torch.cat([tokens_BL, next_B[:, None]], 1)
            probabilities_BL = torch.cat([probabilities_BL, best.values[:, None]], 1)
        missing = -(tokens_BL.shape[1] - 1) % SLOTS
        return F.pad(tokens_BL[:, 1:], (0, missing), value=self.padding), F.pad(probabilities_BL[:, 1:], (0, missing))
