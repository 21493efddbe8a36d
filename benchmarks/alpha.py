"""What the weight of the question does to the demo model's answers: accuracy over α and keep.

    python benchmarks/alpha.py [--instruction attention] [--keeps 0.02 0.05 0.1 0.25]

One export with a run-time keep answers every question of `demo/photos.py` about every photograph, greedily. An answer
counts if it is the memorised one, letter for letter. The demo has memorised its photographs: the table shows how α and
`auto` behave, and is no figure of PTP on a real model.
"""

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import get_args

from rich.progress import track

from ptp import Pipeline
from ptp.alpha import AUTO
from ptp.bundle.manifest import Alpha, Instruction
from ptp.demo.photos import PHOTOS, load_photo
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export

ALPHAS: tuple[Alpha, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, AUTO)


def main() -> None:
    """Export, answer, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = [mode for mode in get_args(Instruction) if mode != "none"]
    parser.add_argument("--instruction", choices=modes, default="attention")
    parser.add_argument("--keeps", nargs="+", type=Fraction, default=[Fraction(n, 100) for n in (2, 5, 10, 25)])
    options = parser.parse_args()
    keeps = sorted(options.keeps)
    with tempfile.TemporaryDirectory() as folder:
        config = ExportConfig(
            model="demo",
            out=Path(folder) / "bundle",
            keep=keeps[0],
            keep_range=(keeps[0], keeps[-1]),
            instruction=options.instruction,
            max_prompt=64,
        )
        export(config)
        pipeline = Pipeline.load(config.out)
    asked = [(load_photo(photo.file), *pair) for photo in PHOTOS for pair in photo.dialogue]
    print(f"--instruction {options.instruction}: right answers of {len(asked)}")
    print("| α | " + " | ".join(f"keep {float(keep):g}" for keep in keeps) + " | mean α |")
    print("|---|" + "---|" * (len(keeps) + 1))
    for alpha in ALPHAS:
        right, used = [], []
        for keep in track(keeps, description=f"α = {alpha}", transient=True):
            generations = [pipeline.stream(image, question, alpha=alpha, keep=keep) for image, question, _ in asked]
            texts = [generation.answer().text.strip() for generation in generations]
            right.append(sum(text == answer for text, (_, _, answer) in zip(texts, asked, strict=True)))
            used += [generation.visual.alpha or 0.0 for generation in generations]
        print(f"| {alpha} | " + " | ".join(map(str, right)) + f" | {sum(used) / len(used):.2f} |", flush=True)


if __name__ == "__main__":
    main()
