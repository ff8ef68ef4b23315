"""Names of models: those that ship with the package, local folders, Hub repositories; and the errors when none fits."""

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
# Public name -> folder below WEIGHTS_FOLDER.
EMBEDDED_MODELS = {
    "embedded/reviews-gpt2": "reviews_gpt2",
    "embedded/sentiment-reward": "sentiment_reward",
    "embedded/sentiment-judge": "sentiment_judge",
}
MODEL_FILES = ("config.json", "adapter_config.json")


def is_model_folder(path: str | Path) -> bool:
    """Whether the folder holds a model or an adapter."""
    return any((Path(path) / name).is_file() for name in MODEL_FILES)


def resolve_model_path(name_or_path: str, setting: str) -> str:
    """What `from_pretrained` takes for this name: an embedded model's folder, a local folder, or the Hub name as given.

    setting: where the user set the name (such as `--model_name_or_path`); errors begin with it. ValueError for an
    unknown embedded name, an existing path that holds no model, and a name that can only be a path but does not exist.
    """
    if name_or_path in EMBEDDED_MODELS:
        folder = WEIGHTS_FOLDER / EMBEDDED_MODELS[name_or_path]
        if is_model_folder(folder):
            return str(folder)
        raise ValueError(
            f"{setting}={name_or_path!r} names an embedded model, but this installation has no {folder}. "
            "Reinstall scope-rlhf, or give a local model folder or a Hub name."
        )
    embedded = ", ".join(EMBEDDED_MODELS)
    if name_or_path.startswith("embedded/"):
        raise ValueError(f"{setting}={name_or_path!r} is no embedded model. Embedded models: {embedded}.")
    path = Path(name_or_path).expanduser()
    if name_or_path and is_model_folder(path):
        return str(path)
    separators = (os.sep, os.altsep or os.sep)
    path_like = name_or_path.startswith((".", "~", *separators)) or sum(map(name_or_path.count, set(separators))) > 1
    if name_or_path and not path.exists() and not path_like:
        return name_or_path
    found = "is empty" if not name_or_path else "is not a model folder" if path.exists() else "does not exist"
    raise ValueError(
        f"{setting}={name_or_path!r} {found}: expected a folder that contains {' or '.join(MODEL_FILES)}, a Hub name "
        f"such as gpt2 or lvwerra/gpt2-imdb, or an embedded model ({embedded})."
    )


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether a connection to the Hub (or to the proxy on the way to it) opens within `timeout` seconds."""
    endpoint = urlsplit(constants.ENDPOINT)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(endpoint.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    address = (endpoint.hostname, endpoint.port or (80 if endpoint.scheme == "http" else 443))
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=timeout).close()
            opened.set()
        except OSError:
            pass

    # Name resolution has no timeout of its own, so the whole attempt runs in a thread that is not waited for longer.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return opened.is_set()


@contextmanager
def offline_hub() -> Iterator[None]:
    """Hub libraries read their cache only: without a network they retry each missing file for 23 seconds otherwise."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_error(
    name: str, setting: str, error: BaseException, *, reachable: bool, default: str | None = None
) -> ValueError:
    """The one-paragraph ValueError for a Hub name that did not load; `default` is the embedded name to use instead."""
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set and the Hub cache does not hold it"
    elif not reachable:
        reason = f"the Hub ({constants.ENDPOINT}) cannot be reached and the Hub cache does not hold it"
    else:
        reason = "the Hub has no such repository, you may not read it, or it lacks the files that were asked for"
    said = (str(error).strip().splitlines() or [""])[0]
    instead = f"the embedded {default}" if default else f"an embedded model ({', '.join(EMBEDDED_MODELS)})"
    return ValueError(
        f"{setting}={name!r} was taken for a Hub name, as no local path has that name, and could not be loaded: "
        f"{reason} ({type(error).__name__}: {said}). Check the name and the network, give a local path, or use "
        f"{instead}, which needs no network."
    )


@contextmanager
def explain_hub_errors(name: str, setting: str, *, default: str | None = None) -> Iterator[None]:
    """Turns what `from_pretrained` and `load_dataset` raise for a Hub name inside the block into one clear ValueError.

    Without a network the block sees the Hub cache only, so that it fails in seconds. An embedded name or one that
    exists on disk passes through: its errors are about files, not about the Hub.
    """
    if name in EMBEDDED_MODELS or Path(name).expanduser().exists():
        yield
        return
    reachable = constants.HF_HUB_OFFLINE or hub_reachable()
    try:
        if reachable:
            yield
        else:
            with offline_hub():
                yield
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise hub_error(name, setting, error, reachable=reachable, default=default) from error
