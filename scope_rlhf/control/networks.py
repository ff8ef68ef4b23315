"""Networks: the Nature CNN, the residual CNN of IMPALA, and the MLP, each with a policy head and a value head.

Pixels come as uint8 [N, H, W, C] or, the same bytes, [N, C, H, W] in channels_last: convolutions are about 1.4 times
faster so on CPUs. The division by 255 is done on the weights of the first layer, which is the same product.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scope_rlhf.control.policies import GaussianHead, GaussianPolicy, Policy
from scope_rlhf.objectives import CategoricalCritic, CriticLossFunction

NETWORKS = ("nature", "impala", "mlp")


def orthogonal(layer: Any, gain: float = math.sqrt(2)) -> Any:
    """Orthogonal weights, biases 0, as in baselines."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Conv2d(nn.Conv2d):
    """nn.Conv2d; while training in float32 on CPUs the bias is added by itself: oneDNN's gradient of a bias takes
    several times as long as a sum over the pixels.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(input, self.weight)

    def _convolve(self, input: Tensor, weight: Tensor) -> Tensor:
        assert self.bias is not None
        apart = _trains_on_cpu(input)
        bias = None if apart else self.bias
        made = functional.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return made.add_(self.bias.view(-1, 1, 1)) if apart else made


class PixelConv2d(Conv2d):
    """conv(x / 255) of bytes x, or of their float values 0 .. 255: the weights are divided in place of the pixels."""

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(input.to(self.weight.dtype), self.weight * (1 / 255))


class Linear(nn.Linear):
    """nn.Linear; while training in float32 on CPUs through oneDNN, of which MKL has half the speed on some."""

    def forward(self, input: Tensor) -> Tensor:
        if not (_trains_on_cpu(input) and torch.backends.mkldnn.is_available()):
            return super().forward(input)
        return torch.ops.aten.mkldnn_linear(input.to_mkldnn(), self.weight, self.bias).to_dense()


def _trains_on_cpu(input: Tensor) -> bool:
    """With gradient, in float32, on a CPU."""
    on_cpu = input.device.type == "cpu" and input.dtype == torch.float32
    return on_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class NatureCNN(nn.Module):
    """Three convolutions and 512 features (Mnih et al. 2015). [N, C, H, W] -> [N, 512]."""

    features = 512

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            orthogonal(PixelConv2d(channels, 32, 8, stride=4)),
            nn.ReLU(inplace=True),
            orthogonal(Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(inplace=True),
            orthogonal(Conv2d(64, 64, 3)),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, channels, height, width)).shape[1]
        self.linear = orthogonal(Linear(size, self.features))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.convolutions(pixels)).relu()


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = Conv2d(channels, channels, 3, padding=1)
        self.second = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())


class ImpalaCNN(nn.Module):
    """Three blocks (convolution, max-pool, two residual blocks) of `widths` channels, and 256 features.

    Espeholt et al. (arXiv 1802.01561), fig. 3, without the LSTM; Procgen's baseline. [N, C, H, W] -> [N, 256].
    """

    features = 256

    def __init__(self, channels: int, height: int, width: int, widths: Sequence[int] = (16, 32, 32)):
        super().__init__()
        layers: list[nn.Module] = []
        kind: type[Conv2d] = PixelConv2d
        for wide in widths:
            layers += [
                kind(channels, wide, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                _Residual(wide),
                _Residual(wide),
            ]
            channels, kind = wide, Conv2d
        self.convolutions = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, layers[0].in_channels, height, width)).shape[1]  # type: ignore[arg-type]
        self.linear = orthogonal(Linear(size, self.features))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.convolutions(pixels)).relu()


class MLP(nn.Module):
    """Linear and tanh layers. [N, ...] -> [N, hidden[-1]]."""

    def __init__(self, inputs: int, hidden: Sequence[int] = (64, 64), activation: type[nn.Module] = nn.Tanh):
        super().__init__()
        sizes = [inputs, *hidden]
        layers = [
            module
            for before, after in pairwise(sizes)
            for module in (orthogonal(nn.Linear(before, after)), activation())
        ]
        self.layers = nn.Sequential(nn.Flatten(), *layers)
        self.features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ActorCritic(nn.Module):
    """Policy outputs and critic outputs of observations.

    forward: observations [N, ...] -> (policy outputs [N, policy.output_size], for a Gaussian twice as many; critic
    outputs [N, critic.output_size]). Pixels share one encoder, vectors have one each, as is usual.
    """

    def __init__(
        self,
        observation_space: Any,
        policy: Policy,
        critic: CriticLossFunction,
        network: str | None = None,
        hidden: Sequence[int] = (64, 64),
    ):
        super().__init__()
        self.encoder = make_encoder(observation_space, network, hidden)
        shared = not isinstance(self.encoder, MLP)
        self.value_encoder = None if shared else make_encoder(observation_space, network, hidden)
        head = orthogonal(nn.Linear(self.encoder.features, policy.output_size), 0.01)
        self.policy_head = GaussianHead(head) if isinstance(policy, GaussianPolicy) else head
        self.value_head = value_head(self.encoder.features, critic)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(observations)
        values = features if self.value_encoder is None else self.value_encoder(observations)
        return self.policy_head(features), self.value_head(values)


class QNetwork(nn.Module):
    """Action values: observations [N, ...] -> critic outputs of every action [N, V, critic.output_size]."""

    def __init__(
        self,
        observation_space: Any,
        actions: int,
        critic: CriticLossFunction,
        network: str | None = None,
        hidden: Sequence[int] = (120, 84),
    ):
        super().__init__()
        self.encoder = make_encoder(observation_space, network, hidden, nn.ReLU)
        self.actions, self.outputs = actions, critic.output_size
        self.head = nn.Linear(self.encoder.features, actions * critic.output_size)

    def forward(self, observations: Tensor) -> Tensor:
        return self.head(self.encoder(observations)).unflatten(-1, (self.actions, self.outputs))


def value_head(features: int, critic: CriticLossFunction) -> nn.Linear:
    """Orthogonal with gain 1 for a scalar; zero logits for a categorical critic, so that V starts at mid-support."""
    head = orthogonal(nn.Linear(features, critic.output_size), 1.0)
    if isinstance(critic, CategoricalCritic):
        nn.init.zeros_(head.weight)
    return head


def is_pixels(observation_space: Any) -> bool:
    """Whether observations are bytes with three dimensions."""
    return len(observation_space.shape) == 3 and observation_space.dtype.name == "uint8"


def channels_first(observation_space: Any) -> bool:
    """Whether pixels come as [C, H, W]: the smallest dimension is the first one."""
    shape = observation_space.shape
    return shape[0] < shape[2]


def make_encoder(
    observation_space: Any, network: str | None, hidden: Sequence[int], activation: type[nn.Module] = nn.Tanh
) -> Any:
    """The encoder of that name; default nature for pixels and mlp for vectors. ValueError where it does not fit."""
    check_network(observation_space, network)
    if not is_pixels(observation_space):
        return MLP(math.prod(observation_space.shape), hidden, activation)
    shape = observation_space.shape
    channels, height, width = shape if channels_first(observation_space) else (shape[2], *shape[:2])
    kind = ImpalaCNN if network == "impala" else NatureCNN
    return kind(channels, height, width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_network(observation_space: Any, network: str | None) -> None:
    """ValueError for an unknown network, one that does not fit the observations, and frames too small for it."""
    if network is not None and network not in NETWORKS:
        raise ValueError(f"network {network!r} is unknown; valid: {', '.join(NETWORKS)}; set --network.")
    shape = getattr(observation_space, "shape", None)
    if not shape or not hasattr(observation_space, "low"):
        raise ValueError(
            f"the observation space {observation_space} is no Box; flatten it in a wrapper, or set another --env."
        )
    if is_pixels(observation_space):
        if network == "mlp":
            raise ValueError(
                f"network 'mlp' is for vectors, the observations are pixels {shape}; set --network nature."
            )
        if network != "impala" and min(sorted(shape)[1:]) < 36:
            raise ValueError(f"frames of {shape} are too small for network 'nature' (36 x 36); set --network impala.")
    elif network in ("nature", "impala"):
        raise ValueError(f"network {network!r} is for pixels, the observations have shape {shape}; set --network mlp.")
