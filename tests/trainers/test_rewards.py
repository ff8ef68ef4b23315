"""Reward functions under guard."""

import asyncio
import math

import pytest

from scope_rlhf.trainers.rewards import check_rewards, guard_reward, probe_reward

ROWS = ["p0", "p1", "p2"]


def test_none_stays_legal_and_numbers_become_floats():
    assert check_rewards("f", [1, None, True], ROWS, ROWS) == [1.0, None, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "good", [1.0]])
def test_a_value_that_is_no_finite_number_names_the_function_and_the_row(value):
    with pytest.raises(ValueError, match=r"reward function f .*row 1"):
        check_rewards("f", [0.0, value, 1.0], ROWS, ROWS)


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 4, 1.0, None])
def test_the_wrong_number_of_values_names_both_numbers(values):
    with pytest.raises(ValueError, match=r"reward function f returned"):
        check_rewards("f", values, ROWS, ROWS)


def test_async_functions_are_guarded_too_and_keep_their_name():
    async def slow(prompts, completions, **kwargs):
        return [math.nan for _ in prompts]

    guarded = guard_reward(slow)
    assert guarded.__name__ == "slow"
    assert asyncio.iscoroutinefunction(guarded)
    with pytest.raises(ValueError, match="slow"):
        asyncio.run(guarded(prompts=ROWS, completions=ROWS))


def test_a_probe_passes_the_other_columns_and_explains_an_exception_of_the_function():
    seen = {}

    def needs_label(prompts, completions, label, **kwargs):
        seen["label"] = label
        return [float(x) for x in label]

    rows = [{"prompt": "a", "label": 1}, {"prompt": "b", "label": 0}]
    probe_reward(guard_reward(needs_label), rows, 0)
    assert seen["label"] == [1, 0]
    with pytest.raises(ValueError, match=r"needs_label failed on a trial call.*KeyError|needs_label failed.*label"):
        probe_reward(guard_reward(needs_label), [{"prompt": "a"}], 0)


def test_what_a_trial_call_finds_says_that_it_was_a_trial():
    with pytest.raises(
        ValueError, match=r"on a trial call before training, reward function nan_reward returned nan for row 0"
    ):
        probe_reward(guard_reward(nan_reward), [{"prompt": "a"}], 0)


def nan_reward(prompts, **kwargs):
    return [float("nan")] * len(prompts)


@pytest.mark.parametrize("returned", [{"a": 1.0, "b": 2.0}, "12", {1.0, 2.0}])
def test_a_dictionary_a_text_or_a_set_is_no_list_of_rewards(returned):
    with pytest.raises(ValueError, match=f"returned {type(returned).__name__}, expected one number"):
        check_rewards("f", returned, ["p", "q"], ["c", "d"])
