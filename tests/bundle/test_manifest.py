import json
from pathlib import Path

import pytest

from ptp.bundle.manifest import MANIFEST_NAME, Manifest
from ptp.bundle.summary import budget_line, human_bytes
from ptp.errors import SchemaError

GOLDEN = Path(__file__).parent / "golden" / MANIFEST_NAME


def test_the_format_does_not_drift():
    """Bytes written by an earlier version of this schema load and are written back unchanged."""
    text = GOLDEN.read_text(encoding="utf-8")
    assert Manifest.from_json(text).to_json() == text


def test_a_manifest_of_an_older_schema_is_refused_with_the_command_that_exports_it_again():
    with pytest.raises(SchemaError) as refused:
        Manifest.from_json((GOLDEN.parent / "schema-1.json").read_text(encoding="utf-8"))
    assert str(refused.value) == (
        "ptp_config.json is of an older schema; got version 1; expected 2; "
        "export the bundle again: ptp-export --model demo --keep 0.25"
    )


@pytest.mark.parametrize("model", [None, [], {"id": 1}])
def test_an_older_manifest_need_not_say_what_it_was_made_of(model):
    with pytest.raises(SchemaError, match=r"export the bundle again$"):
        Manifest.from_json(json.dumps({"schema_version": 1, "model": model, "pruning": {"keep": "x"}}))


def test_the_budget_line_is_the_documented_one():
    manifest = Manifest.from_json(GOLDEN.read_text(encoding="utf-8"))
    assert budget_line(manifest.pruning, manifest.tiling) == (
        "keep 0.25 = reduction 0.75: 16 thumbnail + 64 crops = 80 of 320 tokens, + 24 newline rows, K = 104"
    )


def test_bytes_are_readable():
    assert [human_bytes(n) for n in (0, 1023, 1024, 5 << 20, 3 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.00 GiB",
    ]  # fmt: skip
