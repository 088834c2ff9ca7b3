"""Image files of every mode that Pillow gives: as 8-bit pixels that numpy computes apart, or refused in one line."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgpipe.config import DataConfig
from fgpipe.data import load
from tests.datasets import configured, exif_bytes, png_bytes, refusal, tiff_bytes, write_folders

SIDE = 16
RAMP = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
"""Values of 16 bits, all different."""
GREY = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], 2)


def prepared(root: Path, name: str, content: bytes, channels: int = 1) -> DataConfig:
    """A data set of side SIDE whose first test image is this file."""
    write_folders(root, size=(SIDE, SIDE))
    (root / "test" / "ant" / name).write_bytes(content)
    changes = {"stored_size": SIDE, "size": SIDE, "mean": [0.5] * channels, "std": [0.5] * channels}
    return configured("image_folder", root, **changes)


def shown(root: Path, name: str, content: bytes, channels: int = 1) -> np.ndarray:
    """The file's pixels: [SIDE, SIDE] if grey, else [SIDE, SIDE, 3]."""
    pixels = load(prepared(root, name, content, channels)).test_images[0].numpy()
    return pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    with BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


# Values of more than 8 bits -----------------------------------------------------------------------------------

DEEP: dict[str, Callable[[np.ndarray], bytes]] = {
    "0.png": lambda values: png_bytes(values.astype(">u2").tobytes(), SIDE, SIDE, 16, 0),
    "0.pgm": lambda values: b"P5 16 16 65535\n" + values.astype(">u2").tobytes(),
    "0.pnm": lambda values: b"P2 16 16 65535\n" + " ".join(map(str, values.ravel())).encode(),
    "0.tif": lambda values: tiff_bytes(values.astype("<u2").tobytes(), SIDE, SIDE, [16]),
    "0 big-endian.tif": lambda values: saved(
        Image.frombytes("I;16B", (SIDE, SIDE), values.astype(">u2").tobytes()), "TIFF"
    ),
    "0 compressed.tif": lambda values: saved(
        Image.frombytes("I;16", (SIDE, SIDE), values.astype("<u2").tobytes()), "TIFF", compression="tiff_lzw"
    ),
}
"""16 bits, by the name of the file."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DEEP)
def test_16_bits_are_scaled_by_their_full_range(tmp_path: Path, name: str, channels: int) -> None:
    """Not by the image's own: one half as bright stays so."""
    for values in (RAMP, RAMP // 2):
        expected = np.floor(values / 65535 * 255 + 0.5)
        pixels = shown(tmp_path, name, DEEP[name](values), channels)
        np.testing.assert_array_equal(pixels, expected if channels == 1 else np.stack([expected] * 3, 2))


def test_grey_values_between_8_and_16_bits_have_their_own_white(tmp_path: Path) -> None:
    values = np.linspace(0, 1000, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    pixels = shown(tmp_path, "0.pgm", b"P5 16 16 1000\n" + values.astype(">u2").tobytes())
    assert abs(pixels - values / 1000 * 255).max() < 0.51
    twelve = RAMP >> 4
    even, odd = twelve.ravel()[::2], twelve.ravel()[1::2]  # two values in three bytes
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], 1).astype(np.uint8).tobytes()
    pixels = shown(tmp_path, "0.tif", tiff_bytes(packed, SIDE, SIDE, [12]))
    np.testing.assert_array_equal(pixels, np.floor(twelve / 4095 * 255 + 0.5))


FLOATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "0.tif": lambda values: tiff_bytes(values.astype("<f4").tobytes(), SIDE, SIDE, [32], sample_format=3),
    "0.pfm": lambda values: b"Pf\n16 16\n-1.0\n" + values[::-1].astype("<f4").tobytes(),
}
"""Of 32 bits."""


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_shares_of_white(tmp_path: Path, name: str) -> None:
    for shares in (RAMP / 65535, RAMP / 655350):
        pixels = shown(tmp_path, name, FLOATS[name](shares))
        np.testing.assert_array_equal(pixels, np.floor(shares.astype("f4").astype("f8") * 255 + 0.5))


