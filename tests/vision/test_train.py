import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scope_rlhf.objectives import OBJECTIVES, make_objective
from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.data import BatchOrder, load_data, make_loader
from scope_rlhf.vision.long_tail import make_method
from scope_rlhf.vision.networks import load_classifier, make_classifier
from scope_rlhf.vision.optimizer import learning_rate_factor, make_optimizer
from scope_rlhf.vision.predict import predict_log_probs
from scope_rlhf.vision.train import classification_loss, train_vision
from tests.vision.makers import make_config

STEPS = 50


def weights_after(config, loss_of, steps=STEPS):
    """A plain loop on the batches of the trainer: first weights, order and optimizer are those of a run."""
    data = load_data(config, show=False)
    torch.manual_seed(config.seed)
    model = make_classifier(config.network, data.classes, data.source.channels, data.normalisation)
    optimizer = make_optimizer(model, config)
    order = BatchOrder(data.split.train, config.per_device_train_batch_size, config.seed)
    for images, labels in make_loader(data, config, order, 0, steps):
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
    return {name: weight.detach().clone() for name, weight in model.network.named_parameters()}


def trained(folder, **more):
    """The last weights of a run of STEPS updates, from its checkpoint."""
    config = make_config(folder, num_train_epochs=5, save_total_limit=9, save_steps=STEPS, **more)
    updates = len(BatchOrder(load_data(config, show=False).split.train, config.per_device_train_batch_size, 1))
    assert updates * 5 >= STEPS
    train_vision(config)
    learner = torch.load(folder / f"checkpoint-{STEPS}" / "learner.pt", weights_only=True)
    return config, {name.removeprefix("network."): w for name, w in learner["model"].items()}


def largest_difference(one, two):
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def focal(gamma):
    def loss(logits, labels):
        log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
        return (-((1 - log_p.exp()) ** gamma) * log_p).mean()

    return loss


@pytest.mark.parametrize(
    ("objective", "loss_of"),
    [("ppo", F.cross_entropy), ("scope", focal(1)), ("focal", focal(2))],
    ids=["ppo is cross-entropy", "scope is focal of gamma 1", "focal has gamma 2"],
)
def test_a_trained_objective_follows_the_supervised_loss_it_equals_step_by_step(tmp_path, objective, loss_of):
    config, found = trained(tmp_path / "run", objective=objective, imbalance_ratio=5.0)
    expected = weights_after(config, loss_of)
    assert largest_difference(found, expected) <= 1e-6
    first = weights_after(config, loss_of, 1)
    assert largest_difference(expected, first) > 1e-2  # fifty steps lead somewhere


def test_scope_in_training_is_the_catalogues_focal_of_gamma_one(tmp_path):
    _, scope = trained(tmp_path / "scope", objective="scope")
    _, focal_one = trained(tmp_path / "focal", objective="focal", objective_kwargs={"gamma": 1})
    _, other = trained(tmp_path / "other", objective="scope", objective_kwargs={"alpha": 0.5})
    # Adam divides by small second moments, which makes more of rounding than 1e-6.
    assert largest_difference(scope, focal_one) <= 1e-5 < 1e-2 < largest_difference(scope, other)


def test_class_balanced_cross_entropy_is_that_of_torch_with_weights():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    counts = torch.tensor([50, 10, 2])
    method = make_method("class_balanced")
    losses = classification_loss(make_objective("ppo"), method, logits, labels, counts).per_decision
    weights = method.class_weights(counts, 0.0)
    assert weights is not None
    expected = F.cross_entropy(logits, labels, weights, reduction="none")
    torch.testing.assert_close(losses * weights[labels], expected)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("remedy", ["none", "ldam_drw", "logit_adjustment"])
