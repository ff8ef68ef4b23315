"""The contract of an objective as checks: run over the whole catalogue by the tests, over a user's own by the CLI."""

from collections.abc import Callable
from dataclasses import dataclass

from scope_rlhf.objectives.base import PolicyInputs, PolicyLoss
from scope_rlhf.objectives.checks import (
    CHECKS,
    RATIO,
    SCORE,
    check_output,
    check_stats,
    check_trains,
    describe_error,
    make_sample,
)


@dataclass(frozen=True)
class CheckResult:
    """One check: its name, whether it passed, and in one paragraph what was found (on failure: what fails and why)."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


def check_objective(objective: Callable[[PolicyInputs], PolicyLoss]) -> list[CheckResult]:
    """Run the contract on `objective`, with and without old log-probs, in float64, float32 and bfloat16 on the CPU.

    A ValueError in one of the two forms counts as a refusal of it, and is said; refusing both fails. Where the form,
    the type or the shape of the output is wrong, the checks that would only repeat it are not run. Never raises for
    what an objective does.
    """
    forms, result = _check_forms(objective)
    results = [result]
    if not result.passed:
        return results
    for name, expectation, check in CHECKS:
        failures = []
        for form in forms:
            try:
                problem = check(objective, form)
            except Exception as error:
                problem = describe_error(objective, error)
            if problem:
                failures.append(f"{form}: {problem}")
        results.append(CheckResult(name, not failures, " ".join(failures) or expectation))
        if failures and name == "output":
            break
    return results


def require_trainable(objective: Callable[[PolicyInputs], PolicyLoss], *, ratio: bool, source: str) -> None:
    """ValueError for an objective that a trainer could not use, or would use wrongly without a word.

    Of the contract only what every trainer builds on: the form it calls (`ratio`: with old log-probs) is accepted, the
    output is unreduced, stats are one detached value per decision, loss and gradient are there and finite. Takes
    milliseconds. `source`: what the user gave, for the message.
    """
    form = RATIO if ratio else SCORE
    for check in (check_output, check_stats, check_trains):
        try:
            problem = check(objective, form)
        except ValueError as error:
            problem = f"refuses the {form}, which this trainer needs: {' '.join(str(error).split())}"
        except Exception as error:
            problem = describe_error(objective, error)
        if problem:
            raise ValueError(
                f"objective {source!r} cannot be trained with: {problem.rstrip('.')}. `scope-rlhf objectives check "
                f"{source}` runs the whole contract."
            )


def _check_forms(objective: Callable[[PolicyInputs], PolicyLoss]) -> tuple[list[str], CheckResult]:
    if isinstance(objective, type) or not callable(objective):
        given = f"the class {objective.__name__}" if isinstance(objective, type) else type(objective).__name__
        return [], CheckResult("forms", False, f"given {given}, expected an object with __call__(inputs: PolicyInputs)")
    accepted, said, failed = [], [], False
    for form in (SCORE, RATIO):
        if form == SCORE and getattr(objective, "needs_old_log_probs", False):
            said.append(f"{form} not tried (needs_old_log_probs).")
            continue
        try:
            make_sample(objective, form).call()
        except ValueError as error:
            said.append(f"{form} refused: {' '.join(str(error).split()).rstrip('.')}.")
        except Exception as error:
            failed = True
            said.append(f"{form}: {describe_error(objective, error)}")
        else:
            accepted.append(form)
            said.append(f"{form} accepted.")
    if not accepted and not failed:
        said.append(
            "Both forms are refused, so nothing can train with it: accept inputs with or without old_log_probs."
        )
    return accepted, CheckResult("forms", bool(accepted) and not failed, " ".join(said))
