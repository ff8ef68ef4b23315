"""What a run asks of the machine and of installed packages, looked at before anything starts."""

import importlib.util
import warnings
from collections.abc import Iterable

import torch


def check_bf16() -> None:
    """ValueError on a GPU without bfloat16; a warning on a CPU that only emulates it."""
    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported():
            raise ValueError("bf16 is set, but this GPU has no bfloat16; leave --bf16 out.")
    elif not torch.accelerator.is_available():
        has = getattr(torch.cpu, "get_capabilities", dict)()
        if has.get("architecture") == "x86_64" and not (has.get("avx512_bf16") or has.get("amx_bf16")):
            warnings.warn(
                "bf16: this CPU has no bfloat16 instructions and emulates them, about ten times slower.", stacklevel=3
            )


def check_reporters(names: Iterable[str]) -> None:
    """ImportError, with what to install, where the package of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"report_to {name} needs the package {name}. Install it with `pip install {name}`.")
