"""Comparing two systems: both orders, the judge's words, files, and known answers."""

import functools
import json
import math

import numpy as np
import pytest

from scope_rlhf.evaluation.completions import System, align, read_system
from scope_rlhf.evaluation.judges import FunctionJudge, Judgement
from scope_rlhf.evaluation.win_rate import check_invalid, invalid_example
from scope_rlhf.evaluation.win_rate import compare as compare_systems

compare = functools.partial(compare_systems, resamples=1000)


def system(name, completions, **changes):
    return System(name, [f"text {i}" for i in range(len(completions))], completions, **changes)


def longer(prompt, first, second):
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def test_the_longer_text_wins_in_both_orders_and_the_rows_say_so():
    a = system("new", ["long text here", "b", "same"], ended=[True, False, True])
    b = system("old", ["short", "longer than b", "mase"])
    result = compare(a, b, FunctionJudge(longer))
    assert result.scores == [1.0, 0.0, 0.5]
    assert result.summary["win_rate"]["rate"]["value"] == 0.5
    assert result.summary["win_rate"]["order_consistency"] == 1.0
    assert result.summary["system_a"]["share_without_eos"] == pytest.approx(1 / 3)
    assert result.summary["system_b"]["share_without_eos"] is None
    assert result.summary["system_a"]["mean_length_words"] == pytest.approx(5 / 3)
    assert result.pairs[0]["verdict_a_first"] == "A" and result.pairs[1]["verdict_b_first"] == "B"


def test_a_judge_that_looks_at_the_position_only_gives_one_half():
    a, b = system("a", ["x"] * 8), system("b", ["y"] * 8)
    result = compare(a, b, FunctionJudge(lambda prompt, first, second: "first"))
    rates = result.summary["win_rate"]
    assert (rates["rate"]["value"], rates["order_consistency"], rates["first_position"]) == (0.5, 0.0, 1.0)


class Noisy:
    """A judge by chance, as a language model at temperature 1 is."""

    name = "noisy"

    def __init__(self, chance, seed=0):
        self.chance, self.generator = chance, np.random.default_rng(seed)

    def __call__(self, comparisons):
        picks = self.generator.random(len(comparisons)) < self.chance
        return [Judgement("first" if pick else "second") for pick in picks]


def test_a_system_against_itself_is_one_half_within_its_interval():
    texts, covered = [f"summary {i}" for i in range(100)], 0
    for seed in range(60):
        chance = 0.5 if seed % 2 else 0.8  # also with a position bias
        interval = compare(system("a", texts), system("b", texts), Noisy(chance, seed)).summary["win_rate"]["rate"]
        covered += interval["low"] <= 0.5 <= interval["high"]
        assert interval["high"] - interval["low"] < 0.2
    assert covered >= 53  # 57 are expected of 60 at 95 %; fewer than 53 come by chance once in 50


def test_references_against_shuffled_references_give_the_judges_accuracy():
    """A judge that is right 3 of 4 times, independent of the order: its pair score is its accuracy on such pairs."""
    texts = [f"summary {i}" for i in range(500)]
    right = np.random.default_rng(3).random(500) < 0.75

    def knows(prompt, first, second):
        number = int(prompt.removeprefix("text "))
        own = "first" if first == f"summary {number}" else "second"
        return own if right[number] else {"first": "second", "second": "first"}[own]

    result = compare(system("references", texts), system("shuffled", texts[1:] + texts[:1]), FunctionJudge(knows))
    rate = result.summary["win_rate"]["rate"]
    assert rate["value"] == pytest.approx(right.mean(), abs=1e-12)
    assert rate["low"] < 0.75 < rate["high"]


def test_the_same_systems_in_another_order_pair_up_by_their_prompts():
    a = system("a", ["one", "two", "three"])
    b = System("b", a.prompts[::-1], ["c", "b", "a"], [True, False, False])
    again = align(a, b)
    assert again.completions == ["a", "b", "c"] and again.ended == [False, False, True]
    with pytest.raises(ValueError, match=r"same prompts: 1 of 3 are only in the first, 0 of 2 only in the second"):
        align(a, System("b", a.prompts[:2], ["x", "y"]))


