"""A benchmark as it is written to `results.json`, in the words of TensorRT Edge-LLM's profiles where it has them."""

import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ptp.benchmarks.speed.turn import STAGES, SideKind, Turn

MIB = 2**20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeStats(_Frozen):
    """Edge-LLM's `gpu_time_stats`, of wall-clock time."""

    count: int
    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    stddev_ms: float


class Stage(_Frozen):
    """One part of an answer.

    Attributes:
        stage_id: `preprocess`, `vision_encoder` (the whole vision graph, pruner included), `llm_prefill`, `ttft` (their
            sum), `llm_generation` (every token after the first), and `prune`, the part of the vision graph that is the
            pruner's.
        total_runs: answers that were timed.
        average_time_per_run_ms: mean; compare medians.
        time_stats: over the answers.
    """

    stage_id: str
    total_runs: int
    average_time_per_run_ms: float
    time_stats: TimeStats


class Prefill(_Frozen):
    """Edge-LLM's `prefill`; rates are of the median. 0 tokens, and no rates, where a library does not count them."""

    total_runs: int
    reused_tokens: int
    computed_tokens: int
    average_tokens_per_run: float
    average_time_per_run_ms: float
    tokens_per_second: float | None
    average_time_per_token_ms: float | None


class Generation(_Frozen):
    """Edge-LLM's `generation`: tokens after the first; rates are of the median."""

    total_runs: int
    generated_tokens: int
    average_tokens_per_run: float
    tokens_per_second: float
    average_time_per_token_ms: float


class Multimodal(_Frozen):
    """Edge-LLM's `multimodal`; 0 tokens where a library does not say."""

    total_runs: int
    total_images: int
    total_image_tokens: int


class Case(_Frozen):
    """One side at one keep.

    Attributes:
        side: name in tables.
        kind: whose code answers.
        backend: what runs it.
        bundle: name of the bundle's folder; None for others.
        keep: fraction of visual tokens kept; 1 for sides that prune nothing.
        precision: of weights and products.
        load_ms: until the first answer could begin, median.
        peak_cpu_memory_bytes: largest over the turns, each a process of its own; 0 where the system does not say.
        peak_gpu_memory_bytes: likewise, of the GPU (`Turn`); 0 without one.
        other_cpu_share: largest share of the machine's CPU time that other processes took during an answer.
        details: attention, image processor, …
        token_ids: of the first turn's answer.
    """

    side: str
    kind: SideKind
    backend: str
    bundle: str | None
    keep: float
    precision: str
    prefill: Prefill
    generation: Generation | None
    multimodal: Multimodal
    stages: tuple[Stage, ...]
    load_ms: float
    peak_cpu_memory_bytes: int
    peak_cpu_memory_mb: float
    peak_gpu_memory_bytes: int
    peak_gpu_memory_mb: float
    other_cpu_share: float | None
    details: dict[str, str]
    token_ids: tuple[int, ...]

    def median_ms(self, stage: str) -> float | None:
        """Return the median of a stage, None where it was not timed."""
        return next((x.time_stats.median_ms for x in self.stages if x.stage_id == stage), None)

    def stage_ms(self, stage: str) -> float:
        """Return the median of a stage that every answer has."""
        found = self.median_ms(stage)
        assert found is not None
        return found

    @property
    def ttft_ms(self) -> float:
        """Median time to the first token."""
        return self.stage_ms("ttft")


class Bar(_Frozen):
    """A limit that was set before measuring.

    Attributes:
        name: what is compared.
        backend: of ours.
        value: what was measured; None where a side of the comparison was not.
        sign: how it must compare with the limit.
        limit: the limit.
    """

    name: str
    backend: str
    value: float | None
    sign: Literal["≤", "≥"]
    limit: float

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `not measured`."""
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.sign == "≤" else self.value >= self.limit) else "missed"


class Benchmark(_Frozen):
    """A whole benchmark."""

    schema_version: Literal[1] = 1
    settings: dict[str, str]
    machine: dict[str, str]
    libraries: dict[str, str]
    not_measured: dict[str, str]
    cases: tuple[Case, ...]
    bars: tuple[Bar, ...]


def time_stats(values: Sequence[float]) -> TimeStats:
    """Return the statistics of some milliseconds, at least one."""
    return TimeStats(
        count=len(values),
        min_ms=min(values),
        max_ms=max(values),
        mean_ms=statistics.fmean(values),
        median_ms=statistics.median(values),
        stddev_ms=statistics.pstdev(values),
    )


def summed_up(
    turns: Sequence[Turn],
    *,
    side: str,
    kind: SideKind,
    backend: str,
    bundle: str | None,
    keep: float,
    precision: str,
    new_tokens: int,
) -> Case:
    """Return what the turns of one side at one keep come to.

    Args:
        turns: at least one.
        side: see `Case`, as are the following.
        kind: …
        backend: …
        bundle: …
        keep: …
        precision: …
        new_tokens: tokens of an answer.
    """
    runs = [turn.run for turn in turns]
    times = {name: [run.stages_ms[name] for run in runs] for name in STAGES}
    times["ttft"] = [sum(run.stages_ms[name] for name in STAGES[:3]) for run in runs]
    pruning = [turn.prune_ms for turn in turns if turn.prune_ms is not None]
    if pruning:
        times["prune"] = pruning
    if new_tokens == 1:
        del times["llm_generation"]
    stats = {name: time_stats(values) for name, values in times.items()}
    count, tokens, prefill = len(runs), runs[0].prompt_tokens, stats["llm_prefill"].median_ms
    shares = [turn.other_cpu_share for turn in turns if turn.other_cpu_share is not None]
    peak = max(turn.peak_cpu_memory_bytes for turn in turns)
    gpu = max(turn.peak_gpu_memory_bytes for turn in turns)
    return Case(
        side=side,
        kind=kind,
        backend=backend,
        bundle=bundle,
        keep=keep,
        precision=precision,
        prefill=Prefill(
            total_runs=count,
            reused_tokens=0,
            computed_tokens=count * tokens,
            average_tokens_per_run=tokens,
            average_time_per_run_ms=stats["llm_prefill"].mean_ms,
            tokens_per_second=1000 * tokens / prefill if tokens else None,
            average_time_per_token_ms=prefill / tokens if tokens else None,
        ),
        generation=_generation(count, new_tokens - 1, stats["llm_generation"].median_ms) if new_tokens > 1 else None,
        multimodal=Multimodal(
            total_runs=count, total_images=count, total_image_tokens=sum(run.image_tokens for run in runs)
        ),
        stages=tuple(
            Stage(stage_id=name, total_runs=len(times[name]), average_time_per_run_ms=x.mean_ms, time_stats=x)
            for name, x in stats.items()
        ),
        load_ms=statistics.median(turn.load_ms for turn in turns),
        peak_cpu_memory_bytes=peak,
        peak_cpu_memory_mb=peak / MIB,
        peak_gpu_memory_bytes=gpu,
        peak_gpu_memory_mb=gpu / MIB,
        other_cpu_share=max(shares, default=None),
        details=turns[0].details,
        token_ids=tuple(runs[0].token_ids),
    )


def _generation(runs: int, tokens: int, median_ms: float) -> Generation:
    return Generation(
        total_runs=runs,
        generated_tokens=runs * tokens,
        average_tokens_per_run=tokens,
        tokens_per_second=1000 * tokens / median_ms,
        average_time_per_token_ms=median_ms / tokens,
    )
