"""The remote teacher against a real server that gives a tiny GPT-2's prompt log-probs, and fails as servers do."""

import math
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from scope_rlhf.runtime import endpoint
from scope_rlhf.trainers.remote_teacher import RemoteTeacher, TeacherEndpoint
from tests.tiny import SENTENCES, tiny_gpt2, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_gpt2(TOKENIZER).eval()
SEQUENCES = [TOKENIZER.encode(sentence) for sentence in SENTENCES]
STARTS = [1, 2, 3, len(SEQUENCES[3]) - 1, 1, 4]
MODEL_LOCK = threading.Lock()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.02)


def dense_log_probs(ids, start, temperature=1.0):
    """The oracle: cross-entropy of the logits at hand."""
    with torch.no_grad(), MODEL_LOCK:
        logits = MODEL(torch.tensor([ids])).logits[0, :-1].double() / temperature
    return (-cross_entropy(logits, torch.tensor(ids[1:]), reduction="none"))[start - 1 :].tolist()


def expected(temperature=1.0):
    return [dense_log_probs(ids, start, temperature) for ids, start in zip(SEQUENCES, STARTS, strict=True)]


def scored(body, honours_temperature=True):
    """Of each sent sequence: the log-prob of each token (None first), as a server's softmax gives it."""
    found = []
    for ids in body["prompt"]:
        with torch.no_grad(), MODEL_LOCK:
            logits = MODEL(torch.tensor([ids])).logits[0]
        table = (logits / (body["temperature"] if honours_temperature else 1.0)).log_softmax(-1)
        found.append([None, *(table[t - 1, ids[t]].item() for t in range(1, len(ids)))])
    return found


def vllm(body, text=TOKENIZER.decode, **options):
    """An answer of vLLM; JSON makes the keys of its dictionaries strings."""
    assert body["prompt_logprobs"] == 0 and body["max_tokens"] == 1
    choices = []
    for index, (ids, values) in enumerate(zip(body["prompt"], scored(body, **options), strict=True)):
        entries = [
            None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": text([token])}}
            for token, value in zip(ids, values, strict=True)
        ]
        choices.append({"index": index, "text": " x", "logprobs": None, "prompt_logprobs": entries})
    return {"choices": choices, "usage": {"prompt_tokens": sum(map(len, body["prompt"]))}}


def echo(body, generated=True, text=TOKENIZER.decode, **options):
    """An answer in the form of OpenAI's first models; `generated`: with the token that max_tokens=1 asks for."""
    assert body["echo"] is True and body["logprobs"] == 1
    choices = []
    for index, (ids, values) in enumerate(zip(body["prompt"], scored(body, **options), strict=True)):
        tokens = [text([token]) for token in ids] + ["?"] * generated
        logprobs = {"tokens": tokens, "token_logprobs": values + [-1.0] * generated, "text_offset": []}
        choices.append({"index": index, "text": "".join(tokens), "logprobs": logprobs})
    return {"choices": choices}


def answering(change=lambda payload: payload, form=vllm, **options):
    return lambda number, body: (200, change(form(body, **options)), {})


def teacher_of(server, cache=None, **settings):
    temperature = settings.pop("temperature", 1.0)
    url = server if isinstance(server, str) else server.url
    settings = {f"teacher_{name}": value for name, value in settings.items()}
    return RemoteTeacher(TeacherEndpoint(url, "teacher-1", temperature=temperature, **settings), TOKENIZER, cache)


def assert_close(found, wanted):
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for row, wanted_row in zip(found, wanted, strict=True):
        assert row == pytest.approx(wanted_row, abs=1e-5)


