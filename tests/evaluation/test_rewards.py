"""Reward evaluation of real tiny models and of given completions, against figures by hand and one pass each."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from peft import get_peft_model

from scope_rlhf.evaluation.completions import System
from scope_rlhf.evaluation.rewards import Scored, score_policy, score_system, summarise
from scope_rlhf.metrics import paired_interval
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import LORA, disturb, plain_gpt2

PROMPTS = ["the film was", "a bad", "great plot and", "I liked", "nothing in", "the worst"]


def length_score(texts):
    return torch.tensor([float(len(text)) for text in texts])


def system(name, completions, ended=None):
    return System(name, PROMPTS[: len(completions)], completions, ended)


def test_the_likelihood_of_given_texts_is_that_of_one_pass_each():
    tokenizer = tiny_tokenizer()
    model = plain_gpt2()
    texts, ended = [" good film", " a", "", " the cast was great by far"], [True, False, False, True]
    scored = score_system(system("x", texts, ended), {"length": length_score}, model, tokenizer, batch_size=3)
    assert scored.kl is None and scored.scores["length"] == [22.0, 7.0, 14.0, 33.0]
    assert scored.reference_nll is not None and scored.reference_tokens is not None
    for i, (text, end) in enumerate(zip(texts, ended, strict=True)):
        prompt, completion = (tokenizer(x)["input_ids"] for x in (PROMPTS[i], text))
        # An empty completion is its end token.
        completion = completion + [tokenizer.eos_token_id] * (end or not completion)
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = -log_probs.gather(-1, torch.tensor(completion)[:, None]).sum().item()
        assert scored.reference_nll[i] == pytest.approx(expected, rel=1e-5)
        assert scored.reference_tokens[i] == len(completion)
    with pytest.raises(ValueError, match="more than the 64 positions of the reference"):
        score_system(system("x", [" film" * 70]), {}, model, tokenizer)


def test_a_policy_has_a_kl_to_its_base_that_is_zero_for_a_new_adapter_and_positive_for_a_trained_one():
    tokenizer = tiny_tokenizer()
    model = get_peft_model(tiny_gpt2(tokenizer), LORA)
    prompts = [f"{prompt} {i}" for prompt in PROMPTS[:4] for i in range(20)]
    before = score_policy(model, tokenizer, prompts, {}, name="new", max_new_tokens=6)
    assert before.kl is not None and max(map(abs, before.kl)) < 1e-5
    disturb(model, "lora_B", 1.0)
    after = score_policy(model, tokenizer, prompts, {"length": length_score}, name="trained", max_new_tokens=6)
    # Standard error of the mean over 80 sequences: about .2.
    assert after.kl is not None and np.mean(after.kl) > 0.5
    assert after.system.decoding == "temperature 1, seed 0, at most 6 tokens"
    again = score_policy(model, tokenizer, prompts, {"length": length_score}, name="trained", max_new_tokens=6)
    assert again == after


def test_means_spread_quantiles_and_paired_differences_are_those_of_the_values():
    a = Scored(system("a", ["x y", "x", "x y z", "x"], [True] * 4), {"judge": [1.0, 2.0, 3.0, 4.0]})
    b = Scored(system("b", ["x", "y", "z", "w"], [True, False, True, False]), {"judge": [2.0, 2.5, 5.0, 4.5]})
    summary = summarise([a, b], {"judge": "held-out judge"})
    assert summary["prompts"] == 4 and [s["name"] for s in summary["systems"]] == ["a", "b"]
    first, second = (s["metrics"] for s in summary["systems"])
    assert (first["judge"]["mean"], first["judge"]["std"]) == (2.5, pytest.approx(math.sqrt(1.25)))
    assert first["judge"]["quantiles"] == {"5": 1.15, "25": 1.75, "50": 2.5, "75": 3.25, "95": pytest.approx(3.85)}
    expected = paired_interval([1, 2, 3, 4], [2, 2.5, 5, 4.5])
    assert second["judge"]["difference"] == {"value": 1.0, "low": expected.low, "high": expected.high}
    assert first["judge"]["difference"] is None and first["judge"]["label"] == "held-out judge"
    assert (first["length"]["mean"], second["eos_rate"]["mean"]) == (1.75, 0.5)
    # Pairs of words: x y, x y, y z: two of three are unique; b has none.
    assert first["distinct_2"]["mean"] == pytest.approx(2 / 3) and math.isnan(second["distinct_2"]["mean"])
    assert second["distinct_2"]["difference"] is None


def test_perplexity_is_over_tokens_and_its_interval_is_around_it():
    nll, tokens = [4.0, 9.0, 2.0, 8.0], [4, 6, 1, 4]
    one = Scored(system("a", ["w"] * 4), {}, None, nll, tokens)
    other = dataclasses.replace(one, system=system("b", ["w"] * 4), reference_nll=[2 * x for x in nll])
    first, second = (s["metrics"]["perplexity"] for s in summarise([one, other], {})["systems"])
    assert first["mean"] == pytest.approx(math.exp(23 / 15)) and second["mean"] == pytest.approx(math.exp(46 / 15))
    assert first["low"] < first["mean"] < first["high"] and first["difference"] is None
    assert second["difference"]["value"] == pytest.approx(math.exp(46 / 15) - math.exp(23 / 15))


def test_rouge_is_against_the_references_and_systems_in_another_order_pair_up():
    a = Scored(system("a", ["good film", "bad film"]), {"judge": [1.0, 5.0]})
    b = Scored(System("b", PROMPTS[1::-1], ["bad film", "other words"], None), {"judge": [7.0, 2.0]}, [0.5, 0.25])
    summary = summarise([a, b], {"judge": "judge"}, references=["good film", "bad cast"])
    first, second = (s["metrics"] for s in summary["systems"])
    assert (first["rouge1"]["mean"], first["rouge2"]["mean"]) == (0.75, 0.5)
    assert second["rouge1"]["mean"] == 0.25 and second["rouge1"]["difference"]["value"] == -0.5
    assert second["judge"]["difference"]["value"] == 1.5  # (2 - 1 + 7 - 5) / 2
    assert second["kl"]["quantiles"]["50"] == 0.375 and second["kl"]["difference"] is None
    with pytest.raises(ValueError, match="must answer the same prompts"):
        summarise([a, Scored(System("c", ["other", "p"], ["x", "y"]), {})], {})


def test_what_was_measured_is_read_back_as_it_was_written():
    one = Scored(system("a", ["x", ""], [True, False]), {"judge": [1.5, -0.25]}, [0.1, 0.2], [3.0, 4.0], [2, 3])
    assert Scored.from_json(json.loads(json.dumps(one.as_json()))) == one
