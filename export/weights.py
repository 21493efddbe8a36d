"""A checkpoint's weights, read from its files one tensor at a time: only those in use are in memory."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from accelerate import cpu_offload, init_empty_weights
from accelerate.hooks import remove_hook_from_module
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ptp.errors import CheckpointError
from ptp.export.checkpoint_files import weight_files

IN_MEMORY = 1 << 30
"""Bytes of FP32 weights up to which a model is loaded whole; those of a larger one are read whenever they are used."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor is: file, name in it, and shape."""

    file: Path
    key: str
    shape: tuple[int, ...]


class Weights(Mapping[str, Tensor]):
    """Tensors by their names in the model; each access reads one from disk.

    Args:
        places: where they are.
        dtype: what they are rounded to.
        untied: tensors that the configuration ties to another and that have values of their own in the files.
    """

    keep_ties = True
    """Whether tensors that a model ties have one value."""

    def __init__(self, places: Mapping[str, Place], dtype: torch.dtype, untied: frozenset[str] = frozenset()) -> None:
        self.places = places
        self.dtype = dtype
        self.untied = untied

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        with safe_open(place.file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(place.key).to(self.dtype)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def stay_on_disk(self) -> bool:
        """Whether a model would not hold them in memory, where they are FP32."""
        numbers = sum(math.prod(place.shape) for place in self.places.values())
        return torch.float32.itemsize * numbers > IN_MEMORY

    def lazy(self, name: str) -> ir.LazyTensor:
        """Return a tensor for an ONNX model that is read when it is written."""
        return ir.LazyTensor(
            lambda: TorchTensor(self[name], name=name),
            dtype=from_torch_dtype(self.dtype),
            shape=ir.Shape(self.places[name].shape),
            name=name,
        )


def find_weights(folder: Path, model: Any, dtype: torch.dtype) -> Weights:
    """Find every tensor of a model in a checkpoint's files.

    Nothing but the files' headers is read, and tensors that the configuration ties and the files hold twice.

    Args:
        folder: the checkpoint.
        model: the model, without weights; transformers says under which other names old checkpoints hold them.
        dtype: what the weights are rounded to.

    Raises:
        CheckpointError: tensors are missing, extra or of another shape (all named), or a file is missing.
        SafetensorError: a file is damaged.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    found: dict[str, Place] = {}
    for place in _places(weight_files(folder, getattr(model.config, "transformers_weights", None))):
        name, converter = rename_source_key(place.key, renamings, converters, model.base_model_prefix, wanted)
        if converter is not None:
            raise CheckpointError(
                f"{folder} holds weights in a form that is not read", got=place.key, do="save it with transformers 5"
            )
        found.setdefault(place.key if name not in wanted and place.key in wanted else name, place)
    ties, untied = _ties(model.all_tied_weights_keys, found)
    extra = sorted(name for name in found.keys() - wanted.keys() if not _is_old_buffer(name))
    wrong = {
        "missing": sorted(wanted.keys() - found.keys() - ties.keys()),
        "extra": extra,
        "of another shape": sorted(name for name in wanted.keys() & found.keys() if found[name].shape != wanted[name]),
    }
    problems = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys]
    if problems:
        raise CheckpointError(f"the tensors of {folder} are not those of its model", got=", ".join(problems))
    return Weights({name: found[ties.get(name, name)] for name in wanted}, dtype, untied)


def _ties(mapping: Mapping[str, str], found: Mapping[str, Place]) -> tuple[dict[str, str], frozenset[str]]:
    """Return which tensors are another one of the files, and which are not although the configuration says so.

    As `tie_weights` of transformers: of two tied tensors, the one that the files hold is both; if they hold both and
    these differ, they are not tied.

    Args:
        mapping: tied tensors, and what each is tied to.
        found: what the files hold.
    """
    ties: dict[str, str] = {}
    untied = set()
    for name, source in mapping.items():
        if name in found and source in found:
            mine, its = (Weights(found, torch.float32)[x] for x in (name, source))
            if not torch.equal(mine, its):
                untied.add(name)
        elif name in found:
            ties[source] = name
        elif source in found:
            ties[name] = source
    # of more than two, one that is found stands for those whose source is not
    ties |= {name: ties[source] for name, source in mapping.items() if name not in found and source in ties}
    return ties, frozenset(untied)


def _is_old_buffer(name: str) -> bool:
    """Return whether it is a table that models once saved and now compute."""
    return name.endswith(("rotary_emb.inv_freq", ".position_ids"))


def _places(files: list[Path]) -> list[Place]:
    """Return what files hold, in the order in which transformers takes it.

    Of two files that hold the same name, the last one counts. Of two names of the same tensor, the first one does.
    """
    places: dict[str, Place] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # no mapping
                places[key] = Place(file=file, key=key, shape=tuple(opened.get_slice(key).get_shape()))
    return [places[key] for key in sorted(places, key=dot_natural_key)]


def check_finite(weights: Weights, progress: Callable[[int, int], None] | None = None) -> None:
    """Refuse weights that are no numbers, or none once they are rounded; each is read once.

    Args:
        weights: what an export writes.
        progress: called with tensors done and tensors in all.

    Raises:
        CheckpointError: all such tensors, and what to do about them.
    """
    raw: list[str] = []
    beyond: list[str] = []
    for done, name in enumerate(weights):
        if progress:
            progress(done, len(weights))
        if torch.isfinite(weights[name]).all():
            continue
        finite = torch.isfinite(Weights(weights.places, torch.float32)[name]).all()
        (beyond if finite else raw).append(name)
    if raw:
        raise CheckpointError(
            f"{len(raw)} tensors hold numbers that are not finite", got=_shown(raw), do="download the checkpoint again"
        )
    if beyond:
        raise CheckpointError(
            f"{len(beyond)} tensors hold numbers that {str(weights.dtype).removeprefix('torch.')} cannot",
            got=_shown(beyond),
            do="export with --dtype fp32",
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def empty_model(model_class: Any, config: Any, untied: Collection[str] = ()) -> Any:
    """Return a model whose parameters take no memory; what it computes for itself, such as rotary tables, is there.

    Args:
        model_class: transformers' class.
        config: its configuration.
        untied: parameters that are not tied, whatever the configuration says.
    """
    with init_empty_weights(include_buffers=False):
        model = model_class._from_config(copy.deepcopy(config), dtype=torch.float32)
    for name in untied:
        del model.all_tied_weights_keys[name]
        parent, _, own = name.rpartition(".")
        module = model.get_submodule(parent)
        setattr(module, own, nn.Parameter(torch.empty_like(getattr(module, own)), requires_grad=False))
    model.tie_weights(recompute_mapping=False)
    return model.eval()


def fill(model: Any, weights: Weights) -> None:
    """Give an empty model its weights, in FP32 whatever they are rounded to: now, or each time one is used.

    Args:
        model: from `empty_model`; its modules are called, and no parameters of a module without others are read.
        weights: the result of `find_weights`.
    """
    if not weights.stay_on_disk:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        if weights.keep_ties:
            model.tie_weights(recompute_mapping=False)
        return
    cpu_offload(model, torch.device("cpu"), state_dict=weights)
    # parameters beside other modules, such as the newline: small, and read outside of their own module's call
    for path, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if own and any(module.children()):
            remove_hook_from_module(module)
            for name in own:
                value = weights[f"{path}.{name}"].float()
                setattr(module, name, nn.Parameter(value, requires_grad=False))


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model to be traced: its parameters have types and shapes and no values.

    Attributes:
        model: transformers' model, its parameters fake.
        weights: the values.
    """

    model: Any
    weights: Weights

    def initializers(self, graph: nn.Module) -> dict[str, ir.LazyTensor]:
        """Return the values of a module's parameters by their names in it, to be read when they are written.

        Args:
            graph: a module that holds parts of the model.
        """
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            name: self.weights.lazy(names[id(parameter)])
            for name, parameter in graph.named_parameters(remove_duplicate=False)
        }


def make_skeleton(model_class: Any, config: Any, weights: Weights) -> Skeleton:
    """Return a model for tracing; the arguments are those of `empty_model` and the result of `find_weights`."""
    model = empty_model(model_class, config, weights.untied)
    made: dict[int, nn.Parameter] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, empty in module._parameters.items():
                if empty is None:
                    continue
                if id(empty) not in made:  # tied parameters stay one
                    fake = torch.empty(empty.shape, dtype=weights.dtype)
                    made[id(empty)] = nn.Parameter(fake, requires_grad=False)
                module._parameters[name] = made[id(empty)]
    return Skeleton(model=model, weights=weights)
