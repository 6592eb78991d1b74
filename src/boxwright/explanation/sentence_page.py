"""How a detector that writes came to its sentence, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from boxwright.explanation import html_parts
from boxwright.explanation.generation_trace import SLOTS, Sentence
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
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(note)}</p>",
        _overview(photo, sentence, best),
        "<h2>The sentence</h2>",
        _whole(photo, sentence, best),
        "<h2>The best objects, word by word</h2>" if best else "",
        *(_card(photo, sentence, n) for n in best),
    ]
    html.write(file, title, parts, html_parts.STYLE + _STYLE)


def _overview(photo: Image.Image, sentence: Sentence, best: Sequence[int]) -> str:
    """The image with the best objects, and the sentence in numbers."""
    found = sentence.found
    texts = [f"{n + 1} {found.names[found.labels_N[n]]}" for n in best]
    picture = images.draw_named(photo, found.boxes_N4[best], texts, found.labels_N[best].tolist())
    words = sentence.tokens_N5.size
    tiles = [
        (str(len(sentence)), "objects written", f"{words} words"),
        (str(int((found.scores_N > html_parts.SURE).sum())), "of them sure", f"score over {html_parts.SURE:.2f}"),
        (f"{sentence.log_likelihood:.1f}", "log-likelihood", "of the whole sentence, in nats"),
        (f"{sentence.log_likelihood / max(words, 1):.2f}", "a word", "log-likelihood, mean over the words"),
    ]
    caption = f"The best {len(best)} objects; numbers count them as they were written."
    return html_parts.overview(picture, caption, tiles, _ABOUT)


def _whole(photo: Image.Image, sentence: Sentence, best: Sequence[int]) -> str:
    """Every object of the sentence in a line of its own; the lines stand beside each other where there is room."""
    likelihoods_N5 = sentence.likelihoods()
    lines = []
    for n in range(len(sentence)):
        score = sentence.found.scores_N[n]
        number = f'<a href="#object-{n + 1}">{n + 1}</a>' if n in best else f"<span>{n + 1}</span>"
        words = "".join(_word(photo, sentence, n, slot, float(likelihoods_N5[n, slot])) for slot in range(len(SLOTS)))
        kind = "object" if score > html_parts.SURE else "object faint"
        shade = html_parts.shade(sentence.found.labels_N[n])
        lines.append(f'<div class="{kind}" {shade}>{number}{words}<b>{score:.2f}</b></div>')
    head = "".join(f"<span>{name}</span>" for name in ("", *SLOTS, "score"))
    heads = f'<div class="object head">{head}</div>' * 3  # one a column; the style hides those that are too many
    if sentence.end is not None:
        lines.append(f'<p class="end">The end, with a probability of {_short(sentence.end)}.</p>')
    return f'<section class="sentence">{heads}{"".join(lines)}</section>'


def _word(photo: Image.Image, sentence: Sentence, n: int, slot: int, likelihood: float) -> str:
    """A word, shaded by its probability; what else it might have been appears when one points at it."""
    said = escape(sentence.words[sentence.tokens_N5[n, slot]])
    title = f"<em>{SLOTS[slot]} = {said}{_meaning(photo, sentence, n, slot)}</em>"
    return (
        f'<span class="word" tabindex="0" style="--p:{likelihood:.3f}"><i>{said}</i>'
        f"<small>{_short(likelihood)}</small>"
        f'<span class="tip">{title}{_bars(sentence, n, slot, LIKELIEST)}</span></span>'
    )


def _bars(sentence: Sentence, n: int, slot: int, most: int) -> str:
    """The likeliest words at a place, and in bold the one that was written; what grammar forbids is struck out."""
    written, rows = int(sentence.tokens_N5[n, slot]), []
    likeliest = sentence.likeliest(n, slot, most)
    for token in likeliest + [written] * (written not in likeliest):
        probability = float(sentence.probabilities_N5V[n, slot, token])
        name = escape(sentence.words[token])
        if token == written:
            name = f"<strong>{name}</strong>"
        elif probability < FAINTEST:
            continue
        elif not sentence.allowed_N5V[n, slot, token]:
            name = f"<s>{name}</s>"
        rows.append(f'<span style="--p:{probability:.3f}">{name} <b>{_short(probability)}</b></span>')
    return f'<span class="bars">{"".join(rows)}</span>'


def _card(photo: Image.Image, sentence: Sentence, n: int) -> str:
    """One object: each word's heat map and likeliest words, where the decoder looked, and both corners."""
    found = sentence.found
    name, score = escape(found.names[found.labels_N[n]]), found.scores_N[n]
    small, large = html_parts.reduced(photo, _SMALL), html_parts.reduced(photo, _LARGE)
    columns = []
    for slot, slot_name in enumerate(SLOTS):
        word = escape(sentence.words[sentence.tokens_N5[n, slot]])
        looked = html_parts.picture(
            attention_picture(small, sentence, n, slot), f"object {n + 1}: attention at {slot_name}"
        )
        if slot == len(SLOTS) - 1:
            heat = _bars(sentence, n, slot, LIKELIEST)
        else:
            heat = html_parts.picture(place_picture(small, sentence, n, slot), f"object {n + 1}: {slot_name}")
            heat += _bars(sentence, n, slot, 3)
        meaning = _meaning(photo, sentence, n, slot)
        columns.append(f'<div class="slot"><h4>{slot_name} = {word}<small>{meaning}</small></h4>{heat}{looked}</div>')
        if slot in (1, 3):
            corner = "upper left" if slot == 1 else "lower right"
            picture = html_parts.picture(corner_picture(large, sentence, n, slot), f"object {n + 1}: {corner} corner")
            columns.append(f'<div class="slot corner"><h4>{corner} corner</h4>{picture}</div>')
    title = f"<h3><span>{n + 1}</span> {name} <b>{score:.2f}</b></h3>"
    body = f"{title}<div>{''.join(columns)}</div>"
    return f'<section class="card" id="object-{n + 1}" {html_parts.shade(sentence.found.labels_N[n])}>{body}</section>'


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


