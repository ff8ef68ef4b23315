"""PPO of Stable-Baselines3 on Atari, with the settings of RL Baselines3 Zoo (hyperparams/ppo.yml, atari).

    python benchmarks/peers/sb3_ppo_atari.py --env_id BreakoutNoFrameskip-v4 --total_timesteps 8192 --output sb3.json

CnnPolicy, 8 environments in one process (DummyVecEnv) x 128 steps, minibatches of 256, 4 epochs, learning rate 2.5e-4
and clip range .1 both linear to 0, value coefficient .5, entropy coefficient .01. NoFrameskip-v4 with AtariWrapper:
no-ops, 4 frames an action, ends with each life, clipped reward, 84 x 84 grey; a stack of 4. Steps count actions.

The evaluation has the same wrappers on environments of its own, and sampled actions as in the Zoo. Returns there and in
the curve come from Monitor below the wrappers: all lives, unclipped reward. The value loss is not clipped (CleanRL's
is). The split's update is train(); bootstrap value and GAE are in rollout.
"""

import argparse
from pathlib import Path

import ale_py
import cv2
import gymnasium
import torch
from result import check_length, write_result
from sb3_meter import MeterCallback
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

NUM_ENVS, NUM_STEPS = 8, 128


def make_environments(env_id: str, number: int, seed: int, frame_stack: int) -> VecEnv:
    return VecFrameStack(make_atari_env(env_id, number, seed=seed, vec_env_cls=DummyVecEnv), n_stack=frame_stack)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_id", default="BreakoutNoFrameskip-v4")
    parser.add_argument("--total_timesteps", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--frame_stack", type=int, default=4)
    parser.add_argument("--eval_episodes", type=int, default=0, help="after training")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    check_length(args.total_timesteps, NUM_ENVS * NUM_STEPS)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    gymnasium.register_envs(ale_py)
    settings = {"n_steps": NUM_STEPS, "batch_size": 256, "n_epochs": 4, "vf_coef": 0.5, "ent_coef": 0.01}
    training = make_environments(args.env_id, NUM_ENVS, args.seed, args.frame_stack)
    rates = {"learning_rate": LinearSchedule(2.5e-4, 0.0, 1.0), "clip_range": LinearSchedule(0.1, 0.0, 1.0)}
    model = PPO("CnnPolicy", training, seed=args.seed, device="cpu", **settings, **rates)
    callback = MeterCallback()
    model.learn(args.total_timesteps, callback=callback)
    evaluation = []
    if args.eval_episodes:
        apart = make_environments(args.env_id, min(NUM_ENVS, args.eval_episodes), args.seed + 10_000, args.frame_stack)
        evaluation, _ = evaluate_policy(
            model, apart, args.eval_episodes, deterministic=False, return_episode_rewards=True
        )
    settings |= {"num_envs": NUM_ENVS, "gamma": model.gamma, "gae_lambda": model.gae_lambda, "vec_env": "DummyVecEnv"}
    settings |= {name: repr(rate) for name, rate in rates.items()} | {"max_grad_norm": model.max_grad_norm}
    packages = ["stable_baselines3", "torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless"]
    write_result(
        args.output, "sb3", packages, vars(args) | settings, callback.meter, NUM_ENVS * NUM_STEPS, callback.curve,
        [float(x) for x in evaluation],
    )  # fmt: skip


if __name__ == "__main__":
    main()
