"""`report.html` as Chromium draws it: light and dark, on a desk and on a phone."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LIGHT, DARK = 1, 0  # Chromium's own numbers
PAGE = {LIGHT: (255, 255, 255), DARK: (13, 17, 23)}  # --page of report/page.css

PROBE = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ border: 0; height: 900px }}</style>
<iframe src="{page}" style="width: {width}px" onload="look(this)"></iframe><pre></pre><script>
function look(frame) {{
  const page = frame.contentDocument, all = [...page.querySelectorAll("body *")];
  const texts = [...page.querySelectorAll("svg text")].filter(x => x.getBoundingClientRect().width);
  const boxes = texts.map(x => x.getBoundingClientRect());
  document.querySelector("pre").textContent = JSON.stringify({{
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    height: page.documentElement.scrollHeight,
    images: [...page.images].map(x => x.naturalWidth),
    curves: [...page.querySelectorAll("svg")].filter(x => x.clientWidth).map(x => x.getAttribute("class")),
    cut: texts.filter((x, i) => boxes[i].left < x.ownerSVGElement.getBoundingClientRect().left - 1
      || boxes[i].right > x.ownerSVGElement.getBoundingClientRect().right + 1).map(x => x.textContent),
    overlaps: texts.filter((x, i) => boxes.some((b, j) => j > i && b.left < boxes[i].right - 1
      && b.right > boxes[i].left + 1 && b.top < boxes[i].bottom - 4 && b.bottom > boxes[i].top + 4))
      .map(x => x.textContent),
    scripts: all.filter(x => x.localName == "script").length,
  }});
}}
</script>"""


def chromium(*arguments: str, profile: Path) -> str:
    """Run Chromium without a window; return what it printed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    assert program, "no Chromium; scripts/test installs it"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}")
    command = [program, *options, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.parametrize(("width", "curve"), [(1200, "wide"), (390, "narrow"), (320, "narrow")])
def test_the_layout_fits(width, curve, exported, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=(exported.bundle / "report.html").as_uri(), width=width))
    printed = chromium("--allow-file-access-from-files", "--dump-dom", probe.as_uri(), profile=tmp_path / "profile")
    found = re.search(r"<pre>(\{.*\})</pre>", printed, re.DOTALL)
    assert found, printed
    seen = json.loads(found[1])
    assert seen["overflow"] == 0
    assert seen["curves"] == [curve]
    assert seen["cut"] == []
    assert seen["overlaps"] == []
    assert seen["scripts"] == 0
    assert len(seen["images"]) == 10
    assert min(seen["images"]) > 0
    assert seen["height"] > 1500


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_it_is_drawn_light_and_dark(scheme, exported, tmp_path):
    picture = tmp_path / "picture.png"
    chromium(
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1200,3600",
        f"--screenshot={picture}",
        (exported.bundle / "report.html").as_uri(),
        profile=tmp_path / "profile",
    )
    with Image.open(picture) as image:
        assert image.size == (1200, 3600)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    background = np.array(PAGE[scheme])
    differs = np.abs(pixels - background).max(axis=-1) > 40
    assert (pixels[:, :8] == background).all()  # the margin
    assert 0.01 < differs.mean() < 0.5  # text and pictures, and not all over the page
    brightness = pixels[differs].mean()
    assert (brightness < 170) if scheme == LIGHT else (brightness > 60)
    # ink in every part: headings at the top, the curve, the pictures
    assert all(differs[start : start + 600].mean() > 0.003 for start in range(0, 2400, 600))
