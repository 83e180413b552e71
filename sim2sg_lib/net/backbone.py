"""The encoder phi: configuration, ResNet, input representation."""
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from sim2sg_lib.cli import InputError

MAX_INPUT_PIXELS = 2**21  # of the network's input: twice what any preset takes
EDGE_WINDOW, EDGE_FLOOR = 31, 0.05  # pixels, and the luminance difference below which an edge is noise


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild the network; plain numbers, strings and tuples, so that a checkpoint can hold it.

    categories:      object categories, background not counted.
    predicates:      relation predicates; there is no "no relation" entry, each predicate is a yes or no.
    width, height:   network input, pixels.
    backbone:        'resnet18', 'resnet50' or 'resnet101'.
    imagenet:        True: ImageNet weights, frozen batch norm, the last three stages trained.
                     False: group norm, everything trained from scratch.
    input:           what the encoder sees: 'edges', `local_edges` of the image, or 'rgb', normalized as for ImageNet.
    returned_layers: ResNet stages (1..4, strides 4..32) that become pyramid levels; a pooled level comes on top.
    anchor_sizes:    anchor side in pixels for each level, the pooled one last.
    fpn_channels:    channels of every pyramid level.
    head_width:      width of the two-layer box head and of its twin for union boxes.
    rois_per_image:  RoIs sampled per image for the box head's loss.
    proposals_train: RPN boxes per image while training; before NMS as many per level, but at least MIN_PRE_NMS.
    proposals_test:  the same when predicting.
    graph_width:     width of object and relation states in the graph network.
    nodes_train:     detections per image that become graph nodes while training; ground-truth boxes come on top.
    nodes_test:      detections per image that become graph nodes when predicting.
    pairs_train:     ordered pairs per image kept by the relation proposal network while training.
    pairs_test:      the same when predicting.
    gcn_steps:       message-passing steps of each level of the graph network; its weights are shared by the steps.
    attention:       'softmax': attentional GCN; 'mean': every neighbor counts the same.
    pair_geometry:   give the relation state the two boxes' geometry; without it a relation starts order-blind.
    semantic:        pass messages between class scores, too, after the feature level.
    """

    categories: int
    predicates: int
    width: int
    height: int
    backbone: str
    imagenet: bool
    input: str
    returned_layers: tuple[int, ...]
    anchor_sizes: tuple[int, ...]
    fpn_channels: int
    head_width: int
    rois_per_image: int
    proposals_train: int
    proposals_test: int
    graph_width: int
    nodes_train: int
    nodes_test: int
    pairs_train: int
    pairs_test: int
    gcn_steps: int = 2
    attention: str = "softmax"
    pair_geometry: bool = True
    semantic: bool = True

    def __post_init__(self):
        # a round trip through JSON turns tuples into lists
        object.__setattr__(self, "returned_layers", tuple(self.returned_layers))
        object.__setattr__(self, "anchor_sizes", tuple(self.anchor_sizes))
        for entry in fields(self):
            value = getattr(self, entry.name)
            least = 0 if entry.name == "gcn_steps" else 1
            if entry.type in (int, bool) and type(value) is not entry.type or entry.type is int and not least <= value < 2**16:
                raise ValueError(f"{entry.name}: {value!r} expected true or false, or an integer from {least} to 65535")
        if self.width * self.height > MAX_INPUT_PIXELS:
            raise ValueError(f"width, height: {self.width}x{self.height} expected {MAX_INPUT_PIXELS} pixels at most")
        if not self.returned_layers or list(self.returned_layers) != sorted({1, 2, 3, 4} & set(self.returned_layers)):
            raise ValueError(f"returned_layers: {self.returned_layers} expected some of 1, 2, 3, 4, rising")
        if not all(type(size) is int and 0 < size < 2**16 for size in self.anchor_sizes):
            raise ValueError(f"anchor_sizes: {self.anchor_sizes} expected integers from 1 to 65535")
        if self.backbone not in ("resnet18", "resnet50", "resnet101"):
            raise ValueError(f"backbone: {self.backbone!r} expected resnet18, resnet50 or resnet101")
        if self.input not in ("edges", "rgb"):
            raise ValueError(f"input: {self.input!r} expected edges or rgb")
        if self.attention not in ("softmax", "mean"):
            raise ValueError(f"attention: {self.attention!r} expected softmax or mean")
        if len(self.anchor_sizes) != len(self.returned_layers) + 1:
            raise ValueError(f"anchor_sizes: expected {len(self.returned_layers) + 1} numbers, one per pyramid level")


def quick_config(categories: int, predicates: int, width: int, height: int) -> ModelConfig:
    """A network that trains on a laptop CPU in minutes, no downloads.

    For CLEVR's 160x120 images objects have 8 to 40 pixels and there are four of them; larger images are of scenes with more
    objects, smaller and larger ones (a car in the distance: 6), so the pyramid begins finer and the graph has more nodes.
    """
    large = width * height > 20_000
    return ModelConfig(
        categories, predicates, width, height, backbone="resnet18", imagenet=False, input="edges",
        returned_layers=(1, 2, 3) if large else (2, 3), anchor_sizes=(8, 16, 32, 64) if large else (12, 24, 48),
        fpn_channels=128, head_width=256, rois_per_image=64, proposals_train=128, proposals_test=64, graph_width=128,
        nodes_train=12 if large else 8, nodes_test=32, pairs_train=64 if large else 24, pairs_test=192 if large else 128)


def paper_config(categories: int, predicates: int, width: int, height: int) -> ModelConfig:
    """The paper's network (Prakash et al. 2021, implementation details): ResNet-101 and Graph R-CNN, GPU-sized."""
    smallest = 32 if height >= 375 else 16
    return ModelConfig(
        categories, predicates, width, height, backbone="resnet101", imagenet=True, input="rgb",
        returned_layers=(1, 2, 3, 4), anchor_sizes=tuple(smallest * 2 ** level for level in range(5)), fpn_channels=256,
        head_width=1024, rois_per_image=512, proposals_train=2000, proposals_test=1000, graph_width=512,
        nodes_train=32, nodes_test=64, pairs_train=128, pairs_test=256)


