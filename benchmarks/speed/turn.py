"""One turn of a benchmark: a side answers once in a process of its own, and says how long each stage took."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from ptp.bundle.manifest import Precision
from ptp.errors import BackendError

SideKind = Literal["ptp", "transformers", "openvino-genai"]
Device = Literal["cpu", "cuda"]

STAGES = ("preprocess", "vision_encoder", "llm_prefill", "llm_generation")
"""In the order they run; the last three are TensorRT Edge-LLM's names."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to do.

    Attributes:
        kind: what answers.
        model: folder of the bundle, of the checkpoint, or of the OpenVINO GenAI model.
        backend: of `ptp` the runtime's backend, of `transformers` `eager` or `compile`, of `openvino-genai` the device.
        device: what ONNX Runtime and transformers run on, `cpu` or `cuda`.
        precision: that transformers computes in, `fp32` or `fp16`.
        keep: fraction of visual tokens kept, as a fraction's text; None where that is fixed.
        image: file.
        prompt: question.
        threads: CPU threads.
        warmup: answers before the one that counts.
        max_new_tokens: tokens of every answer; end tokens are not heeded.
        pruner: folder of the pruner's own graph (`pruner_graph.py`), timed after the answer; None to leave that out.
    """

    kind: SideKind
    model: str
    backend: str
    device: Device = "cpu"
    precision: Precision = "fp32"
    keep: str | None = None
    image: str
    prompt: str
    threads: int
    warmup: int
    max_new_tokens: int
    pruner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One answer.

    Attributes:
        stages_ms: milliseconds by stage, the keys of `STAGES`.
        image_tokens: rows that the image takes in the language model's input; 0 where the library does not say.
        prompt_tokens: all rows of the prefill; 0 where the library does not say.
        token_ids: the answer; empty where the library does not say.
    """

    stages_ms: dict[str, float]
    image_tokens: int
    prompt_tokens: int
    token_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a process found.

    Attributes:
        run: the answer that counts.
        load_ms: until the first answer could begin.
        prune_ms: the pruner's own graph; None where it was not timed.
        peak_cpu_memory_bytes: largest resident size of the process, loading included; 0 where the system does not say.
        other_cpu_share: share of the machine's CPU time that other processes took during the answer; None where the
            system does not say.
        peak_gpu_memory_bytes: device memory in use after the answer less that before loading; both libraries keep what
            they took. 0 without a device.
        details: what else a reader of the figures should know.
    """

    run: Run
    load_ms: float
    prune_ms: float | None
    peak_cpu_memory_bytes: int
    other_cpu_share: float | None
    peak_gpu_memory_bytes: int = 0
    details: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> "Turn":
        """Return what `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"run": Run(**values["run"])})

    def to_json(self) -> str:
        """Return the turn as JSON."""
        return json.dumps(asdict(self))


class Runner(Protocol):
    """A loaded side."""

    details: dict[str, str]

    def run(self) -> Run:
        """Answer once."""
        ...


class Laps:
    """Milliseconds from one point to the next."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last call a name."""
        now = time.perf_counter()
        self.ms[name] = 1000 * (now - self._last)
        self._last = now


def take_turn(job: Job) -> Turn:
    """Do a job in a new process, alone, and return what it found.

    Raises:
        BackendError: it failed; the message is the process's own.
    """
    # OpenMP's threads are chosen when the libraries are loaded
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ptp.benchmarks.speed.worker", str(os.getpid())],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    if done.returncode or "error" in answer:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BackendError(f"{job.kind} on {job.backend} failed", got=answer.get("error", lines[-1]))
    return Turn.from_json(done.stdout)
