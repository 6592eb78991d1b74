"""How a detector that writes came to its sentence, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from boxwright.explanation.generation_trace import SLOTS, Sentence
from boxwright.explanation.html_parts import SURE, Picture, overview, resized
from boxwright.visualization import heatmaps, html, images

BEST = 8  # objects shown in detail
LIKELIEST, FAINTEST = 5, 0.005  # words shown for each place, besides the written one, and their least probability
_SMALL, _LARGE = 440, 720  # long sides of the pictures, in pixels


def write_page(file: Path, title: str, photo: Image.Image, sentence: Sentence, note: str) -> None:
    """Write the page of one sentence, whole or not at all.

    Args:
        file: the HTML file.
        title: its heading.
        photo: the image in its original size.
        sentence: what was written.
        note: a line under the heading.
    """
    best = sentence.best(BEST)
    drawn, tiles = _overview(photo, sentence, best)
    html.write_page(
        file,
        "explanation/sentence_page.html",
        title=title,
        note=note,
        image=drawn,
        tiles=tiles,
        sure=SURE,
        slot_names=SLOTS,
        objects=[_object(photo, sentence, n, n in best) for n in range(len(sentence))],
        end=sentence.end,
        cards=[_card(photo, sentence, n) for n in best],
    )


def _overview(
    photo: Image.Image, sentence: Sentence, best: Sequence[int]
) -> tuple[Picture, list[tuple[str, str, str]]]:
    """The image with the best objects, and the sentence in numbers: each with its name and meaning."""
    found = sentence.found
    texts = [f"{n + 1} {found.names[found.labels_N[n]]}" for n in best]
    drawn = images.draw_named(photo, found.boxes_N4[best], texts, found.labels_N[best].tolist())
    words = sentence.tokens_N5.size
    tiles = [
        (str(len(sentence)), "objects written", f"{words} words"),
        (str(int((found.scores_N > SURE).sum())), "of them sure", f"score over {SURE:.2f}"),
        (f"{sentence.log_likelihood:.1f}", "log-likelihood", "of the whole sentence, in nats"),
        (f"{sentence.log_likelihood / max(words, 1):.2f}", "a word", "log-likelihood, mean over the words"),
    ]
    return overview(drawn, f"The best {len(best)} objects; numbers count them as they were written."), tiles


def _object(photo: Image.Image, sentence: Sentence, n: int, detailed: bool) -> dict[str, Any]:
    """An object as a line of tokens."""
    label, score = int(sentence.found.labels_N[n]), float(sentence.found.scores_N[n])
    slots = [_slot(photo, sentence, n, slot, LIKELIEST) for slot in range(len(SLOTS))]
    return {"number": n + 1, "colour": images.colour(label), "score": score, "sure": score > SURE,
            "detailed": detailed, "slots": slots}  # fmt: skip


def _slot(photo: Image.Image, sentence: Sentence, n: int, slot: int, most: int) -> dict[str, Any]:
    """A token, what it means, and the likeliest tokens at its place."""
    token = int(sentence.tokens_N5[n, slot])
    return {
        "name": SLOTS[slot],
        "text": sentence.words[token],
        "meaning": _meaning(photo, sentence, n, slot),
        "probability": float(sentence.probabilities_N5V[n, slot, token]),
        "candidates": _candidates(sentence, n, slot, most),
    }


def _candidates(sentence: Sentence, n: int, slot: int, most: int) -> list[dict[str, Any]]:
    """The likeliest tokens at a place, and the one that was chosen."""
    chosen, likeliest = int(sentence.tokens_N5[n, slot]), sentence.likeliest(n, slot, most)
    probabilities_V, allowed_V = sentence.probabilities_N5V[n, slot], sentence.allowed_N5V[n, slot]
    return [
        {
            "text": sentence.words[token],
            "probability": float(probabilities_V[token]),
            "chosen": token == chosen,
            "allowed": bool(allowed_V[token]),
        }
        for token in likeliest + [chosen] * (chosen not in likeliest)
        if token == chosen or probabilities_V[token] >= FAINTEST
    ]


def _card(photo: Image.Image, sentence: Sentence, n: int) -> dict[str, Any]:
    """An object in detail: heat map and likeliest tokens of each place, attention, and both corners."""
    label = int(sentence.found.labels_N[n])
    small, large = resized(photo, _SMALL), resized(photo, _LARGE)
    slots = []
    for slot, name in enumerate(SLOTS):
        is_class = slot == len(SLOTS) - 1
        view = _slot(photo, sentence, n, slot, LIKELIEST if is_class else 3)
        attention = attention_picture(small, sentence, n, slot)
        view["attention"] = _picture(attention, f"object {n + 1}: attention at {name}")
        view["places"] = view["corner"] = None
        if not is_class:
            view["places"] = _picture(place_picture(small, sentence, n, slot), f"object {n + 1}: {name}")
        if slot in (1, 3):
            corner = "upper left corner" if slot == 1 else "lower right corner"
            drawn = corner_picture(large, sentence, n, slot)
            view["corner"] = _picture(drawn, f"object {n + 1}: {corner}", corner)
        slots.append(view)
    return {"number": n + 1, "colour": images.colour(label), "name": sentence.found.names[label],
            "score": float(sentence.found.scores_N[n]), "slots": slots}  # fmt: skip


def _picture(drawn: Image.Image, caption: str, title: str = "") -> Picture:
    return Picture(html.image_address(drawn), caption, title)


def place_picture(photo: Image.Image, sentence: Sentence, n: int, slot: int) -> Image.Image:
    """Where the coordinate of this slot may lie."""
    at = float(sentence.chosen_N4[n, slot])
    return heatmaps.place_heat(photo, sentence.places_N4R[n, slot], sentence.part_2, at, axis=slot % 2)


def corner_picture(photo: Image.Image, sentence: Sentence, n: int, slot: int) -> Image.Image:
    """Where the corner may lie whose x is in this slot; the lower right one is drawn with its box."""
    y_R, x_R = sentence.places_N4R[n, slot - 1 : slot + 1]
    y, x = sentence.chosen_N4[n, slot - 1 : slot + 1].tolist()
    return heatmaps.corner_heat(photo, y_R, x_R, sentence.part_2, (y, x), sentence.box(n) if slot == 3 else None)


def attention_picture(photo: Image.Image, sentence: Sentence, n: int, slot: int) -> Image.Image:
    """Where the decoder looked when it chose the word of this slot, and the box."""
    return heatmaps.attention_heat(photo, sentence.attention_N5HW[n, slot], sentence.part_2, sentence.box(n))


def _meaning(photo: Image.Image, sentence: Sentence, n: int, slot: int) -> str:
    """What a coordinate comes to in the image."""
    if slot == len(SLOTS) - 1:
        return ""
    axis = slot % 2
    return f" · {sentence.chosen_N4[n, slot] / sentence.part_2[axis] * photo.size[1 - axis]:.0f} px"
