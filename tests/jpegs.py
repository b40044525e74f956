"""JPEGs of every kind that a folder may hold, made from noise that shows any difference."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from tests.photos import photo

SAMPLINGS = ("grey", "444", "422", "420", "440", "411", "CMYK")


def jpeg(
    seed: int, width: int, height: int, sampling: str = "420", *, quality: int = 90, progressive: bool = False
) -> bytes:
    """One JPEG; 4:4:0 and 4:1:1, which Pillow does not write, are always baseline."""
    picture = photo(seed, width, height)
    if sampling in ("440", "411"):
        return bytes(simplejpeg.encode_jpeg(np.asarray(picture), quality, "RGB", sampling))
    file = io.BytesIO()
    mode = {"grey": "L", "CMYK": "CMYK"}.get(sampling, "RGB")
    chroma = {"422": 1, "420": 2}.get(sampling, 0)
    picture.convert(mode).save(file, "JPEG", quality=quality, subsampling=chroma, progressive=progressive)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """The reference: the whole picture with plain Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
