"""The profile of a vision graph counts what ONNX Runtime runs, a loop's body as often as it runs."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest

from ptp.benchmarks import operators
from ptp.bundle import open_bundle

OPTIONS = SimpleNamespace(device="cpu", threads=1, repeats=2)


def operators_of(graph: onnx.GraphProto, times: int, tiles: int) -> Counter[str]:
    """Count what a run executes, by the graph itself; a Scan goes over all tiles."""
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "Scan":
            body = next(x.g for x in node.attribute if x.name == "body")
            found += operators_of(body, times * tiles, tiles)
        else:
            found[node.op_type] += times
    return found


@pytest.mark.parametrize("name", ["demo_bundle", "full_bundle"])
def test_counts_are_those_of_the_graph_that_onnx_runtime_makes(name, request, tmp_path):
    bundle = open_bundle(request.getfixturevalue(name))
    graphs = bundle.manifest.graphs
    (_, path, spec), _ = operators._graphs(bundle, "cpu")
    assert path.name == Path((graphs.vision_encoder_onnxruntime or graphs.vision_encoder).file).name
    kinds, run = operators.profile(path, operators._feeds(bundle, spec), OPTIONS)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    tiles = next(int(x.shape[1]) for x in spec.inputs if x.name == "pixel_values")
    assert {kind: x.count for kind, x in kinds.items()} == dict(operators_of(optimised, 1, tiles))
    assert ("Scan" in {node.op_type for node in optimised.node}) == (name == "full_bundle")
    assert 0 < sum(x.milliseconds for x in kinds.values()) <= run


def test_the_table_adds_up(demo_bundle, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["operators", str(demo_bundle), "--threads", "1", "--repeats", "1"])
    operators.main()
    vision, pruner = capsys.readouterr().out.split("pruner's own graph")
    for part in (vision, pruner):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| ")]
        *kinds, whole = rows[1:]
        assert whole[0] == "**all**"
        assert sum(int(row[1]) for row in kinds) == int(whole[1])
        assert sum(float(row[2]) for row in kinds) == pytest.approx(float(whole[2]), abs=0.05)
    assert "| Conv |" not in pruner


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["nowhere", "--device", "cuda"], "the provider cuda"),
        (["nowhere", "--repeats", "0"], "--repeats 0"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(arguments, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["operators", *arguments])
    with pytest.raises(SystemExit, match=said) as stopped:
        operators.main()
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)
