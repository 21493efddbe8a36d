"""Every mode and orientation reads as transformers reads it; nothing that is not an image gets through."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb

from ptp.errors import ImageError
from ptp.runtime.preprocess import images
from ptp.runtime.preprocess.images import load_image


def noise(mode: str, size: tuple[int, int] = (23, 17)) -> Image.Image:
    random = np.random.default_rng(3)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 2**16, size[::-1], np.uint16))
    if mode == "P":
        image = Image.fromarray(random.integers(0, 16, size[::-1], np.uint8), "L").convert("P")
        image.putpalette(random.integers(0, 256, 768, np.uint8).tobytes())
        return image
    rgba = Image.fromarray(random.integers(0, 256, (*size[::-1], 4), np.uint8))
    return rgba if mode == "RGBA" else rgba.convert(mode)


def oracle(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return convert_to_rgb(ImageOps.exif_transpose(image), return_numpy=True)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("L", "png"),
        ("LA", "png"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("I;16", "png"),
        ("RGB", "webp"),
        ("RGBA", "webp"),
        ("RGB", "bmp"),
        ("CMYK", "tiff"),
    ],
)
def test_modes_equal_transformers(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    noise(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), oracle(path))


@pytest.mark.parametrize(
    ("mode", "transparency"), [("P", 3), ("P", bytes(range(0, 256, 16))), ("L", 40), ("RGB", (10, 20, 30))]
)
def test_transparent_colours_become_white(mode: str, transparency: object, tmp_path: Path) -> None:
    image = noise(mode)
    if mode == "RGB":
        image.paste((10, 20, 30), (2, 2, 9, 9))
    if mode == "L":
        image.paste(40, (2, 2, 9, 9))
    image.save(tmp_path / "image.png", transparency=transparency)
    loaded = np.asarray(load_image(tmp_path / "image.png"))
    np.testing.assert_array_equal(loaded, oracle(tmp_path / "image.png"))
    assert (loaded == 255).all(axis=-1).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    noise("RGB").save(path, exif=exif)
    loaded = load_image(path)
    assert loaded.size == ((23, 17) if orientation < 5 else (17, 23))
    np.testing.assert_array_equal(np.asarray(loaded), oracle(path))
    with Image.open(path) as image:
        changed = not np.array_equal(np.asarray(image), np.asarray(loaded))
    assert changed == (orientation != 1)


def test_open_images_are_read_and_left_alone() -> None:
    image = noise("RGBA")
    before = image.tobytes()
    np.testing.assert_array_equal(np.asarray(load_image(image)), convert_to_rgb(image, return_numpy=True))
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png is missing"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="is not a file"):
        load_image(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"image\.png is not an image"):
        load_image(tmp_path / "image.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7])
def test_truncated_files_are_refused_in_one_line(suffix: str, fraction: float, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    noise("RGB", (90, 70)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_oversized_images_are_refused_before_decoding(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    Image.new("1", (side, side)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"too large.*100000000"):
        load_image(path)


def test_the_bound_counts_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 23 * 17)
    assert load_image(noise("L")).size == (23, 17)
    with pytest.raises(ImageError, match="23x18 = 414 pixels"):
        load_image(noise("L", (23, 18)))
