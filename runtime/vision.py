"""Image and question in, the visual tokens that the language model will see out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptp.alpha import alpha_input
from ptp.anyres import PackedLayout
from ptp.budgets import Keep, num_kept_at
from ptp.bundle import Bundle
from ptp.bundle.manifest import Alpha, GraphSpec, Tiling
from ptp.chat import Chat
from ptp.errors import ConfigError, PromptError, SchemaError
from ptp.runtime.backends.base import DTYPES, Array, LoadGraph
from ptp.runtime.preprocess.images import MAX_PIXELS, load_image
from ptp.runtime.preprocess.tiles import Tiles, make_tiles
from ptp.runtime.tokenize import Prompt, Prompter
from ptp.runtime.vision_outputs import image_rows

ImageSource = str | Path | Image.Image
"""An image file or an open image."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """An image and the question about it.

    Attributes:
        image: a file, an open image, or what the encoder sees of one.
        prompt: the question's tokens; None where there is no question.
        embeds: (prefix + suffix, H), their embeddings.
    """

    image: ImageSource | Tiles
    prompt: Prompt | None = None
    embeds: Array | None = None

    def tiles(self, tiling: Tiling, max_pixels: int = MAX_PIXELS) -> Tiles:
        """Return what the encoder sees of the image.

        Args:
            tiling: of the model.
            max_pixels: of the largest image that is decoded.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.image if isinstance(self.image, Tiles) else make_tiles(load_image(self.image, max_pixels), tiling)


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """The tokens that were kept of one image.

    Attributes:
        features: (n, H), the language model's input rows.
        positions: (n,) int64, ascending: where each stands in the packed sequence.
        packed_length: M, length of the packed sequence before pruning.
        tile_budgets: (T,) int32, tokens given to each tile, thumbnail first.
        alpha: weight that the question had; None where the bundle does not look at it.
        tiles: what the encoder saw.
    """

    features: NDArray[Any]
    positions: NDArray[np.int64]
    packed_length: int
    tile_budgets: NDArray[np.int32]
    alpha: float | None
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
        max_pixels: of the largest image that is decoded.

    Raises:
        ConfigError: `max_pixels` is out of range.
        SchemaError: the manifest describes graphs that this runtime cannot feed.
        BackendError: a graph cannot be loaded.
        BundleError: the tokenizer is missing.
    """

    def __init__(self, bundle: Bundle, load_graph: LoadGraph, *, max_pixels: int = MAX_PIXELS) -> None:
        if not 1 <= max_pixels <= MAX_PIXELS:
            raise ConfigError("max_pixels is out of range", got=max_pixels, expected=f"1 to {MAX_PIXELS}")
        self._max_pixels = max_pixels
        self.manifest = bundle.manifest
        graphs = bundle.manifest.graphs
        require_names(graphs.embed_tokens, inputs=("input_ids",), outputs=("inputs_embeds",))
        self.prompter = Prompter.from_bundle(bundle)
        self._embed_dtype = DTYPES[graphs.embed_tokens.outputs[0].dtype]
        self.embedding = load_graph(bundle, graphs.embed_tokens)
        self._vision = load_graph(bundle, graphs.vision_encoder)

    @property
    def takes_question(self) -> bool:
        """Whether the question has a say in which tokens are kept."""
        return self.manifest.pruning.instruction != "none"

    def embed(self, ids: Sequence[int]) -> Array:
        """Return the embeddings (S, H) of token ids.

        Raises:
            PromptError: there is none of an id; what a backend returns of such a row is not defined.
            BackendError: the embedding graph failed.
        """
        rows = self.manifest.language_model.vocab_size
        if wrong := next((x for x in ids if not 0 <= x < rows), None):
            raise PromptError("a token of the prompt has no embedding", got=f"id {wrong}", expected=f"below {rows}")
        feeds = {"input_ids": np.array([ids], np.int64)}  # (1, S)
        embeds: Array = self.embedding.run(feeds)["inputs_embeds"].numpy()[0]
        return embeds

    def ask(self, image: ImageSource, question: str | Chat | None) -> Query:
        """Return an image and its question, tokenised and embedded where it has a say.

        Raises:
            PromptError: the question is empty or too long.
            BackendError: the embedding graph failed.
        """
        prompt = None if question is None else self.prompter(question)
        return Query(image=image, prompt=prompt, embeds=None if prompt is None else self.embed(prompt.ids))

    def encode(self, queries: Sequence[Query], *, alpha: Alpha | None, keep: Keep | None) -> list[VisualTokens]:
        """Return the visual tokens of up to B images, from one call of the vision graph.

        Args:
            queries: 1 to B images; a question may be missing only where the bundle does not look at it.
            alpha: weight of the questions, 0 to 1 or `auto`; the bundle's own if None.
            keep: fraction of visual tokens kept, where the bundle leaves that to run time; its own if None.

        Raises:
            ConfigError: `alpha` or `keep` cannot be used.
            PromptError: the bundle looks at the question and there is none.
            ImageError: an image cannot be read.
            BackendError: the vision graph failed, or returned what no image gives.
        """
        weight, num_kept = alpha_input(alpha, self.manifest.pruning), num_kept_at(keep, self.manifest)
        # a call takes B images: the last one fills the rows that are left
        rows = [*queries, *[queries[-1]] * (self.manifest.batch - len(queries))]
        tiles = [query.tiles(self.manifest.tiling, self._max_pixels) for query in queries]
        tiles += [tiles[-1]] * (len(rows) - len(queries))
        values: dict[str, Array] = {
            "pixel_values": np.stack([x.pixel_values for x in tiles]),  # (B, T, 3, S, S)
            "image_sizes": np.array([x.image_size for x in tiles]),
            "tile_grid": np.array([x.grid for x in tiles]),
            "num_kept": np.array([num_kept]),
        }
        if self.takes_question:
            values |= self._prompt_inputs(rows) | {"alpha": np.full(len(rows), weight)}
        feeds = {
            spec.name: values[spec.name].astype(DTYPES[spec.dtype], copy=False)
            for spec in self.manifest.graphs.vision_encoder.inputs
        }
        outputs = {name: value.numpy() for name, value in self._vision.run(feeds).items()}
        rows_of = image_rows(outputs, self.manifest, num_kept, len(queries))
        return [self._visual_tokens(row, tiles[i]) for i, row in enumerate(rows_of)]

    @staticmethod
    def _visual_tokens(outputs: dict[str, Array], tiles: Tiles) -> VisualTokens:
        valid = int(outputs["num_valid"])
        return VisualTokens(
            # copies: a view would keep the whole batch in memory
            features=outputs["image_features"][:valid].copy(),
            positions=outputs["image_positions"][:valid].copy(),
            packed_length=int(outputs["packed_length"]),
            tile_budgets=outputs["tile_budgets"],
            alpha=float(outputs["effective_alpha"]) if "effective_alpha" in outputs else None,
            tiles=tiles,
        )

    def _prompt_inputs(self, queries: Sequence[Query]) -> dict[str, Array]:
        longest, batch = self.manifest.prompting.max_prompt, len(queries)
        lengths = np.zeros(batch, np.int64)  # (B,)
        prefixes = np.zeros(batch, np.int64)
        question_mask = np.zeros((batch, longest), np.bool_)  # (B, L)
        hidden = self.manifest.language_model.hidden_size
        prompt_embeds = np.zeros((batch, longest, hidden), self._embed_dtype)  # (B, L, H)
        for row, query in enumerate(queries):
            if query.prompt is None or query.embeds is None:
                raise PromptError("this bundle chooses tokens by the question", expected="a question", do="give one")
            lengths[row], prefixes[row] = len(query.prompt.ids), len(query.prompt.prefix)
            prompt_embeds[row, : lengths[row]] = query.embeds
            question_mask[row, : lengths[row]] = query.prompt.question_mask
        return {
            "prompt_embeds": prompt_embeds,
            "prompt_mask": np.arange(longest) < lengths[:, None],
            "question_mask": question_mask,
            "prefix_length": prefixes,
        }


def require_names(spec: GraphSpec, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph with inputs that the runtime does not know or without outputs that it needs.

    Args:
        spec: the manifest's description of the graph.
        inputs: names of the inputs that the runtime feeds.
        outputs: names of the outputs that it reads.

    Raises:
        SchemaError: all unknown and missing names.
    """
    found_inputs, found_outputs = {x.name for x in spec.inputs}, {x.name for x in spec.outputs}
    problems = [f"unknown input {name}" for name in sorted(found_inputs - set(inputs))]
    problems += [f"no input {name}" for name in inputs if name not in found_inputs]
    problems += [f"no output {name}" for name in outputs if name not in found_outputs]
    if problems:
        raise SchemaError(
            f"this version cannot run {spec.file}",
            got=", ".join(problems[:8]),
            do="export the bundle with this version",
        )
