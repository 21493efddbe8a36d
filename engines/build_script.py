"""`build.sh`: the engines of a bundle by TensorRT's own tools, for people who write their own loader.

It does on the device what `ptp build --backend tensorrt` does there, without this package. The engines that it leaves
have no `config.json`, so that `ptp run` does not load them.
"""

from collections.abc import Sequence
from pathlib import Path

from ptp.bundle.engine import KINDS, EngineKind, Profile, Shape, engine_folder, graph_of
from ptp.bundle.manifest import Manifest
from ptp.engines.profiles import default_max_context, profiles_of
from ptp.engines.targets import TARGETS

SCRIPT_NAME = "build.sh"
CACHE = "past_key_values."
BOUNDS = ("min", "opt", "max")

_SCRIPT = r"""#!/usr/bin/env bash
# Builds the engines of this bundle on the device that is to run them, with the tools that come with TensorRT:
#
#     bash build.sh TARGET [TOOL]      TARGET: @TARGETS@; TOOL: trtexec (default), polygraphy
#
# For loaders of your own: `ptp run` loads the engines of `ptp build` only, which describes each in a config.json.
set -eufo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "error: $1" >&2
    exit 1
}

case ${1:-} in # most scratch memory of one tactic, in MiB
@WORKSPACES@
    *) fail "no such target; got '${1:-}'; expected one of @TARGETS@" ;;
esac
@FOLDERS@

# Smallest, most frequent and largest shapes of the inputs that are not fixed, for each profile. attention_mask counts
# the cache and the new tokens; a cache for fewer or more tokens needs other numbers there and in past_key_values.
@SHAPES@

join() { # NAME:[D0,D1] ... as NAME:D0xD1,...
    local words=("${@//,/x}") IFS=,
    echo "${words[*]//[][]/}"
}

with_trtexec() {
    # TensorRT 10 needs --stronglyTyped; 11 knows no other networks and ignores it
    local always=(--stronglyTyped --noTF32 --skipInference "--memPoolSize=workspace:$workspace")
@TRTEXEC@
}

with_polygraphy() {
    local always=(--convert-to trt --strongly-typed --pool-limit "workspace:${workspace}M")
@POLYGRAPHY@
}

case ${2:-trtexec} in
    trtexec) tool=$(command -v trtexec || command -v /usr/src/tensorrt/bin/trtexec) ||
        fail "trtexec is neither in PATH nor in /usr/src/tensorrt/bin; install TensorRT" ;;
    polygraphy) tool=$(command -v polygraphy) || fail "polygraphy is not in PATH; pip install polygraphy" ;;
    *) fail "no such tool; got '$2'; expected trtexec or polygraphy" ;;
esac
mkdir -p @MADE@
"with_${2:-trtexec}"
"""


def write_build_script(folder: Path, manifest: Manifest) -> Path:
    """Write `build.sh` for the default `--max-context` into a bundle's folder and return where it is."""
    path = folder / SCRIPT_NAME
    path.write_text(build_script(manifest, default_max_context(manifest)), encoding="utf-8")
    path.chmod(0o755)
    return path


def build_script(manifest: Manifest, max_context: int) -> str:
    """Return the text of `build.sh`.

    Args:
        manifest: of the bundle; its graphs, budgets and longest prompt are written into the script.
        max_context: tokens that the cache has room for.

    Raises:
        ConfigError: `max_context` does not fit the bundle.
    """
    boards = {name: target for name, target in TARGETS.items() if target.backend == "tensorrt"}
    engines = {kind: (graph_of(kind, manifest.graphs).file, profiles_of(kind, manifest, max_context)) for kind in KINDS}
    profiles = [profile for _, profiles in engines.values() for profile in profiles if profile.shapes]
    parts = {
        "TARGETS": ", ".join(boards),
        "WORKSPACES": "\n".join(
            f"    {name}) workspace={(board.workspace_bytes or 0) >> 20} ;;" for name, board in boards.items()
        ),
        "FOLDERS": "\n".join(f"{kind}={engine_folder(Path(), 'tensorrt', '$1', kind).as_posix()}" for kind in KINDS),
        "MADE": " ".join(f'"${kind}"' for kind in KINDS),
        "SHAPES": "\n".join(_arrays(profile, manifest.language_model.num_layers) for profile in profiles),
        "TRTEXEC": "\n".join(_trtexec(kind, *engine) for kind, engine in engines.items()),
        "POLYGRAPHY": "\n".join(_polygraphy(kind, *engine) for kind, engine in engines.items()),
    }
    text = _SCRIPT
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _arrays(profile: Profile, layers: int) -> str:
    """Return an array NAME:[D0,D1] … for each bound; the shell's braces stand for the layers of the cache."""
    lines = []
    for bound in BOUNDS:
        shapes: dict[str, Shape] = {name: getattr(values, bound) for name, values in profile.shapes.items()}
        words = [_word(name, shape) for name, shape in shapes.items() if not name.startswith(CACHE)]
        cache = {shape for name, shape in shapes.items() if name.startswith(CACHE)}  # one: the manifest's contract
        words += [_word(f"{CACHE}{{0..{layers - 1}}}.{{key,value}}", shape) for shape in cache]
        lines.append(f"{profile.name}_{bound}=({' '.join(words)})")
    return "\n".join(lines)


def _word(name: str, shape: Shape) -> str:
    return f"{name}:[{','.join(map(str, shape))}]"


def _trtexec(kind: EngineKind, file: str, profiles: Sequence[Profile]) -> str:
    words = [f'    "$tool" "--onnx={file}" "--saveEngine=${kind}/{kind}.engine" "${{always[@]}}"']
    for index, profile in enumerate(profile for profile in profiles if profile.shapes):
        # the shapes of a profile are those right behind its number
        words += [f"--profile={index}"]
        words += [f'"--{bound}Shapes=$(join "${{{profile.name}_{bound}[@]}}")"' for bound in BOUNDS]
    return " \\\n        ".join(words)


def _polygraphy(kind: EngineKind, file: str, profiles: Sequence[Profile]) -> str:
    words = [f'    "$tool" convert "{file}" -o "${kind}/{kind}.engine" "${{always[@]}}"']
    for profile in (profile for profile in profiles if profile.shapes):
        words += [f'--trt-{bound}-shapes "${{{profile.name}_{bound}[@]}}"' for bound in BOUNDS]
    return " \\\n        ".join(words)
