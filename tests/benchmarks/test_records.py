"""What a folder of an evaluation lets itself be resumed from, and what it refuses."""

import json
from pathlib import Path

import pytest

from ptp.benchmarks.evaluation.records import FILE, Record, Records
from ptp.errors import ConfigError

SETTINGS = {"task": "demo/test", "weights": "a" * 64}


def record(case: str, **changes) -> Record:
    return Record(**({"method": "ptp", "keep": 0.25, "case": case, "answer": "cat", "score": 1.0} | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "new" / "evaluation"
    with Records(folder, SETTINGS) as records:
        records.add([record("1"), record("2", answer="zwei\nZeilen · 二")])
        records.add([record("1", keep=0.1, answer="dog", score=0.0)])
    return folder


def test_answers_are_there_again(folder):
    with Records(folder, SETTINGS) as records:
        assert records.get("ptp", 0.25, "1") == record("1")
        assert records.get("ptp", 0.25, "2") == record("2", answer="zwei\nZeilen · 二")
        assert records.get("ptp", 0.1, "1") == record("1", keep=0.1, answer="dog", score=0.0)
        assert records.get("ptp", 0.1, "2") is records.get("other", 0.25, "1") is None
        records.add([record("3")])
    head, *lines = (folder / FILE).read_text().splitlines()
    assert json.loads(head) == {"settings": SETTINGS}
    assert [json.loads(line)["case"] for line in lines] == ["1", "2", "1", "3"]


def test_an_answer_is_on_disk_before_the_file_is_closed(folder):
    with Records(folder, SETTINGS) as records:
        records.add([record("3")])
        assert '"case": "3"' in (folder / FILE).read_text().splitlines()[-1]


def test_a_torn_line_is_dropped_wherever_it_was_torn(folder):
    whole = (folder / FILE).read_bytes()
    head = whole.index(b"\n") + 1
    for length in range(len(whole)):
        (folder / FILE).write_bytes(whole[:length])
        with Records(folder, SETTINGS) as records:
            kept = whole[:length].count(b"\n") - 1
            assert (records.get("ptp", 0.25, "1") is not None) == (kept >= 1)
            assert (records.get("ptp", 0.1, "1") is not None) == (kept >= 3)
            records.add([record("new")])
        content = (folder / FILE).read_bytes()
        assert content.startswith(whole[:head])
        assert content.count(b"\n") == max(kept, 0) + 2
        with Records(folder, SETTINGS) as records:
            assert records.get("ptp", 0.25, "new") == record("new")


def test_another_evaluation_is_refused_and_named(folder):
    before = (folder / FILE).read_bytes()
    with pytest.raises(
        ConfigError,
        match=r"another evaluation; got task 'demo/test'; expected task 'demo/validation'; .*--out.*--force",
    ):
        Records(folder, SETTINGS | {"task": "demo/validation"})
    with pytest.raises(ConfigError, match="metric none; expected metric 'exact'"):
        Records(folder, SETTINGS | {"metric": "exact"})
    assert (folder / FILE).read_bytes() == before
    with Records(folder, SETTINGS | {"task": "demo/validation"}, force=True) as records:
        assert records.get("ptp", 0.25, "1") is None
    assert (folder / FILE).read_text().count("\n") == 1


@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize("text", ["{}", "no JSON", '{"method": "ptp"}'])
def test_a_damaged_line_is_refused(folder, line, text):
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    lines[line - 1] = text + "\n"
    (folder / FILE).write_text("".join(lines))
    with pytest.raises(ConfigError, match="is damaged"):
        Records(folder, SETTINGS)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        for force in (False, True):
            with pytest.raises(ConfigError, match="is no evaluation"):
                Records(path, SETTINGS, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with Records(tmp_path / "empty", SETTINGS):
        pass
