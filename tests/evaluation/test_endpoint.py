"""The endpoint judge against a real server on this machine that fails in all the ways servers do."""

import json
import time

import pytest

from scope_rlhf.evaluation.endpoint import EndpointConfig, EndpointJudge
from scope_rlhf.evaluation.judges import Comparison
from scope_rlhf.runtime import endpoint


def chat(words, **usage):
    return {"choices": [{"message": {"content": words}}], "usage": usage}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.05)


def judge_of(server, folder, **settings):
    url = server if isinstance(server, str) else server.url
    return EndpointJudge(EndpointConfig(url, "judge-1", **settings), folder / "cache.jsonl")


PAIRS = [Comparison(f"text {i}", f"one {i}", f"two {i}") for i in range(6)]


def shorter_text_number(body):
    return int(body["messages"][0]["content"].split("### Text\ntext ")[1].split("\n")[0])


def test_answers_come_in_order_with_words_and_a_log_of_tokens_and_cost(serve, tmp_path):
    def answer(number, body):
        i = shorter_text_number(body)
        time.sleep(0.02 * (5 - i))  # the last question is answered first
        return 200, chat(f"Because {i}.\nPreferred: {'AB'[i % 2]}", prompt_tokens=100, completion_tokens=10), {}

    server = serve(answer)
    judge = judge_of(server, tmp_path, price_prompt=2.0, price_completion=8.0)
    judgements = judge(PAIRS)
    assert [j.verdict for j in judgements] == ["first", "second"] * 3
    assert judgements[3].words.startswith("Because 3.")
    path, body, _ = server.requests[0]
    assert path == "/v1/chat/completions" and body["temperature"] == 0.0 and body["model"] == "judge-1"
    cost = judge.cost()
    assert cost["requests"] == 6 and cost["prompt_tokens"] == 600 and cost["failed"] == 0
    assert cost["cost"] == pytest.approx(6 * (100 * 2 + 10 * 8) / 1e6)


def test_429_500_malformed_json_and_a_timeout_are_tried_again(serve, tmp_path):
    def answer(number, body):
        if number == 0:
            return 429, {"error": "slow down"}, {"Retry-After": "0.01"}
        if number == 1:
            return 500, "oops", {}
        if number == 2:
            return 200, "{not json", {}
        if number == 3:
            return 200, {"choices": []}, {}
        if number == 4:
            time.sleep(0.6)
        return 200, chat("Preferred: A"), {}

    server = serve(answer)
    judge = judge_of(server, tmp_path, timeout=0.3)
    assert judge(PAIRS[:1])[0].verdict == "first"
    assert len(server.requests) == 6
    statuses = [json.loads(line)["status"] for line in judge.log.read_text().splitlines()]
    assert statuses == [429, 500, 200, 200, 0, 200]


def test_a_request_that_keeps_failing_is_invalid_with_its_reason_and_asked_again_by_the_next_run(serve, tmp_path):
    broken = {"on": True}

    def answer(number, body):
        if broken["on"] and shorter_text_number(body) == 2:
            return 503, "overloaded", {}
        return 200, chat("Preferred: A"), {}

    server = serve(answer)
    judgements = judge_of(server, tmp_path, retries=2)(PAIRS)
    assert [j.verdict for j in judgements] == ["first", "first", "invalid", "first", "first", "first"]
    assert "status 503: overloaded" in judgements[2].words
    assert len(server.requests) == 5 + 3
    broken["on"] = False
    assert judge_of(server, tmp_path, retries=2)(PAIRS)[2].verdict == "first"
    assert len(server.requests) == 5 + 3 + 1  # the five others come from the cache


def test_answers_without_a_verdict_are_invalid_and_not_asked_again(serve, tmp_path):
    server = serve(lambda number, body: (200, chat("I cannot say." if number else None), {}))
    assert [j.verdict for j in judge_of(server, tmp_path)(PAIRS[:3])] == ["invalid"] * 3
    assert [j.verdict for j in judge_of(server, tmp_path)(PAIRS[:3])] == ["invalid"] * 3
    assert len(server.requests) == 3


def test_a_killed_run_resumes_from_its_cache_also_where_the_last_line_is_cut(serve, tmp_path):
    server = serve(lambda number, body: (200, chat("Preferred: B"), {}))
    judge_of(server, tmp_path)(PAIRS[:4])
    cache = tmp_path / "cache.jsonl"
    cache.write_bytes(cache.read_bytes()[:-20])
    judgements = judge_of(server, tmp_path)(PAIRS)
    assert [j.verdict for j in judgements] == ["second"] * 6
    assert len(server.requests) == 4 + 1 + 2
    assert len(cache.read_text().splitlines()) == 6


def test_another_model_wording_or_order_is_another_question(serve, tmp_path):
    server = serve(lambda number, body: (200, chat("Preferred: A"), {}))
    judge_of(server, tmp_path)(PAIRS[:1])
    judge_of(server, tmp_path)([Comparison("text 0", "two 0", "one 0")])
    judge_of(server, tmp_path, wording="{prompt} {first} {second} ### Text\ntext 0\n?")(PAIRS[:1])
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_one_error_after_one_request(serve, tmp_path, status):
    server = serve(lambda number, body: (status, {"error": "no such model"}, {}))
    with pytest.raises(ValueError, match=rf"refused the request with status {status}: .*no such model.*--judge_model"):
        judge_of(server, tmp_path)(PAIRS)
    assert len(server.requests) == 1


