"""IMDB sentiment by GRPO or PPO with any objective. `scope-rlhf grpo`, `scope-rlhf ppo` and recipes/imdb_scope.py run
`main`.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from scope_rlhf.data.imdb import load_review_prompt_splits
from scope_rlhf.experiments.arguments import parse_arguments
from scope_rlhf.experiments.imdb_arguments import EXPERIMENT
from scope_rlhf.experiments.policy_run import Task, quiet_libraries, run_policy
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig


def main(argv: Sequence[str], prog: str | None = None, algorithm: str | None = None) -> int:
    """Run the experiment that the command line describes; the exit status. `prog` is the command in the help."""
    quiet_libraries()
    script, policy, training = parse_arguments(EXPERIMENT, list(argv), prog, algorithm)
    run_policy(TASK, script, policy, training)
    return 0


def load_prompts(script: Any, training: ScopeGRPOConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
    """Beginnings of reviews to train on and to measure with."""
    return load_review_prompt_splits(
        script.dataset_name, tokenizer=tokenizer, prompt_length=script.prompt_length,
        min_prompt_length=script.min_prompt_length, num_train_prompts=script.num_train_prompts,
        num_eval_prompts=script.num_eval_prompts, seed=training.seed, train_split=script.dataset_train_split,
        eval_split=script.dataset_test_split, text_column=script.text_column,
    )  # fmt: skip


TASK = Task(
    name="imdb",
    reward="sentiment_reward",
    judge="sentiment_judge",
    labels=("reward: P(positive), optimised", "held-out judge: P(positive)"),
    prompt_length=lambda script: script.prompt_length,
    load_prompts=load_prompts,
)
