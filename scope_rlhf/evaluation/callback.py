"""The win rate over a fixed baseline while a policy trains, beside the other metrics."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from transformers import Trainer, TrainerCallback
from trl.models import unwrap_model_for_generation

from scope_rlhf.evaluation.completions import System, align, check_room, describe_decoding, generate
from scope_rlhf.evaluation.judges import Judge
from scope_rlhf.evaluation.policy import reference_policy
from scope_rlhf.evaluation.win_rate import compare, invalid_example


class WinRateCallback(TrainerCallback):
    """Lets the current policy answer held-out prompts and logs how often a judge prefers it to the baseline.

        trainer.add_callback(WinRateCallback(trainer, prompts, judge, max_new_tokens=48, every=20))

    trainer: any Trainer with a causal model, such as ScopeGRPOTrainer and ScopePPOTrainer. baseline: completions of the
    same prompts; None lets the reference answer them before the first step, greedily or by the same temperature: the
    policy without its adapter, or the trainer's ref_model. every: after so many steps and after the last one; None:
    after each evaluation of the trainer. folder: keeps win_rate.json and pairs.jsonl of step N in <folder>/step-N.

    Logged at their own step: win_rate, win_rate/low, win_rate/high, win_rate/length_controlled, win_rate/invalid (share
    of the pairs), win_rate/words and win_rate/baseline_words (mean length). Without a valid pair there is no rate.

    Training is what it is without the callback: the random state, the active adapter, training mode and the trainer's
    own averages stay as they are. A resumed run goes on alike, since the baseline is made by the frozen reference.
    Prompts are shared out among the processes; the first one judges. An endpoint that cannot be reached costs a
    warning and the figures of that step; any other error of a judge ends the run on every process.

    ValueError at construction for settings out of range and a baseline of other prompts; before the first step for
    prompts that leave no room for max_new_tokens and a policy without a reference to make the baseline.
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[str],
        judge: Judge,
        *,
        max_new_tokens: int,
        baseline: System | None = None,
        every: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
        confidence: float = 0.95,
        resamples: int = 2000,
        folder: str | Path | None = None,
    ):
        for name, value in (("every", every), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not prompts or len(set(prompts)) < len(prompts):
            raise ValueError(f"the prompts must be different ones, at least one; got {len(prompts)}")
        if getattr(trainer, "is_fsdp_enabled", False):
            raise ValueError("WinRateCallback does not gather the weights of FSDP; evaluate checkpoints instead.")
        self.trainer, self.prompts, self.judge = trainer, list(prompts), judge
        named = System("policy", self.prompts, [""] * len(self.prompts))
        self.baseline = None if baseline is None else align(named, baseline)
        self.every, self.seed, self.batch_size = every, seed, batch_size
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.confidence, self.resamples = confidence, resamples
        self.folder = None if folder is None else Path(folder)
        self._last = -1

    def on_train_begin(self, args, state, control, **kwargs: Any):
        with self._unwrapped() as model:
            check_room(model, self._tokenizer, self.prompts, self.max_new_tokens, "WinRateCallback")
            if self.baseline is None:
                reference = getattr(self.trainer, "ref_model", None)
                if reference is None and not isinstance(self.trainer.accelerator.unwrap_model(model), PeftModel):
                    raise ValueError(
                        "a fully fine-tuned policy without a reference model (beta 0) has no baseline: give "
                        "WinRateCallback its argument baseline, the completions to compare with."
                    )
                with reference_policy(model, reference) as reference:
                    reference = self.trainer.accelerator.unwrap_model(reference)
                    self.baseline = self._generate(reference, "reference")

    def on_step_end(self, args, state, control, **kwargs: Any):
        if self.every is not None and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self._measure(state.global_step, control)

    def on_evaluate(self, args, state, control, **kwargs: Any):
        if self.every is None:
            self._measure(state.global_step, control)

    def _measure(self, step: int, control: Any) -> None:
        if step == self._last:
            return
        self._last = step
        with self._unwrapped() as model:
            policy = self._generate(model, "policy")
        accelerator = self.trainer.accelerator
        # Every process gets what the first one found, an error too: it would wait for the others for ever otherwise.
        found: list[Any] = [self._judge(policy, step) if accelerator.is_main_process else None]
        (found,) = broadcast_object_list(found)
        if isinstance(found, ConnectionError):
            warnings.warn(f"no win rate at step {step}: {found}", stacklevel=2)
        elif isinstance(found, Exception):
            raise found
        else:
            # Not the trainer's own log, which would empty the averages that it collects for its next one. The log of
            # this step is still to come, and would be taken for done.
            due = control.should_log
            Trainer.log(self.trainer, found)
            control.should_log = due

    def _judge(self, policy: System, step: int) -> dict[str, float] | Exception:
        assert self.baseline is not None
        try:
            result = compare(policy, self.baseline, self.judge, self.confidence, self.resamples, self.seed)
        except Exception as error:
            return error
        if self.folder is not None:
            result.write(self.folder / f"step-{step}")
        summary = result.summary
        logs: dict[str, float] = {
            "win_rate/invalid": summary["invalid_share"],
            "win_rate/words": summary["system_a"]["mean_length_words"],
            "win_rate/baseline_words": summary["system_b"]["mean_length_words"],
        }
        if summary["win_rate"] is None:
            said = invalid_example(result.pairs)
            warnings.warn(f"no pair has a verdict at step {step}; the judge said {said[:200]!r}", stacklevel=2)
            return logs
        rate, controlled = summary["win_rate"]["rate"], summary["length_controlled"]
        return {
            "win_rate": rate["value"], "win_rate/low": rate["low"], "win_rate/high": rate["high"],
            "win_rate/length_controlled": controlled["value"], **logs,
        }  # fmt: skip

    def _generate(self, model: Any, name: str) -> System:
        """The completions of all prompts, on every process."""
        with self.trainer.accelerator.split_between_processes(self.prompts) as share:
            system = generate(
                model, self._tokenizer, share, name=name, max_new_tokens=self.max_new_tokens,
                temperature=self.temperature, seed=self.seed, batch_size=self.batch_size,
                show_progress=self.trainer.accelerator.is_main_process and not self.trainer.args.disable_tqdm,
            )  # fmt: skip
        rows = gather_object(list(zip(system.completions, system.ended or [], strict=True)))
        how = describe_decoding(self.max_new_tokens, self.temperature, self.seed)
        return System(name, self.prompts, [text for text, _ in rows], [ended for _, ended in rows], how)

    def _unwrapped(self) -> Any:
        args = self.trainer.args
        # Before training the model is not wrapped yet.
        model = getattr(self.trainer, "model_wrapped", None) or self.trainer.model
        return unwrap_model_for_generation(
            model, self.trainer.accelerator, gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs
        )

    @property
    def _tokenizer(self) -> Any:
        tokenizer = self.trainer.processing_class
        return getattr(tokenizer, "tokenizer", tokenizer)
