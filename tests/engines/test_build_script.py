"""`build.sh`, run with tools that only write down what they were asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_bundle import FakeBundle

from ptp.bundle import open_bundle
from ptp.bundle.engine import KINDS, graph_of
from ptp.engines.build_script import SCRIPT_NAME, build_script, write_build_script
from ptp.engines.profiles import default_max_context, llm_profiles, profiles_of
from ptp.engines.targets import TARGETS

RANGE = {"keep_range": {"min": 0.1, "max": 0.5, "min_kept": 5, "max_kept": 9}}
FAKE = '#!/bin/sh\nprintf "%s\\n" "called in $PWD" "$@" >> "$RECORD"\n'
# what the script and the fake tools call; TensorRT's own are out of reach
COMMANDS = ("bash", "sh", "dirname", "mkdir")
TENSORRT = "/usr/src/tensorrt/bin"


@pytest.fixture(params=[{}, {"pruning": RANGE}], ids=["fixed", "range"])
def manifest(request, tmp_path):
    (tmp_path / "fake").mkdir()
    return FakeBundle(folder=tmp_path / "fake", script=[5], changes=request.param).manifest


def run(script: Path, *arguments: str, tools: tuple[str, ...] = ()):
    """Run a script from another folder, with these tools and no others; return what they were told."""
    record, tool_folder = script.parent / "record.txt", script.parent / "tools"
    tool_folder.mkdir(exist_ok=True)
    for name in COMMANDS:
        if not (tool_folder / name).exists():
            (tool_folder / name).symlink_to(str(shutil.which(name)))
    assert TENSORRT in script.read_text()
    script.write_text(script.read_text().replace(f"command -v {TENSORRT}", f"command -v {tool_folder}/absent"))
    for name in tools:
        (tool_folder / name).write_text(FAKE)
        (tool_folder / name).chmod(0o755)
    environment = {"PATH": str(tool_folder), "RECORD": str(record)}
    done = subprocess.run(
        [str(tool_folder / "bash"), str(script), *arguments],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = record.read_text().split("called in ")[1:] if record.exists() else []
    return done, [call.splitlines() for call in calls]


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Parse what trtexec takes for shapes: NAME:D0xD1,…"""
    pairs = (word.split(":") for word in text.split(","))
    return {name: tuple(int(size) for size in sizes.split("x")) for name, sizes in pairs}


def by_trtexec(arguments: list[str]) -> list[dict[str, dict[str, tuple[int, ...]]]]:
    """Read the profiles as trtexec does: the three shapes right behind a number are that profile's."""
    profiles = []
    for place, argument in enumerate(arguments):
        if argument.startswith("--profile="):
            assert argument == f"--profile={len(profiles)}"
            words = dict(word.split("=", 1) for word in arguments[place + 1 : place + 4])
            profiles.append({bound: shapes(words[f"--{bound}Shapes"]) for bound in ("min", "opt", "max")})
    assert len(profiles) * 4 == sum("Shapes=" in x or "--profile=" in x for x in arguments)
    return profiles


def by_polygraphy(arguments: list[str]) -> list[dict[str, dict[str, tuple[int, ...]]]]:
    """Read the profiles as polygraphy does: each option once for each profile, NAME:[D0,D1] after it."""
    found: dict[str, list[dict[str, tuple[int, ...]]]] = {"min": [], "opt": [], "max": []}
    current: dict[str, tuple[int, ...]] | None = None
    for argument in arguments:
        if argument.startswith("--"):
            bound = argument.removeprefix("--trt-").removesuffix("-shapes")
            current = {} if bound in found else None
            if current is not None:
                found[bound].append(current)
        elif current is not None:
            name, sizes = argument.split(":")
            current[name] = tuple(int(size) for size in sizes.strip("[]").split(","))
    return [dict(zip(found, three, strict=True)) for three in zip(*found.values(), strict=True)]


