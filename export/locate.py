"""Where a checkpoint is: a folder, the one that ships with the package, or a download from the Hugging Face hub."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download

from ptp.demo import CHECKPOINT as DEMO
from ptp.errors import CheckpointError

SHORT_NAMES = {
    "llava-next": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-next-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-next-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-next-llama3-8b": "llava-hf/llama3-llava-next-8b-hf",
}
"""Short names of `--model`, beside `demo`, the checkpoint that ships with the package."""

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
LARGE_FILES = ["*.safetensors", "evaluation/*"]


def locate(model: str, revision: str | None, *, weights: bool) -> tuple[Path, str, str | None]:
    """Return a checkpoint's folder, its full name, and its commit; the commit of a folder is None.

    Args:
        model: short name, Hugging Face id, or folder.
        revision: branch, tag or commit of a Hugging Face id.
        weights: also download the weights of a Hugging Face id, and its evaluation.

    Raises:
        CheckpointError: there is no such model, or it cannot be downloaded.
    """
    if model == "demo":
        return DEMO, "demo", None
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        return folder, folder.resolve().name, None
    name = SHORT_NAMES.get(model, model)
    if name.count("/") != 1 or model.startswith((".", "/", "~")):
        known = ", ".join(["demo", *SHORT_NAMES])
        raise CheckpointError(
            f"no model {model!r}", expected=f"a short name ({known}), a Hugging Face id (owner/name) or a folder"
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        path = snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES + (LARGE_FILES if weights else []))
    except Exception as error:  # the hub's client raises errors of many libraries; each means the same to the user
        raise CheckpointError(
            f"cannot get {name} from the Hugging Face hub",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            do="check the name, the connection and `hf auth login`, or give a local folder",
        ) from error
    return Path(path), name, Path(path).name
