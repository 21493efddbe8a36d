"""The README's commands and code run as written, in an empty folder with a photograph."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ptp.cli import main
from ptp.demo import CHECKPOINT
from ptp.export.locate import SHORT_NAMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, heading: str) -> str:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return "".join(found)


def test_the_commands_and_the_code_of_use(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHECKPOINT / "evaluation/scene-0.jpg", "scene.jpg")
    for line in block("sh", "Use").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        with pytest.raises(SystemExit) as end:
            main(["export", *arguments] if program == "ptp-export" else arguments)
        assert end.value.code == 0, line
    out = capsys.readouterr().out
    assert out.count("\n 8\n") == 2  # on both backends
    assert Path("kept.png").exists()
    assert Path("bundle/report.html").exists()
    exec(block("python", "Use"), {})
    assert capsys.readouterr().out == " 8"


def test_the_table_of_short_names_is_the_code():
    rows = re.findall(r"^\| (`.*?) \| (\S+)", README, re.MULTILINE)
    listed = {name.strip("` "): target for names, target in rows for name in names.split(",")}
    assert {name: target for name, target in listed.items() if name != "demo"} == SHORT_NAMES


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "demo/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for heading in re.findall(r"\]\([^)\s]*#([^)]+)\)", text):
        headings = [re.sub(r"[^\w\s-]", "", line).strip().lower().replace(" ", "-") for other in PAGES
                    for line in other.read_text(encoding="utf-8").splitlines() if line.startswith("#")]  # fmt: skip
        assert heading in headings, heading
