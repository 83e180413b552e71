"""The encoder phi and the object half of h: ResNet-FPN and Faster R-CNN, put together from torchvision's parts.

Source: Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks". Every image of a batch has the
size the configuration names, so nothing is resized or padded here. Boxes are `x0, y0, x1, y1` in pixels of that
network input. Labels in this file are torchvision's: 0 is background, 1..C are the categories.
"""
from collections import OrderedDict
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FrozenBatchNorm2d, box_area, nms

from sim2sg_lib.terminal import InputError

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
MAX_INPUT_PIXELS = 2**21  # of the network's input: twice what any preset takes
SCORE_THRESHOLD = 0.05    # a detection below it is no candidate at all
CLASS_NMS_IOU = 0.5       # within one category
MIN_PRE_NMS = 300         # fewer RPN boxes of a level can all lie on the few most distinct objects
EDGE_WINDOW, EDGE_FLOOR = 31, 0.05  # pixels, and the luminance difference below which an edge is noise
AGNOSTIC_NMS_IOU = 0.8    # across categories: torchvision may give one RoI several classes, Graph R-CNN wants one node


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild the network; plain numbers, strings and tuples, so that a checkpoint can hold it.

    categories:      object categories, background not counted.
    predicates:      relation predicates; there is no "no relation" entry, each predicate is a yes or no.
    width, height:   network input, pixels.
    backbone:        'resnet18', 'resnet50' or 'resnet101'.
    imagenet:        True: ImageNet weights, frozen batch norm, the last three stages trained.
                     False: group norm, everything trained from scratch.
    input:           what the encoder sees: 'edges', `local_edges` of the image, or 'rgb', normalised as for ImageNet.
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
    attention:       'softmax': attentional GCN; 'mean': every neighbour counts the same.
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


