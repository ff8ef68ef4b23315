"""The win rate while our trainers train: what is logged, that training does not notice, processes, resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scope_rlhf.evaluation.callback import WinRateCallback
from scope_rlhf.evaluation.completions import System, generate
from scope_rlhf.evaluation.judges import FunctionJudge
from scope_rlhf.runtime import RunFolder
from scope_rlhf.trainers.callbacks import MetricsFile
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import ALGORITHMS, logged, make_trainer, weights

PROMPTS = ["the film was", "a bad", "great plot and", "I liked"]
KEYS = {
    "win_rate", "win_rate/low", "win_rate/high", "win_rate/length_controlled", "win_rate/invalid", "win_rate/words",
    "win_rate/baseline_words",
}  # fmt: skip


def shorter(prompt, first, second):
    return "tie" if len(first) == len(second) else "first" if len(first) < len(second) else "second"


def add(trainer, **settings):
    callback = WinRateCallback(
        trainer, PROMPTS, FunctionJudge(shorter), **{"max_new_tokens": 6, "every": 1, **settings}
    )
    trainer.add_callback(callback)
    return callback


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_is_the_same_with_and_without_the_callback(algorithm, tmp_path):
    results = []
    for number, with_callback in enumerate((False, True)):
        trainer = make_trainer(algorithm, tmp_path / str(number), max_steps=2, learning_rate=0.1)
        if with_callback:
            callback = add(trainer, temperature=1.0)
        trainer.train()
        rows = [{k: v for k, v in row.items() if "time" not in k and "runtime" not in k and "per_second" not in k}
                for row in trainer.state.log_history]  # fmt: skip
        results.append((weights(trainer), [row for row in rows if "win_rate/words" not in row], trainer))
    (before, plain, _), (after, seen, trainer) = results
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert seen == plain and len(plain) == 3
    ours = [row for row in trainer.state.log_history if "win_rate" in row]
    assert [row["step"] for row in ours] == [1, 2]
    assert all(row.keys() >= KEYS for row in ours)
    assert trainer.model.training
    # The policy differs from the reference by now, so the pairs are no copies.
    assert callback.baseline.name == "reference" and callback.baseline.decoding.startswith("temperature 1")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_baseline_is_the_reference_and_the_policy_the_one_that_trains(algorithm, tmp_path):
    trainer = make_trainer(algorithm, tmp_path, max_steps=2, learning_rate=0.3)
    callback = add(trainer, every=2, folder=tmp_path / "pairs")
    trainer.train()
    tokenizer = tiny_tokenizer()
    start = generate(tiny_gpt2(tokenizer), tokenizer, PROMPTS, name="x", max_new_tokens=6, show_progress=False)
    assert callback.baseline.completions == start.completions
    model = trainer.accelerator.unwrap_model(trainer.model)
    now = generate(model, tokenizer, PROMPTS, name="x", max_new_tokens=6, show_progress=False)
    pairs = [json.loads(line) for line in (tmp_path / "pairs" / "step-2" / "pairs.jsonl").read_text().splitlines()]
    assert [pair["a"] for pair in pairs] == now.completions != start.completions
    expected = [{"first": 1.0, "second": 0.0, "tie": 0.5}[shorter("", x["a"], x["b"])] for x in pairs]
    assert logged(trainer, "win_rate") == [sum(expected) / 4]
    assert not (tmp_path / "pairs" / "step-1").exists()


def test_a_given_baseline_in_another_order_is_judged_at_each_evaluation_and_lands_in_the_metrics_of_the_run(tmp_path):
    texts = dict.fromkeys(PROMPTS, "x" * 400)
    baseline = System("human", PROMPTS[::-1], list(texts.values()))
    trainer = make_trainer("ppo", tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2)
    callback = add(trainer, every=None, baseline=baseline)
    run = RunFolder(tmp_path / "run")
    trainer.add_callback(MetricsFile(run))
    trainer.train()
    assert callback.baseline.prompts == PROMPTS
    rows = [row for row in run.read_metrics() if "win_rate" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["win_rate"] == 1.0 and row["win_rate/invalid"] == 0 for row in rows)
    assert rows[0]["win_rate/baseline_words"] == 1


def test_a_policy_whose_every_weight_trains_is_compared_with_its_reference_model_or_asks_for_a_baseline(tmp_path):
    trainer = make_trainer("grpo", tmp_path / "kl", lora=None, max_steps=1)
    add(trainer)
    trainer.train()
    assert len(logged(trainer, "win_rate")) == 1
    trainer = make_trainer("grpo", tmp_path / "none", lora=None, max_steps=1, kl=0.0)
    add(trainer)
    with pytest.raises(ValueError, match="give WinRateCallback its argument baseline"):
        trainer.train()


def test_a_run_that_goes_on_from_a_checkpoint_logs_the_same_rates(tmp_path):
    def make(folder, steps=4):
        trainer = make_trainer(
            "ppo", tmp_path / folder, max_steps=steps, learning_rate=0.1, save_strategy="steps", save_steps=2
        )
        add(trainer, every=2)
        return trainer

    whole = make("whole")
    whole.train()
    first = make("cut")
    first.train()
    again = make("cut")
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    expected = logged(whole, "win_rate")
    assert len(expected) == 2 and logged(again, "win_rate") == expected
    assert all(torch.equal(x, y) for x, y in zip(weights(whole).values(), weights(again).values(), strict=True))


def test_a_judge_out_of_reach_costs_a_warning_one_that_fails_ends_the_run_and_one_that_babbles_is_counted(tmp_path):
    class Away:
        name = "away"

        def __call__(self, comparisons):
            raise ConnectionError("nobody listens")

    trainer = make_trainer("grpo", tmp_path / "away", max_steps=1)
    trainer.add_callback(WinRateCallback(trainer, PROMPTS, Away(), max_new_tokens=6, every=1))
    with pytest.warns(UserWarning, match="no win rate at step 1: nobody listens"):
        trainer.train()
    assert logged(trainer, "win_rate") == []

    def broken(prompt, first, second):
        raise KeyError("x")

    trainer = make_trainer("grpo", tmp_path / "broken", max_steps=1)
    trainer.add_callback(WinRateCallback(trainer, PROMPTS, FunctionJudge(broken), max_new_tokens=6, every=1))
    with pytest.raises(KeyError):
        trainer.train()
    trainer = make_trainer("grpo", tmp_path / "babble", max_steps=1)
    trainer.add_callback(WinRateCallback(trainer, PROMPTS, FunctionJudge(lambda *x: "both"), max_new_tokens=6, every=1))
    with pytest.warns(UserWarning, match="no pair has a verdict at step 1; the judge said \"returned 'both'\""):
        trainer.train()
    assert logged(trainer, "win_rate") == [] and logged(trainer, "win_rate/invalid") == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"baseline": System("b", ["other"], ["x"])}, "must answer the same prompts"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_construction(tmp_path, settings, message):
    trainer = make_trainer("grpo", tmp_path)
    with pytest.raises(ValueError, match=message):
        add(trainer, **settings)
    with pytest.raises(ValueError, match="the prompts must be different ones"):
        WinRateCallback(trainer, ["p", "p"], FunctionJudge(shorter), max_new_tokens=1)


def test_prompts_without_room_are_refused_before_the_first_step(tmp_path):
    trainer = make_trainer("grpo", tmp_path)
    add(trainer, max_new_tokens=62)
    with pytest.raises(ValueError, match="more than the 64 positions of the model"):
        trainer.train()
    assert trainer.state.global_step == 0


SCRIPT = """
import json, sys
from pathlib import Path
from scope_rlhf.runtime import leave_process_group
from tests.evaluation.test_callback import PROMPTS, add
from tests.trainers.makers import logged, make_trainer
folder = Path(sys.argv[1])
trainer = make_trainer("ppo", folder / "run", max_steps=2, learning_rate=0.0)
rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
callback = add(trainer)
trainer.train()
result = {"rates": logged(trainer, "win_rate"), "baseline": callback.baseline.completions}
(folder / f"{world}-{rank}.json").write_text(json.dumps(result))
del callback, trainer
leave_process_group()
"""


@pytest.mark.slow
def test_two_processes_log_what_one_does(tmp_path):
    root = Path(__file__).parents[2]
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
        command = [sys.executable, *(torchrun if processes > 1 else []), str(tmp_path / "script.py"), str(tmp_path)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("1-0", "2-0", "2-1"))
    assert len(one["baseline"]) == 4
    # At rate 0 the policy stays the reference.
    assert one == first == second and one["rates"] == [0.5, 0.5]