def test_a_question_that_is_refused_is_invalid_where_others_are_taken_and_a_key_that_is_withdrawn_stops_the_rest(
    serve, tmp_path
):
    def answer(number, body):
        return (400, {"error": "too long"}, {}) if shorter_text_number(body) == 2 else (200, chat("Preferred: A"), {})

    judgements = judge_of(serve(answer), tmp_path / "one")(PAIRS)
    assert [j.verdict for j in judgements] == ["first", "first", "invalid", "first", "first", "first"]
    assert "too long" in judgements[2].words
    many = [Comparison(f"text {i}", "one", "two") for i in range(40)]
    server = serve(lambda number, body: (200, chat("Preferred: A"), {}) if number < 3 else (401, {}, {}))
    with pytest.raises(ValueError, match="refused the request with status 401"):
        judge_of(server, tmp_path / "two", concurrency=2)(many)
    assert len(server.requests) < 10  # the others are not sent


def test_a_server_that_is_gone_is_an_error_after_ten_failures_in_a_row_and_what_was_answered_is_kept(serve, tmp_path):
    many = [Comparison(f"text {i}", "one", "two") for i in range(40)]
    up = {"until": 8}

    def answer(number, body):
        return (200, chat("Preferred: A"), {}) if number < up["until"] else (503, "gone", {})

    server = serve(answer)
    with pytest.raises(ConnectionError, match=r"failed 1\d times in a row .*status 503: gone.*start again"):
        judge_of(server, tmp_path, retries=0, concurrency=2)(many)
    assert 18 <= len(server.requests) < 25
    up["until"] = 1000
    before = len(server.requests)
    assert {j.verdict for j in judge_of(server, tmp_path)(many)} == {"first"}
    assert len(server.requests) - before == 32


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = serve(lambda number, body: (200, chat("Preferred: A"), {}))
    assert judge_of(server, tmp_path, retries=0)(PAIRS[:1])[0].verdict == "first"


def test_an_endpoint_that_nobody_listens_on_is_one_error(tmp_path):
    with pytest.raises(ConnectionError, match="did not answer the first question .*Check --judge_base_url"):
        judge_of("http://127.0.0.1:9/v1", tmp_path, retries=1)(PAIRS)


def test_the_key_comes_from_the_environment_and_is_demanded_of_other_machines_only(serve, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="needs a key: set the environment variable OPENAI_API_KEY"):
        judge_of("https://api.example.com/v1", tmp_path)
    monkeypatch.setenv("MY_KEY", "secret")
    server = serve(lambda number, body: (200, chat("Preferred: A"), {}))
    judge_of(server, tmp_path, api_key_variable="MY_KEY")(PAIRS[:1])
    assert server.requests[0][2]["Authorization"] == "Bearer secret"
    assert "secret" not in (tmp_path / "cache.jsonl").read_text() + (tmp_path / "cache.log.jsonl").read_text()


def test_the_completions_api_sends_a_prompt(serve, tmp_path):
    server = serve(lambda number, body: (200, {"choices": [{"text": " so Preferred: tie"}]}, {}))
    assert judge_of(server, tmp_path, api="completions")(PAIRS[:1])[0].verdict == "tie"
    path, body, _ = server.requests[0]
    assert path == "/v1/completions" and "### Summary A\none 0" in body["prompt"] and "messages" not in body


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "api.openai.com"}, "must begin with http:// or https://"),
        ({"api": "responses"}, "judge_api must be chat or completions"),
        ({"concurrency": 0}, "judge_concurrency must be at least 1"),
        ({"timeout": 0}, "judge_timeout must be positive"),
        ({"wording": "which?"}, "--judge_wording lacks"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig(**{"base_url": "http://127.0.0.1/v1", "model": "m", **settings})


@pytest.mark.parametrize(
    "payload",
    [
        "[]",
        "null",
        '"hello"',
        {**chat("Preferred: A"), "usage": "none"},
        {**chat("Preferred: A"), "usage": {"prompt_tokens": "x"}},
    ],
)
def test_an_answer_of_any_shape_is_tried_again_or_read_and_never_a_traceback(serve, tmp_path, payload):
    server = serve(lambda number, body: (200, payload if number == 0 else chat("Preferred: A"), {"Retry-After": "nan"}))
    assert judge_of(server, tmp_path)(PAIRS[:1])[0].verdict == "first"


def test_a_line_end_behind_the_key_is_no_part_of_it_and_a_cache_row_without_key_is_passed_over(
    serve, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    (tmp_path / "cache.jsonl").write_text('{"words": "Preferred: B"}\n')
    server = serve(lambda number, body: (200, chat("Preferred: A"), {}))
    assert judge_of(server, tmp_path)(PAIRS[:1])[0].verdict == "first"
    assert server.requests[0][2]["Authorization"] == "Bearer sk-1"
