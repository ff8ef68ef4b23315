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
    elif not torch.accelerator.is_available() and not cpu_has_bf16():
        warnings.warn(
            "bf16: this CPU has no bfloat16 instructions and emulates them, about ten times slower.", stacklevel=3
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively: AVX512-bf16 or AMX on x86, bf16 on ARM; emulation is none."""
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    # torch 2.8, which tells this of x86 only.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def check_reporters(names: Iterable[str]) -> None:
    """ImportError, with what to install, where the package of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"report_to {name} needs the package {name}. Install it with `pip install {name}`.")
