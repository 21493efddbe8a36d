"""Optimisation profiles: the ranges of shapes that an engine is built for.

The builder only warns of ranges that contradict each other, and the engine then fails at run time; all of it is
checked here, before a build.
"""

from dataclasses import dataclass

from ptp.bundle.engine import EngineKind, Profile, ShapeRange
from ptp.bundle.manifest import Manifest, TensorSpec
from ptp.errors import ConfigError

NEW_TOKENS = 256
"""Room for an answer in the default `--max-context`."""

TYPICAL_PROMPT_SHARE = 4
"""One part in this many of `--max-prompt` is a usual prompt: of the default 256, the template and a sentence or two."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of the decoder with one sequence: how many tokens are new, and how many are in the cache."""

    new: int
    past: int

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return the shape of one of the decoder's inputs; the manifest's own schema says which they are."""
        lengths = {"inputs_embeds": self.new, "position_ids": self.new, "attention_mask": self.past + self.new}
        open_sizes = iter((1, lengths.get(spec.name, self.past)))
        return tuple(next(open_sizes) if isinstance(size, str) else size for size in spec.shape)


def default_max_context(manifest: Manifest) -> int:
    """Return the tokens that an engine's cache has room for: the longest prompt, the largest K and an answer."""
    return min(longest_prompt(manifest) + NEW_TOKENS, manifest.language_model.max_position_embeddings)


def longest_prompt(manifest: Manifest) -> int:
    """Return the most tokens that a prefill takes: text and the largest K."""
    return manifest.prompting.max_prompt + _kept(manifest)[2]


def profiles_of(kind: EngineKind, manifest: Manifest, max_context: int) -> tuple[Profile, ...]:
    """Return the profiles of an engine; arguments and errors are those of `llm_profiles`."""
    if kind == "visual":
        return vision_profiles(manifest)
    return embed_profiles(manifest) if kind == "embed" else llm_profiles(manifest, max_context)


def embed_profiles(manifest: Manifest) -> tuple[Profile, ...]:
    """Return the one profile of the embedding engine: the text of a prompt, or most often the one token before."""
    one, longest = (1, 1), (1, manifest.prompting.max_prompt)
    return (Profile(name="tokens", shapes={"input_ids": ShapeRange(min=one, opt=one, max=longest)}),)


def vision_profiles(manifest: Manifest) -> tuple[Profile, ...]:
    """Return the one profile of the vision engine: all shapes are fixed, but K may be an input's value."""
    if not manifest.pruning.keep_range:
        return (Profile(name="vision", shapes={}),)
    low, usual, high = ((count,) for count in _kept(manifest))
    return (Profile(name="vision", shapes={"num_kept": ShapeRange(min=low, opt=usual, max=high)}),)


def llm_profiles(manifest: Manifest, max_context: int) -> tuple[Profile, ...]:
    """Return the profiles of the decoder's engine, for one sequence.

    `prefill` takes a whole prompt with its visual tokens and an empty cache; `decode` takes one token and a cache of up
    to `max_context` − 1.

    Args:
        manifest: of the bundle.
        max_context: tokens that the cache has room for, prompt and visual tokens included.

    Raises:
        ConfigError: `max_context` has no room for the longest prompt and a token after it, or is more than the model's
            positions.
    """
    longest, positions = longest_prompt(manifest), manifest.language_model.max_position_embeddings
    if not longest < max_context <= positions:
        kept, prompt = _kept(manifest)[2], manifest.prompting.max_prompt
        raise ConfigError(
            "--max-context does not fit this bundle",
            got=max_context,
            expected=f"{longest + 1} ({prompt} text tokens, K = {kept} and a new one) to the model's {positions}",
            do="else export with a smaller --max-prompt or --keep",
        )
    usual = max(1, manifest.prompting.max_prompt // TYPICAL_PROMPT_SHARE) + _kept(manifest)[1]
    steps = {
        "prefill": (Step(new=1, past=0), Step(new=usual, past=0), Step(new=longest, past=0)),
        "decode": (
            Step(new=1, past=1),
            Step(new=1, past=(usual + max_context) // 2),
            Step(new=1, past=max_context - 1),
        ),
    }
    inputs = manifest.graphs.decoder_model_merged.inputs
    return tuple(
        Profile(name=name, shapes={spec.name: _range(spec, *three) for spec in inputs}) for name, three in steps.items()
    )


def _kept(manifest: Manifest) -> tuple[int, int, int]:
    """Return the smallest, the usual and the largest K."""
    pruning, bounds = manifest.pruning, manifest.pruning.keep_range
    if bounds is None:
        return pruning.num_kept, pruning.num_kept, pruning.num_kept
    return bounds.min_kept, pruning.num_kept, bounds.max_kept


def _range(spec: TensorSpec, low: Step, usual: Step, high: Step) -> ShapeRange:
    return ShapeRange(min=low.shape(spec), opt=usual.shape(spec), max=high.shape(spec))
