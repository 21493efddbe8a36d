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

    All tensors are compared. A model that does not fit into memory is loaded as often as a tower has blocks, each time
    with one block in each tower, whose tensors have the names of the first block.

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
    compared: set[str] = set()
    differing: set[str] = set()
    for block in range(_blocks(config)) if weights.stay_on_disk else (None,):
        results = _compare(folder, model_class, config, weights, block)
        compared |= results.keys()
        differing |= {name for name, same in results.items() if not same}
    names = sorted(differing | (weights.keys() - compared))
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise CheckpointError(
            f"the weights that were found in {folder} are not those that transformers loads",
            got=", ".join(names[:4]) + more,
            do="save the model again with transformers (save_pretrained), and report this",
        )
    return len(weights)


def _compare(folder: Any, model_class: Any, config: Any, weights: Weights, block: int | None) -> dict[str, bool]:
    """Return whether tensors are the ones that transformers loads, by name: all of them, or those of one block.

    What stands around the blocks is always among them. No tensor that transformers loaded outlives the call.
    """
    model, info = model_class.from_pretrained(
        folder,
        config=copy.deepcopy(config) if block is None else _one_block(config),
        key_mapping={r"\blayers\.0\.": "left_out.", rf"\blayers\.{block}\.": "layers.0."} if block else None,
        dtype=weights.dtype,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    results = {}
    for name, value in model.state_dict().items():
        if name not in info["missing_keys"]:  # such as the block of a tower that has fewer
            found = name.replace(".layers.0.", f".layers.{block}.") if block else name
            results[found] = _same(weights.get(found), value)
    return results


def _same(found: torch.Tensor | None, loaded: torch.Tensor) -> bool:
    """Return whether two tensors have the same values; a NaN equals itself here."""
    return found is not None and found.shape == loaded.shape and torch.equal(found.nan_to_num(), loaded.nan_to_num())


def _blocks(config: Any) -> int:
    return max(int(part.num_hidden_layers) for part in (config.text_config, config.vision_config))


def _one_block(config: Any) -> Any:
    """Return the configuration of a model with one block in each tower."""
    short = copy.deepcopy(config)
    for part in (short.text_config, short.vision_config):
        part.num_hidden_layers = 1
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1]
    return short
