"""Networks: the division by 255 inside the weights, shapes and sizes by formula, heads, refusals."""

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from scope_rlhf.control.networks import (
    MLP,
    ActorCritic,
    Conv2d,
    ImpalaCNN,
    Linear,
    NatureCNN,
    PixelConv2d,
    QNetwork,
    channels_first,
    check_network,
    is_pixels,
    make_encoder,
)
from scope_rlhf.control.policies import CategoricalPolicy, GaussianPolicy
from scope_rlhf.objectives import make_critic_loss

spaces = gymnasium.spaces
ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
PROCGEN = spaces.Box(0, 255, (64, 64, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (17,), np.float64)
MSE = make_critic_loss("mse")


def size(module):
    return sum(p.numel() for p in module.parameters())


def convolution(inputs, outputs, kernel):
    return inputs * outputs * kernel**2 + outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixel_convolution_is_the_convolution_of_pixels_divided_by_255(dtype):
    torch.manual_seed(0)
    layer = PixelConv2d(3, 5, 3, stride=2, padding=1).to(dtype)
    pixels = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8)
    expected = functional.conv2d(pixels.to(dtype) / 255, layer.weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(pixels), expected)
    ours = torch.autograd.grad(layer(pixels).square().sum(), (layer.weight, layer.bias))
    theirs = torch.autograd.grad(expected.square().sum(), (layer.weight, layer.bias))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "plain", "shape"),
    [(Conv2d(3, 5, 3, 2, 1), nn.Conv2d(3, 5, 3, 2, 1), (7, 3, 9, 8)), (Linear(12, 5), nn.Linear(12, 5), (7, 12))],
    ids=["Conv2d", "Linear"],
)
def test_layers_with_a_way_of_their_own_on_cpus_give_what_torchs_layers_give(layer, plain, shape, dtype):
    torch.manual_seed(0)
    plain.load_state_dict(layer.state_dict())
    layer, plain, inputs = layer.to(dtype), plain.to(dtype), torch.randn(shape, dtype=dtype)
    given = [inputs.clone().requires_grad_() for _ in range(2)]
    found = [module(x) for module, x in zip((layer, plain), given, strict=True)]
    weights = torch.randn_like(found[0])
    for one, other in zip(
        *[
            (y, *torch.autograd.grad((y * weights).sum(), (x, *module.parameters())))
            for y, x, module in zip(found, given, (layer, plain), strict=True)
        ],
        strict=True,
    ):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, **({"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}))
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), plain(inputs), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        torch.testing.assert_close(layer(inputs), plain(inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("space", "network"), [(ATARI, "nature"), (PROCGEN, "impala")])
def test_bytes_channels_last_give_what_floats_channels_first_give(space, network):
    torch.manual_seed(0)
    encoder = make_encoder(space, network, (64,))
    channels, height, width = space.shape if space is ATARI else (3, 64, 64)
    stored = torch.randint(0, 256, (2, height, width, channels), dtype=torch.uint8)
    bytes_, floats = stored.permute(0, 3, 1, 2), stored.permute(0, 3, 1, 2).float().contiguous()
    torch.testing.assert_close(encoder(bytes_), encoder(floats), rtol=1e-4, atol=1e-5)
    assert encoder(bytes_).std() > 0.01


def test_the_nature_cnn_has_the_size_that_is_known_from_dqn():
    network = NatureCNN(4, 84, 84)
    # 84 -> 20 -> 9 -> 7 pixels: 64 x 7 x 7 = 3136 inputs of the linear layer.
    convolutions = convolution(4, 32, 8) + convolution(32, 64, 4) + convolution(64, 64, 3)
    assert size(network) == convolutions + 3136 * 512 + 512 == 1_684_128
    assert network(torch.zeros(3, 4, 84, 84, dtype=torch.uint8)).shape == (3, 512)


def test_the_impala_cnn_has_15_convolutions_of_16_32_and_32_channels_and_256_features():
    network = ImpalaCNN(3, 64, 64)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 15
    blocks = [(3, 16), (16, 32), (32, 32)]
    expected = sum(convolution(inputs, wide, 3) + 4 * convolution(wide, wide, 3) for inputs, wide in blocks)
    assert size(network) == expected + 32 * 8 * 8 * 256 + 256
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 256)
    # Only the first layer sees bytes: dividing again would make the later ones vanish.
    assert [type(m) is PixelConv2d for m in network.modules() if isinstance(m, nn.Conv2d)] == [True] + [False] * 14


def test_a_residual_block_of_zero_weights_is_the_identity():
    block = next(m for m in ImpalaCNN(3, 16, 16).modules() if type(m).__name__ == "_Residual")
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 16, 5, 5)
    kept = x.clone()
    assert torch.equal(block(x), x) and torch.equal(x, kept)


def test_the_mlp_is_linear_and_tanh_layers_of_the_flattened_observation():
    torch.manual_seed(0)
    network = MLP(6, (5, 4))
    x = torch.randn(3, 2, 3)
    first, second = (m for m in network.modules() if isinstance(m, nn.Linear))
    expected = (second.weight @ (first.weight @ x.flatten(1).T + first.bias[:, None]).tanh()).T + second.bias
    torch.testing.assert_close(network(x), expected.tanh())
    torch.testing.assert_close(first.weight @ first.weight.T, 2 * torch.eye(5))  # orthogonal, gain sqrt(2)
    assert network.features == 4 and (first.bias == 0).all()