@pytest.mark.parametrize("form", [vllm, echo], ids=["prompt_logprobs", "echo"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_local_forward_pass_from_the_start_on(serve, form, temperature):
    server = serve(answering(form=form))
    teacher = teacher_of(server, api="echo" if form is echo else "prompt_logprobs", temperature=temperature)
    teacher.probe()
    assert_close(teacher.log_probs(SEQUENCES, STARTS), expected(temperature))
    path, body, _ = server.requests[-1]
    assert path == "/v1/completions" and body["model"] == "teacher-1" and body["prompt"] == SEQUENCES


@pytest.mark.parametrize("generated", [False, True])
def test_an_echo_may_end_with_the_generated_token_or_without_it(serve, generated):
    teacher = teacher_of(serve(answering(form=echo, generated=generated)), api="echo")
    assert_close(teacher.log_probs(SEQUENCES, STARTS), expected())


def test_choices_in_another_order_and_batches_answered_in_another_order_come_back_in_order(serve):
    busy, most = [0], [0]
    lock = threading.Lock()

    def answer(number, body):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.1 if number == 0 else 0.03)
        payload = vllm(body)
        payload["choices"].reverse()
        with lock:
            busy[0] -= 1
        return 200, payload, {}

    server = serve(answer)
    teacher = teacher_of(server, request_batch_size=2, concurrency=3)
    assert_close(teacher.log_probs(SEQUENCES, STARTS), expected())
    assert sorted(len(body["prompt"]) for _, body, _ in server.requests) == [2, 2, 2] and teacher.requests == 3
    assert 1 < most[0] <= 3


def test_the_same_sequence_is_asked_for_once_and_a_start_at_the_end_asks_nothing(serve):
    server = serve(answering())
    ids = SEQUENCES[0]
    found = teacher_of(server).log_probs([ids, ids, SEQUENCES[1], ids], [2, 2, 1, len(ids)])
    assert_close(found, [dense_log_probs(ids, 2)] * 2 + [dense_log_probs(SEQUENCES[1], 1), []])
    assert [body["prompt"] for _, body, _ in server.requests] == [[ids, SEQUENCES[1]]]


@pytest.mark.parametrize("start", [0, 99, -1])
def test_a_start_outside_its_sequence_is_refused(serve, start):
    with pytest.raises(ValueError, match=rf"a start must lie in \[1, \d+\].*got {start}"):
        teacher_of(serve(answering())).log_probs(SEQUENCES[:1], [start])


def test_429_500_and_malformed_answers_are_tried_again(serve):
    failures = [(429, {}, {"Retry-After": "0.01"}), (500, "oops", {}), (200, "{not json", {}), (200, {}, {})]

    def answer(number, body):
        return failures[number] if number < len(failures) else (200, vllm(body), {})

    server = serve(answer)
    assert_close(teacher_of(server).log_probs(SEQUENCES, STARTS), expected())
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("answer", "error", "message", "requests"),
    [
        ((500, "out of memory", {}), ConnectionError, "failed: status 500: out of memory.*--teacher_base_url", 3),
        ((501, "no", {}), ValueError, "gave no answer that can be read: status 501: no", 1),
        ((200, [], {}), ValueError, "gave no answer that can be read: no answer in status 200", 3),
        ((200, {"choices": [{"index": {}}]}, {}), ValueError, "gave no answer that can be read", 3),
    ],
)
def test_what_still_fails_after_the_retries_is_an_error(serve, answer, error, message, requests):
    server = serve(lambda number, body: answer)
    with pytest.raises(error, match=message):
        teacher_of(server, retries=2).log_probs(SEQUENCES, STARTS)
    assert len(server.requests) == requests


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_a_refusal_is_one_error_that_names_the_teachers_settings(serve, status):
    server = serve(lambda number, body: (status, {"error": "no such thing"}, {}))
    message = rf"the teacher at .* refused the request with status {status}: .*no such thing.*--teacher_base_url, "
    message += r"--teacher_model_name_or_path, --teacher_api and the key in OPENAI_API_KEY"
    with pytest.raises(ValueError, match=message) as caught:
        teacher_of(server).log_probs(SEQUENCES, STARTS)
    assert len(server.requests) == 1
    size = "6 sequences of at most" in str(caught.value) and "lower --teacher_request_batch_size" in str(caught.value)
    assert size == (status in (400, 413))


def test_after_a_refusal_the_other_requests_are_not_sent(serve):
    server = serve(lambda number, body: (401, {}, {}))
    with pytest.raises(ValueError, match="status 401"):
        teacher_of(server, request_batch_size=1, concurrency=2).log_probs([[1, 2, i] for i in range(60)], [1] * 60)
    assert len(server.requests) < 30


