"""Which backend takes which options, and what is said where one is missing."""

import re
import sys
from pathlib import Path

import openvino as ov
import pytest

from ptp.errors import BackendError, ConfigError
from ptp.runtime.backends.registry import BACKENDS, graph_loader, usable_cpus


@pytest.mark.parametrize(
    ("backend", "options", "problem"),
    [
        (
            "tensorflow",
            {},
            "no such backend; got 'tensorflow'; expected onnxruntime or openvino or tensorrt-rtx or tensorrt",
        ),
        ("openvino", {"provider": "cuda"}, "provider is an option of onnxruntime; got backend openvino; leave it out"),
        ("tensorrt", {"provider": "cpu"}, "provider is an option of onnxruntime; got backend tensorrt; leave it out"),
        ("onnxruntime", {"target": "sm86"}, "target is an option of tensorrt-rtx or tensorrt; got backend onnxruntime"),
        ("tensorrt-rtx", {"precision": "bf16"}, "precision is an option of openvino; got backend tensorrt-rtx"),
        ("openvino", {"precision": "int8"}, "no such precision; got 'int8'; expected fp32 or bf16"),
        ("onnxruntime", {"provider": "gpu"}, "no such provider"),
        ("onnxruntime", {"threads": 0}, "threads is out of range; got 0; expected 1 to "),
        ("openvino", {"threads": 1 << 20}, f"expected 1 to {usable_cpus()}, the CPUs of this machine"),
        ("tensorrt", {"threads": 2}, "threads is an option of onnxruntime or openvino; got backend tensorrt"),
    ],
)
def test_options_that_cannot_be_used_are_refused(backend: str, options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        graph_loader(backend, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "module", "install"),
    [
        ("openvino", "openvino", 'pip install "ptp-export[openvino]"'),
        ("tensorrt-rtx", "cuda.bindings.runtime", 'pip install "ptp-export[rtx]"'),
        ("tensorrt", "cuda.bindings.runtime", 'pip install "ptp-export[tensorrt]"'),
    ],
)
def test_a_backend_that_is_not_installed_says_how_to_install_it(
    backend: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ptp.runtime.backends.openvino", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=f"the backend {backend} is not installed.*{re.escape(install)}"):
        graph_loader(backend)


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_without_a_device_engines_are_refused_before_their_library_is_touched(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptp.runtime.backends.tensorrt.find_device", lambda: None)
    monkeypatch.setitem(sys.modules, backend.replace("-", "_"), None)
    expected = (
        rf"the backend {backend} needs an NVIDIA GPU; got no CUDA device \(.+\); run on a machine where nvidia-smi"
    )
    with pytest.raises(BackendError, match=expected):
        graph_loader(backend)


def test_bf16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(ConfigError, match="this CPU does not compute in bf16; got FP32, INT8"):
        graph_loader("openvino", precision="bf16")


def test_each_extra_is_one_of_the_package() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    for backend in BACKENDS.values():
        assert backend.extra is None or f"\n{backend.extra} = [" in text
