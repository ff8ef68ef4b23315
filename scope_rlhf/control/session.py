"""The life of one run around its loop: processes, folder, log, evaluation, checkpoints. What is learned is in ppo.py,
a2c.py and dqn.py.
"""

import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scope_rlhf.control.checkpoint import FREE_SETTINGS, check_length, check_owner
from scope_rlhf.control.config import ControlConfig
from scope_rlhf.control.environments import make_environments, make_parts
from scope_rlhf.control.evaluate import Act, evaluate_returns, film_episode, summarize_returns
from scope_rlhf.control.processes import Processes
from scope_rlhf.control.rewards import StickyActions
from scope_rlhf.control.rollout import CRASHES, EnvironmentFailure, Observer
from scope_rlhf.control.setup import agreed_run_folder, environment_seed, make_accelerator, make_shaper, prepare
from scope_rlhf.control.vector import Episode
from scope_rlhf.runtime.checkpoints import (
    changed_settings,
    check_finite,
    find_checkpoint,
    load_checkpoint,
    random_state,
    read_meta,
    save_checkpoint,
    set_random_state,
)
from scope_rlhf.runtime.environment import ENVIRONMENT_PACKAGES, package_versions
from scope_rlhf.runtime.files import write_json
from scope_rlhf.runtime.interrupt import Interrupt
from scope_rlhf.runtime.run_folder import RunFolder
from scope_rlhf.runtime.threads import keep_freed_memory


