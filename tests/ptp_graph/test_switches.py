"""Every switch does something: an image on which its values differ. And every combination passes the gates."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scored_graph import CLS, Setting, in_torch

from ptp.alpha import AUTO_INPUT
from ptp.engines import tensorrt
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.gates.parity import check_parity
from ptp.export.lint import lint
from ptp.export.plan import make_plan
from ptp.export.to_onnx import save, trace
from ptp.export.vision import build_vision_graph
from ptp.ptp_graph.schedule import Schedule

REGIONS = ("cls_cosine", "thumbnail_attention", "uniform")
THUMBNAILS = ("ratio", "keep_all", "as_region")
NEWLINES = ("keep", "drop")
INSTRUCTIONS = ("attention", "similarity", "none")
SIDE, GRIDS = 4, ((2, 2), (1, 3))


def kept(*, region="cls_cosine", thumbnail="ratio", newline="keep", alpha=0.5, keep=Fraction(2, 5)):
    """Return the kept positions of one image with fixed scores."""
    schedule = Schedule(keep=keep, side=SIDE, grids=GRIDS, newline=newline, thumbnail=thumbnail)
    random, tokens = np.random.default_rng(5), SIDE * SIDE
    tiles = schedule.num_tiles
    saliency, relevance = random.random((2, tiles, tokens)).astype(np.float32)
    relevance **= 8  # more peaked than the saliency
    cls = random.normal(size=(tiles, CLS)).astype(np.float32)
    outputs = in_torch(Setting(schedule=schedule, region=region))(
        {
            "pixel_values": np.concatenate([saliency, cls], axis=1)[None],
            "image_sizes": np.array([[110, 90]]),
            "tile_grid": np.array([[2, 2]]),
            "alpha": np.array([alpha], np.float32),
            "prompt_embeds": relevance.reshape(1, -1),
        }
    )
    return outputs["image_positions"][0, : int(outputs["num_valid"][0])].tolist()


@pytest.mark.parametrize(
    ("switch", "values"),
    [
        ("region", REGIONS),
        ("thumbnail", THUMBNAILS),
        ("newline", NEWLINES),
        ("alpha", (0.0, 0.5, 1.0, AUTO_INPUT)),
        ("keep", (Fraction(1, 4), Fraction(2, 5), Fraction(1))),
    ],
)
def test_the_values_of_a_switch_choose_differently(switch, values):
    for one, other in combinations(values, 2):
        assert kept(**{switch: one}) != kept(**{switch: other}), (one, other)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    opened = open_checkpoint(str(tiny_checkpoint("mistral")), None, weights=True)
    return opened, load_model(opened, find_weights(opened, "fp32"))


def plan_of(checkpoint, folder, **options):
    config = ExportConfig(model=checkpoint[0].id, out=folder, keep=Fraction("0.4"), max_prompt=12, **options)
    return make_plan(config, checkpoint[0])


def test_the_ways_to_look_at_the_question_choose_differently(checkpoint, tmp_path):
    opened, model = checkpoint
    random = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(1, 5, 3, 56, 56, generator=random),
        "image_sizes": torch.tensor([[100, 110]]),
        "tile_grid": torch.tensor([[2, 2]]),
    }
    question = {
        "alpha": torch.tensor([1.0]),
        "prompt_embeds": model.get_input_embeddings()(torch.arange(40, 52))[None].detach(),
        "prompt_mask": torch.ones(1, 12, dtype=torch.bool),
        "question_mask": torch.arange(12)[None] > 5,
        "prefix_length": torch.tensor([4]),
    }
    found = {}
    for instruction in INSTRUCTIONS:
        plan = plan_of(checkpoint, tmp_path, instruction=instruction)
        graph = build_vision_graph(plan, opened, model).eval()
        with torch.inference_mode():
            found[instruction] = graph(**inputs, **(question if instruction != "none" else {}))[1][0].tolist()
    for one, other in combinations(INSTRUCTIONS, 2):
        assert found[one] != found[other], (one, other)


@pytest.mark.slow
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize(("region", "thumbnail", "newline"), list(product(REGIONS, THUMBNAILS, NEWLINES)))
def test_every_combination_passes_the_gates(checkpoint, tmp_path, instruction, region, thumbnail, newline):
    """Positions are the host's; K at run time and batches take turns over the combinations."""
    opened, model = checkpoint
    number = REGIONS.index(region) + THUMBNAILS.index(thumbnail) + NEWLINES.index(newline)
    plan = plan_of(
        checkpoint,
        tmp_path,
        instruction=instruction,
        region=region,
        thumbnail=thumbnail,
        newline=newline,
        batch=1 + number % 2,
        keep_range=(Fraction("0.3"), Fraction(1)) if number % 3 == 0 else None,
    )
    traced = trace(build_vision_graph(plan, opened, model), plan.vision_io, opset=20)
    lint(traced, "vision_encoder", static=True)
    save(traced, tmp_path / "vision.onnx")
    assert check_parity([tmp_path / "vision.onnx"], plan, opened, model)
    assert tensorrt.try_build(tmp_path / "vision.onnx", plan.num_kept_profile).engine_bytes
