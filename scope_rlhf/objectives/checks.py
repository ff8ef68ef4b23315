"""The checks of the objective contract, one function each: None, or what fails and why, for one form of inputs."""

import dataclasses
import inspect
import pickle
from collections.abc import Callable

import torch
from torch import Tensor

from scope_rlhf.losses import fill_masked, reduce_loss
from scope_rlhf.objectives.base import PolicyInputs, PolicyLoss
from scope_rlhf.objectives.user import locate_error

SCORE, RATIO = "score-function form", "ratio form"  # without and with old log-probs
SHAPES = ((2, 3), (5,), (4, 2), (3,))  # [B, T], [N], [N, K], [B]


class Sample:
    """Irregular inputs of one form, their leaves, and a call. The objective sees copies that are no leaves."""

    def __init__(self, objective: Callable, form: str, log_probs: Tensor, advantages: Tensor, old: Tensor):
        self.objective = objective
        self.log_probs = log_probs.clone().requires_grad_()
        self.advantages = advantages
        self.old_log_probs = old if form == RATIO else None
        self.entropy = None
        if getattr(objective, "needs_entropy", False):
            self.entropy = (0.3 - 0.4 * log_probs.clamp(min=-5)).clone().requires_grad_()

    def inputs(self, **changes: Tensor) -> PolicyInputs:
        given = {
            "log_probs": self.log_probs.clone(),
            "advantages": self.advantages.clone(),
            "old_log_probs": None if self.old_log_probs is None else self.old_log_probs.clone(),
            "entropy": None if self.entropy is None else self.entropy.clone(),
        }
        return PolicyInputs(**{**given, **changes})

    def call(self, **changes: Tensor) -> PolicyLoss:
        return self.objective(self.inputs(**changes))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.log_probs] if self.entropy is None else [self.log_probs, self.entropy]


