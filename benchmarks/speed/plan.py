"""Which sides there are, from what a user names; what cannot be measured, and why."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

from ptp.benchmarks.speed.benchmark import Entry
from ptp.benchmarks.speed.turn import Device, Job
from ptp.budgets import num_kept_at
from ptp.bundle import Manifest, read_manifest
from ptp.bundle.manifest import MAX_DIMENSION, Precision
from ptp.cuda import device_problem, find_device
from ptp.errors import ConfigError
from ptp.runtime.backends.onnxruntime import available_provider
from ptp.runtime.backends.registry import BACKENDS, usable_cpus

MAX_REPEATS, MAX_WARMUP = 1000, 1000
CPU_BACKENDS = ("onnxruntime", "openvino")
ON_CPU = "it runs on the CPU, and --device cuda was asked for"
PEERS = {"eager": "transformers", "compile": "transformers, torch.compile"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every side is asked.

    Attributes:
        image: file.
        prompt: question.
        threads: CPU threads.
        warmup: answers before the one that counts.
        max_new_tokens: tokens of an answer.
        device: what ONNX Runtime and transformers run on, `cpu` or `cuda`.

    Raises:
        ConfigError: a number is out of range, or there is no such file or no GPU.
    """

    image: Path
    prompt: str
    threads: int
    warmup: int
    max_new_tokens: int
    device: Device = "cpu"

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--threads", self.threads, 1, usable_cpus()),
            ("--warmup", self.warmup, 0, MAX_WARMUP),
            ("--max-new-tokens", self.max_new_tokens, 1, MAX_DIMENSION),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name} is out of range", got=value, expected=f"{least} to {most}")
        if not self.image.is_file():
            raise ConfigError("--image is not a file", got=self.image)
        if self.device == "cuda" and find_device() is None:
            raise ConfigError(
                "--device cuda finds no GPU",
                got=device_problem(),
                do='pip install cuda-bindings "onnxruntime-gpu[cuda,cudnn]", and look at nvidia-smi',
            )

    @property
    def job(self) -> Job:
        """A job without a side."""
        return Job(
            kind="ptp",
            model="",
            backend="",
            device=self.device,
            image=str(self.image.absolute()),
            prompt=self.prompt,
            threads=self.threads,
            warmup=self.warmup,
            max_new_tokens=self.max_new_tokens,
        )


