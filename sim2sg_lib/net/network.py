"""The whole network, and one forward pass that the task and all adaptation methods share.

phi and h of Prakash et al. 2021: images -> features -> scene graphs. Letters as in relations.py.
"""
import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.detector import AnchorOutputs, Detections, Detector, drop_ignored
from sim2sg_lib.net.relations import (
    GraphNetwork, Nodes, RelationProposal, balanced_bce, image_index, match_nodes, ordered_pairs,
    relation_targets, sample_pairs, top_pairs, union_boxes)

ADAPT_NODES, ADAPT_PAIRS = 16, 64  # per image, in what adaptation methods see


@dataclass(frozen=True)
class Prediction:
    """One image's predicted scene graph, before any threshold. N nodes, K pairs; both may be 0."""

    width: int  # of the network input, pixels
    height: int
    boxes_px: Tensor  # (N, 4) x0 y0 x1 y1, network input pixels
    labels: Tensor  # (N,) int64, category index from 0
    scores: Tensor  # (N,) detection scores
    pairs: Tensor  # (K, 2) int64, subject node, object node
    predicate_probs: Tensor  # (K, P) probability of each predicate by itself


class SceneGraphNet(nn.Module):
    """ResNet-FPN and Faster R-CNN, then Graph R-CNN: images -> scene graphs.

    pretrained: False leaves out the ImageNet weights. Raises: InputError if they cannot be loaded.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.detector = Detector(config, pretrained)
        self.proposal = RelationProposal(config)
        self.union_head = copy.deepcopy(self.detector.roi_heads.box_head)
        self.graph = GraphNetwork(config)

    def features(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """phi, see `Detector.features`."""
        return self.detector.features(images)

    def forward(self, images: Tensor) -> "Outputs":
        """images (B, 3, H, W) in [0, 1] -> Outputs, of which only the features are computed yet."""
        return Outputs(self, self.features(images))

    def forward_each(self, *domains: Tensor) -> list["Outputs"]:
        """The same for images of several domains, encoded in one batch, which is faster."""
        features, counts = self.features(torch.cat(domains)), [len(images) for images in domains]
        levels = {name: level.split(counts) for name, level in features.items()}
        return [Outputs(self, dict(zip(levels, own))) for own in zip(*levels.values())]

    def losses(self, outputs: "Outputs", targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The seven task losses by name, each a scalar; their sum is trained on (section 4.1).

        targets: see detector.py; also `relations` (R, 3) int64 of subject, predicate, object.
        """
        features = outputs.features
        losses, detections = self.detector.losses(
            features, outputs.anchors, outputs.train_proposals, targets)
        with torch.no_grad():  # relation losses reach the encoder through the union boxes alone
            found = [drop_ignored(*pair) for pair in zip(detections.boxes, targets)]
            nodes = self.nodes(features, [torch.cat([boxes, target["boxes"]])
                                          for boxes, target in zip(found, targets)])
        matches = match_nodes(nodes, targets)
        candidates = ordered_pairs(nodes.image)
        holds = relation_targets(targets, matches, candidates, self.config.predicates)  # (E, P)
        related = holds.any(1)
        scores = self.proposal(nodes.class_logits.softmax(1), nodes.boxes, candidates)
        losses["loss_relpn"] = balanced_bce(scores[:, None], related[:, None].float(),
                                            nodes.image[candidates[:, 0]], len(targets))
        chosen = sample_pairs(scores.detach(), related, pairs_per_image(nodes, candidates),
                              self.config.pairs_train)
        classes, predicates = self.relate(features, nodes, candidates[chosen])
        labels = torch.cat([*(target["labels"] for target in targets), matches.new_zeros(1)])
        labels = labels[matches]
        # summed, so that no node at all gives 0 and not NaN
        total = F.cross_entropy(classes, labels, reduction="sum")
        losses["loss_obj"] = total / max(1, len(labels))
        losses["loss_rel"] = balanced_bce(predicates, holds[chosen], torch.zeros_like(chosen), 1)
        return losses

    @torch.no_grad()
    def predict(self, features: dict[str, Tensor], allowed: Tensor | None = None
                ) -> list[Prediction]:
        """One Prediction per image, the same in training and in evaluation mode.

        allowed: (P, C, C) bool of `RelationRules.allowed_predicates`; None: all are allowed.
        """
        outputs = Outputs(self, features, self.config.nodes_test, self.config.pairs_test, allowed)
        nodes, detections = outputs.nodes, outputs.detections
        counts = pairs_per_image(nodes, outputs.pairs)
        starts = torch.tensor([0, *nodes.counts]).cumsum(0).tolist()
        columns = (detections.boxes, detections.labels, detections.scores, starts,
                   outputs.pairs.split(counts), outputs.predicate_logits.split(counts))
        return [Prediction(self.config.width, self.config.height, boxes, labels - 1, scores,
                           pairs - start, predicates.sigmoid())
                for boxes, labels, scores, start, pairs, predicates in zip(*columns)]

    def nodes(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Nodes:
        """The boxes (n, 4) of each image as graph nodes."""
        counts = [len(own) for own in boxes]
        box_features = self.detector.box_features(features, boxes)
        return Nodes(counts, image_index(counts, box_features.device), torch.cat(boxes),
                     box_features, self.detector.roi_heads.box_predictor.cls_score(box_features))

    def relate(self, features: dict[str, Tensor], nodes: Nodes, pairs: Tensor
               ) -> tuple[Tensor, Tensor]:
        """Class logits (N, C + 1) and predicate logits (K, P) of the graph network."""
        unions = union_boxes(nodes.boxes[pairs[:, 0]], nodes.boxes[pairs[:, 1]])
        unions = unions.split(pairs_per_image(nodes, pairs))
        union_features = self.union_head(self.detector.pool(features, list(unions)))
        return self.graph(nodes.features, union_features, nodes, pairs)


def pairs_per_image(nodes: Nodes, pairs: Tensor) -> list[int]:
    """How many of the pairs (E, 2), sorted by image, each image has."""
    return torch.bincount(nodes.image[pairs[:, 0]], minlength=len(nodes.counts)).tolist()


class Outputs:
    """What the network computes from one domain's images; each part once, when first used.

    The task losses and all adaptation methods of a step share it, so that each head runs once per
    step and domain. Parts come from test-time detection, without labels, hence in the same way in
    both domains. Nothing is detached unless said so.

    features:  pyramid level -> (B, fpn_channels, h, w).
    max_nodes: detections per image that become graph nodes.
    max_pairs: pairs per image whose predicates are predicted.
    allowed:   as in `SceneGraphNet.predict`.
    """

    def __init__(self, model: SceneGraphNet, features: dict[str, Tensor],
                 max_nodes: int = ADAPT_NODES, max_pairs: int = ADAPT_PAIRS,
                 allowed: Tensor | None = None) -> None:
        self.model, self.features, self.allowed = model, features, allowed
        self.max_nodes, self.max_pairs = max_nodes, max_pairs

    def copy(self) -> "Outputs":
        """For use without gradient: only the proposals are shared, which have none anyway.

        Use it after the task losses, or the RPN's logits are kept without gradient for them, too.
        """
        copied = Outputs(self.model, self.features, self.max_nodes, self.max_pairs, self.allowed)
        copied.proposals = self.proposals
        return copied

    @cached_property
    def anchors(self) -> AnchorOutputs:
        """Objectness logits and box regression of the RPN head."""
        return self.model.detector.rpn_head(self.features)

    @cached_property
    def objectness(self) -> dict[str, Tensor]:
        """Highest objectness per location: level -> (B, h * w) in [0, 1], detached."""
        return {name: logits.detach().sigmoid().amax(1).flatten(1)
                for name, logits in zip(self.features, self.anchors.level_logits)}

    @cached_property
    def train_proposals(self) -> list[Tensor]:
        """RPN proposals (n, 4) px per image that the box head is trained on, detached."""
        return self.model.detector.proposals(self.anchors, training=True)

    @cached_property
    def proposals(self) -> list[Tensor]:
        """RPN proposals (n, 4) px per image at test time, detached."""
        detector = self.model.detector
        if detector.nested_proposals:
            limit = detector.config.proposals_test
            return [boxes[:limit] for boxes in self.train_proposals]
        return detector.proposals(self.anchors, training=False)

    @cached_property
    def detections(self) -> Detections:
        """The objects detected among the proposals."""
        detector = self.model.detector
        roi_features = detector.box_features(self.features, self.proposals)  # (M, head_width)
        logits, deltas = detector.roi_heads.box_predictor(roi_features)  # (M, C + 1), (M, 4 C + 4)
        return detector.detections(logits, deltas, self.proposals, self.max_nodes)

    @cached_property
    def nodes(self) -> Nodes:
        """The detected objects as graph nodes, with features pooled from their boxes."""
        return self.model.nodes(self.features, self.detections.boxes)

    @cached_property
    def pairs(self) -> Tensor:
        """(K, 2) subject and object node of the pairs most likely related, image after image."""
        nodes, candidates = self.nodes, ordered_pairs(self.nodes.image)
        if self.allowed is not None:  # first, so that impossible pairs take no place
            candidates = candidates[self._allowed(candidates).any(1)]
        scores = self.model.proposal(nodes.class_logits.softmax(1), nodes.boxes, candidates)
        counts = pairs_per_image(nodes, candidates)
        return candidates[top_pairs(scores, counts, self.max_pairs)]

    @cached_property
    def predicate_logits(self) -> Tensor:
        """(K, P) of the graph network; -inf for predicates that are not allowed."""
        _, predicates = self.model.relate(self.features, self.nodes, self.pairs)
        if self.allowed is None:
            return predicates
        return predicates.masked_fill(~self._allowed(self.pairs), -torch.inf)

    def _allowed(self, pairs: Tensor) -> Tensor:
        """Which predicates may hold for the categories of each pair: (E, 2) -> (E, P) bool."""
        ends = torch.cat(self.detections.labels)[pairs] - 1  # (E, 2)
        return self.allowed[:, ends[:, 0], ends[:, 1]].T
