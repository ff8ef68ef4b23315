"""Clock and learning curve of a Stable-Baselines3 algorithm, as its callback."""

from result import Meter
from stable_baselines3.common.callbacks import BaseCallback


class MeterCallback(BaseCallback):
    """Starts an iteration with its rollout, and ends it where the next starts. curve: the episodes of Monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()
        self.curve: list[dict[str, float]] = []
        self._running = False

    def _on_training_start(self) -> None:
        # The whole stack of wrappers, with those that the algorithm itself puts around the environments.
        environments = self.model.get_env()
        environments.step = self.meter.timed(environments.step)
        self.meter.start()

    def _on_rollout_start(self) -> None:
        if self._running:
            self.meter.end_iteration()
        self._running = True

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.curve.append({"step": self.num_timesteps, "return": float(info["episode"]["r"])})
        return True

    def _on_rollout_end(self) -> None:
        self.meter.end_rollout()

    def _on_training_end(self) -> None:
        self.meter.end_iteration()