def test_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    """Deep ones too, as those of 8 bits."""
    expected = 255 - np.floor(RAMP / 65535 * 255 + 0.5)
    for pixels, bits, sample_format in ((RAMP.tobytes(), 16, 1), ((RAMP / 65535).astype("<f4").tobytes(), 32, 3)):
        content = tiff_bytes(pixels, SIDE, SIDE, [bits], photometric=0, sample_format=sample_format)
        np.testing.assert_array_equal(shown(tmp_path, "0.tif", content), expected)
    np.testing.assert_array_equal(
        shown(tmp_path, "0.tif", tiff_bytes(GREY.tobytes(), SIDE, SIDE, [8], photometric=0)), 255 - GREY
    )


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("value", "named"), [(255.0, "from 0 to 255"), (-0.1, "from -0.1 to"), (np.nan, "nan")])
def test_floats_beyond_black_and_white_are_refused(tmp_path: Path, name: str, value: float, named: str) -> None:
    shares = RAMP / 65535
    shares[3, 3] = value
    message = refusal(prepared(tmp_path, name, FLOATS[name](shares)))
    assert message.startswith(f"{tmp_path / 'test' / 'ant' / name}: not a readable image: floats ")
    assert named in message and "(mode F): allowed: 0 for black to 1 for white" in message


