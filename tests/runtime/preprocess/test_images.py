"""Every mode and orientation reads as transformers reads it; nothing that is not an image gets through."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb

from ptp.errors import ImageError
from ptp.runtime.preprocess import decode_work, images
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


def test_the_bound_counts_pixels() -> None:
    assert load_image(noise("L"), 23 * 17).size == (23, 17)
    with pytest.raises(ImageError, match="23x18 = 414 pixels"):
        load_image(noise("L", (23, 18)), 23 * 17)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def repeated_scans(side: int, count: int, **options: object) -> bytes:
    """A progressive JPEG whose last scan is there `count` times."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True, **options)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def tiff(size: tuple[int, int], tags: dict[int, int | tuple[int, ...]], content: bytes = b"") -> bytes:
    """A TIFF of one directory; `content` begins at byte 8."""
    tags = {256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 277: 1} | tags
    arrays, entries = b"", b""
    start = 8 + len(content)
    place = start + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        if isinstance(value, int):
            entries += struct.pack("<HHII", tag, 4, 1, value)
            continue
        entries += struct.pack("<HHII", tag, 4, len(value), place + len(arrays))
        arrays += struct.pack(f"<{len(value)}I", *value)
    return b"II*\0" + struct.pack("<I", start) + content + struct.pack("<H", len(tags)) + entries + bytes(4) + arrays


def icon(picture: bytes) -> bytes:
    """An icon whose directory says 16x16."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


WORK = {
    "scans.jpg": (lambda: repeated_scans(2000, 5000), r"got 500\d scans of 2000x2000 pixels; expected at most 400$"),
    "many scans.jpg": (lambda: repeated_scans(16, 5000), r"scans of 16x16 pixels; expected at most 1000$"),
    "restarts.jpg": (lambda: repeated_scans(64, 5000, restart_marker_blocks=1), "takes too much work"),
    "tiles.tiff": (
        lambda: tiff((9, 9), {322: 60000, 323: 60000, 324: 8, 325: 9}),
        r"got 1 parts of 60000x60000 pixels; expected at most 1600000000 pixels$",
    ),
    "wide tiles.tiff": (
        lambda: tiff((16, 32000), {322: 60000, 323: 16, 324: (8,) * 2000, 325: (9,) * 2000}),
        "2000 parts of 60000x16 pixels",
    ),
    "shared strips.tiff": (
        lambda: tiff((900, 900), {278: 1, 273: (8,) * 900, 279: (2_000_000,) * 900}),
        r"got 900 parts of 1800000000 bytes; expected at most 1073741824 bytes$",
    ),
    "icon.ico": (
        lambda: icon(encoded(Image.new("1", (10_001, 10_000)), "PNG")),
        r"a picture of 10001x10000 pixels in an icon of 16x16; expected at most 100000000$",
    ),
    "bitmap icon.ico": (
        lambda: icon(struct.pack("<IiiHHIIiiII", 40, 12_000, 24_000, 1, 32, 0, 0, 0, 0, 0, 0)),
        "a picture of 12000x12000 pixels",
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_what_takes_more_work_than_the_largest_image_is_refused_before_decoding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = WORK[name]
    (tmp_path / name).write_bytes(make())
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=message):
        load_image(tmp_path / name)


@pytest.mark.parametrize("tiled", [False, True])
def test_scans_of_the_jpegs_inside_a_tiff_count(tiled: bool, tmp_path: Path) -> None:
    jpeg = repeated_scans(2000, 401)
    places = {324: 8, 325: len(jpeg), 322: 2000, 323: 2000} if tiled else {273: 8, 279: len(jpeg), 278: 2000}
    (tmp_path / "image.tiff").write_bytes(tiff((2000, 2000), {259: 7} | places, jpeg))
    with pytest.raises(ImageError, match=r"got 41\d parts of 2000x2000 pixels"):
        load_image(tmp_path / "image.tiff")


def test_scans_are_counted_as_libjpeg_reads_them() -> None:
    plain = encoded(noise("RGB", (200, 200)), "JPEG", restart_marker_blocks=1)
    assert decode_work.count_scans(plain) == 1
    assert decode_work.count_scans(encoded(noise("RGB", (200, 200)), "JPEG", progressive=True)) == 10
    thumbnail = b"\xff\xe2" + struct.pack(">H", len(plain[:9000]) + 2) + plain[:9000]
    assert decode_work.count_scans(plain[:2] + thumbnail + plain[2:]) == 1
    assert decode_work.count_scans(plain + plain) == 1  # what follows the end is another picture


class Held(io.BytesIO):
    """A file of which no more is read until it is let go."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.hold, self.reached, self.let_go = False, threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.hold:
            self.reached.set()
            assert self.let_go.wait(60)
        return super().read(size)


def test_a_thread_decodes_while_another_is_inside_a_decode(tmp_path: Path) -> None:
    noise("RGB").save(tmp_path / "image.png")
    filters = list(warnings.filters)
    file = Held(encoded(noise("RGB"), "PNG"))
    slow = Image.open(file)
    file.hold = True
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(load_image, slow)
        try:
            assert file.reached.wait(60)
            assert threads.submit(load_image, tmp_path / "image.png").result(60).size == (23, 17)
            assert not first.done()
        finally:
            file.let_go.set()
        assert first.result(60).size == (23, 17)
    assert warnings.filters == filters


@pytest.mark.parametrize(
    "address", ["https://example.com/a.png", "s3://bucket/a.png", "data:image/png;base64," + "A" * 9000]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_addresses_are_refused(address: str, kind: type) -> None:
    with pytest.raises(ImageError, match=r"is an address; expected an image file; download it first$") as caught:
        load_image(kind(address))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b.png", "a\udcff.png"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"is missing|cannot be read"):
        load_image(tmp_path / name)


def test_a_file_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match=r"is too large.*1073741824 bytes"):
        load_image(path)


@pytest.mark.parametrize(("mode", "transparency"), [("RGBA", None), ("P", 3), ("L", 40)])
def test_transparency_is_composited_some_rows_at_a_time(
    mode: str, transparency: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    noise(mode, (40, 90)).save(path, transparency=transparency)
    monkeypatch.setattr(images, "_COMPOSITED_PIXELS", 400)
    sizes, composite = [], Image.alpha_composite
    monkeypatch.setattr(Image, "alpha_composite", lambda a, b: (sizes.append(b.size), composite(a, b))[1])
    loaded = np.asarray(load_image(path))
    assert sizes == [(40, 10)] * 9
    np.testing.assert_array_equal(loaded, oracle(path))


def test_a_lower_bound_counts_for_size_and_scans(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    path.write_bytes(repeated_scans(200, 12))
    assert load_image(path, 60_000).size == (200, 200)
    with pytest.raises(ImageError, match=r"got \d+ scans of 200x200 pixels; expected at most 16$"):
        load_image(path, 40_000)
    with pytest.raises(ImageError, match=r"is too large; got 200x200 = 40000 pixels; expected at most 39999$"):
        load_image(path, 39_999)


def test_an_icon_whose_picture_hides_its_size_is_refused(tmp_path: Path) -> None:
    png, path = encoded(Image.new("RGB", (300, 300)), "PNG"), tmp_path / "hidden.ico"
    text = struct.pack(">I", 2) + b"tEXt" + b"a\0" + struct.pack(">I", zlib.crc32(b"tEXta\0"))
    path.write_bytes(icon(png[:8] + text + png[8:]))
    with pytest.raises(ImageError, match="a PNG that does not begin with IHDR"):
        load_image(path, 1000)
