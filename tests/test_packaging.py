"""What the wheel holds, and what the runtime needs: nothing but its declared dependencies."""

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"ptp": ROOT / "src/ptp"} | {
    f"ptp/{name}": ROOT / name for name in ("benchmarks", "demo", "engines", "export", "ptp_graph", "report", "runtime")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_tree_and_nothing_else(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    expected = set()
    for name in tracked:
        for package, folder in ROOMS.items():
            path = ROOT / name
            is_data = (
                path.suffix in (".py", ".jinja", ".css")
                or path.name == "py.typed"
                or {"checkpoint", "materials"} & set(path.parts)
            )
            if path.is_relative_to(folder) and is_data and path.exists():
                expected.add(f"{package}/{path.relative_to(folder).as_posix()}")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected
    assert sum(name.startswith("ptp/export/gates/") for name in found) >= 4


def runtime_distributions() -> dict[str, str]:
    """Return the runtime's dependencies, direct and indirect, without any extra."""
    found, queue = {}, ["ptp-export"]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # needed on other platforms only
            continue
        found[name] = package.version
        for requirement in package.requires or []:
            if "extra ==" not in requirement:
                queue.append(re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0])
    return found


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and the runtime's dependencies only, linked from this one."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    for name in runtime_distributions():
        if name == "ptp-export":
            continue
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(package.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


RUN = """
import sys
from ptp.cli import main
try:
    main(sys.argv[1:])
finally:
    loaded = {name.split(".")[0] for name in sys.modules}
    heavy = loaded & {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub"}
    assert not heavy, heavy
"""


def run(python, *arguments):
    return subprocess.run([str(python), "-c", RUN, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_dependencies_are_light():
    heavy = {"torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors", "scikit-image"}
    assert not heavy & set(runtime_distributions())


def test_a_plain_install_answers_and_inspects(clean_python, demo_bundle, photos, tmp_path):
    answered = run(clean_python, "run", demo_bundle, "--image", photos["cat"], "--prompt", "What is in the picture?")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()
    picture = tmp_path / "kept.png"
    seen = run(clean_python, "inspect", demo_bundle, "--image", photos["cat"], "--prompt", "What?", "--out", picture)
    assert seen.returncode == 0, seen.stderr
    assert picture.stat().st_size > 1000


def test_a_plain_install_says_what_exporting_needs(clean_python):
    refused = run(clean_python, "export", "--keep", "0.25")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert 'pip install "ptp-export[export]"' in refused.stderr


def imports(path: Path) -> set[str]:
    """Return the modules of this project that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name for name in names if name == "ptp" or name.startswith("ptp.")}


ALLOWED = {  # room → rooms it may import, beside itself and the root
    "ptp_graph": set(),
    "engines": set(),
    "runtime": set(),
    "report": {"runtime"},
    "demo": {"ptp_graph"},
    "export": {"ptp_graph", "engines", "demo", "report"},
    "benchmarks": {"ptp_graph", "engines", "demo", "export", "runtime"},
}


VERBS = {"engines/cli.py": {"runtime"}}  # a module of verbs may join rooms: what was built is run, to verify it


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_between_rooms_point_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        allowed = ALLOWED[room] | VERBS.get(path.relative_to(ROOT).as_posix(), set())
        for name in imports(path):
            target = name.split(".")[1] if "." in name else ""
            assert target not in ALLOWED or target == room or target in allowed, f"{path} imports {name}"


def test_the_root_package_imports_no_room_but_for_the_command_line_and_the_shortcut():
    for path in (ROOT / "src/ptp").rglob("*.py"):
        rooms = {name for name in imports(path) if "." in name and name.split(".")[1] in ALLOWED}
        allowed = {
            "cli.py": {
                "ptp.benchmarks.evaluation.cli",
                "ptp.benchmarks.speed.cli",
                "ptp.engines.cli",
                "ptp.export.cli",
                "ptp.runtime.cli",
                "ptp.runtime.verify_cli",
            },
            "__init__.py": {"ptp.runtime.pipeline"},
        }
        assert rooms <= allowed.get(path.name, set()), path


def test_there_is_one_copy_of_every_class():
    """`import export` would make a second one; only `ptp.export` is importable."""
    code = "import importlib.util as u; assert not any(u.find_spec(n) for n in ('export', 'runtime', 'ptp_graph'))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
