"""A model for lmms-eval, so that its benchmarks are answered by an exported bundle.

    ptp-export --model llava-next --keep 0.1:0.25:1 --max-prompt 1024 --out bundle
    lmms-eval --model ptp --model_args bundle=bundle,keep=0.25 --tasks textvqa_val --batch_size 1

lmms-eval finds it by this package's entry point in `lmms_eval.models`. It is no dependency of this package.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from PIL import Image
from rich.progress import track

from ptp import Pipeline
from ptp.alpha import parse_alpha
from ptp.errors import ConfigError
from ptp.runtime.sampling import SamplingOptions

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise ImportError(f"lmms-eval is missing or too old ({error}): pip install 'lmms-eval>=0.7.3'") from error

MAX_NEW_TOKENS = 1024
"""Where a task sets no limit; that of lmms-eval's own LLaVA models."""

KNOWN = {"max_new_tokens", "temperature", "top_p", "do_sample", "num_beams", "until"}
"""What tasks say about generation and this model follows; the rest is of other models."""


def manifest() -> ModelManifest:
    """Return what lmms-eval registers."""
    return ModelManifest(model_id="ptp", simple_class_path=f"{__name__}.{PtpModel.__name__}")


class PtpModel(lmms):  # type: ignore[misc]
    """A bundle, asked about one image at a time, greedily unless a task asks otherwise.

    Args:
        bundle: the bundle's folder.
        keep: fraction of visual tokens kept, where the bundle leaves that to run time; its own if None.
        alpha: weight of the question, 0 to 1 or `auto`; the bundle's own if None.
        provider: ONNX Runtime's execution provider.
        threads: CPU threads; ONNX Runtime's choice if None.
        batch_size: lmms-eval's; 1.
        max_batch_size: lmms-eval's; without effect, because the batch is 1.
        device: lmms-eval's; None, `provider` says where the graphs run.

    Raises:
        ConfigError: a value cannot be used.
        PtpError: see `Pipeline.load`.
    """

    is_simple: ClassVar[bool] = True

    def __init__(
        self,
        bundle: str,
        *,
        keep: float | str | None = None,
        alpha: float | str | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise ConfigError("answers are generated one at a time", got=f"--batch_size {batch_size}", expected=1)
        if device is not None:
            raise ConfigError("--device is not used", got=device, do="set provider in --model_args")
        self._pipeline = Pipeline.load(bundle, provider=provider, threads=threads)
        self._keep = None if keep is None else str(keep)
        self._alpha = None if alpha is None else parse_alpha(alpha)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to lmms-eval's requests, in their order.

        Raises:
            ConfigError: a request is not about exactly one image, or asks for another way of generating.
            PtpError: see `Pipeline.stream`.
        """
        answers = []
        for request in track(requests, description="ptp", disable=self.rank != 0):
            context, options, doc_to_visual, document, task, split = request.args
            image = _one_image(doc_to_visual, self.task_dict[task][split][document], f"{task} {document}")
            answer = self._pipeline.generate(
                image, context, alpha=self._alpha, keep=self._keep, **sampling_options(options)
            )
            self.cache_hook.add_partial("generate_until", (context, options), answer.text)
            answers.append(answer.text.strip())
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse: the runtime generates, and does not score given answers."""
        raise ConfigError("this model only generates answers", do="choose tasks of type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse: a question is asked on its own."""
        raise ConfigError("this model answers in one round", do="choose tasks of type generate_until")


def sampling_options(options: Mapping[str, Any]) -> SamplingOptions:
    """Return a task's generation options in the runtime's words.

    Raises:
        ConfigError: it asks for beam search.
    """
    given = {name: value for name, value in options.items() if name in KNOWN and value is not None}
    if given.get("num_beams", 1) != 1:
        raise ConfigError("the runtime has no beam search", got=f"num_beams {given['num_beams']}", expected=1)
    until = given.get("until", ())
    return SamplingOptions(
        max_new_tokens=int(given.get("max_new_tokens", MAX_NEW_TOKENS)),
        temperature=float(given.get("temperature", 0.0)) if given.get("do_sample", True) else 0.0,
        top_p=float(given.get("top_p", 1.0)),
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
    )


def _one_image(doc_to_visual: Callable[[Any], Any], document: Any, name: str) -> Image.Image:
    visuals = doc_to_visual(document) or []
    if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
        kinds = ", ".join(type(visual).__name__ for visual in visuals) or "nothing to look at"
        raise ConfigError(f"{name} is not about one image", got=kinds, do="choose tasks about single images")
    return visuals[0]
