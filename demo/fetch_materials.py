"""Make the files under `materials/` once: pictures from npm through its own client, backgrounds from scikit-image.

pip install -e '.[dev]'
python demo/fetch_materials.py
"""

import argparse
import subprocess
import tarfile
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from ptp.demo.materials import BACKGROUNDS, MATERIALS, PICTURES
from ptp.errors import ConfigError

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
"""Microsoft's Fluent Emoji, drawn in 3D, as 256-pixel WebP files named by code point."""

PICTURE_SIDE = 72
TEXTURE_SIDE = 320
PHOTO_SIDE = 512
TEXTURES = ("brick", "cell", "grass", "gravel")
QUALITY = 72


def fetch_pictures(folder: Path) -> None:
    """Write the pictures, trimmed to what is visible.

    Args:
        folder: where to.

    Raises:
        ConfigError: npm is missing or failed, or the package lacks a picture.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", "--pack-destination", scratch, PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"{PACKAGE} cannot be fetched", got=error, expected="a working npm") from error
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            names = {name: f"package/assets/{code}.webp" for name, code in PICTURES.items()}
            if missing := sorted(set(names.values()) - set(archive.getnames())):
                raise ConfigError(f"{PACKAGE} lacks pictures", got=", ".join(missing))
            for name, member in names.items():
                file = archive.extractfile(member)
                assert file is not None
                with Image.open(file) as image:
                    squared(image.convert("RGBA")).save(folder / f"{name}.webp", quality=85, method=6)


def squared(image: Image.Image) -> Image.Image:
    """Return an image trimmed to what is visible, on a square of `PICTURE_SIDE` pixels.

    Args:
        image: RGBA.
    """
    image = image.crop(image.getchannel("A").point(lambda level: 255 * (level > 40)).getbbox())
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)


def fetch_backgrounds(folder: Path) -> None:
    """Write the backgrounds, scaled down.

    Args:
        folder: where to.
    """
    for name in BACKGROUNDS:
        data = files("skimage") / "data"
        source = next(data / f"{name}{suffix}" for suffix in (".png", ".jpg") if (data / f"{name}{suffix}").is_file())
        with as_file(source) as path, Image.open(path) as file:
            image = file.convert("L" if file.mode == "L" else "RGB")
        if name == "retina":  # the eye is a disc on black: keep a square inside it
            inset = round(0.17 * image.width)
            image = image.crop((inset, inset, image.width - inset, image.height - inset))
        side = TEXTURE_SIDE if name in TEXTURES else PHOTO_SIDE
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(folder / f"{name}.jpg", quality=QUALITY, optimize=True)


def main() -> None:
    """Write both folders."""
    argparse.ArgumentParser(description="Make demo/materials: pictures and backgrounds.").parse_args()
    for name, fetch in (("pictures", fetch_pictures), ("backgrounds", fetch_backgrounds)):
        folder = MATERIALS / name
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder)
        for path in folder.iterdir():
            path.chmod(0o644)


if __name__ == "__main__":
    main()
