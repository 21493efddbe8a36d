"""libptp is built once per run with warnings as errors, and once more with sanitizers; tests talk to both."""

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / ".cpp/build"
Build = Callable[[str], Path]


class ProbeError(Exception):
    """What libptp refused; `status` is the name of its code."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class Probe:
    """A running `ptp_probe`: calling it sends an order and returns the result."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def __call__(self, do: str, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do} | order, default=str).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(f"ptp_probe died: {self._process.communicate()[1].decode(errors='replace')[-3000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProbeError(answer["error"], answer["status"])
        return answer["result"]

    def refusal(self, do: str, **order: Any) -> ProbeError:
        """Return the error that an order ends with."""
        with pytest.raises(ProbeError) as caught:
            self(do, **order)
        assert "\n" not in str(caught.value)
        return caught.value

    def close(self) -> None:
        _, errors = self._process.communicate()
        assert self._process.returncode == 0, errors.decode(errors="replace")[-3000:]
        assert not errors, errors.decode(errors="replace")[-3000:]


@pytest.fixture(scope="session")
def cpp_environment() -> dict[str, str]:
    """Environment in which libptp finds the ONNX Runtime that Python uses."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return os.environ | {"PTP_ONNXRUNTIME": str(library), "UBSAN_OPTIONS": "print_stacktrace=1"}


def _make(preset: str) -> Path:
    """Build, and return the folder; one process at a time, of those that share the tests."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / f"{preset}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(preset)


def _build(preset: str) -> Path:
    configure = ["cmake", "--preset", preset]
    if preset == "sanitize":
        source = Path(__file__).parent / "sanitized"
        configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(BUILDS / preset)]
    for command in (configure, ["cmake", "--build", str(BUILDS / preset)]):
        result = subprocess.run(
            ["nice", *command], cwd=ROOT / "cpp", capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    return BUILDS / preset / ("cpp" if preset == "sanitize" else "")


_workers = ThreadPoolExecutor(1)
_builds: dict[str, Future[Path]] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build as soon as it is known that a test will ask for it: minutes, in which other tests run."""
    here = Path(__file__).parent
    if not session.config.option.collectonly and any(item.path.parent == here for item in session.items):
        for preset in ("tests", "sanitize"):
            _builds[preset] = _workers.submit(_make, preset)


def pytest_sessionfinish() -> None:
    """Begin no build that nobody waits for any more."""
    _workers.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session")
def cpp_build() -> Build:
    """Returns the folder of a build: the preset `tests`, or `sanitize`, which has a stand-in for TensorRT too."""
    return lambda preset: _builds[preset].result()


@pytest.fixture(scope="session", params=["tests", "sanitize"])
def probe(request: pytest.FixtureRequest, cpp_build: Build, cpp_environment: dict[str, str]) -> Iterator[Probe]:
    """The probe, with and without sanitizers, which complain when it ends at the latest."""
    running = Probe(cpp_build(request.param) / "ptp_probe", cpp_environment)
    yield running
    running.close()


@pytest.fixture(scope="session", params=["one device"])
def engine_probe(request: pytest.FixtureRequest, cpp_build: Build, cpp_environment: dict[str, str]) -> Iterator[Probe]:
    """The probe with a stand-in for TensorRT 10.3 on a GPU of compute capability 8.7, or without a GPU."""
    devices = "1" if request.param == "one device" else "0"
    running = Probe(cpp_build("sanitize") / "ptp_probe", cpp_environment | {"STAND_IN_DEVICES": devices})
    yield running
    running.close()
