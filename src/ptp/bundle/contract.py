"""What the graphs must look like by the manifest's other facts."""

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptp.bundle.manifest import GraphSpec, LanguageModel, Manifest, TensorSpec

Shape = tuple[int | str, ...]

GRAPH_FOLDER = "onnx/"
"""Where the graphs and their weights are, and nothing else that is not listed."""

MAX_BATCH = 64
"""Images of one call: beyond, a graph's activations outgrow every board this is for."""

MAX_GRAPH_BYTES = 1 << 32
"""Inputs and outputs of one call of the vision graph."""

MAX_TOKEN_BYTES = 1 << 26
"""Inputs and outputs of the embedding or the decoder for one token, its row of the cache included."""

ELEMENT_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "bool": 1}

ANY = "?"
"""Stands for a dimension that is named at run time."""


def disagreements(manifest: "Manifest") -> list[str]:
    """Return every graph whose place and every tensor whose shape contradicts the manifest's other facts.

    Which inputs the vision graph has follows from the manifest too. Of the other graphs a name that is not known is not
    looked at: their user knows which names it needs.
    """
    graphs, text = manifest.graphs, manifest.language_model
    problems = [] if manifest.batch <= MAX_BATCH else [f"batch {manifest.batch} is more than {MAX_BATCH}"]
    problems += [f"graph file {x.file!r} is not among the files" for x in graphs.all if x.file not in manifest.files]
    problems += [
        f"graph file {x.file!r} is not in {GRAPH_FOLDER}" for x in graphs.all if not x.file.startswith(GRAPH_FOLDER)
    ]
    problems += [] if manifest.vectors in manifest.files else [f"vectors {manifest.vectors!r} is not among the files"]
    problems += [problem for graph in graphs.all for problem in _doubles(graph)]
    problems += _vision_names(manifest) + _misfits(graphs.vision_encoder, _vision_shapes(manifest))
    vision, twin = graphs.vision_encoder, graphs.vision_encoder_onnxruntime
    if twin is not None and _signature(twin) != _signature(vision):
        problems.append(f"{twin.file} has other inputs or outputs than {vision.file}")
    embeds: dict[str, Shape] = {"input_ids": (ANY, ANY), "inputs_embeds": (ANY, ANY, text.hidden_size)}
    problems += _misfits(graphs.embed_tokens, embeds)
    for spec, batch in ((graphs.decoder_model_merged, ANY), (graphs.decoder_onnxruntime, 1)):
        if spec is not None:
            problems += _decoder_misfits(spec, batch, text) + _broken_loops(graphs.embed_tokens, spec)
    return problems + _impossible_tokens(manifest) + _too_large(manifest)


def _impossible_tokens(manifest: "Manifest") -> list[str]:
    """Return what says of tokens that there are more than an image or the vocabulary has."""
    pruning, tiling, prompting = manifest.pruning, manifest.tiling, manifest.prompting
    tile, rows = tiling.tokens_per_tile, max(rows for rows, _ in tiling.grids) * tiling.tokens_per_side
    visual, levels, vocabulary = tiling.max_tiles * tile, pruning.levels, manifest.language_model.vocab_size
    counts = [
        ("the thumbnail's level", levels.thumbnail, tile),
        ("the levels of thumbnail and crops", levels.thumbnail + levels.crops, visual),
        ("the newlines' level", levels.newline, rows),
        ("max_kept", pruning.keep_range.max_kept if pruning.keep_range else 0, visual + rows),
        ("image_token_id", prompting.image_token_id, vocabulary - 1),
        ("an end token's id", max(prompting.eos_token_ids, default=0), vocabulary - 1),
    ]
    return [f"{what} is {found}, more than {most}" for what, found, most in counts if found > most]


def _too_large(manifest: "Manifest") -> list[str]:
    """Return the graphs whose inputs and outputs would fill the memory; a size of run time counts as the least."""
    graphs, bounds = manifest.graphs, manifest.pruning.keep_range
    kept = bounds.max_kept if bounds else 1
    vision = [(x, MAX_GRAPH_BYTES, kept, "") for x in (graphs.vision_encoder, graphs.vision_encoder_onnxruntime)]
    text = (graphs.embed_tokens, graphs.decoder_model_merged, graphs.decoder_onnxruntime)
    return [
        f"{graph.file} takes and returns more than {limit} bytes{unit}"
        for graph, limit, named, unit in (*vision, *((graph, MAX_TOKEN_BYTES, 1, " a token") for graph in text))
        if graph and sum(_bytes(spec, named) for spec in (*graph.inputs, *graph.outputs)) > limit
    ]


def _bytes(spec: "TensorSpec", named: int) -> int:
    return ELEMENT_BYTES[spec.dtype] * math.prod(named if isinstance(size, str) else size for size in spec.shape)


