"""The object detector: ResNet-FPN and Faster R-CNN, assembled from torchvision's parts.

Source: Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks". All images of
a batch have the configured size, so nothing is resized or padded here. Boxes are `x0, y0, x1, y1`
in pixels of the network input. Labels are torchvision's: 0 is background, 1..C are the categories.

Training targets hold, per image, `boxes` (G, 4) float32 and `labels` (G,) int64 of the objects and
`ignore_boxes` (R, 4), where the labels are unknown: an anchor or RoI that lies in one of those and
matches no object is neither positive nor negative. G and R may be 0.
"""
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork, RPNHead, concat_box_prediction_layers)
from torchvision.ops import box_area, box_iou, nms

from sim2sg_lib.net.backbone import (
    LITE, ModelConfig, edge_window, local_edges, make_backbone)

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
MATCH_IOU = 0.5         # a RoI or graph node matches the ground-truth object it overlaps this much
IGNORE_FRACTION = 0.5   # a box lies in an ignore region from this fraction of its area on
SCORE_THRESHOLD = 0.05  # detections below it are dropped before non-maximum suppression
CLASS_NMS_IOU = 0.5     # within one category
AGNOSTIC_NMS_IOU = 0.8  # across categories: torchvision may give one RoI several classes
MIN_PRE_NMS = 300       # fewer RPN boxes per level may all lie on the few most distinct objects


@dataclass(frozen=True)
class Detections:
    """Detections, one entry per image, highest score first. n differs by image and may be 0."""

    boxes: list[Tensor]  # (n, 4) px, clipped to the image
    labels: list[Tensor]  # (n,) int64 in 1..C
    scores: list[Tensor]  # (n,) in (SCORE_THRESHOLD, 1]


@dataclass(frozen=True)
class AnchorOutputs:
    """Output of the RPN head for B images, with R anchors per location and A in all."""

    level_logits: list[Tensor]  # per pyramid level (B, R, h, w), objectness before the sigmoid
    logits: Tensor  # (B * A, 1), the same in the order of the anchors
    deltas: Tensor  # (B * A, 4), box regression


