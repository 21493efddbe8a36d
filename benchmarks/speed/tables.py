"""A benchmark as Markdown."""

from collections.abc import Iterable, Sequence

from ptp.benchmarks.speed.results import MIB, Benchmark, Case

NOTHING = "–"
BUSY = 0.05
"""Share of the CPU that others may take before a figure is marked."""

COLUMNS = {
    "preprocess": "preprocess",
    "vision_encoder": "vision",
    "prune": "of it prune",
    "llm_prefill": "prefill",
    "ttft": "TTFT",
}


def to_markdown(benchmark: Benchmark) -> str:
    """Return the figures, the bars, and what they are of."""
    settings, cases = benchmark.settings, benchmark.cases
    gpu = any(case.peak_gpu_memory_bytes for case in cases)
    parts = [
        f"Medians of {settings['repeats']} answers, each in a process of its own after {settings['warmup']} that "
        "warmed it up, the sides in turns; milliseconds. ×: the TTFT of the first line / this TTFT.",
        _table(
            ["side", "keep", "image tokens", *COLUMNS.values(), "×", "tokens/s", "memory, MiB"]
            + ["of the GPU, MiB"] * gpu,
            [_row(case, cases[0]) + [_mib(case.peak_gpu_memory_bytes)] * gpu for case in cases],
        ),
        "## Bars",
        _table(
            ["", "backend", "measured", "limit", ""],
            [[x.name, x.backend, _number(x.value), f"{x.sign} {x.limit:g}", x.verdict] for x in benchmark.bars],
        ),
    ]
    if benchmark.not_measured:
        parts += ["## Not measured", "\n".join(f"- {name}: {why}" for name, why in benchmark.not_measured.items())]
    parts += ["## Measured on", "\n".join(f"- {line}" for line in _facts(benchmark))]
    if loud := [case for case in cases if (case.other_cpu_share or 0) > BUSY]:
        worst = max(case.other_cpu_share or 0 for case in loud)
        parts.append(
            f"**The machine was not idle:** other processes took up to {100 * worst:.0f} % of the CPU during an "
            f"answer, and more than {100 * BUSY:.0f} % in {len(loud)} of {len(cases)} lines. These figures are not "
            "to be relied on."
        )
    return "\n\n".join(parts) + "\n"


def _row(case: Case, first: Case) -> list[str]:
    tokens = case.multimodal.total_image_tokens // case.multimodal.total_runs
    return [
        case.side,
        f"{case.keep:g}",
        str(tokens) if tokens else NOTHING,
        *(_ms(case.median_ms(stage)) for stage in COLUMNS),
        f"{first.ttft_ms / case.ttft_ms:.2f}",
        f"{case.generation.tokens_per_second:.1f}" if case.generation else NOTHING,
        _mib(case.peak_cpu_memory_bytes),
    ]


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}" if size else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _facts(benchmark: Benchmark) -> Iterable[str]:
    for facts in (benchmark.machine, benchmark.settings):
        yield ", ".join(f"{name} {value}" for name, value in facts.items())
    yield ", ".join(f"{name} {version}" for name, version in benchmark.libraries.items())
    for case in benchmark.cases:
        if case.kind != "ptp":
            yield f"{case.side}: {case.precision}, " + ", ".join(f"{k} {v}" for k, v in case.details.items())


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))
