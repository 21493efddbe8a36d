"""`ptp build`."""

import json
from pathlib import Path

import pytest

from ptp.bundle.engine import KINDS, EngineConfig
from ptp.cli import main
from ptp.cuda import CudaDevice
from ptp.engines import build as building
from ptp.engines import cli
from ptp.errors import VerificationError
from ptp.runtime import verify as verifying
from ptp.runtime.backends import registry

ADA = CudaDevice(name="RTX 4090", compute_capability=(8, 9), memory_bytes=24 << 30)


def ptp(*arguments: object) -> int:
    """Run the program; return its exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cli, building):
        monkeypatch.setattr(module, "find_device", lambda: None)


def test_engines_are_built_and_told(copied_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ptp("build", copied_bundle, "--backend", "tensorrt-rtx", "--target", "sm86", "--max-context", 500) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert shown.err == ""
    for kind, line in zip(KINDS, lines, strict=False):
        assert f"engines/tensorrt-rtx/sm86/{kind}/{kind}.engine  " in line
        assert "iB in " in line
        assert "(estimated " in line
    assert lines[3:] == ["not verified, since no GPU here runs it: sm86"]
    assert ptp("build", copied_bundle, "--backend", "tensorrt-rtx", "--target", "sm86") == 1
    assert "sm86 exists; replace its engines with --force" in " ".join(capsys.readouterr().err.split())
    forced = ("--force", "--json", "--weight-streaming")
    assert ptp("build", copied_bundle, "--backend", "tensorrt-rtx", "--target", "sm86", *forced) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] == {}
    configs = [EngineConfig.model_validate(engine["config"]) for engine in told["engines"]]
    assert tuple(config.kind for config in configs) == KINDS
    assert all(config.flags["WEIGHT_STREAMING"] is True for config in configs)
    assert {config.max_context for config in configs} != {500}


def test_the_target_is_the_gpu_of_this_machine_and_is_verified(demo_bundle, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "find_device", lambda: ADA)
    seen = {}

    def build(bundle, backend, targets, **options):
        seen["targets"] = [target.name for target in targets]
        return []

    def refuse() -> None:
        raise VerificationError("not verified: something differs")

    found = verifying.Verification(images=((1, 1),), arithmetic="fp32", checks=())
    monkeypatch.setattr(building, "build_engines", build)
    monkeypatch.setattr(registry, "graph_loader", lambda backend, target: (backend, target))
    monkeypatch.setattr(
        verifying, "verify_bundle", lambda bundle, load_graph, arithmetic: seen.update(on=load_graph) or found
    )
    assert ptp("build", demo_bundle, "--backend", "tensorrt-rtx") == 0
    assert seen == {"targets": ["sm89"], "on": ("tensorrt-rtx", "sm89")}
    assert capsys.readouterr().out == "sm89: verified against what transformers did at export\n"
    assert ptp("build", demo_bundle, "--backend", "tensorrt-rtx", "--target", "sm86,sm89") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "not verified, since no GPU here runs it: sm86"
    monkeypatch.setattr(verifying.Verification, "require", lambda self: refuse())
    assert ptp("build", demo_bundle, "--backend", "tensorrt-rtx") == 1
    assert "not verified: something differs" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_backend_without_engines_is_never_a_silent_no_op(demo_bundle: Path, backend, capsys) -> None:
    assert ptp("build", demo_bundle, "--backend", backend) == 0
    line = f"{backend} runs the graphs as they are, so nothing was built; ptp run {demo_bundle} --backend {backend} …\n"
    assert capsys.readouterr().out == line
    assert ptp("build", demo_bundle, "--backend", backend, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"engines": [], "note": line.strip()}
    assert ptp("build", demo_bundle, "--backend", backend, "--target", "sm86") == 1
    assert ptp("build", demo_bundle / "nowhere", "--backend", backend) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--backend", "tensorrt-rtx"],
            "expected sm75, sm80, sm86, sm89, sm120, sm121; choose with --target",
        ),
        (["--backend", "tensorrt"], "expected orin-nano, orin-nx, agx-orin, thor; choose with --target"),
        (["--backend", "tensorrt", "--target", "sm86"], "tensorrt has no such target; got 'sm86'"),
        (["--backend", "tensorrt-rtx", "--target", "sm86", "--max-context", "5"], "--max-context does not fit"),
        (["--backend", "tensorrt", "--target", "orin-nano"], "TensorRT engines are built on the device"),
        (["--backend", "tensorrt-rtx", "--target", "sm86", "--hardware-compatible"], "TensorRT-RTX has no engines for"),
    ],
)
def test_what_cannot_be_built_is_one_line(demo_bundle: Path, arguments, words, capsys) -> None:
    assert ptp("build", demo_bundle, *arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (demo_bundle / "engines").exists()


def test_an_unknown_backend_is_wrong_usage(demo_bundle: Path) -> None:
    assert ptp("build", demo_bundle, "--backend", "magic") == 2


def test_a_dry_run_compares_with_the_boards_memory_and_builds_nothing(demo_bundle: Path, capsys) -> None:
    arguments = ("build", demo_bundle, "--backend", "tensorrt", "--target", "orin-nano,thor", "--dry-run")
    assert ptp(*arguments) == 0
    shown = capsys.readouterr().out
    assert "orin-nano: Jetson Orin Nano 8 GB" in shown
    for words in ("; 6.50 GiB are left to it: fits", "; 126.50 GiB are left to it: fits"):
        assert shown.count(words) == 1
    assert "cache" in shown
    assert ptp(*arguments, "--json") == 0
    nano, thor = json.loads(capsys.readouterr().out)["estimates"]
    assert (nano["target"], thor["target"]) == ("orin-nano", "thor")
    assert nano["fits"] is True
    assert nano["build_bytes"] == max(x["build_bytes"] for x in nano["engines"].values())
    assert nano["run_bytes"] > sum(x["run_bytes"] for x in nano["engines"].values())
    assert ptp(*arguments, "--json", "--max-context", 2000) == 0
    longer = json.loads(capsys.readouterr().out)["estimates"][0]
    assert longer["engines"]["llm"]["cache"] > nano["engines"]["llm"]["cache"]
    assert not (demo_bundle / "engines").exists()
