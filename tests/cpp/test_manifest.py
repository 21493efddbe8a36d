"""Python and C++ judge the same manifests and fingerprints: what one refuses the other refuses, each in one line."""

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptp.bundle import Manifest
from ptp.bundle.engine import parse_engine_config
from ptp.errors import SchemaError

GOLDEN = Path(__file__).parents[1] / "bundle/golden/ptp_config.json"

COMMON = ["null", "true", "0", "-1", "1.0", "1", "1e400", "NaN", '"1"', "[]", "{}", str(10**400)]
RARE = [
    "false", "-0", "0.5", "1.5", "1e2", "1e-400", "Infinity", "-Infinity", '""', '"true"', "[1]", '{"a": 1}', "1e300",
    str(1 << 20), str((1 << 20) + 1), str(1 << 31), str((1 << 53) + 1), str((1 << 63) - 1), str(1 << 63),
    str(-(1 << 63)), str(1 << 64), f'"{"a" * 1000}"', f'"{"a" * 1001}"', '"a\\u001bb"', '"a\\u0085b"', '"a\\ud800b"',
    '"\\ud83d\\ude00"', '"a\\u0000"', '"a\tb"', '"../x"', '"onnx/../x"', '"a//b"', '"./a"', '"/a"', '"a:b"',
    f'"{"é" * 127}"', f'"{"é" * 128}"', "[1, 2, 3]", "[1.0, 2]", "[[1, 2]]",
]  # fmt: skip
"""JSON texts that stand for a value, some of which are none. Every value is tried as all common ones and a few rare."""

MARK = "\ue000"  # stands for a literal until the text is written


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the values of a document lie; of a list, the first and the last."""
    if place:
        yield place
    keys = list(value) if isinstance(value, dict) else [0, len(value) - 1] if isinstance(value, list) and value else []
    for key in dict.fromkeys(keys):
        yield from places(value[key], (*place, key))


def parent_of(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def with_literal(document: Any, place: tuple[Any, ...], literal: str) -> str:
    changed = copy.deepcopy(document)
    parent_of(changed, place)[place[-1]] = MARK
    return json.dumps(changed, ensure_ascii=False).replace(f'"{MARK}"', literal)


def structural(document: Any, place: tuple[Any, ...]) -> Iterator[str]:
    """Yield the document without a value, with one more or twice the key beside it."""
    key = place[-1]
    for change in ("gone", "more", "twice"):
        changed = copy.deepcopy(document)
        parent = parent_of(changed, place)
        if change == "gone":
            del parent[key]
        elif isinstance(parent, list):
            parent.extend([parent[key]] * (1 if change == "more" else 4096))
        elif change == "more":
            parent["surprise"] = parent[key]
        else:
            parent[MARK] = parent[key]
        yield json.dumps(changed, ensure_ascii=False).replace(MARK, str(key))


def damaged(text: str, random: np.random.Generator) -> Iterator[str]:
    """Yield what an editor or a bad disk makes of a text."""
    yield from ("\ufeff" + text, text + "\0x", text + "x", text + "{}", text + " \n", "\0" + text, "", "null", "[]")
    yield from ("[" * 100_000, '{"a":' * 100_000, text[:-2], text.replace('"', "'", 1), text + "//", "/**/" + text)
    yield text.replace("{", '{"\\u0000": 1,', 1)
    for _ in range(150):
        if random.random() < 0.2:
            yield text[: random.integers(len(text))]
            continue
        place, width = int(random.integers(len(text))), int(random.integers(3))
        yield text[:place] + chr(random.integers(1, 0x500)) * int(random.integers(3)) + text[place + width :]


def randomly_changed(document: Any, random: np.random.Generator) -> Iterator[str]:
    """Yield documents with up to three numbers near those that stand there: these meet the rules between fields."""
    leaves = [x for x in places(document) if type(parent_of(document, x)[x[-1]]) in (int, float)]
    for _ in range(300):
        changed = copy.deepcopy(document)
        for i in random.integers(0, len(leaves), random.integers(1, 4)):
            parent, key = parent_of(changed, leaves[i]), leaves[i][-1]
            parent[key] = [parent[key] + 1, parent[key] - 1, parent[key] * 2, parent[key] * 1000][random.integers(4)]
        yield json.dumps(changed)


def corpus(document: Any, thinned: Callable[[tuple[Any, ...]], bool]) -> list[str]:
    random = np.random.default_rng(0)
    chosen = [place for place in places(document) if not thinned(place)]
    texts = [
        with_literal(document, place, literal)
        for place in chosen
        for literal in (*COMMON, *random.choice(RARE, 6, replace=False))
    ]
    texts += [text for place in chosen for text in structural(document, place)]
    return [*texts, *damaged(json.dumps(document, indent=1), random), *randomly_changed(document, random)]


def refusal(judge: Callable[[str], object], text: str) -> str | None:
    try:
        judge(text)
    except SchemaError as error:
        return str(error)
    return None


@cache
def judged(form: str) -> tuple[list[str], list[str | None]]:
    """Return texts and what Python says of each; None for one that it takes."""
    texts = {"golden": golden_texts, "rich": rich_texts, "engine": engine_texts}[form]()
    return texts, [refusal(fingerprint if form == "engine" else Manifest.from_json, text) for text in texts]


@pytest.mark.parametrize("form", ["golden", "rich", "engine"])
def test_the_same_texts_are_refused_in_one_line(probe, tmp_path: Path, form: str) -> None:
    texts, ours = judged(form)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    theirs = probe("judge", of=form, path=tmp_path / "texts.json")
    assert [(one, two) for one, two in zip(ours, theirs, strict=True) if (one is None) != (two is None)] == []
    for words in filter(None, [*ours, *theirs]):
        assert "\n" not in words
        assert len(words) < 2000
    assert 0 < sum(words is None for words in ours) < len(texts) / 2


def rich(document: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with everything that may be missing."""
    changed = copy.deepcopy(document)
    graphs = changed["graphs"]
    vision = graphs["vision_encoder"]
    vision["inputs"].append({"name": "num_kept", "dtype": "int64", "shape": [1]})
    for spec in vision["outputs"][:2]:
        spec["shape"][1] = "num_kept"
    twin, fused = copy.deepcopy(vision), copy.deepcopy(graphs["decoder_model_merged"])
    twin["file"], fused["file"] = "onnx/twin.onnx", "onnx/fused.onnx"
    for spec in (*fused["inputs"], *fused["outputs"]):
        spec["shape"][0] = 1
    graphs |= {"decoder_onnxruntime": fused, "vision_encoder_onnxruntime": twin}
    for graph in (twin, fused):
        changed["files"][graph["file"]] = {"bytes": 1, "sha256": "0" * 64}
    changed["pruning"]["keep_range"] = {"min": 0.1, "max": 0.5, "min_kept": 56, "max_kept": 184}
    changed["model"]["quantization"] = {"weights": "int4", "lm_head": "int8", "block_size": 32}
    changed["parity"]["drift"] = {"positions": 8, "top1_agreement": 1.0, "kl_divergence": 0.01}
    return changed


