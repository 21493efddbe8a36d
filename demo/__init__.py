"""The small trained model that ships with the package, so that everything runs without a download."""

from pathlib import Path

# Resolved, because an editable install may link this file from elsewhere without the folder next to it.
CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
"""Folder of the demo checkpoint, in Hugging Face layout."""