def pyramid_anchors(config: ModelConfig) -> Tensor:
    """The anchors of all pyramid levels, the same for every image: (A, 4) px.

    torchvision's generator divides sizes: for a level of stride 16 it finds 120 // 8 = 15.
    """
    strides = config.strides
    sizes = tuple((size,) for size in config.anchor_sizes)
    cells = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(strides)).cell_anchors
    anchors = []
    for stride, cell in zip(strides, cells):
        ys = torch.arange(-(-config.height // stride)) * stride
        xs = torch.arange(-(-config.width // stride)) * stride
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        centers = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)  # (h * w, 1, 4)
        anchors.append((centers + cell.to(centers.device)).reshape(-1, 4))  # (h * w * R, 4)
    return torch.cat(anchors)


def roi_align(feature: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """RoIAlign (He et al. 2017) of one image's feature map: (C, H, W), (n, 4) px -> (n, 7, 7, C).

    Bilinear sampling and averaging are linear in the map and separable in x and y, hence two matrix
    products. The numbers are torchvision's with two samples per bin and axis; the backward pass
    takes a tenth of the time on a CPU and is deterministic on a GPU. No gradient reaches the boxes.
    """
    channels, height, width = feature.shape
    boxes = boxes.detach() / stride
    x_weights = _bin_weights(boxes[:, 0], boxes[:, 2], width)  # (n, 7, W)
    y_weights = _bin_weights(boxes[:, 1], boxes[:, 3], height)  # (n, 7, H)
    rows = feature.permute(2, 1, 0).reshape(width, -1)  # (W, H * C)
    columns = x_weights.reshape(-1, width) @ rows  # (n * 7, H * C)
    return y_weights[:, None] @ columns.reshape(len(boxes), ROI_SIZE, height, channels)


def _bin_weights(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Weight of each cell of an axis in each of 7 bins from low to high (n,): (n, 7, cells).

    As in torchvision: a RoI spans at least one cell, and samples below -1 or above `cells` read 0.
    """
    samples = 2 * ROI_SIZE
    steps = (torch.arange(samples, device=low.device) + 0.5) / samples
    at = (low[:, None] + (high - low).clamp(min=1)[:, None] * steps)[:, :, None]  # (n, 14, 1)
    inside = (at >= -1) & (at <= cells)
    distance = (at.clamp(0, cells - 1) - torch.arange(cells, device=low.device)).abs()
    weights = (1 - distance).clamp(min=0) * inside  # (n, 14, cells)
    return weights.reshape(len(low), ROI_SIZE, 2, cells).mean(2)


def in_ignore_region(boxes: Tensor, regions: Tensor) -> Tensor:
    """Boxes (n, 4) at least half of whose area lies in one of the regions (R, 4): (n,) bool."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    overlap = (high - low).clamp(min=0).prod(2)  # (n, R)
    inside = overlap >= IGNORE_FRACTION * box_area(boxes)[:, None]
    return (inside & (overlap > 0)).any(1)


def drop_ignored(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Without the boxes (n, 4) that lie in an ignore region of the image and match no object."""
    matched = (box_iou(boxes, target["boxes"]) >= MATCH_IOU).any(1)
    return boxes[matched | ~in_ignore_region(boxes, target["ignore_boxes"])]


class Detector(nn.Module):
    """ResNet-FPN, RPN and box head; pretrained as in SceneGraphNet."""

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.bf16 = False  # whether `features` computes in bfloat16; train.py --precision
        self.levels = [stride.bit_length() - 1 for stride in config.strides[:-1]]  # log2
        self.backbone = make_backbone(config, pretrained)
        numbers = {"training": config.proposals_train, "testing": config.proposals_test}
        pre_nms = {mode: max(number, MIN_PRE_NMS) for mode, number in numbers.items()}
        # then the test-time proposals are the first of the training proposals
        self.nested_proposals = (pre_nms["training"] == pre_nms["testing"]
                                 and config.proposals_train >= config.proposals_test)
        self.rpn = RegionProposalNetwork(
            None,  # the anchors are self.anchors
            RPNHead(config.fpn_channels, len(ASPECT_RATIOS)),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n=pre_nms, post_nms_top_n=numbers, nms_thresh=0.7)
        self.roi_heads = RoIHeads(
            None,  # pooling is self.pool
            TwoMLPHead(config.fpn_channels * ROI_SIZE**2, config.head_width),
            FastRCNNPredictor(config.head_width, config.categories + 1),
            fg_iou_thresh=MATCH_IOU, bg_iou_thresh=MATCH_IOU, positive_fraction=0.25,
            batch_size_per_image=config.rois_per_image, bbox_reg_weights=None,
            score_thresh=SCORE_THRESHOLD, nms_thresh=CLASS_NMS_IOU,
            # twice as many as needed, since class-agnostic suppression removes some of them
            detections_per_img=2 * max(config.nodes_train, config.nodes_test))
        # the initialization of the Faster R-CNN paper; torchvision uses that of nn.Linear
        predictor = self.roi_heads.box_predictor
        for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.register_buffer("anchors", pyramid_anchors(config), persistent=False)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if config.backbone == LITE:  # (255 x - 127) / 128
            mean, std = (127 / 255,) * 3, (128 / 255,) * 3
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """phi: images (B, 3, H, W) in [0, 1] -> pyramid levels "0", "1", ..., "pool".

        Each level is (B, fpn_channels, h, w). Raises: ValueError for a size other than configured.
        """
        expected = (3, self.config.height, self.config.width)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: shape {tuple(images.shape)}, expected (B, "
                             f"{', '.join(map(str, expected))})")
        if self.config.input == "edges":
            images = local_edges(images, *edge_window(self.config))
        else:
            images = (images - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        if self.config.enlarge > 1:
            images = F.interpolate(images, scale_factor=self.config.enlarge, mode="bilinear")
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(images)
        return OrderedDict((name, level.float()) for name, level in features.items())

    def rpn_head(self, features: dict[str, Tensor]) -> AnchorOutputs:
        """Objectness and box regression of all anchors."""
        logits, deltas = self.rpn.head(list(features.values()))
        return AnchorOutputs(logits, *concat_box_prediction_layers(logits, deltas))

    def proposals(self, anchors: AnchorOutputs, training: bool) -> list[Tensor]:
        """RPN proposals (n, 4) per image, clipped, after non-maximum suppression, detached."""
        batch = len(anchors.level_logits[0])
        boxes = self.rpn.box_coder.decode(anchors.deltas.detach(), [self.anchors] * batch)
        sizes = [(self.config.height, self.config.width)] * batch
        level_sizes = [level[0].numel() for level in anchors.level_logits]
        was_training = self.rpn.training
        self.rpn.train(training)  # torchvision's RPN keeps fewer proposals at test time
        boxes = boxes.view(batch, -1, 4)
        found, _ = self.rpn.filter_proposals(boxes, anchors.logits, sizes, level_sizes)
        self.rpn.train(was_training)
        return found

    def losses(self, features: dict[str, Tensor], anchors: AnchorOutputs, proposals: list[Tensor],
               targets: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Detections]:
        """The four losses of Faster R-CNN, and the detections of the sampled RoIs, detached."""
        losses = self._rpn_losses(anchors, targets)
        boxes, labels, regression = self._sample_rois(proposals, targets)
        logits, deltas = self.roi_heads.box_predictor(self.box_features(features, boxes))
        if len(logits):
            pair = fastrcnn_loss(logits, deltas, labels, regression)
        else:  # all RoIs lie in ignore regions: no loss
            pair = logits.sum(), deltas.sum()
        losses["loss_classifier"], losses["loss_box_reg"] = pair
        with torch.no_grad():
            detections = self.detections(logits, deltas, boxes, self.config.nodes_train)
        return losses, detections

    def _rpn_losses(self, anchors: AnchorOutputs, targets: list[dict[str, Tensor]]
                    ) -> dict[str, Tensor]:
        grid = [self.anchors] * len(targets)
        labels, matched = self.rpn.assign_targets_to_anchors(grid, targets)
        labels = _unlabel_ignored(labels, grid, targets)
        if all((own < 0).all() for own in labels):  # all anchors lie in ignore regions: no loss
            pair = 0 * anchors.logits.sum(), 0 * anchors.deltas.sum()
        else:
            regression = self.rpn.box_coder.encode(matched, grid)
            pair = self.rpn.compute_loss(anchors.logits, anchors.deltas, labels, regression)
        return dict(zip(("loss_objectness", "loss_rpn_box_reg"), pair))

    def _sample_rois(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
                     ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, labels and regression targets of the RoIs to train on, per image."""
        heads, truth = self.roi_heads, [target["boxes"] for target in targets]
        boxes = heads.add_gt_proposals(proposals, truth)
        classes = [target["labels"] for target in targets]
        matches, labels = heads.assign_targets_to_proposals(boxes, truth, classes)
        labels = _unlabel_ignored(labels, boxes, targets)
        chosen = heads.subsample(labels)
        boxes, labels, matches = ([values[own] for values, own in zip(column, chosen)]
                                  for column in (boxes, labels, matches))
        # background RoIs have match 0, also where there is no object
        padded = [torch.cat([own, own.new_zeros(1, 4)]) for own in truth]
        regression = heads.box_coder.encode([own[i] for own, i in zip(padded, matches)], boxes)
        return boxes, labels, regression

    def box_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Box-head features of the boxes (n, 4) of each image, concatenated: (N, head_width)."""
        return self.roi_heads.box_head(self.pool(features, boxes))

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """RoIAlign of the boxes (n, 4) of each image, each on its level: (N, 49 fpn_channels)."""
        pooled = []
        for image, own in enumerate(boxes):
            # Lin et al. 2017, eq. 1: a box of 224 px belongs to level 4, whose stride is 2 ** 4
            levels = (4 + (box_area(own).sqrt() / 224).log2() + 1e-6).floor()
            levels = levels.clamp(self.levels[0], self.levels[-1])
            out = features["0"].new_zeros(len(own), ROI_SIZE, ROI_SIZE, self.config.fpn_channels)
            for name, level in enumerate(self.levels):
                chosen = (levels == level).nonzero()[:, 0]
                if len(chosen) > 0:
                    out[chosen] = roi_align(features[str(name)][image], own[chosen], 2**level)
            pooled.append(out)
        return torch.cat(pooled).flatten(1)

    def detections(self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], limit: int
                   ) -> Detections:
        """At most `limit` detections per image; boxes and scores keep their gradient."""
        sizes = [(self.config.height, self.config.width)] * len(proposals)
        found = self.roi_heads.postprocess_detections(logits, deltas, proposals, sizes)
        keeps = [nms(b, s, AGNOSTIC_NMS_IOU)[:limit] for b, s, _ in zip(*found)]
        boxes, scores, labels = ([values[keep] for values, keep in zip(column, keeps)]
                                 for column in found)
        return Detections(boxes, labels, scores)


def _unlabel_ignored(labels: list[Tensor], boxes: list[Tensor], targets: list[dict[str, Tensor]]
                     ) -> list[Tensor]:
    """Background labels (n,) of boxes in an ignore region become -1, which torchvision skips."""
    return [own.masked_fill((own == 0) & in_ignore_region(box, target["ignore_boxes"]), -1)
            for own, box, target in zip(labels, boxes, targets)]
