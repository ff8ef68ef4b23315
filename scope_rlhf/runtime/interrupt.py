"""Ctrl-C waits for the end of an update: what is learned is saved before the run ends."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Protocol


class Learner(Protocol):
    """What a session can do between updates."""

    def remember(self) -> None: ...

    def save(self) -> Path: ...


class Interrupt:
    """Between `start` and `stop` the first Ctrl-C (SIGINT) is noted, and `heed` ends the run; the second one raises
    KeyboardInterrupt at once. Nothing changes where it is not `enabled` (several processes would each be in another
    update), and outside the main thread, where Python takes no signals.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self.asked = enabled, False
        self._former: Any = None

    def start(self) -> None:
        if self.enabled and threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._note)

    def stop(self) -> None:
        """Give the signal back to whom it belonged."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)
            self._former = None

    def heed(self, learner: Learner) -> None:
        """KeyboardInterrupt where Ctrl-C was pressed, after a checkpoint, which a note on it names."""
        if not self.asked:
            return
        self.stop()
        learner.remember()
        error = KeyboardInterrupt()
        error.add_note(f"The learner is saved in {learner.save()}; --resume goes on from there.")
        raise error

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.stop()
            raise KeyboardInterrupt
        self.asked = True
        print("\ninterrupted: saving after this update; Ctrl-C again ends it at once", file=sys.stderr, flush=True)
