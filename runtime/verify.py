"""Run a bundle's parity vectors on a backend and compare what it returns with what was recorded at export."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptp.bundle import Bundle, Manifest
from ptp.bundle.manifest import Precision
from ptp.bundle.vectors import Vector, read_vectors
from ptp.errors import VerificationError
from ptp.runtime.backends.base import Array, LoadGraph
from ptp.runtime.comparison import Agreement, Closeness, compare_integers, compare_values
from ptp.runtime.decoding import Decoder
from ptp.runtime.generation import splice
from ptp.runtime.preprocess.tiles import Tiles, normalised_tiles
from ptp.runtime.tokenize import Prompt
from ptp.runtime.vision import Query, VisualEncoder, VisualTokens
from ptp.tolerances import FEATURES, LOGITS, MOVED, SCORES, Arithmetic, row_difference, value_difference

Check = Closeness | Agreement


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
        images: height and width of each image.
        arithmetic: whose tolerances were applied.
        checks: one for each output, in the order in which the graphs run.
    """

    images: tuple[tuple[int, int], ...]
    arithmetic: Arithmetic
    checks: tuple[Check, ...]

    @property
    def verified(self) -> bool:
        """Whether every output is in order."""
        return all(check.agrees for check in self.checks)

    def require(self) -> None:
        """Refuse outputs that are not in order.

        Raises:
            VerificationError: the first of them, by how much it differs, and how many there are.
        """
        if wrong := [check for check in self.checks if not check.agrees]:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise VerificationError(f"not verified: {wrong[0]}{more}")


def arithmetic_of(
    export: Precision, backend: str, *, provider: str | None = None, precision: str | None = None
) -> Arithmetic:
    """Return how products are rounded.

    Args:
        export: precision of the graphs.
        backend: what runs them.
        provider: ONNX Runtime's execution provider; the CPU's if None.
        precision: what OpenVINO was told to compute with.
    """
    if precision == "bf16":
        return "bf16"
    if export == "fp16":
        return "fp16"
    # engines are built and CUDA is asked without TF32; these two providers decide for themselves
    return "tf32" if provider in ("tensorrt", "nvtensorrtrtx") else "fp32"


def verify_bundle(bundle: Bundle, load_graph: LoadGraph, arithmetic: Arithmetic) -> Verification:
    """Run a bundle's parity vectors on a backend.

    Each graph is fed what was recorded and not what the one before it returned, so that each answers for itself.

    Args:
        bundle: a verified bundle.
        load_graph: the backend.
        arithmetic: how it rounds products.

    Raises:
        SchemaError: the vectors cannot be used.
        BackendError: a graph cannot be loaded, or failed.
    """
    vectors = read_vectors(bundle)
    encoder = VisualEncoder(bundle, load_graph)
    decoder = Decoder(bundle, load_graph, encoder.embedding)
    return Verification(
        images=tuple((int(x.image_size[0]), int(x.image_size[1])) for x in vectors),
        arithmetic=arithmetic,
        checks=(
            _check_embeds(vectors, encoder, arithmetic),
            *_check_vision(vectors, encoder, arithmetic),
            *_check_answers(vectors, encoder, decoder, arithmetic),
        ),
    )


def _check_embeds(vectors: Sequence[Vector], encoder: VisualEncoder, arithmetic: Arithmetic) -> Check:
    pairs = [(encoder.embed(x.input_ids.tolist()), x.inputs_embeds) for x in vectors]
    return compare_values("inputs_embeds", pairs, row_difference, FEATURES[arithmetic])


