"""One image file as pixels of 8 bits: upright, on white where it is transparent, and scaled from deeper values."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from fgpipe.data.dataset import reason
from fgpipe.errors import UserError

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's formats that are tried, with the file names that count as images. Not EPS: Pillow hands it to an
interpreter, and data files must not run code."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Turn that makes an image upright, by its EXIF orientation. `ImageOps.exif_transpose` also writes all other EXIF tags
anew, and fails where one of them is malformed."""
_STEPS = {"1": 255, "L;2": 85, "L;4": 17}
"""Distance of neighbouring grey values once Pillow has spread them over 0 to 255, by their packing in a PNG file."""


@dataclass(frozen=True)
class Decoded:
    """Pixels, and what was done to the image on the way."""

    pixels: np.ndarray
    """uint8 [C, side, side]."""
    composited: bool
    """Part of the image is transparent, and shows the background."""
    turned: bool
    """The stored image is not upright."""


def decode(path: Path, channels: int, side: int) -> Decoded:
    """The first frame of an image, shrunk or enlarged to cover the square (bilinear) and cropped at its centre.

    The background of transparent images is white, as most drawings without one are dark and could not be told apart
    on black. Grey values of more than 8 bits are scaled by the full range of their format and floats from 0..1, never
    by the range of the image, so that images of one data set can be compared; colours of 16 bits Pillow cuts to 8.

    Args:
        channels: 1 for grey, 3 for RGB.

    Raises:
        UserError: the file is corrupt, or nothing says which of its values are black and white.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("allowed: a file, or a link to one")
        with Image.open(path, formats=list(FORMATS)) as file:
            _spread_transparent_value(file)
            orientation = _orientation(file)
            image, composited = _on_white(_eight_bits(file))
            image = image.convert("L" if channels == 1 else "RGB")
            if orientation in _TURNS and file.format != "TIFF":  # Pillow turns TIFF itself
                image = image.transpose(_TURNS[orientation])
    except Exception as error:  # Pillow's decoders raise many types on corrupt files
        raise UserError(f"{path}: not a readable image: {reason(error)}") from error
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(side, side, channels).transpose(2, 0, 1)
    return Decoded(pixels, composited, orientation in _TURNS)


def _spread_transparent_value(file: ImageFile.ImageFile) -> None:
    """Scale the transparent grey of a PNG file to 8 bits, as Pillow scales its pixels alone."""
    value = file.info.get("transparency")
    if file.format == "PNG" and value is not None and file.tile:
        packing = file.tile[0][3]
        if packing == "RGB;16B":
            raise ValueError("a transparent colour (tRNS) of 16 bits: allowed: an alpha channel, or 8 bits")
        if packing in _STEPS:
            file.info["transparency"] = min(value * _STEPS[packing], 255)


def _orientation(file: ImageFile.ImageFile) -> int:
    """The orientation in EXIF or XMP, 1 (upright) to 8; 1 too where it is absent or unreadable, as in viewers."""
    if file.format != "TIFF":  # there it is gone once the image is loaded; in PNG it may follow the pixels
        file.load()
    try:
        return file.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1


def _eight_bits(file: ImageFile.ImageFile) -> Image.Image:
    """The image in a mode of at most 8 bits per value, with its transparency."""
    file.load()
    tags: Mapping[int, Any] = file.tag_v2 if isinstance(file, TiffImageFile) else {}
    if 2 in tags.get(ExifTags.Base.SampleFormat, ()):
        raise ValueError(f"signed values (mode {file.mode}): allowed: unsigned ones of up to 16 bits, or floats")
    if file.mode[0] not in "IF":  # I, I;16, I;16B ... and F
        return file.convert("RGB") if file.mode == "LAB" else file  # Pillow has no way from LAB to grey
    values = np.asarray(file)
    white = _white(file.mode, values, tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
    shares = values.astype(np.float64) / white
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white; Pillow inverts only 8 bits and less
        shares = 1 - shares
    grey = Image.fromarray(np.rint(255 * shares).astype(np.uint8))
    transparent = file.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _white(mode: str, values: np.ndarray, bits: int) -> int:
    """The largest value of the format, of whole numbers; 1 for floats."""
    if mode == "F":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(f"floats from {low:g} to {high:g} (mode F): allowed: 0 for black to 1 for white")
        return 1
    if bits > 16:
        raise ValueError(f"whole numbers of {bits} bits (mode {mode}): allowed: up to 16 bits, or floats from 0 to 1")
    return 2**bits - 1


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image over a white background, and whether any of that is seen."""
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    opaque = image.getchannel("A").getextrema() == (255, 255)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB"), not opaque
