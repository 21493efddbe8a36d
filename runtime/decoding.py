"""The language model's decoder with its key/value cache."""

import numpy as np
from numpy.typing import NDArray

from ptp.bundle import Bundle
from ptp.runtime.backends.base import DTYPES, Array, DeviceTensor, LoadGraph
from ptp.runtime.vision import require_names


class Decoder:
    """The decoder graph of a bundle; several answers may be decoded at once, each with its own `Decoding`.

    Args:
        bundle: a verified bundle.
        load_graph: the backend.

    Raises:
        SchemaError: the graph's inputs and outputs are not those of such a decoder.
        BackendError: the graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, load_graph: LoadGraph) -> None:
        spec, model = bundle.manifest.graphs.decoder_model_merged, bundle.manifest.language_model
        cache = [f"{layer}.{part}" for layer in range(model.num_layers) for part in ("key", "value")]
        self.past_names = {f"present.{name}": f"past_key_values.{name}" for name in cache}
        require_names(
            spec,
            inputs=("inputs_embeds", "attention_mask", "position_ids", *self.past_names.values()),
            outputs=("logits", *self.past_names),
        )
        self.graph = load_graph(bundle, spec)
        self.dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in spec.inputs}
        self.model = model

    @property
    def max_context(self) -> int | None:
        """Tokens that the cache has room for; None where nothing but memory is a limit."""
        mask = self.graph.largest.get("attention_mask")  # (1, past + S)
        return None if mask is None else mask[1]

    def begin(self) -> "Decoding":
        """Return a decoding with an empty cache."""
        return Decoding(self)


class Decoding:
    """One sequence in the making. The cache stays on the backend's device between steps.

    Args:
        decoder: the graph and its sizes.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._length = 0
        empty = (1, decoder.model.num_kv_heads, 0, decoder.model.head_dim)
        self._past: dict[str, Array | DeviceTensor] = {
            name: np.zeros(empty, decoder.dtypes[name]) for name in decoder.past_names.values()
        }

    def step(self, embeds: Array, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append tokens to the sequence and return the logits (V,) of the last one.

        Args:
            embeds: (S, H).
            positions: (S,) position of each token.

        Raises:
            BackendError: the decoder failed.
        """
        dtypes = self._decoder.dtypes
        self._length += len(positions)
        outputs = self._decoder.graph.run(
            {
                "inputs_embeds": embeds[None].astype(dtypes["inputs_embeds"], copy=False),  # (1, S, H)
                "attention_mask": np.ones((1, self._length), dtypes["attention_mask"]),  # (1, past + S)
                "position_ids": positions[None].astype(dtypes["position_ids"], copy=False),  # (1, S)
                **self._past,
            }
        )
        self._past = {past: outputs[present] for present, past in self._decoder.past_names.items()}
        logits: NDArray[np.float32] = outputs["logits"].numpy()[0, -1].astype(np.float32, copy=False)
        return logits
