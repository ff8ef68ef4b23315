"""Classification as a one-step problem: the label is the action, its advantage is one, and the objective the loss."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scope_rlhf.losses import categorical_entropy, reduce_loss
from scope_rlhf.metrics import classification_metrics
from scope_rlhf.objectives import Objective, PolicyInputs, PolicyLoss
from scope_rlhf.runtime.checkpoints import check_finite
from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.data import make_loader
from scope_rlhf.vision.long_tail import LongTailMethod
from scope_rlhf.vision.optimizer import learning_rate_factor
from scope_rlhf.vision.predict import predict_log_probs
from scope_rlhf.vision.session import Session


def train_vision(config: VisionConfig) -> Path:
    """Train, keep the model of the best epoch in `model`, and return the run folder.

    ValueError, ImportError and OSError before the first update for settings and data that cannot work, and ValueError
    where the run diverges.
    """
    with Session(config) as session:
        session.start()
        model, optimizer = session.accelerator.prepare(session.classifier, session.optimizer)
        updates = len(session.order)
        last = session.update if session.out_of_patience else session.total_updates
        batches = make_loader(
            session.data, config, session.order, session.update, last,
            pin_memory=session.accelerator.device.type == "cuda",
        )  # fmt: skip
        model.train()
        weights: Tensor | None = None
        first = session.update
        training = waiting = 0.0  # seconds; evaluations and checkpoints apart
        seen = 0
        for update in range(session.update, last):
            before = time.perf_counter()
            images, labels = next(batches)
            waiting += time.perf_counter() - before
            images = images.to(session.accelerator.device, non_blocking=True)
            labels = labels.to(session.accelerator.device, non_blocking=True)
            factor = learning_rate_factor(update, session.total_updates, config.warmup_steps, config.lr_scheduler_type)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor

            if update == first or update % updates == 0:
                weights = session.method.class_weights(session.counts, session.epoch / config.num_train_epochs)
            logits = model(images)
            loss = classification_loss(session.objective, session.method, logits, labels, session.counts)
            losses = loss.per_decision
            if weights is not None:
                losses = losses * weights[labels]
            # Processes average their gradients: each divides by its share of the global batch.
            whole = session.order.size_of(update % updates) / session.processes
            optimizer.zero_grad()
            session.accelerator.backward(reduce_loss(losses, None, "token_mean", normalizer=whole))
            if config.max_grad_norm:
                session.accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()

            training += time.perf_counter() - before
            session.update = update + 1
            seen += session.order.size_of(update % updates)
            sums = {"loss": losses.sum(), "accuracy": (logits.argmax(dim=1) == labels).sum()}
            sums |= {f"objective/{name}": value.sum() for name, value in loss.stats.items()}
            session.add({**sums, "images": torch.ones_like(losses).sum()})
            session.bar.update()

            stop = False
            if session.update % updates == 0:
                before = time.perf_counter()
                line = {f"train/{name}": value for name, value in session.take_means().items()}
                training += time.perf_counter() - before  # it waits for what the device has still to do
                check_finite(session.update, {"the training loss": torch.tensor(line["train/loss"])})
                line |= {
                    "epoch": session.epoch,
                    "learning_rate": config.learning_rate * factor,
                    "images_per_second": seen / training,
                    "time/waiting_share": waiting / training,
                }
                session.share_statistics()
                found = evaluate(session, session.data.split.validation)
                line |= {f"validation/{name}": value for name, value in found.items()}
                session.log(line)
                model.train()
                stop = session.keep_best(found[config.metric_for_best_model])
                shown = f"{found[config.metric_for_best_model]:.3f}"
                session.bar.set_postfix({config.metric_for_best_model: shown}, refresh=False)
                if not config.save_steps:
                    session.save()
            elif config.logging_steps and session.update % config.logging_steps == 0:
                session.log({"loss": losses.mean().item(), "learning_rate": config.learning_rate * factor})
            if config.save_steps and session.update % config.save_steps == 0:
                session.save()
            session.interrupt.heed(session)
            if stop:
                break
        return session.finish()


def classification_loss(
    objective: Objective, method: LongTailMethod, logits: Tensor, labels: Tensor, counts: Tensor
) -> PolicyLoss:
    """The objective on one-step episodes: log p of the label [B], advantages of one, no behaviour policy.

    logits [B, K] with gradient, labels [B], counts [K] of training images. With `ppo` it is cross-entropy, with `scope`
    at alpha 1 focal loss of gamma 1. The remedy changes the logits that make the probabilities.
    """
    adjusted = method.adjust(logits.float(), labels, counts)
    log_probs = torch.log_softmax(adjusted, dim=-1).gather(1, labels[:, None]).squeeze(1)
    entropy = categorical_entropy(adjusted) if getattr(objective, "needs_entropy", False) else None
    return objective(PolicyInputs(log_probs, torch.ones_like(log_probs), entropy=entropy))


@torch.no_grad()
def evaluate(session: Session, positions: np.ndarray) -> dict[str, float]:
    """classification_metrics of these images, shared over the processes; the same numbers in all of them."""
    share = positions[session.rank :: session.processes]
    size = -(-len(positions) // session.processes)
    mine = np.concatenate([share, positions[: size - len(share)]])  # all processes gather rows alike
    config = session.config
    log_probs = predict_log_probs(
        session.classifier,
        session.data,
        mine,
        image_size=config.image_size,
        batch_size=config.per_device_eval_batch_size,
        bf16=config.bf16,
    )
    gathered: Tensor = session.accelerator.gather(log_probs)  # type: ignore[assignment]
    # Row r of process p is image r * processes + p.
    ordered = gathered.view(session.processes, size, -1).transpose(0, 1).reshape(size * session.processes, -1)
    labels = session.data.labels[positions]
    return classification_metrics(labels, ordered[: len(positions)].cpu().numpy(), session.data.counts)
