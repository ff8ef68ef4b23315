"""What a run shows and writes while it trains: one progress line, and metrics.jsonl."""

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from scope_rlhf.runtime import RunFolder

SHOWN = {
    "reward": "reward", "rewards/sentiment_judge/mean": "judge", "rewards/summary_judge/mean": "judge",
    "kl": "kl/token", "loss": "loss", "accuracy": "accuracy",
}  # fmt: skip


class MetricsFile(TrainerCallback):
    """Appends what the trainer logs to metrics.jsonl of the run folder, on the main process."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def on_train_begin(self, args, state, control, **kwargs: Any):
        # A resumed run logs the steps after its checkpoint again.
        self.folder.truncate_metrics(state.global_step if state.global_step else -1)

    def on_log(self, args, state, control, logs=None, **kwargs: Any):
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if state.is_world_process_zero and numbers and "train_runtime" not in numbers:
            self.folder.append_metrics(state.global_step, numbers)


class ProgressLine(TrainerCallback):
    """One tqdm line with the numbers that matter, instead of a dictionary for every log."""

    def __init__(self):
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs: Any):
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", dynamic_ncols=True)

    def on_step_end(self, args, state, control, **kwargs: Any):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs: Any):
        if self.bar is not None and logs:
            shown = {short: f"{logs[key]:.3f}" for key, short in SHOWN.items() if isinstance(logs.get(key), float)}
            if shown:
                self.bar.set_postfix(shown)

    def on_train_end(self, args, state, control, **kwargs: Any):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
