"""Figures as SVG files that can be compared."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes for the same figure: nothing depends on the moment, and text stays text."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ptp"}):
        figure.savefig(path, metadata={"Date": None})
