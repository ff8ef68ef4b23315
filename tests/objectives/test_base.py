"""The interface: inputs that are refused, the ratio that is used, parameters that are refused, shared statistics."""

import math
from dataclasses import fields

import pytest
import torch

from scope_rlhf.objectives import OBJECTIVES, Objective, PolicyInputs, make_objective


def inputs(**changes) -> PolicyInputs:
    log_probs = torch.tensor([[-1.0, -0.5], [-2.0, -0.1]], requires_grad=True)
    return PolicyInputs(**{"log_probs": log_probs, "advantages": torch.ones(2, 2), **changes})


@pytest.mark.parametrize("name", ["advantages", "old_log_probs", "log_ratio", "entropy"])
@pytest.mark.parametrize("shape", [(2, 1), (2,), (1, 2), ()])
def test_an_input_of_another_shape_is_refused_not_broadcast(name, shape):
    with pytest.raises(ValueError, match=rf"{name} has shape .*expected that of log_probs, \(2, 2\)"):
        inputs(**{name: torch.zeros(shape)})


@pytest.mark.parametrize("name", ["advantages", "old_log_probs"])
def test_a_gradient_where_none_belongs_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} carries a gradient.*detach"):
        inputs(**{name: torch.zeros(2, 2, requires_grad=True)})


def test_a_log_ratio_cut_off_from_the_log_probs_is_refused():
    with pytest.raises(ValueError, match="log_ratio carries no gradient"):
        inputs(log_ratio=torch.zeros(2, 2))
    with torch.no_grad():
        inputs(log_ratio=torch.zeros(2, 2))  # evaluation


@pytest.mark.parametrize("given", [None, 1.0, torch.ones(2, 2, dtype=torch.int64)])
def test_advantages_that_are_no_floating_point_tensor_are_refused(given):
    with pytest.raises(ValueError, match="advantages is a .* expected a floating-point tensor"):
        inputs(advantages=given)


def test_the_ratio_used_is_the_given_one_else_the_token_level_one_else_none():
    old = torch.full((2, 2), -1.0)
    assert inputs().resolve_log_ratio() is None
    plain = inputs(old_log_probs=old)
    assert torch.equal(plain.resolve_log_ratio(), plain.log_probs - old)
    given = torch.zeros(2, 2, requires_grad=True)
    assert inputs(old_log_probs=old, log_ratio=given).resolve_log_ratio() is given
    assert inputs(log_ratio=given).resolve_log_ratio() is given


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_log_ratio_alone_is_the_ratio_form_with_the_old_log_probs_it_implies(name):
    log_probs = torch.tensor([-1.0, -0.5, -2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.4, -0.4, -1.9], dtype=torch.float64)
    common = {"advantages": torch.tensor([1.0, -1.0, 0.5]).double(), "entropy": -log_probs}
    alone = make_objective(name)(PolicyInputs(log_probs, log_ratio=log_probs - old, **common))
    with_old = make_objective(name)(PolicyInputs(log_probs, old_log_probs=old, **common))
    torch.testing.assert_close(alone.per_decision, with_old.per_decision, rtol=1e-12, atol=1e-12)
    for key, value in with_old.stats.items():
        torch.testing.assert_close(alone.stats[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_statistics_of_the_ratio_equal_a_loop(name):
    log_probs = torch.tensor([-1.0, -0.5, -2.0, -0.3], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.4, -0.1, -1.9, -0.9], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.5, -1.0], dtype=torch.float64)
    stats = make_objective(name)(PolicyInputs(log_probs, advantages, old, entropy=-2 * log_probs)).stats
    ratios = [math.exp(x - o) for x, o in zip(log_probs.tolist(), old.tolist(), strict=True)]
    assert stats["ratio"].tolist() == pytest.approx(ratios)
    assert stats["approx_kl"].tolist() == pytest.approx([r - 1 - math.log(r) for r in ratios])
    # r = 1.49, A > 0; r = .67, A < 0; r = .90; r = 1.82, A < 0, which is not clipped
    assert stats["clip_fraction"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert torch.equal(stats["entropy"], -2 * log_probs.detach())
    expected = [min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in zip(ratios, advantages.tolist(), strict=True)]
    assert stats["surrogate"].tolist() == pytest.approx(expected)


COMMON = {
    "clip_low": [0, 1, -0.1, 1.5, math.nan, "0.2", True, None],
    "clip_high": [0, -0.1, math.inf, "0.2", False],
    "policy_coef": [-1, math.inf, math.nan, [1.0]],
}
OWN = {
    "ppo": {},
    "policy_entropy": {"alpha": [-0.01, math.inf, "1e-2"]},
    "focal": {"alpha": [-1, math.nan], "gamma": [-1, math.inf, "2"], "sign_preserving": [1, "yes", None]},
    "scope": {"alpha": [-0.1, math.inf, True], "detach_factor": [0, "no"], "importance_weighted": [1, None]},
    "symmetric": {
        "alpha": [-1],
        "beta": [-1, math.nan],
        "log_zero": [0.5, -math.inf, "-1"],
        "masked": [1],
        "over_old": ["true"],
    },
}
REFUSED = [
    (name, field, value) for name in OWN for field, values in {**COMMON, **OWN[name]}.items() for value in values
]


@pytest.mark.parametrize(("name", "field", "value"), REFUSED)
def test_a_parameter_of_wrong_type_or_range_is_refused_with_what_was_given_and_expected(name, field, value):
    with pytest.raises(ValueError, match=rf"{field}=.* given, expected .*; set it as objective parameter {field}"):
        make_objective(name, **{field: value})


def test_every_parameter_of_the_catalogue_has_refused_values_here():
    for name, cls in OBJECTIVES.items():
        assert {field.name for field in fields(cls)} == {*COMMON, *OWN[name]}, name  # type: ignore[arg-type]


def test_whole_numbers_are_kept_as_floats_so_that_equal_objectives_print_alike():
    assert repr(make_objective("scope", alpha=1)) == repr(make_objective("scope", alpha=1.0))
    assert make_objective("focal", gamma=2) == make_objective("focal")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_frozen_and_have_the_class_variables(name):
    objective = make_objective(name)
    assert isinstance(objective, Objective)
    assert objective.formula
    assert "\n" not in objective.formula
    assert objective.needs_entropy is (name == "policy_entropy")
    assert objective.needs_old_log_probs is False
    assert objective.stops_gradient is False
    with pytest.raises(AttributeError):
        objective.clip_low = 0.3  # type: ignore[attr-defined]
