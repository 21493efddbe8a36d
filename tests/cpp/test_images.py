"""Pixels and tiles equal the Python runtime's, bit for bit; damaged files are refused by both."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ptp.bundle import read_manifest
from ptp.demo import CHECKPOINT
from ptp.errors import ImageError
from ptp.runtime.preprocess.images import load_image
from ptp.runtime.preprocess.tiles import make_tiles

Save = Callable[[Path], None]


def picture(mode: str, size: tuple[int, int] = (61, 43), seed: int = 0) -> Image.Image:
    """Return a smooth picture with noise, in any mode."""
    random = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    y, x = np.mgrid[: size[1], : size[0]]
    values = np.stack([(3 * x + 5 * y * (k + 1)) % 256 for k in range(bands)], -1) // 2 + random.integers(
        0, 128, (size[1], size[0], bands)
    )
    array = values.astype(np.uint8)
    return Image.fromarray(array[..., 0] if bands == 1 else array, mode if bands > 1 else "L").convert(mode)


def palette(*, alphas: bytes | int | None, colours: int = 256) -> Image.Image:
    image = picture("RGB").quantize(colours)
    if alphas is not None:
        image.info["transparency"] = alphas
    return image


def sixteen_bit() -> Image.Image:
    y, x = np.mgrid[:43, :61]
    return Image.fromarray((x * 900 + y * 3).astype(np.uint16))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "a description"
    return tags.tobytes()


def xmp(orientation: int) -> str:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'


def png_text(key: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, value)
    return info


def saved(image: Image.Image, **options) -> Save:
    return lambda path: image.save(path, **options)


FILES: dict[str, Save] = {
    "rgb.png": saved(picture("RGB")),
    "gray.png": saved(picture("L")),
    "one bit.png": saved(picture("1")),
    "two bits.png": saved(palette(alphas=None, colours=4), bits=2),
    "gray alpha.png": saved(picture("LA")),
    "alpha.png": saved(picture("RGBA")),
    "palette.png": saved(palette(alphas=None)),
    "palette alphas.png": saved(palette(alphas=bytes(range(0, 256, 2)))),
    "palette index.png": saved(palette(alphas=7)),
    "gray key.png": saved(picture("L"), transparency=100),
    "rgb key.png": saved(picture("RGB"), transparency=picture("RGB").getpixel((3, 3))),
    "bit key.png": saved(picture("1"), transparency=0),
    "sixteen.png": saved(sixteen_bit()),
    "interlaced.png": saved(picture("RGBA"), interlace=1),
    "444.jpg": saved(picture("RGB"), quality=90, subsampling=0),
    "422.jpg": saved(picture("RGB"), quality=90, subsampling=1),
    "420.jpg": saved(picture("RGB"), quality=75, subsampling=2),
    "progressive.jpg": saved(picture("RGB"), quality=80, progressive=True),
    "gray.jpg": saved(picture("L")),
    "cmyk.jpg": saved(picture("CMYK")),
    "restarts.jpg": saved(picture("RGB"), restart_marker_blocks=2),
    "xmp.jpg": saved(picture("RGB"), xmp=xmp(6).encode()),
    "xmp.png": saved(picture("RGB"), pnginfo=png_text("XML:com.adobe.xmp", xmp(8))),
    "exif.png": saved(picture("RGBA"), exif=exif(5)),
    **{f"orientation {way}.jpg": saved(picture("RGB"), exif=exif(way)) for way in range(10)},
}


def decoded(probe, path: Path) -> np.ndarray:
    out = path.with_suffix(".raw")
    size = probe("image", path=path, out=out)
    return np.fromfile(out, np.uint8).reshape(size["height"], size["width"], 3)


@pytest.mark.parametrize("name", FILES)
def test_pixels(probe, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FILES[name](path)
    assert np.array_equal(decoded(probe, path), np.asarray(load_image(path)))


@pytest.mark.parametrize("scene", range(4))
def test_photographs(probe, tmp_path: Path, scene: int) -> None:
    path = Path(shutil.copy(CHECKPOINT / f"evaluation/scene-{scene}.jpg", tmp_path / "scene.jpg"))
    assert np.array_equal(decoded(probe, path), np.asarray(load_image(path)))


@pytest.mark.parametrize("name", ["rgb.png", "alpha.png", "420.jpg", "progressive.jpg", "palette alphas.png"])
def test_truncated_files_are_refused(probe, tmp_path: Path, name: str) -> None:
    whole, path = tmp_path / name, tmp_path / f"cut {name}"
    FILES[name](whole)
    data = whole.read_bytes()
    for length in (0, 1, 9, 40, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        path.write_bytes(data[:length])
        with pytest.raises(ImageError):
            load_image(path)
        assert probe.refusal("image", path=path, out=tmp_path / "out").status == "PTP_ERROR_IMAGE"


@pytest.mark.parametrize("name", ["alpha.png", "palette alphas.png", "420.jpg", "progressive.jpg", "orientation 6.jpg"])
def test_damaged_files_never_crash(probe, tmp_path: Path, name: str) -> None:
    whole, path = tmp_path / name, tmp_path / f"damaged {name}"
    FILES[name](whole)
    random = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole.read_bytes())
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            decoded(probe, path)
        except Exception as error:
            assert error.status == "PTP_ERROR_IMAGE"  # noqa: PT017  most damage is not noticed


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.png", None, "is missing; expected an image file"),
        ("text.png", b"hello", "is not an image; expected JPEG or PNG; convert it or pass its pixels"),
        ("huge.png", None, "is too large; got 20000x20000 = 400000000 pixels; expected at most 100000000"),
    ],
)
def test_other_files_are_refused(probe, tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    elif name.startswith("huge"):
        buffer = io.BytesIO()
        Image.new("1", (20000, 20000)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    error = probe.refusal("image", path=path, out=tmp_path / "out")
    assert error.status == "PTP_ERROR_IMAGE"
    assert str(error) == f"{path} {message}"
    with pytest.raises(ImageError, match=re.escape(f"{path} {message.split(';')[0]}")):
        load_image(path)


@pytest.mark.parametrize(("side", "scans"), [(2000, 5000), (16, 900), (16, 5000)])
def test_scans_are_bounded_alike(probe, tmp_path: Path, side: int, scans: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG", progressive=True)
    data, path = buffer.getvalue(), tmp_path / "scans.jpg"
    last = data.rfind(b"\xff\xda")
    thumbnail = b"\xff\xe2\x08\x02" + (b"\xff\xda" * 1024)
    path.write_bytes(data[:2] + thumbnail + data[2:last] + data[last:-2] * scans + data[-2:])
    if scans < 1000:
        assert decoded(probe, path).shape == (side, side, 3)
        return
    with pytest.raises(ImageError, match=r"takes too much work to decode; got .* scans") as caught:
        load_image(path)
    assert str(probe.refusal("image", path=path, out=tmp_path / "out")) == str(caught.value)


@pytest.mark.parametrize("address", ["https://example.com/a.png", "data:image/png;base64," + "A" * 9000])
def test_addresses_are_refused(probe, tmp_path: Path, address: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(address)
    error = probe.refusal("image", path=address, out=tmp_path / "out")
    assert (error.status, str(error)) == ("PTP_ERROR_IMAGE", str(caught.value))


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_resize_equals_pillow(probe, tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "in.png", tmp_path / "out.raw"
    for number, size in enumerate([(61, 43), (1, 300), (300, 1), (200, 150), (3, 5)]):
        image = picture("RGB", size, number)
        image.save(path)
        for width, height in [(112, 112), (size[0], 7), (5, size[1]), (1, 1), size, (97, 3)]:
            probe("resize", path=path, out=out, width=width, height=height, filter=name)
            expected = np.asarray(image.resize((width, height), Image.Resampling[name.upper()]))
            assert np.array_equal(np.fromfile(out, np.uint8), expected.ravel()), (size, width, height)


def test_tiles(probe, tmp_path: Path, demo_bundle: Path, photos: dict[str, Path]) -> None:
    tiling, out = read_manifest(demo_bundle).tiling, tmp_path / "tiles"
    paths = [*photos.values(), *(CHECKPOINT / f"evaluation/scene-{i}.jpg" for i in range(4))]
    for number, size in enumerate([(1, 1), (1, 700), (700, 1), (112, 112), (113, 337), (224, 100)]):
        paths.append(tmp_path / f"{number}.png")
        picture("RGB", size, number).save(paths[-1])
    for path in paths:
        made = probe("tiles", manifest=demo_bundle / "ptp_config.json", path=path, out=out)
        expected = make_tiles(load_image(path), tiling)
        assert (tuple(made["grid"]), tuple(made["size"])) == (expected.grid, expected.image_size)
        assert np.array_equal(np.fromfile(out, np.float32), expected.pixel_values.ravel()), path


def test_float16(probe) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(size=200) * 10.0 ** random.integers(-9, 6, 200), [65519.99, 65520, 6e-8, 0]])
    values = values.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16).tolist()
    assert probe("halves", values=values.tolist()) == expected