def test_a_server_that_nobody_runs_is_a_connection_error():
    with pytest.raises(ConnectionError, match="the teacher at .* failed: .*Check --teacher_base_url"):
        teacher_of("http://127.0.0.1:9/v1", retries=1).probe()


def test_the_key_is_demanded_of_other_machines_under_the_teachers_flag(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="the teacher at .* needs a key: .*OPENAI_API_KEY.*--teacher_api_key_variable"):
        teacher_of("https://api.example.com/v1")


def changed(position, entry=None, **fields):
    """A change of one position of the second sequence: its whole entry, or fields of it."""

    def change(payload):
        entries = payload["choices"][1]["prompt_logprobs"]
        if entry is not None:
            entries[position] = entry
        else:
            (of_token,) = entries[position].values()
            of_token.update(fields)
        return payload

    return change


def without_prompt_logprobs(payload):
    for choice in payload["choices"]:
        del choice["prompt_logprobs"]
    return payload


def cut(payload):
    payload["choices"][1]["prompt_logprobs"].pop(1)
    return payload


def lacking(payload):
    payload["choices"].pop(1)
    return payload


def added(payload):
    payload["choices"].append(payload["choices"][0])
    return payload


def doubled(payload):
    payload["choices"][1]["index"] = 0
    return payload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_prompt_logprobs, "without log-probs of the prompt.*`vllm serve teacher-1`.*--teacher_api echo"),
        (cut, "gave 3 prompt log-probs for 4 token ids: the prompt is cut"),
        (lacking, r"answered choices \[0, 2, 3, 4, 5\] to 6 sequences"),
        (added, r"answered choices \[0, 1, 2, 3, 4, 5\] to 6 sequences"),
        (doubled, r"answered choices \[0, 2, 3, 4, 5\] to 6 sequences"),
        (changed(2, {"7": {"logprob": -1.0}}), "gave no log-prob of token .* at position 2, but .*another tokenizer"),
        (changed(2, {}), "gave no log-prob of token .* at position 2"),
        (changed(1, "x"), "gave no log-prob of token .* at position 1, but x"),
        (changed(3, decoded_token=" zebra"), "as ' zebra', the student's tokenizer as ' film': it has another token"),
        (changed(1, decoded_token="zebra"), "knows token .* as 'zebra'"),
        (changed(2, decoded_token="token_id:1"), "as 'token_id:1'"),
        (changed(2, logprob=math.nan), "gave nan as the log-prob of token"),
        (changed(2, logprob=-math.inf), "gave -inf as the log-prob"),
        (changed(2, logprob=-9999.0), "gave -9999.0 as the log-prob"),
        (changed(2, logprob=None), "gave None as the log-prob"),
        (changed(2, logprob="-1"), "gave '-1' as the log-prob"),
        (changed(2, logprob=False), "gave False as the log-prob"),
        (changed(2, logprob=3.5), "gave 3.5 as the log-prob.*--logprobs-mode raw_logprobs"),
    ],
)
def test_a_wrong_answer_is_an_error_and_never_a_number(serve, change, message):
    server = serve(answering(change))
    assert len(SEQUENCES[1]) == 4 and STARTS[1] == 2
    with pytest.raises(ValueError, match=message):
        teacher_of(server).log_probs(SEQUENCES, STARTS)
    assert len(server.requests) == 1


def test_a_log_prob_before_the_start_may_be_anything(serve):
    teacher = teacher_of(serve(answering(changed(1, logprob=None))))
    assert_close(teacher.log_probs(SEQUENCES, STARTS), expected())


def echo_changed(**fields):
    def change(payload):
        payload["choices"][1]["logprobs"].update(fields)
        return payload

    return change


def not_repeated(payload):
    for choice in payload["choices"]:
        choice["logprobs"] = {"tokens": ["?"], "token_logprobs": [-1.0]}
    return payload


