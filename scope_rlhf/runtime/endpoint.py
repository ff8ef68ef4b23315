"""Asking a server with an OpenAI-compatible interface: the key, retries with waits, which failures are final."""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

# Answers of a server that may be other ones a moment later.
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
# Answers that another attempt does not change.
REFUSALS = (400, 401, 403, 404, 413, 422)
LONGEST_WAIT = 60.0

Read = TypeVar("Read")


def check_endpoint(
    prefix: str,
    base_url: str,
    api: str,
    apis: tuple[str, ...],
    timeout: float,
    at_least: Mapping[str, tuple[int, int]],
) -> None:
    """ValueError for settings that cannot work. `prefix` is that of the flags ("judge_"); at_least: name -> (value,
    least).
    """
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(
            f"{prefix}base_url must begin with http:// or https://, got {base_url!r}; set --{prefix}base_url."
        )
    if api not in apis:
        raise ValueError(f"{prefix}api must be {' or '.join(apis)}, got {api!r}; set --{prefix}api.")
    for name, (value, least) in at_least.items():
        if value < least:
            raise ValueError(f"{prefix}{name} must be at least {least}, got {value}; set --{prefix}{name}.")
    if not timeout > 0:
        raise ValueError(f"{prefix}timeout must be positive, got {timeout}; set --{prefix}timeout.")


@dataclass
class EndpointClient:
    """Asks one endpoint, from any number of threads; ValueError where its key is missing.

    called: what messages call it ("the judge"). prefix: of the flags that set it ("judge_"); model_flag: the one of
    the model's name. base_url: up to /v1. api_key_variable: the environment variable with the key; a server on this
    machine needs none. timeout: seconds for one request. retries: further attempts after a transient failure, waiting
    1, 2, 4, ... seconds (or as long as the server asks, at most a minute). note: is given every request, from the
    thread that made it: {"status" (0: no answer), "seconds", "prompt_tokens", "completion_tokens"}.
    """

    called: str
    prefix: str
    model_flag: str
    base_url: str
    api_key_variable: str
    timeout: float
    retries: int
    note: Callable[[dict[str, Any]], None]
    _waits: random.Random = field(default_factory=lambda: random.Random(0), init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self):
        self._key = os.environ.get(self.api_key_variable, "").strip()  # a line end would be no header
        if not self._key and not self.local:
            raise ValueError(
                f"{self.called} at {self.base_url} needs a key: set the environment variable {self.api_key_variable} "
                f"(another name by --{self.prefix}api_key_variable)."
            )

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")

    def post(self, path: str, asked: dict[str, Any], read: Callable[[dict[str, Any]], Read]) -> Read:
        """What `read` takes from the answer, after at most `retries` further attempts.

        `read` raises KeyError, IndexError or TypeError for an answer that is to be asked for again; its other errors
        go through. Raises Refused for a status that another attempt does not change, and Failed without an answer.
        """
        said, status = "", 0
        for attempt in range(self.retries + 1):
            started = time.monotonic()
            asked_to_wait = None
            status, body = 0, {}
            try:
                response = requests.post(
                    f"{self.base_url.rstrip('/')}/{path}",
                    json=asked,
                    headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                    timeout=self.timeout,
                    # No proxy of the environment on the way to this machine.
                    proxies={"http": "", "https": ""} if self.local else None,
                )
                status = response.status_code
                if status in REFUSALS:
                    raise Refused(
                        f"{self.called} at {self.base_url} refused the request with status {status}: "
                        f"{response.text[:300]!r}. Check --{self.prefix}base_url, --{self.model_flag}, "
                        f"--{self.prefix}api and the key in {self.api_key_variable}.",
                        status,
                    )
                asked_to_wait = response.headers.get("Retry-After")
                said = f"status {status}: {response.text[:200]}"
                if status == 200:
                    found = response.json()
                    body = found if isinstance(found, dict) else {}
                    return read(body)
                if status not in TRANSIENT:
                    break
            except (requests.RequestException, KeyError, IndexError, TypeError) as error:
                said = f"no answer in {said}" if status == 200 else f"{type(error).__name__}: {error}"
            finally:
                self.note(_row(status, time.monotonic() - started, body))
            if attempt < self.retries:
                time.sleep(self._wait(attempt, asked_to_wait))
        raise Failed(said, status)

    def _wait(self, attempt: int, asked: str | None) -> float:
        try:
            wait = float(asked or "")
            if not math.isfinite(wait):
                raise ValueError
            return min(max(wait, 0.0), LONGEST_WAIT)
        except ValueError:
            with self._lock:
                return min(2.0**attempt, LONGEST_WAIT) * (0.5 + self._waits.random() / 2)


class Refused(ValueError):
    """A request that the server did not take."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Failed(Exception):
    """A request without a readable answer after all attempts; `status` of the last one, 0 where none came."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def _row(status: int, seconds: float, body: dict[str, Any]) -> dict[str, Any]:
    usage = body.get("usage")
    counts = {}
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else 0
        counts[name] = count if isinstance(count, int) else 0
    return {"status": status, "seconds": round(seconds, 3), **counts}