@pytest.mark.parametrize(
    ("bits", "sample_format", "named"),
    [
        (32, 1, "whole numbers of 32 bits (mode I): allowed: up to 16 bits"),
        (32, 2, "signed values (mode I): allowed: unsigned"),
        (16, 2, "signed values (mode I): allowed: unsigned"),
        (8, 2, "signed values (mode L): allowed: unsigned"),
    ],
)
def test_whole_numbers_without_a_known_black_and_white_are_refused(
    tmp_path: Path, bits: int, sample_format: int, named: str
) -> None:
    content = tiff_bytes(bytes(SIDE * SIDE * bits // 8), SIDE, SIDE, [bits], sample_format=sample_format)
    message = refusal(prepared(tmp_path, "0.tif", content))
    assert message.startswith(f"{tmp_path / 'test' / 'ant' / '0.tif'}: not a readable image: {named}")


# Transparency -------------------------------------------------------------------------------------------------

ALPHA = np.ascontiguousarray(GREY.T)


def on_white(colours: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    """The definition, rounded; [SIDE, SIDE, 3]."""
    if colours.ndim == 2:
        colours = np.stack([colours] * 3, 2)
    share = alpha[..., None] / 255
    return np.floor(colours * share + 255 * (1 - share) + 0.5)


RGBA = Image.fromarray(np.dstack([COLOURS, ALPHA]))
LA = Image.fromarray(np.dstack([GREY, ALPHA]))
ALPHAS = {
    "0.png": (saved(RGBA, "PNG"), on_white(COLOURS)),
    "0.tif": (saved(RGBA, "TIFF"), on_white(COLOURS)),
    "0.webp": (saved(RGBA, "WEBP", lossless=True, exact=True), on_white(COLOURS)),
    "0 grey.png": (saved(LA, "PNG"), on_white(GREY)),
    "0 grey.tif": (saved(LA, "TIFF"), on_white(GREY)),
}
"""Alpha channels, by the name of the file: content, and what is to be seen."""


@pytest.mark.parametrize("name", ALPHAS)
def test_alpha_channels_are_put_on_white(tmp_path: Path, name: str) -> None:
    content, expected = ALPHAS[name]
    np.testing.assert_array_equal(shown(tmp_path, name, content, 3), expected)
    grey = expected @ [0.299, 0.587, 0.114]
    assert abs(shown(tmp_path, name, content) - grey).max() < 0.51


def test_tiff_says_what_its_fourth_channel_is(tmp_path: Path) -> None:
    """1: alpha by which the colours are multiplied already; 0: nothing that is known, and not to be seen."""
    multiplied = np.floor(COLOURS * (ALPHA[..., None] / 255) + 0.5).astype(np.uint8)
    pixels = np.dstack([multiplied, ALPHA]).tobytes()
    content = tiff_bytes(pixels, SIDE, SIDE, [8] * 4, photometric=2, extra_samples=1)
    expected = multiplied + (255.0 - ALPHA[..., None])
    assert abs(shown(tmp_path, "0.tif", content, 3) - expected).max() <= 1
    content = tiff_bytes(pixels, SIDE, SIDE, [8] * 4, photometric=2, extra_samples=0)
    np.testing.assert_array_equal(shown(tmp_path, "0.tif", content, 3), multiplied)


def test_drawings_in_alpha_alone_differ(tmp_path: Path) -> None:
    """Black strokes on a transparent ground, as of an icon: black on white."""
    content = saved(Image.fromarray(np.dstack([GREY * 0, ALPHA])), "PNG")
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content), 255 - ALPHA)


def test_alpha_of_palettes(tmp_path: Path) -> None:
    """One entry that is transparent, as in GIF, and alpha for the first entries, as in PNG."""
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    one = np.where(GREY == 7, 0, 255)
    content = png_bytes(GREY.tobytes(), SIDE, SIDE, 8, 3, PLTE=palette.tobytes(), tRNS=b"\xff" * 7 + b"\0")
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content, 3), on_white(palette[GREY], one))
    content = png_bytes(GREY.tobytes(), SIDE, SIDE, 8, 3, PLTE=palette.tobytes(), tRNS=bytes(range(0, 250, 2)))
    some = np.where(GREY < 125, 2 * GREY.astype(int), 255)
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content, 3), on_white(palette[GREY], some))
    image = Image.fromarray(GREY)
    image.putpalette(palette.tobytes())
    content = saved(image, "GIF", transparency=7)
    np.testing.assert_array_equal(shown(tmp_path, "0.gif", content, 3), on_white(palette[GREY], one))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_png(tmp_path: Path, bits: int) -> None:
    """tRNS names one value as the file has it, at every depth; with 16 bits, its neighbours stay opaque."""
    values = RAMP.astype(int) if bits == 16 else GREY.astype(int) % 2**bits
    transparent = int(values[5, 5])
    if bits == 16:
        values[5, 6] = transparent + 1
    if bits < 8:
        digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        pixels = np.packbits(digits.reshape(SIDE, -1), axis=1).tobytes()
    else:
        pixels = values.astype(f">u{bits // 8}").tobytes()
    content = png_bytes(pixels, SIDE, SIDE, bits, 0, tRNS=struct.pack(">H", transparent))
    grey = np.floor(values / (2**bits - 1) * 255 + 0.5)
    expected = np.where(values == transparent, 255, grey)
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content), expected)


def test_transparent_colour_of_png(tmp_path: Path) -> None:
    transparent = COLOURS[2, 3]
    content = png_bytes(COLOURS.tobytes(), SIDE, SIDE, 8, 2, tRNS=struct.pack(">3H", *transparent))
    expected = on_white(COLOURS, np.where((COLOURS == transparent).all(2), 0, 255))
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content, 3), expected)


def test_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow has 8 bits of the colours, which may be those of others too."""
    content = png_bytes(bytes(6 * SIDE * SIDE), SIDE, SIDE, 16, 2, tRNS=bytes(6))
    message = refusal(prepared(tmp_path, "0.png", content, 3))
    assert f"{tmp_path / 'test' / 'ant' / '0.png'}: " in message and "allowed: an alpha channel" in message


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    for name, kind in (("0.apng", "PNG"), ("0.tiff", "TIFF")):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(shown(tmp_path, name, content, 3), COLOURS)
        (tmp_path / "test" / "ant" / name).unlink()


# Orientation --------------------------------------------------------------------------------------------------

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
"""The specification's table: where row 0 and column 0 of what is stored are to be seen."""
LOSSLESS = {"0.png": ("PNG", {}), "0.tif": ("TIFF", {}), "0.webp": ("WEBP", {"lossless": True, "exact": True})}


