"""A user's own objective: loading, errors, pickling into another process, and the hash of its file."""

import copy
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scope_rlhf.objectives import PolicyInputs, describe_objective, make_objective

OWN = Path(__file__).parents[1] / "data" / "quadratic_penalty.py"

PLAIN = """
from dataclasses import dataclass
from scope_rlhf.objectives import PolicyInputs, PolicyLoss

@dataclass(frozen=True)
class Scale:
    value: float = 1.0

@dataclass(frozen=True)
class Mine:
    coef: float = 2.0
    scale: Scale = Scale()

    def __call__(self, inputs):
        return PolicyLoss(-self.coef * self.scale.value * inputs.advantages * inputs.log_probs, {})
"""


@pytest.fixture
def write(tmp_path):
    def make(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def loss_of(objective) -> list[float]:
    log_probs = torch.tensor([-1.0, -0.5], requires_grad=True)
    return objective(PolicyInputs(log_probs, torch.tensor([1.0, -2.0]))).per_decision.tolist()


def test_a_class_of_a_file_is_made_with_its_parameters(write):
    objective = make_objective(f"{write(PLAIN)}:Mine", coef=3.0)
    assert loss_of(objective) == [3.0, -3.0]


def test_a_relative_path_and_an_absolute_one_are_the_same_class(write, monkeypatch):
    path = write(PLAIN)
    monkeypatch.chdir(path.parent)
    assert type(make_objective("mine.py:Mine")) is type(make_objective(f"{path}:Mine"))


def test_a_class_of_an_importable_module_is_made(write, monkeypatch):
    path = write(PLAIN, "importable_objective.py")
    monkeypatch.syspath_prepend(str(path.parent))
    objective = make_objective("importable_objective:Mine", coef=4.0)
    assert pickle.loads(pickle.dumps(objective)) == objective
    record = describe_objective(objective)
    assert record["name"] == "importable_objective:Mine"
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_missing_class_variables_get_their_defaults_and_given_ones_stay(write):
    text = PLAIN.replace("    coef: float", "    needs_old_log_probs = True\n    coef: float")
    objective = make_objective(f"{write(text)}:Mine")
    assert objective.needs_old_log_probs is True
    assert objective.needs_entropy is False
    assert objective.stops_gradient is False


def test_pickling_works_within_the_process_with_nested_classes_of_the_file(write):
    path = write(PLAIN)
    scale = type(make_objective(f"{path}:Mine").scale)  # type: ignore[attr-defined]
    objective = make_objective(f"{path}:Mine", coef=3.0, scale=scale(2.0))
    for twin in (pickle.loads(pickle.dumps(objective)), copy.deepcopy(objective)):
        assert twin == objective
        assert type(twin) is type(objective)
        assert loss_of(twin) == [6.0, -6.0]


def test_pickling_works_in_a_process_that_has_only_the_package(write):
    slotted = PLAIN.replace("@dataclass(frozen=True)\nclass Mine", "@dataclass(frozen=True, slots=True)\nclass Mine")
    objectives = [make_objective(f"{path}:Mine", coef=3.0) for path in (write(PLAIN), write(slotted, "slotted.py"))]
    scale = type(objectives[0].scale)  # type: ignore[attr-defined]
    objectives.append(make_objective(f"{write(PLAIN)}:Mine", scale=scale(5.0)))
    objectives.append(make_objective("scope", alpha=0.3))
    code = "import pickle, sys, scope_rlhf\nprint([repr(objective) for objective in pickle.load(sys.stdin.buffer)])\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(objectives), capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == repr([repr(objective) for objective in objectives])


def test_the_description_has_the_hash_of_the_text_that_runs_even_after_the_file_changed(write):
    path = write(PLAIN)
    before = make_objective(f"{path}:Mine")
    record = describe_objective(before)
    assert record["sha256"] == hashlib.sha256(PLAIN.encode()).hexdigest()
    assert record["parameters"] == {"coef": 2.0, "scale": "Scale(value=1.0)"}
    path.write_text(PLAIN.replace("-self.coef", "-10 * self.coef"))
    assert describe_objective(before) == record
    after = make_objective(f"{path}:Mine")
    assert describe_objective(after)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]
    assert loss_of(before) == [2.0, -2.0]
    assert loss_of(after) == [20.0, -20.0]


