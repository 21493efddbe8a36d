"""One-line summaries for people."""

from ptp.bundle.manifest import ModelInfo, Pruning, Quantization, Tiling


def budget_line(pruning: Pruning, tiling: Tiling) -> str:
    """Return keep, reduction, levels and K, such as.

    keep 0.25 = reduction 0.75: 144 thumbnail + 576 crops = 720 of 2880 tokens, + 72 newline rows, K = 792
    """
    levels, tokens, bounds = pruning.levels, tiling.max_tiles * tiling.tokens_per_tile, pruning.keep_range
    at_run_time = (
        f"; at run time keep {bounds.min:g} to {bounds.max:g}, K = {bounds.min_kept} to {bounds.max_kept}"
        if bounds
        else ""
    )
    return (
        f"keep {pruning.keep:g} = reduction {round(1 - pruning.keep, 12):g}: {levels.thumbnail} thumbnail + "
        f"{levels.crops} crops = {levels.thumbnail + levels.crops} of {tokens} tokens, "
        f"+ {levels.newline} newline rows, K = {pruning.num_kept}{at_run_time}"
    )


def precision_line(model: ModelInfo) -> str:
    """Return the type of the weights, such as `fp16, language model int4 in blocks of 32, head int8`."""
    how = model.quantization
    return f"{model.precision}, language model {quantization_line(how)}" if how else model.precision


def quantization_line(how: Quantization) -> str:
    """Return what the language model's matrices are stored as, such as `int4 in blocks of 32, head int8`."""
    head = f", head {how.lm_head}" if how.lm_head != how.weights else ""
    return f"{how.weights} in blocks of {how.block_size}{head}"


def human_bytes(count: float) -> str:
    """Return a number of bytes as text in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