def test_invalid_answers_are_counted_and_fail_the_run_beyond_the_stated_share():
    a, b = system("a", ["x", "y", "z", "w"]), system("b", ["p", "q", "r", "s"])
    answers = {"text 1": "who knows"}
    result = compare(a, b, FunctionJudge(lambda prompt, first, second: answers.get(prompt, "first"), "odd"))
    assert result.summary["invalid"] == 1 and result.summary["invalid_answers"] == 2
    assert math.isnan(result.scores[1]) and result.pairs[1]["score"] is None
    check_invalid(result.summary, 0.25)
    with pytest.raises(ValueError, match=r"1 of 4 pairs .*--max_invalid .*odd said, for one: .*returned 'who knows'"):
        check_invalid(result.summary, 0.2, invalid_example(result.pairs))


def test_without_a_valid_pair_there_are_no_rates():
    result = compare(system("a", ["x"]), system("b", ["y"]), FunctionJudge(lambda *texts: None))
    assert result.summary["win_rate"] is None and result.summary["length_controlled"] is None


def test_a_judge_of_length_alone_is_one_half_once_length_is_controlled():
    generator = np.random.default_rng(0)
    words = [" ".join(["w"] * n) for n in generator.integers(5, 40, 300)]
    others = [" ".join(["w"] * n) for n in generator.integers(5, 30, 300)]
    result = compare(system("a", words), system("b", others), FunctionJudge(longer))
    assert result.summary["win_rate"]["rate"]["value"] > 0.6
    controlled = result.summary["length_controlled"]
    assert controlled["low"] <= 0.5 <= controlled["high"]


def test_completions_are_read_back_as_written_and_bad_files_say_what_they_lack(tmp_path):
    whole = system("new", ["x", "", "z"], ended=[True, False, True])
    file = tmp_path / "new.jsonl"
    whole.write(file)
    again = read_system(str(file), "--system_a")
    assert (again.name, again.prompts, again.completions, again.ended) == (
        "new",
        whole.prompts,
        ["x", "", "z"],
        whole.ended,
    )
    assert compare(again, again, FunctionJudge(longer)).summary["system_a"]["empty"] == 1

    def refused(rows, message):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ValueError, match=message):
            read_system(str(file), "--system_a")

    refused([{"prompt": "p", "text": "t"}], r"--system_a='.*' has no column completion; its columns: prompt, text")
    refused([{"prompt": "p", "completion": 3}], "completion of row 0 is no text but 3")
    refused([{"prompt": "p", "completion": "x"}] * 2, "has a prompt twice")
    table = tmp_path / "new.csv"
    table.write_text("prompt,completion\np,x\nq,\n")
    with pytest.raises(ValueError, match="completion of row 1 is missing; an empty completion is an empty text, in .j"):
        read_system(str(table), "--system_a")
    garbage = tmp_path / "new.parquet"
    garbage.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="--system_a='.*new.parquet' "):
        read_system(str(garbage), "--system_a")
    with pytest.raises(ValueError, match="--system_b='nowhere.jsonl' does not exist"):
        read_system("nowhere.jsonl", "--system_b")
    file.write_text("")
    with pytest.raises(ValueError, match="is an empty file"):
        read_system(str(file), "--system_a")


def test_the_results_are_written_as_strict_json(tmp_path):
    result = compare(system("a", ["x"]), system("b", ["yy"]), FunctionJudge(longer))
    result.write(tmp_path)
    summary = json.loads((tmp_path / "win_rate.json").read_text())
    assert summary["win_rate"]["rate"] == {"value": 0.0, "low": None, "high": None, "n": 1}
    assert json.loads((tmp_path / "pairs.jsonl").read_text())["a"] == "x"


def test_length_control_is_called_an_extrapolation_where_one_side_is_nearly_always_longer():
    apart = compare(system("a", ["x y", "x y"]), system("b", ["x", "x"]), FunctionJudge(longer))
    mixed = compare(system("a", ["x y", "x"]), system("b", ["x", "x y"]), FunctionJudge(longer))
    assert (apart.summary["lengths_overlap"], mixed.summary["lengths_overlap"]) == (False, True)