TEXTS = [TOKENIZER.decode([token]) for token in SEQUENCES[1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (not_repeated, "without log-probs of the prompt.*--teacher_api prompt_logprobs"),
        (echo_changed(tokens=None), "without log-probs of the prompt"),
        (echo_changed(tokens=["a"] * 2, token_logprobs=[None, -1.0]), "repeated 2 tokens with 2 log-probs for 4 token"),
        (echo_changed(tokens=["a"] * 6, token_logprobs=[None, *[-1.0] * 5]), "repeated 6 tokens"),
        (echo_changed(tokens=["a"] * 3), "repeated 3 tokens with 5 log-probs"),
        # A server that puts a token of its own before the prompt, and generates nothing.
        (echo_changed(tokens=["<s>", *TEXTS], token_logprobs=[None, *[-1.0] * 4]), "knows token .* as 'a'"),
        (echo_changed(token_logprobs=[None, -1.0, None, -1.0, -1.0]), "gave None as the log-prob"),
    ],
)
def test_a_wrong_echo_is_an_error(serve, change, message):
    with pytest.raises(ValueError, match=message):
        teacher_of(serve(answering(change, form=echo)), api="echo").log_probs(SEQUENCES, STARTS)


@pytest.mark.parametrize(
    "text",
    [
        lambda ids: TOKENIZER.convert_ids_to_tokens(ids)[0],
        lambda ids: TOKENIZER.decode(ids).strip(),
        lambda ids: TOKENIZER.decode(ids).replace("\ufffd", "\u2013"),
        lambda ids: f"token_id:{ids[0]}",
        lambda ids: None,
        lambda ids: "\ufffd",
        lambda ids: "<0xE2>",
        lambda ids: "bytes:\\xe2",
    ],
    ids=["vocabulary", "stripped", "corrected", "id", "none", "replacement", "byte", "bytes"],
)
def test_no_way_of_writing_a_token_is_taken_for_another_tokenizer(serve, text):
    # Also a character of several tokens, a line end, and a special token that the server calls by another name.
    ids = [*TOKENIZER.encode("a \u2013 film\n \n"), TOKENIZER.eos_token_id, 5]
    end = [TOKENIZER.eos_token_id]
    teacher = teacher_of(serve(answering(text=lambda one: "[end]" if one == end else text(one))))
    assert_close(teacher.log_probs([ids], [1]), [dense_log_probs(ids, 1)])


def test_a_server_that_takes_no_notice_of_the_temperature_is_found_by_the_probe(serve):
    server = serve(answering(honours_temperature=False))
    teacher_of(server).probe()
    with pytest.raises(ValueError, match="same prompt log-probs at temperature 1 and at 0.6.*--teacher_temperature 1"):
        teacher_of(server, temperature=0.6).probe()
    assert [body["temperature"] for _, body, _ in server.requests] == [1.0, 1.0, 0.6]
    teacher_of(serve(answering()), temperature=1.01).probe()


def test_the_probe_sends_no_more_sequences_than_a_request_may_hold_and_works_for_any_vocabulary(serve):
    digits = Tokenizer(models.WordLevel({str(i): i for i in range(10)}, unk_token=None))
    teacher = RemoteTeacher(
        TeacherEndpoint(serve(answering(text=lambda ids: str(ids[0]))).url, "m", teacher_request_batch_size=1),
        PreTrainedTokenizerFast(tokenizer_object=digits),
    )
    teacher.probe()
    server = serve(answering())
    for size in (1, 2, 16):
        teacher_of(server, request_batch_size=size).probe()
    assert [len(body["prompt"]) for _, body, _ in server.requests] == [1, 2, 2]
    ids = server.requests[-1][1]["prompt"][0]
    assert max(ids) == len(TOKENIZER) - 1 and not set(ids) & set(TOKENIZER.all_special_ids)


def test_another_tokenizer_is_found_by_the_probe(serve):
    server = serve(answering(text=lambda ids: TOKENIZER.decode([(ids[0] + 1) % len(TOKENIZER)])))
    with pytest.raises(ValueError, match="knows token .* it has another tokenizer"):
        teacher_of(server).probe()