def backends(named: str | None, device: Device) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return our backends, by default all for the device that are installed, and why others are not measured.

    Raises:
        ConfigError: a name is none, or of a backend of the CPU where the device is another.
        BackendError: ONNX Runtime has no provider for the device.
    """
    if device == "cuda" and "onnxruntime" in (named or "onnxruntime").split(","):
        available_provider(device)  # before transformers takes its turns
    if named is not None:
        chosen = tuple(dict.fromkeys(named.split(",")))
        if unknown := [name for name in chosen if name not in BACKENDS]:
            raise ConfigError("no such backend", got=", ".join(unknown), expected=" or ".join(BACKENDS))
        if device == "cuda" and "openvino" in chosen:
            raise ConfigError("openvino runs on the CPU", got="--device cuda", do="leave one of them out")
        return chosen, {}
    if device == "cuda":
        return CPU_BACKENDS[:1], {"PTP on openvino": ON_CPU}
    if find_spec("openvino") is None:
        return CPU_BACKENDS[:1], {"PTP on openvino": 'not installed; pip install "ptp-export[openvino]"'}
    return CPU_BACKENDS, {}


def precision_of(bundles: Sequence[Path]) -> Precision:
    """Return the precision that bundles share, and that transformers is measured in beside them.

    Raises:
        ConfigError: they share none.
        BundleError: a folder is no bundle.
    """
    found = {read_manifest(folder).model.precision for folder in bundles}
    if len(found) > 1:
        raise ConfigError(
            "transformers is measured in the precision of the bundles",
            got=" and ".join(sorted(found)),
            expected="bundles of one precision with --checkpoint",
        )
    return found.pop()


def bundle_entries(
    bundles: Sequence[Path],
    named_backends: Sequence[str],
    keeps: Sequence[Fraction] | None,
    question: Question,
    pruners: dict[Path, Path],
) -> list[Entry]:
    """Return the entries of some bundles.

    Args:
        bundles: their folders.
        named_backends: what they run on.
        keeps: fractions; those of the defaults that a bundle can have if None.
        question: what is asked.
        pruners: folder of a bundle's pruner graph.

    Raises:
        ConfigError: a bundle cannot have a keep.
        BundleError: a folder is no bundle.
    """
    found = []
    for backend in named_backends:
        for folder in bundles:
            manifest = read_manifest(folder)
            for keep in _keeps(manifest, keeps):
                job = replace(
                    question.job,
                    model=str(folder.absolute()),
                    backend=backend,
                    keep=str(keep) if manifest.pruning.keep_range else None,
                    pruner=str(pruners[folder].absolute()) if folder in pruners else None,
                )
                side = f"PTP on {backend}" if len(bundles) == 1 else f"{folder.resolve().name} on {backend}"
                precision = manifest.model.precision
                found.append(Entry(side=side, keep=keep, precision=precision, bundle=folder.resolve().name, job=job))
    return found


DEFAULT_KEEPS = (Fraction(1), Fraction(1, 2), Fraction(1, 4), Fraction(1, 10))


def _keeps(manifest: Manifest, keeps: Sequence[Fraction] | None) -> tuple[Fraction, ...]:
    pruning = manifest.pruning
    own = Fraction(str(pruning.keep))
    if keeps is None:
        bounds = pruning.keep_range
        fitting = tuple(keep for keep in DEFAULT_KEEPS if bounds and bounds.min <= keep <= bounds.max)
        return fitting or (own,)
    for keep in keeps:
        num_kept_at(keep, manifest)
    return tuple(dict.fromkeys(keeps))


def peer_entries(
    checkpoint: Path, named: str, question: Question, precision: Precision = "fp32"
) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries of transformers, and why others are not measured.

    Args:
        checkpoint: its folder.
        named: what of transformers to measure.
        question: what is asked.
        precision: what transformers computes in.

    Raises:
        ConfigError: a name is none.
    """
    chosen = [] if named == "none" else list(dict.fromkeys(named.split(",")))
    if unknown := [name for name in chosen if name not in PEERS]:
        raise ConfigError("no such peer", got=", ".join(unknown), expected=f"{', '.join(PEERS)} or none")
    missing = {PEERS[name]: "left out by --peers" for name in PEERS if name not in chosen}
    if "compile" in chosen and not any(shutil.which(name) for name in ("g++", "clang++")):
        chosen.remove("compile")
        missing[PEERS["compile"]] = "torch.compile needs a C++ compiler, and there is none"
    job = replace(question.job, kind="transformers", model=str(checkpoint.absolute()), precision=precision)
    jobs = [replace(job, backend=name) for name in chosen]
    return [Entry(side=PEERS[job.backend], keep=Fraction(1), precision=precision, job=job) for job in jobs], missing


def genai_entry(folder: Path | None, question: Question) -> tuple[list[Entry], dict[str, str]]:
    """Return the entry of OpenVINO GenAI, or why it is not measured.

    Raises:
        ConfigError: the folder is no converted model.
    """
    name = "OpenVINO GenAI"
    if folder is None:
        return [], {name: "no converted model was given with --openvino-genai"}
    if not (folder / "openvino_language_model.xml").is_file():
        raise ConfigError(
            "--openvino-genai is not a converted model",
            got=folder,
            expected="a folder with openvino_language_model.xml",
            do="make one with optimum-cli export openvino (docs/performance.md)",
        )
    if question.device == "cuda":
        return [], {name: ON_CPU}
    if find_spec("openvino_genai") is None:
        return [], {name: "not installed; pip install openvino-genai"}
    job = replace(question.job, kind="openvino-genai", model=str(folder.absolute()), backend="CPU")
    return [Entry(side=name, keep=Fraction(1), precision="fp32", job=job)], {}
