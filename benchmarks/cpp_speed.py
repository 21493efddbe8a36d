"""Python and C++ on the same bundle, side by side in one run: encoding, time to first token, tokens per second.

    python benchmarks/cpp_speed.py BUNDLE --image photo.jpg --prompt "Where is the cat?" [--repeats 5] [--threads 2]

Both use the ONNX Runtime of the Python package and take turns, so that a slow moment of the machine hits both; medians
are printed, and whether the tokens are the same. The first token counts when its text is there. `--endless` asks a copy
of the bundle that knows no end token, since the demo's answers are one word. `libptp.so` is driven through its C
interface; `scripts/demo-cpp` builds it.

Run it with nothing else running.
"""

import argparse
import ctypes as c
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from ptp.runtime.pipeline import Pipeline

LIBRARY = Path(__file__).parents[1] / ".cpp/build/release/libptp.so"
TokenCallback = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int64, c.c_char_p, c.c_size_t)


class Options(c.Structure):
    """`ptp_options`."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("backend", c.c_char_p),
        ("onnxruntime", c.c_char_p),
        ("target", c.c_char_p),
        ("threads", c.c_int),
        ("vision_only", c.c_int),
    )


class GenerateOptions(c.Structure):
    """`ptp_generate_options`."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("max_new_tokens", c.c_int64),
        ("stop", c.c_void_p),
        ("num_stop", c.c_size_t),
    )


class Cpp:
    """libptp, called as an application would call it.

    Args:
        library: libptp.so.
        bundle: the bundle's folder.
        threads: CPU threads of one operator.
    """

    def __init__(self, library: Path, bundle: Path, threads: int) -> None:
        self._ptp: Any = c.CDLL(str(library))
        self._ptp.ptp_last_error.restype = c.c_char_p
        (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
        options, error = Options(struct_size=c.sizeof(Options)), c.create_string_buffer(1000)
        options.onnxruntime, options.threads = str(runtime).encode(), threads
        self._session = c.c_void_p()
        if self._ptp.ptp_open(str(bundle).encode(), c.byref(options), c.byref(self._session), error, 1000):
            raise SystemExit(error.value.decode())

    def __call__(self, image: Path, prompt: str, max_new_tokens: int) -> tuple[list[int], list[float]]:
        """Return the tokens and the moments: start, encoded, each piece of text, end."""
        tiles, visual, tokens, moments = c.c_void_p(), c.c_void_p(), list[int](), [time.perf_counter()]

        def on_token(_: Any, token: int, text: bytes, size: int) -> int:
            if size:
                moments.append(time.perf_counter())
            if token >= 0:
                tokens.append(token)
            return 0

        options = GenerateOptions(struct_size=c.sizeof(GenerateOptions), max_new_tokens=max_new_tokens)
        text = prompt.encode()
        self._check(self._ptp.ptp_tiles_from_file(self._session, str(image).encode(), c.byref(tiles)))
        self._check(self._ptp.ptp_encode(self._session, tiles, text, None, c.byref(visual)))
        moments.append(time.perf_counter())
        callback = TokenCallback(on_token)
        self._check(self._ptp.ptp_generate(self._session, visual, text, c.byref(options), callback, None, None))
        moments.append(time.perf_counter())
        self._ptp.ptp_visual_free(visual)
        self._ptp.ptp_tiles_free(tiles)
        return tokens, moments

    def _check(self, status: int) -> None:
        if status:
            raise SystemExit(self._ptp.ptp_last_error(self._session).decode())


def python(pipeline: Pipeline, image: Path, prompt: str, max_new_tokens: int) -> tuple[list[int], list[float]]:
    """Return the same of the Python runtime."""
    moments = [time.perf_counter()]
    visual = pipeline.encode(image, prompt)
    moments.append(time.perf_counter())
    generation = pipeline.stream_from(visual, prompt, max_new_tokens=max_new_tokens)
    moments += [time.perf_counter() for _ in generation]
    moments.append(time.perf_counter())
    answer = generation.answer()
    return list(answer.token_ids), moments


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--endless", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = endless(options.bundle, Path(scratch)) if options.endless else options.bundle
        measure(options, bundle)


def endless(bundle: Path, scratch: Path) -> Path:
    """Return a copy of a bundle whose answers never end by themselves."""
    copy = Path(shutil.copytree(bundle, scratch / "bundle"))
    manifest = json.loads((copy / "ptp_config.json").read_text(encoding="utf-8"))
    manifest["prompting"]["eos_token_ids"] = []
    (copy / "ptp_config.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


def measure(options: argparse.Namespace, bundle: Path) -> None:
    """Run both sides in turns and print medians."""
    pipeline = Pipeline.load(bundle, threads=options.threads)
    cpp = Cpp(options.library, bundle, options.threads)
    runs: dict[str, Callable[[], tuple[list[int], list[float]]]] = {
        "Python": lambda: python(pipeline, options.image, options.prompt, options.max_new_tokens),
        "C++": lambda: cpp(options.image, options.prompt, options.max_new_tokens),
    }
    tokens = {name: run()[0] for name, run in runs.items()}  # and warm
    moments: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            moments[name].append(run()[1])
    print(f"{'':8}{'encode':>10}{'first token':>14}{'tokens/s':>10}{'all':>10}   {len(tokens['C++'])} tokens")
    for name, found in moments.items():
        encode, first, last = (statistics.median(x[i] - x[0] for x in found) for i in (1, 2, -1))
        rate = (len(tokens[name]) - 1) / (last - first) if len(tokens[name]) > 1 else float("nan")
        print(f"{name:8}{1e3 * encode:>7.1f} ms{1e3 * first:>11.1f} ms{rate:>10.1f}{1e3 * last:>7.1f} ms")
    print("the same tokens" if tokens["Python"] == tokens["C++"] else f"different tokens: {tokens}")


if __name__ == "__main__":
    main()
