"""Read an image the way the model's own processor sees it: upright, RGB, transparency over white."""

import threading
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ptp.errors import ImageError

MAX_PIXELS = 100_000_000
"""Largest image accepted: 300 MB as RGB; Pillow itself warns from 89 million pixels."""

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Raster formats; the rest of what Pillow can open includes some that start other programs (EPS)."""

# warnings' filters are one list for the whole process, so that two threads must not change them at once
_warnings_lock = threading.Lock()


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Return an image upright (EXIF orientation applied) and in mode RGB, transparency composited over white.

    Args:
        source: path of an image file, or an open image, which is left as it is.

    Raises:
        ImageError: the file is missing, no image, damaged, or larger than `MAX_PIXELS`.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return _upright_rgb(source, "the image")
        path = Path(source)
        if not path.is_file():
            raise ImageError(f"{path} is {'not a file' if path.exists() else 'missing'}", expected="an image file")
        with _open(path) as image:
            return _upright_rgb(image, str(path))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large", got=error, expected=f"at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image", expected=f"one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged headers
        raise ImageError(f"{path} cannot be read as an image", got=error) from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is too large", got=f"{width}x{height} = {width * height} pixels", expected=f"at most {MAX_PIXELS}"
        )
    if min(width, height) < 1:
        raise ImageError(f"{name} is empty", got=f"{width}x{height} pixels")
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ImageError(f"{name} cannot be decoded", got=error, do="check that the file is complete") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    # transformers' convert_to_rgb; `transparency` marks the transparent colour of palette and RGB PNG files
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
