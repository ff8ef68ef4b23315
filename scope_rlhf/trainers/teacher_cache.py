"""Log-probs of a remote teacher in one sqlite3 file: what was paid for survives a kill."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

# Little-endian on every machine.
FLOAT32 = np.dtype("<f4")


class LogProbCache:
    """Rows of (key, log-probs in float32). A written row is on the disk when `write` returns. Each call opens the file
    anew, so that it may come from any thread. ValueError, naming the file, where it is damaged or cannot be used.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS log_probs (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def read(self, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Those of the keys (each with the number of its log-probs) that are here."""
        found = {}
        with self._open() as connection:
            for key, length in lengths.items():
                row = connection.execute("SELECT value FROM log_probs WHERE key = ?", (key,)).fetchone()
                if row is None:
                    continue
                if not isinstance(row[0], bytes) or len(row[0]) != length * FLOAT32.itemsize:
                    raise self._error(f"a row does not hold {length} log-probs")
                found[key] = np.frombuffer(row[0], FLOAT32)
                if not np.isfinite(found[key]).all():
                    raise self._error("a row holds a log-prob that is not finite")
        return found

    def write(self, rows: Iterable[tuple[str, np.ndarray]]) -> None:
        """Add or replace rows, all or none."""
        with self._open() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO log_probs VALUES (?, ?)",
                [(key, values.astype(FLOAT32).tobytes()) for key, values in rows],
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # Other threads write between: wait for them rather than fail.
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise self._error(str(error)) from error

    def _error(self, reason: str) -> ValueError:
        return ValueError(
            f"the cache of the teacher's log-probs, {self.path}, cannot be used: {reason}. If it is damaged, "
            "delete it: its log-probs are asked for again."
        )
