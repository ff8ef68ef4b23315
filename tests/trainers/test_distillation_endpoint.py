"""Distillation from a teacher behind an endpoint: a server of the test's own that scores with a tiny GPT-2."""

import threading

import pytest
import torch

from scope_rlhf.runtime import endpoint
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import dense_log_probs, disturb, make_distillation, plain_gpt2, rollout, script, weights
from tests.trainers.test_distillation import VERDICTS
from tests.trainers.two_process_script import COMPLETIONS

TOKENIZER = tiny_tokenizer()
MODEL, LOCK = plain_gpt2(seed=1), threading.Lock()


@pytest.fixture
def server(serve, monkeypatch):
    """As vLLM answers; after `server.broken = True` with status 500."""
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.01)

    def answer(number, body):
        if started.broken:
            return 500, "out of memory", {}
        choices = []
        for index, ids in enumerate(body["prompt"]):
            with LOCK, torch.no_grad():
                table = (MODEL(torch.tensor([ids])).logits[0] / body["temperature"]).log_softmax(-1)
            values = table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
            entries = [
                {str(token): {"logprob": value, "decoded_token": TOKENIZER.decode([token])}}
                for token, value in zip(ids[1:], values, strict=True)
            ]
            choices.append({"index": index, "prompt_logprobs": [None, *entries]})
        return 200, {"choices": choices}, {}

    started = serve(answer)
    started.broken = False
    return started


def remote(folder, server, **settings):
    return make_distillation(
        folder, VERDICTS, teacher_base_url=server.url, teacher_model_name_or_path="teacher", teacher_retries=1,
        **settings,
    )  # fmt: skip


def test_log_probs_come_from_the_endpoint_by_token_ids_without_padding(tmp_path, monkeypatch, server):
    trainer = remote(tmp_path, server, temperature=0.7, teacher_temperature=1.2, teacher_request_batch_size=3)
    script(trainer, monkeypatch, COMPLETIONS)
    probes = len(server.requests)
    inputs = rollout(trainer)
    mask = inputs["completion_mask"].bool()
    found = trainer.teacher.log_probs(inputs)
    assert (found.double() - dense_log_probs(MODEL, inputs, 1.2))[mask].abs().max() < 1e-4
    sent = [ids for _, body, _ in server.requests[probes:] for ids in body["prompt"]]
    rows = [
        ids[attended.bool()].tolist()
        for ids, attended in zip(
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1), strict=True,
        )
    ]  # fmt: skip
    assert sorted(sent) == sorted(rows)  # the second call was answered by the cache


def test_an_empty_completion_is_not_sent(tmp_path, monkeypatch, server):
    trainer = remote(tmp_path, server, mask_truncated_completions=True, teacher_cache=False)
    script(trainer, monkeypatch, COMPLETIONS)
    probes = len(server.requests)
    inputs = rollout(trainer)
    assert inputs["completion_mask"][[0, 3]].sum() == 0
    assert sum(len(body["prompt"]) for _, body, _ in server.requests[probes:]) == 6
    assert inputs["advantages"].isfinite().all() and not (tmp_path / "teacher_cache").exists()


def test_a_run_makes_the_updates_of_the_run_with_the_same_teacher_on_this_machine(tmp_path, server):
    runs = []
    for name in ("remote", "local"):
        settings = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.5}
        if name == "remote":
            trainer = remote(tmp_path / name, server, **settings)
        else:
            trainer = make_distillation(
                tmp_path / name, VERDICTS, teacher_model=tiny_gpt2(TOKENIZER, seed=1), **settings
            )
        disturb(trainer.model, "lora_B")
        start = weights(trainer)
        trainer.train()
        runs.append(weights(trainer))
    assert max((w - start[n]).abs().max() for n, w in runs[0].items()) > 1e-2
    assert all(torch.allclose(w, runs[1][n], atol=1e-5) for n, w in runs[0].items())


def test_an_endpoint_that_fails_in_the_run_stops_it_before_the_update(tmp_path, server):
    trainer = remote(tmp_path, server, max_steps=1)
    before, server.broken = weights(trainer), True
    with pytest.raises(ConnectionError, match="the teacher at .* failed: status 500: out of memory"):
        trainer.train()
    assert trainer.state.global_step == 0 and all(torch.equal(w, before[n]) for n, w in weights(trainer).items())


def test_an_endpoint_that_fails_at_the_start_stops_the_run_at_construction(tmp_path, server):
    server.broken = True
    with pytest.raises(ConnectionError, match="Check --teacher_base_url"):
        remote(tmp_path, server)
