"""What the scripts that run under torchrun share."""

from pathlib import Path


def gloo_threads() -> list[str]:
    """The names of this process's threads that belong to a gloo process group."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]
