"""What `ptp inspect` prints: tables for people, one JSON object for programs."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ptp.bundle import Bundle
from ptp.bundle.engine import EngineConfig, read_engines
from ptp.bundle.manifest import GraphSpec, Manifest, TensorSpec
from ptp.bundle.summary import budget_line, human_bytes, precision_line
from ptp.runtime.vision import VisualTokens


def bundle_tables(bundle: Bundle) -> Iterator[RenderableType]:
    """Yield everything the manifest says about a bundle; plain text is one line each."""
    manifest = bundle.manifest
    yield _facts(manifest)
    yield Text("\n" + budget_line(manifest.pruning, manifest.tiling) + "\n", style="bold")
    yield _levels(manifest)
    for graph in manifest.graphs.all:
        yield _graph(graph)
    yield _files(manifest)
    if engines := read_engines(bundle.folder):
        yield _engines(engines)


def visual_table(visual: VisualTokens, manifest: Manifest) -> RenderableType:
    """Return how one image's budget was divided over its tiles."""
    height, width = visual.tiles.image_size
    rows, columns = visual.tiles.grid
    table = _table(
        f"{width}x{height} pixels, {rows}x{columns} crops: {visual.count} of {visual.packed_length} tokens kept"
        + ("" if visual.alpha is None else f", alpha {visual.alpha:.2f}")
    )
    table.add_column("tile", min_width=42)  # the title's width
    table.add_column("tokens kept", justify="right")
    table.add_column("of", justify="right")
    for tile, (budget, real) in enumerate(zip(visual.tile_budgets, tile_capacities(visual, manifest), strict=False)):
        name = "thumbnail" if tile == 0 else f"crop {(tile - 1) // columns + 1},{(tile - 1) % columns + 1}"
        table.add_row(name, str(budget), str(real))
    return table


def tile_capacities(visual: VisualTokens, manifest: Manifest) -> list[int]:
    """Return the number of tokens of each tile that are not padding, thumbnail first."""
    layout = visual.layout(manifest.tiling)
    cells = [layout.cell(position) for position in range(layout.length)]
    return [sum(cell.tile == tile and not cell.is_newline for cell in cells) for tile in range(visual.tiles.count)]


def visual_json(visual: VisualTokens, manifest: Manifest) -> dict[str, Any]:
    """Return the same as a JSON object."""
    return {
        "image_size": list(visual.tiles.image_size),
        "grid": list(visual.tiles.grid),
        "tile_budgets": visual.tile_budgets[: visual.tiles.count].tolist(),
        "tile_tokens": tile_capacities(visual, manifest),
        "num_valid": visual.count,
        "packed_length": visual.packed_length,
        "positions": visual.positions.tolist(),
        "alpha": visual.alpha,
    }


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _facts(manifest: Manifest) -> Table:
    pruning, tiling, text = manifest.pruning, manifest.tiling, manifest.language_model
    revision = f" at {manifest.model.revision}" if manifest.model.revision else ""
    rtx = manifest.parity.tensorrt_rtx
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "model": f"{manifest.model.id}{revision}, {manifest.model.family}, {precision_line(manifest.model)}",
        "graphs": f"ONNX opset {manifest.opset}",
        "instruction": pruning.instruction + (f", alpha {pruning.alpha}" if pruning.instruction != "none" else ""),
        "saliency": f"CLS attention of vision block {pruning.saliency_layer}",
        "positions": pruning.positions,
        "batch": f"{manifest.batch} image(s) a call",
        "tiles": f"{tiling.max_tiles} of {tiling.tile_size}x{tiling.tile_size} pixels, "
        f"{tiling.tokens_per_tile} tokens each",
        "grids": ", ".join(f"{rows}x{columns}" for rows, columns in tiling.grids),
        "longest prompt": f"{manifest.prompting.max_prompt} text tokens",
        "language model": f"{text.num_layers} layers, {text.num_kv_heads} KV heads of {text.head_dim}, "
        f"vocabulary {text.vocab_size}, {text.max_position_embeddings} positions",
        "parity": f"{len(manifest.parity.images)} images, kept tokens equal the reference, features within "
        f"{manifest.parity.max_feature_difference:.1e}",
        "TensorRT-RTX": f"{rtx} accepted the vision graph" if rtx else "not tried",
        "made by": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _levels(manifest: Manifest) -> Table:
    table = _table("Levels")
    table.add_column("level")
    table.add_column("tokens", justify="right")
    for name, count in manifest.pruning.levels.model_dump().items():
        table.add_row(name, str(count))
    table.add_row("K", str(manifest.pruning.num_kept), style="bold")
    return table


def _graph(graph: GraphSpec) -> Table:
    table = _table(graph.file)
    table.add_column("")
    table.add_column("tensor", no_wrap=True)
    table.add_column("type")
    table.add_column("shape")
    for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for name, spec in _without_cache(tensors):
            table.add_row(direction, Text(name), spec.dtype, Text(f"[{', '.join(map(str, spec.shape))}]"))
    return table


def _without_cache(tensors: tuple[TensorSpec, ...]) -> list[tuple[str, TensorSpec]]:
    """Return names and tensors, the cache's many layers as one line."""
    rows, cache = [], [x for x in tensors if x.name.startswith(("past_key_values.", "present."))]
    for spec in tensors:
        if spec not in cache:
            rows.append((spec.name, spec))
        elif spec == cache[0]:
            rows.append((f"{spec.name.split('.')[0]}.0…{len(cache) // 2 - 1}.{{key,value}}", spec))
    return rows


def _files(manifest: Manifest) -> Table:
    table = _table("Files, sizes and hashes verified")
    table.add_column("file", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("sha256", overflow="fold")
    for name, entry in manifest.files.items():
        table.add_row(Text(name), human_bytes(entry.bytes), entry.sha256)
    return table


def _engines(engines: tuple[EngineConfig, ...]) -> Table:
    table = _table("Engines, as their fingerprints say")
    table.add_column("engine")
    table.add_column("builder")
    table.add_column("profiles")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("build memory", justify="right", no_wrap=True)
    table.add_column("estimated", justify="right", no_wrap=True)
    for engine in engines:
        table.add_row(
            Text(f"{engine.backend} {engine.target} {engine.kind}"),
            Text(engine.builder),
            Text(", ".join(profile.name for profile in engine.profiles)),
            human_bytes(engine.engine.bytes),
            human_bytes(engine.peak_bytes) if engine.peak_bytes else "not measured",
            human_bytes(engine.estimated_bytes),
        )
    return table
