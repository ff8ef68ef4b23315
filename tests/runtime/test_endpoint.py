"""The client of an OpenAI-compatible endpoint; its users' tests have the failures of servers."""

import time

import pytest

from scope_rlhf.runtime import endpoint
from scope_rlhf.runtime.endpoint import EndpointClient, Failed


def client_of(url, note=lambda row: None, **settings):
    settings = {"timeout": 5.0, "retries": 3, **settings}
    return EndpointClient("the oracle", "oracle_", "oracle_name", url, "ORACLE_KEY", note=note, **settings)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:80", True),
        ("https://localhost.example.com/v1", False),
        ("https://example.com/localhost", False),
    ],
)
def test_a_server_on_this_machine_needs_no_key_and_another_one_does(url, local, monkeypatch):
    monkeypatch.delenv("ORACLE_KEY", raising=False)
    if local:
        assert client_of(url).local
        return
    message = "the oracle at .* needs a key: set the environment variable ORACLE_KEY .*--oracle_api_key_variable"
    with pytest.raises(ValueError, match=message):
        client_of(url)


def test_waits_are_those_that_the_server_asks_for_up_to_the_longest(serve, monkeypatch):
    waited = []
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 7.0)
    monkeypatch.setattr(time, "sleep", waited.append)
    asked = ["2.5", "3600", "-1", "soon", None]
    headers = [{} if value is None else {"Retry-After": value} for value in asked]
    server = serve(lambda number, body: (503, "busy", headers[number] if number < 5 else {}))
    rows = []
    with pytest.raises(Failed, match="status 503: busy") as caught:
        client_of(server.url, rows.append, retries=6).post("completions", {}, dict)
    assert caught.value.status == 503 and [row["status"] for row in rows] == [503] * 7
    assert waited[:3] == [2.5, 7.0, 0.0]
    # Without a number: 2 ** attempt seconds or up to half less, so that clients do not come back together.
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waited[3:], (7.0, 7.0, 7.0), strict=True))


def test_a_refusal_names_the_settings_of_its_user_and_a_reader_s_own_error_is_not_tried_again(serve):
    server = serve(lambda number, body: (404, "no", {}) if number == 0 else (200, {}, {}))
    with pytest.raises(
        ValueError, match="the oracle at .*--oracle_base_url, --oracle_name, --oracle_api and the key in"
    ):
        client_of(server.url).post("completions", {}, dict)

    def read(body):
        raise ValueError("not what was asked")

    with pytest.raises(ValueError, match="not what was asked"):
        client_of(server.url).post("completions", {}, read)
    assert len(server.requests) == 2
