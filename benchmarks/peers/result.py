"""What every peer writes: one JSON file, with the time of each iteration taken the same way.

peer               name
versions           of the packages that matter
settings           everything the run was told but --output
seconds            wall seconds of the training loop without imports, set-up and the first iteration
steps_per_second   median over iterations without the first two; a step is one action of one environment
iterations         wall seconds of each iteration (a rollout and its update)
split              median seconds of an iteration, without the first two: in the environments, in the rest of the
                   rollout, in the update; null where a peer cannot be split
curve              {"step", "return"} of each finished true episode: all lives, unclipped reward
evaluation         returns of the evaluation's episodes
"""

import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_UP = 2


class Meter:
    """Clock of a training loop: start, then for each iteration end_rollout and end_iteration."""

    def __init__(self) -> None:
        self.iterations: list[float] = []
        self.environment: list[float] = []
        self.rollout: list[float] = []
        self.update: list[float] = []

    def start(self) -> None:
        self._start = self._rollout_end = time.perf_counter()
        self._environment = 0.0

    def timed(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """step of the environments, its time kept apart."""

        def timed_step(*args: Any) -> Any:
            begin = time.perf_counter()
            result = step(*args)
            self._environment += time.perf_counter() - begin
            return result

        return timed_step

    def end_rollout(self) -> None:
        """The last call of an iteration counts."""
        self._rollout_end = time.perf_counter()

    def end_iteration(self) -> None:
        now = time.perf_counter()
        self.iterations.append(now - self._start)
        self.environment.append(self._environment)
        self.rollout.append(self._rollout_end - self._start - self._environment)
        self.update.append(now - self._rollout_end)
        self.start()

    def split(self) -> dict[str, float]:
        return {name: statistics.median(getattr(self, name)[WARM_UP:]) for name in ("environment", "rollout", "update")}


def check_length(total_timesteps: int, steps_per_iteration: int) -> None:
    if total_timesteps < (WARM_UP + 1) * steps_per_iteration:
        raise ValueError(
            f"total_timesteps {total_timesteps} is less than {WARM_UP + 1} iterations of {steps_per_iteration} steps: "
            f"the first {WARM_UP} are not counted; raise --total_timesteps"
        )


def write_result(
    path: Path,
    peer: str,
    packages: list[str],
    settings: dict[str, Any],
    meter: Meter,
    steps_per_iteration: int,
    curve: list[dict[str, float]],
    evaluation: list[float],
) -> None:
    result = {
        "peer": peer,
        "versions": {name: version(name) for name in packages},
        "settings": {name: str(x) if isinstance(x, Path) else x for name, x in settings.items() if name != "output"},
        "seconds": sum(meter.iterations[1:]),
        "steps_per_second": statistics.median(steps_per_iteration / x for x in meter.iterations[WARM_UP:]),
        "iterations": meter.iterations,
        "split": meter.split(),
        "curve": curve,
        "evaluation": evaluation,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{peer}: {result['steps_per_second']:.0f} steps/s, {len(meter.iterations)} iterations, {len(curve)} episodes"
    )
