"""Model names: embedded, local or Hub; and Hub errors that come fast and say what to do."""

import socket
import threading
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoConfig

from scope_rlhf import hub
from scope_rlhf.hub import explain_hub_errors, explain_model_errors, explain_push_errors, hub_reachable
from scope_rlhf.models import embedded
from scope_rlhf.models.embedded import EMBEDDED_MODELS, resolve_model_path

SETTING = "--model_name_or_path"


@pytest.fixture
def closed_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_an_embedded_name_is_a_folder_with_a_model(name):
    path = resolve_model_path(name, SETTING)
    assert AutoConfig.from_pretrained(path).vocab_size > 0


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_folder_with_a_model_or_an_adapter_is_itself(tmp_path, file):
    (tmp_path / file).write_text("{}")
    assert resolve_model_path(str(tmp_path), SETTING) == str(tmp_path)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_model_path("~/model", SETTING) == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["gpt2", "lvwerra/gpt2-imdb", "EleutherAI/gpt-j-6b"])
def test_a_hub_name_stays_as_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model_path(name, SETTING) == name


@pytest.mark.parametrize("name", ["./model", "~/no-such-model", "runs/imdb/model", "/no/such/folder", "../model"])
def test_a_path_that_does_not_exist_is_no_hub_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{SETTING}='{name}' does not exist: expected a folder.*config.json") as error:
        resolve_model_path(name, SETTING)
    assert "\n" not in str(error.value)


def test_a_path_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").touch()
    (tmp_path / "gpt2").mkdir()
    for name in ("weights.bin", "gpt2", str(tmp_path)):
        with pytest.raises(ValueError, match=f"{SETTING}='{name}' is not a model folder"):
            resolve_model_path(name, SETTING)


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="is empty"):
        resolve_model_path("", SETTING)


def test_an_unknown_embedded_name_lists_those_there_are():
    with pytest.raises(ValueError, match="'embedded/gpt3' is no embedded model.*embedded/reviews-gpt2"):
        resolve_model_path("embedded/gpt3", SETTING)


def test_an_installation_without_the_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="this installation has no .*reviews_gpt2"):
        resolve_model_path("embedded/reviews-gpt2", SETTING)


def test_without_a_network_a_hub_model_fails_within_seconds(monkeypatch, closed_port):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    started = time.perf_counter()
    name = "nobody/no-such-model"
    with (
        pytest.raises(ValueError, match=f"{SETTING}='{name}'.*cannot be reached.*embedded") as error,
        explain_hub_errors(name, SETTING, default="embedded/reviews-gpt2"),
    ):
        AutoConfig.from_pretrained(name)
    # huggingface_hub alone retries for 23 seconds a file.
    assert time.perf_counter() - started < 10
    assert "\n" not in str(error.value)
    assert not constants.HF_HUB_OFFLINE


def test_a_listening_port_is_reachable_and_a_closed_one_is_not(monkeypatch, closed_port):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert not hub_reachable()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_reachable()


def test_behind_a_proxy_the_proxy_is_what_must_be_reachable(monkeypatch, closed_port):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address, reachable in ((server.getsockname()[1], True), (closed_port, False)):
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{address}")
            assert hub_reachable() is reachable


def test_a_name_resolution_that_hangs_is_not_waited_for(monkeypatch):
    done = threading.Event()

    def hang(*args, **kwargs):
        done.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    started = time.perf_counter()
    assert not hub_reachable(timeout=0.1)
    assert time.perf_counter() - started < 5
    done.set()


@pytest.mark.parametrize("error", [OSError("no such repository\nsee the docs"), HFValidationError("bad name")])
def test_with_a_network_the_error_says_that_the_repository_is_missing(monkeypatch, error):
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    with (
        pytest.raises(ValueError, match="the Hub has no such repository") as raised,
        explain_hub_errors("a/b", SETTING),
    ):
        raise error
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)


def test_offline_mode_set_by_the_user_is_named_and_nothing_is_probed(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "hub_reachable", lambda: pytest.fail("probed the network in offline mode"))
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"), explain_hub_errors("a/b", SETTING):
        raise OSError("not cached")


def test_errors_of_local_files_and_of_other_kinds_pass_through(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    for name, error in ((str(tmp_path), OSError), ("embedded/reviews-gpt2", OSError), ("a/b", RuntimeError)):
        with pytest.raises(error, match="^as it was$"), explain_hub_errors(name, SETTING):
            raise error("as it was")


@pytest.mark.parametrize("error", [OSError("no such shard"), KeyError("added_tokens"), RuntimeError("size mismatch")])
def test_damaged_model_files_are_one_error_that_names_the_setting(tmp_path, error):
    message = f"{SETTING}=.*is no sound model folder: {type(error).__name__}"
    with pytest.raises(ValueError, match=message), explain_model_errors(str(tmp_path), SETTING):
        raise error


@pytest.mark.parametrize("error", [ImportError("bitsandbytes"), MemoryError(), ValueError(f"{SETTING} is wrong")])
def test_a_missing_package_a_full_memory_and_our_own_words_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, explain_model_errors(str(tmp_path), SETTING):
        raise error
    assert caught.value is error


def test_a_push_without_a_network_says_what_to_do():
    message = r"--hub_model_id='me/x': the Hub .* did not take the push.*leave"
    with pytest.raises(ValueError, match=message), explain_push_errors("me/x", "--hub_model_id"):
        raise OSError("no route")


def test_hub_http_errors_are_operating_system_errors():
    # What explain_hub_errors relies on for the errors of httpx that the Hub library wraps.
    assert issubclass(HfHubHTTPError, OSError)