@dataclass(frozen=True)
class Detections:
    """What the detector finds, one entry per image, best score first. n differs by image and may be 0.

    boxes:  (n, 4) network input pixels, clipped to the image.
    labels: (n,) int64 in 1..C.
    scores: (n,) in (SCORE_THRESHOLD, 1].
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    scores: list[Tensor]


class PyramidAnchors(nn.Module):
    """The anchors of every pyramid level, laid out once, since all images have one size.

    torchvision's generator infers a stride by dividing sizes, 120 // 8 = 15 for a level whose stride is 16; this one
    knows the strides.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        strides = [2 ** (layer + 1) for layer in config.returned_layers]
        strides.append(2 * strides[-1])
        cells = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), (ASPECT_RATIOS,) * len(strides))
        anchors = []
        for stride, cell in zip(strides, cells.cell_anchors):
            ys = torch.arange(-(-config.height // stride)) * stride
            xs = torch.arange(-(-config.width // stride)) * stride
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            centers = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)  # (cells, 1, 4)
            anchors.append((centers + cell.to(centers.device)).reshape(-1, 4))  # (cells * ratios, 4)
        self.register_buffer("anchors", torch.cat(anchors), persistent=False)

    def forward(self, images: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The same (A, 4) anchors for each image, the argument list is the RPN's."""
        return [self.anchors] * len(images.image_sizes)


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


def roi_align(feature: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """RoIAlign (He et al. 2017) of one image's map as two matrix products: (C, H, W), (n, 4) px -> (n, 7, 7, C).

    Bilinear sampling and averaging are linear in the map and separable in x and y. Same numbers as torchvision's with
    two samples per bin and axis, axes in the order x, y, C; on a CPU its backward takes a tenth of the time, and
    on a GPU it repeats bit by bit. No gradient to the boxes.
    """
    channels, height, width = feature.shape
    boxes = boxes.detach() / stride
    x_weights = _bin_weights(boxes[:, 0], boxes[:, 2], width)  # (n, 7, W)
    y_weights = _bin_weights(boxes[:, 1], boxes[:, 3], height)  # (n, 7, H)
    columns = x_weights.reshape(-1, width) @ feature.permute(2, 1, 0).reshape(width, -1)  # (n * 7, H * C)
    return y_weights[:, None] @ columns.reshape(len(boxes), ROI_SIZE, height, channels)


def _bin_weights(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """How much each cell of an axis adds to each of 7 bins from low to high: (n,), (n,) in cells -> (n, 7, cells)."""
    samples = 2 * ROI_SIZE
    steps = (torch.arange(samples, device=low.device) + 0.5) / samples
    at = low[:, None] + (high - low).clamp(min=1)[:, None] * steps  # (n, 14); a RoI spans at least one cell
    at = at.clamp(0, cells - 1)[:, :, None]
    weights = (1 - (at - torch.arange(cells, device=low.device)).abs()).clamp(min=0)  # (n, 14, cells)
    return weights.reshape(len(low), ROI_SIZE, 2, cells).mean(2)


class Detector(nn.Module):
    """ResNet-FPN + RPN + box head (Ren et al. 2015).

    pretrained: load ImageNet weights where the configuration asks for them; False where a checkpoint follows.
    Errors: InputError if those weights cannot be had.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.levels = [layer + 1 for layer in config.returned_layers]  # log2 of the stride
        self.backbone = _make_backbone(config, pretrained)
        self.rpn = RegionProposalNetwork(
            PyramidAnchors(config), RPNHead(config.fpn_channels, len(ASPECT_RATIOS)), fg_iou_thresh=0.7,
            bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5, nms_thresh=0.7,
            pre_nms_top_n={"training": max(config.proposals_train, MIN_PRE_NMS),
                           "testing": max(config.proposals_test, MIN_PRE_NMS)},
            post_nms_top_n={"training": config.proposals_train, "testing": config.proposals_test})
        self.roi_heads = RoIHeads(
            None,  # pooling is self.pool
            TwoMLPHead(config.fpn_channels * ROI_SIZE ** 2, config.head_width),
            FastRCNNPredictor(config.head_width, config.categories + 1), fg_iou_thresh=0.5, bg_iou_thresh=0.5,
            batch_size_per_image=config.rois_per_image, positive_fraction=0.25, bbox_reg_weights=None,
            score_thresh=SCORE_THRESHOLD, nms_thresh=CLASS_NMS_IOU,
            # twice what is wanted, since the class-agnostic NMS that follows removes some
            detections_per_img=2 * max(config.nodes_train, config.nodes_test))
        # Faster R-CNN's own start, which torchvision leaves at the default of nn.Linear
        for layer, std in ((self.roi_heads.box_predictor.cls_score, 0.01),
                           (self.roi_heads.box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """phi: images (B, 3, H, W) in [0, 1] -> pyramid levels '0', '1', ... and 'pool', each (B, fpn_channels, h, w).

        Errors: ValueError if H, W are not the configuration's.
        """
        if tuple(images.shape[1:]) != (3, self.config.height, self.config.width):
            raise ValueError(f"images: shape {tuple(images.shape)}, "
                             f"expected (B, 3, {self.config.height}, {self.config.width})")
        images = local_edges(images) if self.config.input == "edges" else (images - self.mean) / self.std
        return self.backbone(images.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def objectness(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The RPN's belief that an object lies at a location, over its anchors the highest: per level (B, h * w)."""
        logits, _ = self.rpn.head(list(features.values()))
        return {name: level.sigmoid().amax(1).flatten(1) for name, level in zip(features, logits)}

    def losses(self, features: dict[str, Tensor], targets: list[dict[str, Tensor]]
               ) -> tuple[dict[str, Tensor], Detections]:
        """The four losses of Faster R-CNN, and the detections among the sampled RoIs, without gradient.

        targets: per image `boxes` (G, 4) float and `labels` (G,) int64 in 1..C; G may be 0.
        """
        proposals, losses = self._propose(features, targets)
        boxes, _, labels, regression_targets = self.roi_heads.select_training_samples(proposals, targets)
        logits, deltas = self.roi_heads.box_predictor(self.box_features(features, boxes))
        losses["loss_classifier"], losses["loss_box_reg"] = fastrcnn_loss(logits, deltas, labels, regression_targets)
        with torch.no_grad():
            detections = self._detections(logits, deltas, boxes, self.config.nodes_train)
        return losses, detections

    def detect(self, features: dict[str, Tensor], limit: int) -> Detections:
        """At most `limit` detections per image; boxes and scores carry gradient to the box predictor."""
        proposals, _ = self._propose(features)
        logits, deltas = self.roi_heads.box_predictor(self.box_features(features, proposals))
        return self._detections(logits, deltas, proposals, limit)

    def box_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Box-head features of the boxes (n, 4) of each image, concatenated: (N, head_width)."""
        return self.roi_heads.box_head(self.pool(features, boxes))

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """RoIAlign of the boxes (n, 4) of each image, each on its level: (N, 7 * 7 * fpn_channels)."""
        pooled = []
        for image, own in enumerate(boxes):
            # Lin et al. 2017, eq. 1: a box of 224 px belongs to level 4, whose stride is 2 ** 4
            levels = (4 + (box_area(own).sqrt() / 224).log2() + 1e-6).floor().clamp(self.levels[0], self.levels[-1])
            out = features["0"].new_zeros(len(own), ROI_SIZE, ROI_SIZE, self.config.fpn_channels)
            for name, level in enumerate(self.levels):
                chosen = (levels == level).nonzero()[:, 0]
                if len(chosen) > 0:
                    out[chosen] = roi_align(features[str(name)][image], own[chosen], 2 ** level)
            pooled.append(out)
        return torch.cat(pooled).flatten(1)

    def _detections(self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], limit: int) -> Detections:
        sizes = [(self.config.height, self.config.width)] * len(proposals)
        boxes, scores, labels = self.roi_heads.postprocess_detections(logits, deltas, proposals, sizes)
        keeps = [nms(b, s, AGNOSTIC_NMS_IOU)[:limit] for b, s in zip(boxes, scores)]
        boxes, labels, scores = ([values[keep] for values, keep in zip(column, keeps)]
                                 for column in (boxes, labels, scores))
        return Detections(boxes, labels, scores)

    def _propose(self, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
                 ) -> tuple[list[Tensor], dict[str, Tensor]]:
        was_training = self.rpn.training
        self.rpn.train(targets is not None)  # in training mode the RPN demands targets
        try:
            # of the images the RPN reads the sizes alone
            return self.rpn(ImageList(features["0"], self._image_sizes(features)), features, targets)
        finally:
            self.rpn.train(was_training)

    def _image_sizes(self, features: dict[str, Tensor]) -> list[tuple[int, int]]:
        return [(self.config.height, self.config.width)] * len(features["0"])


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
