"""Engine folders: real ones by TensorRT-RTX on the demo bundle, those of a board by a recording fake."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx

from ptp.bundle import Bundle, open_bundle
from ptp.bundle.engine import KINDS, graph_of, read_engine_config, read_engines
from ptp.bundle.writer import file_entry
from ptp.cuda import CudaDevice
from ptp.engines import build as building
from ptp.engines import tensorrt
from ptp.engines.build import BuildOptions, BuiltEngine, build_engines
from ptp.engines.targets import TARGETS
from ptp.errors import BuildError, ConfigError, IntegrityError

SM86, SM89, NANO = (TARGETS[name] for name in ("sm86", "sm89", "orin-nano"))
ORIN = CudaDevice(name="Orin", compute_capability=(8, 7), memory_bytes=7 << 30)


@pytest.fixture(scope="module")
def built(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[BuiltEngine]]:
    """A bundle with the engines of two cards; do not change it."""
    bundle = open_bundle(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("built") / "bundle"))
    return bundle, build_engines(bundle, "tensorrt-rtx", [SM86, SM89])


@pytest.fixture
def bundle(copied_bundle: Path) -> Bundle:
    return open_bundle(copied_bundle)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine an Orin whose TensorRT is the fake."""
    monkeypatch.setattr(building, "find_device", lambda: ORIN)
    monkeypatch.setitem(tensorrt.MODULES, "tensorrt", "fake_tensorrt")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def test_each_target_gets_all_engines_with_their_fingerprints(built):
    bundle, engines = built
    places = [engine.folder.relative_to(bundle.folder).as_posix() for engine in engines]
    assert places == [f"engines/tensorrt-rtx/{card}/{kind}" for card in ("sm86", "sm89") for kind in KINDS]
    for engine in engines:
        assert {path.name for path in engine.folder.iterdir()} == {"config.json", engine.config.file_name}
        assert read_engine_config(engine.folder) == engine.config
    assert len({engine.config.engine.sha256 for engine in engines}) == 6
    assert [path.name for path in bundle.folder.rglob("*") if "partial" in path.name] == []
    assert open_bundle(bundle.folder).manifest == bundle.manifest  # engines are no part of what was exported
    found = {config.engine.sha256: config for config in read_engines(bundle.folder)}
    assert found == {engine.config.engine.sha256: engine.config for engine in engines}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_fingerprint_says_all_that_a_loader_compares(built, index):
    bundle, engines = built
    manifest, config = bundle.manifest, engines[index].config
    graph = graph_of(KINDS[index], manifest.graphs)
    assert config.engine == file_entry(engines[index].folder / config.file_name)
    assert (config.inputs, config.outputs) == (graph.inputs, graph.outputs)
    assert config.graph_files == {graph.file: manifest.files[graph.file]}
    assert config.graph == graph.file
    assert config.builder == tensorrt_rtx.__version__
    assert (config.backend, config.target, config.compute_capability) == ("tensorrt-rtx", "sm86", (8, 6))
    assert config.flags == {"STRONGLY_TYPED": True, "TF32": False, "COMPUTE_CAPABILITY": "SM86"}
    assert [x.name for x in config.profiles] == (["vision"], ["tokens"], ["prefill", "decode"])[index]
    assert config.max_context == 64 + manifest.pruning.num_kept + 256
    assert config.precision == "fp32"
    assert config.seconds > 0
    assert config.peak_bytes > 100 << 20
    assert config.estimated_bytes > 100 << 20


def test_a_rebuild_gives_the_same_bytes(built, monkeypatch):
    """Twice in succession: another process that takes the CPU in a bad moment may reorder some names in one engine."""
    bundle, engines = built
    for engine in engines[:3]:
        config, out = engine.config, bundle.folder.parent / "again.engine"
        profiles = [profile.bounds() for profile in config.profiles]
        seen = [config.engine.sha256]
        while len(seen) < 2 or (seen[-1] != seen[-2] and len(seen) < 5):
            tensorrt.run_builder(
                "tensorrt-rtx",
                bundle.folder / config.graph,
                engine=str(out),
                inputs=[(x.name, x.dtype, x.shape) for x in config.inputs],
                outputs=[(x.name, x.dtype, x.shape) for x in config.outputs],
                profiles=profiles,
                compute_capability="SM86",
            )
            seen.append(file_entry(out).sha256)
        assert seen[-1] == seen[-2], config.kind