@pytest.mark.parametrize("api", ["prompt_logprobs", "echo"])
def test_a_server_that_ignores_the_question_for_log_probs_is_found_by_the_probe(serve, api):
    payload = {"choices": [{"index": i, "text": "x", "logprobs": None} for i in range(2)]}
    with pytest.raises(ValueError, match=r"without log-probs of the prompt.*vllm serve teacher-1"):
        teacher_of(serve(lambda number, body: (200, payload, {})), api=api).probe()


def test_the_cache_answers_a_second_call_and_another_process_without_a_request(serve, tmp_path):
    server = serve(answering())
    cache = tmp_path / "new" / "teacher.sqlite"
    first = teacher_of(server, cache, request_batch_size=4).log_probs(SEQUENCES, STARTS)
    asked = len(server.requests)
    teacher = teacher_of(server, cache)
    assert teacher.log_probs(SEQUENCES, STARTS) == first
    assert len(server.requests) == asked == 2 and teacher.cached == 6 and teacher.requests == 0
    # What decides the answer is part of the key.
    teacher.log_probs(SEQUENCES[:1], [2])
    teacher_of(server, cache, temperature=0.6).log_probs(SEQUENCES[:1], STARTS[:1])
    assert len(server.requests) == asked + 2
    assert_close(teacher.log_probs(SEQUENCES[:2], STARTS[:2]), expected()[:2])


def test_the_probe_asks_the_server_whatever_the_cache_holds(serve, tmp_path):
    server = serve(answering())
    for count in (1, 2):
        teacher_of(server, tmp_path / "teacher.sqlite").probe()
        assert len(server.requests) == count


def test_answers_before_a_failure_are_kept_and_only_the_others_are_asked_again(serve, tmp_path):
    down = [True]

    def answer(number, body):
        return (503, "gone", {}) if down[0] and number >= 2 else (200, vllm(body), {})

    server = serve(answer)
    settings = {"request_batch_size": 2, "concurrency": 1, "retries": 0}
    with pytest.raises(ConnectionError, match="status 503: gone"):
        teacher_of(server, tmp_path / "teacher.sqlite", **settings).log_probs(SEQUENCES, STARTS)
    down[0] = False
    teacher = teacher_of(server, tmp_path / "teacher.sqlite", **settings)
    assert_close(teacher.log_probs(SEQUENCES, STARTS), expected())
    assert teacher.cached == 4 and teacher.requests == 1


def test_a_killed_process_leaves_what_was_answered(serve, tmp_path):
    victim = []

    def answer(number, body):
        if victim and number == 2:
            os.kill(victim.pop().pid, signal.SIGKILL)
        return 200, vllm(body), {}

    server = serve(answer)
    settings = {"request_batch_size": 2, "concurrency": 1}

    def score():
        teacher_of(server, tmp_path / "teacher.sqlite", **settings).log_probs(SEQUENCES, STARTS)

    process = multiprocessing.get_context("fork").Process(target=score)
    victim.append(process)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    teacher = teacher_of(server, tmp_path / "teacher.sqlite", **settings)
    assert_close(teacher.log_probs(SEQUENCES, STARTS), expected())
    assert teacher.cached == 4 and teacher.requests == 1


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("base_url", "127.0.0.1:8000", "teacher_base_url must begin with http.*--teacher_base_url"),
        ("api", "chat", "teacher_api must be prompt_logprobs or echo.*--teacher_api"),
        ("timeout", 0, "teacher_timeout must be positive.*--teacher_timeout"),
        ("retries", -1, "teacher_retries must be at least 0.*--teacher_retries"),
        ("concurrency", 0, "teacher_concurrency must be at least 1.*--teacher_concurrency"),
        ("request_batch_size", 0, "teacher_request_batch_size must be at least 1.*--teacher_request_batch_size"),
        ("temperature", 0.0, "teacher_temperature must be positive.*--teacher_temperature"),
        ("temperature", math.nan, "teacher_temperature must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, value, message):
    settings = {"teacher_base_url": "http://127.0.0.1/v1", "teacher_model_name_or_path": "m"}
    name = setting if setting == "temperature" else f"teacher_{setting}"
    with pytest.raises(ValueError, match=message):
        TeacherEndpoint(**{**settings, name: value})
