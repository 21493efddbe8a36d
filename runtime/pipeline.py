"""Answer questions about images with an exported bundle."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Unpack

from ptp.alpha import alpha_input
from ptp.budgets import Keep, num_kept_at
from ptp.bundle import Bundle, open_bundle
from ptp.bundle.hashes import Progress
from ptp.bundle.manifest import Alpha
from ptp.chat import Chat
from ptp.errors import PromptError
from ptp.runtime.backends.base import Array, LoadGraph
from ptp.runtime.backends.registry import DEFAULT, graph_loader
from ptp.runtime.decoding import Decoder
from ptp.runtime.generation import Answer, Generation, check_cache, check_length, splice
from ptp.runtime.preprocess.images import MAX_PIXELS
from ptp.runtime.sampling import Sampling, SamplingOptions
from ptp.runtime.tokenize import Prompt
from ptp.runtime.vision import ImageSource, VisualEncoder, VisualTokens


class Pipeline:
    """A loaded bundle. Several threads may use one pipeline at once: every call has its own state.

    Args:
        bundle: a verified bundle.
        load_graph: the backend.
        max_pixels: of the largest image that is decoded.

    Raises:
        ConfigError: `max_pixels` is out of range.
        BundleError: the bundle cannot be run.
        BackendError: a graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, load_graph: LoadGraph, *, max_pixels: int = MAX_PIXELS) -> None:
        self.manifest = bundle.manifest
        self._encoder = VisualEncoder(bundle, load_graph, max_pixels=max_pixels)
        self._decoder = Decoder(bundle, load_graph, self._encoder.embedding)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backend: str = DEFAULT,
        provider: str | None = None,
        threads: int | None = None,
        target: str | None = None,
        precision: str | None = None,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> "Pipeline":
        """Verify a bundle and load its graphs.

        Args:
            folder: the bundle's folder.
            backend: what runs the graphs: `onnxruntime`, `openvino`, `tensorrt-rtx` or `tensorrt`; the last two run
                the engines that `ptp build` made.
            provider: ONNX Runtime's execution provider: `cpu` (its default), `cuda`, `tensorrt` or `nvtensorrtrtx`.
            threads: CPU threads; the backend's choice if None.
            target: name of the engines to run; those that fit the GPU if None.
            precision: what OpenVINO computes with: `fp32` (its default) or `bf16`.
            max_pixels: of the largest image that is decoded, up to 100,000,000; decoding an image goes over at most 16
                times as many. What a service that takes images from strangers may lower.
            progress: called with file name, bytes done and bytes in all while files are verified.

        Raises:
            ConfigError: there is no such backend, or it has no such option.
            BundleError: the folder is no bundle, or one that was altered.
            BackendError: the backend is not installed, has no device, or a graph or engine cannot be loaded.
        """
        load_graph = graph_loader(backend, provider=provider, threads=threads, target=target, precision=precision)
        return cls(open_bundle(folder, progress=progress), load_graph, max_pixels=max_pixels)

    def encode(
        self,
        image: ImageSource,
        prompt: str | Chat | None = None,
        *,
        alpha: Alpha | None = None,
        keep: Keep | None = None,
    ) -> VisualTokens:
        """Return the visual tokens that are kept of an image.

        Args:
            image: a file or an open image.
            prompt: the question; may be left out where the bundle does not look at it.
            alpha: weight of the question, 0 to 1 or `"auto"`; the bundle's own if None.
            keep: fraction of visual tokens kept, where the bundle leaves that to run time; its own if None.

        Raises:
            PtpError: see `stream`.
        """
        return self._encoder.encode([self._encoder.ask(image, prompt)], alpha=alpha, keep=keep)[0]

    def stream(
        self,
        image: ImageSource,
        prompt: str | Chat,
        *,
        alpha: Alpha | None = None,
        keep: Keep | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """Return an iterator over the answer's text, piece by piece; its `answer()` has the whole.

        The image is encoded before this returns; the language model runs as the pieces are asked for.

        Args:
            image: a file or an open image.
            prompt: the question, or a `Chat`: a question with a system prompt and earlier turns.
            alpha: weight of the question in the choice of tokens, 0 to 1 or `"auto"`; the bundle's own if None.
            keep: fraction of visual tokens kept, where the bundle leaves that to run time; its own if None.
            **options: `max_new_tokens`, `temperature`, `top_p`, `seed` and `stop` of `Sampling`.

        Raises:
            ConfigError: an option has a value that cannot be used.
            ImageError: the image cannot be read.
            PromptError: the question is empty or too long, or question, image and answer do not fit the model.
            BackendError: a graph failed.
        """
        return next(self.stream_batch([(image, prompt)], alpha=alpha, keep=keep, **options))

    def stream_from(self, visual: VisualTokens, prompt: str | Chat, **options: Unpack[SamplingOptions]) -> Generation:
        """Return an iterator over the answer about an image that `encode` has seen; several questions may share it.

        Args:
            visual: the image's tokens. Where the bundle looks at the question, they suit the one they were chosen by.
            prompt: the question.
            **options: see `stream`.

        Raises:
            PtpError: see `stream`.
        """
        sampling = Sampling(**options)
        asked = self._encoder.prompter(prompt)
        return self._generation(asked, self._encoder.embed(asked.ids), visual, sampling)

    def stream_batch(
        self,
        questions: Iterable[tuple[ImageSource, str | Chat]],
        *,
        alpha: Alpha | None = None,
        keep: Keep | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Generation]:
        """Return an iterator over the answers to several questions, one after the other.

        As many images are read ahead and encoded in one call as the bundle was exported for (`--batch`); answers are
        generated one at a time. Options are checked before this returns; an image or a question that cannot be used
        ends the iteration, together with the others of its call.

        Args:
            questions: images and the question about each.
            alpha: see `stream`.
            keep: see `stream`.
            **options: see `stream`.

        Raises:
            PtpError: see `stream`.
        """
        sampling = Sampling(**options)
        alpha_input(alpha, self.manifest.pruning)
        num_kept_at(keep, self.manifest)
        return self._stream_batch(iter(questions), alpha, keep, sampling)

    def _stream_batch(
        self,
        questions: Iterator[tuple[ImageSource, str | Chat]],
        alpha: Alpha | None,
        keep: Keep | None,
        sampling: Sampling,
    ) -> Iterator[Generation]:
        while chunk := list(islice(questions, self.manifest.batch)):
            queries = [self._encoder.ask(image, prompt) for image, prompt in chunk]
            for query, visual in zip(queries, self._encoder.encode(queries, alpha=alpha, keep=keep), strict=True):
                if query.prompt is None or query.embeds is None:
                    raise PromptError("there is no question", expected="a text")
                yield self._generation(query.prompt, query.embeds, visual, sampling)

    def _generation(self, prompt: Prompt, embeds: Array, visual: VisualTokens, sampling: Sampling) -> Generation:
        sequence = splice(prompt, embeds, visual, self.manifest.pruning.positions)
        check_length(sequence, sampling, self.manifest.language_model.max_position_embeddings)
        check_cache(sequence, sampling, self._decoder.max_context)
        return Generation(self._encoder, self._decoder, sequence, visual, sampling)

    def generate(
        self,
        image: ImageSource,
        prompt: str | Chat,
        *,
        alpha: Alpha | None = None,
        keep: Keep | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Return the whole answer; arguments and errors are those of `stream`."""
        return self.stream(image, prompt, alpha=alpha, keep=keep, **options).answer()