def test_engines_that_are_there_are_replaced_with_force_only(bundle, monkeypatch):
    calls = _pretend(monkeypatch)
    build_engines(bundle, "tensorrt-rtx", [SM86])
    with pytest.raises(ConfigError, match=r"sm86 exists; replace its engines with --force"):
        build_engines(bundle, "tensorrt-rtx", [SM89, SM86])
    assert len(calls) == 3  # it was refused before anything was built
    again, *_ = build_engines(
        bundle, "tensorrt-rtx", [SM86], max_context=200 + bundle.manifest.pruning.num_kept, force=True
    )
    assert len(calls) == 6
    assert read_engine_config(again.folder.parent / "llm").max_context == 200 + bundle.manifest.pruning.num_kept
    (again.folder.parent / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds more than engines"):
        build_engines(bundle, "tensorrt-rtx", [SM86], force=True)
    assert (again.folder.parent / "notes.txt").exists()


@pytest.mark.parametrize("error", [BuildError("no"), KeyboardInterrupt()])
def test_a_failed_build_leaves_what_was_there(bundle, monkeypatch, error):
    before = sorted(bundle.folder.rglob("*"))
    _pretend(monkeypatch, fail_at=2, error=error)
    with pytest.raises(type(error)):
        build_engines(bundle, "tensorrt-rtx", [SM86])
    assert sorted(bundle.folder.rglob("*")) == before

    _pretend(monkeypatch)
    build_engines(bundle, "tensorrt-rtx", [SM86])
    before = {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}
    _pretend(monkeypatch, fail_at=2, error=error)
    with pytest.raises(type(error)):
        build_engines(bundle, "tensorrt-rtx", [SM86], force=True)
    assert {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()} == before


def test_a_graph_that_the_manifest_describes_wrongly_is_not_built(bundle):
    graphs = bundle.manifest.graphs
    wrong = graphs.vision_encoder.model_copy(
        update={"inputs": tuple(x.model_copy(update={"dtype": "int32"}) for x in graphs.vision_encoder.inputs)}
    )
    manifest = bundle.manifest.model_copy(update={"graphs": graphs.model_copy(update={"vision_encoder": wrong})})
    with pytest.raises(BuildError, match=r"not what the manifest says: input .* is float32 .* instead of int32"):
        build_engines(replace(bundle, manifest=manifest), "tensorrt-rtx", [SM86])
    assert not (bundle.folder / "engines").exists()


def test_every_file_that_a_graph_reads_is_in_the_fingerprint(bundle, monkeypatch):
    _pretend(monkeypatch)
    monkeypatch.setattr(building, "external_files", lambda path: {"embed_tokens.onnx"})
    for engine in build_engines(bundle, "tensorrt-rtx", [SM86]):
        names = [engine.config.graph, "onnx/embed_tokens.onnx"]
        assert engine.config.graph_files == {name: bundle.manifest.files[name] for name in names}
    monkeypatch.setattr(building, "external_files", lambda path: {"../secret.bin"})
    with pytest.raises(IntegrityError, match=r"reads files that are not the bundle's; got onnx/\.\./secret\.bin"):
        build_engines(bundle, "tensorrt-rtx", [SM89])


def test_a_link_out_of_the_bundle_is_not_followed(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (bundle.folder / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of the bundle"):
        build_engines(bundle, "tensorrt-rtx", [SM86])


@pytest.mark.parametrize("option", ["version_compatible", "hardware_compatible"])
def test_what_rtx_engines_cannot_be_is_refused(bundle, option):
    with pytest.raises(ConfigError, match=f"got --{option.replace('_', '-')}"):
        build_engines(bundle, "tensorrt-rtx", [SM86], options=BuildOptions(**{option: True}))


def test_a_missing_library_is_named_with_its_extra(bundle, monkeypatch):
    monkeypatch.setattr(tensorrt, "is_installed", lambda backend: False)
    with pytest.raises(BuildError, match=r'pip install "ptp-export\[rtx\]"'):
        build_engines(bundle, "tensorrt-rtx", [SM86])


@pytest.mark.parametrize(
    ("device", "installed", "lacks"),
    [(None, True, "no CUDA device here"), (ORIN, False, "no Python package tensorrt here"), (None, False, "no CUDA")],
)
def test_elsewhere_than_on_the_board_the_commands_to_run_there_are_told(bundle, monkeypatch, device, installed, lacks):
    monkeypatch.setattr(building, "find_device", lambda: device)
    monkeypatch.setattr(tensorrt, "is_installed", lambda backend: installed)
    with pytest.raises(BuildError) as error:
        build_engines(bundle, "tensorrt", [NANO])
    name = bundle.folder.name
    for words in (
        lacks,
        f"scp -r {bundle.folder} user@DEVICE:",
        f"ptp build {name} --backend tensorrt --target orin-nano",
        f"bash {name}/build.sh orin-nano",
    ):
        assert words in str(error.value)


def test_the_command_to_run_there_has_all_that_was_asked_for(bundle, monkeypatch):
    monkeypatch.setattr(building, "find_device", lambda: None)
    spaced = bundle.folder.rename(bundle.folder.with_name("a bundle"))
    (spaced / "build.sh").unlink()
    options = BuildOptions(weight_streaming=True, hardware_compatible=True)
    with pytest.raises(BuildError) as error:
        build_engines(
            replace(bundle, folder=spaced), "tensorrt", [NANO, TARGETS["thor"]], max_context=777, options=options
        )
    told = str(error.value)
    assert f"scp -r '{spaced}' user@DEVICE: and on it run: ptp build 'a bundle' --backend tensorrt" in told
    assert told.endswith("--target orin-nano,thor --max-context 777 --weight-streaming --hardware-compatible")


def test_another_device_than_the_target_is_refused(bundle, board):
    with pytest.raises(
        ConfigError, match=r"this device is not thor; got Orin with compute capability 8\.7; expected 11"
    ):
        build_engines(bundle, "tensorrt", [TARGETS["thor"]])


def test_weights_that_a_target_does_not_compute_with_are_refused(bundle, board):
    half = replace(NANO, precisions=("fp16",))
    with pytest.raises(
        ConfigError, match=r"orin-nano does not compute with .* got fp32; expected fp16; export it again"
    ):
        build_engines(bundle, "tensorrt", [half])


def test_on_a_board_the_engines_are_built_for_it(bundle, board, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = BuildOptions(weight_streaming=True, version_compatible=True, hardware_compatible=True)
    visual, _, llm = build_engines(bundle, "tensorrt", [NANO], options=options)
    assert visual.folder == bundle.folder / "engines" / "tensorrt" / "orin-nano" / "visual"
    calls = json.loads((llm.folder / "llm.engine").read_bytes())
    assert ["set_memory_pool_limit", "WORKSPACE", 1 << 30] in calls
    assert ["hardware_compatibility_level", "SAME_COMPUTE_CAPABILITY"] in calls
    assert ["set_timing_cache", "++", False] in calls  # of the two that were built before
    assert calls.count(["add_optimization_profile"]) == 2
    assert (tmp_path / "cache" / "ptp-export" / "orin-nano.timing").read_bytes() == b"+++"
    assert llm.config.compute_capability == (8, 7)
    assert llm.config.builder == "10.3.0"
    assert llm.config.flags == {
        "STRONGLY_TYPED": True,
        "TF32": False,
        "WEIGHT_STREAMING": True,
        "VERSION_COMPATIBLE": True,
        "WORKSPACE": 1 << 30,
        "HARDWARE_COMPATIBILITY": "SAME_COMPUTE_CAPABILITY",
    }


def test_a_timing_cache_that_cannot_be_used_costs_no_engine(bundle, board, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/ptp-export/orin-nano.timing").mkdir(parents=True)  # can be neither read nor written
    for engine in build_engines(bundle, "tensorrt", [NANO]):
        assert json.loads((engine.folder / engine.config.file_name).read_bytes())


def _pretend(monkeypatch: pytest.MonkeyPatch, *, fail_at: int = 0, error: BaseException | None = None) -> list[str]:
    """Replace the builder by one that writes a word, and fails at one of its calls."""
    calls: list[str] = []

    def run(backend, graph, *, engine, inputs, outputs, **settings):
        calls.append(graph.name)
        Path(engine).write_text(f"engine {len(calls)}")
        if len(calls) == fail_at and error is not None:
            raise error
        return building.tensorrt.Answer(
            version="1",
            settings={},
            inputs=inputs,
            outputs=outputs,
            engine_bytes=8,
            seconds=0.1,
            peak_bytes=1,
        )

    monkeypatch.setattr(tensorrt, "run_builder", run)
    return calls
