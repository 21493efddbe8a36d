"""The demo's optimiser: its matrices become orthogonal, and it goes downhill as `torch.optim.Muon` does."""

import math

import pytest
import torch
from torch import nn

from ptp.demo.optimise import Muon, Optimiser, orthogonalised


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12, 4), (2, 4, 12)])
def test_singular_values_become_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert 0.6 < values.min()  # the iteration's authors stop where they are between 0.7 and 1.2
    assert values.max() < 1.3
    assert ((orthogonalised(matrices) - u @ v).abs().amax() < 0.4).all()


def test_a_step_is_that_of_torchs_muon() -> None:
    """Up to bfloat16, in which torch's computes, and to the length that is matched to AdamW's."""
    torch.manual_seed(0)
    start, gradients = torch.randn(16, 8), [torch.randn(16, 8) for _ in range(3)]
    own, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rate, decay = 0.02, 0.1
    optimisers = (
        Muon([own], rate, decay),
        torch.optim.Muon([theirs], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        for weight, optimiser in zip((own, theirs), optimisers, strict=True):
            weight.grad = gradient.clone()
            optimiser.step()
    moved = (own - start).norm()
    assert (own - theirs).norm() < 0.03 * moved
    assert moved.item() == pytest.approx(3 * rate * 0.2 * math.sqrt(16 * 8), rel=0.5)


def test_matrices_of_blocks_are_muons_and_all_else_is_adamws() -> None:
    torch.manual_seed(0)
    names = ("a.layers.0.q.weight", "a.layers.0.q.bias", "embed.weight")
    weights = {name: nn.Parameter(torch.randn(6, 6) if "weight" in name else torch.randn(6)) for name in names}
    optimiser = Optimiser(weights, rate=1e-2, matrix_rate=1e-1, matrix_decay=0.05, steps=300)
    muon, adamw = optimiser._optimisers
    assert [x for group in muon.param_groups for x in group["params"]] == [weights[names[0]]]
    assert [x for group in adamw.param_groups for x in group["params"]] == [weights[names[1]], weights[names[2]]]
    before = sum(float(x.detach().square().sum()) for x in weights.values())
    for _ in range(300):
        optimiser.step(torch.stack([x.square().sum() for x in weights.values()]).sum())
    after = sum(float(x.detach().square().sum()) for x in weights.values())
    assert after < 0.2 * before
    assert muon.param_groups[0]["lr"] < 1e-3  # down the cosine
