"""Gate: the decoder for ONNX Runtime alone against the portable one, on a prompt with gaps and the tokens after it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ptp.bundle.contract import becomes
from ptp.bundle.manifest import LanguageModel, Precision
from ptp.errors import ParityError
from ptp.tolerances import LOGITS, ask_exact, value_difference

Array = NDArray[Any]

LENGTHS = (24, 1, 1, 1)
"""Tokens of the prompt and of each step after it."""

GAP = 7
"""Positions that pruning leaves out after every fourth token of the prompt."""


def check_fused_decoder(fused: Path, portable: Path, model: LanguageModel, precision: Precision) -> None:
    """Refuse a fused decoder whose logits are not the portable one's, with keys and values written in place.

    Raises:
        ParityError: by how much they differ, and what is allowed.
    """
    length = LENGTHS[0]
    offsets = np.arange(length) + GAP * (np.arange(length) // 4)
    expected = _logits(portable, model, offsets, room=0)
    found = _logits(fused, model, offsets, room=sum(LENGTHS) + 5)
    for step, pair in enumerate(zip(found, expected, strict=True)):
        difference = value_difference(*pair)
        if not difference <= LOGITS[precision]:
            raise ParityError(
                f"decoder_onnxruntime's logits are not the decoder's at step {step}",
                got=f"{difference:.2g}",
                expected=f"at most {LOGITS[precision]:g}",
            )


def _logits(path: Path, model: LanguageModel, offsets: NDArray[np.int64], *, room: int) -> list[Array]:
    """Return the logits of a prompt and of the steps after it, on inputs that depend on nothing but the model's sizes.

    Args:
        path: the decoder.
        model: its sizes.
        offsets: position of each of the prompt's tokens.
        room: rows of a cache that is both past and present; 0 for one that each step returns longer.
    """
    options = onnxruntime.SessionOptions()
    ask_exact(options)
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.disable_prepacking", "1")  # weights are read where the file is mapped
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random, binding = np.random.default_rng(0), session.io_binding()
    dtype = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    rows = np.zeros((1, model.num_kv_heads, room, model.head_dim), dtype)
    outputs = [output.name for output in session.get_outputs()]
    cache = {
        becomes(name): onnxruntime.OrtValue.ortvalue_from_numpy(rows.copy())
        for name in outputs
        if name.startswith("present.")
    }
    found, seen, position = [], 0, int(offsets[-1])
    for length in LENGTHS:
        seen += length
        positions = offsets if length > 1 else np.array([position := position + 1])
        feeds = {
            "inputs_embeds": random.normal(size=(1, length, model.hidden_size)).astype(dtype),
            "attention_mask": np.ones((1, seen), np.int64),
            "position_ids": positions[None],
        }
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            if room and becomes(name) in cache:
                binding.bind_ortvalue_output(name, cache[becomes(name)])
            else:
                binding.bind_output(name)
        session.run_with_iobinding(binding)
        returned = dict(zip(outputs, binding.get_outputs(), strict=True))
        found.append(returned["logits"].numpy())
        if not room:
            cache = {becomes(name): value for name, value in returned.items() if becomes(name) in cache}
    return found
