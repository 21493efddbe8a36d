"""The language model's decoder with its key/value cache."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptp.bundle import Bundle
from ptp.bundle.contract import becomes
from ptp.runtime.backends.base import DTYPES, Array, DeviceTensor, Graph, LoadGraph
from ptp.runtime.sampling import unusable_logits
from ptp.runtime.vision import require_names


class Decoder:
    """The decoder graph of a bundle; several answers may be decoded at once, each with its own `Decoding`.

    Args:
        bundle: a verified bundle.
        load_graph: the backend.
        embedding: the bundle's embedding graph, loaded on the same backend.

    Raises:
        SchemaError: the graph's inputs and outputs are not those of such a decoder.
        BackendError: the graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, load_graph: LoadGraph, embedding: Graph) -> None:
        spec, model = bundle.manifest.graphs.decoder_model_merged, bundle.manifest.language_model
        cache = [f"present.{layer}.{part}" for layer in range(model.num_layers) for part in ("key", "value")]
        self.past_names = {name: becomes(name) for name in cache}
        self.next_inputs = self.past_names | {x: becomes(x) for x in ("next_attention_mask", "next_position_ids")}
        require_names(
            spec,
            inputs=("inputs_embeds", *self.next_inputs.values()),
            outputs=("logits", "next_tokens", *self.next_inputs),
        )
        self.graph = load_graph(bundle, spec)
        self.embedding = embedding
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


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What may come next; it stays on the backend's device until someone asks for it.

    Attributes:
        tokens: (1, 1) int64, the likeliest token, as `Decoding.append` takes it.
        num_tokens: V, of the vocabulary.
    """

    tokens: DeviceTensor
    num_tokens: int
    _logits: DeviceTensor

    @property
    def token(self) -> int:
        """The likeliest token.

        Raises:
            BackendError: the logits hold no usable number.
        """
        token = int(self.tokens.numpy()[0, 0])
        if not 0 <= token < self.num_tokens:
            raise unusable_logits()
        return token

    @property
    def logits(self) -> NDArray[np.float32]:
        """(V,)."""
        logits: NDArray[np.float32] = self._logits.numpy()[0, -1].astype(np.float32, copy=False)
        return logits


class Decoding:
    """One sequence in the making. All that a step hands to the next one stays on the backend's device.

    Args:
        decoder: the graph and its sizes.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._state: dict[str, Array | DeviceTensor] = {}

    def prefill(self, embeds: Array, positions: NDArray[np.int64]) -> Prediction:
        """Begin the sequence with a prompt.

        Args:
            embeds: (S, H).
            positions: (S,) position of each token.

        Raises:
            BackendError: the decoder failed.
        """
        decoder, dtypes = self._decoder, self._decoder.dtypes
        rows = embeds[None].astype(dtypes["inputs_embeds"], copy=False)  # (1, S, H)
        places = positions[None].astype(dtypes["position_ids"], copy=False)  # (1, S)
        mask = np.ones_like(places, dtypes["attention_mask"])
        empty = (1, decoder.model.num_kv_heads, 0, decoder.model.head_dim)
        self._state = {name: np.zeros(empty, dtypes[name]) for name in decoder.past_names.values()}
        chunk = decoder.graph.prefill_chunk or len(positions)
        for start in range(0, len(positions), chunk):
            end = start + chunk
            self._state |= {"attention_mask": mask[:, :end], "position_ids": places[:, start:end]}
            prediction = self._step(rows[:, start:end])
        return prediction

    def append(self, tokens: Array | DeviceTensor) -> Prediction:
        """Append a token, at the position after the last one.

        Args:
            tokens: (1, 1) int64; a prediction's own never leaves the device.

        Raises:
            BackendError: the embedding or the decoder failed.
        """
        return self._step(self._decoder.embedding.run({"input_ids": tokens})["inputs_embeds"])

    def _step(self, embeds: Array | DeviceTensor) -> Prediction:
        decoder = self._decoder
        outputs = decoder.graph.run({"inputs_embeds": embeds, **self._state})
        self._state = {name: outputs[output] for output, name in decoder.next_inputs.items()}
        return Prediction(tokens=outputs["next_tokens"], num_tokens=decoder.model.vocab_size, _logits=outputs["logits"])
