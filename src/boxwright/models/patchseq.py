"""`patchseq`: a box is a class and two patches of the image, generated object by object.

        image ── backbone ── encoder ── patches ──┬──────────────────────────────────────┐
                                                  v (what the decoder attends to)        v
        >   class   corner  corner   class   corner  corner ... end    pointer: which patch matches the decoder's state?
                    upper   lower
                    left    right     a corner: a patch, then where in that patch (an offset)

Three things are added to the published detector (buddE, github yesWeGAN/buddE), each of which can be switched off. Its
corners were whole patches: here an *offset* follows each patch. It had a learned embedding for each patch: here the
decoder *points*, the logit of a patch is the match between the decoder's state and that patch's feature. Its decoder
left its table of *positions* unused. A fourth can be switched on: the class comes last, when the box is known, and
*noise* objects that are none calibrate the scores, as in Pix2Seq.

The sizes nano, small and medium copy objects from the proposals of a dense head, one decoder step each, in the same
tokens (`boxwright.models.sequence.proposal_decoder`): so they learn from a few hundred images.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.config import require
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.layers.attention import DecoderBlock, norm
from boxwright.models.layers.class_rows import copy_weights, shared_rows
from boxwright.models.layers.kv_cache import CacheTensor, KeysValues, KVCache
from boxwright.models.layers.position_encoding import resize_2d
from boxwright.models.pix2seq import Pix2SeqConfig, Pix2SeqEncoder
from boxwright.models.sequence.copying_detector import CopyingConfig, CopyingDetector
from boxwright.models.sequence.decoder import lengthened, positions, table
from boxwright.models.sequence.generation import Generated
from boxwright.models.sequence.likelihood import log_probs, score_objects
from boxwright.models.sequence.patch_vocabulary import PatchVocabulary
from boxwright.models.sequence.pointer import FIRST, SECOND, History, Pointer
from boxwright.models.sequence.proposals import ProposalOutputs
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.targets import (
    SequenceTargets,
    encode_targets,
    flatten_objects,
    order_objects,
    training_sequences,
)
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import FIRST_CLASS, PAD, PROMPT
from boxwright.types import Batch, Predictions, image_mask, pixels


@dataclass(frozen=True)
class PatchSeqConfig(CopyingConfig):
    """The shape of a `patchseq` detector.

    Attributes:
        backbone: a timm model with a feature map whose cells are the patches: a ViT, or a convolutional network.
        image_size: side of the canvas, in pixels.
        patch: side of a patch, in pixels.
        encoder_layers: blocks on top of the backbone; a ViT needs none.
        decoder_layers, dim, hidden, heads: blocks, width, MLP width and heads of encoder and decoder.
        max_objects: objects in a sequence, noise included; the most that are detected.
        positions: the decoder has position embeddings.
        pointing: patches are matched by their features; else each has a learned embedding.
        fine: subcells along a side of a patch, for offsets; 0 has no offsets.
        noise: the class comes last, and sequences are filled up with noise objects; else the class comes first and the
            sequence ends after the last object, as published.
        shuffle: training objects stand in random order, else in that of the data set.
        dropout: rate inside the MLPs and before the encoder.
        drop_path: rate of stochastic depth.
        top_k: draw each token from the k most probable allowed ones; 0 takes the most probable.
        seed: of the draws: image i of a batch draws with seed + i.
        end_bias: added to the logit of the end token, where sequences end; -inf generates `max_objects` all the same,
            of which those behind the end score low.
        proposals: cells of a dense head from which objects are copied, one decoder step each (ours); 0 for none. With
            proposals, objects have offsets and noise, and `encoder_layers`, `positions`, `pointing` and `shuffle` are
            not used.
        channels, depth: see `CopyingConfig`.
    """

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 320
    patch: int = 16
    encoder_layers: int = 3
    decoder_layers: int = 3
    dim: int = 256
    hidden: int = 1024
    heads: int = 8
    max_objects: int = 100
    positions: bool = True
    pointing: bool = True
    fine: int = 8
    noise: bool = False
    shuffle: bool = True
    dropout: float = 0.1
    drop_path: float = 0.1
    top_k: int = 0
    seed: int = 0
    end_bias: float = 0.0

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(top_k=self.top_k, end_bias=-math.inf if self.noise else self.end_bias)


_NANO = PatchSeqConfig(
    encoder_layers=0, decoder_layers=2, dim=128, hidden=512, fine=16, noise=True, dropout=0.0, drop_path=0.0,
    proposals=200,
)  # fmt: skip
SIZES = {
    "nano": _NANO,
    "small": replace(
        _NANO, backbone="tf_efficientnet_lite1", image_size=416, decoder_layers=3, dim=160, hidden=640, proposals=300,
        channels=128, depth=3,
    ),
    "medium": replace(
        _NANO, backbone="tf_efficientnet_lite2", image_size=512, decoder_layers=4, dim=192, hidden=768, proposals=400,
        channels=160, depth=4,
    ),
    "base": PatchSeqConfig(  # the published encoder and decoder
        "deit_base_distilled_patch16_384", 384, 16, encoder_layers=0, decoder_layers=6, dim=768, hidden=3072,
    ),
}  # fmt: skip
PUBLISHED = {"positions": False, "pointing": False, "fine": 0}


class PatchSeqOutputs(NamedTuple):
    """The encoded patches, (B, rows * columns, dim), and the token ids of this canvas."""

    patches_BPE: Tensor
    vocabulary: PatchVocabulary


class PatchSeq(CopyingDetector):
    """The sequence detector whose corners are patches.

    Args:
        config: its shape.
        names: the classes.
        pretrained: start the backbone from ImageNet weights.
    """

    explained_as = "sequence"  # with proposals

    def __init__(self, config: PatchSeqConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        self.config, self.names, self.image_size = config, tuple(names), config.image_size
        if config.proposals:
            enough = config.fine > 0 and config.noise
            require(enough, "patchseq with proposals has offsets and noise: set fine > 0 and noise=True.")
            self.add_proposals(config.decoder_layers, config.dim, config.hidden, config.heads, pretrained)
            return
        self.explained_as = None
        self.backbone = Backbone(config.backbone, [config.patch], pretrained)
        shape = Pix2SeqConfig(
            config.backbone, config.image_size, config.patch, encoder_layers=config.encoder_layers,
            encoder_dim=config.dim, encoder_hidden=config.hidden, encoder_heads=config.heads,
            dropout=config.dropout, drop_path=config.drop_path,
        )  # fmt: skip
        self.encoder = Pix2SeqEncoder(self.backbone.channels[0], shape)
        self.decoder = PatchDecoder(config, self._vocabulary_for(config.image_size, config.image_size))

    def _vocabulary_for(self, height: int, width: int) -> PatchVocabulary:
        """The token ids for images on a canvas of this size, in pixels."""
        return PatchVocabulary(len(self.names), height, width, self.config.patch, self.config.fine)

    def canvas_vocabulary(self, size: torch.Size) -> PatchVocabulary:
        """See `CopyingDetector`."""
        return self._vocabulary_for(*size)

    def forward(
        self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None
    ) -> PatchSeqOutputs | ProposalOutputs:
        """The encoded patches, or proposals; H and W may be any size, padding is filled with the mean colour."""
        if self.proposer is not None:
            return self.propose(images_BCHW, sizes_B2)
        mask_B1HW = image_mask(images_BCHW, sizes_B2)[:, None]
        filled_BCHW = torch.where(mask_B1HW, pixels(images_BCHW), self.backbone.mean)
        features_BCHW = self.backbone(filled_BCHW.contiguous(memory_format=torch.channels_last))[0]
        return PatchSeqOutputs(self.encoder(features_BCHW), self._vocabulary_for(*images_BCHW.shape[-2:]))

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`tokens`: cross-entropy of the next token, averaged with the tokens' weights. With proposals, see
        `CopyingDetector.copying_loss`.
        """
        if self.proposer is not None:
            return self.copying_loss(outputs, batch)
        c = self.config
        length = outputs.vocabulary.slots * c.max_objects + 1
        to_targets = training_sequences if c.noise else class_first_sequences
        targets = to_targets(batch, outputs.vocabulary, c.max_objects, length, shuffle=c.shuffle)
        each_BL = -log_probs(self.decoder, outputs, targets.inputs_BL, targets.targets_BL)
        return {"tokens": (each_BL * targets.weights_BL).sum() / (targets.weights_BL.sum() + 1e-9)}

    def likelihood(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Detector`. Objects stand in the data set's order."""
        c, memory = self.config, self.decoder_memory(outputs)
        if c.noise:
            targets = encode_targets(batch, memory.vocabulary, c.max_objects, ends=False)
        else:
            length = memory.vocabulary.slots * c.max_objects + 1
            targets = class_first_sequences(batch, memory.vocabulary, c.max_objects, length, shuffle=False)
        each_BL = log_probs(self.decoder, memory, targets.inputs_BL, targets.targets_BL)
        return (each_BL * targets.weights_BL).sum(1), targets.weights_BL.sum(1)

    @property
    def slots(self) -> tuple[str, ...]:
        """See `SequenceDetector`. An offset refines its patch."""
        corners = [corner for corner in ("x1 y1", "x2 y2") for _ in range(2 if self.config.fine else 1)]
        return (*corners, "class") if self.config.noise else ("class", *corners)

    def vocabulary(self, outputs: Any = None, sizes_B2: Tensor | None = None) -> PatchVocabulary:
        """See `SequenceDetector`. A token for each patch of the canvas."""
        if outputs is None:
            return self._vocabulary_for(self.image_size, self.image_size)
        return self.decoder_memory(outputs).vocabulary

    def token_constraints(self, outputs: Any = None, classes: Sequence[int] | None = None) -> TokenConstraints:
        """See `SequenceDetector`."""
        device = self.decoder.norm.weight.device
        return self.vocabulary(outputs).token_constraints(self.config.noise, classes, device)

    def coarse(self, tokens_S: Tensor, outputs: Any) -> Tensor:
        """See `SequenceDetector`. Corners lie in the middle of their patches."""
        vocabulary = self.vocabulary(outputs)
        fine, first = self.config.fine, vocabulary.first_coordinate
        if not fine:
            return tokens_S
        tokens_S = tokens_S.clone()
        offsets = [corner + 1 for corner in vocabulary.corners(self.config.noise)]
        tokens_S[offsets] = first + fine * (fine // 2) + fine // 2
        return tokens_S

    @torch.no_grad()
    def to_predictions(
        self,
        generated: Generated,
        outputs: Any = None,
        classes: Sequence[int] | Tensor | None = None,
        sizes_B2: Tensor | None = None,
    ) -> Predictions:
        """See `SequenceDetector`.

        The score of an object is the probability of its class among all tokens: where the class comes last, of the
        most probable class, whichever was generated; where it comes first, of the one generated, as the box is that
        one's.
        """
        vocabulary, c = self.vocabulary(outputs), self.config
        slots = vocabulary.slots
        tokens_BNS = generated.tokens_BL.unflatten(1, (-1, slots))
        if c.noise:
            scores_BN, labels_BN = score_objects(generated, "full", slots, classes)
            corners_BNC = tokens_BNS[..., :-1]
        else:
            labels_BN = (tokens_BNS[..., 0] - FIRST_CLASS - 1).clamp(0, len(self.names) - 1)
            scores_BN = generated.class_log_probs_BNK.gather(2, labels_BN[..., None])[..., 0].exp()
            corners_BNC = tokens_BNS[..., 1:]
        boxes_BN4 = vocabulary.boxes(corners_BNC)
        first_BN2, second_BN2 = boxes_BN4[..., :2], boxes_BN4[..., 2:]  # within one patch, offsets can be reversed
        ordered_BN4 = torch.cat([torch.minimum(first_BN2, second_BN2), torch.maximum(first_BN2, second_BN2)], -1)
        return Predictions(ordered_BN4, scores_BN, labels_BN)

    def lengthen_positions(self, more: int) -> None:
        """See `CopyingDetector`."""
        decoder = self.decoder
        if decoder.position_embedding is not None:
            decoder.position_embedding = lengthened(
                decoder.position_embedding, decoder.slots, self.config.max_objects, more
            )

    def given_tokens(self, outputs: Any, given: Batch) -> Tensor:
        """See `SequenceDetector`."""
        tokens_BNS = _objects(given.boxes_BN4, given.labels_BN, self.vocabulary(outputs), self.config.noise)
        return tokens_BNS.where(given.valid_BN[..., None], -1).flatten(1)

    @torch.no_grad()
    def with_classes(
        self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True
    ) -> "PatchSeq":
        """See `Detector`. A table of patches is resized to the new canvas."""
        detector = PatchSeq(replace(self.config, image_size=image_size or self.image_size), names, pretrained=False)
        if pretrained:
            detector.backbone.freeze()
        if self.proposer is not None:
            self.copy_to(detector)
            return detector
        first, before, after = FIRST_CLASS + 1, len(self.names), len(names)
        rows = [(n, n) for n in range(first)]
        rows += [(first + old, first + new) for old, new in shared_rows(self.names, range(before), names)]
        rows += [(first + before + n, first + after + n) for n in range(self.decoder.fixed_tokens - first - before)]
        by_row = ("decoder.token_embedding", "decoder.output_bias")
        copy_weights(self, detector, {**dict.fromkeys(by_row, rows), "decoder.patch_embedding": []})
        if not self.config.pointing:
            patches_PE = resize_2d(self.decoder.patch_embedding, self.decoder.grid, detector.decoder.grid)
            detector.decoder.patch_embedding.copy_(patches_PE)
        return detector


def class_first_sequences(
    batch: Batch, vocabulary: PatchVocabulary, max_objects: int, length: int, shuffle: bool = True
) -> SequenceTargets:
    """Training sequences as published: each object's class, then its corners; the end has a weight, padding has none.

    Args:
        batch: boxes and labels.
        vocabulary: the token ids.
        max_objects: in a sequence; of more, random ones are left out.
        length: tokens in a sequence, at least one more than those of all objects.
        shuffle: objects stand in random order, else in that of the data set.
    """
    boxes_BM4, labels_BM, real_BM = order_objects(
        batch.boxes_BN4, batch.labels_BN, batch.valid_BN, max_objects, shuffle
    )
    objects_BMS = _objects(boxes_BM4, labels_BM, vocabulary, False).where(real_BM[..., None], PAD)
    targets_BL = flatten_objects(objects_BMS, length)
    ends_B1 = real_BM.sum(1, keepdim=True) * vocabulary.slots
    counted_BL = torch.arange(length, device=targets_BL.device) <= ends_B1
    prompt_B1 = torch.full_like(targets_BL[:, :1], PROMPT)
    return SequenceTargets(torch.cat([prompt_B1, targets_BL[:, :-1]], 1), targets_BL, counted_BL.float())


def _objects(boxes_BM4: Tensor, labels_BM: Tensor, vocabulary: PatchVocabulary, class_last: bool) -> Tensor:
    """The tokens of each object, (B, M, S)."""
    corners_BMC, classes_BM1 = vocabulary.coordinate_tokens(boxes_BM4), vocabulary.class_tokens(labels_BM)[..., None]
    return torch.cat([corners_BMC, classes_BM1] if class_last else [classes_BM1, corners_BMC], -1)


class PatchTokens(NamedTuple):
    """The patches of each image as tokens, (B or 1, P, E) each.

    Attributes:
        embeddings_BPE: their embeddings as input tokens.
        keys_BPE: what the decoder's state is matched with.
        grid: rows and columns of patches.
    """

    embeddings_BPE: Tensor
    keys_BPE: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class PatchCache(KVCache):
    """The cache of a `PatchDecoder`.

    Attributes:
        patches: of the images.
        history: the patches in each sequence so far.
    """

    patches: PatchTokens = field(kw_only=True)
    history: History = field(kw_only=True)

    def tensors(self) -> list[CacheTensor]:
        """See `KVCache`."""
        axes = "BPE" if len(self.patches.keys_BPE) > 1 else "1PE"
        return [
            *super().tensors(),
            CacheTensor("patch_embeddings", self.patches.embeddings_BPE, axes, False),
            CacheTensor("patch_keys", self.patches.keys_BPE, axes, False),
            CacheTensor("last_patch", self.history.last_BL, "B1", True),
            CacheTensor("corner_patches", self.history.corners_B2LP, "B21P", True),
        ]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "PatchCache":
        """See `KVCache`. The history is copied, as a step changes it in place."""
        history = History(tensors["last_patch"].clone(), tensors["corner_patches"].clone())
        patches = PatchTokens(tensors["patch_embeddings"], tensors["patch_keys"], self.patches.grid)
        return replace(super().with_tensors(tensors), patches=patches, history=history)


class PatchDecoder(nn.Module):
    """Like `boxwright.models.sequence.decoder.SequenceDecoder`, but some of its tokens are the patches of an image.

    Args:
        c: the detector's shape.
        vocabulary: the token ids of the detector's own canvas.
    """

    def __init__(self, c: PatchSeqConfig, vocabulary: PatchVocabulary):
        super().__init__()
        self.fixed_tokens, self.grid = vocabulary.first_patch, vocabulary.grid
        self.token_embedding = nn.Parameter(table(self.fixed_tokens, c.dim))
        length = vocabulary.slots * c.max_objects + 1
        self.position_embedding = nn.Parameter(positions(length, vocabulary.slots, c.dim)) if c.positions else None
        self.layers = nn.ModuleList(
            DecoderBlock(c.dim, c.hidden, c.heads, c.dropout, c.drop_path) for _ in range(c.decoder_layers)
        )
        self.norm = norm(c.dim)
        self.output_bias = nn.Parameter(torch.zeros(self.fixed_tokens))
        self.slots, self.corners = vocabulary.slots, vocabulary.corners(c.noise)
        self.pointer = Pointer(c.dim) if c.pointing else None
        if not c.pointing:
            self.patch_embedding = nn.Parameter(table(vocabulary.size - self.fixed_tokens, c.dim))

    def forward(self, tokens_BL: Tensor, memory: PatchSeqOutputs) -> Tensor:
        """Logits (B, L, V) of what follows each token of whole sequences; consecutive rows may belong to one image."""
        patches, positions_L = self._patches(memory), torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        x_BLE = self._embed(tokens_BL, positions_L, patches)
        for layer, image in zip(self.layers, self._image(memory), strict=True):
            x_BLE = layer(x_BLE, image)
        nothing = History.empty(len(tokens_BL), patches.keys_BPE.shape[1], tokens_BL.device)
        return self._logits(x_BLE, patches, self._history(nothing, tokens_BL, positions_L))

    def start(self, memory: PatchSeqOutputs, length: int, per_image: int = 1) -> KVCache:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        cache = KVCache.empty(self._image(memory), length, per_image)
        patches = self._patches(memory)
        history = History.empty(cache.rows, patches.keys_BPE.shape[1], memory.patches_BPE.device)
        return PatchCache(cache.sequence, cache.image, patches=patches, history=history)

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache, slot: int = 0) -> Tensor:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        assert isinstance(cache, PatchCache)
        x_BLE = self._embed(tokens_BL, positions_L, cache.patches)
        step = cache.step_positions(positions_L)
        for layer, sequence, image in zip(self.layers, cache.sequence, cache.image, strict=True):
            x_BLE = layer(x_BLE, image, sequence, step)
        history = self._history(cache.history, tokens_BL, positions_L).now()
        for old, new in zip(cache.history, history, strict=True):
            old.copy_(new)
        return self._logits(x_BLE[:, -1:], cache.patches, history)[:, 0]

    def _history(self, before: History, tokens_BL: Tensor, positions_L: Tensor) -> History:
        """Up to each of these tokens; which corner a patch is follows from its position in the sequence."""
        slot_L = (positions_L - 1) % self.slots
        corner_L = torch.where(slot_L == self.corners[0], FIRST, SECOND)
        return before.then((tokens_BL - self.fixed_tokens).clamp(min=-1), corner_L)

    def _image(self, memory: PatchSeqOutputs) -> Iterator[KeysValues]:
        """Keys and values of the images for each layer."""
        return (layer.cross_attention.keys_values(memory.patches_BPE) for layer in self.layers)  # type: ignore[union-attr,operator]

    def _patches(self, memory: PatchSeqOutputs) -> PatchTokens:
        grid = memory.vocabulary.grid
        if self.pointer is not None:
            return PatchTokens(self.pointer.read(memory.patches_BPE), self.pointer.answer(memory.patches_BPE), grid)
        table_1PE = resize_2d(self.patch_embedding, self.grid, grid)[None]
        return PatchTokens(table_1PE, table_1PE, grid)

    def _embed(self, tokens_BL: Tensor, positions_L: Tensor, patches: PatchTokens) -> Tensor:
        """Embeddings (B, L, E), from the table or of the patch; consecutive rows may belong to one image."""
        images, _, width = patches.embeddings_BPE.shape
        patch_IR = (tokens_BL - self.fixed_tokens).clamp(min=0).view(images, -1)
        patches_IRE = patches.embeddings_BPE.gather(1, patch_IR[..., None].expand(-1, -1, width))
        fixed_BLE = self.token_embedding[tokens_BL.clamp(max=self.fixed_tokens - 1)]
        x_BLE = torch.where((tokens_BL < self.fixed_tokens)[..., None], fixed_BLE, patches_IRE.view_as(fixed_BLE))
        return x_BLE if self.position_embedding is None else x_BLE + self.position_embedding[positions_L]

    def _logits(self, x_BLE: Tensor, patches: PatchTokens, history: History) -> Tensor:
        """(B, L, V): the tokens of the table, then the patches of each row's own image."""
        x_BLE = self.norm(x_BLE)
        fixed_BLV = F.linear(x_BLE, self.token_embedding, self.output_bias)
        if self.pointer is None:
            patches_BLP = F.linear(x_BLE, patches.keys_BPE[0])
        else:
            patches_BLP = self.pointer(x_BLE, patches.keys_BPE, history, patches.grid)
        return torch.cat([fixed_BLV, patches_BLP], -1).float()
