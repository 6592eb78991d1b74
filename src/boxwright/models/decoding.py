"""The network that writes sentences, and the one engine that lets it write.

After each word a writer gives the scores of all words of its vocabulary for the next one. Training reads whole given
sentences at once (`Writer.forward`); `write` makes one word after the other, and keeps the keys and values of every
layer, so that no word is ever computed twice. Both give the same scores.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxwright.models.attention import DecoderBlock, KeysValues, norm


class Sampling(NamedTuple):
    """How a word is chosen from its scores.

    Attributes:
        top_p: 0 takes the most probable word (greedy). Otherwise the nucleus of google-research/pix2seq: the most
            probable words that together stay within `top_p`, and always the first (its default is 0.4).
        temperature: scores are divided by it before choosing.
        seed: of the draws; the same seed writes the same sentences.
    """

    top_p: float = 0.0
    temperature: float = 1.0
    seed: int = 0


class Written(NamedTuple):
    """Sentences and, for the last slot of every phrase, the scores of all words as the writer gave them."""

    tokens_BL: Tensor
    logits_BNV: Tensor


class State(NamedTuple):
    """Room for the keys and values of a whole sentence, and those of the image, for each layer."""

    words: list[KeysValues]
    image: list[KeysValues]


class Writer(nn.Module):
    """An autoregressive decoder: learned positions, one table for reading and scoring words.

    Args:
        words: ids in the vocabulary.
        length: the longest sentence.
        layers: number of blocks.
        dim, hidden, heads, dropout, drop_path: of each block.
    """

    def __init__(
        self, words: int, length: int, layers: int, dim: int, hidden: int, heads: int, dropout: float, drop_path: float
    ):
        super().__init__()
        self.token_embedding = nn.Parameter(table(words, dim))
        self.position_embedding = nn.Parameter(table(length, dim))
        self.layers = nn.ModuleList(DecoderBlock(dim, hidden, heads, dropout, drop_path) for _ in range(layers))
        self.norm = norm(dim)
        self.output_bias = nn.Parameter(table(words, 1)[:, 0])

    def forward(self, tokens_BL: Tensor, memory_BME: Tensor) -> Tensor:
        """Scores (B, L, V) of the word after each word of given sentences.

        Args:
            tokens_BL: what is read; several consecutive rows may belong to one image.
            memory_BME: the encoded images.
        """
        x_BLE = self._embed(tokens_BL, 0)
        for layer, image in zip(self.layers, self._look(memory_BME), strict=True):
            x_BLE = layer(x_BLE, image)
        return self._scores(x_BLE)

    def begin(self, memory_BME: Tensor, length: int) -> State:
        """An empty state for sentences of this length."""
        image = self._look(memory_BME)
        shape = (*image[0].keys_BHLE.shape[:2], length, image[0].keys_BHLE.shape[3])
        return State([KeysValues(memory_BME.new_empty(shape), memory_BME.new_empty(shape)) for _ in image], image)

    def read(self, tokens_BL: Tensor, start: int, state: State) -> Tensor:
        """Scores (B, V) of the word after the given ones, which stand from `start` on; they are added to the state."""
        x_BLE = self._embed(tokens_BL, start)
        for layer, words, image in zip(self.layers, state.words, state.image, strict=True):
            x_BLE = layer(x_BLE, image, words, start)
        return self._scores(x_BLE[:, -1])

    def _look(self, memory_BME: Tensor) -> list[KeysValues]:
        """The image's keys and values for each layer."""
        return [layer.cross_attention.look(memory_BME) for layer in self.layers]  # type: ignore[union-attr,operator]

    def _embed(self, tokens_BL: Tensor, start: int) -> Tensor:
        return self.token_embedding[tokens_BL] + self.position_embedding[start : start + tokens_BL.shape[1]]

    def _scores(self, x: Tensor) -> Tensor:
        return (self.norm(x) @ self.token_embedding.T + self.output_bias).float()


def write(
    writer: Writer, memory_BME: Tensor, prompt: int, phrases: int, slots_SV: Tensor, sampling: Sampling
) -> Written:
    """Write sentences of a fixed number of phrases, without waiting for the device between two words.

    Args:
        writer: in evaluation mode.
        memory_BME: the encoded images.
        prompt: the word every sentence starts from; it is not part of the result.
        phrases: phrases (objects) in a sentence.
        slots_SV: which words each of the S slots of a phrase may hold, bool: the grammar.
        sampling: how to choose.
    """
    slots, length = len(slots_SV), phrases * len(slots_SV)
    state = writer.begin(memory_BME, length)
    dice = torch.Generator(memory_BME.device).manual_seed(sampling.seed)
    tokens_BL = torch.empty(len(memory_BME), length + 1, dtype=torch.long, device=memory_BME.device).fill_(prompt)
    scores = []
    for position in range(length):
        logits_BV = writer.read(tokens_BL[:, position : position + 1], position, state)
        slot = position % slots
        tokens_BL[:, position + 1] = choose(logits_BV.masked_fill(~slots_SV[slot], -torch.inf), sampling, dice)
        if slot == slots - 1:
            scores.append(logits_BV)
    return Written(tokens_BL[:, 1:], torch.stack(scores, 1))


def choose(logits_BV: Tensor, sampling: Sampling, dice: torch.Generator) -> Tensor:
    """One word a row, (B,)."""
    if sampling.top_p == 0:
        return logits_BV.argmax(-1)
    kept_BV = nucleus(logits_BV / sampling.temperature, sampling.top_p)
    waiting_BV = torch.empty_like(kept_BV).exponential_(generator=dice)  # the first of exponential clocks, by its rate
    return (kept_BV - waiting_BV.log()).argmax(-1)


def nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Scores with all words outside the nucleus at -inf.

    The rule of google-research/pix2seq: the most probable words whose probabilities, the word's own included, add up
    to at most `top_p`, and always the most probable one. (The usual rule keeps one word more.)
    """
    sorted_BV = logits_BV.sort(-1, descending=True).values
    count_B1 = (sorted_BV.softmax(-1).cumsum(-1) <= top_p).sum(-1, keepdim=True).clamp(min=1)
    return logits_BV.masked_fill(logits_BV < sorted_BV.gather(-1, count_B1 - 1), -torch.inf)


def table(rows: int, dim: int) -> Tensor:
    """Initial values of an embedding table: normal with deviation 0.02, cut at two deviations."""
    return nn.init.trunc_normal_(torch.empty(rows, dim), std=0.02, a=-0.04, b=0.04)
