"""What pages that explain have in common: an overview, cards, pictures that grow when they are clicked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from boxwright.visualization import html, images

SURE = 0.5  # objects with a score up to this are not counted as found


def overview(drawn: Image.Image, caption: str, tiles: Sequence[tuple[str, str, str]], about: str) -> str:
    """A large picture, beside it numbers (value, name, what it means) and how to read the page, as HTML."""
    drawn.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    cells = "".join(f"<div><b>{value}</b><span>{name}</span><small>{more}</small></div>" for value, name, more in tiles)
    return (
        f'<section class="overview"><figure>{picture(drawn, caption)}<figcaption>{escape(caption)}</figcaption>'
        f'</figure><div><div class="tiles">{cells}</div>{about}</div></section>'
    )


def shade(label: int) -> str:
    """The attribute that gives a card the colour of a class."""
    return f'style="--shade:{images.colour(int(label))}"'


def reduced(photo: Image.Image, longest: int) -> Image.Image:
    """The photograph with this long side, in pixels."""
    scale = longest / max(photo.size)
    return photo.resize((round(photo.width * scale) or 1, round(photo.height * scale) or 1), Image.Resampling.LANCZOS)


def picture(picture: Image.Image, caption: str) -> str:
    """A picture as HTML; it fills the window when it is clicked."""
    stream = io.BytesIO()
    picture.save(stream, format="jpeg", quality=82)
    return html.zoomable(html.inside(stream.getvalue(), "jpeg"), caption)


STYLE = """
body { max-width: 1640px; } p { max-width: 110ch; }
.overview { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1.2rem; margin-top: 1rem;
  align-items: start; }
.overview .tiles { grid-template-columns: 1fr 1fr; margin: 0 0 1rem; } .overview p { margin: .7rem 0; }
.card { margin-top: 1rem; padding: .8rem .9rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; border-left: 5px solid var(--shade); scroll-margin-top: 1rem; }
.card h3 { margin: 0 0 .6rem; font-size: 1.05rem; } .card h3 b { color: var(--dim); font-weight: 400; }
.card h3 span { display: inline-block; min-width: 1.7em; padding: 0 .4em; border-radius: 6px; text-align: center;
  background: var(--shade); color: #fff; }
.slot { display: flex; flex-direction: column; gap: .4rem; min-width: 0; }
.slot:not(.corner) > :last-child { margin-top: auto; }
.slot h4 { margin: 0; font-size: .85rem; overflow-wrap: anywhere; }
.slot small { color: var(--dim); font-weight: 400; }
:checked + img { position: fixed; inset: 0; z-index: 9; width: 100vw; height: 100vh; object-fit: contain;
  background: #000d; border-radius: 0; }
@media (max-width: 1120px) { .overview { grid-template-columns: 1fr; } }
"""
