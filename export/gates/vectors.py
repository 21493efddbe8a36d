"""Record parity vectors: images with a question, and what transformers and the readable reference make of them.

Nothing of the exported graphs, of ONNX Runtime or of this project's runtime takes part.
"""

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from ptp.anyres import Grid, choose_grid
from ptp.bundle.manifest import PositionPolicy, Tiling
from ptp.bundle.vectors import MAX_TOKENS, Vector
from ptp.errors import CheckpointError
from ptp.export.checkpoint import Checkpoint
from ptp.export.gates.images import Size, gate_image, gate_sizes
from ptp.export.gates.oracle import Oracle, Question, ask_transformers
from ptp.export.gates.parity import expected_regions, process
from ptp.export.plan import Plan
from ptp.export.specs import FLOAT
from ptp.ptp_graph.reference import NEWLINE, Kept, adaptive_alpha, keep_tokens, packed_sequence
from ptp.tolerances import SCORES

Array = NDArray[Any]

QUESTION = "What is in the picture?"
NUM_VECTORS = 3
NUM_LARGE_VECTORS = 1  # of a model whose weights are read from disk for every token
MAX_FEATURE_BYTES = 1 << 25
"""Of all vectors; fewer are recorded where the kept rows are many and wide: 2 of a 7-B model in FP32 at keep 0.25."""

NUM_TRIES = 4
"""Images drawn of a size until the choice on one is clear."""

NUM_DISTURBANCES = 8


def record_vectors(
    plan: Plan, checkpoint: Checkpoint, model: Any, progress: Callable[[int, int], None] | None = None
) -> list[Vector]:
    """Return parity vectors of a model, on images of different grids where it has several.

    An image is drawn anew while its choice of tokens hangs on less than the gates' tolerance: then no rounding of an
    FP32 backend changes it. The last of `NUM_TRIES` is taken as it is.

    Args:
        plan: what is being exported.
        checkpoint: for its processor.
        model: the loaded model, with all its blocks.
        progress: called with vectors done and vectors in all.

    Raises:
        CheckpointError: the chat template cannot be rendered.
    """
    bytes_of_one = plan.schedule.num_kept * plan.language_model.hidden_size * _dtype(plan).itemsize
    most = NUM_LARGE_VECTORS if any(parameter.is_meta for parameter in model.parameters()) else NUM_VECTORS
    sizes = _sizes(plan.tiling)[: max(1, min(most, MAX_FEATURE_BYTES // bytes_of_one))]
    prompt = _prompt(checkpoint, model, plan.config.max_prompt)
    vectors = []
    for done, size in enumerate(sizes):
        if progress:
            progress(done, len(sizes))
        vectors.append(_record(plan, checkpoint, model, size, *prompt))
    return vectors


def _record(plan: Plan, checkpoint: Checkpoint, model: Any, size: Size, ids: list[int], question: Question) -> Vector:
    grid = choose_grid(*size, plan.tiling.grids, plan.tiling.tile_size)
    for seed in range(NUM_TRIES):
        image = gate_image(size, seed)
        oracle = ask_transformers(
            model,
            process(image, checkpoint, plan.tiling).astype(_dtype(plan)),
            size,
            saliency_layer=plan.saliency_layer,
            question=question if plan.config.instruction != "none" else None,
        )
        scores = Scores(oracle, plan, size, grid)
        if scores.decide_clearly():
            break
    kept = scores.keep()
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite, and refused
        features, text = (x.astype(_dtype(plan)) for x in (oracle.features[kept.positions], question.embeds))
    _require_finite(torch.from_numpy(features), "visual features")
    start, rest = question.prefix_length, len(ids) - question.prefix_length
    embeds = np.concatenate([text[:start], features, text[start:]]).astype(np.float32)
    positions = spliced_positions(start, kept.positions, kept.packed_length, rest, plan.config.positions)
    logits, tokens, leads = _answer(model, embeds, positions)
    return Vector(
        tiles=process(image, checkpoint, plan.tiling, do_rescale=False, do_normalize=False).astype(np.uint8),
        image_size=np.array(size),
        tile_grid=np.array(grid),
        input_ids=np.array(ids),
        prefix_length=np.array([start]),
        question_mask=question.mask,
        inputs_embeds=text,
        image_positions=np.array(kept.positions, np.int64),
        image_features=features,
        tile_budgets=np.array(kept.tile_budgets, np.int32),
        packed_length=np.array([kept.packed_length]),
        effective_alpha=np.array([scores.alpha], np.float32),
        logits=logits,
        tokens=np.array(tokens, np.int64),
        leads=np.array(leads, np.float32),
    )


def spliced_positions(
    prefix: int, kept: Sequence[int], packed_length: int, suffix: int, policy: PositionPolicy
) -> list[int]:
    """Return the positions of a prompt's prefix, the kept visual tokens and the text after them.

    Args:
        prefix: tokens before the image.
        kept: positions of the kept tokens in the packed sequence.
        packed_length: its length, unpruned.
        suffix: tokens after the image.
        policy: whether kept tokens keep their positions, or all are counted anew.
    """
    if policy == "compact":
        return list(range(prefix + len(kept) + suffix))
    after = prefix + packed_length
    return [*range(prefix), *(prefix + x for x in kept), *range(after, after + suffix)]


def _dtype(plan: Plan) -> np.dtype[Any]:
    """Return the type of the graphs' inputs and outputs; the model that is asked computes in FP32."""
    return np.dtype(FLOAT[plan.config.precision])


class Scores:
    """The scores of one image by transformers' values, as the reference takes them.

    Args:
        oracle: transformers' view of the image.
        plan: what is being exported.
        size: height and width of the image in pixels.
        grid: its crop grid.
    """

    def __init__(self, oracle: Oracle, plan: Plan, size: Size, grid: Grid) -> None:
        schedule = plan.schedule
        self._place = (schedule, size, grid)
        sequence = np.array(packed_sequence(*size, grid, schedule.side))
        visual = np.flatnonzero(sequence != NEWLINE)
        self._scores = [
            _padded(oracle.token_saliency, schedule.num_tiles),
            expected_regions(oracle, plan, size, grid, sequence[visual]).astype(np.float32),
        ]
        self.alpha = 0.0
        if plan.config.instruction == "none":
            return
        if plan.config.instruction == "similarity":
            assert oracle.similarity is not None
            relevance = _padded(oracle.similarity, schedule.num_tiles)
        else:
            assert oracle.attention is not None
            relevance = np.zeros((schedule.num_tiles, schedule.tokens_per_tile), np.float32)
            relevance.reshape(-1)[sequence[visual]] = oracle.attention[visual]
        alpha = plan.pruning.alpha
        self.alpha = adaptive_alpha(*self._place, self._scores[0], relevance) if alpha == "auto" else float(alpha)
        self._scores.append(relevance)

    def keep(self) -> Kept:
        """Return what the reference keeps."""
        return self._keep(self._scores)

    def decide_clearly(self) -> bool:
        """Return whether scores that are the gates' tolerance away choose the same."""
        random, kept = np.random.default_rng(0), self.keep()
        return all(
            self._keep(
                [x + SCORES["fp32"] * x.max() * random.uniform(-1, 1, x.shape).astype(np.float32) for x in self._scores]
            )
            == kept
            for _ in range(NUM_DISTURBANCES)
        )

    def _keep(self, scores: list[Array]) -> Kept:
        saliency, regions, *relevance = scores
        return keep_tokens(*self._place, saliency, regions, relevance[0] if relevance else None, self.alpha)


def _padded(scores: Array, num_tiles: int) -> Array:
    return np.pad(scores, [(0, num_tiles - len(scores)), (0, 0)])  # (T, N)


def _sizes(tiling: Tiling) -> list[Size]:
    """Return image sizes, one of each grid before the second of any."""
    by_grid: dict[Grid, list[Size]] = {}
    for size in gate_sizes(tiling.grids, tiling.tile_size, tiling.tokens_per_side):
        by_grid.setdefault(choose_grid(*size, tiling.grids, tiling.tile_size), []).append(size)
    return [size for size in chain(*zip_longest(*by_grid.values())) if size is not None]


def _prompt(checkpoint: Checkpoint, model: Any, max_prompt: int) -> tuple[list[int], Question]:
    """Return the text tokens of a question about an image, and the same as the vision graph takes them.

    Where the chat template's prompt is longer than the export takes, the question stands alone and is cut.
    """
    processor, tokenizer = checkpoint.processor, checkpoint.processor.tokenizer
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    try:
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
    except Exception as error:  # a stranger's template can raise anything
        raise CheckpointError(f"the chat template of {checkpoint.id} cannot be rendered", got=error) from error
    bos = tokenizer.bos_token  # a template that writes it must not get a second one
    encoded = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)), return_offsets_mapping=True)
    ids, asked = encoded["input_ids"], text.find(QUESTION)
    mask = [start < asked + len(QUESTION) and end > asked for start, end in encoded["offset_mapping"]]
    images = [i for i, token in enumerate(ids) if token == checkpoint.config.image_token_id]
    if len(images) == 1 and len(ids) - 1 <= max_prompt and any(mask):
        prefix = images[0]
        del ids[prefix], mask[prefix]
    else:
        ids = tokenizer(QUESTION, add_special_tokens=False)["input_ids"][:max_prompt]
        prefix, mask = 0, [True] * len(ids)
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(torch.tensor(ids)).numpy()
    return ids, Question(embeds=embeds, mask=np.array(mask), prefix_length=prefix)


