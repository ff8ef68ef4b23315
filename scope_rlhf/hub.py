"""Hub names without a network fail in seconds, in one paragraph. Below every layer: imports nothing of the package."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

# What a missing or unreachable file comes as. The Hub library passes on some errors of its HTTP client (a refusing
# proxy, for one), which is httpx or httpx2 by version; their base class is the first base of HfHubHTTPError.
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, HfHubHTTPError.__bases__[0], HFValidationError)
EMBEDDED_PREFIX = "embedded/"


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
    instead = f"the embedded {default}" if default else "an embedded name (embedded/...)"
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
    if _is_local(name):
        yield
        return
    reachable = constants.HF_HUB_OFFLINE or hub_reachable()
    try:
        if reachable:
            yield
        else:
            with offline_hub():
                yield
    except HUB_ERRORS as error:
        raise hub_error(name, setting, error, reachable=reachable, default=default) from error


@contextmanager
def explain_model_errors(name: str, setting: str, *, default: str | None = None) -> Iterator[None]:
    """`explain_hub_errors`, and one ValueError that names the setting for files that are no sound model.

    Weights that were cut off, a config or tokenizer that is no JSON or lacks what it needs, sizes that do not fit:
    safetensors, tokenizers and transformers raise something else for each. A missing package and a full memory pass.
    """
    with explain_hub_errors(name, setting, default=default):
        try:
            yield
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            of_the_hub = isinstance(error, HUB_ERRORS) and not _is_local(name)
            if of_the_hub or setting in str(error) or "OutOfMemory" in type(error).__name__:
                raise
            said = " ".join(str(error).split())
            raise ValueError(f"{setting}={name!r} is no sound model folder: {type(error).__name__}: {said}") from error


@contextmanager
def explain_push_errors(repo_id: str, setting: str) -> Iterator[None]:
    """Turns what creating or writing a Hub repository raises into one ValueError."""
    try:
        yield
    except HUB_ERRORS as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{setting}={repo_id!r}: the Hub ({constants.ENDPOINT}) did not take the push ({type(error).__name__}: "
            f"{said}). Check the network and the login (`hf auth login` or --hub_token), or leave {setting} out."
        ) from error


def _is_local(name: str) -> bool:
    return name.startswith(EMBEDDED_PREFIX) or Path(name).expanduser().exists()
