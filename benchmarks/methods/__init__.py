"""Token pruning methods that users would otherwise pick, one readable file each, under one budget.

Every method answers `choose(view, budget)` with exactly min(budget, real tokens) positions of visual tokens. The
budget is PTP's ⌊keep · T · N⌋; newline tokens are all kept and not counted (`with_newlines`).
"""

from ptp.benchmarks.methods.dart import Dart
from ptp.benchmarks.methods.fastervlm import FasterVlm
from ptp.benchmarks.methods.fastv import FastV
from ptp.benchmarks.methods.globalcom2 import GlobalCom2
from ptp.benchmarks.methods.hired import Hired
from ptp.benchmarks.methods.random_tokens import RandomTokens
from ptp.benchmarks.methods.thumbnail import Thumbnail
from ptp.benchmarks.methods.uniform_grid import UniformGrid
from ptp.benchmarks.methods.view import Choice, Method, View, with_newlines
from ptp.benchmarks.methods.visionzip import VisionZip

_ALL: tuple[Method, ...] = (
    RandomTokens(),
    UniformGrid(),
    Thumbnail(),
    FasterVlm(),
    FasterVlm(name="fastervlm_image", per_tile=False),
    Hired(),
    GlobalCom2(),
    GlobalCom2(name="globalcom2_softmax", softmax=True),
    GlobalCom2(name="globalcom2_penultimate", layer=-2),
    VisionZip(),
    VisionZip(name="visionzip_mean", merge="mean"),
    VisionZip(name="visionzip_unmerged", merge="none"),
    Dart(),
    Dart(name="dart_image", text_pivots=0),
    FastV(),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

__all__ = ["METHODS", "Choice", "Method", "View", "with_newlines"]
