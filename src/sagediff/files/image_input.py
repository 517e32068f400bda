"""Images that somebody else made, as RGB: the one place that opens them, with bounds, and the rules of conversion.

Transparency is composed on white. 16-bit grayscale is scaled to 8 bits, and so are float images in [0, 1]. The
orientation that a camera noted (EXIF) is applied. Colour profiles are not looked at.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sagediff.errors import InputError, first_line
from sagediff.files.text_input import regular_size, shortened

MAX_PIXELS = 50_000_000  # RGB and transparency of one take 400 MB while they are composed
# others can make Pillow start programs (EPS) or are no images of the kind that models are trained on
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")


def open_rgb(file: Path) -> Image.Image:
    """The image in a file, upright and in RGB.

    Raises:
        InputError: no file, no image, one that is cut short or too large, or one whose range of values is not known;
            the file is named.
    """
    name = shortened(file)
    if regular_size(file) is None:  # a pipe would be waited for
        raise InputError(f"cannot read the image {name}: it is a pipe, not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit is another, and its warnings name no file
            Image.init()  # formats that an older Pillow does not have are left out
            with Image.open(file, formats=[each for each in _FORMATS if each in Image.OPEN]) as image:
                check_pixels(image)
                return to_rgb(ImageOps.exif_transpose(image))
    except InputError as error:
        raise InputError(f"cannot read the image {name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"cannot read the image {name}: it is too large: {error}") from error
    except Exception as error:  # whatever a broken file makes a decoder raise
        raise InputError(f"cannot read the image {name}: {first_line(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, whatever its mode; transparent parts are white.

    Raises:
        InputError: whole numbers of 32 bits, or float values outside [0, 1]: their range is not known.
    """
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image)
    if image.mode == "F":
        return _floats(image)
    if image.mode == "I":
        raise InputError(
            "it holds whole numbers of 32 bits, whose range is not known; save it with 8 or 16 bits"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        opaque = Image.new("RGB", clear.size, "white")
        opaque.paste(clear, mask=clear.getchannel("A"))
        return opaque
    return image.convert("RGB")


def check_pixels(image: Image.Image) -> None:
    """Raises InputError for more pixels than are read."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"it has {width} x {height} pixels; at most {MAX_PIXELS / 1e6:g} megapixels are read: scale it down"
        )


def _sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 255
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[values == clear] = 255
    return Image.fromarray(gray).convert("RGB")


def _floats(image: Image.Image) -> Image.Image:
    values: Any = np.asarray(image, np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # not finite included
        raise InputError(
            f"its float values lie in [{low:g}, {high:g}] and not in [0, 1]; save it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
