"""Our side of a benchmark: a bundle in the runtime, its parts called in the order in which `Pipeline` calls them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ptp.benchmarks.random_feeds import random_feeds
from ptp.benchmarks.speed.turn import Job, Laps, Run
from ptp.bundle import Bundle, open_bundle
from ptp.bundle.manifest import FileEntry, GraphSpec
from ptp.errors import ConfigError
from ptp.runtime.backends.base import Array, DeviceTensor, Graph
from ptp.runtime.backends.registry import BACKENDS, graph_loader
from ptp.runtime.decoding import Decoder
from ptp.runtime.generation import check_cache, check_length, splice
from ptp.runtime.preprocess.images import load_image
from ptp.runtime.preprocess.tiles import make_tiles
from ptp.runtime.sampling import Sampling
from ptp.runtime.vision import Query, VisualEncoder

PRUNER_GRAPHS = "graphs.json"


class PrunerGraphs(BaseModel):
    """The pruners of a bundle's vision graphs, under their names; files are relative to `graphs.json`."""

    vision_encoder: GraphSpec
    vision_encoder_onnxruntime: GraphSpec | None


class PtpSide:
    """A bundle on a backend (implements `Runner`).

    Raises:
        PtpError: the bundle or the backend cannot be used.
    """

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(job.model)
        if bundle.manifest.batch != 1:
            raise ConfigError("a benchmark asks about one image at a time", got=f"--batch {bundle.manifest.batch}")
        options = BACKENDS[job.backend].options
        self._load = graph_loader(
            job.backend,
            threads=job.threads if "threads" in options else None,
            provider=job.device if "provider" in options else None,
        )
        self._bundle = bundle
        self._vision: _Remembers | None = None
        self._encoder = VisualEncoder(bundle, self._load_and_remember)
        self._decoder = Decoder(bundle, self._load, self._encoder.embedding)
        self._job = job
        self._sampling = Sampling(max_new_tokens=job.max_new_tokens)
        self.details: dict[str, str] = {"instruction": bundle.manifest.pruning.instruction}

    def run(self) -> Run:
        """See `Runner.run`."""
        job, manifest, laps = self._job, self._bundle.manifest, Laps()
        tiles = make_tiles(load_image(job.image), manifest.tiling)
        prompt = self._encoder.prompter(job.prompt)
        laps.lap("preprocess")
        embeds = self._encoder.embed(prompt.ids)
        visual = self._encoder.encode([Query(image=tiles, prompt=prompt, embeds=embeds)], alpha=None, keep=job.keep)[0]
        laps.lap("vision_encoder")
        sequence = splice(prompt, embeds, visual, manifest.pruning.positions)
        check_length(sequence, self._sampling, manifest.language_model.max_position_embeddings)
        check_cache(sequence, self._sampling, self._decoder.max_context)
        decoding = self._decoder.begin()
        prediction = decoding.prefill(sequence.embeds, sequence.positions)
        tokens = [prediction.token]
        laps.lap("llm_prefill")
        for _ in range(job.max_new_tokens - 1):
            prediction = decoding.append(prediction.tokens)
            tokens.append(prediction.token)
        laps.lap("llm_generation")
        return Run(
            stages_ms=laps.ms, image_tokens=visual.count, prompt_tokens=len(sequence.positions), token_ids=tokens
        )

    def load_pruner(self, folder: Path) -> Callable[[], object]:
        """Return what runs the pruner's own graph once, on random features and on the last answer's other inputs."""
        own = PrunerGraphs.model_validate_json((folder / PRUNER_GRAPHS).read_text(encoding="utf-8"))
        manifest = self._bundle.manifest
        graphs = manifest.graphs.model_copy(update=dict(own))
        # ours, made a moment ago: nothing to verify
        files = {x.name: FileEntry(bytes=x.stat().st_size, sha256="0" * 64) for x in folder.iterdir()}
        manifest = manifest.model_copy(update={"graphs": graphs, "files": files})
        graph = self._load(replace(self._bundle, folder=folder, manifest=manifest), graphs.vision_encoder)
        assert self._vision is not None
        known = self._vision.feeds
        sizes = {"num_kept": int(known["num_kept"][0])} if "num_kept" in known else {}
        feeds = random_feeds(graph.inputs, known, sizes)
        # where the encoder would leave its values
        if (self._job.backend, self._job.device) == ("onnxruntime", "cuda"):
            from onnxruntime import OrtValue

            feeds = {name: OrtValue.ortvalue_from_numpy(x, "cuda") for name, x in feeds.items()}
        return lambda: graph.run(feeds)

    def _load_and_remember(self, bundle: Bundle, spec: GraphSpec) -> Graph:
        graph = self._load(bundle, spec)
        if spec != bundle.manifest.graphs.vision_encoder:
            return graph
        self._vision = _Remembers(graph)
        return self._vision


class _Remembers:
    """A graph, and what it was fed with last (implements `Graph`)."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.largest, self.prefill_chunk = graph.largest, graph.prefill_chunk
        self.feeds: Mapping[str, Any] = {}

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """See `Graph.run`."""
        self.feeds = feeds
        return self._graph.run(feeds)