def is_another_tensor(place: tuple[Any, ...]) -> bool:
    """Whether a place lies in a tensor of which there are many alike."""
    return place[:2] in {("graphs", "decoder_model_merged"), ("graphs", "decoder_onnxruntime")} and place[3:4] > (0,)


def golden_texts() -> list[str]:
    return corpus(json.loads(GOLDEN.read_text(encoding="utf-8")), is_another_tensor)


def rich_texts() -> list[str]:
    document = rich(json.loads(GOLDEN.read_text(encoding="utf-8")))
    Manifest.from_json(json.dumps(document))
    tried = {"vision_encoder", "embed_tokens", "decoder_model_merged", "files", "tiling", "prompting"}
    return corpus(document, lambda place: is_another_tensor(place) or bool(tried & set(place[:2])))


FINGERPRINT = {
    "schema_version": 1,
    "kind": "llm",
    "backend": "tensorrt",
    "target": "orin",
    "compute_capability": [8, 7],
    "builder": "10.3.0",
    "precision": "fp16",
    "flags": {"STRONGLY_TYPED": True, "workspace": 1024, "level": "3"},
    "profiles": [{"name": "decode", "shapes": {"x": {"min": [1, 1], "opt": [1, 8], "max": [1, 64]}}}],
    "max_context": 64,
    "inputs": [{"name": "x", "dtype": "int64", "shape": [1, "s"]}],
    "outputs": [{"name": "y", "dtype": "float16", "shape": [1, 4]}],
    "graph": "onnx/decoder_model_merged.onnx",
    "graph_files": {"onnx/decoder_model_merged.onnx": {"bytes": 1, "sha256": "0" * 64}},
    "engine": {"bytes": 1, "sha256": "0" * 64},
    "seconds": 1.5,
    "peak_bytes": 1,
    "estimated_bytes": 1,
}


def fingerprint(text: str) -> object:
    return parse_engine_config(text, "config.json", "build it again")


def engine_texts() -> list[str]:
    return corpus(FINGERPRINT, lambda place: False)