def _check_vision(vectors: Sequence[Vector], encoder: VisualEncoder, arithmetic: Arithmetic) -> list[Check]:
    manifest, batch = encoder.manifest, encoder.manifest.batch
    queries = [Query(image=_tiles(x, manifest), prompt=_prompt(x), embeds=x.inputs_embeds) for x in vectors]
    calls = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    visuals = [visual for call in calls for visual in encoder.encode(call, alpha=None, keep=None)]
    pairs, moved = list(zip(visuals, vectors, strict=True)), MOVED[arithmetic]
    # rows stand for the same token only where both kept it
    shared = [np.intersect1d(x.positions, y.image_positions, return_indices=True) for x, y in pairs]
    features = [(x.features[i], y.image_features[j]) for (x, y), (_, i, j) in zip(pairs, shared, strict=True)]
    checks: list[Check] = [
        compare_integers("num_valid", [(x.count == len(y.image_positions), 1) for x, y in pairs]),
        compare_integers("packed_length", [(x.packed_length == y.packed_length[0], 1) for x, y in pairs]),
        compare_integers("tile_budgets", [_same_budget(x.tile_budgets, y.tile_budgets) for x, y in pairs], moved),
        compare_integers(
            "image_positions",
            [(len(i), len(y.image_positions)) for y, (_, i, _) in zip(vectors, shared, strict=True)],
            moved,
        ),
        compare_values("image_features", features, row_difference, FEATURES[arithmetic]),
    ]
    if encoder.takes_question:
        alphas = [(np.array([x.alpha]), y.effective_alpha) for x, y in pairs]
        checks.append(compare_values("effective_alpha", alphas, value_difference, SCORES[arithmetic]))
    return checks


def _same_budget(found: Array, recorded: Array) -> tuple[int, int]:
    """Return how many tokens stay in their tile, and how many there are; one that moves changes two budgets."""
    total, differing = int(recorded.sum()), int(np.abs(found - recorded).sum())
    return total - (differing + 1) // 2, total


def _check_answers(
    vectors: Sequence[Vector], encoder: VisualEncoder, decoder: Decoder, arithmetic: Arithmetic
) -> list[Check]:
    logits, counts = [], []
    for vector in vectors:
        # rounding may choose another token where two are nearly as good, and the answer goes another way from there
        close = np.append(vector.leads <= 2 * LOGITS[arithmetic], True)
        tokens = vector.tokens[: close.argmax()].tolist()
        found, equal, asked = _answer(vector, tokens, encoder, decoder)
        logits.append((found, vector.logits))
        counts.append((equal, asked))
    return [
        compare_values("logits", logits, value_difference, LOGITS[arithmetic]),
        compare_integers("tokens", counts),
    ]


def _answer(
    vector: Vector, tokens: Sequence[int], encoder: VisualEncoder, decoder: Decoder
) -> tuple[NDArray[np.float32], int, int]:
    """Return the logits (V,) after the prompt and image, how many tokens the answer begins with, and of how many.

    Tokens that the cache has no room for are not asked for.
    """
    visual = VisualTokens(
        features=vector.image_features,
        positions=vector.image_positions,
        packed_length=int(vector.packed_length[0]),
        tile_budgets=vector.tile_budgets,
        alpha=float(vector.effective_alpha[0]),
        tiles=_tiles(vector, encoder.manifest),
    )
    sequence = splice(_prompt(vector), vector.inputs_embeds, visual, encoder.manifest.pruning.positions)
    if decoder.max_context is not None:  # the last token is predicted and never fed
        tokens = tokens[: decoder.max_context - len(sequence.positions) + 1]
    decoding = decoder.begin()
    prediction = decoding.prefill(sequence.embeds, sequence.positions)
    first = prediction.logits
    for equal, token in enumerate(tokens):
        if prediction.tokens.numpy().tolist() != [[token]]:
            return first, equal, len(tokens)
        if equal + 1 < len(tokens):
            prediction = decoding.append(prediction.tokens)
    return first, len(tokens), len(tokens)


def _tiles(vector: Vector, manifest: Manifest) -> Tiles:
    height, width = vector.image_size.tolist()
    rows, columns = vector.tile_grid.tolist()
    return normalised_tiles(vector.tiles, (height, width), (rows, columns), manifest.tiling)


def _prompt(vector: Vector) -> Prompt:
    ids, start = vector.input_ids.tolist(), int(vector.prefix_length[0])
    return Prompt(prefix=ids[:start], suffix=ids[start:], question_mask=vector.question_mask)
