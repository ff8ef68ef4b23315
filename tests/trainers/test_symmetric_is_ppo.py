"""The published symmetric objective is PPO times alpha + beta: whole runs of ScopePPOTrainer in float64.

With a reverse term m A Z r and Z = -1 its gradient is (alpha + beta) times that of PPO, so a run can differ from one of
PPO only by the balance with what is not multiplied: the critic's loss, the clipping of the gradient, Adam's epsilon.
"""

import pytest
import torch

from scope_rlhf.trainers import ScopePPOConfig, ScopePPOTrainer
from tests.tiny import length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer

UPDATES = 20
NO_CRITIC = {"advantage_estimator": "rloo", "num_generations": 2, "vf_coef": 0.1}  # its default: there is no critic
# Plain gradient descent: what multiplies the loss multiplies the step.
RATE = 0.1
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": RATE}


def run(folder, objective="ppo", settings=None, **kwargs):
    """(weights, log) after UPDATES updates: 5 rollouts, each with 2 epochs of 2 minibatches."""
    tokenizer = tiny_tokenizer()
    defaults = {
        "objective": objective, "objective_kwargs": kwargs or None, "per_device_train_batch_size": 4,
        "num_mini_batches": 2, "num_ppo_epochs": 2, "max_completion_length": 6, "max_steps": UPDATES, "use_cpu": True,
        "learning_rate": 3e-3, "vf_coef": 0.5, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "gradient_checkpointing": False, "seed": 7, "lr_scheduler_type": "constant",
        "bf16": False,
    }  # fmt: skip
    model = tiny_gpt2(tokenizer)
    model.save_pretrained(folder / "start")  # the reference of a model without an adapter is read from its files
    model = type(model).from_pretrained(folder / "start", dtype=torch.float64)
    trainer = ScopePPOTrainer(
        model, [length_reward], ScopePPOConfig(str(folder), **{**defaults, **(settings or {})}),
        train_dataset=prompt_dataset(), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == UPDATES
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    assert {weight.dtype for weight in weights.values()} == {torch.float64}
    return weights, trainer.state.log_history


def gap(one, other):
    """The largest difference of two runs in any weight, of policy or critic."""
    assert one[0].keys() == other[0].keys()
    g = max((one[0][name] - weight).abs().max().item() for name, weight in other[0].items())
    print("GAP", g)
    return g


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(objective, settings, **kwargs): run(), each once."""
    done = {}

    def get(objective="ppo", settings=None, **kwargs):
        key = repr((objective, settings, kwargs))
        if key not in done:
            done[key] = run(tmp_path_factory.mktemp("run"), objective, settings, **kwargs)
        return done[key]

    return get


def clip_fractions(run):
    return [row["objective/clip_fraction"] for row in run[1] if "objective/clip_fraction" in row]


def test_symmetric_as_published_with_one_half_each_is_ppo(trained):
    ppo, symmetric = trained(), trained("symmetric", alpha=0.5, beta=0.5)
    assert gap(ppo, symmetric) < 1e-6
    assert sum(fraction > 0 for fraction in clip_fractions(ppo)) >= 5  # the clip binds, or its mask would not matter
    assert clip_fractions(symmetric) == pytest.approx(clip_fractions(ppo), abs=1e-9)


@pytest.mark.parametrize("change", [{"masked": False}, {"over_old": False}])
def test_the_other_forms_of_symmetric_are_not_ppo(trained, change):
    assert gap(trained(), trained("symmetric", alpha=0.5, beta=0.5, **change)) > 1e-3


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.5, 0.2)])
def test_symmetric_is_its_control_ppo_times_alpha_plus_beta(trained, alpha, beta):
    symmetric, control = trained("symmetric", alpha=alpha, beta=beta), trained(policy_coef=alpha + beta)
    assert gap(symmetric, control) < 1e-6
    assert gap(symmetric, trained()) > 1e-3
    assert sum(fraction > 0 for fraction in clip_fractions(symmetric)) >= 5


# alpha + beta = 2 from here on: a power of two scales without rounding, also where TRL takes log-probs in float32.
def test_times_alpha_plus_beta_is_the_balance_with_the_critic(trained):
    """(a + b) policy + v critic = (a + b) (policy + v / (a + b) critic), and plain descent has a + b in its rate."""
    symmetric = trained("symmetric", SGD, alpha=1.0, beta=1.0)
    assert gap(symmetric, trained("ppo", {**SGD, "learning_rate": 2 * RATE, "vf_coef": 0.5 / 2})) < 1e-6
    assert gap(symmetric, trained("ppo", {**SGD, "learning_rate": 2 * RATE})) > 1e-3
    assert sum(fraction > 0 for fraction in clip_fractions(symmetric)) >= 5


@pytest.mark.parametrize(
    ("times_one", "times_two"),
    [
        ({**SGD, "learning_rate": 2 * RATE}, SGD),
        ({"adam_epsilon": 1e-6, "max_grad_norm": 0.0}, {"adam_epsilon": 2e-6, "max_grad_norm": 0.0}),
        ({**SGD, "max_grad_norm": 0.1, "learning_rate": 1.0}, {**SGD, "max_grad_norm": 0.1, "learning_rate": 1.0}),
    ],
    ids=["descent", "adam", "clipped gradient"],
)
def test_without_a_critic_times_alpha_plus_beta_is_the_rate_of_descent_the_epsilon_of_adam_or_nothing(
    trained, times_one, times_two
):
    """Adam takes a direction only, but for its epsilon, and so does descent along gradients all clipped to one norm."""
    symmetric = trained("symmetric", {**NO_CRITIC, **times_two}, alpha=1.0, beta=1.0)
    ppo = trained("ppo", {**NO_CRITIC, **times_one})
    assert gap(symmetric, ppo) < 1e-6
    assert sum(fraction > 0 for fraction in clip_fractions(ppo)) >= 5
    norms = [[row["grad_norm"] for row in log if "grad_norm" in row] for _, log in (ppo, symmetric)]
    assert norms[1] == pytest.approx([2 * norm for norm in norms[0]], rel=1e-4)
    # A rollout whose scores are all equal has no gradient; every other one is clipped where that is asked for.
    assert all(norm == 0 or norm > 0.1 for norm in norms[0]) and norms[0].count(0) <= 2
