"""The verbs `run` and `inspect`."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import progress as bars
from rich.console import Console
from rich.text import Text

from ptp.alpha import alpha_input, parse_alpha
from ptp.budgets import num_kept_at
from ptp.bundle import open_bundle, read_manifest
from ptp.bundle.hashes import Progress
from ptp.bundle.writer import replacing
from ptp.chat import Chat
from ptp.console import shown, to_json
from ptp.errors import ConfigError, PromptError
from ptp.runtime.backends.registry import BACKENDS, DEFAULT, graph_loader

if TYPE_CHECKING:
    from PIL.Image import Image

    from ptp.bundle import Manifest
    from ptp.runtime.vision import VisualTokens

SHOW_AFTER = 2.0
"""Seconds after which verifying a bundle shows a progress bar."""

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder written by ptp export")]
Backend = Annotated[str, typer.Option(help=f"what runs the graphs: {', '.join(BACKENDS)}")]
Provider = Annotated[
    str | None,
    typer.Option(help="of onnxruntime: cpu, cuda, tensorrt, nvtensorrtrtx (default: cpu)"),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default: the backend's choice)")]
Target = Annotated[str | None, typer.Option(help="of tensorrt-rtx and tensorrt: which engines (default: the GPU's)")]
Precision = Annotated[str | None, typer.Option(help="of openvino: fp32 or bf16 (default: fp32)")]
Alpha = Annotated[str | None, typer.Option(help="weight of the question, 0 to 1 or auto (default: the bundle's)")]
Keep = Annotated[str | None, typer.Option(help="fraction of visual tokens kept, where the bundle has a range")]
System = Annotated[str | None, typer.Option(help="system prompt (default: the chat template's own)")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead")]


def run(
    bundle: Folder,
    image: Annotated[list[Path], typer.Option(help="image file; may be repeated")],
    prompt: Annotated[list[str], typer.Option(help="question: one for all images, or one for each")],
    backend: Backend = DEFAULT,
    provider: Provider = None,
    threads: Threads = None,
    target: Target = None,
    precision: Precision = None,
    alpha: Alpha = None,
    keep: Keep = None,
    system: System = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens generated")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token")] = 0.0,
    top_p: Annotated[float, typer.Option(help="sample among the tokens that make up this probability")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="of the random numbers")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends the answer; may be repeated")] = None,
    show: Annotated[Path | None, typer.Option(help="write a PNG of the tokens that were kept")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about images, printing each answer as it is generated."""
    # these load numpy and ONNX Runtime, which `ptp --help` does not need
    from ptp.runtime.pipeline import Pipeline
    from ptp.runtime.preprocess.images import load_image
    from ptp.runtime.sampling import Sampling
    from ptp.runtime.tables import visual_json

    # whatever can be refused is refused before gigabytes are read
    Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()))
    pairs = pair_up(image, prompt)
    if show:
        check_png(show, "--show")
        if len(pairs) > 1:
            raise ConfigError("--show draws one image", got=f"{len(pairs)} questions", do="leave it out or ask one")
    manifest = read_manifest(bundle)
    check_choice(manifest, alpha, keep)
    for path in image:
        load_image(path)  # and not kept: there may be many
    load_graph = graph_loader(backend, provider=provider, threads=threads, target=target, precision=precision)
    with hash_progress() as progress:
        opened = open_bundle(bundle, progress=progress)
    pipeline = Pipeline(opened, load_graph)
    generations = pipeline.stream_batch(
        [(path, Chat(question=question, system=system)) for path, question in pairs],
        alpha=None if alpha is None else parse_alpha(alpha),
        keep=keep,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    for (path, question), generation in zip(pairs, generations, strict=True):
        if show:
            _write_picture(show, load_image(path), generation.visual, pipeline.manifest)
        if as_json:
            result = {"image": str(path), "prompt": question} | asdict(generation.answer())
            result["visual_tokens"] = visual_json(generation.visual, pipeline.manifest)
            typer.echo(to_json(result))
            continue
        if len(pairs) > 1:
            print(shown(f"{path}: {question}"))
        try:
            for piece in generation:
                print(shown(piece), end="", flush=True)
        finally:  # an interruption, too
            print(flush=True)


def pair_up(images: list[Path], prompts: list[str]) -> list[tuple[Path, str]]:
    """Return the image and the question of each answer: one of either serves all of the other.

    Raises:
        ConfigError: several of both, and not as many.
    """
    count = max(len(images), len(prompts))
    if not {len(images), len(prompts)} <= {1, count}:
        raise ConfigError(
            "--image and --prompt do not pair up",
            got=f"{len(images)} images and {len(prompts)} questions",
            expected="one of either, or as many of both",
        )
    return list(zip(images * (count // len(images)), prompts * (count // len(prompts)), strict=True))


def check_choice(manifest: "Manifest", alpha: str | None, keep: str | None) -> None:
    """Refuse an α or a keep that the bundle cannot follow.

    Raises:
        ConfigError: which of them, and why.
    """
    alpha_input(alpha, manifest.pruning)
    num_kept_at(keep, manifest)


def inspect(
    bundle: Folder,
    image: Annotated[Path | None, typer.Option(help="image file: show which of its tokens are kept")] = None,
    prompt: Annotated[str | None, typer.Option(help="question about the image")] = None,
    alpha: Alpha = None,
    keep: Keep = None,
    system: System = None,
    out: Annotated[Path, typer.Option(help="PNG of the tokens that were kept, with --image")] = Path("kept.png"),
    backend: Backend = DEFAULT,
    provider: Provider = None,
    threads: Threads = None,
    target: Target = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Show what a bundle holds; with an image, which of its tokens are kept."""
    from ptp.runtime.preprocess.images import load_image
    from ptp.runtime.tables import bundle_tables, visual_json, visual_table
    from ptp.runtime.vision import VisualEncoder

    manifest = read_manifest(bundle)
    choices = (prompt, alpha, keep, system, provider, threads, target, precision)
    if image is None and (backend != DEFAULT or any(choice is not None for choice in choices)):
        raise ConfigError(
            "--prompt, --system, --alpha, --keep, --backend and its options say how an image is looked at",
            do="give an image with --image",
        )
    if image is not None:
        check_png(out, "--out")
        if prompt is None and manifest.pruning.instruction != "none":
            raise PromptError("this bundle chooses tokens by the question", do="give one with --prompt")
        check_choice(manifest, alpha, keep)
        loaded = load_image(image)
        load_graph = graph_loader(backend, provider=provider, threads=threads, target=target, precision=precision)
    with hash_progress() as progress:
        opened = open_bundle(bundle, progress=progress)
    visual = None
    if image is not None:
        encoder = VisualEncoder(opened, load_graph)
        weight = None if alpha is None else parse_alpha(alpha)
        chat = None if prompt is None else Chat(question=prompt, system=system)
        visual = encoder.encode([encoder.ask(loaded, chat)], alpha=weight, keep=keep)[0]
        _write_picture(out, loaded, visual, manifest)
    if as_json:
        result = json.loads(manifest.to_json())
        if visual:
            result["visual_tokens"] = visual_json(visual, manifest) | {"picture": str(out)}
        typer.echo(to_json(result))
        return
    console = Console(highlight=False)
    for part in bundle_tables(opened):
        console.print(part, soft_wrap=isinstance(part, Text))
    if visual:
        console.print(visual_table(visual, manifest))
        console.print(f"picture: {shown(out)}", markup=False, soft_wrap=True)


def check_png(path: Path, option: str) -> None:
    """Refuse a picture's path that is not a PNG file in a folder that exists.

    Raises:
        ConfigError: what is wrong with it.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{option} writes a PNG file", got=path, expected="a name that ends in .png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} cannot be written", got=path, expected="a file in a folder that exists")


def _write_picture(path: Path, image: "Image", visual: "VisualTokens", manifest: "Manifest") -> None:
    from ptp.runtime.picture import draw_kept

    picture = draw_kept(image, visual, manifest)
    try:
        with replacing(path) as unfinished:
            picture.save(unfinished, format="PNG")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", got=error) from error


@contextmanager
def hash_progress(show_after: float = SHOW_AFTER) -> Iterator[Progress]:
    """Yield a callback that shows a bar on stderr once verifying a bundle takes longer than a moment.

    Args:
        show_after: seconds before the bar appears.
    """
    columns = (bars.TextColumn("verifying {task.description}", markup=False), bars.BarColumn(), bars.DownloadColumn())
    console = Console(stderr=True)
    # a log file gets nothing: Rich would write an empty line into it
    progress = bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    started, tasks = time.monotonic(), dict[str, bars.TaskID]()

    def say(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=total)
        progress.update(tasks[name], completed=done, visible=done < total)
        if not progress.live.is_started and time.monotonic() - started >= show_after:
            progress.start()

    try:
        yield say
    finally:
        if progress.live.is_started:  # else this would print an empty line
            progress.stop()
