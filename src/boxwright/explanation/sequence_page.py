"""The page that explains a sequence detector: every token with its alternatives, and attention token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from boxwright.drawing import colour, draw_named
from boxwright.explanation.copied_proposals import CopyTrace
from boxwright.explanation.generation_trace import GenerationTrace
from boxwright.explanation.html_parts import LIKELY, Picture, overview, resized
from boxwright.models.sequence.proposal_decoder import CLASS_SLOT
from boxwright.visualization import heatmaps, html

BEST = 8  # objects shown in detail
ALTERNATIVES, FAINTEST = 5, 0.005  # tokens shown for each position, and the least probability of one not chosen
FEW = 10  # objects that are not likely, and are listed at once
SOURCES = 4  # proposals shown for each token, its own among them
_SMALL, _LARGE = 440, 720  # long sides of the images, in pixels
_CLASS = CLASS_SLOT


@dataclass(frozen=True)
class _Candidate:
    """A token that might stand at a position, or a proposal that it might be copied from."""

    name: str
    probability: float
    chosen: bool
    allowed: bool


@dataclass(frozen=True)
class _Token:
    """A generated token; `pixels` is a coordinate's position in the image, and the pictures are those of a card.

    `sources` are the proposals in the picture `weights`, of a decoder that copies.
    """

    slot: str
    name: str
    pixels: str
    probability: float
    candidates: list[_Candidate]
    coordinate: Picture | None = None
    attention: Picture | None = None
    corner: Picture | None = None
    weights: Picture | None = None
    sources: Sequence[_Candidate] = ()


@dataclass(frozen=True)
class _Source:
    """What an object was copied from, and the weight of it and of the decoder's own box.

    Attributes:
        name: of a proposal, or of the own box.
        detail: the class and score of a proposal.
        before, given: the weight before the object, and given its box.
        own_before, own_given: the same of the own box; the gate.
    """

    name: str
    detail: str
    before: float
    given: float
    own_before: float
    own_given: float


@dataclass(frozen=True)
class _Object:
    """An object as a line of the sequence, or as a card; `detailed` if there is a card.

    `source` is what a decoder that copies has copied.
    """

    number: int
    name: str
    colour: str
    score: float
    tokens: list[_Token]
    detailed: bool = True
    source: _Source | None = None


def write_page(
    file: Path, title: str, photo: Image.Image, trace: GenerationTrace, note: str, command: str = ""
) -> None:
    """Write the page of one sequence, whole or not at all.

    Args:
        file: the HTML file.
        title: its heading.
        photo: the image in its original size.
        trace: how its sequence was generated.
        note: a line under the heading.
        command: that writes the page again.
    """
    best = trace.best(BEST)
    drawn, tiles = _overview(photo, trace, best)
    html.write_page(
        file,
        "explanation/sequence_page.html",
        command,
        title=title,
        note=note,
        image=drawn,
        tiles=tiles,
        threshold=LIKELY,
        slots=trace.slots,
        objects=[_line(photo, trace, n, n in best) for n in range(len(trace))],
        unlikely=int((trace.found.scores_N <= LIKELY).sum()),
        few=FEW,
        untrained=len(trace) > 0 and trace.end is None and not (trace.found.scores_N > LIKELY).any(),
        end=trace.end,
        copied=trace.copied is not None,
        patches=trace.patches is not None,
        cards=[_card(photo, trace, n) for n in best],
    )


def _overview(
    photo: Image.Image, trace: GenerationTrace, best: Sequence[int]
) -> tuple[Picture, list[tuple[str, str, str]]]:
    """The image with the best objects, and the sequence in numbers: each with its name and meaning."""
    found = trace.found
    texts = [f"{n + 1} {found.names[found.labels_N[n]]}" for n in best]
    drawn = draw_named(photo, found.boxes_N4[best], texts, found.labels_N[best].tolist())
    tokens = trace.tokens_N5.size
    tiles = [
        (str(len(trace)), "objects", f"{tokens} tokens"),
        (str(int((found.scores_N > LIKELY).sum())), "of them likely", f"score over {LIKELY:.2f}"),
        (f"{trace.log_likelihood:.1f}", "log-likelihood", "of the whole sequence, in nats"),
        (f"{trace.log_likelihood / max(tokens, 1):.2f}", "per token", "log-likelihood, mean over the tokens"),
    ]
    if trace.copied is not None:
        copied = int((trace.copied.gates() < 0.5).sum())
        tiles.append((str(copied), "copied", "from proposals; the others are boxes of the decoder's own"))
    return overview(drawn, f"The best {len(best)} objects; they are numbered in the order of generation."), tiles


def _line(photo: Image.Image, trace: GenerationTrace, n: int, detailed: bool) -> _Object:
    """An object in the list of all."""
    tokens = [_token(photo, trace, n, slot, ALTERNATIVES) for slot in range(len(trace.slots))]
    return _object(trace, n, tokens, detailed)


def _card(photo: Image.Image, trace: GenerationTrace, n: int) -> _Object:
    """An object in detail: coordinates and attention as heat maps, and both corners."""
    small, large = resized(photo, _SMALL), resized(photo, _LARGE)
    tokens = []
    for slot, name in enumerate(trace.slots):
        pictures = {}
        if trace.copied is not None:
            pictures["weights"] = _picture(source_picture(small, trace, n, slot), f"object {n + 1}: sources of {name}")
        if trace.copied is None or slot == _CLASS:  # a decoder that copies has the same attention for all tokens
            attention = attention_picture(small, trace, n, slot)
            pictures["attention"] = _picture(attention, f"object {n + 1}: attention at {name}")
        if slot != _CLASS and trace.patches is None:
            coordinate = coordinate_picture(small, trace, n, slot)
            pictures["coordinate"] = _picture(coordinate, f"object {n + 1}: {name}")
        if slot in (1, 3):
            corner = "upper left corner" if slot == 1 else "lower right corner"
            pictures["corner"] = _picture(corner_picture(large, trace, n, slot), f"object {n + 1}: {corner}", corner)
        tokens.append(_token(photo, trace, n, slot, ALTERNATIVES if slot == _CLASS else 3, **pictures))
    return _object(trace, n, tokens)


def _object(trace: GenerationTrace, n: int, tokens: list[_Token], detailed: bool = True) -> _Object:
    label, score = int(trace.found.labels_N[n]), float(trace.found.scores_N[n])
    source = None if trace.copied is None else _source(trace.copied, trace, n)
    return _Object(n + 1, trace.found.names[label], colour(label), score, tokens, detailed, source)


def _source(copied: CopyTrace, trace: GenerationTrace, n: int) -> _Source:
    at, own, (first_X, *_, last_X) = copied.source(n), copied.own, copied.weights_N5X[n]
    detail = "" if at == own else f"{trace.found.names[copied.labels_C[at]]} {copied.scores_C[at]:.2f}"
    return _Source(copied.name(at), detail, *(float(w_X[c]) for c in (at, own) for w_X in (first_X, last_X)))


def _sources(trace: GenerationTrace, n: int, slot: int) -> list[_Candidate]:
    """The heaviest sources of a token, and the one that the object was copied from."""
    copied = trace.copied
    if copied is None:
        return []
    chosen, heaviest, weights_X = copied.source(n), copied.heaviest(n, slot, SOURCES), copied.weights_N5X[n, slot]
    return [
        _Candidate(copied.name(at), float(weights_X[at]), at == chosen, True)
        for at in (heaviest if chosen in heaviest else [*heaviest[:-1], chosen])
        if at == chosen or weights_X[at] >= FAINTEST
    ]


def _token(photo: Image.Image, trace: GenerationTrace, n: int, slot: int, most: int, **pictures: Picture) -> _Token:
    """The token of a slot with up to `most` of the most probable ones."""
    token, name = int(trace.tokens_N5[n, slot]), trace.slots[slot]
    probability = float(trace.probabilities_N5V[n, slot, token])
    pixels = _pixels(photo, trace, n, slot)
    candidates, sources = _candidates(trace, n, slot, most), _sources(trace, n, slot)
    return _Token(name, trace.token_names[token], pixels, probability, candidates, **pictures, sources=sources)


def _candidates(trace: GenerationTrace, n: int, slot: int, most: int) -> list[_Candidate]:
    """The most probable tokens of a slot, and the chosen one."""
    chosen, most_probable = int(trace.tokens_N5[n, slot]), trace.most_probable(n, slot, most)
    probabilities_V, allowed_V = trace.probabilities_N5V[n, slot], trace.allowed_N5V[n, slot]
    return [
        _Candidate(trace.token_names[token], float(probabilities_V[token]), token == chosen, bool(allowed_V[token]))
        for token in most_probable + [chosen] * (chosen not in most_probable)
        if token == chosen or probabilities_V[token] >= FAINTEST
    ]


def _pixels(photo: Image.Image, trace: GenerationTrace, n: int, slot: int) -> str:
    """A coordinate in pixels of the image, or y and x of a corner behind its offset; nothing for other tokens."""
    if slot == _CLASS or trace.patches is not None:
        corner = slot in (1, 3) and trace.patches is not None
        return ", ".join(_side(photo, trace, n, side) for side in (slot - 1, slot)) + " px" if corner else ""
    return f"{_side(photo, trace, n, slot)} px"


def _side(photo: Image.Image, trace: GenerationTrace, n: int, slot: int) -> str:
    """The y1, x1, y2 or x2 of an object, in pixels of the image."""
    axis = slot % 2
    return f"{trace.corners_N4[n, slot] / trace.valid_2[axis] * photo.size[1 - axis]:.0f}"


def _picture(drawn: Image.Image, caption: str, title: str = "") -> Picture:
    return Picture(html.image_address(drawn), caption, title)


def coordinate_picture(photo: Image.Image, trace: GenerationTrace, n: int, slot: int) -> Image.Image:
    """The distribution of a coordinate over the image."""
    at = float(trace.corners_N4[n, slot])
    return heatmaps.coordinate_heat(photo, trace.coordinates_N4R[n, slot], trace.valid_2, at, axis=slot % 2)


def corner_picture(photo: Image.Image, trace: GenerationTrace, n: int, slot: int) -> Image.Image:
    """The distribution of the corner whose last token is in this slot; the lower right one is drawn with its box."""
    y, x = trace.corners_N4[n, slot - 1 : slot + 1].tolist()
    box, patches = trace.box(n) if slot == 3 else None, trace.patches
    if patches is not None:
        map_HW = patches.maps_N2HW[n, slot // 2]
        return heatmaps.patch_heat(photo, map_HW, patches.canvas_2, trace.valid_2, (y, x), box)
    y_R, x_R = trace.coordinates_N4R[n, slot - 1 : slot + 1]
    return heatmaps.corner_heat(photo, y_R, x_R, trace.valid_2, (y, x), box)


def attention_picture(photo: Image.Image, trace: GenerationTrace, n: int, slot: int) -> Image.Image:
    """The decoder's attention when it chose the token of this slot, and the box."""
    return heatmaps.attention_heat(photo, trace.attention_N5HW[n, slot], trace.valid_2, trace.box(n))


def source_picture(photo: Image.Image, trace: GenerationTrace, n: int, slot: int) -> Image.Image:
    """The boxes from which a decoder that copies has mixed the token of this slot, and the box."""
    assert trace.copied is not None
    boxes_X4 = trace.copied.boxes(n) / np.tile(trace.valid_2[::-1], 2)
    return heatmaps.box_heat(photo, boxes_X4, trace.copied.weights_N5X[n, slot], trace.box(n))
