"""Images of patches as pictures that a page embeds."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

__all__ = ["Picture", "picture"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with its title; `png` is a PNG file in base 64."""

    title: str
    png: str


def picture(image: Image.Image, *, title: str) -> Picture:
    """`image` as a picture of a page."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return Picture(title=title, png=base64.b64encode(buffer.getvalue()).decode("ascii"))
