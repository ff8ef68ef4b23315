from scope_rlhf.trainers.distillation import DualPathDistillationTrainer
from scope_rlhf.trainers.distillation_config import DualPathDistillationConfig
from scope_rlhf.trainers.grpo import ScopeGRPOTrainer
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig
from scope_rlhf.trainers.ppo import ScopePPOTrainer
from scope_rlhf.trainers.ppo_config import ScopePPOConfig

__all__ = [
    "DualPathDistillationConfig",
    "DualPathDistillationTrainer",
    "ScopeGRPOConfig",
    "ScopeGRPOTrainer",
    "ScopePPOConfig",
    "ScopePPOTrainer",
]
