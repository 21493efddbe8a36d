"""The model for lmms-eval, on a stand-in for its base class with the names and the call order of lmms-eval 0.7.3."""

import importlib
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from ptp import Pipeline
from ptp.errors import ConfigError

NAME = "ptp.benchmarks.lmms_eval_plugin"
RED, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))


class Base:
    """What `lmms_eval.api.model.lmms` gives its children."""

    is_simple = True

    def __init__(self):
        self._rank = 0
        self.task_dict = {}
        self.cached = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *given: self.cached.append(given))

    @property
    def rank(self):
        return self._rank


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def plugin(monkeypatch):
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


class FakePipeline:
    """Remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def generate(self, image, prompt, **options):
        self.asked.append((image, prompt, options))
        return SimpleNamespace(text=f" answer to {prompt}\n")


@pytest.fixture
def pipeline(monkeypatch):
    fake = FakePipeline()
    fake.loaded = []
    monkeypatch.setattr(Pipeline, "load", lambda *given, **options: fake.loaded.append((given, options)) or fake)
    return fake


def request(document, options, task="textvqa", visuals=lambda document: [document["image"]]):
    """Return a request as lmms-eval makes it for a simple model, the question being the context."""
    return SimpleNamespace(args=(f"What is in {document}?", options, visuals, document, task, "val"))


def model(plugin, **options):
    made = plugin.PtpModel(**{"bundle": "b", "batch_size": "1", "max_batch_size": None, "device": None} | options)
    made.task_dict["textvqa"] = {"val": [{"image": RED}, {"image": BLUE}]}
    return made


def test_lmms_eval_finds_it_by_an_entry_point(plugin):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    group = "lmms_eval.models"
    ((name, value),) = project["entry-points"][group].items()
    manifest = EntryPoint(name=name, value=value, group=group).load()()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert (manifest.model_id, manifest.chat_class_path) == ("ptp", None)
    assert getattr(importlib.import_module(module), name) is plugin.PtpModel
    assert issubclass(plugin.PtpModel, Base)
    assert plugin.PtpModel.is_simple


def test_requests_are_answered_in_their_order(plugin, pipeline):
    made = model(plugin, keep=0.25, alpha="auto", threads=2)
    options = {"max_new_tokens": 16, "do_sample": False, "temperature": 0, "top_p": None, "num_beams": 1}
    answers = made.generate_until([request(1, options), request(0, options)])
    assert answers == ["answer to What is in 1?", "answer to What is in 0?"]
    assert [(image, prompt) for image, prompt, _ in pipeline.asked] == [
        (BLUE, "What is in 1?"),
        (RED, "What is in 0?"),
    ]
    expected = {"keep": "0.25", "alpha": "auto", "max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "stop": ()}
    assert [given for *_, given in pipeline.asked] == [expected] * 2
    assert pipeline.loaded == [(("b",), {"provider": "cpu", "threads": 2})]
    assert [(attribute, key[0]) for attribute, key, _ in made.cached] == [
        ("generate_until", "What is in 1?"),
        ("generate_until", "What is in 0?"),
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"max_new_tokens": 1024, "temperature": 0.0, "top_p": 1.0, "stop": ()}),
        ({"until": "\n\n"}, {"stop": ("\n\n",)}),
        ({"until": ["\n", "", "Q:"]}, {"stop": ("\n", "Q:")}),
        ({"until": None, "temperature": None, "image_aspect_ratio": "pad"}, {"stop": (), "temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
    ],
)
def test_a_task_says_how_to_generate(plugin, options, expected):
    found = plugin.sampling_options(options)
    assert found | expected == found


def test_what_it_cannot_do_is_refused(plugin, pipeline):
    with pytest.raises(ConfigError, match="beam"):
        plugin.sampling_options({"num_beams": 3})
    with pytest.raises(ConfigError, match="batch_size 4"):
        model(plugin, batch_size="4")
    with pytest.raises(ConfigError, match="provider"):
        model(plugin, device="cuda")
    with pytest.raises(ConfigError, match="alpha"):
        model(plugin, alpha=2)
    made = model(plugin)
    for visuals in ([], None, [RED, BLUE], ["video.mp4"]):
        with pytest.raises(ConfigError, match="textvqa 0 is not about one image"):
            made.generate_until([request(0, {}, visuals=lambda _, found=visuals: found)])
    for refused in (made.loglikelihood, made.generate_until_multi_round):
        with pytest.raises(ConfigError, match="generate_until"):
            refused([])
    assert not pipeline.asked


def test_without_lmms_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(ImportError, match="pip install 'lmms-eval"):
        importlib.import_module(NAME)