@pytest.mark.parametrize("name", [*LOSSLESS, "0.jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    kind, options = LOSSLESS.get(name, ("JPEG", {"quality": 100}))
    stored = np.kron(np.arange(4).reshape(2, 2) * 80, np.ones((8, 8))).astype(np.uint8)  # four squares
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.stack([stored] * 3, 2))
    config = prepared(tmp_path, name, saved(image, kind, exif=exif, **options))
    dataset = load(config)
    difference = dataset.test_images[0, 0].numpy().astype(int) - UPRIGHT[orientation](stored)
    assert abs(difference).max() <= (2 if kind == "JPEG" else 0)
    assert dataset.notes == (() if orientation == 1 else ("1 image was turned as EXIF says",))


def test_orientation_beside_a_malformed_tag(tmp_path: Path) -> None:
    """Cameras write such (here the x of resolution, -1/0), and viewers turn the image."""
    exif = exif_bytes(6, struct.pack("<HHII", 282, 10, 1, 38)) + struct.pack("<ii", -1, 0)
    content = saved(Image.fromarray(COLOURS), "PNG", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content, 3), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage and more", exif_bytes(0), exif_bytes(9), b"Exif\0\0"])
def test_exif_that_names_no_orientation_leaves_the_image_as_it_is(tmp_path: Path, exif: bytes) -> None:
    content = saved(Image.fromarray(COLOURS), "PNG", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path, "0.png", content, 3), COLOURS)


# Other colours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("0.tif", "TIFF"), ("0.jpg", "JPEG")])
def test_cmyk(tmp_path: Path, name: str, kind: str) -> None:
    inks = np.kron(np.random.default_rng(0).integers(0, 256, (2, 2, 4)), np.ones((8, 8, 1))).astype(np.uint8)
    content = saved(Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes()), kind, quality=100)
    expected = (255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert abs(shown(tmp_path, name, content, 3) - expected).max() <= (0.51 if kind == "TIFF" else 3)


def test_ycbcr(tmp_path: Path) -> None:
    y, cb, cr = GREY / 4 + 96, GREY.T / 4 + 96, 160 - GREY / 4  # inside RGB
    stored = np.stack([y, cb, cr], 2).round().astype(np.uint8)
    content = saved(Image.frombytes("YCbCr", (SIDE, SIDE), stored.tobytes()), "TIFF", compression="tiff_lzw")
    y, cb, cr = stored.astype(float).transpose(2, 0, 1)
    expected = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], 2
    )
    assert abs(shown(tmp_path, "0.tif", content, 3) - expected).max() < 2.1


def test_lab(tmp_path: Path) -> None:
    """CIE L*a*b* (white D50) of mild colours, by its definition and the matrix of sRGB for D50."""
    lightness, a, b = GREY // 4 + 96, GREY.T // 16 - 8.0, 8.0 - GREY // 16
    stored = np.stack([lightness, a.astype(np.int8).view(np.uint8), b.astype(np.int8).view(np.uint8)], 2)
    content = tiff_bytes(stored.tobytes(), SIDE, SIDE, [8] * 3, photometric=8)
    y = (lightness / 255 * 100 + 16) / 116
    xyz = np.stack([y + a / 500, y, y - b / 200], 2) ** 3 * [0.9642, 1, 0.8249]
    matrix = [[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]]
    expected = 255 * (1.055 * (xyz @ np.transpose(matrix)) ** (1 / 2.4) - 0.055)
    assert abs(shown(tmp_path, "0.tif", content, 3) - expected).max() < 2
    assert abs(shown(tmp_path, "0.tif", content) - expected @ [0.299, 0.587, 0.114]).max() < 2
