"""The encoder phi and the object half of h: ResNet-FPN and Faster R-CNN, put together from torchvision's parts.

Source: Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks". Every image of a batch has the
size the configuration names, so nothing is resized or padded here. Boxes are `x0, y0, x1, y1` in pixels of that
network input. Labels in this file are torchvision's: 0 is background, 1..C are the categories.
"""
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_area, nms

from sim2sg_lib.net.backbone import ModelConfig, _make_backbone, local_edges

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
SCORE_THRESHOLD = 0.05    # a detection below it is no candidate at all
CLASS_NMS_IOU = 0.5       # within one category
MIN_PRE_NMS = 300         # fewer RPN boxes of a level can all lie on the few most distinct objects
AGNOSTIC_NMS_IOU = 0.8    # across categories: torchvision may give one RoI several classes, Graph R-CNN wants one node


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