def test_pixels_share_one_encoder_and_vectors_have_one_each():
    policy = CategoricalPolicy(6)
    pixels = ActorCritic(ATARI, policy, MSE)
    assert pixels.value_encoder is None
    assert size(pixels) == 1_684_128 + 513 * 6 + 513
    vectors = ActorCritic(VECTOR, policy, MSE, hidden=(64, 64))
    assert size(vectors) == 2 * (17 * 64 + 64 + 65 * 64) + 65 * 6 + 65
    policy_outputs, values = vectors(torch.randn(3, 17))
    assert policy_outputs.shape == (3, 6) and values.shape == (3, 1)
    assert vectors.value_encoder is not None
    gradients = torch.autograd.grad(values.sum(), list(vectors.encoder.parameters()), allow_unused=True)
    assert all(g is None for g in gradients)
    pixel_values = pixels(torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))[1]
    gradients = torch.autograd.grad(pixel_values.sum(), list(pixels.encoder.parameters()))
    assert all(g.abs().sum() > 0 for g in gradients[::2])


def test_a_gaussian_policy_gets_means_and_log_stds():
    agent = ActorCritic(VECTOR, GaussianPolicy(-np.ones(6), np.ones(6)), MSE)
    outputs, _ = agent(torch.randn(3, 17))
    assert outputs.shape == (3, 12) and (outputs[:, 6:] == 0).all()


@pytest.mark.parametrize("name", ["hl_gauss", "two_hot"])
def test_the_head_of_a_categorical_critic_starts_at_mid_support(name):
    torch.manual_seed(0)
    critic = make_critic_loss(name, v_min=-4.0, v_max=10.0, bins=51)
    agent = ActorCritic(VECTOR, CategoricalPolicy(3), critic)
    _, outputs = agent(torch.randn(5, 17))
    assert outputs.shape == (5, 51)
    torch.testing.assert_close(critic.decode(outputs), torch.full((5,), 3.0))
    scalar = ActorCritic(VECTOR, CategoricalPolicy(3), MSE)(torch.randn(5, 17))[1]
    assert scalar.std() > 0.01


def test_a_fresh_policy_is_nearly_uniform():
    torch.manual_seed(0)
    outputs, _ = ActorCritic(VECTOR, CategoricalPolicy(6), MSE)(torch.randn(50, 17))
    assert (outputs.softmax(1) - 1 / 6).abs().max() < 0.01


@pytest.mark.parametrize("space", [ATARI, VECTOR])
def test_a_q_network_gives_critic_outputs_of_every_action(space):
    critic = make_critic_loss("two_hot", v_min=-1.0, v_max=1.0, bins=7)
    network = QNetwork(space, 5, critic)
    observations = torch.zeros(3, *space.shape)
    assert network(observations).shape == (3, 5, 7)
    assert critic.decode(network(observations)).shape == (3, 5)
    features = network.encoder(observations)
    torch.testing.assert_close(network(observations)[:, 2], (network.head(features))[:, 14:21])


def test_pixels_are_bytes_with_three_dimensions_and_the_smallest_first_one_is_the_channels():
    assert is_pixels(ATARI) and is_pixels(PROCGEN)
    assert not is_pixels(VECTOR) and not is_pixels(spaces.Box(0, 255, (128,), np.uint8))
    assert not is_pixels(spaces.Box(0, 1, (4, 84, 84), np.float32))
    assert channels_first(ATARI) and not channels_first(PROCGEN)


@pytest.mark.parametrize(
    ("space", "network", "message"),
    [
        (VECTOR, "resnet", "network 'resnet' is unknown; valid: nature, impala, mlp; set --network."),
        (
            spaces.Discrete(5),
            None,
            "the observation space Discrete(5) is no Box; flatten it in a wrapper, or set another --env.",
        ),
        (spaces.Dict({"a": VECTOR}), None, "is no Box; flatten it in a wrapper, or set another --env."),
        (ATARI, "mlp", "network 'mlp' is for vectors, the observations are pixels (4, 84, 84); set --network nature."),
        (VECTOR, "nature", "network 'nature' is for pixels, the observations have shape (17,); set --network mlp."),
        (VECTOR, "impala", "network 'impala' is for pixels, the observations have shape (17,); set --network mlp."),
        (spaces.Box(0, 255, (35, 50, 3), np.uint8), None, "too small for network 'nature' (36 x 36)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(space, network, message):
    with pytest.raises(ValueError) as error:
        check_network(space, network)
    assert message in str(error.value)


@pytest.mark.parametrize(("shape", "network"), [((36, 36, 3), "nature"), ((10, 10, 3), "impala")])
def test_the_smallest_frames_that_are_accepted_make_a_network(shape, network):
    encoder = make_encoder(spaces.Box(0, 255, shape, np.uint8), network, ())
    assert encoder(torch.zeros(1, 3, *shape[:2])).shape == (1, encoder.features)