def local_edges(images: Tensor) -> Tensor:
    """Edges of the luminance, signless and against those around (Dalal and Triggs 2005): (B, 3, H, W) -> (B, 3, H, W).

    |dx|, |dy| and their norm, by central differences, over EDGE_FLOOR plus the root mean square of the norm in a square
    window (its part inside the image). A network that starts from random weights otherwise learns first what a
    domain's palette and lamps give away: that objects are darker than the ground, say.
    """
    luminance = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx = luminance[..., 1:-1, 2:] - luminance[..., 1:-1, :-2]
    dy = luminance[..., 2:, 1:-1] - luminance[..., :-2, 1:-1]
    square, half = dx ** 2 + dy ** 2, EDGE_WINDOW // 2
    around = F.avg_pool2d(square, (EDGE_WINDOW, 1), 1, (half, 0), count_include_pad=False)  # a square is two lines
    around = F.avg_pool2d(around, (1, EDGE_WINDOW), 1, (0, half), count_include_pad=False)
    return torch.cat([dx.abs(), dy.abs(), square.sqrt()], 1) / (around.sqrt() + EDGE_FLOOR)


def _make_backbone(config: ModelConfig, pretrained: bool) -> BackboneWithFPN:
    resnet = get_model(config.backbone, norm_layer=FrozenBatchNorm2d if config.imagenet else _group_norm)
    if config.imagenet and pretrained:
        weights = get_model_weights(config.backbone).IMAGENET1K_V1
        try:
            resnet.load_state_dict(weights.get_state_dict(check_hash=True))
        except (OSError, RuntimeError) as error:
            raise InputError(f"ImageNet weights of {config.backbone} cannot be loaded ({error}): add --scratch, "
                             f"or put {weights.url} into {torch.hub.get_dir()}/checkpoints") from None
    if config.imagenet:
        for layer in (resnet.conv1, resnet.layer1):  # too general to be worth their training time
            layer.requires_grad_(False)
    widths = [resnet.inplanes // 2 ** (4 - layer) for layer in config.returned_layers]
    names = {f"layer{layer}": str(level) for level, layer in enumerate(config.returned_layers)}
    return BackboneWithFPN(resnet, names, widths, config.fpn_channels)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)