def wanted(profiles) -> list[dict[str, dict[str, tuple[int, ...]]]]:
    return [
        {bound: {name: getattr(values, bound) for name, values in x.shapes.items()} for bound in ("min", "opt", "max")}
        for x in profiles
        if x.shapes
    ]


@pytest.mark.parametrize(("tool", "read"), [("trtexec", by_trtexec), ("polygraphy", by_polygraphy)])
def test_the_tools_are_asked_for_the_profiles_of_the_bundle(manifest, tmp_path, tool, read):
    folder = tmp_path / "a bundle"
    folder.mkdir()
    script = write_build_script(folder, manifest)
    done, calls = run(script, "orin-nano", tool, tools=("trtexec", "polygraphy"))
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls] == [str(folder)] * 3
    for kind, call in zip(KINDS, calls, strict=True):
        text = " ".join(call[1:])
        assert graph_of(kind, manifest.graphs).file in text
        assert f"engines/tensorrt/orin-nano/{kind}/{kind}.engine" in text
        assert (folder / "engines/tensorrt/orin-nano" / kind).is_dir()
        assert ("--stronglyTyped" if tool == "trtexec" else "--strongly-typed") in text
        assert read(call[1:]) == wanted(profiles_of(kind, manifest, default_max_context(manifest)))
    tokens = {"min": {"input_ids": (1, 1)}, "opt": {"input_ids": (1, 1)}, "max": {"input_ids": (1, 24)}}
    assert read(calls[1][1:]) == [tokens]
    assert len(wanted(llm_profiles(manifest, default_max_context(manifest)))) == 2


def test_a_larger_context_is_in_the_numbers(manifest, tmp_path):
    (tmp_path / SCRIPT_NAME).write_text(build_script(manifest, 777))
    _, calls = run(tmp_path / SCRIPT_NAME, "thor", tools=("trtexec",))
    decode = by_trtexec(calls[2][1:])[1]
    assert decode["max"]["attention_mask"] == (1, 777)
    assert decode["max"]["past_key_values.1.value"][2] == 776


@pytest.mark.parametrize("target", [target for target in TARGETS.values() if target.backend == "tensorrt"])
def test_scratch_memory_is_limited_to_the_boards(manifest, tmp_path, target):
    script = write_build_script(tmp_path, manifest)
    for tool, word in (("trtexec", "--memPoolSize=workspace:{}"), ("polygraphy", "workspace:{}M")):
        done, calls = run(script, target.name, tool, tools=("trtexec", "polygraphy"))
        assert done.returncode == 0
        assert all(word.format(target.workspace_bytes >> 20) in call for call in calls[-3:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: no such target; got ''; expected one of orin-nano, orin-nx, agx-orin, thor"),
        (("sm86",), "error: no such target; got 'sm86'; expected one of orin-nano, orin-nx, agx-orin, thor"),
        (("thor", "make"), "error: no such tool; got 'make'; expected trtexec or polygraphy"),
        (("thor", "trtexec"), "error: trtexec is neither in PATH nor in /usr/src/tensorrt/bin; install TensorRT"),
        (("thor", "polygraphy"), "error: polygraphy is not in PATH; pip install polygraphy"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_makes_nothing(manifest, tmp_path, arguments, message):
    done, calls = run(write_build_script(tmp_path, manifest), *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")
    assert not calls
    assert not (tmp_path / "engines").exists()


def test_a_build_that_fails_ends_the_script(manifest, tmp_path):
    script = write_build_script(tmp_path, manifest)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "trtexec").write_text(FAKE + "exit 3\n")
    (tmp_path / "tools" / "trtexec").chmod(0o755)
    done, calls = run(script, "thor")
    assert done.returncode == 3
    assert len(calls) == 1


def test_every_export_has_it(demo_bundle):
    manifest = open_bundle(demo_bundle).manifest
    script = demo_bundle / SCRIPT_NAME
    assert SCRIPT_NAME in manifest.files
    assert os.access(script, os.X_OK)
    assert script.read_text() == build_script(manifest, default_max_context(manifest))
