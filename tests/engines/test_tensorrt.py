"""The one adapter over both builders: against a recording fake of `tensorrt`, and against the real `tensorrt_rtx`."""

import json
import os
import re
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import pytest
import tensorrt_rtx
from fake_tensorrt import RECORD
from onnx import TensorProto, helper

from ptp.engines import tensorrt, worker
from ptp.engines.tensorrt import run_builder, try_build
from ptp.engines.worker import RefusedError, Request, build
from ptp.errors import BuildError

OPEN = {"x": [[1, 4], [2, 4], [8, 4]]}


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph with an open dimension and an input of one integer, in the working folder."""
    tensors = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4]),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "k"]),
        helper.make_tensor_value_info("i", TensorProto.INT64, ["rows", "k"]),
    ]
    made = helper.make_graph([helper.make_node("TopK", ["x", "k"], ["y", "i"])], "topk", tensors[:2], tensors[2:])
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    monkeypatch.chdir(tmp_path)
    return path


def ask(**options: object) -> worker.Answer:
    """Build with the fake, in this process."""
    return build(Request(module="fake_tensorrt", graph="graph.onnx", **options))


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_fake_offers_nothing_that_the_real_library_does_not():
    names = [
        name
        for name, value in vars(fake_tensorrt).items()
        if isinstance(value, type) and value.__module__ == fake_tensorrt.__name__
    ]
    assert len(names) > 12
    for name in names:
        assert not public(getattr(fake_tensorrt, name)) - {*dir(getattr(tensorrt_rtx, name))}, name
    shown = fake_tensorrt.ITensor(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    assert vars(shown).keys() <= {*dir(tensorrt_rtx.ITensor)}
    arguments = {
        "set_shape": tensorrt_rtx.IOptimizationProfile,
        "set_shape_input": tensorrt_rtx.IOptimizationProfile,
        "set_timing_cache": tensorrt_rtx.IBuilderConfig,
        "set_memory_pool_limit": tensorrt_rtx.IBuilderConfig,
    }
    for name, kind in arguments.items():
        code = getattr(getattr(fake_tensorrt, kind.__name__), name).__code__
        real = re.findall(r"(\w+): ", getattr(kind, name).__doc__.splitlines()[0])
        assert list(code.co_varnames[: code.co_argcount]) == real, name


def test_every_setting_reaches_the_builder_and_is_reported(graph):
    answer = ask(
        engine="out.engine",
        profiles=[{**OPEN, "k": [[1], [2], [3]]}, {**OPEN, "k": [[4], [4], [4]]}],
        workspace_bytes=1 << 30,
        flags=["WEIGHT_STREAMING", "VERSION_COMPATIBLE"],
        hardware_compatibility="SAME_COMPUTE_CAPABILITY",
    )
    assert json.loads(Path("out.engine").read_text()) == [
        ["create_network", 1 << fake_tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED],
        ["parse_from_file", "graph.onnx"],
        ["clear_flag", "TF32"],
        ["set_flag", "WEIGHT_STREAMING"],
        ["set_flag", "VERSION_COMPATIBLE"],
        ["set_memory_pool_limit", "WORKSPACE", 1 << 30],
        ["hardware_compatibility_level", "SAME_COMPUTE_CAPABILITY"],
        ["set_shape", "x", [1, 4], [2, 4], [8, 4]],
        ["set_shape_input", "k", [1], [2], [3]],
        ["add_optimization_profile"],
        ["set_shape", "x", [1, 4], [2, 4], [8, 4]],
        ["set_shape_input", "k", [4], [4], [4]],
        ["add_optimization_profile"],
        ["build_serialized_network"],
    ]
    assert answer.settings == {
        "STRONGLY_TYPED": True,
        "TF32": False,
        "WEIGHT_STREAMING": True,
        "VERSION_COMPATIBLE": True,
        "WORKSPACE": 1 << 30,
        "HARDWARE_COMPATIBILITY": "SAME_COMPUTE_CAPABILITY",
    }
    assert answer.inputs == [("x", "float32", [-1, 4]), ("k", "int64", [1])]
    assert answer.outputs == [("y", "float32", [-1, -1]), ("i", "int64", [-1, -1])]
    assert (answer.version, answer.engine_bytes) == ("10.3.0", Path("out.engine").stat().st_size)
    assert answer.peak_bytes > 1 << 20


def test_a_library_that_has_only_strongly_typed_networks_needs_no_flag(graph, monkeypatch):
    """TensorRT 11 ignores the flag and calls it deprecated, by the documentation of TensorRT-RTX 1.7's own bindings."""
    monkeypatch.setattr(fake_tensorrt, "NetworkDefinitionCreationFlag", object)
    assert "STRONGLY_TYPED" not in ask().settings
    assert RECORD[0] == ["create_network", 0]


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"flags": ["NO_SUCH_FLAG"]}, "BuilderFlag NO_SUCH_FLAG"),
        ({"hardware_compatibility": "ORIN"}, "HardwareCompatibilityLevel ORIN"),
        # an enumeration of TensorRT-RTX alone
        ({"compute_capability": "SM87"}, "ComputeCapability SM87"),
    ],
)
def test_what_a_release_does_not_have_is_refused_by_name(graph, options, missing):
    with pytest.raises(RefusedError, match=rf"fake_tensorrt 10\.3\.0 has no {missing}"):
        ask(**options)
    assert ["build_serialized_network"] not in RECORD


def test_timings_are_kept_for_the_next_build(graph):
    for known in ("", "+", "++"):
        ask(timing_cache="times/orin.timing")
        assert ["set_timing_cache", known, False] in RECORD
    assert [path.name for path in Path("times").iterdir()] == ["orin.timing"]


