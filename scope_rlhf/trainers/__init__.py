from scope_rlhf.trainers.grpo import ScopeGRPOTrainer
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig

__all__ = ["ScopeGRPOConfig", "ScopeGRPOTrainer"]
