import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ptp.bundle import read_manifest
from ptp.bundle.manifest import MANIFEST_NAME
from ptp.bundle.writer import check_destination, moved_aside, replacing, staged
from ptp.errors import BundleError, ConfigError


def write(folder, text, *, force=False):
    with staged(folder, force=force) as stage:
        (stage / MANIFEST_NAME).write_text(text)


def test_a_bundle_appears_whole(tmp_path):
    out = tmp_path / "deep" / "bundle"
    with staged(out, force=False) as stage:
        (stage / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "bundle", force=False) as stage:
        (stage / "file").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    write(tmp_path / "bundle", "old")
    with pytest.raises(ConfigError, match="exists; choose another --out or replace"):
        write(tmp_path / "bundle", "new")
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "old"


def test_force_replaces_a_bundle_and_a_failed_replacement_keeps_it(tmp_path):
    write(tmp_path / "bundle", "old")
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "bundle", force=True):
        assert 1 / 0
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "old"
    write(tmp_path / "bundle", "new", force=True)
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_force_never_replaces_what_is_no_bundle(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a bundle, so --force does not replace it"):
        write(tmp_path / "home", "new", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a folder"):
        write(tmp_path / "file", "new", force=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        ConfigError, match=r"file/bundle cannot be made; got .*/file; expected a folder that may be written"
    ):
        write(tmp_path / "file" / "bundle", "new")


@pytest.mark.parametrize("force", [False, True])
def test_a_parent_folder_that_cannot_be_written_is_refused(force, tmp_path, monkeypatch):
    if force:
        write(tmp_path / "bundle", "old")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="bundle cannot be made"):
        check_destination(tmp_path / "bundle", force=force)


def test_a_parent_that_is_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="bundle cannot be made"):
        check_destination(tmp_path / "link" / "bundle", force=False)


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt("no")])
def test_a_replacement_that_fails_halfway_puts_the_old_bundle_back(error, tmp_path, monkeypatch):
    write(tmp_path / "bundle", "old")
    rename = Path.rename

    def fail(path, target):
        if path.name.endswith(".partial"):
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(error), match="no"):
        write(tmp_path / "bundle", "new", force=True)
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from ptp.bundle import writer

out, when = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename

def die(path, target):
    if when == path.name.rpartition(".")[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.rename = die
with writer.staged(out, force=True) as stage:
    (stage / "ptp_config.json").write_text("new")
    if when == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "held":
        print("held", flush=True)
        sys.stdin.read()
"""


def kill(folder, when):
    """Let a process be killed while it replaces a bundle."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), when], check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("when", ["writing", "bundle", "partial"])
def test_what_a_killed_process_left_is_put_right_by_the_next(when, tmp_path):
    """Killed while it wrote, before the first rename, and between the two."""
    folder = tmp_path / "bundle"
    write(folder, "old")
    kill(folder, when)
    assert folder.exists() == (when != "partial")
    assert moved_aside(folder) == (tmp_path / ".bundle.replaced" if when == "partial" else None)
    with pytest.raises(ConfigError, match="exists; choose another --out"):
        write(folder, "newer")
    assert (folder / MANIFEST_NAME).read_text() == "old"
    write(folder, "newer", force=True)
    assert (folder / MANIFEST_NAME).read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_place_names_where_the_bundle_is(tmp_path):
    write(tmp_path / "bundle", "old")
    kill(tmp_path / "bundle", "partial")
    with pytest.raises(BundleError, match=r"is not a bundle; .*\.bundle\.replaced holds the one that was here"):
        read_manifest(tmp_path / "bundle")


def test_a_second_writer_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    folder = tmp_path / "bundle"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), "held"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process is writing the same"):
            write(folder, "mine", force=True)
        other.kill()
    write(folder, "mine", force=True)
    assert (folder / MANIFEST_NAME).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def fill(path):
    path.write_text("half")
    raise OSError(errno.ENOSPC, "full")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "kept.png"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as unfinished:
        fill(unfinished)
    assert path.read_text() == "old"
    with replacing(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
