"""`ptp bench`: turns, sums, bars, tables and the verb, with made-up times and with a tiny model."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptp.benchmarks.speed import plan
from ptp.benchmarks.speed.bars import bars
from ptp.benchmarks.speed.benchmark import Entry, Turns, measure, sum_up
from ptp.benchmarks.speed.plot import draw
from ptp.benchmarks.speed.pruner_graph import write_pruner
from ptp.benchmarks.speed.results import Benchmark, summed_up
from ptp.benchmarks.speed.tables import to_markdown
from ptp.benchmarks.speed.turn import Job, Run, Turn, take_turn
from ptp.bundle import open_bundle
from ptp.cli import main
from ptp.cuda import CudaDevice
from ptp.demo import CHECKPOINT
from ptp.errors import BackendError, ConfigError
from ptp.results import weights_sha256
from ptp.runtime.pipeline import Pipeline

TOKENS = 5
SCENE = CHECKPOINT / "evaluation/scene-0.jpg"
QUESTION = "Which digit is on the blue hexagon?"


def job(**changes) -> Job:
    values = {"kind": "ptp", "model": "m", "backend": "onnxruntime", "image": str(SCENE), "prompt": QUESTION}
    return Job(**values | {"threads": 1, "warmup": 0, "max_new_tokens": TOKENS} | changes)


def turn(
    preprocess=1.0, vision=10.0, prefill=20.0, decode=40.0, *, prompt=100, prune=None, peak=2**20, gpu=0, others=0.0
):
    stages = {"preprocess": preprocess, "vision_encoder": vision, "llm_prefill": prefill, "llm_generation": decode}
    return Turn(
        run=Run(stages_ms=stages, image_tokens=prompt - 10, prompt_tokens=prompt, token_ids=[1, 2]),
        load_ms=5.0,
        prune_ms=prune,
        peak_cpu_memory_bytes=peak,
        peak_gpu_memory_bytes=gpu,
        other_cpu_share=others,
    )


def case(*turns, kind="ptp", backend="onnxruntime", keep=1.0, side="PTP", precision="fp32"):
    return summed_up(
        turns,
        side=side,
        kind=kind,
        backend=backend,
        bundle="b",
        keep=keep,
        precision=precision,
        new_tokens=TOKENS,
    )


def test_turns_are_summed_up_in_the_words_of_edge_llm():
    times = [(1, 10, 20, 40), (3, 14, 10, 80), (2, 12, 60, 20), (2, 12, 30, 40)]
    found = case(*(turn(*x, prune=x[0] / 2, peak=2**20 * (i + 1), others=i / 10) for i, x in enumerate(times)))
    record = json.loads(found.model_dump_json())
    assert {"prefill", "generation", "multimodal", "stages", "peak_cpu_memory_bytes", "peak_cpu_memory_mb"} < {*record}
    assert record["prefill"] == {
        "total_runs": 4,
        "reused_tokens": 0,
        "computed_tokens": 400,
        "average_tokens_per_run": 100,
        "average_time_per_run_ms": 30,
        "tokens_per_second": 4000,  # of the median, 25 ms
        "average_time_per_token_ms": 0.25,
    }
    assert record["generation"] == {
        "total_runs": 4,
        "generated_tokens": 16,
        "average_tokens_per_run": 4,
        "tokens_per_second": 100,
        "average_time_per_token_ms": 10,
    }
    assert record["multimodal"] == {"total_runs": 4, "total_images": 4, "total_image_tokens": 360}
    stages = {stage["stage_id"]: stage for stage in record["stages"]}
    assert {*stages} == {"preprocess", "vision_encoder", "prune", "llm_prefill", "llm_generation", "ttft"}
    sums = np.array(times)[:, :3].sum(axis=1)
    assert stages["ttft"]["time_stats"] == {
        "count": 4,
        "min_ms": sums.min(),
        "max_ms": sums.max(),
        "mean_ms": sums.mean(),
        "median_ms": np.median(sums),
        "stddev_ms": pytest.approx(sums.std()),
    }
    assert (found.peak_cpu_memory_mb, found.other_cpu_share) == (4, pytest.approx(0.3))


def test_one_token_has_no_rate():
    found = summed_up([turn()], side="s", kind="ptp", backend="b", bundle=None, keep=1, precision="fp32", new_tokens=1)
    assert found.generation is None
    assert found.median_ms("llm_generation") is None


def whole_comparison(**changes):
    times = {"whole": (1, 49, 50, 40), "pruned": (1, 39, 10, 40), "eager": (1, 60, 39, 60), "genai": (1, 60, 44, 10)}
    times |= changes
    return [
        case(turn(*times["eager"]), kind="transformers", backend="eager"),
        case(turn(*times["genai"]), kind="openvino-genai", backend="CPU"),
        case(turn(*times["whole"], prompt=1000, prune=1)),
        case(turn(*times["pruned"], prompt=250, prune=0.78), keep=0.25),
    ]


def test_bars():
    found = bars(whole_comparison())
    assert [round(bar.value, 6) for bar in found] == [0.5, 0.8, 1.0, 1.5, 0.02]
    assert [bar.verdict for bar in found] == ["met"] * 5
    worse = bars(whole_comparison(whole=(1, 48, 50, 41), pruned=(1, 38, 14.5, 40)))
    # TTFT 53.5 of 99; prefill 0.29 of the time for 0.25 of the tokens; 99 of the fastest 100; 60/41; 0.78 of 38
    assert [round(bar.value, 3) for bar in worse] == [0.540, 1.160, 0.990, 1.463, 0.021]
    assert [bar.verdict for bar in worse] == ["missed", "missed", "met", "missed", "missed"]


def test_a_bar_without_its_sides_is_not_measured():
    eager, _, whole, pruned = whole_comparison()
    assert [bar.verdict for bar in bars([whole])] == ["not measured"] * 5
    assert [bar.verdict for bar in bars([pruned, eager])][:4] == ["not measured"] * 4
    other = case(turn(), kind="transformers", backend="eager", precision="fp16")
    assert [bar.value for bar in bars([other, whole])][2:4] == [None, None]
    assert bars([whole, whole, pruned])[0].value is None, "which of the two is meant?"
    assert bars([eager]) == ()


def entries():
    found = [Entry(side="transformers", keep=Fraction(1), precision="fp32", job=job(kind="transformers"))]
    return [*found, *(Entry(side="PTP", keep=Fraction(x), precision="fp32", job=job(keep=x)) for x in ("1", "1/4"))]


def test_sides_take_turns_and_a_benchmark_that_was_stopped_goes_on(tmp_path):
    taken, told = [], []

    def take(what):
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append((what.kind, what.keep))
        return turn(float(len(taken)))

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        measure(entries(), Turns(out, {"a": "1"}), 2, take=take)
    order = [("transformers", None), ("ptp", "1"), ("ptp", "1/4")]
    assert taken == [*order, order[0]]
    first, taken = list(taken), []
    found = measure(entries(), Turns(out, {"a": "1"}), 2, lambda *x: told.append(x), take=take)
    assert first + taken == order * 2
    assert told[0] == ("round 1 of 2: transformers at keep 1", 0, 6)
    assert told[-1] == ("done", 6, 6)
    assert [[x.run.stages_ms["preprocess"] for x in turns] for turns in found.values()] == [[1, 4], [2, 1], [3, 2]]
    with pytest.raises(ConfigError, match="holds another benchmark; got a 1; expected a 2"):
        Turns(out, {"a": "2"})
    assert Turns(out, {"a": "2"}, force=True).get(entries()[0], 0) is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(ConfigError, match="no benchmark"):
        Turns(tmp_path / "mine", {})


def summary(turns, **facts) -> Benchmark:
    settings = {"repeats": "1", "warmup": "0"}
    values = {"settings": settings, "machine": {"cpu": "x"}, "libraries": {"python": "3"}, "not_measured": {}}
    return sum_up({entry: turns for entry in entries()}, **values | facts)


def test_the_table_has_every_figure_and_says_what_is_missing(tmp_path):
    text = to_markdown(summary([turn(prune=2.5)], not_measured={"OpenVINO GenAI": "no folder"}))
    assert "| PTP | 0.25 | 90 | 1.0 | 10.0 | 2.5 | 20.0 | 31.0 | 1.00 | 100.0 | 1 |" in text
    assert "| TTFT at keep 0.25 / TTFT at keep 1 | onnxruntime | 1.000 | ≤ 0.5 | missed |" in text
    assert "- OpenVINO GenAI: no folder" in text
    assert "not idle" not in text
    assert "of the GPU" not in text
    on_gpu = to_markdown(summary([turn(gpu=3 << 20), turn(gpu=5 << 20)]))
    assert "| memory, MiB | of the GPU, MiB |" in on_gpu
    assert "| 1 | 5 |" in on_gpu
    noisy = to_markdown(summary([turn(others=0.0), turn(others=0.07)]))
    assert "other processes took up to 7 % of the CPU" in noisy
    assert "| – |" in noisy, "the pruner was not timed"
    svg, png = draw(summary([turn()]), tmp_path)
    assert "PTP, keep 0.25" in svg.read_text()
    with Image.open(png) as picture:
        assert picture.width > 1000


def test_results_are_read_back():
    found = summary([turn()])
    assert Benchmark.model_validate_json(found.model_dump_json()) == found


@pytest.fixture(scope="module")
def pruner(demo_bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pruner") / "cut"
    write_pruner(open_bundle(demo_bundle), folder)
    return folder


def test_a_turn_answers_as_the_pipeline_does(demo_bundle, pruner):
    found = take_turn(job(model=str(demo_bundle), warmup=1, pruner=str(pruner)))
    bundle = open_bundle(demo_bundle)
    answer = Pipeline.load(demo_bundle).generate(SCENE, QUESTION, max_new_tokens=1)
    assert found.run.token_ids[0] == answer.token_ids[0]
    assert len(found.run.token_ids) == TOKENS
    assert found.run.image_tokens == answer.num_visual_tokens <= bundle.manifest.pruning.num_kept
    assert {*found.run.stages_ms} == {"preprocess", "vision_encoder", "llm_prefill", "llm_generation"}
    assert min(found.run.stages_ms.values()) > 0
    assert found.prune_ms is not None
    assert found.peak_cpu_memory_bytes > 20 << 20


def test_transformers_takes_a_turn_with_the_same_answer(full_bundle):
    """At keep 1 nothing is pruned, so both sides must say the same."""
    ours = take_turn(job(model=str(full_bundle)))
    theirs = take_turn(job(kind="transformers", backend="eager", model=str(CHECKPOINT)))
    assert theirs.run.token_ids == ours.run.token_ids
    assert (theirs.run.image_tokens, theirs.run.prompt_tokens) == (ours.run.image_tokens, ours.run.prompt_tokens)
    assert {*theirs.run.stages_ms} == {*ours.run.stages_ms}
    assert theirs.details["attention"] == "sdpa"


def test_a_turn_that_fails_says_why(tmp_path):
    with pytest.raises(BackendError, match="ptp on onnxruntime failed; got /"):
        take_turn(job(model=str(tmp_path)))


def bench(*arguments) -> int:
    try:
        main(["bench", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_verb(demo_bundle, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    options = ("--backend", "onnxruntime", "--repeats", 1, "--max-new-tokens", 2, "--warmup", 0, "--out", out)
    assert bench(demo_bundle, *options) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "| PTP on onnxruntime | 0.25 |" in printed
    assert {path.name for path in out.iterdir()} == {
        *("pruner", "turns", "settings.json", "results.json", "table.md", "speed.svg", "speed.png")
    }
    monkeypatch.setattr("ptp.benchmarks.speed.turn.subprocess.run", None)  # all is there
    assert bench(demo_bundle, *options, "--json") == 0
    found = Benchmark.model_validate_json(capsys.readouterr().out)
    assert [x.keep for x in found.cases] == [0.25]
    assert found.cases[0].median_ms("prune") is not None
    assert {*found.not_measured} == {"transformers", "OpenVINO GenAI"}
    assert bench(demo_bundle, *options, "--prompt", "Another?") == 1
    assert "holds another benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "say what to measure"),
        (("x", "--dtype", "fp16"), "--dtype and --instruction are of an export, and bundles were given"),
        (("x", "--instruction", "none"), "--dtype and --instruction are of an export, and bundles were given"),
        (("x", "--device", "cuda"), "--device cuda finds no GPU; got "),
        (("x", "--repeats", 0), "--repeats is out of range"),
        (("x", "--threads", -1), "--threads is out of range"),
        (("x", "--warmup", -1), "--warmup is out of range"),
        (("x", "--max-new-tokens", 0), "--max-new-tokens is out of range"),
        (("x", "--image", "none.jpg"), "--image is not a file"),
        (("x", "--backend", "abacus"), "no such backend; got abacus"),
        (("x", "--openvino-genai", "."), "is not a converted model"),
        (("x", "--keep", "half"), "--keep is not a number"),
        (("x",), "x is not a bundle"),
    ],
)
def test_the_verb_refuses_in_one_line(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench(*options) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.count("\n") == 1
    assert message in errors
    assert not list(tmp_path.iterdir())


def test_a_bundle_with_one_keep_refuses_another(demo_bundle, tmp_path, capsys):
    assert bench(demo_bundle, "--keep", "0.5", "--out", tmp_path / "out") == 1
    assert "keep is fixed in this bundle" in capsys.readouterr().err


def test_peers():
    question = plan.Question(image=SCENE, prompt="?", threads=1, warmup=0, max_new_tokens=1)
    found, missing = plan.peer_entries(CHECKPOINT, "eager", question)
    assert [entry.side for entry in found] == ["transformers"]
    assert missing == {"transformers, torch.compile": "left out by --peers"}
    with pytest.raises(ConfigError, match="no such peer; got x"):
        plan.peer_entries(CHECKPOINT, "eager,x", question)
    assert plan.peer_entries(CHECKPOINT, "none", question)[0] == []
    half = plan.peer_entries(CHECKPOINT, "eager", question, "fp16")[0][0]
    assert (half.precision, half.job.precision) == ("fp16", "fp16")


def test_on_a_gpu_what_runs_on_the_cpu_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "find_device", lambda: CudaDevice(name="g", compute_capability=(9, 0), memory_bytes=1))
    question = plan.Question(image=SCENE, prompt="?", threads=1, warmup=0, max_new_tokens=1, device="cuda")
    with pytest.raises(BackendError, match="the provider cuda is not available"):
        plan.backends(None, "cuda")
    monkeypatch.setattr(plan, "available_provider", lambda provider: provider)
    assert plan.backends(None, "cuda") == (("onnxruntime",), {"PTP on openvino": plan.ON_CPU})
    with pytest.raises(ConfigError, match="openvino runs on the CPU; got --device cuda"):
        plan.backends("onnxruntime,openvino", "cuda")
    (tmp_path / "openvino_language_model.xml").touch()
    assert plan.genai_entry(tmp_path, question) == ([], {"OpenVINO GenAI": plan.ON_CPU})
    assert plan.peer_entries(CHECKPOINT, "eager", question)[0][0].job.device == "cuda"


def in_half(bundle, folder) -> Path:
    """Return a copy of a bundle whose manifest says FP16."""
    copy = Path(shutil.copytree(bundle, folder))
    record = json.loads((copy / "ptp_config.json").read_text())
    record["model"]["precision"] = "fp16"
    (copy / "ptp_config.json").write_text(json.dumps(record))
    return copy


def test_transformers_is_measured_beside_a_bundle_that_is_there(full_bundle, tmp_path, capsys, monkeypatch):
    jobs = []
    half = in_half(full_bundle, tmp_path / "half")

    def take(what):
        jobs.append(what)
        return turn()

    monkeypatch.setattr("ptp.benchmarks.speed.benchmark.measure.__defaults__", (lambda *_: None, take))
    options = ("--peers", "eager", "--backend", "onnxruntime", "--repeats", 1, "--out", tmp_path / "out")
    assert bench(half, "--checkpoint", "demo", *options) == 0
    assert [(x.kind, x.model) for x in jobs] == [("transformers", str(CHECKPOINT)), ("ptp", str(half))]
    assert jobs[0].precision == "fp16"
    assert not (tmp_path / "out/bundles").exists()
    found = json.loads((tmp_path / "out/settings.json").read_text())
    assert found["checkpoint"] == weights_sha256(CHECKPOINT)[:12]
    assert bench(full_bundle, half, "--checkpoint", "demo", *options) == 1
    assert "got fp16 and fp32; expected bundles of one precision" in capsys.readouterr().err


def test_without_a_compiler_torch_compile_is_not_measured(monkeypatch):
    question = plan.Question(image=SCENE, prompt="?", threads=1, warmup=0, max_new_tokens=1)
    monkeypatch.setattr("ptp.benchmarks.speed.plan.shutil.which", lambda name: None)
    found, missing = plan.peer_entries(CHECKPOINT, "eager,compile", question)
    assert [entry.job.backend for entry in found] == ["eager"]
    assert "C++ compiler" in missing["transformers, torch.compile"]
