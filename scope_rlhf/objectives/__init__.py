"""Layer 1: objectives, i.e. losses with their hyperparameters, chosen by name. The package's public interface."""

from scope_rlhf.objectives.base import ClippedObjective, Objective, PolicyInputs, PolicyLoss
from scope_rlhf.objectives.catalogue import (
    OBJECTIVES,
    describe_objective,
    make_objective,
    make_trainer_objective,
    objective_class,
)
from scope_rlhf.objectives.contract import CheckResult, check_objective
from scope_rlhf.objectives.focal import Focal
from scope_rlhf.objectives.policy_entropy import PolicyEntropy
from scope_rlhf.objectives.ppo import PPO
from scope_rlhf.objectives.scope import Scope
from scope_rlhf.objectives.symmetric import Symmetric

__all__ = [
    "OBJECTIVES",
    "PPO",
    "CheckResult",
    "ClippedObjective",
    "Focal",
    "Objective",
    "PolicyEntropy",
    "PolicyInputs",
    "PolicyLoss",
    "Scope",
    "Symmetric",
    "check_objective",
    "describe_objective",
    "make_objective",
    "make_trainer_objective",
    "objective_class",
]
