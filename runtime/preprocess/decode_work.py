"""What decoding an image file costs, read off its structure before anything is decoded.

A file of a few kilobytes may ask for minutes of work that its size in pixels does not show: scans of a JPEG that each
go over all pixels, tiles of a TIFF that reach far beyond the image, an icon's picture that is larger than its entry.
"""

import io
import re

from PIL import IcoImagePlugin, Image, TiffImagePlugin

from ptp.errors import ImageError

MAX_PASSES = 16
"""How often decoding may go over the pixels of the largest image; a progressive photograph has 10 to 12 scans."""

MAX_SCANS = 1000
"""Most scans of a JPEG: each costs something, however small the image."""

MAX_FILE_BYTES = 1 << 30
"""Largest image file, and most bytes that the parts of a TIFF file may have together: parts may overlap."""

_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd8-\xfe])")  # not stuffed zeros, restarts or fill bytes
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_JPEG_COMPRESSIONS = (6, 7)


def check_work(image: Image.Image, data: bytes, name: str, max_pixels: int) -> None:
    """Refuse an image file whose decoding takes more work than the largest image's.

    Args:
        image: opened, not decoded.
        data: the file.
        name: what errors call it.
        max_pixels: of the largest image.

    Raises:
        ImageError: it takes more.
    """
    budget = MAX_PASSES * max_pixels
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, data, name, budget)
    elif data.startswith(b"\xff\xd8"):
        width, height = image.size
        most = min(MAX_SCANS, budget // (width * height))
        if (scans := count_scans(data)) > most:
            got, expected = f"{scans} scans of {width}x{height} pixels", f"at most {most}"
            raise ImageError(f"{name} takes too much work to decode", got=got, expected=expected)


def count_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG stream, up to its end marker or the end of the data."""
    scans = place = 0
    while found := _MARKER.search(data, place):
        code, place = found[1][0], found.end()
        if code == _EOI:
            break
        scans += code == _SOS
        if code != _SOI:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return scans


def _check_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes, name: str, budget: int) -> None:
    tags = image.tag_v2
    width, height = image.size
    tiled = TiffImagePlugin.TILEOFFSETS in tags
    columns = int(tags.get(TiffImagePlugin.TILEWIDTH, width)) if tiled else width
    rows = int(tags.get(TiffImagePlugin.TILELENGTH if tiled else TiffImagePlugin.ROWSPERSTRIP, height))
    columns, rows = max(1, columns), max(1, rows if tiled else min(rows, height))
    offsets = tags.get(TiffImagePlugin.TILEOFFSETS if tiled else TiffImagePlugin.STRIPOFFSETS, ())
    sizes = tags.get(TiffImagePlugin.TILEBYTECOUNTS if tiled else TiffImagePlugin.STRIPBYTECOUNTS, ())
    offsets, sizes = (value if isinstance(value, tuple) else (value,) for value in (offsets, sizes))
    if sum(sizes) > MAX_FILE_BYTES:
        got, expected = f"{len(sizes)} parts of {sum(sizes)} bytes", f"at most {MAX_FILE_BYTES} bytes"
        raise ImageError(f"{name} takes too much work to decode", got=got, expected=expected)
    parts = max(len(offsets), -(-width // columns) * -(-height // rows))
    if tags.get(TiffImagePlugin.COMPRESSION) in _JPEG_COMPRESSIONS:
        parts = sum(max(1, count_scans(data[at : at + size])) for at, size in zip(offsets, sizes, strict=False))
    if parts * columns * rows > budget:
        got, expected = f"{parts} parts of {columns}x{rows} pixels", f"at most {budget} pixels"
        raise ImageError(f"{name} takes too much work to decode", got=got, expected=expected)


def check_icon(data: bytes, name: str, max_pixels: int) -> None:
    """Refuse an icon whose picture is larger than `max_pixels`; Pillow decodes it when it opens the file.

    Raises:
        ImageError: it is larger.
    """
    try:
        entry = IcoImagePlugin.IcoFile(io.BytesIO(data)).entry[0]  # the largest, which Pillow takes
    except Exception:  # no icon: whether it is an image at all, Pillow says
        return
    start = entry.offset
    if data.startswith(b"\x89PNG", start):
        if data[start + 12 : start + 16] != b"IHDR":  # Pillow reads on for it, and its size would not be known here
            raise ImageError(f"{name} cannot be read as an image", got="a PNG that does not begin with IHDR")
        width, height = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (16, 20))
    else:  # a bitmap, and below it a mask of the same height
        width, height = (abs(int.from_bytes(data[start + at : start + at + 4], "little", signed=True)) for at in (4, 8))
        height //= 2
    if width * height > max_pixels:
        got = f"a picture of {width}x{height} pixels in an icon of {entry.width}x{entry.height}"
        raise ImageError(f"{name} is too large", got=got, expected=f"at most {max_pixels}")