def make_sample(
    objective: Callable,
    form: str,
    shape: tuple[int, ...] = SHAPES[0],
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    signs = torch.ones(shape, dtype=torch.float64).flatten()
    signs[::2] = -1
    log_probs = -0.05 - 2.5 * noise[0]
    advantages = (0.3 + 1.5 * noise[1]) * signs.view(shape)
    old = (log_probs + 1.4 * (noise[2] - 0.5)).clamp(max=-0.01)  # ratios of .5 to 2: clipped on both sides and not
    return Sample(objective, form, log_probs.to(dtype), advantages.to(dtype), old.to(dtype))


def given_tensors(inputs: PolicyInputs) -> dict[str, Tensor]:
    fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    return {name: tensor for name, tensor in fields.items() if tensor is not None}


def sound_stats(loss: PolicyLoss) -> dict[str, Tensor]:
    """The stats of the right kind and shape, so that one wrong stat fails one check."""
    stats = loss.stats if isinstance(loss.stats, dict) else {}
    shape = loss.per_decision.shape
    return {n: v.detach() for n, v in stats.items() if isinstance(v, Tensor) and v.shape == shape}


def check_output(objective: Callable, form: str) -> str | None:
    for shape in SHAPES:
        loss = make_sample(objective, form, shape).call()
        if not isinstance(loss, PolicyLoss):
            return f"returns a {type(loss).__name__}, expected PolicyLoss(per_decision, stats)."
        losses = loss.per_decision
        if not isinstance(losses, Tensor):
            return f"per_decision is a {type(losses).__name__}, expected a tensor."
        if losses.shape != shape:
            why = (
                "it is already reduced: leave out the mean or sum, the caller reduces under its mask"
                if (losses.dim() < len(shape))
                else "one loss per decision"
            )
            return (
                f"per_decision has shape {tuple(losses.shape)} for inputs of shape {shape}, expected the same; {why}."
            )
    return None


def check_stats(objective: Callable, form: str) -> str | None:
    for shape in SHAPES:
        stats = make_sample(objective, form, shape).call().stats
        if not isinstance(stats, dict):
            return f"stats is a {type(stats).__name__}, expected a dict of tensors."
        for name, value in stats.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                given = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
                return f"stats[{name!r}] is a {given}, expected a floating-point tensor with one value per decision."
            if value.shape != shape:
                return f"stats[{name!r}] has shape {tuple(value.shape)} for inputs of shape {shape}, expected the same."
            if value.requires_grad:
                return f"stats[{name!r}] carries a gradient and would keep the graph alive; detach() it."
    return None


def check_inputs_unchanged(objective: Callable, form: str) -> str | None:
    inputs = make_sample(objective, form).inputs()
    tensors = given_tensors(inputs)
    before = {name: (tensor.detach().clone(), tensor._version) for name, tensor in tensors.items()}
    objective(inputs)
    for name, tensor in tensors.items():
        value, version = before[name]
        if tensor._version != version or not torch.equal(tensor.detach(), value):
            return (
                f"changes inputs.{name} in place (an operation whose name ends in _, or an assignment to a slice); "
                "compute a new tensor."
            )
    return None


def check_trains(objective: Callable, form: str) -> str | None:
    """Loss and gradient are there and finite."""
    sample = make_sample(objective, form)
    loss = sample.call().per_decision
    if not loss.isfinite().all():
        return f"per_decision is not finite: {loss.flatten().tolist()}."
    if not loss.requires_grad:
        return "per_decision carries no gradient: it is detached from log_probs, and training would change nothing."
    gradients = torch.autograd.grad(loss.sum(), sample.leaves, allow_unused=True)
    if gradients[0] is None or not gradients[0].any():
        return "the gradient of per_decision with respect to log_probs is 0 everywhere; training would change nothing."
    if len(gradients) > 1 and gradients[1] is None:
        return "needs_entropy is declared but per_decision does not depend on inputs.entropy."
    for gradient in gradients:
        if gradient is not None and not gradient.isfinite().all():
            return f"the gradient of per_decision is not finite: {gradient.flatten().tolist()}."
    return None


def check_gradient(objective: Callable, form: str) -> str | None:
    problem = check_trains(objective, form)
    if problem or getattr(objective, "stops_gradient", False):
        return problem
    sample = make_sample(objective, form)
    gradients = torch.autograd.grad(sample.call().per_decision.sum(), sample.leaves, allow_unused=True)

    names = ("log_probs", "entropy")

    def losses(*leaves: Tensor) -> Tensor:
        return sample.call(**dict(zip(names, leaves, strict=False))).per_decision

    if torch.autograd.gradcheck(losses, tuple(sample.leaves), eps=1e-6, atol=1e-6, rtol=1e-4, raise_exception=False):
        return None
    found = []
    for k, (name, gradient) in enumerate(zip(names, gradients, strict=False)):
        with torch.no_grad():
            leaves = [[leaf + step * (i == k) for i, leaf in enumerate(sample.leaves)] for step in (1e-6, -1e-6)]
            numeric = ((losses(*leaves[0]) - losses(*leaves[1])) / 2e-6).flatten()
        analytic = torch.zeros_like(numeric) if gradient is None else gradient.flatten()
        worst = int((numeric - analytic).abs().argmax())
        found.append(f"{name}[{worst}]: {analytic[worst]:.6g} and {numeric[worst]:.6g}")
    return (
        f"autograd and the finite difference of per_decision disagree in float64 ({'; '.join(found)}). If a factor is "
        "detached on purpose, declare the class variable stops_gradient = True."
    )


def check_elementwise(objective: Callable, form: str) -> str | None:
    sample = make_sample(objective, form)
    loss = sample.call()
    losses = loss.per_decision.flatten()
    for i in range(losses.numel()) if losses.requires_grad else ():
        for leaf in sample.leaves:
            row = torch.autograd.grad(losses[i], leaf, retain_graph=True, allow_unused=True)[0]
            others = torch.zeros(0) if row is None else row.flatten().index_fill(0, torch.tensor([i]), 0.0)
            if others.any():
                return (
                    f"the loss of decision {i} has a gradient with respect to decision {int(others.abs().argmax())} "
                    "(the Jacobian is not diagonal): a mean, sum or normalisation over decisions is hidden in it."
                )
    first = torch.zeros_like(sample.advantages, dtype=torch.bool)
    first.view(-1)[0] = True
    moved = {"log_probs": -0.4, "advantages": 0.7, "old_log_probs": -0.3, "entropy": 0.2}
    given = sample.inputs()
    changed = {
        name: torch.where(first, getattr(given, name) + step, getattr(given, name))
        for name, step in moved.items()
        if getattr(given, name) is not None
    }
    other = sample.call(**changed)
    pairs = {"per_decision": (loss.per_decision, other.per_decision)}
    stats, others = sound_stats(loss), sound_stats(other)
    pairs |= {f"stats[{name!r}]": (stats[name], others[name]) for name in stats if name in others}
    for name, (before, after) in pairs.items():
        if not torch.allclose(before[~first], after[~first], rtol=1e-12, atol=1e-12):
            return (
                f"{name} of the other decisions changes with the inputs of decision 0: a statistic over decisions is "
                "hidden in it; normalise in the caller, which knows the mask and the global batch."
            )
    return None


def check_log_ratio(objective: Callable, form: str) -> str | None:
    if form == SCORE:
        return None
    sample = make_sample(objective, form)
    plain, old = sample.call().per_decision, sample.inputs().old_log_probs
    assert old is not None
    if torch.equal(plain, sample.call(old_log_probs=old - 0.25).per_decision):
        return None  # no ratio in it
    if torch.equal(plain, sample.call(log_ratio=sample.log_probs - old + 0.25).per_decision):
        return (
            "ignores inputs.log_ratio: a sequence-level ratio would silently be a token-level one; "
            "use inputs.resolve_log_ratio()."
        )
    return None


def check_masked(objective: Callable, form: str) -> str | None:
    sample = make_sample(objective, form)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    spoilt = Sample(
        objective,
        form,
        sample.log_probs.detach().masked_fill(~mask, -torch.inf),
        sample.advantages.masked_fill(~mask, torch.nan),
        torch.full_like(sample.advantages, -torch.inf)
        if sample.old_log_probs is None
        else sample.old_log_probs.masked_fill(~mask, -torch.inf),
    )
    loss = spoilt.call(**{name: fill_masked(tensor, mask) for name, tensor in given_tensors(spoilt.inputs()).items()})
    total = reduce_loss(loss.per_decision, mask, "token_mean")
    old = sample.advantages if sample.old_log_probs is None else sample.old_log_probs
    counted = Sample(objective, form, sample.log_probs.detach()[mask], sample.advantages[mask], old[mask])
    expected = reduce_loss(counted.call().per_decision, None, "token_mean")
    if not torch.allclose(total, expected, rtol=1e-12, atol=1e-12):
        return (
            f"masking is not deleting: the loss is {total:.6g} with masked positions and {expected:.6g} without them."
        )
    if not total.requires_grad:
        return None  # said by the gradient check
    gradient = torch.autograd.grad(total, spoilt.log_probs)[0]
    wanted = torch.zeros_like(gradient)
    wanted[mask] = torch.autograd.grad(expected, counted.log_probs)[0]
    if not torch.allclose(gradient, wanted, rtol=1e-12, atol=1e-12):
        return (
            f"masked positions change the gradient: {gradient.flatten().tolist()}, {wanted.flatten().tolist()} without."
        )
    return None


def check_extremes(objective: Callable, form: str) -> str | None:
    cases = [(lp, min(lp + gap, -1e-8), a) for lp in (-100.0, -1e-8) for gap in (0.0, 0.25, -0.25) for a in (1.0, -1.0)]
    for dtype in (torch.float32, torch.bfloat16):
        log_probs, old, advantages = torch.tensor(cases, dtype=torch.float64).T.to(dtype)
        sample = Sample(objective, form, log_probs, advantages, old)
        loss = sample.call()
        values = {"per_decision": loss.per_decision} | {f"stats[{n!r}]": v for n, v in sound_stats(loss).items()}
        if loss.per_decision.requires_grad:
            gradients = torch.autograd.grad(loss.per_decision.sum(), sample.leaves, allow_unused=True)
            names = ("the gradient", "the gradient of the entropy")
            values |= {n: gradient for n, gradient in zip(names, gradients, strict=False) if gradient is not None}
        for name, value in values.items():
            bad = (~value.isfinite()).nonzero().flatten().tolist()
            if bad:
                log_prob, old_log_prob, advantage = cases[bad[0]]
                with_old = f", log p_o = {old_log_prob:g}" if form == RATIO else ""
                return (
                    f"{name} is {value[bad[0]]} in {str(dtype).removeprefix('torch.')} at log p = {log_prob:g}"
                    f"{with_old}, A = {advantage:g}: an exp, log or division leaves the range. Stay in log space, or "
                    "clamp the exponent before exp."
                )
    return None


def check_dtypes(objective: Callable, form: str) -> str | None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        loss = make_sample(objective, form, dtype=dtype).call()
        for name, value in {"per_decision": loss.per_decision, **sound_stats(loss)}.items():
            if value.dtype != dtype:
                return f"{name} is {value.dtype} for inputs of {dtype}, expected the same."
    return None


def check_stateless(objective: Callable, form: str) -> str | None:
    parameters = getattr(type(objective), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return "the class is no frozen dataclass; decorate it with @dataclass(frozen=True): it holds no state."
    before = repr(vars(objective)) if hasattr(objective, "__dict__") else repr(objective)
    sample = make_sample(objective, form)
    first, second = sample.call().per_decision, sample.call().per_decision
    if not torch.equal(first, second):
        return "the same inputs give two different losses: it keeps a state or draws random numbers."
    if before != (repr(vars(objective)) if hasattr(objective, "__dict__") else repr(objective)):
        return "a call changes the object's fields; it must hold hyperparameters only."
    return None


def check_pickling(objective: Callable, form: str) -> str | None:
    try:
        twin = pickle.loads(pickle.dumps(objective))
    except Exception as error:
        for field in dataclasses.fields(objective) if dataclasses.is_dataclass(objective) else ():
            try:
                pickle.dumps(getattr(objective, field.name))
            except Exception as inner:
                return f"field {field.name!r} cannot be pickled ({inner}); keep plain values, not functions, in fields."
        return f"cannot be pickled ({type(error).__name__}: {error}); define the class at the top level of its file."
    if not torch.equal(make_sample(objective, form).call().per_decision, make_sample(twin, form).call().per_decision):
        return "the unpickled copy gives another loss: a field does not survive pickling."
    return None


def check_no_sync(objective: Callable, form: str) -> str | None:
    sample = make_sample(objective, form)
    try:
        sample.call(**{name: tensor.to("meta") for name, tensor in given_tensors(sample.inputs()).items()})
    except Exception as error:
        return (
            "asks for the value of a tensor (item(), float(), an if on a tensor), which waits for the device, or makes "
            f"a tensor on a device of its own: {describe_error(objective, error)}"
        )
    return None


def describe_error(objective: object, error: Exception) -> str:
    try:
        path = inspect.getfile(type(objective))
    except (TypeError, OSError):
        path = None
    return f"raised at {' '.join(locate_error(error, path).split())}."


CHECKS: tuple[tuple[str, str, Callable[[Callable, str], str | None]], ...] = (
    ("output", "PolicyLoss, unreduced, one loss per decision for [B, T], [N], [N, K] and [B].", check_output),
    ("stats", "one detached value per decision each.", check_stats),
    ("inputs_unchanged", "the inputs are left as they are.", check_inputs_unchanged),
    ("gradient", "finite, not 0, and that of the loss (float64 gradcheck unless stops_gradient).", check_gradient),
    ("elementwise", "the Jacobian is diagonal, and no decision changes another.", check_elementwise),
    ("log_ratio", "the given log_ratio is used.", check_log_ratio),
    ("masked", "masking equals deleting, whatever masked positions hold.", check_masked),
    ("extremes", "finite at log p in {-100, -1e-8} in float32 and bfloat16.", check_extremes),
    ("dtypes", "float64, float32 and bfloat16 are kept.", check_dtypes),
    ("stateless", "a frozen dataclass that gives the same loss twice.", check_stateless),
    ("pickling", "survives pickling.", check_pickling),
    ("no_sync", "never asks for a tensor's value.", check_no_sync),
)
