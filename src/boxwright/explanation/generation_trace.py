"""How a sentence came about: what else the decoder might have written at each place, and where it looked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.models.pix2seq import OBJECT_TOKENS, Pix2Seq
from boxwright.models.sequence.decoder import SequenceDecoder
from boxwright.models.sequence.token_constraints import TokenConstraints
from boxwright.models.sequence.vocabulary import NOISE, PAD, PROMPT
from boxwright.types import Batch, Detections

SLOTS = ("y1", "x1", "y2", "x2", "class")


@dataclass
class Sentence:
    """The sentence of one image: N objects of 5 words in the order they were written; V ids, R coordinates.

    Attributes:
        tokens_N5: the ids.
        probabilities_N5V: of every id at each place, when all words before it were written; 1 in sum.
        allowed_N5V: whether grammar let the word stand there, after those written before it.
        places_N4R: the probability of every coordinate at the coordinates' places among those allowed; 1 in sum.
        chosen_N4: y1, x1, y2, x2 as they were written, in [0, 1] of the canvas.
        attention_N5HW: the share that each cell of the canvas had of the decoder's attention when it chose the word:
            mean over the layers and their heads, 1 in sum (less where a cls token takes some).
        part_2: height and width of the part of the canvas that is image, in (0, 1].
        end: the probability of the word that ended it; None if it was written to its full length.
        found: the objects, in pixels of the original image, in the order written.
        words: how each id is spelt.
    """

    tokens_N5: np.ndarray
    probabilities_N5V: np.ndarray
    allowed_N5V: np.ndarray
    places_N4R: np.ndarray
    chosen_N4: np.ndarray
    attention_N5HW: np.ndarray
    part_2: tuple[float, float]
    end: float | None
    found: Detections
    words: list[str]

    def __len__(self) -> int:
        return len(self.tokens_N5)

    def likelihoods(self) -> np.ndarray:
        """The probability of each word that was written, (N, 5)."""
        return np.take_along_axis(self.probabilities_N5V, self.tokens_N5[..., None], -1)[..., 0]

    @property
    def log_likelihood(self) -> float:
        """The natural logarithm of the sentence's probability, the end included."""
        words = np.append(self.likelihoods(), 1.0 if self.end is None else self.end)
        return float(np.log(words.clip(1e-30)).sum())

    def box(self, position: int) -> tuple[float, float, float, float]:
        """The box as it was written, xyxy in fractions of the image."""
        y1, x1, y2, x2 = (self.chosen_N4[position] / np.array(self.part_2 * 2)).tolist()
        return x1, y1, x2, y2

    def best(self, most: int) -> list[int]:
        """The positions of up to `most` objects, best score first."""
        return np.argsort(-self.found.scores_N, kind="stable")[:most].tolist()

    def likeliest(self, position: int, slot: int, most: int) -> list[int]:
        """The most probable ids at a place."""
        return np.argsort(-self.probabilities_N5V[position, slot], kind="stable")[:most].tolist()


@torch.no_grad()
def write_sentences(detector: Pix2Seq, batch: Batch, objects: int | None = None) -> list[Sentence]:
    """Let the detector write, as its settings have it, then read each sentence once more and watch.

    Args:
        detector: in evaluation mode, on the device of the batch.
        batch: of images; boxes are not looked at.
        objects: how many objects to write, by default all that a sentence holds.
    """
    memory_BME = detector(batch.images_BCHW, batch.sizes_B2)
    said = detector.generate(memory_BME, objects)
    found = detector.to_predictions(said).to_detections(batch, detector.names, threshold=-1)
    read_BL = F.pad(said.tokens_BL[:, :-1], (1, 0), value=PROMPT)
    logits_BLV, attention_BLM = read_again(detector.decoder, read_BL, memory_BME)
    part_B2 = batch.sizes_B2 / torch.tensor(batch.images_BCHW.shape[-2:], device=batch.sizes_B2.device)
    words = spelling(detector)
    return [
        _sentence(detector, tokens_L, logits_LV, attention_LM, part_2, objects_found, words)
        for tokens_L, logits_LV, attention_LM, part_2, objects_found in zip(
            said.tokens_BL, logits_BLV, attention_BLM, part_B2.tolist(), found, strict=True
        )
    ]


