"""What the pages of `explain` have in common."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from boxwright.visualization import html

LIKELY = 0.5  # objects with a higher score count as likely


@dataclass(frozen=True)
class Picture:
    """An image inside a page.

    Attributes:
        address: of the image.
        caption: its alternative text.
        title, detail: what stands over it.
    """

    address: str
    caption: str = ""
    title: str = ""
    detail: str = ""


def overview(drawn: Image.Image, caption: str) -> Picture:
    """The large picture at the top of a page."""
    drawn.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    return Picture(html.image_address(drawn), caption)


def resized(photo: Image.Image, longest: int) -> Image.Image:
    """The photograph with this long side, in pixels."""
    scale = longest / max(photo.size)
    return photo.resize((round(photo.width * scale) or 1, round(photo.height * scale) or 1), Image.Resampling.LANCZOS)
