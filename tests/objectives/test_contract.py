"""The contract checks find each typical mistake, name it, and say why."""

import re
from pathlib import Path

import pytest

from scope_rlhf.objectives import (
    OBJECTIVES,
    Focal,
    Objective,
    Scope,
    check_objective,
    make_objective,
    require_trainable,
)
from scope_rlhf.trainers import ScopeGRPOConfig

BROKEN = Path(__file__).parents[1] / "data" / "broken_objectives.py"

MISTAKES = [
    ("HiddenMean", "output", r"shape \(\) for inputs of shape \(2, 3\).*leave out the mean or sum"),
    ("RowMean", "elementwise", r"the loss of decision 0 has a gradient with respect to decision \d.*not diagonal"),
    ("NormalisesAdvantages", "elementwise", r"changes with the inputs of decision 0: a statistic over decisions"),
    ("InPlaceAdvantages", "inputs_unchanged", r"changes inputs.advantages in place"),
    ("InPlaceLogProbs", "inputs_unchanged", r"changes inputs.log_probs in place"),
    ("LambdaField", "pickling", r"field 'weight' cannot be pickled \(.*lambda.*\); keep plain values"),
    ("NotANumberAtExtremes", "extremes", r"(nan|inf) in float32 at log p = -100.*clamp the exponent before exp"),
    ("InfiniteStat", "extremes", r"stats\['inverse_probability'\] is inf in float32 at log p = -100"),
    ("Detached", "gradient", r"carries no gradient: it is detached from log_probs"),
    ("OldMinusOld", "gradient", r"is 0 everywhere; training would change nothing"),
    ("UndeclaredDetach", "gradient", r"finite difference.*disagree.*declare the class variable stops_gradient = True"),
    ("StatWithGradient", "stats", r"stats\['loss'\] carries a gradient.*detach"),
    ("ScalarStat", "stats", r"stats\['loss'\] has shape \(\) for inputs of shape \(2, 3\)"),
    ("NumberStat", "stats", r"stats\['one'\] is a float, expected a floating-point tensor"),
    ("ReturnsTensor", "output", r"returns a Tensor, expected PolicyLoss"),
    ("NotFrozen", "stateless", r"no frozen dataclass; decorate it with @dataclass\(frozen=True\)"),
    ("Counts", "stateless", r"a call changes the object's fields"),
    ("Random", "stateless", r"the same inputs give two different losses"),
    ("IgnoresLogRatio", "log_ratio", r"ignores inputs.log_ratio.*resolve_log_ratio"),
    ("AlwaysFloat32", "dtypes", r"per_decision is torch.float32 for inputs of torch.float64"),
    ("AsksForAValue", "no_sync", r"asks for the value of a tensor.*broken_objectives.py:\d+.*inputs.advantages.abs"),
    ("RefusesBothForms", "forms", r"not today.*Both forms are refused"),
    ("RaisesWithoutOldLogProbs", "forms", r"raised at .*broken_objectives.py:\d+: TypeError.*inputs.old_log_probs"),
    ("NeedlessEntropy", "gradient", r"needs_entropy is declared but per_decision does not depend on inputs.entropy"),
]
UNTRAINABLE = [
    ("HiddenMean", r"already reduced"),
    ("ReturnsTensor", r"expected PolicyLoss"),
    ("MisspelledInput", r"AttributeError.*advantage"),
    ("NumberStat", r"stats\['one'\] is a float"),
    ("NeverFinite", r"per_decision is not finite"),
    ("RefusesRatios", r"refuses the ratio form.*only without old log-probs"),
]
# A mistake that two checks see: the first explains it, the second is its consequence.
CONSEQUENCES = {
    "RowMean": {"masked"},
    "NormalisesAdvantages": {"masked"},
    "Random": {"gradient", "masked", "elementwise", "pickling", "log_ratio"},
    "AlwaysFloat32": {"gradient", "masked"},
    "InPlaceAdvantages": {"gradient", "masked", "stateless"},
    "InPlaceLogProbs": {"gradient", "elementwise"},
}


@pytest.mark.parametrize(("name", "check", "message"), MISTAKES, ids=[name for name, _, _ in MISTAKES])
def test_a_mistake_fails_its_check_with_what_and_why_in_one_paragraph(name, check, message):
    results = check_objective(make_objective(f"{BROKEN}:{name}"))
    failed = {result.name: result.detail for result in results if not result.passed}
    assert check in failed
    assert set(failed) <= {check} | CONSEQUENCES.get(name, set())
    assert "\n" not in failed[check]
    assert "Traceback" not in failed[check]
    assert re.search(message, failed[check]), failed[check]


def test_every_broken_objective_of_the_file_is_tested():
    source = BROKEN.read_text()
    defined = {line.split()[1].rstrip(":") for line in source.splitlines() if line.startswith("class ")}
    assert defined == {name for name, _, _ in MISTAKES} | {name for name, _ in UNTRAINABLE}


def test_a_refused_form_passes_and_is_said():
    results = check_objective(Focal(gamma=3.0))
    assert all(result.passed for result in results)
    assert "ratio form refused: focal: gamma=3 with old log-probs" in results[0].detail


def test_a_declared_form_is_not_tried_without_old_log_probs():
    results = check_objective(Scope(importance_weighted=True))
    assert all(result.passed for result in results)
    assert "score-function form not tried (needs_old_log_probs)" in results[0].detail


def test_a_class_and_a_non_callable_are_named_as_such():
    for given, said in ((Scope, "given the class Scope"), (3, "given int")):
        (result,) = check_objective(given)  # type: ignore[arg-type]
        assert not result.passed
        assert said in result.detail


def test_an_objective_without_call_fails_with_what_is_missing():
    (result,) = check_objective(Objective())
    assert not result.passed
    assert "Objective has no __call__" in result.detail


def test_a_result_prints_as_one_line():
    result = check_objective(Scope())[0]
    assert str(result) == f"pass  forms: {result.detail}"


@pytest.mark.parametrize(("name", "message"), UNTRAINABLE)
def test_an_objective_that_would_train_wrongly_or_crash_is_refused_before_anything_is_loaded(name, message):
    with pytest.raises(ValueError, match=message) as error:
        ScopeGRPOConfig("out", objective=f"{BROKEN}:{name}", use_cpu=True)
    assert "scope-rlhf objectives check" in str(error.value)


def test_the_catalogue_and_a_detached_factor_are_trainable():
    for name in OBJECTIVES:
        require_trainable(make_objective(name), ratio=True, source=name)
    require_trainable(make_objective("scope", detach_factor=True), ratio=True, source="scope")
