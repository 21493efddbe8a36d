"""Gate: the weights that an export writes are those that transformers loads by itself.

The graphs are compared with transformers' model, but both get their weights from `ptp.export.weights`: a tensor that it
mistook for another would be wrong on either side. Here `from_pretrained` is asked, which shares no code with it.
"""

import copy
from typing import Any

import torch

from ptp.errors import CheckpointError
from ptp.export.weights import Weights


def check_weights(folder: Any, model_class: Any, config: Any, weights: Weights) -> int:
    """Refuse weights that are not the ones that transformers loads.

    All tensors of a model that fits into memory are compared. Of a larger one, transformers loads the first block of
    both towers and everything around the blocks.

    Args:
        folder: the checkpoint.
        model_class: transformers' class.
        config: its configuration.
        weights: what was found.

    Returns:
        How many tensors were compared.

    Raises:
        CheckpointError: all tensors that differ.
    """
    whole = not weights.stay_on_disk
    model, info = model_class.from_pretrained(
        folder,
        config=copy.deepcopy(config) if whole else _first_blocks(config),
        dtype=weights.dtype,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = info["missing_keys"]
    loaded = {name: value for name, value in model.state_dict().items() if name not in missing}
    names = weights.keys() if whole else loaded.keys()
    differing = [name for name in sorted(names) if name not in loaded or not _same(weights.get(name), loaded[name])]
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise CheckpointError(
            f"the weights that were found in {folder} are not those that transformers loads",
            got=", ".join(differing[:4]) + more,
            do="save the model again with transformers (save_pretrained), and report this",
        )
    return len(names)


def _same(found: torch.Tensor | None, loaded: torch.Tensor) -> bool:
    """Return whether two tensors have the same values; a NaN equals itself here."""
    return found is not None and found.shape == loaded.shape and torch.equal(found.nan_to_num(), loaded.nan_to_num())


def _first_blocks(config: Any) -> Any:
    """Return the configuration of a model with one block in each tower."""
    short = copy.deepcopy(config)
    for part in (short.text_config, short.vision_config):
        part.num_hidden_layers = 1
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1]
    return short
