"""Layer 2: reinforcement learning without models: advantages, token rewards, KL control, completions. Torch only."""

from scope_rlhf.rl.advantages import gae, group_relative, leave_one_out, whiten
from scope_rlhf.rl.completions import last_counted, mask_from_lengths, truncate_at_stop
from scope_rlhf.rl.dual_path import (
    dual_path_advantages,
    dual_path_weights,
    sequence_mean_log_probs,
    teacher_advantages,
    weight_entropy,
)
from scope_rlhf.rl.kl_control import AdaptiveKLController, FixedKLController
from scope_rlhf.rl.metrics import explained_variance
from scope_rlhf.rl.rewards import RunningMoments, score_missing_eos, token_rewards

__all__ = [
    "AdaptiveKLController",
    "FixedKLController",
    "RunningMoments",
    "dual_path_advantages",
    "dual_path_weights",
    "explained_variance",
    "gae",
    "group_relative",
    "last_counted",
    "leave_one_out",
    "mask_from_lengths",
    "score_missing_eos",
    "sequence_mean_log_probs",
    "teacher_advantages",
    "token_rewards",
    "truncate_at_stop",
    "weight_entropy",
    "whiten",
]
