"""Every objective of the catalogue, its options, and a user's own from a file keep the contract of the interface."""

from pathlib import Path

import pytest
import torch

from scope_rlhf.losses import fill_masked, reduce_loss
from scope_rlhf.objectives import OBJECTIVES, PolicyInputs, check_objective, make_objective

OWN = f"{Path(__file__).parents[1] / 'data' / 'quadratic_penalty.py'}:QuadraticPenalty"
OPTIONS = [
    ("scope", {"alpha": 1.0}),
    ("scope", {"alpha": 0.5, "detach_factor": True}),
    ("scope", {"alpha": 0.5, "importance_weighted": True}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 1.0}),
    ("focal", {"gamma": 3.0}),
    ("focal", {"sign_preserving": True}),
    ("focal", {"gamma": 0.5, "sign_preserving": True}),
    ("focal", {"alpha": 2.0, "sign_preserving": True}),
    ("symmetric", {"masked": False}),
    ("symmetric", {"over_old": False}),
    ("symmetric", {"masked": False, "over_old": False, "beta": 20.0}),
]
CASES = [*((name, {}) for name in OBJECTIVES), *OPTIONS, (OWN, {}), (OWN, {"penalty_coef": 3.0})]
IDS = [f"{name.rpartition('/')[2]}{parameters or ''}" for name, parameters in CASES]
every_objective = pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)


@every_objective
def test_it_keeps_the_contract(name, parameters):
    failed = [str(result) for result in check_objective(make_objective(name, **parameters)) if not result.passed]
    assert not failed, "\n".join(failed)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_gradient_and_statistics_are_finite_for_any_pair_of_extreme_probabilities(name, parameters, dtype):
    """Beyond the contract: log p and log p_o far apart, so that the ratio itself is e^100 or e^-100."""
    objective = make_objective(name, **parameters)
    grid = [(x, o, a) for x in (-100.0, -1.0, -1e-8) for o in (-100.0, -1.0, -1e-8) for a in (-2.0, 0.0, 2.0)]
    log_probs, old, advantages = torch.tensor(grid, dtype=torch.float64).T.to(dtype)
    for old_log_probs in (None, old):
        if old_log_probs is None and objective.needs_old_log_probs:
            continue
        leaf = log_probs.clone().requires_grad_()
        try:
            loss = objective(PolicyInputs(leaf, advantages, old_log_probs, entropy=-leaf))
        except ValueError:
            continue  # a refused form, which the contract reports
        (gradient,) = torch.autograd.grad(loss.per_decision.sum(), leaf)
        for what, value in {"loss": loss.per_decision, "gradient": gradient, **loss.stats}.items():
            assert value.isfinite().all(), what


@every_objective
def test_the_mean_over_a_masked_batch_equals_the_mean_over_the_same_decisions_without_padding(name, parameters):
    objective = make_objective(name, **parameters)
    generator = torch.Generator().manual_seed(0)
    log_probs = -2 * torch.rand(3, 4, dtype=torch.float64, generator=generator)
    advantages = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    padded = log_probs.masked_fill(~mask, torch.nan).requires_grad_()
    plain = log_probs[mask].requires_grad_()
    totals = []
    for leaf, weights, counted in ((padded, advantages, mask), (plain, advantages[mask], None)):
        filled = fill_masked(leaf, counted)
        old = (
            None if name == "focal" else filled.detach() - 0.05 * weights.sign()
        )  # most of its gammas have no ratio form
        loss = objective(PolicyInputs(filled, weights, old, entropy=-filled))
        totals.append(reduce_loss(loss.per_decision, counted, "token_mean"))
        totals[-1].backward()
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-12, atol=1e-12)
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad[mask], plain.grad, rtol=1e-12, atol=1e-12)
    assert (padded.grad[~mask] == 0).all()


@every_objective
def test_a_step_against_the_gradient_lowers_the_loss(name, parameters):
    objective = make_objective(name, **parameters)
    log_probs = torch.tensor([-1.2, -0.4, -2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    old = log_probs.detach() + 0.01 if name != "focal" else None

    def total(x):
        return objective(PolicyInputs(x, advantages, old, entropy=-x)).per_decision.sum()

    (gradient,) = torch.autograd.grad(total(log_probs), log_probs)
    assert total(log_probs.detach() - 1e-4 * gradient) < total(log_probs.detach())
