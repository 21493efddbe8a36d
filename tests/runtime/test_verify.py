"""`ptp verify`: an honest bundle is verified on every backend, and one altered value of any graph is found out."""

import json
import shutil
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ptp.bundle import open_bundle
from ptp.bundle.manifest import MANIFEST_NAME
from ptp.bundle.vectors import VECTORS_NAME
from ptp.bundle.writer import file_entries
from ptp.cli import main
from ptp.demo import CHECKPOINT
from ptp.errors import VerificationError
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export
from ptp.runtime import verify
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.comparison import Agreement, Closeness, compare_integers, compare_values
from ptp.runtime.verify import arithmetic_of, verify_bundle
from ptp.runtime.verify_cli import verification_json
from ptp.tolerances import FEATURES, LOGITS, MOVED, SCORES, row_difference, value_difference

OUTPUTS = (
    "inputs_embeds",
    "num_valid",
    "packed_length",
    "tile_budgets",
    "image_positions",
    "image_features",
    "effective_alpha",
    "logits",
    "tokens",
)


@pytest.fixture(scope="module")
def attention_fp16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint in FP16 with the attention instruction, and a decoder for ONNX Runtime alone."""
    folder = tmp_path_factory.mktemp("fp16")
    model = shutil.copytree(CHECKPOINT, folder / "checkpoint", ignore=shutil.ignore_patterns("evaluation"))
    export(
        ExportConfig(
            model=str(model),
            out=folder / "out",
            keep=Fraction("0.25"),
            precision="fp16",
            max_prompt=64,
            optimize="onnxruntime",
        )
    )
    return folder / "out"


@pytest.fixture(scope="module")
def batched_bundle(tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images a call, K and alpha left to run time, and positions renumbered."""
    out = tmp_path_factory.mktemp("batched") / "out"
    export(
        ExportConfig(
            model=str(tiny_checkpoint("qwen2")),
            out=out,
            keep=Fraction("0.3"),
            keep_range=(Fraction("0.1"), Fraction("0.6")),
            batch=2,
            alpha="auto",
            positions="compact",
            max_prompt=80,
        )
    )
    return out


def ptp(*arguments: object) -> int:
    """Run the program; return its exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["demo_bundle", "full_bundle", "attention_fp16_bundle", "batched_bundle"])
def test_an_honest_bundle_is_verified(name, backend, request, capsys):
    bundle = request.getfixturevalue(name)
    arithmetic = "fp16" if "fp16" in name else "fp32"
    assert ptp("verify", bundle, "--backend", backend) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        f"verified: {backend} returns what transformers did at export, on 3 image(s), "
        f"within the tolerances of {arithmetic}"
    )
    outputs = [output for output in OUTPUTS if name != "full_bundle" or output != "effective_alpha"]
    shown = [line.split()[0] for line in lines if line.split() and line.split()[0] in OUTPUTS]
    assert shown == outputs


def alter(bundle: Path, graph: str, spoil) -> None:
    """Change one weight of a graph, and let the manifest say that it was always so."""
    manifest = open_bundle(bundle).manifest
    path = bundle / getattr(manifest.graphs, graph).file
    model = ir.load(path)
    largest = max(
        (x for x in model.graph.initializers.values() if x.const_value.dtype == ir.DataType.FLOAT),
        key=lambda x: (x.const_value.size, x.name),
    )
    largest.const_value = ir.tensor(spoil(largest.const_value.numpy().copy()), name=largest.name)
    ir.save(model, path)
    hide(bundle)


def hide(bundle: Path) -> None:
    """Write sizes and hashes of the files as they are into the manifest."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["files"] = {name: entry.model_dump() for name, entry in file_entries(bundle).items()}
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("graph", "output"),
    [("embed_tokens", "inputs_embeds"), ("vision_encoder", "image_"), ("decoder_model_merged", "logits")],
)
def test_a_graph_with_other_weights_is_found_out(graph, output, copied_bundle, capsys):
    alter(copied_bundle, graph, lambda weights: weights * np.float32(1.02))
    assert ptp("verify", copied_bundle) == 1
    out = capsys.readouterr()
    assert out.err.startswith(f"error: not verified: {output}")
    assert "allowed" in out.err
    assert out.err.count("\n") == 1
    assert "verified:" not in out.out
    wrong = {check.output for check in run(copied_bundle).checks if not check.agrees}
    # the graphs after it are fed with what was recorded, so that they are not blamed
    assert wrong <= {
        "embed_tokens": {"inputs_embeds"},
        "vision_encoder": {"tile_budgets", "image_positions", "image_features"},
        "decoder_model_merged": {"logits", "tokens"},
    }[graph]  # fmt: skip