def _signature(graph: "GraphSpec") -> list[list[tuple[str, str, Shape]]]:
    """Return what a graph takes and returns; what a size of run time is called does not count."""
    return [
        [(x.name, x.dtype, tuple(ANY if isinstance(size, str) else size for size in x.shape)) for x in tensors]
        for tensors in (graph.inputs, graph.outputs)
    ]


def _decoder_misfits(spec: "GraphSpec", batch: int | str, text: "LanguageModel") -> list[str]:
    expected: dict[str, Shape] = {
        "inputs_embeds": (batch, ANY, text.hidden_size),
        "attention_mask": (batch, ANY),
        "position_ids": (batch, ANY),
        "logits": (batch, 1, text.vocab_size),
        "next_tokens": (batch, 1),
        "next_attention_mask": (batch, ANY),
        "next_position_ids": (batch, 1),
    }
    problems = []
    for prefix, tensors in (("past_key_values.", spec.inputs), ("present.", spec.outputs)):
        names = [x.name for x in tensors if x.name.startswith(prefix)]
        if len(names) != 2 * text.num_layers:
            problems.append(f"{len(names)} tensors {prefix}* for {text.num_layers} layers")
        expected |= dict.fromkeys(names, (batch, text.num_kv_heads, ANY, text.head_dim))
    return problems + _misfits(spec, expected)


def _broken_loops(embed: "GraphSpec", decoder: "GraphSpec") -> list[str]:
    """Return the outputs that one step of decoding feeds back into an input of another element type."""
    inputs = {spec.name: spec for spec in (*embed.inputs, *decoder.inputs)}
    return [
        f"{spec.name} is {spec.dtype} and {inputs[name].name}, which it becomes, {inputs[name].dtype}"
        for spec in (*embed.outputs, *decoder.outputs)
        if (name := becomes(spec.name)) in inputs and inputs[name].dtype != spec.dtype
    ]


def becomes(output: str) -> str:
    """Return the input that an output of the embedding or the decoder is fed to in the next step of decoding.

    Outputs that are fed to nothing, such as `logits`, have no such input, whatever is returned for them.
    """
    if output == "next_tokens":
        return "input_ids"
    if output.startswith("present."):
        return output.replace("present.", "past_key_values.", 1)
    return output.removeprefix("next_")


def _vision_names(manifest: "Manifest") -> list[str]:
    """Return what the vision graph lacks, or has although nothing would feed or read it."""
    pruning, graph = manifest.pruning, manifest.graphs.vision_encoder
    inputs = {"pixel_values", "image_sizes", "tile_grid"}
    outputs = {"image_features", "image_positions", "num_valid", "tile_budgets", "packed_length"}
    if pruning.instruction != "none":
        inputs |= {"alpha", "prompt_embeds", "prompt_mask", "question_mask", "prefix_length"}
        outputs |= {"effective_alpha"}
    if pruning.keep_range:
        inputs |= {"num_kept"}
    problems = []
    for kind, specs, expected in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        names = [spec.name for spec in specs]
        problems += [f"no {kind} {name} in {graph.file}" for name in sorted(expected - set(names))]
        problems += [f"unknown {kind} {name} in {graph.file}" for name in sorted(set(names) - expected)]
    return problems


def _doubles(graph: "GraphSpec") -> list[str]:
    return [
        f"{kind} {name} twice in {graph.file}"
        for kind, specs in (("input", graph.inputs), ("output", graph.outputs))
        for name, times in sorted(Counter(spec.name for spec in specs).items())
        if times > 1
    ]


def _vision_shapes(manifest: "Manifest") -> dict[str, Shape]:
    tiling, text, pruning = manifest.tiling, manifest.language_model, manifest.pruning
    longest, size, batch = manifest.prompting.max_prompt, tiling.tile_size, manifest.batch
    kept = ANY if pruning.keep_range else pruning.num_kept
    return {
        "pixel_values": (batch, tiling.max_tiles, 3, size, size),
        "image_sizes": (batch, 2),
        "tile_grid": (batch, 2),
        "alpha": (batch,),
        "prompt_embeds": (batch, longest, text.hidden_size),
        "prompt_mask": (batch, longest),
        "question_mask": (batch, longest),
        "prefix_length": (batch,),
        "num_kept": (1,),
        "image_features": (batch, kept, text.hidden_size),
        "image_positions": (batch, kept),
        "num_valid": (batch,),
        "tile_budgets": (batch, tiling.max_tiles),
        "packed_length": (batch,),
        "effective_alpha": (batch,),
    }


def _misfits(graph: "GraphSpec", expected: dict[str, Shape]) -> list[str]:
    return [
        f"{spec.name} is {_text(spec.shape)} in {graph.file} and {_text(expected[spec.name])} by the other facts"
        for spec in (*graph.inputs, *graph.outputs)
        if spec.name in expected and not _fits(spec.shape, expected[spec.name])
    ]


def _fits(found: Shape, expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        isinstance(size, str) if wanted == ANY else size == wanted for size, wanted in zip(found, expected, strict=True)
    )


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
