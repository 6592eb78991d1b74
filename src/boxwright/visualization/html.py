"""Pages of one HTML file, with their pictures inside and nothing fetched, and the look that they share."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from boxwright.files import write_whole


def write(path: Path, title: str, parts: Sequence[str], style: str) -> None:
    """Write a page, whole or not at all.

    Args:
        path: the HTML file.
        title: as the browser's tab shows it.
        parts: HTML, one below the other; empty ones are left out.
        style: CSS of this page beyond the common look.

    Raises:
        UserError: if the page can't be written.
    """
    body = "\n".join(part for part in parts if part)
    head = f"{_HEAD}<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style></head>"
    text = f"{head}<body>\n{body}\n</body></html>\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def inside(picture: bytes, kind: str) -> str:
    """The address of a picture that is part of the page; `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def zoomable(address: str, caption: str) -> str:
    """A picture that fills the row of its grid when it is clicked (with a `figure` around it)."""
    return f'<label><input type="checkbox"><img alt="{escape(caption)}" src="{address}"></label>'


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
"""
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --dim: #64717f; --paper: #f6f7f9; --card: #fff;
  --line: #dfe4ea; --bar: #cfe0fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --dim: #95a1af; --paper: #12161b; --card: #1b2129; --line: #2e3742; --bar: #274a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 1200px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .6rem; font-size: 1.7rem; } h2 { margin: 2.2rem 0 .7rem; font-size: 1.15rem; }
p { margin: .3rem 0; color: var(--dim); max-width: 80ch; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: .6rem; margin-top: 1.4rem; }
.tiles div { display: flex; flex-direction: column; padding: .7rem .9rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
.tiles b { font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tiles span { font-weight: 600; } .tiles small { color: var(--dim); }
figure { margin: 0; padding: .5rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure:has(:checked) { grid-column: 1 / -1; }
img { display: block; width: 100%; background: #fff; border-radius: 6px; cursor: zoom-in; }
:checked + img { cursor: zoom-out; }
input { position: absolute; opacity: 0; pointer-events: none; }
:focus-visible + img { outline: 3px solid #2f7ef6; }
figcaption { padding: .4rem .2rem 0; color: var(--dim); font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 760px) { .tiles { grid-template-columns: repeat(3, 1fr); } }
"""
