"""What a checkpoint of a run on environments has to agree with. The environments are not in it: they start anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scope_rlhf.objectives import CriticLossFunction, check_saved_critic
from scope_rlhf.runtime.checkpoints import check_meta

# Settings that may change on the way without a word: they say where, how long and how often.
FREE_SETTINGS = frozenset(
    ("output_dir", "resume", "resume_from_checkpoint", "total_timesteps", "report_to", "video", "num_threads")
) | {"allow_objective_change", "logging_steps", "save_steps", "save_total_limit", "eval_steps", "num_eval_episodes"}
_FLAGS = {"algorithm": "--algorithm", "network": "--network, --hidden_sizes"}
_FLAGS |= {"objective": "the objective, or --allow_objective_change true,"}


def check_owner(meta: Mapping[str, Any], expected: Mapping[str, Any], critic: CriticLossFunction, folder: Path) -> None:
    """ValueError where the checkpoint belongs to another algorithm, environment, network, critic, objective or number
    of processes.
    """
    # The critic's support needs its own words; here it only has to be there.
    check_meta(meta, {**expected, "critic": meta["critic"]} if "critic" in meta else expected, folder, _FLAGS)
    check_saved_critic(meta["critic"], critic, str(folder))


def check_length(meta: Mapping[str, Any], total_timesteps: int, folder: Path) -> None:
    """ValueError where the run would end before the checkpoint."""
    if meta["step"] > total_timesteps:
        raise ValueError(
            f"{folder} is at step {meta['step']}, beyond total_timesteps={total_timesteps}; set --total_timesteps to "
            "the length of the whole run."
        )