def _answer(model: Any, embeds: Array, positions: list[int]) -> tuple[Array, list[int], list[float]]:
    """Return logits (V,) after the prompt, and the first tokens of the greedy answer with their leads."""
    language, tokens, leads = model.model.language_model, list[int](), list[float]()
    rows, places = torch.from_numpy(embeds)[None], torch.tensor([positions])
    cache, first = DynamicCache(config=language.config), None
    end = model.generation_config.eos_token_id
    with torch.inference_mode():
        while len(tokens) < MAX_TOKENS and (not tokens or tokens[-1] not in (end if isinstance(end, list) else [end])):
            hidden = language(
                inputs_embeds=rows,
                # without a mask, transformers takes a gap in the positions for the beginning of another text
                attention_mask=torch.ones(1, len(embeds) + len(tokens), dtype=torch.int64),
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = model.lm_head(hidden[:, -1:])[0, 0].float()
            _require_finite(logits, "logits")
            first = logits.numpy() if first is None else first
            best = logits.topk(2)
            tokens.append(int(best.indices[0]))
            leads.append(float((best.values[0] - best.values[1]) / logits.abs().max()))
            rows = model.get_input_embeddings()(torch.tensor([tokens[-1:]]))
            places = places[:, -1:] + 1
    assert first is not None
    return first, tokens, leads


def _require_finite(values: torch.Tensor, name: str) -> None:
    if not torch.isfinite(values).all():
        raise CheckpointError(
            f"the model's {name} of a test image are not finite",
            do="export with --dtype fp32, or report the model to its authors",
        )