def run(bundle: Path):
    opened = open_bundle(bundle)
    return verify_bundle(opened, graph_loader(), "fp32")


def test_a_decoder_that_returns_no_numbers_is_found_out(copied_bundle, capsys):
    alter(copied_bundle, "decoder_model_merged", lambda weights: weights * np.float32(np.nan))
    assert ptp("verify", copied_bundle, "--json") == 1
    out = capsys.readouterr()
    assert "not verified: logits is off by inf of its size, and 0.0001 is allowed" in out.err
    (logits,) = (x for x in json.loads(out.out)["outputs"] if x["output"] == "logits")
    assert logits["relative"] is None
    assert logits["max_difference"] is None
    assert logits["agrees"] is False


def test_another_choice_of_tokens_is_found_out(demo_bundle, monkeypatch):
    """As if the vectors had been recorded of a model that keeps other tokens."""

    def other(bundle):
        vectors = verify_vectors(bundle)
        positions = vectors[0].image_positions.copy()
        gap = np.flatnonzero(np.diff(positions) > 1)[0]
        positions[gap] += 1
        return (replace(vectors[0], image_positions=positions), *vectors[1:])

    verify_vectors = verify.read_vectors
    monkeypatch.setattr(verify, "read_vectors", other)
    found = run(demo_bundle)
    (check,) = (x for x in found.checks if x.output == "image_positions")
    assert check.total - check.equal == 1
    with pytest.raises(
        VerificationError, match=r"^not verified: image_positions differs in 1 of \d+, and 0 is allowed"
    ):
        found.require()


def test_tokens_are_compared_as_far_as_their_leads_are_beyond_rounding(demo_bundle, monkeypatch):
    def unsure(bundle):
        return tuple(
            replace(x, tokens=x.tokens[[0, 0]] * 0, leads=np.array([lead, 1.0], np.float32))
            for x, lead in zip(verify_vectors(bundle), (0.0, 0.0, 0.5), strict=True)
        )

    verify_vectors = verify.read_vectors
    monkeypatch.setattr(verify, "read_vectors", unsure)
    (check,) = (x for x in run(demo_bundle).checks if x.output == "tokens")
    assert (check.equal, check.total) == (0, 2)  # of the third image, none of which is right


def test_the_json_is_stable(demo_bundle, capsys):
    assert ptp("verify", demo_bundle, "--json") == 0
    first = capsys.readouterr().out
    assert ptp("verify", demo_bundle, "--json", "--threads", 1) == 0
    result, again = json.loads(first), json.loads(capsys.readouterr().out)
    assert list(result) == ["backend", "arithmetic", "images", "verified", "outputs"]
    assert (result["backend"], result["arithmetic"], result["verified"]) == ("onnxruntime", "fp32", True)
    assert result["images"] == again["images"]
    assert [x["output"] for x in result["outputs"]] == list(OUTPUTS)
    values = ["output", "max_difference", "mean_difference", "cosine", "relative", "allowed", "agrees"]
    for output in result["outputs"]:
        assert list(output) in (values, ["output", "equal", "total", "allowed", "agrees"])
        assert output["agrees"] is True
    opened = open_bundle(demo_bundle)
    found = verification_json(verify_bundle(opened, graph_loader(threads=1), "fp32"))
    assert found == {name: value for name, value in again.items() if name != "backend"}


