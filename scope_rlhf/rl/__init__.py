"""Layer 2: reinforcement learning without models: advantages, token rewards, KL control, completions. Torch only."""

from scope_rlhf.rl.advantages import gae, group_relative, leave_one_out, whiten

__all__ = ["gae", "group_relative", "leave_one_out", "whiten"]
