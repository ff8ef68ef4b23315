"""Reward functions under guard: the right number of finite values, or an error that names the function and the row."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from scope_rlhf.models.loading import find_model
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig


def check_rewards(
    name: str, rewards: Any, prompts: Sequence[Any], completions: Sequence[Any], nan_reward: str = "error"
) -> list[float | None]:
    """The rewards as floats; None (not applicable) passes.

    ValueError for a wrong count, and for a value that is no number, NaN or infinite, with the function and the row;
    with nan_reward="drop" NaN and infinite values become None.
    """
    try:
        values = None if isinstance(rewards, str | bytes | dict | set | frozenset) else list(rewards)
    except TypeError:
        values = None
    if values is None:
        raise ValueError(
            f"reward function {name} returned {type(rewards).__name__}, expected one number for each completion."
        )
    if len(values) != len(prompts):
        raise ValueError(
            f"reward function {name} returned {len(values)} values for {len(prompts)} completions; it must return "
            "exactly one number (or None) for each."
        )
    checked: list[float | None] = []
    for row, value in enumerate(values):
        if value is None:
            checked.append(None)
            continue
        number = _number(value)
        if number is not None and nan_reward == "drop" and not math.isfinite(number):
            checked.append(None)
            continue
        if number is None or not math.isfinite(number):
            raise ValueError(
                f"reward function {name} returned {value!r} for row {row}; expected a finite number or None. "
                f"Prompt: {str(prompts[row])[:120]!r}, completion: {str(completions[row])[:120]!r}. No update was made "
                "with it; --nan_reward drop leaves out rows whose reward is NaN."
            )
        checked.append(number)
    return checked


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def guard_reward(function: Callable[..., Any], nan_reward: str = "error") -> Callable[..., Any]:
    """The reward function, plain or async, with `check_rewards` behind it; name and signature stay."""
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        async def guarded_async(prompts, completions, **kwargs):
            result = await function(prompts=prompts, completions=completions, **kwargs)
            return check_rewards(name, result, prompts, completions, nan_reward)

        guarded: Callable[..., Any] = guarded_async
    else:

        def guarded_sync(prompts, completions, **kwargs):
            result = function(prompts=prompts, completions=completions, **kwargs)
            return check_rewards(name, result, prompts, completions, nan_reward)

        guarded = guarded_sync
    functools.update_wrapper(guarded, function, assigned=("__doc__", "__module__"), updated=())
    guarded.__name__ = name
    return guarded


def probe_reward(function: Callable[..., Any], rows: list[dict[str, Any]], eos_token_id: int, **extra: Any) -> None:
    """Call a guarded reward function once on dataset rows with a stand-in completion, before any training.

    An exception of the user's own code becomes a ValueError that names the function.
    """
    prompts = [row["prompt"] for row in rows]
    text = " ok"
    completions = [[{"role": "assistant", "content": text}] if isinstance(p, list) else text for p in prompts]
    columns = {k: [row[k] for row in rows] for k in rows[0] if k not in ("prompt", "completion", "completion_ids")}
    ids = [[eos_token_id]] * len(prompts)
    try:
        result = function(prompts=prompts, completions=completions, completion_ids=ids, **columns, **extra)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("reward function "):
            raise ValueError(f"on a trial call before training, {error}") from error
        raise ValueError(
            f"reward function {function.__name__} failed on a trial call before training "
            f"({type(error).__name__}: {error}). It is called with the keywords prompts, completions, completion_ids, "
            "every other column of the dataset, trainer_state, log_extra and log_metric, so it needs **kwargs; "
            "--probe_rewards false skips the trial."
        ) from error


def check_reward_function(function: Any, args: ScopeGRPOConfig) -> Any:
    """A reward function under guard, a reward model, or the name of one; ValueError for anything else."""
    if isinstance(function, nn.Module):
        return function.eval()  # dropout would score one text twice differently
    if isinstance(function, str):
        path, config = find_model(function, "reward_funcs", trust_remote_code=args.trust_remote_code)
        if getattr(config, "num_labels", 1) == 1:
            return path
        # A classifier of several classes: the parent would give it a new, untrained output.
        scorer = RewardScorer.from_pretrained(function, setting="reward_funcs")
        function = scorer.as_reward_function(function.rstrip("/").rpartition("/")[2])
    if not callable(function):
        raise ValueError(f"reward_funcs holds {function!r}, expected a function, a model, or the name of a model.")
    return guard_reward(function, args.nan_reward)
