"""Image and question in, the visual tokens that the language model will see out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptp.anyres import PackedLayout
from ptp.bundle import Bundle
from ptp.bundle.manifest import GraphSpec, Pruning, Tiling
from ptp.errors import ConfigError, PromptError, SchemaError
from ptp.runtime.backends.base import DTYPES, Array, LoadGraph
from ptp.runtime.preprocess.images import load_image
from ptp.runtime.preprocess.tiles import Tiles, make_tiles
from ptp.runtime.tokenize import Prompt, Prompter

VISION_INPUTS = (
    "pixel_values",
    "image_sizes",
    "tile_grid",
    "alpha",
    "prompt_embeds",
    "prompt_mask",
    "question_mask",
    "prefix_length",
)
VISION_OUTPUTS = ("image_features", "image_positions", "num_valid", "tile_budgets", "packed_length")


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """The tokens that were kept of one image.

    Attributes:
        features: (n, H), the language model's input rows.
        positions: (n,) int64, ascending: where each stands in the packed sequence.
        packed_length: M, length of the packed sequence before pruning.
        tile_budgets: (T,) int32, tokens given to each tile, thumbnail first.
        tiles: what the encoder saw.
    """

    features: NDArray[Any]
    positions: NDArray[np.int64]
    packed_length: int
    tile_budgets: NDArray[np.int32]
    tiles: Tiles

    @property
    def count(self) -> int:
        """n, the number of visual tokens."""
        return len(self.positions)

    def layout(self, tiling: Tiling) -> PackedLayout:
        """Return where the positions of the packed sequence lie in the image."""
        height, width = self.tiles.image_size
        return PackedLayout(height=height, width=width, grid=self.tiles.grid, side=tiling.tokens_per_side)


class VisualEncoder:
    """The vision graph and the token embedding of a bundle, with the preprocessing around them.

    Args:
        bundle: a verified bundle.
        load_graph: the backend.

    Raises:
        SchemaError: the manifest describes graphs that this runtime cannot feed.
        BackendError: a graph cannot be loaded.
        BundleError: the tokenizer or the chat template is missing.
    """

    def __init__(self, bundle: Bundle, load_graph: LoadGraph) -> None:
        self.manifest = bundle.manifest
        graphs = bundle.manifest.graphs
        require_names(graphs.vision_encoder, inputs=VISION_INPUTS, outputs=VISION_OUTPUTS, subset=True)
        require_names(graphs.embed_tokens, inputs=("input_ids",), outputs=("inputs_embeds",))
        self.prompter = Prompter.from_bundle(bundle)
        self._embed = load_graph(bundle.path(graphs.embed_tokens.file), graphs.embed_tokens)
        self._vision = load_graph(bundle.path(graphs.vision_encoder.file), graphs.vision_encoder)

    @property
    def takes_question(self) -> bool:
        """Whether the question has a say in which tokens are kept."""
        return self.manifest.pruning.instruction != "none"

    def embed(self, ids: Sequence[int]) -> Array:
        """Return the embeddings (S, H) of token ids."""
        feeds = {"input_ids": np.array([ids], np.int64)}  # (1, S)
        embeds: Array = self._embed.run(feeds)["inputs_embeds"].numpy()[0]
        return embeds

    def encode(
        self, image: str | Path | Image.Image, prompt: Prompt | None, embeds: Array | None, alpha: float | None
    ) -> VisualTokens:
        """Return the visual tokens of an image.

        Args:
            image: a file or an open image.
            prompt: the question's tokens; None only where the bundle does not look at the question.
            embeds: (prefix + suffix, H), the embeddings of the prompt's tokens.
            alpha: weight of the question, 0 to 1; the bundle's own if None.

        Raises:
            ConfigError: `alpha` cannot be used.
            PromptError: the bundle looks at the question and there is none.
            ImageError: the image cannot be read.
            BackendError: the vision graph failed.
        """
        weight = check_alpha(alpha, self.manifest.pruning)
        tiles = make_tiles(load_image(image), self.manifest.tiling)
        values: dict[str, Array] = {
            "pixel_values": tiles.pixel_values[None],  # (1, T, 3, S, S)
            "image_sizes": np.array([tiles.image_size]),
            "tile_grid": np.array([tiles.grid]),
        }
        if self.takes_question:
            if prompt is None or embeds is None:
                raise PromptError("this bundle chooses tokens by the question", expected="a question", do="give one")
            values["alpha"] = np.array([weight])
            values |= self._prompt_inputs(prompt, embeds)
        feeds = {
            spec.name: values[spec.name].astype(DTYPES[spec.dtype], copy=False)
            for spec in self.manifest.graphs.vision_encoder.inputs
        }
        outputs = {name: value.numpy()[0] for name, value in self._vision.run(feeds).items()}
        valid = int(outputs["num_valid"])
        return VisualTokens(
            features=outputs["image_features"][:valid],
            positions=outputs["image_positions"][:valid],
            packed_length=int(outputs["packed_length"]),
            tile_budgets=outputs["tile_budgets"],
            tiles=tiles,
        )

    def _prompt_inputs(self, prompt: Prompt, embeds: Array) -> dict[str, Array]:
        longest, length = self.manifest.prompting.max_prompt, len(prompt.ids)
        prompt_embeds = np.zeros((1, longest, embeds.shape[-1]), embeds.dtype)  # (1, L, H)
        prompt_embeds[0, :length] = embeds
        question_mask = np.zeros((1, longest), np.bool_)  # (1, L)
        question_mask[0, :length] = prompt.question_mask
        return {
            "prompt_embeds": prompt_embeds,
            "prompt_mask": np.arange(longest)[None] < length,
            "question_mask": question_mask,
            "prefix_length": np.array([len(prompt.prefix)]),
        }


def check_alpha(alpha: float | None, pruning: Pruning) -> float:
    """Return the weight of the question, the bundle's own if None.

    Raises:
        ConfigError: it is not 0 to 1, or is given although the bundle does not look at the question.
    """
    if alpha is None:
        return pruning.alpha
    if pruning.instruction == "none":
        raise ConfigError(
            "alpha weighs the question, which this bundle does not look at",
            do="leave alpha out or export with --instruction similarity",
        )
    if not 0 <= alpha <= 1:
        raise ConfigError("alpha is the weight of the question", got=alpha, expected="0 to 1")
    return alpha


def require_names(spec: GraphSpec, *, inputs: Sequence[str], outputs: Sequence[str], subset: bool = False) -> None:
    """Refuse a graph with inputs that the runtime does not know or without outputs that it needs.

    Args:
        spec: the manifest's description of the graph.
        inputs: names of the inputs that the runtime feeds.
        outputs: names of the outputs that it reads.
        subset: whether the graph may leave inputs out.

    Raises:
        SchemaError: all unknown and missing names.
    """
    found_inputs, found_outputs = {x.name for x in spec.inputs}, {x.name for x in spec.outputs}
    problems = [f"unknown input {name}" for name in sorted(found_inputs - set(inputs))]
    if not subset:
        problems += [f"no input {name}" for name in inputs if name not in found_inputs]
    problems += [f"no output {name}" for name in outputs if name not in found_outputs]
    if problems:
        raise SchemaError(
            f"this version cannot run {spec.file}",
            got=", ".join(problems[:8]),
            do="export the bundle with this version",
        )