def _sentence(
    detector: Pix2Seq,
    tokens_L: Tensor,
    logits_LV: Tensor,
    attention_LM: Tensor,
    part_2: list[float],
    found: Detections,
    words: list[str],
) -> Sentence:
    """What one row of the batch comes to, up to the object in which the sentence ends."""
    vocabulary, side = detector.vocabulary(), math.isqrt(attention_LM.shape[-1])
    cells_N5HW = attention_LM[:, -side * side :].unflatten(-1, (side, side)).unflatten(0, (-1, OBJECT_TOKENS))
    tokens_N5, logits_N5V = tokens_L.unflatten(0, (-1, OBJECT_TOKENS)), logits_LV.unflatten(0, (-1, OBJECT_TOKENS))
    coordinates = slice(vocabulary.first_coordinate, vocabulary.first_coordinate + vocabulary.bins)
    ends = (tokens_L == PAD).nonzero().flatten().tolist() if detector.config.sampling.may_end else []
    n = ends[0] // OBJECT_TOKENS if ends else len(tokens_N5)
    allowed_N5V = _allowed(detector.token_constraints(), tokens_N5[:n])
    places_N4R = logits_N5V[:n, :4, coordinates].masked_fill(~allowed_N5V[:, :4, coordinates], -torch.inf).softmax(-1)
    return Sentence(
        tokens_N5=tokens_N5[:n].cpu().numpy(),
        probabilities_N5V=logits_N5V[:n].softmax(-1).cpu().numpy(),
        allowed_N5V=allowed_N5V.cpu().numpy(),
        places_N4R=places_N4R.cpu().numpy(),
        chosen_N4=vocabulary.boxes(tokens_N5[:n, :4])[:, [1, 0, 3, 2]].cpu().numpy(),
        attention_N5HW=cells_N5HW[:n].float().cpu().numpy(),
        part_2=(part_2[0], part_2[1]),
        end=float(logits_LV[ends[0]].softmax(-1)[PAD]) if ends else None,
        found=Detections(found.boxes_N4[:n], found.scores_N[:n], found.labels_N[:n], found.names),
        words=words,
    )


def _allowed(grammar: TokenConstraints, tokens_N5: Tensor) -> Tensor:
    """Which ids may stand at each place, (N, 5, V); the end is none of them."""
    ids_V = torch.arange(grammar.allowed_PV.shape[1], device=tokens_N5.device)
    allowed_N5V = grammar.allowed_PV.repeat(len(tokens_N5), 1, 1)
    for slot, low in enumerate(grammar.at_least):
        if low is not None:
            allowed_N5V[:, slot] &= ids_V >= tokens_N5[:, low, None]
    return allowed_N5V


def read_again(decoder: SequenceDecoder, read_BL: Tensor, memory_BME: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B, L, V) of what follows each word; attention to the image (B, L, M), mean over layers and heads."""
    seen: list[Tensor] = []
    attentions = [layer.cross_attention for layer in decoder.layers]
    hooks = [
        one.register_forward_pre_hook(lambda module, given: seen.append(module.weights(*given).mean(1)))  # type: ignore[union-attr,operator]
        for one in attentions
    ]
    try:
        logits_BLV = decoder(read_BL, memory_BME)
    finally:
        for hook in hooks:
            hook.remove()
    return logits_BLV, torch.stack(seen).mean(0)


def spelling(detector: Pix2Seq) -> list[str]:
    """Each id of the vocabulary as it is shown: coordinates as numbers, classes by name."""
    vocabulary = detector.vocabulary()
    words = [f"#{token}" for token in range(vocabulary.size)]
    words[PAD], words[PROMPT], words[NOISE] = "end", ">", "noise"
    for place in range(vocabulary.bins):
        words[vocabulary.first_coordinate + place] = str(place)
    for label, name in enumerate(detector.names):
        words[int(vocabulary.class_tokens(torch.tensor(label)))] = name
    return words
