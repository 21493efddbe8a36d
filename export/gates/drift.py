"""How far a quantised language model is from the one it was made of, on the parity vectors' prompts and kept tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ptp.bundle.manifest import Drift, PositionPolicy
from ptp.bundle.vectors import Vector
from ptp.export.gates.vectors import spliced_positions


def measure_drift(vectors: Sequence[Vector], quantized: Any, original: Any, positions: PositionPolicy) -> Drift:
    """Compare what two models say along the recorded answers, each token given those before it.

    Args:
        vectors: recorded with the quantised model.
        quantized: that model.
        original: the same model, not quantised.
        positions: how kept tokens are numbered.
    """
    agree, divergence = [], []
    for vector in vectors:
        expected, found = (_follow(model, vector, positions) for model in (original, quantized))  # (k, V)
        agree.append(expected.argmax(dim=-1) == found.argmax(dim=-1))
        divergence.append((expected.exp() * (expected - found)).sum(dim=-1))
    return Drift(
        positions=sum(map(len, agree)),
        top1_agreement=float(torch.cat(agree).double().mean()),
        kl_divergence=float(f"{float(torch.cat(divergence).mean()):.3g}"),
    )


def _follow(model: Any, vector: Vector, positions: PositionPolicy) -> Tensor:
    """Return the log-probabilities (k, V) in float64 of the recorded tokens' places."""
    start, count = int(vector.prefix_length[0]), len(vector.tokens)
    text = np.concatenate([vector.input_ids[start:], vector.tokens[:-1]])
    kept, length = vector.image_positions.tolist(), int(vector.packed_length[0])
    places = spliced_positions(start, kept, length, len(text), positions)
    with torch.inference_mode():
        embed = model.get_input_embeddings()
        rows = torch.cat(
            [
                embed(torch.from_numpy(vector.input_ids[:start])),
                torch.from_numpy(vector.image_features).float(),
                embed(torch.from_numpy(text)),
            ]
        )
        hidden = model.model.language_model(
            inputs_embeds=rows[None],
            # without a mask, transformers takes a gap in the positions for the beginning of another text
            attention_mask=torch.ones(1, len(rows), dtype=torch.int64),
            position_ids=torch.tensor([places]),
            use_cache=False,
        ).last_hidden_state
        return log_softmax(model.lm_head(hidden[0, -count:]).double(), dim=-1)
