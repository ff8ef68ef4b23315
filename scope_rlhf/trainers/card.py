"""The README.md beside a checkpoint: what it is, before a run has numbers. The run's own card is that of reports/."""

import os
from typing import Any

import trl
import yaml

from scope_rlhf import __version__


def checkpoint_card(name: str | None, base: str | None, objective: dict[str, Any], algorithm: str) -> str:
    """A model card of a few lines. `base` is named as a Hub model unless it is a folder here; `objective` is the record
    of describe_objective.
    """
    on_hub = bool(base) and not os.path.isdir(str(base))
    header: dict[str, Any] = {"base_model": base} if on_hub else {}
    header |= {"library_name": "transformers", "tags": ["rlhf", algorithm, "trl", "scope-rlhf"]}
    parameters = ", ".join(f"{key}={value}" for key, value in objective.get("parameters", {}).items())
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).rstrip(),
        "---",
        f"# {name or 'A checkpoint'}",
        "",
        f"Fine-tuned from {base if on_hub else 'a local model'} by {algorithm.upper()} with the policy objective "
        f"`{objective['name']}({parameters})`.",
    ]
    distillation = objective.get("distillation")
    if distillation:
        given = ", ".join(f"{key}={value}" for key, value in distillation.items() if value is not None)
        lines.append(f"On-policy distillation (SCOPE, arXiv 2604.10688, where mode is dual_path): {given}.")
    if objective.get("sha256"):
        lines.append(f"The objective is a user's own; sha256 of its file: `{objective['sha256']}`.")
    lines += ["", f"Trained by scope-rlhf {__version__} on TRL {trl.__version__}. A checkpoint: not evaluated.", ""]
    return "\n".join(lines)
