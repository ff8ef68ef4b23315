"""Target distributions of a return against their definitions: normal tails, interpolation, a loop of C51."""

import itertools
import math
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F

from scope_rlhf.losses import (
    categorical_cross_entropy,
    distribution_entropy,
    expected_value,
    hl_gauss_probs,
    project_probs,
    two_hot_probs,
)

ATOMS = torch.linspace(-2, 2, 9, dtype=torch.float64)
EDGES = torch.linspace(-10, 10, 52, dtype=torch.float64)
WIDTH = 20 / 51


@pytest.mark.parametrize("y", [-10.0, -9.7, -0.3, 0.0, 4.567, 10.0])
def test_hl_gauss_is_the_share_of_a_normal_distribution_in_each_bin(y):
    normal = NormalDist(y, 0.75 * WIDTH)
    inside = normal.cdf(10) - normal.cdf(-10)
    edges = EDGES.tolist()
    expected = [(normal.cdf(high) - normal.cdf(low)) / inside for low, high in itertools.pairwise(edges)]
    probs = hl_gauss_probs(torch.tensor(y, dtype=torch.float64), EDGES, 0.75 * WIDTH)
    assert probs.tolist() == pytest.approx(expected, abs=1e-14)


def test_hl_gauss_far_outside_the_support_is_the_distribution_at_its_end_not_0_over_0():
    far = hl_gauss_probs(torch.tensor([-1e6, 1e6, math.inf]), EDGES, 0.75 * WIDTH)
    ends = hl_gauss_probs(torch.tensor([-10.0, 10.0, 10.0]), EDGES, 0.75 * WIDTH)
    assert torch.equal(far, ends)
    torch.testing.assert_close(far.sum(-1), torch.ones(3, dtype=far.dtype))


def test_hl_gauss_with_a_small_sigma_is_one_hot_and_not_two_hot():
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    y = centres[7] + 0.4 * WIDTH
    probs = hl_gauss_probs(y, EDGES, 1e-4 * WIDTH)
    assert probs[7].item() == pytest.approx(1)
    two_hot = two_hot_probs(y, centres)
    assert two_hot[7:9].tolist() == pytest.approx([0.6, 0.4])


def test_two_hot_keeps_the_mean_and_puts_all_on_an_atom_it_hits():
    y = torch.cat([torch.linspace(-2, 2, 101, dtype=torch.float64), ATOMS])
    probs = two_hot_probs(y, ATOMS)
    assert ((probs > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(probs @ ATOMS, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(probs[101:], torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_projection_of_c51_equals_its_double_loop_and_keeps_mass_and_mean():
    torch.manual_seed(0)
    probs = torch.rand(6, 9, dtype=torch.float64).softmax(-1)
    rewards, discount = torch.randn(6, dtype=torch.float64) * 0.3, 0.8
    positions = rewards.unsqueeze(-1) + discount * ATOMS
    projected = project_probs(probs, positions, ATOMS)
    for row in range(6):
        expected = [0.0] * 9
        for j in range(9):
            x = min(2.0, max(-2.0, positions[row, j].item()))
            place = (x + 2.0) / 0.5
            low = min(int(place), 8)
            expected[low] += probs[row, j].item() * (1 - (place - low))
            if place > low:
                expected[low + 1] += probs[row, j].item() * (place - low)
        assert projected[row].tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(projected.sum(-1), torch.ones(6, dtype=torch.float64), rtol=0, atol=3e-16 * 10)
    unclipped = project_probs(probs, 0.1 * positions, ATOMS)
    torch.testing.assert_close(unclipped @ ATOMS, (probs * 0.1 * positions).sum(-1), rtol=0, atol=1e-14)


def test_two_hot_is_the_projection_of_a_point_mass():
    y = torch.tensor([-1.9, 0.2, 1.0, 3.0], dtype=torch.float64)
    point = torch.zeros(4, 9, dtype=torch.float64)
    point[:, 4] = 1
    positions = y.unsqueeze(-1).expand(4, 9)
    torch.testing.assert_close(two_hot_probs(y, ATOMS), project_probs(point, positions, ATOMS), rtol=0, atol=1e-14)


def test_cross_entropy_is_torchs_with_soft_targets_and_its_gradient_is_softmax_minus_target():
    torch.manual_seed(0)
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 9, dtype=torch.float64).softmax(-1)
    loss = categorical_cross_entropy(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, reduction="none"))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - target)
    assert torch.autograd.gradcheck(lambda x: categorical_cross_entropy(x, target), logits)


def test_the_gradient_stays_below_2_whatever_the_error():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 1.0]])
    (gradient,) = torch.autograd.grad(categorical_cross_entropy(logits, target).sum(), logits)
    assert gradient.abs().sum().item() == pytest.approx(2.0)


def test_the_floor_of_the_cross_entropy_is_the_entropy_of_the_target():
    probs = hl_gauss_probs((EDGES[20] + EDGES[21]) / 2, EDGES, 0.75 * WIDTH)
    assert distribution_entropy(probs).item() == pytest.approx(1.2003, abs=1e-4)
    logits = probs.clamp(min=1e-30).log()
    assert categorical_cross_entropy(logits, probs).item() == pytest.approx(distribution_entropy(probs).item())
    assert distribution_entropy(torch.eye(4)).tolist() == [0.0] * 4


def test_bfloat16_logits_are_decoded_in_float32():
    torch.manual_seed(0)
    logits = torch.randn(200, 51).bfloat16()
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    values = expected_value(logits, centres.float())
    assert values.dtype == torch.float32
    exact = logits.double().softmax(-1) @ centres
    assert (values - exact).abs().max() < 1e-5
