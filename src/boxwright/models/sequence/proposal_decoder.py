"""A decoder that writes an object in one step, by copying from proposals.

        object written last ── self-attention to all written ones ── attention to the proposals ── state
                                                                                                    │
           which proposal comes next? (or a box of the decoder's own)   what class, as seen now? ───┘

The next object is a mixture of the proposals and of one box that the decoder predicts itself
(`boxwright.models.sequence.mixture`). Token by token that is exact, so sampling, beams, prompts and likelihoods are
those of any other sequence detector, at one decoder step per object instead of one per token.

A mixture whose source is a list is the pointer-generator of See et al. 2017, the attention over it that of pointer
networks (Vinyals et al. 2015). A proposal that overlaps an object already written gets less weight, and a lower class
score: at first as in Soft-NMS (Bodla et al. 2017), then as learned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwright.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from boxwright.models.layers.attention import DecoderBlock, norm
from boxwright.models.layers.deformable_transformer import box_encoding
from boxwright.models.layers.kv_cache import CacheTensor, KeysValues, KVCache
from boxwright.models.sequence.mixture import Sides, class_logits
from boxwright.models.sequence.proposals import LEAST_SPREAD, Proposals
from boxwright.models.sequence.side_distributions import SideTables, side_tables

SLOTS = 5  # tokens of an object: four for its box, then the class
CLASS_SLOT = SLOTS - 1
PRIOR = 2.0  # initial exponent of the proposals' scores
APART = 8.0  # initial penalty on the weight of a proposal that has been written already
LOWERED = 6.0  # the same on its class score
OWN = -2.0  # initial logit of the decoder's own box, and of its classes
OWN_SPREAD = -1.5  # initial logarithm of its spread
HIDDEN = 64  # of the perceptron that scores classes


class ProposalReadings(NamedTuple):
    """What a decoder reads of the proposals for each object, computed once for an image.

    Attributes:
        boxes_BC4, logits_BCK: see `Proposals`.
        prior_BC: the logarithm of a proposal's weight by its score alone.
        keys_BCE: what a state is matched with.
        hidden_BCH: its part in the perceptron that scores classes.
    """

    boxes_BC4: Tensor
    logits_BCK: Tensor
    prior_BC: Tensor
    keys_BCE: Tensor
    hidden_BCH: Tensor


@dataclass
class CurrentObject:
    """The object that is being generated in N sequences of each of B images.

    Attributes:
        tokens_BNS: so far.
        states_BNE: of the decoder.
        overlap_BNC: see `overlaps`.
        log_weights_BNC: of the mixture, given the tokens.
        sides: where those of the components lie.
    """

    tokens_BNS: Tensor
    states_BNE: Tensor
    overlap_BNC: Tensor
    log_weights_BNC: Tensor
    sides: Sides

    def add(self, token_BN: Tensor) -> None:
        """The next coordinate."""
        slot = self.tokens_BNS.shape[-1]
        self.tokens_BNS = torch.cat([self.tokens_BNS, token_BN[..., None]], -1)
        self.log_weights_BNC = self.log_weights_BNC + self.sides.evidence(slot, self.tokens_BNS)


@dataclass(frozen=True)
class ProposalCache(KVCache):
    """The cache of a `ProposalDecoder`; its positions are objects, not tokens.

    Between two objects its tensors are all that counts.

    Attributes:
        readings: of the proposals.
        tables: of the sides of the proposals.
        vocabulary: in which tokens they are written.
        last_B4: the coordinates of the object generated last.
        overlap_BC: of each proposal with all objects before that one, see `overlaps`.
        per_image: sequences of each image.
        current: the object that is being generated; before the first there is none.
    """

    readings: ProposalReadings = field(kw_only=True)
    tables: SideTables = field(kw_only=True)
    vocabulary: Any = field(kw_only=True)
    last_B4: Tensor = field(kw_only=True)
    overlap_BC: Tensor = field(kw_only=True)
    per_image: int = field(kw_only=True)
    current: list[CurrentObject] = field(kw_only=True, default_factory=list)

    def first(self, length: int) -> "ProposalCache":
        """See `KVCache`; the length is counted in tokens."""
        return super().first(-(-length // SLOTS))

    def tensors(self) -> list[CacheTensor]:
        """See `KVCache`."""
        constant = self.readings._asdict() | self.tables._asdict()
        return [
            *super().tensors(),
            *(CacheTensor(f"proposal_{name}", tensor, "BCX", False) for name, tensor in constant.items()),
            CacheTensor("last_box", self.last_B4, "BX", True),
            CacheTensor("overlap", self.overlap_BC, "BC", True),
        ]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "ProposalCache":
        """See `KVCache`. What a step changes in place is copied."""
        readings, tables = (
            [tensors[f"proposal_{name}"] for name in kind._fields] for kind in (ProposalReadings, SideTables)
        )
        return replace(
            super().with_tensors(tensors), readings=ProposalReadings(*readings), tables=SideTables(*tables),
            last_B4=tensors["last_box"].clone(), overlap_BC=tensors["overlap"].clone(), current=[],
        )  # fmt: skip


class ProposalDecoder(nn.Module):
    """A transformer decoder over objects, and the mixture that each of its states describes.

    Args:
        classes: how many there are.
        layers: number of blocks.
        dim, hidden, heads, dropout, drop_path: of each block.
    """

    def __init__(self, classes: int, layers: int, dim: int, hidden: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.start_embedding = nn.Parameter(torch.randn(dim) * 0.1)
        self.class_embedding = nn.Parameter(torch.randn(classes + 1, dim))  # the last one: noise, or not told
        self.place = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(DecoderBlock(dim, hidden, heads, dropout, drop_path) for _ in range(layers))
        self.norm = norm(dim)
        self.point_query, self.point_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.prior, self.apart = nn.Parameter(torch.tensor(PRIOR)), nn.Parameter(torch.tensor(APART))
        self.lowered = nn.Parameter(torch.tensor(LOWERED))
        self.gate, self.own_box, self.own_class = nn.Linear(dim, 1), nn.Linear(dim, 8), nn.Linear(dim, classes)
        self.from_state, self.from_proposal = nn.Linear(dim, HIDDEN), nn.Linear(dim, HIDDEN)
        self.from_overlap = nn.Parameter(torch.zeros(HIDDEN))
        self.rescore = nn.Linear(HIDDEN, classes)
        self._init_weights()

    def _init_weights(self) -> None:
        """At first proposals come in the order of their scores, as they are."""
        for layer in (self.point_query, self.gate, self.own_box, self.own_class, self.rescore):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.gate.bias.fill_(OWN)
            self.own_class.bias.fill_(OWN)
            self.own_box.bias[4:] = OWN_SPREAD

    def states(self, boxes_BN4: Tensor, labels_BN: Tensor, proposals: Proposals) -> Tensor:
        """States (B, N + 1, E) before the first and behind each of N objects.

        Args:
            boxes_BN4: xyxy in [0, 1] of the canvas; consecutive rows may belong to one image.
            labels_BN: their classes; K for noise, or where it is not told.
            proposals: of the images.
        """
        x_BNE = self._embed_objects(boxes_BN4, labels_BN)
        for layer, image in zip(self.layers, self._image(proposals), strict=True):
            x_BNE = layer(x_BNE, image)
        return self.norm(x_BNE)

    def log_weights(self, states_BNE: Tensor, overlap_BNC: Tensor, proposals: Proposals) -> Tensor:
        """Log-weights of the mixture (B, N, C + 1), before any token of the object.

        Args:
            states_BNE: of the decoder; B images.
            overlap_BNC: of each proposal with the objects so far, see `overlaps`.
            proposals: of the images.
        """
        return self._log_weights(states_BNE, overlap_BNC, self._read_proposals(proposals))

    def own_boxes(self, states_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's own box at each state, and the spread of its sides, as in `Proposals`."""
        box_BN4, spread_BN4 = self.own_box(states_BNE).float().chunk(2, -1)
        return cxcywh_to_xyxy(box_BN4.sigmoid()), spread_BN4.exp() + LEAST_SPREAD

    def class_log_probs(self, states_BNE: Tensor, overlap_BNC: Tensor, proposals: Proposals) -> Tensor:
        """Log-probabilities of noise, then of each class, in each component, (B, N, C + 1, K + 1)."""
        return self._class_log_probs(states_BNE, overlap_BNC, self._read_proposals(proposals))

    def forward(self, tokens_BL: Tensor, proposals: Proposals) -> Tensor:
        """Logits (B, L, V) of what follows each token of whole sequences; consecutive rows may belong to one image."""
        rows, length = tokens_BL.shape
        objects, images = -(-length // SLOTS), len(proposals.states_BCE)
        tokens_BNS = F.pad(tokens_BL[:, 1:], (0, objects * SLOTS - length + 1)).unflatten(1, (objects, SLOTS))
        boxes_BN4, labels_BN = self._read(tokens_BNS[:, :-1], proposals.vocabulary)
        states_BNE = self.states(boxes_BN4, labels_BN, proposals).reshape(images, -1, self.start_embedding.shape[0])
        overlap_BNC = overlaps(boxes_BN4, proposals.boxes_BC4).reshape(images, -1, proposals.boxes_BC4.shape[1])
        readings, tokens_BNS = self._read_proposals(proposals), tokens_BNS.reshape(images, -1, SLOTS)
        each = CurrentObject(
            tokens_BNS[..., :0], states_BNE, overlap_BNC, self._log_weights(states_BNE, overlap_BNC, readings),
            self._sides(states_BNE, _tables(proposals), proposals.vocabulary),
        )  # fmt: skip
        logits = [self._logits(each, readings)]
        for slot in range(CLASS_SLOT):
            each.add(tokens_BNS[..., slot])
            logits.append(self._logits(each, readings))
        return torch.stack(logits, 2).reshape(rows, objects * SLOTS, -1)[:, :length]

    def start(self, memory: Proposals, length: int, per_image: int = 1) -> KVCache:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        cache = KVCache.empty(self._image(memory), -(-length // SLOTS), per_image)
        zeros = memory.boxes_BC4.new_zeros
        return ProposalCache(
            cache.sequence, cache.image, readings=self._read_proposals(memory), tables=_tables(memory),
            vocabulary=memory.vocabulary, last_B4=zeros(cache.rows, CLASS_SLOT, dtype=torch.int64),
            overlap_BC=zeros(cache.rows, memory.boxes_BC4.shape[1]), per_image=per_image,
        )  # fmt: skip

    def step(self, tokens_BL: Tensor, positions_L: Tensor, cache: KVCache, slot: int = 0) -> Tensor:
        """See `boxwright.models.sequence.generation.StepDecoder`."""
        assert isinstance(cache, ProposalCache)
        if tokens_BL.shape[1] == 1:
            return self._step(tokens_BL[:, 0], positions_L, cache, slot)
        assert slot == CLASS_SLOT, "given objects are whole, but for the class of the last one"
        self._begin_with(tokens_BL[:, 1 : 1 - SLOTS], cache)
        last = range(-SLOTS, 0)
        return [self._step(tokens_BL[:, n], positions_L[n, None], cache, n + SLOTS) for n in last][-1]

    def _begin_with(self, tokens_BL: Tensor, cache: ProposalCache) -> None:
        """Whole objects that come before all others; the last one is embedded by the next step."""
        tokens_BNS = tokens_BL.unflatten(1, (-1, SLOTS))
        if not tokens_BNS.shape[1]:
            return
        boxes_BN4, labels_BN = self._read(tokens_BNS[:, :-1], cache.vocabulary)
        self._attend(self._embed_objects(boxes_BN4, labels_BN), torch.arange(tokens_BNS.shape[1]), cache)
        cache.overlap_BC.copy_(overlaps(boxes_BN4, cache.readings.boxes_BC4)[:, -1])
        cache.last_B4.copy_(tokens_BNS[:, -1, :CLASS_SLOT])

    def _step(self, token_B: Tensor, position_1: Tensor, cache: ProposalCache, slot: int) -> Tensor:
        """Logits (B, V) behind one token; `slot` is that of the next one."""
        if slot == 0:
            cache.current[:] = [self._begin_object(token_B, position_1 // SLOTS, cache)]
        (current,) = cache.current
        if slot > 0:
            current.add(token_B.view(-1, cache.per_image))
        if slot == CLASS_SLOT:
            cache.last_B4.copy_(current.tokens_BNS.flatten(0, 1))
        return self._logits(current, cache.readings).flatten(0, 1)

    def _begin_object(self, class_B: Tensor, number_1: Tensor, cache: ProposalCache) -> CurrentObject:
        """The object of this number, counted from 0, behind the class of the one before it."""
        tokens_B1S, count = torch.cat([cache.last_B4, class_B[:, None]], 1)[:, None], cache.per_image
        boxes_B14, labels_B1 = self._read(tokens_B1S, cache.vocabulary)
        x_B1E = torch.where(number_1 > 0, self._embed(boxes_B14, labels_B1), self.start_embedding)
        states_BNE = self._attend(x_B1E, number_1, cache).view(-1, count, x_B1E.shape[-1])
        new_BNC = iou(boxes_B14.view(-1, count, 1, 4), cache.readings.boxes_BC4[:, None]) * (number_1 > 0)
        overlap_BNC = cache.overlap_BC.view(-1, count, cache.overlap_BC.shape[1]) + new_BNC.square()
        cache.overlap_BC.copy_(overlap_BNC.flatten(0, 1))
        return CurrentObject(
            tokens_B1S.view(-1, count, SLOTS)[..., :0], states_BNE, overlap_BNC,
            self._log_weights(states_BNE, overlap_BNC, cache.readings),
            self._sides(states_BNE, cache.tables, cache.vocabulary),
        )  # fmt: skip

    def _attend(self, x_BNE: Tensor, positions_N: Tensor, cache: ProposalCache) -> Tensor:
        step = cache.step_positions(positions_N.to(x_BNE.device))
        for layer, sequence, image in zip(self.layers, cache.sequence, cache.image, strict=True):
            x_BNE = layer(x_BNE, image, sequence, step)
        return self.norm(x_BNE)

    def _image(self, proposals: Proposals) -> Iterator[KeysValues]:
        """Keys and values of the proposals for each layer."""
        return (layer.cross_attention.keys_values(proposals.states_BCE) for layer in self.layers)  # type: ignore[union-attr,operator]

    def _embed_objects(self, boxes_BN4: Tensor, labels_BN: Tensor) -> Tensor:
        """The start, then the objects, (B, N + 1, E)."""
        start_B1E = self.start_embedding.expand(len(boxes_BN4), 1, -1)
        return torch.cat([start_B1E, self._embed(boxes_BN4, labels_BN)], 1)

    def _embed(self, boxes_BN4: Tensor, labels_BN: Tensor) -> Tensor:
        dim = self.start_embedding.shape[0]
        encoded = box_encoding(xyxy_to_cxcywh(boxes_BN4), dim).to(self.place.weight.dtype)
        return self.place(encoded) + self.class_embedding[labels_BN]

    def _read(self, tokens_BNS: Tensor, vocabulary: Any) -> tuple[Tensor, Tensor]:
        """Boxes and labels of objects; the label K stands for noise, and for any other token."""
        classes = self.class_embedding.shape[0] - 1
        ids_K = vocabulary.class_tokens(torch.arange(classes, device=tokens_BNS.device))
        same_BNK = tokens_BNS[..., CLASS_SLOT, None] == ids_K
        labels_BN = torch.where(same_BNK.any(-1), same_BNK.long().argmax(-1), classes)
        return vocabulary.boxes(tokens_BNS[..., :CLASS_SLOT]), labels_BN

    def _read_proposals(self, proposals: Proposals) -> ProposalReadings:
        states_BCE, logits_BCK = proposals.states_BCE, proposals.logits_BCK
        prior_BC = self.prior * F.logsigmoid(logits_BCK.amax(-1))
        keys_BCE, hidden_BCH = self.point_key(states_BCE), self.from_proposal(states_BCE)
        return ProposalReadings(proposals.boxes_BC4, logits_BCK, prior_BC, keys_BCE, hidden_BCH)

    def _log_weights(self, states_BNE: Tensor, overlap_BNC: Tensor, readings: ProposalReadings) -> Tensor:
        """See `log_weights`."""
        match_BNC = self.point_query(states_BNE) @ readings.keys_BCE.mT / states_BNE.shape[-1] ** 0.5
        logits_BNC = readings.prior_BC[:, None] - self.apart * overlap_BNC + match_BNC.float()
        gate_BN1 = self.gate(states_BNE).float()
        return torch.cat([logits_BNC.log_softmax(-1) + F.logsigmoid(-gate_BN1), F.logsigmoid(gate_BN1)], -1)

    def _class_log_probs(self, states_BNE: Tensor, overlap_BNC: Tensor, readings: ProposalReadings) -> Tensor:
        """See `class_log_probs`."""
        hidden_BNCH = self.from_state(states_BNE)[:, :, None] + readings.hidden_BCH[:, None]
        hidden_BNCH = hidden_BNCH + self.from_overlap * overlap_BNC[..., None].to(hidden_BNCH.dtype)
        logits_BNCK = readings.logits_BCK[:, None] + self.rescore(hidden_BNCH.relu()).float()
        logits_BNCK = logits_BNCK - self.lowered * overlap_BNC[..., None]
        own_BN1K = self.own_class(states_BNE).float()[:, :, None]
        return F.pad(torch.cat([logits_BNCK, own_BN1K], 2), (1, 0)).log_softmax(-1)

    def _sides(self, states_BNE: Tensor, tables: SideTables, vocabulary: Any) -> Sides:
        boxes, spreads = (x.reshape(-1, 1, 4) for x in self.own_boxes(states_BNE))
        return Sides(tables, side_tables(boxes, spreads, vocabulary.edges(boxes.device)), vocabulary)

    def _logits(self, current: CurrentObject, readings: ProposalReadings) -> Tensor:
        """Logits (B, N, V) of the next token of the object."""
        slot, vocabulary = current.tokens_BNS.shape[-1], current.sides.vocabulary
        if slot < CLASS_SLOT:
            return current.sides.coordinate_logits(slot, current.log_weights_BNC, current.tokens_BNS)
        classes_BNCK = self._class_log_probs(current.states_BNE, current.overlap_BNC, readings)
        ids_K = vocabulary.class_tokens(torch.arange(classes_BNCK.shape[-1] - 1, device=classes_BNCK.device))
        return class_logits(current.log_weights_BNC, classes_BNCK, ids_K, vocabulary.size)


def _tables(proposals: Proposals) -> SideTables:
    boxes_BC4 = proposals.boxes_BC4
    return side_tables(boxes_BC4, proposals.spreads_BC4, proposals.vocabulary.edges(boxes_BC4.device))


def overlaps(written_BN4: Tensor, boxes_BC4: Tensor) -> Tensor:
    """How much of each proposal the first 0, 1... N objects cover, (B, N + 1, C): the sum of their squared IoUs.

    The sum, not the largest: as in Soft-NMS, what has been written twice is the less likely to come a third time.

    Args:
        written_BN4: the objects in order, xyxy; consecutive rows may belong to one image.
        boxes_BC4: the proposals of each image.
    """
    boxes_BC4 = boxes_BC4.repeat_interleave(len(written_BN4) // len(boxes_BC4), 0)
    each_BNC = iou(written_BN4[:, :, None], boxes_BC4[:, None]).square()
    nothing_B1C = torch.zeros_like(boxes_BC4[:, None, :, 0])
    return torch.cat([nothing_B1C, each_BNC], 1).cumsum(1)
