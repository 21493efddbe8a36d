"""The limits that a benchmark is held to; docs/performance.md says why these."""

from collections.abc import Sequence

from ptp.benchmarks.speed.results import Bar, Case

PRUNED, WHOLE = 0.25, 1.0


def bars(cases: Sequence[Case]) -> tuple[Bar, ...]:
    """Return every bar for each of our backends; a value is None where a side of the comparison was not measured.

    Args:
        cases: what was measured.
    """
    ours = [case for case in cases if case.kind == "ptp"]
    return tuple(bar for backend in dict.fromkeys(case.backend for case in ours) for bar in _of(backend, cases))


def _of(backend: str, cases: Sequence[Case]) -> list[Bar]:
    mine = [case for case in cases if case.kind == "ptp" and case.backend == backend]
    pruned, whole = _only(mine, PRUNED), _only(mine, WHOLE)
    peers = [case for case in cases if case.kind != "ptp" and whole and case.precision == whole.precision]
    eager = next((case for case in peers if case.kind == "transformers" and case.backend == "eager"), None)

    def bar(name: str, value: float | None, sign: str, limit: float) -> Bar:
        return Bar.model_validate({"name": name, "backend": backend, "value": value, "sign": sign, "limit": limit})

    both = (pruned, whole) if pruned and whole else None
    return [
        bar("TTFT at keep 0.25 / TTFT at keep 1", both[0].ttft_ms / both[1].ttft_ms if both else None, "≤", 0.5),
        bar(
            "prefill time at keep 0.25 / its share of tokens",
            _prefill_against_tokens(*both) if both else None,
            "≤",
            1.15,
        ),
        bar(
            "TTFT at keep 1 / TTFT of the fastest peer",
            whole.ttft_ms / min(case.ttft_ms for case in peers) if whole and peers else None,
            "≤",
            1.0,
        ),
        bar("tokens/s at keep 1 / transformers eager", _faster(whole, eager), "≥", 1.5),
        bar(
            "the pruner's share of the vision graph at keep 0.25", _pruner_share(pruned) if pruned else None, "≤", 0.02
        ),
    ]


def _only(cases: Sequence[Case], keep: float) -> Case | None:
    """Return the one case at a keep; None where there is none, or two that could be meant."""
    found = [case for case in cases if case.keep == keep]
    return found[0] if len(found) == 1 else None


def _prefill_against_tokens(pruned: Case, whole: Case) -> float:
    """Return (time at keep 0.25 / time at keep 1) / (tokens at keep 0.25 / tokens at keep 1)."""
    time = pruned.stage_ms("llm_prefill") / whole.stage_ms("llm_prefill")
    return time / (pruned.prefill.average_tokens_per_run / whole.prefill.average_tokens_per_run)


def _faster(ours: Case | None, other: Case | None) -> float | None:
    if ours is None or other is None or ours.generation is None or other.generation is None:
        return None
    return ours.generation.tokens_per_second / other.generation.tokens_per_second


def _pruner_share(case: Case) -> float | None:
    prune, vision = case.median_ms("prune"), case.median_ms("vision_encoder")
    return None if prune is None or vision is None else prune / vision