def _short(probability: float) -> str:
    return f"{probability:.2f}"


_ABOUT = f"""<p><b>The sentence</b> has five words for each object: its upper left corner and its lower right
corner, each y before x, then its class. Beside a word, and as its shade, stands its probability among all words of the
vocabulary, given those written before it. Point at a word to see what else it might have been; words that grammar
forbids at this place are struck out. The score of an object is that of its likeliest class, whichever word was written;
up to {html_parts.SURE:.2f}, the object is dim.</p>
<p><b>The pictures</b> below follow the words from left to right. Upper row: how probable each coordinate is, among
those that grammar allows, as rows or columns of heat, with arrows at the one that was written. Large: the product of
both, which is where the corner may lie, with a ring around the one written. Lower row: where the decoder looked in the
image when it chose the word (attention, mean over all layers and heads). The greatest value of each picture is
brightest; coordinates are shown by the square root of their probability, smeared a little, so that faint and narrow
ones can be seen. Click to enlarge.</p>"""
_STYLE = """
.sentence { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .3rem 1rem;
  font-variant-numeric: tabular-nums; }
.end { grid-column: 1 / -1; }
.object { display: grid;
  grid-template-columns: 2.2rem repeat(4, minmax(4.4rem, 1fr)) minmax(0, 1.7fr) 2.8rem;
  gap: .2rem; align-items: center; }
.object > :first-child { text-align: right; padding-right: .3rem; color: var(--dim); }
.object > a { color: inherit; font-weight: 700; } .object > b { text-align: right; }
.head { color: var(--dim); font-size: .8rem; } .head span:last-child { text-align: right; }
.word { position: relative; padding: .1rem .3rem; border-radius: 6px; border: 1px solid var(--line); cursor: default;
  background: color-mix(in srgb, var(--bar) calc(var(--p) * 100%), var(--card)); white-space: nowrap; min-width: 0;
  display: flex; justify-content: space-between; align-items: baseline; gap: .2rem; }
.word i { font-style: normal; overflow: hidden; text-overflow: ellipsis; }
.word small { color: var(--dim); font-size: .7rem; }
.object .word:nth-child(6) { border-left: 4px solid var(--shade); }
.faint { --ink: var(--dim); color: var(--dim); } .faint .word { background: none; }
.faint .word:nth-child(6) { border-left-color: var(--line); }
.tip { display: none; position: absolute; z-index: 2; top: calc(100% + 4px); left: 0; width: 12rem;
  padding: .5rem .6rem; background: var(--card); color: var(--ink); border: 1px solid var(--line); border-radius: 8px;
  white-space: normal; box-shadow: 0 6px 24px #0004; font-size: .85rem; }
.tip em { font-style: normal; font-weight: 600; display: block; margin-bottom: .3rem; overflow-wrap: anywhere; }
.word:hover .tip, .word:focus .tip { display: block; }
.word:nth-child(n + 5) .tip { left: auto; right: 0; }
.bars { display: grid; gap: 2px; font-size: .8rem; font-variant-numeric: tabular-nums; }
.bars span { display: flex; justify-content: space-between; gap: .4rem; padding: 0 .3rem; border-radius: 3px;
  background: linear-gradient(to right, var(--bar) calc(var(--p) * 100%), transparent 0); overflow-wrap: anywhere; }
.bars b { font-weight: 400; } .bars s { color: var(--dim); }
.card > div { display: grid; grid-template-columns: 1fr 1fr 2.7fr 1fr 1fr 2.7fr 1fr; gap: .6rem; }
@media (max-width: 1400px) {
  .sentence { grid-template-columns: repeat(2, minmax(0, 1fr)); } .head:nth-child(3) { display: none; }
}
@media (max-width: 1120px) {
  .sentence { grid-template-columns: minmax(0, 1fr); } .head:nth-child(2) { display: none; }
  .card > div { grid-template-columns: 1fr 1fr 2.7fr; }
}
@media (max-width: 480px) {
  .object { grid-template-columns: 1.6rem repeat(4, 2.8rem) minmax(0, 1fr) 2.6rem; } .word > small { display: none; }
}
"""
