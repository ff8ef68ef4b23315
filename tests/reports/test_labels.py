import math

import pytest

from scope_rlhf.reports.labels import command_text, format_interval, format_number, objective_formula, objective_label

SCOPE = {"name": "scope", "parameters": {"clip_low": 0.2, "policy_coef": 1.0, "alpha": 0.01, "detach_factor": True}}


def test_brief_label_keeps_what_differs_from_the_defaults_and_always_the_strength(known_defaults):
    assert objective_label(SCOPE) == "scope(clip_low=0.2, policy_coef=1, alpha=0.01, detach_factor=True)"
    assert objective_label(SCOPE, brief=True) == "scope(alpha=0.01, detach_factor=True)"
    assert objective_label({"name": "ppo", "parameters": {"policy_coef": 1.0}}, brief=True) == "ppo"
    assert objective_label({"name": "ppo", "parameters": {"policy_coef": 0.9}}, brief=True) == "ppo(policy_coef=0.9)"


def test_a_users_own_objective_is_named_by_its_class_with_all_parameters():
    own = {"name": "x/mine.py:Mine", "class": "Mine", "file": "x/mine.py", "parameters": {"tau": 2.0}}
    assert objective_label(own, brief=True) == "Mine(tau=2)"
    assert objective_formula(own) == ""


def test_recorded_formula_comes_before_the_catalogues():
    assert objective_formula({"name": "scope", "formula": "as it was"}) == "as it was"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"command": ["recipes/a.py", "--x", "a b"]}, "python recipes/a.py --x 'a b'"),
        ({"command": ["recipes/a.py"], "processes": 4}, "torchrun --nproc_per_node 4 recipes/a.py"),
        ({"command": ["/opt/venv/bin/scope-rlhf", "grpo"]}, "scope-rlhf grpo"),
        ({}, ""),
    ],
)
def test_command_is_what_one_types_again(config, expected):
    assert command_text(config) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.93451, "0.935"), (44.314, "44.31"), (512.27, "512.3"), (0, "0"), (0.00002, "2.0e-05"), (-0.0401, "-0.040")],
)
def test_numbers_keep_the_digits_that_matter(value, expected):
    assert format_number(value) == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf, True, "0.5"])
def test_what_is_no_number_is_a_dash(value):
    assert format_number(value) == "-"


def test_an_unbounded_interval_is_a_dash():
    assert format_interval(-0.1, 0.25) == "[-0.100, +0.250]"
    assert format_interval(None, None) == format_interval(-math.inf, math.inf) == "-"
