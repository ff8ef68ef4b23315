"""Verifiers: reward functions of TRL that give 1.0 for a right completion and 0.0 for any other."""

import importlib.util
from collections.abc import Sequence
from typing import Any


def exact_answer(prompts: Any, completions: Sequence[Any], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """1.0 where what follows the last "=" (all, where there is none), without white space around it, is the answer.

    completions: texts, or conversations, whose last message counts.
    """
    pairs = zip(map(_text, completions), answer, strict=True)
    return [float(text.rpartition("=")[2].strip() == str(right).strip()) for text, right in pairs]


def math_answer(prompts: Any, completions: Sequence[Any], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """1.0 where math-verify finds the completion's answer (in a box first, else in LaTeX) equal to the right one.

    That is TRL's accuracy_reward, with two differences: an answer without dollar signs or a box is read as LaTeX too,
    and an answer that cannot be read is a ValueError, not None. completions: as for exact_answer.

    ImportError, with what to install, where math-verify is missing.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            'The verifier math_answer needs math-verify. Install it with `pip install "scope-rlhf[math]"`.'
        )
    from trl.rewards import accuracy_reward

    conversations = [[{"role": "assistant", "content": _text(completion)}] for completion in completions]
    rewards = accuracy_reward(conversations, [_latex(right) for right in answer])
    unread = next((right for right, reward in zip(answer, rewards, strict=True) if reward is None), None)
    if unread is not None:
        raise ValueError(f"math_answer cannot read the answer {unread!r} as mathematics; leave its problem out.")
    return [float(reward) for reward in rewards if reward is not None]


VERIFIERS = {"exact_answer": exact_answer, "math_answer": math_answer}


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _latex(answer: Any) -> str:
    text = str(answer)
    return text if "$" in text or "\\boxed" in text else f"${text}$"