class Session(Processes, AbstractContextManager["Session"]):
    """One run of `algorithm`: everything is checked and made here, and saved and closed here.

    objective: its record for the run's config and its checkpoints, None for DQN. Inside the `with` block the run folder
    is locked. ValueError and ImportError as `prepare` and `find_checkpoint`.
    """

    def __init__(self, config: ControlConfig, algorithm: str, objective: dict[str, Any] | None = None):
        self.config, self.algorithm, self.objective = config, algorithm, objective
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        keep_freed_memory()
        self.setup = prepare(config)
        config.output_dir = config.output_dir or agreed_run_folder(self.setup.spec.name, algorithm)
        self.folder = RunFolder(config.output_dir)
        self.folder.check_free()
        self.checkpoint = find_checkpoint(self.folder.path, config.resume, config.resume_from_checkpoint)
        self.meta = self.setup.meta(algorithm, objective)
        if self.checkpoint is not None:
            saved = read_meta(self.checkpoint)
            expected = dict(self.meta)
            if getattr(config, "allow_objective_change", False):
                expected.pop("objective", None)
            check_owner(saved, expected, self.setup.critic, self.checkpoint)
            check_length(saved, config.total_timesteps, self.checkpoint)
        Processes.__init__(self, make_accelerator(config))
        self.local_envs = config.num_envs // self.processes
        self.observer = Observer(self.setup.observation_space, self.accelerator.device, config.normalize_observations)
        noise_seed = int(np.random.SeedSequence([config.seed, self.rank]).generate_state(1)[0])
        self.shaper = make_shaper(config, self.local_envs, noise_seed)
        self.sticky = StickyActions(self.setup.sticky, noise_seed)
        self.global_step = self.update = 0
        self.episodes: list[Episode] = []
        self.recent: deque[float] = deque(maxlen=100)
        self.act: Act | None = None
        self._learner: dict[str, Any] = {}
        self._extra: tuple[Callable[[], Any], Callable[[Any], None]] | None = None
        self._snapshot: dict[str, Any] | None = None
        self._evaluated_at: int | None = None
        self.interrupt = Interrupt(enabled=self.processes == 1)

    # Making

    def seed_weights(self) -> None:
        """Before the network is made: the same weights in every process."""
        torch.manual_seed(self.config.seed)

    def start(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        act: Act,
        extra: tuple[Callable[[], Any], Callable[[Any], None]] | None = None,
        more_learner: Mapping[str, nn.Module] | None = None,
        parts: bool = False,
    ) -> None:
        """Take the bare network and its optimizer, load what is resumed, and start the environments.

        act: actions of an evaluation. extra: (state, load) of what else a process keeps. more_learner: further modules.
        parts: the environments may come in several.
        """
        torch.manual_seed(self.config.seed + 1_000_003 * (self.rank + 1))
        np.random.seed((self.config.seed + self.rank) % 2**32)
        random.seed(self.config.seed + self.rank)
        self.act, self._extra = act, extra
        self._learner = {"model": model, "optimizer": optimizer, **(more_learner or {})}
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        if self.rank == 0:
            if self.checkpoint and (changed := changed_settings(self.checkpoint, asdict(self.config), FREE_SETTINGS)):
                warnings.warn(f"{self.checkpoint} goes on with other settings: {changed}.", stacklevel=2)
            dropped = self.folder.truncate_metrics(self.global_step) if self.checkpoint is not None else 0
            self.folder.write_config(
                asdict(self.config),
                self.objective or {"name": self.algorithm},
                self.config.seed,
                resumed=self.checkpoint is not None,
                algorithm=self.algorithm,
                environment=asdict(self.setup.spec),
                critic=self.meta["critic"],
                environment_versions={k: v for k, v in package_versions(ENVIRONMENT_PACKAGES).items() if v},
                **({"dropped_lines": dropped} if dropped else {}),
            )
        if self.config.report_to:
            scalars = {k: v for k, v in asdict(self.config).items() if isinstance(v, int | float | str | bool)}
            self.accelerator.init_trackers("scope-rlhf-control", config=scalars)
        spec, count = self.setup.spec, self.local_envs
        self.first_seed = first = environment_seed(self.config.seed, self.global_step, self.rank)
        try:
            self.environments = make_parts(spec, count, first) if parts else [make_environments(spec, count, first)]
        except (ValueError, ImportError):
            raise
        except CRASHES as error:
            raise EnvironmentFailure(f"the environments failed to start: {type(error).__name__}: {error}") from error
        self.bar = tqdm(
            total=self.config.total_timesteps,
            initial=self.global_step,
            unit="step",
            desc=f"{spec.name} {self.algorithm}",
            mininterval=0.5,
            disable=self.rank != 0,
        )
        self._started, self._started_at = time.perf_counter(), self.global_step
        self.remember()
        self.interrupt.start()

    # Logging

    def log(self, metrics: Mapping[str, float | Tensor], seconds: Mapping[str, float]) -> None:
        """One line under global_step: metrics, the episodes since the last line, `seconds` as time/<phase>."""
        episodes, self.episodes = self.episodes, []
        sums = torch.tensor(
            [len(episodes), sum(e.episodic_return for e in episodes), sum(e.length for e in episodes)],
            dtype=torch.float64 if self.accelerator.device.type != "mps" else torch.float32,
        )
        count, returned, length = self.all_reduce(sums.to(self.accelerator.device)).tolist()
        line = {name: float(value) for name, value in metrics.items()}
        if count:
            self.recent.append(returned / count)
            means = {"episodic_return": returned / count, "episodic_length": length / count, "episodes": count}
            line |= {f"charts/{name}": value for name, value in means.items()}
        now = time.perf_counter()
        line["charts/SPS"] = (self.global_step - self._started_at) / max(now - self._started, 1e-9)
        line |= {f"time/{name}": value for name, value in seconds.items()}
        self.folder.append_metrics(self.global_step, line)
        if self.config.report_to:
            self.accelerator.log(line, step=self.global_step)
        shown = f"{np.mean(list(self.recent)[-10:]):.1f}" if self.recent else "-"
        self.bar.set_postfix({"return": shown}, refresh=False)

    def advance(self, steps: int) -> None:
        self.global_step += steps
        self.bar.update(steps)

    def evaluate(self) -> dict[str, float]:
        """Returns on separate environments, by the first process; the others wait."""
        assert self.act is not None
        summary, result, failure = dict[str, float](), None, None
        if self.rank == 0 and self.config.num_eval_episodes:
            setup, episodes, seed = self.setup, self.config.num_eval_episodes, self.config.eval_seed
            try:
                result = evaluate_returns(
                    setup.spec, self.act, setup.policy, self.observer, episodes, seed, setup.sticky
                )
            except EnvironmentFailure as error:
                failure = error
        self.agree(failure)
        if result is not None:
            summary = summarize_returns(result)
            self.folder.write_evaluation({"step": self.global_step, **result, **summary})
            self.folder.append_metrics(self.global_step, summary)
            if self.config.report_to:
                self.accelerator.log(summary, step=self.global_step)
        self._evaluated_at = self.global_step
        self.accelerator.wait_for_everyone()
        return summary

    # Checkpoints

    def remember(self) -> None:
        """Note the states that a rollout changes: a checkpoint after a failed one begins before it."""
        self._snapshot = {
            "counters": {
                "global_step": self.global_step,
                "update": self.update,
                "recent": list(self.recent),
                "episodes": [[e.environment, e.episodic_return, e.length] for e in self.episodes],
            },
            "observations": None if self.observer.normaliser is None else self.observer.normaliser.moments.state_dict(),
            "process": {
                "random": random_state(),
                "shaper": self.shaper.state_dict(),
                "sticky": self.sticky.state_dict(),
            },
        }

    def save(self) -> Path:
        """Write a checkpoint of the learner as it was when `remember` was called last."""
        assert self._snapshot is not None
        step = self._snapshot["counters"]["global_step"]
        check_finite(step, {f"the weight {n}": w for n, w in self._learner["model"].named_parameters()})
        learner = {name: part.state_dict() for name, part in self._learner.items()}
        learner |= {key: self._snapshot[key] for key in ("counters", "observations")}
        process = dict(self._snapshot["process"])
        if self._extra is not None:
            process["extra"] = self._extra[0]()
        return save_checkpoint(
            self.folder.path,
            step,
            self.meta,
            learner,
            process,
            rank=self.rank,
            wait=self.accelerator.wait_for_everyone,
            keep=self.config.save_total_limit,
        )

    def _load(self, folder: Path) -> None:
        learner, process = load_checkpoint(
            folder, self.rank, (*self._learner, "counters", "observations"), ("random", "shaper", "sticky")
        )
        for name, part in self._learner.items():
            part.load_state_dict(learner[name])
        self.global_step, self.update = learner["counters"]["global_step"], learner["counters"]["update"]
        self.recent.extend(learner["counters"]["recent"])
        self.episodes = [Episode(*episode) for episode in learner["counters"]["episodes"]]
        if self.observer.normaliser is not None:
            self.observer.normaliser.moments.load_state_dict(learner["observations"])
        self.shaper.load_state_dict(process["shaper"])
        self.sticky.load_state_dict(process["sticky"])
        if self._extra is not None:
            self._extra[1](process["extra"])
        set_random_state(process["random"])

    # Beginning and end

    def __enter__(self) -> Self:
        self.folder.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.interrupt.stop()
        if isinstance(error, EnvironmentFailure) and self._snapshot is not None:
            saved = self.save()
            error.add_note(f"The learner is saved in {saved}; --resume goes on from there.")
        if hasattr(self, "bar"):
            self.bar.close()
        if hasattr(self, "environments"):
            for part in self.environments:
                part.close()
        self.folder.__exit__(kind, error, trace)
        if self.config.report_to and error is None:
            self.accelerator.end_training()

    def finish(self) -> Path:
        """The last checkpoint, evaluation and film; the run folder."""
        self.remember()
        self.save()
        self.interrupt.stop()
        if self._evaluated_at != self.global_step:
            self.evaluate()
        if self.config.video is not None and self.rank == 0:
            assert self.act is not None
            film = self.folder.path / f"episode.{self.config.video}"
            setup, seed = self.setup, self.config.eval_seed
            try:
                film_episode(setup.spec, self.act, setup.policy, self.observer, film, seed, setup.sticky)
            except CRASHES as error:  # the training is done, and saved
                warnings.warn(f"the film of an episode failed: {type(error).__name__}: {error}", stacklevel=2)
        if self.rank == 0:
            write_json(self.folder.path / "finished.json", {"step": self.global_step})
        self.accelerator.wait_for_everyone()
        return self.folder.path