def test_the_name_in_a_description_is_relative_below_the_working_directory_and_makes_it_again(write, monkeypatch):
    path = write(PLAIN)
    objective = make_objective(f"{path}:Mine")
    monkeypatch.chdir(path.parent)
    record = describe_objective(objective)
    assert record["name"] == "mine.py:Mine"
    assert record["file"] == "mine.py"
    assert make_objective(record["name"]) == objective
    monkeypatch.chdir(Path(__file__).parent)
    assert describe_objective(objective)["file"] == str(path.resolve())


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (PLAIN, "Other", r"no class 'Other'; .*mine.py defines Scale, Mine"),
        (PLAIN, "Scale", r"Scale: not callable, expected a method __call__\(self, inputs: PolicyInputs\)"),
        ("Mine = 3", "Mine", r"Mine is a int, expected a class"),
        ("def Mine(inputs):\n    return inputs", "Mine", r"Mine is a function, expected a class"),
        ("import torch\nimport no_such_library_here\n", "Mine", r"mine.py:2: ModuleNotFoundError: .*\[import no_such"),
        ("x = 1\n\ndef f():\n    return 1 / 0\n\nf()\n", "Mine", r"mine.py:4: ZeroDivisionError: .*\[return 1 / 0\]"),
        ("class Mine:\n    def __call__(self inputs): pass\n", "Mine", r"mine.py:2: SyntaxError: .*\[def __call__"),
        (
            "from scope_rlhf.objectives import Objective\nclass Mine(Objective): pass\n",
            "Mine",
            r"Mine: not callable, expected a method __call__",
        ),
    ],
)
def test_a_file_that_cannot_give_the_class_says_why_and_where(write, text, name, message):
    with pytest.raises(ValueError, match=message):
        make_objective(f"{write(text)}:{name}")


def test_a_file_that_failed_leaves_no_half_loaded_module_behind(write):
    path = write("x = 1 / 0")
    for _ in range(2):
        with pytest.raises(ValueError, match="ZeroDivisionError"):
            make_objective(f"{path}:Mine")
    path.write_text(PLAIN)
    assert loss_of(make_objective(f"{path}:Mine")) == [2.0, -2.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no/such/file.py:Mine", r"no file .*no/such/file.py"),
        ("no_such_module_here:Mine", r"no module 'no_such_module_here' on sys.path; for a file write no_such_module_h"),
        ("json:JSONDecoder", r"JSONDecoder: not callable"),
        (":Mine", r"expected path/to/file.py:Class or module:Class"),
        ("file.py:", r"expected path/to/file.py:Class or module:Class"),
    ],
)
def test_a_spec_that_leads_nowhere_is_a_clear_error(spec, message):
    with pytest.raises(ValueError, match=message):
        make_objective(spec)


def test_a_module_that_fails_while_it_is_imported_shows_its_line(write, monkeypatch):
    monkeypatch.syspath_prepend(str(write("x = 1\ny = x / 0\n", "failing_objective.py").parent))
    with pytest.raises(ValueError, match=r"importing failing_objective failed: .*failing_objective.py:2: ZeroDivision"):
        make_objective("failing_objective:Mine")


def test_a_constructor_that_refuses_its_parameters_lists_the_valid_ones(write):
    path = write(PLAIN.replace("coef: float = 2.0", "coef: float").replace("scale: Scale = Scale()", "power: int = 1"))
    with pytest.raises(ValueError, match=r"refuses the parameters \{\}: TypeError.*'coef'; valid: coef, power"):
        make_objective(f"{path}:Mine")


def test_a_value_error_of_the_users_own_validation_is_kept(write):
    check = "    def __post_init__(self):\n        raise ValueError('coef must be even')\n\n    def __call__"
    with pytest.raises(ValueError, match=r"^coef must be even$"):
        make_objective(f"{write(PLAIN.replace('    def __call__', check))}:Mine")


def test_the_readme_example_penalises_the_log_ratio_quadratically():
    objective = make_objective(f"{OWN}:QuadraticPenalty", penalty_coef=3.0)
    log_probs = torch.tensor([-1.0, -0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.5, -0.4], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss = objective(PolicyInputs(log_probs, advantages, old)).per_decision
    gap = (log_probs - old).detach()
    torch.testing.assert_close(loss.detach(), -gap.exp() * advantages + 1.5 * gap**2)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    torch.testing.assert_close(gradient, -gap.exp() * advantages + 3 * gap)
    plain = objective(PolicyInputs(log_probs, advantages)).per_decision
    torch.testing.assert_close(plain, -advantages * log_probs)
