"""The process of one turn: a job on stdin, what it found on stdout.

It imports what its side needs and no more, so that its memory is that side's.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

from ptp.benchmarks.speed.turn import Job, Run, Runner, Turn
from ptp.child import end_with
from ptp.cuda import used_memory
from ptp.errors import PtpError
from ptp.peak_memory import peak_bytes

PRUNER_RUNS = 3
"""Timed runs of the pruner's own graph, after one that warms up: it takes a hundredth of the answer."""


def main() -> None:
    """Serve one job of the process whose number is the first argument."""
    end_with(int(sys.argv[1]))
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not the answer
    try:
        answer.write(work(Job(**json.load(sys.stdin))).to_json())
    except PtpError as error:
        answer.write(json.dumps({"error": str(error)}))
        sys.exit(1)
    answer.flush()
    # without unloading: a library that fails at exit would fail a turn that is done
    os._exit(0)


def work(job: Job) -> Turn:
    """Load a side, warm it up, time one answer and, where asked for, the pruner's own graph."""
    before = _gpu_bytes(job)
    start = time.perf_counter()
    runner = load(job)
    load_ms = 1000 * (time.perf_counter() - start)
    for _ in range(job.warmup):
        runner.run()
    run, others = watched(runner)
    peak, gpu = peak_bytes(), max(0, _gpu_bytes(job) - before)
    return Turn(
        run=run,
        load_ms=load_ms,
        prune_ms=None if job.pruner is None else time_pruner(runner, Path(job.pruner)),
        peak_cpu_memory_bytes=peak,
        other_cpu_share=others,
        peak_gpu_memory_bytes=gpu,
        details=runner.details,
    )


def load(job: Job) -> Runner:
    """Return the job's side, loaded."""
    if job.kind == "ptp":
        from ptp.benchmarks.speed.ptp_side import PtpSide

        return PtpSide(job)
    if job.kind == "transformers":
        from ptp.benchmarks.speed.transformers_side import TransformersSide

        return TransformersSide(job)
    from ptp.benchmarks.speed.genai_side import GenAiSide

    return GenAiSide(job)


def time_pruner(runner: Runner, folder: Path) -> float:
    """Return the median milliseconds of the pruner's own graph."""
    from ptp.benchmarks.speed.ptp_side import PtpSide

    assert isinstance(runner, PtpSide)
    run = runner.load_pruner(folder)
    run()
    found = []
    for _ in range(PRUNER_RUNS):
        start = time.perf_counter()
        run()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


def watched(runner: Runner) -> tuple[Run, float | None]:
    """Return an answer, and the share of the machine's CPU time that others took meanwhile."""
    before, own_before = _cpu_seconds(), time.process_time()
    run = runner.run()
    after, own = _cpu_seconds(), time.process_time() - own_before
    if before is None or after is None or after[1] <= before[1]:
        return run, None
    busy, total = (now - then for now, then in zip(after, before, strict=True))
    return run, max(0.0, busy - own) / total


def _gpu_bytes(job: Job) -> int:
    return used_memory() if job.device == "cuda" else 0


def _cpu_seconds() -> tuple[float, float] | None:
    """Return the seconds that all CPUs worked, and had; None where the system does not say."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, first.split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    ticks = os.sysconf("SC_CLK_TCK")
    return busy / ticks, (busy + idle + iowait) / ticks


if __name__ == "__main__":
    main()
