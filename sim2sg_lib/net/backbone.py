"""The encoder phi: configuration, input representation, a feature pyramid on an image network."""
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from sim2sg_lib.cli import InputError
from sim2sg_lib.net.efficientnet import WIDTHS, EfficientNetLite0

LITE = "efficientnet_lite0"
BACKBONES = (LITE, "resnet101", "resnet50", "resnet18")
INPUTS = ("edges", "rgb")
MAX_INPUT_PIXELS = 2**21  # twice the input of the largest preset
EDGE_WINDOW, FORMER_WINDOW_PX = 0.11, 31
EDGE_FLOOR = 0.05  # luminance differences below it are noise


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild the network, as plain numbers, strings and tuples.

    imagenet: True: ImageNet weights, frozen batch norm, the last three stages trained. False: group
              norm, everything trained from scratch.

    Raises: ValueError for values outside these ranges: a checkpoint may come from anywhere.
    """

    categories: int  # without background
    predicates: int  # each one is a yes or no, there is no "no relation" class
    width: int  # of the network input, pixels
    height: int
    backbone: str  # one of BACKBONES
    imagenet: bool
    input: str  # one of INPUTS: `local_edges` of the image, or RGB normalized as for ImageNet
    # layers (1..4, strides 4..32) that become pyramid levels; a pooled level is added on top
    returned_layers: tuple[int, ...]
    anchor_sizes: tuple[int, ...]  # side in pixels for each level, the pooled one last
    fpn_channels: int  # of every pyramid level
    head_width: int  # of the two-layer box head, and of the one for union boxes
    rois_per_image: int  # RoIs sampled per image for the loss of the box head
    # RPN proposals per image (before non-maximum suppression: per level, at least MIN_PRE_NMS)
    proposals_train: int
    proposals_test: int
    graph_width: int  # of object and relation states in the graph network
    nodes_train: int  # detections per image that become graph nodes, besides the ground-truth boxes
    nodes_test: int
    pairs_train: int  # ordered pairs per image kept by the relation proposal network
    pairs_test: int
    gcn_steps: int = 2  # message-passing steps, sharing weights, of each level of the graph network
    # the encoder sees the image enlarged by 1, 2 or 4, which divides the strides
    enlarge: int = 1
    # of `local_edges`, a fraction of the image's width; 0: one square window of 31 px, as in
    # checkpoints without this field
    edge_window: float = 0.0

    def __post_init__(self):
        for name in ("returned_layers", "anchor_sizes"):  # JSON turns tuples into lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        layers, sizes = self.returned_layers, self.anchor_sizes
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}
        for name, value in [*numbers.items(), *(("anchor_sizes", size) for size in sizes)]:
            least = 0 if name == "gcn_steps" else 1
            if type(value) is not int or not least <= value < 2**16:
                raise ValueError(f"{name}: {value!r} expected an integer from {least} to 65535")
        if self.enlarge not in (1, 2, 4):
            raise ValueError(f"enlarge: {self.enlarge} expected 1, 2 or 4")
        if self.width * self.height * self.enlarge**2 > MAX_INPUT_PIXELS:
            raise ValueError(f"width, height: {self.width}x{self.height} enlarged {self.enlarge} "
                             f"times, expected {MAX_INPUT_PIXELS} pixels at most")
        if type(self.edge_window) not in (int, float) or not 0 <= self.edge_window <= 1:
            raise ValueError(f"edge_window: {self.edge_window!r} expected a number from 0 to 1")
        if type(self.imagenet) is not bool:
            raise ValueError(f"imagenet: {self.imagenet!r} expected true or false")
        if self.backbone == LITE and not self.imagenet:
            raise ValueError(f"imagenet: {LITE} is not trained from scratch, choose a ResNet")
        if not layers or list(layers) != sorted({1, 2, 3, 4} & set(layers)):
            raise ValueError(f"returned_layers: {layers} expected some of 1, 2, 3, 4, rising")
        if len(sizes) != len(layers) + 1:
            raise ValueError(f"anchor_sizes: expected {len(layers) + 1} numbers, one per level")
        for name, choices in (("backbone", BACKBONES), ("input", INPUTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} expected {' or '.join(choices)}")

    @property
    def strides(self) -> list[int]:
        """Of every pyramid level, the pooled one last, in pixels of the image before enlarging."""
        strides = [2 ** (layer + 1) // self.enlarge for layer in self.returned_layers]
        return [*strides, 2 * strides[-1]]


def quick_config(categories: int, predicates: int, width: int, height: int, imagenet: bool = True,
                 backbone: str | None = None) -> ModelConfig:
    """A network that trains on a laptop CPU in minutes.

    CLEVR's 160x120 images show four objects of 8 to 40 pixels; larger ones show more and smaller
    objects (a distant pedestrian: 4 x 10 pixels of 320x97), hence a finer pyramid and a graph with
    more nodes. Layers of stride 8 and more hold most of what ImageNet teaches, so that small images
    are enlarged for them.
    """
    large = width * height > 20_000  # strides 4, 8, 16, else 8, 16
    enlarge = 2 if imagenet and width * height <= 40_000 else 1
    layers = (1, 2, 3) if large else (2, 3)
    sizes = (8, 16, 32, 64) if large else (12, 24, 48)
    if width * height > 40_000:
        sizes = (16, 32, 64, 128)
    return ModelConfig(
        categories, predicates, width, height,
        backbone=backbone or (LITE if imagenet else "resnet18"), imagenet=imagenet,
        input="rgb" if imagenet else "edges", enlarge=enlarge,
        returned_layers=tuple(layer + enlarge - 1 for layer in layers), anchor_sizes=sizes,
        fpn_channels=128, head_width=256, rois_per_image=64, proposals_train=128, proposals_test=64,
        graph_width=128, nodes_train=12 if large else 8, nodes_test=32,
        pairs_train=64 if large else 24, pairs_test=192 if large else 128, edge_window=EDGE_WINDOW)


def paper_config(categories: int, predicates: int, width: int, height: int, imagenet: bool = True,
                 backbone: str | None = None) -> ModelConfig:
    """ResNet-101 and Graph R-CNN, for a GPU (Prakash et al. 2021, implementation details)."""
    smallest = 32 if height >= 375 else 16
    return ModelConfig(
        categories, predicates, width, height, backbone=backbone or "resnet101", imagenet=imagenet,
        input="rgb" if imagenet else "edges", edge_window=EDGE_WINDOW,
        returned_layers=(1, 2, 3, 4), anchor_sizes=tuple(smallest * 2**k for k in range(5)),
        fpn_channels=256, head_width=1024, rois_per_image=512, proposals_train=2000,
        proposals_test=1000, graph_width=512, nodes_train=32, nodes_test=64, pairs_train=128,
        pairs_test=256)


def local_edges(images: Tensor, window_px: int, passes: int) -> Tensor:
    """Unsigned luminance gradients, locally contrast-normalized: (B, 3, H, W) -> (B, 3, H, W).

    |dx|, |dy| and their norm, by central differences, over EDGE_FLOOR plus the root mean square of
    the norm around the pixel (as in Dalal and Triggs 2005). The mean is taken over a square window,
    cut at the image border, `passes` times: three make it smooth, a single one leaves square halos.
    From random weights, a network on RGB first learns shortcuts of one domain's palette and lamps.
    """
    luminance = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx = luminance[..., 1:-1, 2:] - luminance[..., 1:-1, :-2]
    dy = luminance[..., 2:, 1:-1] - luminance[..., :-2, 1:-1]
    square, half = dx ** 2 + dy ** 2, window_px // 2
    mean = square
    for _ in range(passes):  # axis by axis
        mean = F.avg_pool2d(mean, (window_px, 1), 1, (half, 0), count_include_pad=False)
        mean = F.avg_pool2d(mean, (1, window_px), 1, (0, half), count_include_pad=False)
    return torch.cat([dx.abs(), dy.abs(), square.sqrt()], 1) / (mean.sqrt() + EDGE_FLOOR)


def edge_window(config: ModelConfig) -> tuple[int, int]:
    """`window_px` (odd) and `passes` of local_edges."""
    if config.edge_window == 0:
        return FORMER_WINDOW_PX, 1
    return 2 * round(config.edge_window * config.width / 2) + 1, 3


def make_backbone(config: ModelConfig, pretrained: bool) -> BackboneWithFPN:
    """The encoder with its pyramid. With ImageNet weights, the lowest layers are frozen.

    Raises: InputError if ImageNet weights are wanted and cannot be loaded.
    """
    if config.backbone == LITE:
        body = EfficientNetLite0(pretrained)
        widths = [WIDTHS[layer - 1] for layer in config.returned_layers]
    else:
        body = _resnet(config, pretrained)
        widths = [body.inplanes // 2 ** (4 - layer) for layer in config.returned_layers]
    names = {f"layer{layer}": str(level) for level, layer in enumerate(config.returned_layers)}
    return BackboneWithFPN(body, names, widths, config.fpn_channels)


def _resnet(config: ModelConfig, pretrained: bool) -> nn.Module:
    norm = FrozenBatchNorm2d if config.imagenet else _group_norm
    resnet = get_model(config.backbone, norm_layer=norm)
    if config.imagenet and pretrained:
        weights = get_model_weights(config.backbone).IMAGENET1K_V1
        try:
            resnet.load_state_dict(weights.get_state_dict(check_hash=True))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"ImageNet weights of {config.backbone} cannot be loaded ({error}): add --scratch, "
                f"or put {weights.url} into {torch.hub.get_dir()}/checkpoints") from None
    if config.imagenet:
        for layer in (resnet.conv1, resnet.layer1):  # generic features, not worth training
            layer.requires_grad_(False)
    return resnet


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)