def test_timings_of_another_device_are_left_alone(graph, monkeypatch):
    Path("cache").write_bytes(b"another")
    real = fake_tensorrt.IBuilderConfig.set_timing_cache
    monkeypatch.setattr(
        fake_tensorrt.IBuilderConfig,
        "set_timing_cache",
        lambda self, cache, ignore_mismatch: real(self, cache, ignore_mismatch) and cache.data != b"another",
    )
    ask(timing_cache="cache")
    assert Path("cache").read_bytes() == b"+"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": [("x", "float32", ["rows", 4])]}, "unknown input k"),
        ({"inputs": [("x", "float16", ["rows", 4]), ("k", "int64", [1])]}, "input x is float32 .* instead of float16"),
        ({"inputs": [("x", "float32", ["rows", 5]), ("k", "int64", [1])]}, r"input x is .*\[-1, 4\] instead of"),
        (
            {"outputs": [("y", "float32", ["rows", 2, 1]), ("z", "int64", [1])]},
            "no output z, unknown output i, output y",
        ),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused_before_the_build(graph, change, words):
    described = {
        "inputs": [("x", "float32", ["rows", 4]), ("k", "int64", [1])],
        "outputs": [("y", "float32", ["rows", 2]), ("i", "int64", ["rows", "kept"])],
    }
    ask(**described)
    with pytest.raises(RefusedError, match=f"not what the manifest says: {words}"):
        ask(**described | change)
    assert ["build_serialized_network"] not in RECORD


def test_the_builders_own_words_are_the_error(graph, monkeypatch):
    def refuse(self, network, config):
        for severity, message in (("WARNING", "a warning"), ("ERROR", "Cuda Runtime (35)"), ("ERROR", "kOPT values")):
            self.logger.log(fake_tensorrt.ILogger.Severity[severity], message)

    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", refuse)
    with pytest.raises(RefusedError, match=r"^kOPT values$"):
        ask()


def test_a_refused_profile_is_an_error(graph, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.IBuilderConfig, "add_optimization_profile", lambda self, profile: -1)
    with pytest.raises(RefusedError, match="profile 0 was refused"):
        ask(profiles=[OPEN])


def test_the_real_library_builds_the_same_request(graph):
    profile = {**OPEN, "k": [[1], [2], [4]]}
    limit = {"workspace_bytes": 1 << 30, "flags": ["WEIGHT_STREAMING"], "compute_capability": "SM86"}
    answer = run_builder("tensorrt-rtx", graph, profiles=[profile], engine=str(graph.parent / "e"), **limit)
    assert answer.version == tensorrt_rtx.__version__
    assert (graph.parent / "e").stat().st_size == answer.engine_bytes > 1000
    assert answer.settings == {
        "STRONGLY_TYPED": True,
        "TF32": False,
        "WEIGHT_STREAMING": True,
        "WORKSPACE": 1 << 30,
        "COMPUTE_CAPABILITY": "SM86",
    }


def test_a_known_refusal_is_explained(tmp_path):
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["y", "i"])],
        "topk",
        [tensor("x", TensorProto.INT32, [1, 9000])],
        [tensor("i", TensorProto.INT64, [1, 3841])],
        [onnx.numpy_helper.from_array(np.array([3841]), "k")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "k.onnx")
    with pytest.raises(
        BuildError, match=r"TensorRT-RTX refused k\.onnx; got .*3840.*; .* export with a smaller --keep"
    ):
        try_build(tmp_path / "k.onnx")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "got signal SIGKILL; it needs more free memory"),
        ("raise RuntimeError('broken')", "got exit status 1: RuntimeError: broken"),
        ("print('noise'); raise SystemExit(3)", "got exit status 3; run it again"),
    ],
)
def test_a_crash_of_the_builder_is_an_error_here(graph, monkeypatch, code, words):
    (graph.parent / "broken_library.py").write_text(code)
    monkeypatch.setitem(tensorrt.MODULES, "tensorrt", "broken_library")
    monkeypatch.setenv("PYTHONPATH", str(graph.parent))
    with pytest.raises(BuildError, match=rf"TensorRT refused graph\.onnx; {words}"):
        run_builder("tensorrt", graph)


STATE = """
import ctypes, os
fixed, cpus = ctypes.CDLL(None).personality(0xFFFFFFFF) & 0x40000, len(os.sched_getaffinity(0))
raise RuntimeError(f"fixed {fixed > 0}, cpus {cpus}, batch {os.sched_getscheduler(0) == os.SCHED_BATCH}")
"""


def test_tensorrt_rtx_runs_where_two_builds_are_alike(graph, monkeypatch):
    """At fixed addresses, and where no thread takes the CPU from another; full TensorRT keeps all CPUs."""
    (graph.parent / "broken_library.py").write_text(STATE)
    monkeypatch.setenv("PYTHONPATH", str(graph.parent))
    for backend in tensorrt.MODULES:
        monkeypatch.setitem(tensorrt.MODULES, backend, "broken_library")
    with pytest.raises(BuildError, match="fixed True, cpus 1, batch True"):
        run_builder("tensorrt-rtx", graph)
    with pytest.raises(BuildError, match=f"fixed False, cpus {len(os.sched_getaffinity(0))}, batch False"):
        run_builder("tensorrt", graph)


def test_asking_for_a_library_does_not_load_it(tmp_path, monkeypatch):
    (tmp_path / "unloadable.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    for name, there in (("unloadable", True), ("nowhere", False)):
        monkeypatch.setitem(tensorrt.MODULES, "tensorrt", name)
        assert tensorrt.is_installed("tensorrt") == there
