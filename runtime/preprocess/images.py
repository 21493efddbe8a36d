"""Read an image the way the model's own processor sees it: upright, RGB, transparency over white."""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ptp.errors import ImageError
from ptp.runtime.preprocess.decode_work import MAX_FILE_BYTES, check_icon, check_work

MAX_PIXELS = 100_000_000
"""Largest image accepted: 300 MB as RGB; Pillow itself warns from 89 million pixels."""

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Raster formats; the rest of what Pillow can open includes some that start other programs (EPS)."""

_COMPOSITED_PIXELS = 1 << 20

_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]+:/|data:)", re.IGNORECASE)  # a Path has made one slash of two
_SHOWN_CHARACTERS = 80  # of an address, which may hold the image itself

# what Pillow logs is for its own developers; without a handler Python would print it
logging.getLogger("PIL").addHandler(logging.NullHandler())


class _QuietPillow:
    """Ignores Pillow's warnings while any thread is inside.

    The filters of warnings are one list for the whole process: the first thread changes them, the last puts them back.
    No lock is held between the two, so that decoding in one thread does not wait for another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._saved.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()


def load_image(source: str | Path | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image upright (EXIF orientation applied) and in mode RGB, transparency composited over white.

    Args:
        source: path of an image file, or an open image, which is left as it is.
        max_pixels: of the largest image that is decoded; decoding goes over at most 16 times as many.

    Raises:
        ImageError: the file is missing, no image, damaged, larger than `max_pixels` or `MAX_FILE_BYTES`, or takes more
            work to decode than the largest image does (`check_work`).
    """
    with _quiet_pillow():
        if isinstance(source, Image.Image):
            _check_size(source, "the image", max_pixels)
            return _upright_rgb(source, "the image")
        data, name = _read(source), str(source)
        with _open(data, name, max_pixels) as image:
            _check_size(image, name, max_pixels)
            try:
                check_work(image, data, name, max_pixels)
            except ImageError:
                raise
            except Exception as error:  # a header's values may be of any type
                raise ImageError(f"{name} cannot be read as an image", got=error) from error
            return _upright_rgb(image, name, in_place=True)


def _read(source: str | Path) -> bytes:
    path, name = Path(source), str(source)
    try:
        if not path.is_file():
            if _ADDRESS.match(name):
                raise ImageError(
                    f"{name[:_SHOWN_CHARACTERS]} is an address", expected="an image file", do="download it first"
                )
            raise ImageError(f"{path} is {'not a file' if path.exists() else 'missing'}", expected="an image file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1) if path.stat().st_size <= MAX_FILE_BYTES else None
    except OSError as error:
        if _ADDRESS.match(name):  # too long to be looked up
            what = f"{name[:_SHOWN_CHARACTERS]} is an address"
            raise ImageError(what, expected="an image file", do="download it first") from error
        raise ImageError(f"{name} cannot be read", got=error.strerror) from error
    if data is None or len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    return data


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    check_icon(data, name, max_pixels)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large", got=error, expected=f"at most {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image", expected=f"one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged headers
        raise ImageError(f"{name} cannot be read as an image", got=error) from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is too large", got=f"{width}x{height} = {width * height} pixels", expected=f"at most {max_pixels}"
        )
    if min(width, height) < 1:
        raise ImageError(f"{name} is empty", got=f"{width}x{height} pixels")


def _upright_rgb(image: Image.Image, name: str, *, in_place: bool = False) -> Image.Image:
    try:
        if in_place:  # saves a copy, which exif_transpose makes also where nothing is turned
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ImageError(f"{name} cannot be decoded", got=error, do="check that the file is complete") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    # transformers' convert_to_rgb; `transparency` marks the transparent colour of palette and RGB PNG files
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    # some rows at a time: at once, it would hold four copies of the image
    result = Image.new("RGB", image.size)
    rows = max(1, _COMPOSITED_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, part).convert("RGB"), box)
    return result
