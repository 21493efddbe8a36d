"""How far transformers' torchvision image processor is from its PIL form, which our runtime equals.

    python -m pip install --no-deps torchvision==0.28.0
    python benchmarks/torchvision_distance.py

Prints a Markdown table over scikit-image's photographs at the LLaVA-NeXT-336 tile sizes: differences in steps of 0..255
(before normalisation), over all values of all tiles.
"""

from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from PIL import Image

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg")


def load_processors() -> tuple[Any, Any]:
    """Return transformers' LLaVA-NeXT image processor in torchvision and in PIL form."""
    # torchvision's wheel brings compiled operators that a CPU build of torch may not load; resizing uses none of them,
    # but the import registers fake kernels for two, so these must be known
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_normalize": False}
    return LlavaNextImageProcessor(**size), LlavaNextImageProcessorPil(**size)


def main() -> None:
    """Print the table."""
    torchvision_form, pil_form = load_processors()
    print("| photograph | size | largest | mean | values that differ by more than 1 |")
    print("|---|---|---|---|---|")
    for name in PHOTOS:
        image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        ours = np.asarray(pil_form(image, return_tensors="np")["pixel_values"][0]) * 255
        theirs = torchvision_form(image, return_tensors="pt")["pixel_values"][0].numpy() * 255
        difference = np.abs(ours - theirs)
        print(
            f"| {name} | {image.width}×{image.height} | {difference.max():.1f} | {difference.mean():.3f} "
            f"| {100 * (difference > 1.01).mean():.2f} % |"
        )


if __name__ == "__main__":
    main()