def test_every_objective_goes_with_every_remedy(name, remedy):
    config = VisionConfig(objective=name, long_tail=remedy)
    logits = (10 * torch.randn(8, 4)).requires_grad_()
    labels, counts = torch.arange(8) % 4, torch.tensor([100, 30, 9, 1])
    loss = classification_loss(config.make_objective(), make_method(remedy), logits, labels, counts)
    assert loss.per_decision.shape == (8,)
    loss.per_decision.sum().backward()
    assert logits.grad.isfinite().all()
    # Every gradient is that of log-probs: it sums to zero over the classes.
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(8), rtol=0, atol=1e-4)


def test_the_supervised_parameters_are_those_of_the_paper():
    assert VisionConfig(objective="scope").make_objective().alpha == 1.0
    assert VisionConfig(objective="policy_entropy").make_objective().alpha == 8e-6
    assert VisionConfig(objective="focal").make_objective().gamma == 2.0
    assert VisionConfig(objective="scope", objective_kwargs={"alpha": 0.3}).make_objective().alpha == 0.3


def test_a_run_learns_keeps_its_best_epoch_and_writes_what_it_did(tmp_path):
    folder = train_vision(make_config(tmp_path / "run", num_train_epochs=8, learning_rate=3e-3, objective="scope"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train/loss"] < 0.3 * rows[0]["train/loss"]
    values = [row["validation/balanced_accuracy"] for row in rows]
    assert max(values) > 0.7
    finished = json.loads((folder / "finished.json").read_text())
    assert (finished["value"], finished["epoch"]) == (max(values), values.index(max(values)) + 1)
    model, record = load_classifier(folder / "model")
    assert record["epoch"] == finished["epoch"]
    config = make_config(tmp_path / "run")
    data = load_data(config, show=False)
    positions = data.split.validation
    log_probs = predict_log_probs(model, data, positions, image_size=8).numpy()
    recalls = [(log_probs.argmax(1) == k)[data.labels[positions] == k].mean() for k in range(10)]
    assert np.mean(recalls) == pytest.approx(finished["value"])
    split = json.loads((folder / "split.json").read_text())
    assert len(split["train"]) == sum(split["counts"]["train"])
    written = json.loads((folder / "config.json").read_text())
    assert written["data"]["counts"]["train"] == split["counts"]["train"]


def test_an_epoch_without_a_finite_loss_is_not_kept_as_the_best(tmp_path, monkeypatch):
    """NaN compares with nothing: it stayed the best for good."""
    values = iter([float("nan"), 3.0, 2.0, float("nan")])
    found = {"balanced_accuracy": 0.1, "loss": 0.0}
    monkeypatch.setattr("scope_rlhf.vision.train.evaluate", lambda *_: {**found, "loss": next(values)})
    folder = train_vision(make_config(tmp_path / "run", num_train_epochs=4, metric_for_best_model="loss"))
    finished = json.loads((folder / "finished.json").read_text())
    assert (finished["value"], finished["epoch"]) == (2.0, 3)


def test_patience_ends_a_run_that_does_not_get_better(tmp_path):
    stuck = make_config(tmp_path / "run", num_train_epochs=30, learning_rate=1e-12, early_stopping_patience=3)
    folder = train_vision(stuck)
    assert json.loads((folder / "finished.json").read_text())["step"] == 4 * len(
        BatchOrder(load_data(stuck, show=False).split.train, 32, 1)
    )


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoints(tmp_path):
    config = make_config(tmp_path / "run", optim="sgd", learning_rate=1e30, num_train_epochs=3)
    with pytest.raises(
        ValueError, match="has diverged: the training loss is NaN or infinite .* set a lower --learning_rate"
    ):
        train_vision(config)


def test_the_order_of_images_is_a_permutation_of_each_epoch_and_goes_on_anywhere():
    order = BatchOrder(np.arange(100, 153), 8, seed=3)
    assert len(order) == 7
    whole = list(order.from_update(0, 14))
    for epoch in range(2):
        seen = [position for batch in whole[7 * epoch : 7 * epoch + 7] for _, position in batch]
        assert sorted(seen) == list(range(100, 153))
    assert [len(batch) for batch in whole[:7]] == [8] * 6 + [5] == [order.size_of(i) for i in range(7)]
    assert whole[:7] != [[(0, p) for _, p in batch] for batch in whole[7:]]
    assert list(order.from_update(5, 14)) == whole[5:]
    shares = [list(BatchOrder(np.arange(100, 153), 8, 3, rank=r, processes=2).from_update(0, 7)) for r in (0, 1)]
    for batch, one, two in zip(whole, *shares, strict=False):
        assert sorted(one + two) == sorted(batch)


def test_a_last_batch_of_one_image_is_left_out_as_batch_normalisation_needs_two():
    assert [len(batch) for batch in BatchOrder(np.arange(17), 8, 1).epoch(0)] == [8, 8]
    assert [len(batch) for batch in BatchOrder(np.arange(18), 8, 1).epoch(0)] == [8, 8, 2]
    assert [len(batch) for batch in BatchOrder(np.arange(19), 8, 1, processes=2).epoch(0)] == [8, 8]
    with pytest.raises(ValueError, match="1 training images are fewer than two for each"):
        BatchOrder(np.arange(1), 8, 1)


def test_images_per_second_counts_images_that_there_are_and_not_evaluations(tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # a second passes at every look
    monkeypatch.setattr("scope_rlhf.vision.train.time", clock)
    folder = train_vision(make_config(tmp_path / "run", per_device_train_batch_size=5000, num_train_epochs=1))
    row = json.loads((folder / "metrics.jsonl").read_text())
    images = len(json.loads((folder / "split.json").read_text())["train"])
    # The one update: two seconds, of which one waits for images; one more until the device is done.
    assert (row["images_per_second"], row["time/waiting_share"]) == pytest.approx((images / 3, 1 / 3))


def test_weighted_draws_follow_their_weights():
    order = BatchOrder(np.arange(4), 4, 1, weights=np.array([1.0, 1.0, 2.0, 0.0]))
    drawn = np.concatenate([np.concatenate(order.epoch(number)) for number in range(500)])
    assert (np.bincount(drawn, minlength=4) / len(drawn)).tolist() == pytest.approx([0.25, 0.25, 0.5, 0], abs=0.03)


@pytest.mark.parametrize(
    ("kind", "expected"), [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0.1]), ("cosine", [1, 0.5, 0.02447])]
)
def test_the_rate_falls_as_its_schedule_says(kind, expected):
    found = [learning_rate_factor(update, 10, 0, kind) for update in (0, 5, 9)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert [learning_rate_factor(u, 10, 4, kind) for u in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "vgg"}, "network 'vgg' is unknown; valid: cnn, resnet18, resnet50, resnet101; set --network"),
        ({"network": "resnet102"}, "did you mean resnet101"),
        ({"objective": "scop"}, "did you mean 'scope'|did you mean scope"),
        (
            {"objective": "scope", "objective_kwargs": {"importance_weighted": True}},
            "importance_weighted|old log-probs",
        ),
        ({"long_tail": "ldam"}, "long_tail 'ldam' is unknown, did you mean ldam_drw"),
        ({"test_fraction": 0.7, "validation_fraction": 0.3}, "leave nothing to train on"),
        ({"imbalance_ratio": 0.5}, "imbalance_ratio must be a number >= 1"),
        ({"resize_size": 4}, "resize_size must be a whole number >= 8"),
        ({"dataset_name": " "}, "dataset_name is empty"),
        ({"resume": True, "output_dir": None}, "resume needs the run folder"),
        ({"report_to": ["neptune"]}, "report_to 'neptune' is unknown"),
        ({"num_train_epochs": 0}, "num_train_epochs must be a whole number >= 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number > 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_construction(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**{"network": "cnn", "image_size": 8, **settings})
