"""Names, parameters, the trainer's clip, and the record of an objective."""

import json
from pathlib import Path

import pytest

from scope_rlhf.objectives import (
    OBJECTIVES,
    PPO,
    Focal,
    Scope,
    Symmetric,
    describe_objective,
    make_objective,
    make_trainer_objective,
)

DATA = Path(__file__).parents[1] / "data"
OWN = f"{DATA / 'quadratic_penalty.py'}:QuadraticPenalty"


def test_the_catalogue_has_the_five_objectives_and_cannot_be_overwritten():
    assert list(OBJECTIVES) == ["ppo", "policy_entropy", "focal", "scope", "symmetric"]
    with pytest.raises(TypeError):
        OBJECTIVES["ppo"] = Scope  # type: ignore[index]


def test_an_objective_is_made_by_name_with_its_parameters():
    assert make_objective("scope", alpha=0.3, clip_high=0.28) == Scope(alpha=0.3, clip_high=0.28)
    assert isinstance(make_objective("focal", gamma=1.0), Focal)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("scop", {}, r"unknown objective 'scop' \(did you mean 'scope'\?\); valid: ppo, policy_entropy, focal, scope"),
        ("dpo", {}, r"unknown objective 'dpo'.*valid: ppo.*or your own class as path/to/file.py:Class"),
        ("quadratic_penalty.py", {}, r"unknown objective 'quadratic_penalty.py'.*path/to/file.py:Class"),
        (None, {}, r"objective None \(NoneType\) given, expected a name"),
        (
            "scope",
            {"alhpa": 1},
            r"'scope' has no parameter 'alhpa' \(did you mean 'alpha'\?\); valid: clip_low, clip_h",
        ),
        ("ppo", {"xyz": 1}, r"'ppo' has no parameter 'xyz'; valid: clip_low, clip_high, policy_coef"),
        (OWN, {"coef": 1}, r"QuadraticPenalty' has no parameter 'coef'.*; valid: penalty_coef"),
    ],
)
def test_a_wrong_name_or_parameter_lists_the_valid_ones(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_objective(name, **parameters)


@pytest.mark.parametrize(
    ("kwargs", "epsilon", "epsilon_high", "low", "high"),
    [
        (None, None, None, 0.2, 0.2),
        (None, 0.1, None, 0.1, 0.1),
        (None, 0.1, 0.3, 0.1, 0.3),
        (None, None, 0.3, 0.2, 0.3),
        ({"clip_low": 0.1}, None, None, 0.1, 0.2),
        ({"clip_low": 0.1}, 0.1, None, 0.1, 0.1),
        ({"clip_high": 0.28}, 0.1, None, 0.1, 0.28),  # epsilon_high was not given, so the objective's own stands
        ({"clip_high": 0.28}, 0.1, 0.28, 0.1, 0.28),
    ],
)
def test_the_clip_comes_from_the_trainer_unless_the_objective_parameters_set_it(
    kwargs, epsilon, epsilon_high, low, high
):
    objective = make_trainer_objective("scope", kwargs, epsilon=epsilon, epsilon_high=epsilon_high)
    assert objective == Scope(clip_low=low, clip_high=high)


@pytest.mark.parametrize(
    ("kwargs", "epsilon", "epsilon_high", "message"),
    [
        ({"clip_low": 0.1}, 0.2, None, r"cliprange=0.2 and objective parameter clip_low=0.1 are two values"),
        ({"clip_high": 0.3}, 0.2, 0.4, r"cliprange_high=0.4 and objective parameter clip_high=0.3 are two values"),
    ],
)
def test_a_clip_set_twice_to_different_values_is_an_error_that_names_both(kwargs, epsilon, epsilon_high, message):
    names = ("cliprange", "cliprange_high")
    with pytest.raises(ValueError, match=message):
        make_trainer_objective("ppo", kwargs, epsilon=epsilon, epsilon_high=epsilon_high, names=names)


def test_a_clip_for_an_objective_without_one_is_refused_by_the_option_that_was_set():
    with pytest.raises(ValueError, match=r"epsilon=0.2 given, but objective .* has no clip_low to set; leave epsilon"):
        make_trainer_objective(OWN, None, epsilon=0.2, epsilon_high=None)
    with pytest.raises(ValueError, match=r"epsilon_high=0.3 given, but objective .* has no clip_high to set"):
        make_trainer_objective(OWN, None, epsilon=None, epsilon_high=0.3)
    assert make_trainer_objective(OWN, {"penalty_coef": 2.0}).penalty_coef == 2.0  # type: ignore[attr-defined]


def test_the_objective_parameters_given_to_a_trainer_are_left_unchanged():
    kwargs = {"alpha": 0.3}
    make_trainer_objective("scope", kwargs, epsilon=0.1)
    assert kwargs == {"alpha": 0.3}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_description_is_json_and_makes_the_objective_again(name):
    objective = make_objective(name, clip_high=0.28)
    record = json.loads(json.dumps(describe_objective(objective)))
    assert record["name"] == name
    assert record["class"] == f"{type(objective).__module__}.{type(objective).__name__}"
    assert record["formula"] == type(objective).formula
    assert "file" not in record
    assert make_objective(record["name"], **record["parameters"]) == objective


def test_parameters_of_a_description_are_all_of_them():
    assert describe_objective(Symmetric())["parameters"] == {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "policy_coef": 1.0,
        "alpha": 0.5,
        "beta": 0.5,
        "log_zero": -1.0,
        "masked": True,
        "over_old": True,
    }
    assert describe_objective(PPO())["parameters"] == {"clip_low": 0.2, "clip_high": 0.2, "policy_coef": 1.0}
