"""Commands of a policy, sentences or pictures, drawn into pictures of what it does."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from torch_crl.rendering.renderer import Image

_MARGIN = 4


def with_captions(
    picture: Image, texts: Sequence[str], corners: Sequence[tuple[int, int]], width: int
) -> Image:
    """The picture with one text in the upper left of each tile, in as many lines as it needs.

    `corners` are left and top of the tiles, which are `width` pixels wide.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    drawn = Pillow.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    font = _font(max(11, width // 26))
    for text, (left, top) in zip(texts, corners, strict=True):
        lines = "\n".join(_lines(text, lambda line: draw.textlength(line, font), width - 24))
        where = (left + 2 * _MARGIN, top + _MARGIN)
        box = draw.multiline_textbbox(where, lines, font=font)
        grown = (box[0] - _MARGIN, box[1] - _MARGIN, box[2] + _MARGIN, box[3] + _MARGIN)
        draw.rounded_rectangle(grown, _MARGIN, fill=(255, 255, 255))
        draw.multiline_text(where, lines, fill=(30, 30, 30), font=font)
    return np.array(drawn)


def with_insets(
    picture: Image, insets: Image, corners: Sequence[tuple[int, int]], height: int
) -> Image:
    """The picture with one small picture in the upper left of each tile, framed in white.

    `insets` are [tiles, H, W, 3], shrunk to a third of a tile's height where they are higher, and
    `corners` left and top of the tiles, which are `height` pixels high.
    """
    from PIL import Image as Pillow

    drawn = picture.copy()
    factor = min(1.0, height // 3 / insets.shape[1])
    rows, columns = (round(factor * side) for side in insets.shape[1:3])
    for inset, (left, top) in zip(insets, corners, strict=True):
        drawn[top : top + rows + 2 * _MARGIN, left : left + columns + 2 * _MARGIN] = 255
        within = np.s_[
            top + _MARGIN : top + _MARGIN + rows, left + _MARGIN : left + _MARGIN + columns
        ]
        drawn[within] = np.array(Pillow.fromarray(inset).resize((columns, rows)))
    return drawn


@cache
def _font(size: int) -> Any:
    """The font that matplotlib brings, since Pillow may have been built without one of its own."""
    from matplotlib import font_manager
    from PIL import ImageFont

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _lines(text: str, length: Any, most: float) -> list[str]:
    """The words of a text in lines that are at most so long; what is left of a long one is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer) > most:
            lines.append(word)
        else:
            lines[-1] = longer
    return [*lines[:2], "..."] if len(lines) > 3 else lines
