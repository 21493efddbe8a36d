"""ONNX Runtime: on the CPU, or on a GPU through its CUDA and TensorRT execution providers."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from ptp.bundle import Bundle
from ptp.bundle.contract import becomes
from ptp.bundle.manifest import Dtype, GraphSpec, TensorSpec
from ptp.errors import BackendError, ConfigError
from ptp.runtime.backends.base import CPU_PREFILL_CHUNK, Array, DeviceTensor, LoadGraph, Shape, refuse_difference
from ptp.runtime.backends.onnxruntime_cache import CacheTensor, room_for
from ptp.tolerances import ask_exact

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
}
"""What users call an execution provider, and what ONNX Runtime calls it."""

PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""CUDA would round float32 products to 11 bits, and other tokens could be kept than on the CPU."""

ELEMENT_TYPES: dict[str, Dtype] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}

LOG_FATAL = 4  # ONNX Runtime's severity: it raises its errors, and would print them as well


class OnnxRuntimeGraph:
    """A graph in an ONNX Runtime session (implements `Graph`).

    Args:
        path: the ONNX file.
        spec: what its inputs and outputs must be.
        provider: a key of `PROVIDERS`.
        threads: CPU threads of one operator, ONNX Runtime's choice if None.

    Raises:
        ConfigError: there is no such provider.
        BackendError: the provider is not available, the file cannot be loaded, or it differs from `spec`.
    """

    largest: Mapping[str, Shape] = MappingProxyType({})

    def __init__(self, path: Path, spec: GraphSpec, *, provider: str = "cpu", threads: int | None = None) -> None:
        names = _providers(provider, spec)
        options = ort.SessionOptions()
        options.log_severity_level = LOG_FATAL
        ask_exact(options)
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(
                path, options, providers=[(name, PROVIDER_OPTIONS.get(name, {})) for name in names]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise BackendError(f"ONNX Runtime cannot load {path}", got=error) from error
        session.disable_fallback()
        if session.get_providers()[: len(names)] != names:
            raise BackendError(
                f"ONNX Runtime could not start {' and '.join(names)}",
                got=", ".join(session.get_providers()),
                do=f"install the libraries that {names[0]} needs or use --provider cpu",
            )
        self._session = session
        self._device = "cpu" if provider == "cpu" else "cuda"
        self.prefill_chunk = CPU_PREFILL_CHUNK if provider == "cpu" else None
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        refuse_difference(path, self.inputs, self.outputs, spec)

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """See `Graph.run`."""
        return self._run(feeds, {})

    def _run(self, feeds: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph; outputs that `places` names are written there, to an `OrtValue`."""
        try:
            binding = self._session.io_binding()
            inputs = {name: _to_ort_value(value) for name, value in feeds.items()}  # a binding keeps no array alive
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            for output in self.outputs:
                if output.name in places:
                    binding.bind_ortvalue_output(output.name, places[output.name])
                else:
                    binding.bind_output(output.name, self._device)
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except Exception as error:  # as above
            raise BackendError("ONNX Runtime failed", got=error) from error
        return {output.name: value for output, value in zip(self.outputs, values, strict=True)}


class InPlaceDecoder(OnnxRuntimeGraph):
    """A decoder that writes new keys and values into the buffers that hold the past (implements `Graph`).

    To its user it is the decoder whose cache grows by concatenation: past goes in, past and new rows come out, and what
    came out never changes. The arguments are those of `OnnxRuntimeGraph`.
    """

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """See `Graph.run`."""
        past = {name: value for name, value in feeds.items() if name.startswith("past_key_values.")}
        total = self._total(feeds, past)
        cache = room_for(past, total, self._device)
        pairs = {output.name: becomes(output.name) for output in self.outputs if becomes(output.name) in past}
        places = {output: cache.values[name] for output, name in pairs.items()}
        outputs = self._run({**feeds, **cache.values}, places)
        return outputs | {output: CacheTensor(cache=cache, name=name, length=total) for output, name in pairs.items()}

    def _total(self, feeds: Mapping[str, Any], past: Mapping[str, Any]) -> int:
        """Return the rows of the cache after the run, which must be as many as the mask says: the graph goes by it."""
        try:
            total, new = (_shape(feeds[name])[1] for name in ("attention_mask", "inputs_embeds"))
            lengths = {_shape(value)[2] for value in past.values()}
        except (KeyError, IndexError) as error:
            raise BackendError(
                "ONNX Runtime failed", got="attention_mask, inputs_embeds or the past is missing or of another rank"
            ) from error
        if lengths != {total - new} or new < 1:
            raise BackendError(
                "ONNX Runtime failed",
                got=f"attention_mask of {total} tokens, inputs_embeds of {new}, past of {sorted(lengths)}",
                expected="as many in the mask as in the other two together",
            )
        return total


def loader(provider: str, *, threads: int | None) -> LoadGraph:
    """Return the function that loads graphs in ONNX Runtime.

    Raises:
        ConfigError: there is no such provider.
        BackendError: it is not available here.
    """
    available_provider(provider)
    if provider != "cpu":
        # CUDA's libraries may be Python packages, where nothing else looks for them; what is missing it prints, and the
        # session says so again
        with redirect_stdout(StringIO()):
            ort.preload_dlls()

    def load(bundle: Bundle, spec: GraphSpec) -> OnnxRuntimeGraph:
        # looking rows up needs no threads, and those of the embedding would spin while the decoder computes
        graphs = bundle.manifest.graphs
        own = 1 if spec == graphs.embed_tokens else threads
        if provider == "cpu" and spec == graphs.vision_encoder:
            spec = graphs.vision_encoder_onnxruntime or spec
        fused = graphs.decoder_onnxruntime
        # CUDA has GroupQueryAttention in FP16 alone
        runs_fused = provider == "cpu" or (provider == "cuda" and bundle.manifest.model.precision == "fp16")
        if fused and spec == graphs.decoder_model_merged and runs_fused:
            spec = fused
        graph = InPlaceDecoder if spec == fused else OnnxRuntimeGraph
        loaded = graph(bundle.path(spec.file), spec, provider=provider, threads=own)
        bundle.require_unchanged()
        return loaded

    return load


def _providers(provider: str, spec: GraphSpec) -> list[str]:
    """Return what a graph runs on, in order of preference; what none of them has is left to the CPU.

    TensorRT leaves some operators to CUDA. A graph whose shapes change from run to run is all CUDA's: TensorRT would
    build a new engine for each token.
    """
    name = available_provider(provider)
    if provider != "tensorrt":
        return [name]
    cuda = available_provider("cuda")
    # of outputs too: with a K that is an input's value, only they say so
    fixed = all(isinstance(size, int) for tensor in (*spec.inputs, *spec.outputs) for size in tensor.shape)
    return [name, cuda] if fixed else [cuda]


def available_provider(provider: str) -> str:
    """Return ONNX Runtime's name of an execution provider that this installation has.

    Raises:
        ConfigError: there is no such provider.
        BackendError: it is not available here.
    """
    if provider not in PROVIDERS:
        raise ConfigError("no such provider", got=repr(provider), expected=" or ".join(PROVIDERS))
    available = ort.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise BackendError(
            f"the provider {provider} is not available in this ONNX Runtime",
            got=", ".join(short for short, name in PROVIDERS.items() if name in available),
            expected=PROVIDERS[provider],
            do="install the onnxruntime package that has it, or use --provider cpu",
        )
    return PROVIDERS[provider]


def _to_ort_value(value: Array | DeviceTensor) -> Any:
    # a value that ONNX Runtime returned goes back in as it is, without a copy
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _shape(value: Any) -> Sequence[int]:
    shape: Sequence[int] = value.shape() if isinstance(value, ort.OrtValue) else value.shape
    return shape


def _spec(node: Any) -> TensorSpec:
    if node.type not in ELEMENT_TYPES:
        raise BackendError(f"tensor {node.name} has a type that no bundle uses", got=node.type)
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(name=node.name, dtype=ELEMENT_TYPES[node.type], shape=shape)