def test_vectors_of_a_stranger_give_one_line(copied_bundle, capsys):
    (copied_bundle / VECTORS_NAME).write_bytes(b"\x80\x05\x95" + bytes(100))
    hide(copied_bundle)
    assert ptp("verify", copied_bundle) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert "vectors.safetensors holds no parity vectors of this bundle" in out.err
    assert out.err.count("\n") == 1


def test_a_backend_that_does_not_exist_is_refused_before_the_bundle_is_read(tmp_path, capsys):
    assert ptp("verify", tmp_path / "nowhere", "--backend", "abacus") == 1
    assert "no such backend; got 'abacus'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("export_precision", "options", "arithmetic"),
    [
        ("fp32", {"backend": "onnxruntime"}, "fp32"),
        ("fp32", {"backend": "onnxruntime", "provider": "cpu"}, "fp32"),
        ("fp32", {"backend": "onnxruntime", "provider": "cuda"}, "fp32"),
        ("fp32", {"backend": "onnxruntime", "provider": "tensorrt"}, "tf32"),
        ("fp32", {"backend": "openvino"}, "fp32"),
        ("fp32", {"backend": "openvino", "precision": "bf16"}, "bf16"),
        ("fp16", {"backend": "openvino", "precision": "bf16"}, "bf16"),
        ("fp16", {"backend": "tensorrt"}, "fp16"),
        ("fp32", {"backend": "tensorrt-rtx"}, "fp32"),
    ],
)
def test_the_tolerances_follow_the_arithmetic(export_precision, options, arithmetic):
    assert arithmetic_of(export_precision, **options) == arithmetic


def test_the_table_allows_more_where_fewer_bits_are_kept():
    for table in (FEATURES, SCORES, LOGITS, MOVED):
        assert table["fp32"] < table["fp16"] == table["tf32"] < table["bf16"]


def test_values_are_compared_by_the_worst_image():
    recorded = np.array([3.0, 4.0], np.float16)
    pairs = [(recorded, recorded), (np.array([3.0, 4.5], np.float16), recorded)]
    assert asdict(compare_values("x", pairs, value_difference, 0.1)) == asdict(
        Closeness(
            output="x",
            max_difference=0.5,
            mean_difference=0.25,
            cosine=pytest.approx(27 / (5 * 29.25**0.5)),
            relative=0.125,
            allowed=0.1,
        )
    )
    assert not compare_values("x", pairs, value_difference, 0.1).agrees
    assert compare_values("x", pairs, value_difference, 0.125).agrees


def test_values_that_are_nothing_agree_and_such_that_are_no_numbers_do_not():
    empty, zero = np.zeros((0, 4)), np.zeros((2, 4))
    for array in (empty, zero):
        assert compare_values("x", [(array, array)], row_difference, 0.0).agrees
        assert compare_values("x", [(array, array)], row_difference, 0.0).cosine == 1
    for bad in (np.nan, np.inf):
        found = compare_values("x", [(zero + bad, zero)], row_difference, 1e9)
        assert not found.agrees
        assert (found.max_difference, found.cosine) == (np.inf, 0)
    assert not compare_values("x", [(zero[:1], zero)], row_difference, 1e9).agrees


def test_tokens_that_went_to_another_tile_are_counted_once():
    recorded = np.array([4, 3, 3], np.int32)
    assert verify._same_budget(recorded, recorded) == (10, 10)
    assert verify._same_budget(np.array([4, 5, 1], np.int32), recorded) == (8, 10)
    assert verify._same_budget(np.array([9, 9, 9], np.int32), recorded) == (1, 10)


def test_integers_are_counted_over_all_images():
    assert compare_integers("x", [(9, 10), (20, 20)], 0.05) == Agreement(output="x", equal=29, total=30, allowed=1)
    assert compare_integers("x", [(9, 10), (20, 20)], 0.05).agrees
    assert not compare_integers("x", [(9, 10), (20, 20)]).agrees
