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
    """1.0 where math-verify finds the completion's answer equal to the right one: what is in its box, else LaTeX behind
    words such as "the final answer is".

    That is TRL's accuracy_reward, with three differences: a box that holds the right answer letter for letter is right
    (math-verify does not read `\\frac12` in a completion); a right answer without dollar signs or a box is read as
    LaTeX too; one that cannot be read is a ValueError, not None. completions: as for exact_answer.

    ImportError, with what to install, where math-verify is missing.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            'The verifier math_answer needs math-verify. Install it with `pip install "scope-rlhf[math]"`.'
        )
    from trl.rewards import accuracy_reward

    texts = [_text(completion) for completion in completions]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    rewards = accuracy_reward(conversations, [_latex(right) for right in answer])
    unread = next((right for right, reward in zip(answer, rewards, strict=True) if reward is None), None)
    if unread is not None:
        raise ValueError(f"math_answer cannot read the answer {unread!r} as mathematics; leave its problem out.")
    same = [_letters(_boxed(text)) == _letters(right) for text, right in zip(texts, answer, strict=True)]
    return [float(reward or equal) for reward, equal in zip(rewards, same, strict=True)]


VERIFIERS = {"exact_answer": exact_answer, "math_answer": math_answer}


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _boxed(text: str) -> str | None:
    """What the only \\boxed{...} of a text holds; None where there is none, or another, or where it does not end."""
    _, found, rest = text.partition("\\boxed{")
    if not found or "\\boxed{" in rest:
        return None
    depth = 1
    for place, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            return rest[:place]
    return None


def _letters(answer: Any) -> str | None:
    """Without white space and dollar signs; None for nothing."""
    return "".join(str(answer).replace("$", "").split()) if answer else None


def _latex(answer: Any) -> str:
    text = str(answer)
    return text if "$" in text or "\\boxed" in text else f"${text}$"
