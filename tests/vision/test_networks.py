from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification

from scope_rlhf.vision.networks import load_classifier, make_classifier, pretrained_normalisation, save_classifier

NORMALISATION = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CLASSES = ["apple", "leaf", "sea"]
BYTES = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(network="cnn", **more) -> Any:
    torch.manual_seed(0)
    return make_classifier(network, CLASSES, 3, NORMALISATION, **more).eval()


def record(network, scale=None):
    same = {"classes": CLASSES, "channels": 3, "normalisation": NORMALISATION}
    return {"network": network, "cosine_scale": scale, **same}


def test_resnet_101_with_257_classes_has_the_43_million_weights_of_the_paper():
    model: Any = make_classifier("resnet101", [str(k) for k in range(257)], 3, NORMALISATION)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(43.0e6, rel=0.01)
    assert model.network.config.id2label[256] == "256"


@pytest.mark.parametrize(("network", "millions"), [("cnn", 0.15), ("resnet18", 11.2), ("resnet50", 23.5)])
def test_bytes_become_logits(network, millions):
    model = make(network)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(millions * 1e6, rel=0.02)
    logits = model(BYTES)
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32


def test_pixels_are_normalised_by_channel():
    model = make()
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(BYTES)
    expected = (BYTES.double() / 255 - torch.tensor(NORMALISATION[0])) / torch.tensor(NORMALISATION[1])
    torch.testing.assert_close(seen[0].permute(0, 2, 3, 1).double(), expected, rtol=0, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("network", ["cnn", "resnet18"])
def test_the_cosine_head_sees_directions_alone(network):
    model = make(network, cosine_scale=30.0)
    head = model.network.classifier if network == "cnn" else model.network.classifier[-1]
    features = torch.randn(4, head.directions.shape[1])
    logits = head(features)
    torch.testing.assert_close(logits, head(7 * features))
    expected = 30 * F.cosine_similarity(features[:, None], head.directions[None], dim=-1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["cnn", "resnet18"])
@pytest.mark.parametrize("scale", [None, 30.0])
def test_a_saved_classifier_gives_the_same_logits(tmp_path, network, scale):
    model = make(network, cosine_scale=scale)
    save_classifier(model, tmp_path / "model", record(network, scale))
    loaded, found = load_classifier(tmp_path / "model")
    assert found["classes"] == CLASSES
    torch.testing.assert_close(loaded(BYTES), model(BYTES), rtol=0, atol=1e-5)


def test_a_saved_resnet_is_read_by_transformers_and_goes_on_with_other_classes(tmp_path):
    model = make("resnet18")
    save_classifier(model, tmp_path / "model", record("resnet18"))
    read = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    assert read.config.id2label == {0: "apple", 1: "leaf", 2: "sea"}
    pixels = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(read(pixels).logits, model.network(pixels).logits, rtol=1e-4, atol=1e-5)
    other: Any = make_classifier("cnn", list("abcde"), 3, NORMALISATION, model_name_or_path=str(tmp_path / "model"))
    assert other(BYTES).shape == (2, 5)
    one, two = (m.network.resnet.embedder.embedder.convolution.weight for m in (other, model))
    torch.testing.assert_close(one, two)


def test_a_pretrained_model_has_the_normalisation_of_its_own(tmp_path):
    save_classifier(make("resnet18"), tmp_path / "model", record("resnet18"))
    assert pretrained_normalisation(str(tmp_path / "model")) is None
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 2, 3]}')
    assert pretrained_normalisation(str(tmp_path / "model")) == ([0, 0, 0], [1, 2, 3])
    save_classifier(make("cnn"), tmp_path / "own", record("cnn"))
    with pytest.raises(ValueError, match="is a small CNN of a run here"):
        make_classifier("cnn", CLASSES, 3, NORMALISATION, model_name_or_path=str(tmp_path / "own"))


def test_what_is_no_classifier_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no classifier: FileNotFoundError"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match="network 'vgg' is unknown; valid: cnn, resnet18"):
        make_classifier("vgg", CLASSES, 3, NORMALISATION)
    with pytest.raises(ValueError, match="takes colour images, these are grey"):
        make_classifier("cnn", CLASSES, 1, ((0.5,), (0.5,)), model_name_or_path="microsoft/resnet-50")
    with pytest.raises((ValueError, OSError), match="model_name_or_path"):
        make_classifier("cnn", CLASSES, 3, NORMALISATION, model_name_or_path=str(tmp_path))
