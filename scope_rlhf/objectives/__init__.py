"""Layer 1: objectives, i.e. losses with their hyperparameters, chosen by name. The package's public interface."""

from scope_rlhf.objectives.base import ClippedObjective, Objective, PolicyInputs, PolicyLoss
from scope_rlhf.objectives.catalogue import (
    OBJECTIVES,
    describe_objective,
    make_objective,
    make_trainer_objective,
    objective_class,
)
from scope_rlhf.objectives.contract import CheckResult, check_objective, require_trainable
from scope_rlhf.objectives.critics import (
    CRITICS,
    C51Critic,
    CategoricalCritic,
    CriticLoss,
    CriticLossFunction,
    check_saved_critic,
    describe_critic,
    make_critic_loss,
)
from scope_rlhf.objectives.focal import Focal
from scope_rlhf.objectives.policy_entropy import PolicyEntropy
from scope_rlhf.objectives.ppo import PPO
from scope_rlhf.objectives.scope import Scope
from scope_rlhf.objectives.symmetric import Symmetric

__all__ = [
    "CRITICS",
    "OBJECTIVES",
    "PPO",
    "C51Critic",
    "CategoricalCritic",
    "CheckResult",
    "ClippedObjective",
    "CriticLoss",
    "CriticLossFunction",
    "Focal",
    "Objective",
    "PolicyEntropy",
    "PolicyInputs",
    "PolicyLoss",
    "Scope",
    "Symmetric",
    "check_objective",
    "check_saved_critic",
    "describe_critic",
    "describe_objective",
    "make_critic_loss",
    "make_objective",
    "make_trainer_objective",
    "objective_class",
    "require_trainable",
]
