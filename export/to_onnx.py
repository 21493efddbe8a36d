"""From a torch module to an ONNX model that follows its contract, and from there to disk."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ptp.bundle.manifest import TensorSpec
from ptp.errors import ExportError
from ptp.export.lint import IR_VERSION
from ptp.export.passes import TransposeWeights, finish
from ptp.export.specs import GraphIO
from ptp.export.tensor_file import Progress, write_tensors

INLINE_LIMIT = 64 << 20
"""Bytes of weights up to which a model is one file; above, they stand beside it and are streamed."""

SMALLEST_WEIGHT = 256
"""Bytes from which a constant may stand outside: runtimes read shapes from the file itself."""

# Example sizes of dynamic dimensions: above 1, since torch.export makes constants of 0 and 1, and all different.
EXAMPLE = {
    "batch_size": 2,
    "sequence_length": 3,
    "past_sequence_length": 5,
    "total_sequence_length": 8,
    "cache_length": 11,
}


def trace(
    module: nn.Module,
    io: GraphIO,
    *,
    opset: int,
    optimize: bool = True,
    initializers: Mapping[str, ir.TensorProtocol] | None = None,
) -> ir.Model:
    """Trace a module with `torch.onnx.export` and bring the result into its contract.

    Args:
        module: takes the contract's inputs, by name or the cache as a star; returns its outputs, then its probes.
        io: the contract.
        opset: ONNX opset, 18 to 20.
        optimize: fold constants and remove what has no effect (onnxscript's passes).
        initializers: values of the module's parameters where those are fake (`ptp.export.weights.Skeleton`).

    Raises:
        ExportError: the traced graph's inputs or outputs are not those of the contract.
    """
    outputs = [spec.name for spec in (*io.outputs, *io.probes)]
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(),
            **example_arguments(io),
            dynamo=True,
            opset_version=opset,
            optimize=False,
            input_names=[spec.name for spec in io.inputs],
            output_names=outputs,
            verbose=False,
        )
        if program is None:
            raise ExportError("torch.onnx.export returned nothing")
        values = initializers or {}
        for name in values.keys() & program.model.graph.initializers.keys():
            program.model.graph.initializers[name].const_value = values[name]
        TransposeWeights()(program.model)
        if optimize:
            program.optimize()
        model = program.model
        model.ir_version = IR_VERSION
        finish(model, io)
    _check_contract(model, io)
    return model


def save(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write a model to disk, tensor by tensor; large weights go to `<path>_data`, shared ones stay where they are.

    Args:
        model: the model; its weights may be read while they are written.
        path: of the ONNX file, which is there when all is written.
        progress: called with bytes of large weights written and bytes in all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.nbytes >= SMALLEST_WEIGHT
        and not isinstance(value.const_value, ir.ExternalTensor)
    }
    if sum(tensor.nbytes for tensor in own.values()) > INLINE_LIMIT:
        written = write_tensors(list(own.values()), path.with_name(f"{path.name}_data"), progress)
        for name, tensor in zip(own, written, strict=True):
            model.graph.initializers[name].const_value = tensor
    unfinished = path.with_name(f".{path.name}.unfinished")
    ir.save(model, unfinished)
    unfinished.replace(path)


def _example(spec: TensorSpec) -> Tensor:
    shape = [EXAMPLE[size] if isinstance(size, str) else size for size in spec.shape]
    dtype = getattr(torch, spec.dtype)
    # ones: a valid size, grid, mask and token id, and no special value anywhere
    return torch.ones(shape, dtype=dtype)


def example_arguments(io: GraphIO) -> dict[str, Any]:
    """Return example inputs and their dynamic dimensions, as arguments of `torch.onnx.export`."""
    examples = {spec.name: _example(spec) for spec in io.inputs}
    shapes = {spec.name: {i: size for i, size in enumerate(spec.shape) if isinstance(size, str)} for spec in io.inputs}
    cache = [name for name in examples if name.startswith("past_key_values")]
    if cache:  # forward(inputs_embeds, attention_mask, position_ids, *past): the star takes a tuple of its own
        plain = [name for name in examples if name not in cache]
        dynamic = (*(shapes[name] for name in plain), tuple(shapes[name] for name in cache))
        return {"args": tuple(examples.values()), "dynamic_shapes": dynamic}
    return {"args": (), "kwargs": examples, "dynamic_shapes": shapes if any(shapes.values()) else None}


def _check_contract(model: ir.Model, io: GraphIO) -> None:
    for kind, values, specs in (
        ("inputs", model.graph.inputs, io.inputs),
        ("outputs", model.graph.outputs, io.outputs),
    ):
        found = [_describe(value) for value in values]
        expected = [f"{spec.name}:{spec.dtype}{list(spec.shape)}" for spec in specs]
        if found != expected:
            wrong = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]] or (found, expected)
            raise ExportError(f"the traced graph's {kind} are not those of the contract", got=wrong)


def _describe(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype else "?"
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    shape = [d if isinstance(d, int) else str(d.value) for d in value.shape or ()]
    return f"{value.name}:{dtype}{shape}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own chatter; what matters is checked afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
