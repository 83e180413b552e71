"""The relation half of h, and the whole network: Graph R-CNN on top of the detector.

Source: Yang et al. 2018, "Graph R-CNN for Scene Graph Generation"; Prakash et al. 2021, "Sim2SG".
All images of a batch form one graph whose parts are not connected, so nothing here loops over nodes or pairs.
Letters in shapes: N nodes (object boxes) and K pairs (candidate relations) of the whole batch, E ordered pairs before
the proposal network's choice, D graph width, C categories, P predicates. A pair (i, j) is ordered: subject i, object j.
"""
import copy
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.detector import Detections, Detector

MATCH_IOU = 0.5      # a node is a ground-truth object from here on
PROPOSAL_WIDTH = 64  # of the relation proposal network's embeddings
TOKEN_NODES, TOKEN_PAIRS = 16, 64  # per image, for the prediction discriminator


@dataclass(frozen=True)
class Prediction:
    """One image's predicted scene graph, before any threshold. N nodes, K pairs; both may be 0.

    width, height:   network input size, pixels.
    boxes_px:        (N, 4) x0 y0 x1 y1, network input pixels.
    labels:          (N,) int64, category index from 0.
    scores:          (N,) detection scores.
    pairs:           (K, 2) int64, subject node, object node.
    predicate_probs: (K, P) each predicate's own probability.
    relatedness:     (K,) the relation proposal network's probability that the pair is related at all.
    """

    width: int
    height: int
    boxes_px: Tensor
    labels: Tensor
    scores: Tensor
    pairs: Tensor
    predicate_probs: Tensor
    relatedness: Tensor


@dataclass(frozen=True)
class Nodes:
    """The object boxes of a batch, image after image.

    counts:       nodes of each image.
    image:        (N,) int64, the image a node is in.
    boxes:        (N, 4) network input pixels.
    features:     (N, head_width) box-head features.
    class_logits: (N, C + 1), background first.
    """

    counts: list[int]
    image: Tensor
    boxes: Tensor
    features: Tensor
    class_logits: Tensor

    def pair_counts(self) -> list[int]:
        """Ordered pairs of each image."""
        return [count * (count - 1) for count in self.counts]


# --- geometry ---------------------------------------------------------------------------------------------------------

def box_geometry(boxes: Tensor, width: int, height: int) -> Tensor:
    """Position of each box: (N, 4) px -> (N, 6): x0/W, y0/H, x1/W, y1/H, area/(W H), h/(w + 1)."""
    w, h = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    scaled = boxes / boxes.new_tensor([width, height, width, height])
    return torch.cat([scaled, (w * h / (width * height))[:, None], (h / (w + 1))[:, None]], 1)


def pair_geometry(subjects: Tensor, objects: Tensor, width: int, height: int) -> Tensor:
    """What a union box cannot say, who is where: boxes (K, 4) and (K, 4) px -> (K, 18).

    box_geometry of both, then center offsets (x/W, y/H), bottom-edge offset (y1/H, a depth cue on a ground plane),
    log size ratios (w, h) and the IoU. Offsets and ratios are subject relative to object.
    """
    sizes_s, sizes_o = subjects[:, 2:] - subjects[:, :2], objects[:, 2:] - objects[:, :2]  # (K, 2)
    centers = (subjects[:, :2] + subjects[:, 2:] - objects[:, :2] - objects[:, 2:]) / 2
    offsets = torch.cat([centers, (subjects - objects)[:, 3:]], 1) / subjects.new_tensor([width, height, height])
    overlap = torch.minimum(subjects, objects)[:, 2:] - torch.maximum(subjects, objects)[:, :2]  # (K, 2)
    intersection = overlap.clamp(min=0).prod(1)
    iou = intersection / (sizes_s.prod(1) + sizes_o.prod(1) - intersection)
    return torch.cat([box_geometry(subjects, width, height), box_geometry(objects, width, height), offsets,
                      (sizes_s / sizes_o).log(), iou[:, None]], 1)


def union_boxes(subjects: Tensor, objects: Tensor) -> Tensor:
    """Smallest boxes around both: (K, 4), (K, 4) -> (K, 4)."""
    return torch.cat([torch.minimum(subjects, objects)[:, :2], torch.maximum(subjects, objects)[:, 2:]], 1)


# --- relation proposal network ----------------------------------------------------------------------------------------

def ordered_pairs(image: Tensor) -> Tensor:
    """Every (i, j), i != j, of nodes in one image: image (N,) -> (E, 2), by image, then i, then j."""
    same_image = image[:, None] == image[None, :]
    return same_image.fill_diagonal_(False).nonzero()


class RelationProposal(nn.Module):
    """RePN (Yang et al. 2018): how likely two objects are related at all, s_ij = <Phi(x_i), Psi(x_j)>.

    x_i holds class probabilities and, with a second pair of kernels, the box's position; both products are added.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.height = config.width, config.height
        self.class_subject, self.class_object = (_mlp(config.categories + 1, PROPOSAL_WIDTH, PROPOSAL_WIDTH)
                                                 for _ in range(2))
        self.box_subject, self.box_object = (_mlp(6, PROPOSAL_WIDTH, PROPOSAL_WIDTH) for _ in range(2))

    def forward(self, class_probs: Tensor, boxes: Tensor, pairs: Tensor) -> Tensor:
        """class_probs (N, C + 1), boxes (N, 4), pairs (E, 2) -> logits (E,)."""
        position = box_geometry(boxes, self.width, self.height)
        # the sum of two dot products is the dot product of the concatenations
        subject = torch.cat([self.class_subject(class_probs), self.box_subject(position)], 1)
        object_ = torch.cat([self.class_object(class_probs), self.box_object(position)], 1)
        return (subject @ object_.T)[pairs[:, 0], pairs[:, 1]]


def sample_pairs(scores: Tensor, positive: Tensor, counts: list[int], limit: int) -> Tensor:
    """Training pairs of each image: random positives up to limit / 2, filled up with the best-scoring negatives.

    Scores alone would choose no positive at first. scores (E,), positive (E,) bool, counts: E of each image.
    Returns indices (K,) into E, image after image.
    """
    chosen, start = [], 0
    for count in counts:
        own = positive[start:start + count]
        positives = own.nonzero()[:, 0]
        positives = positives[torch.randperm(len(positives), device=own.device)[:limit // 2]]
        negatives = scores[start:start + count].masked_fill(own, -torch.inf)
        wanted = min(limit - len(positives), count - int(own.sum()))
        chosen += [start + positives, start + negatives.topk(wanted).indices]
        start += count
    return torch.cat(chosen)


def top_pairs(scores: Tensor, counts: list[int], limit: int) -> Tensor:
    """Indices (K,) of each image's `limit` best scores; scores (E,), counts: E of each image."""
    chosen, start = [], 0
    for count in counts:
        chosen.append(start + scores[start:start + count].topk(min(limit, count)).indices)
        start += count
    return torch.cat(chosen)


# --- graph network ----------------------------------------------------------------------------------------------------

def scatter_softmax(logits: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the entries that share an index: logits (E,), index (E,) in 0..size-1 -> (E,)."""
    peak = logits.new_full((size,), -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    exp = (logits - peak[index]).exp()
    return exp / exp.new_zeros(size).index_add(0, index, exp)[index]


class Attention(nn.Module):
    """a_i. = softmax over i's neighbors j of w^T relu(W [z_i, z_j]) (Yang et al. 2018, Attentional GCN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, width // 2)  # W [z_i, z_j] = W_1 z_i + W_2 z_j
        self.sender = nn.Linear(width, width // 2, bias=False)
        self.score = nn.Linear(width // 2, 1, bias=False)

    def forward(self, receivers: Tensor, senders: Tensor, edges: Tensor) -> Tensor:
        """receivers (N, D), senders (M, D), edges (2, E): receiver and sender index -> weights (E,)."""
        hidden = self.receiver(receivers)[edges[0]] + self.sender(senders)[edges[1]]  # (E, D / 2)
        return scatter_softmax(self.score(hidden.relu())[:, 0], edges[0], len(receivers))


def object_edges(image: Tensor, pairs: Tensor) -> list[Tensor]:
    """Who sends to which object, by edge type; each (2, E): receiving object, sender.

    In order: the other objects of the image, the relations it is subject of, the relations it is object of. A relation
    has one subject and one object, so attention towards relations would always be 1 and is left out.
    """
    relations = torch.arange(len(pairs), device=pairs.device)
    return [ordered_pairs(image).T, torch.stack([pairs[:, 0], relations]), torch.stack([pairs[:, 1], relations])]


class GraphConvolution(nn.Module):
    """One message-passing step of the attentional GCN (Yang et al. 2018, Attentional GCN).

    z_i' = z_i + 1/3 sum over edge types of sum_j a_ij relu(W z_j);  r_k' = r_k + 1/2 (relu(W_s z_s) + relu(W_o z_o)).
    Averaging over edge types follows the authors' code; small weights make the step start close to the identity.
    """

    def __init__(self, object_width: int, relation_width: int) -> None:
        super().__init__()
        self.to_objects = nn.ModuleList(nn.Linear(sender, object_width)
                                        for sender in (object_width, relation_width, relation_width))
        self.to_relations = nn.ModuleList(nn.Linear(object_width, relation_width) for _ in range(2))
        for layer in (*self.to_objects, *self.to_relations):
            _init_normal(layer)

    def forward(self, objects: Tensor, relations: Tensor, pairs: Tensor, edges: list[Tensor], weights: list[Tensor]
                ) -> tuple[Tensor, Tensor]:
        """objects (N, D_o), relations (K, D_r), pairs (K, 2), edges and weights by edge type -> both, updated."""
        received = torch.zeros_like(objects)
        for layer, senders, (receiver, sender), weight in zip(
                self.to_objects, (objects, relations, relations), edges, weights):
            messages = layer(senders).relu()[sender] * weight[:, None]  # (E, D_o)
            received = received.index_add(0, receiver, messages)
        sent = [layer(objects).relu()[pairs[:, end]] for end, layer in enumerate(self.to_relations)]  # 2 x (K, D_r)
        return objects + received / 3, relations + (sent[0] + sent[1]) / 2


class GraphNetwork(nn.Module):
    """Node and relation features in, class and predicate logits out (Yang et al. 2018, Attentional GCN).

    Feature level on states of width D, then the semantic level on the logits, with the last attention weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        classes, width = config.categories + 1, config.graph_width
        if config.pair_geometry:
            self.geometry = nn.Sequential(_mlp(18, 64, width // 2), nn.ReLU())
        self.embed_object = _mlp(config.head_width, width, width)
        self.embed_relation = _mlp(config.head_width + config.pair_geometry * (width // 2), width, width)
        self.feature_step = GraphConvolution(width, width)
        if config.attention == "softmax":
            self.attentions = nn.ModuleList(Attention(width) for _ in range(3))
        if config.semantic:
            self.semantic_step = GraphConvolution(classes, config.predicates)
        self.object_logits = _init_normal(nn.Linear(width, classes))
        # most pairs lack most predicates: start at a probability of 0.1
        self.predicate_logits = _init_normal(nn.Linear(width, config.predicates), bias=-2.2)

    def forward(self, object_features: Tensor, union_features: Tensor, nodes: Nodes, pairs: Tensor
                ) -> tuple[Tensor, Tensor]:
        """object_features (N, head_width), union_features (K, head_width), pairs (K, 2) -> (N, C + 1), (K, P)."""
        objects = self.embed_object(object_features)  # (N, D)
        relations = self.relation_states(union_features, nodes.boxes[pairs[:, 0]], nodes.boxes[pairs[:, 1]])  # (K, D)
        edges = object_edges(nodes.image, pairs)
        for _ in range(self.config.gcn_steps):
            weights = self.attention_weights(objects, relations, edges)
            objects, relations = self.feature_step(objects, relations, pairs, edges, weights)
        classes, predicates = self.object_logits(objects), self.predicate_logits(relations)
        for _ in range(self.config.gcn_steps if self.config.semantic else 0):
            classes, predicates = self.semantic_step(classes, predicates, pairs, edges, weights)
        return classes, predicates

    def relation_states(self, union_features: Tensor, subjects: Tensor, objects: Tensor) -> Tensor:
        """x_rel: union_features (K, head_width), boxes (K, 4) of both ends -> (K, D)."""
        if self.config.pair_geometry:
            geometry = pair_geometry(subjects, objects, self.config.width, self.config.height)
            union_features = torch.cat([union_features, self.geometry(geometry)], 1)
        return self.embed_relation(union_features)

    def attention_weights(self, objects: Tensor, relations: Tensor, edges: list[Tensor]) -> list[Tensor]:
        """Weights (E,) of each edge type; they sum to 1 over the senders of one object."""
        if self.config.attention == "mean":
            return [scatter_softmax(objects.new_zeros(edge.shape[1]), edge[0], len(objects)) for edge in edges]
        return [attention(objects, senders, edge)
                for attention, senders, edge in zip(self.attentions, (objects, relations, relations), edges)]


# --- targets and losses -----------------------------------------------------------------------------------------------

def match_nodes(nodes: Nodes, targets: list[dict[str, Tensor]]) -> Tensor:
    """The ground-truth object each node overlaps best, at IoU >= 0.5: (N,), an index into all objects, or -1."""
    boxes = torch.cat([target["boxes"] for target in targets])  # (G, 4)
    image = image_index([len(target["boxes"]) for target in targets], boxes.device)
    iou = box_iou(nodes.boxes, boxes) * (nodes.image[:, None] == image)  # (N, G)
    best, index = F.pad(iou, (0, 1)).max(1)  # the extra column makes G = 0 legal
    return torch.where(best >= MATCH_IOU, index, -1)


def relation_targets(targets: list[dict[str, Tensor]], matches: Tensor, pairs: Tensor, predicates: int) -> Tensor:
    """Which predicates hold for each pair of nodes: matches (N,), pairs (E, 2) -> (E, P) in {0, 1}.

    Every pair of nodes that matches both ends of a ground-truth relation is positive; two nodes on one object are not.
    """
    count, start = sum(len(target["boxes"]) for target in targets), 0
    # index -1, an unmatched node, reads the last row or column, where nothing holds
    table = torch.zeros(count + 1, count + 1, predicates, device=matches.device)
    for target in targets:
        subject, predicate, object_ = target["relations"].unbind(1)
        table[start + subject, start + object_, predicate] = 1
        start += len(target["boxes"])
    return table[matches[pairs[:, 0]], matches[pairs[:, 1]]]


def balanced_bce(logits: Tensor, targets: Tensor, image: Tensor, images: int) -> Tensor:
    """Per image half the mean loss of positive rows plus half that of negative rows, averaged over images.

    logits, targets (E, P), image (E,) -> scalar; a row is positive if any predicate holds. An empty half counts 0.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)  # (E,)
    group = 2 * image + targets.any(1)
    sizes = torch.bincount(group, minlength=2 * images)
    return (0.5 * losses / sizes[group]).sum() / images


def image_index(counts: list[int], device: torch.device) -> Tensor:
    """[2, 1] -> [0, 0, 1]."""
    return torch.repeat_interleave(torch.tensor(counts)).to(device)


# --- the whole network ------------------------------------------------------------------------------------------------

class SceneGraphNet(nn.Module):
    """phi and h of Sim2SG: images -> scene graphs.

    pretrained: load ImageNet weights where the configuration asks for them; False where a checkpoint follows.
    Errors: InputError if those weights cannot be had.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.detector = Detector(config, pretrained)
        self.proposal = RelationProposal(config)
        self.union_head = copy.deepcopy(self.detector.roi_heads.box_head)
        self.graph = GraphNetwork(config)

    def features(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """phi: images (B, 3, H, W) in [0, 1] -> pyramid levels '0', '1', ..., 'pool', each (B, fpn_channels, h, w).

        Errors: ValueError if H, W are not the configuration's.
        """
        return self.detector.features(images)

    def losses(self, features: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The seven losses by name, each a scalar; the total is their plain sum (Prakash et al. 2021).

        targets, per image: `boxes` (G, 4) float32 network input px, `labels` (G,) int64 in 1..C, `relations` (R, 3)
        int64 rows (subject, predicate, object). G and R may be 0.
        """
        losses, detections = self.detector.losses(features, targets)
        with torch.no_grad():  # relations teach the encoder through the union boxes, not through the detector
            nodes = self._nodes(features, [torch.cat([found, target["boxes"]])
                                           for found, target in zip(detections.boxes, targets)])
        matches = match_nodes(nodes, targets)
        candidates = ordered_pairs(nodes.image)
        holds = relation_targets(targets, matches, candidates, self.config.predicates)  # (E, P)
        related = holds.any(1)
        scores = self.proposal(nodes.class_logits.softmax(1), nodes.boxes, candidates)
        losses["loss_relpn"] = balanced_bce(scores[:, None], related[:, None].float(), nodes.image[candidates[:, 0]],
                                            len(targets))
        chosen = sample_pairs(scores.detach(), related, nodes.pair_counts(), self.config.pairs_train)
        classes, predicates = self._relate(features, nodes, candidates[chosen])
        labels = torch.cat([*(target["labels"] for target in targets), matches.new_zeros(1)])[matches]
        # summed, so that no node at all gives 0 and not NaN
        losses["loss_obj"] = F.cross_entropy(classes, labels, reduction="sum") / max(1, len(labels))
        losses["loss_rel"] = balanced_bce(predicates, holds[chosen], torch.zeros_like(chosen), 1)
        return losses

    @torch.no_grad()
    def predict(self, features: dict[str, Tensor], possible: Tensor | None = None) -> list[Prediction]:
        """One Prediction per image; whether the module is in training mode makes no difference.

        possible: (P, C, C) bool of `RelationRules.allowed_predicates`: what is never labeled is not predicted either. None: all is.
        """
        detections, nodes, pairs, relatedness, predicates = self._infer(
            features, self.config.nodes_test, self.config.pairs_test, possible)
        counts = _counts(nodes.image[pairs[:, 0]], len(nodes.counts))
        starts = np.cumsum([0, *nodes.counts])
        return [Prediction(self.config.width, self.config.height, boxes, labels - 1, scores, own - int(start),
                           probs.sigmoid(), related.sigmoid())
                for boxes, labels, scores, start, own, probs, related in zip(
                    detections.boxes, detections.labels, detections.scores, starts, pairs.split(counts),
                    predicates.split(counts), relatedness.split(counts))]

    def tokens(self, features: dict[str, Tensor]) -> list[Tensor]:
        """h(z) for the prediction discriminator, chosen without labels, so alike in both domains.

        Per image (T, 2 (C + 1 + 4) + P), T may be 0: class probabilities and box (x, y, w, h over the image size) of
        subject and of object, then predicate probabilities. Nothing is detached.
        """
        _, nodes, pairs, _, predicates = self._infer(features, TOKEN_NODES, TOKEN_PAIRS)
        size = nodes.boxes.new_tensor([self.config.width, self.config.height] * 2)
        objects = torch.cat([nodes.class_logits.softmax(1), box_convert(nodes.boxes, "xyxy", "cxcywh") / size], 1)
        tokens = torch.cat([objects[pairs[:, 0]], objects[pairs[:, 1]], predicates.sigmoid()], 1)
        return list(tokens.split(_counts(nodes.image[pairs[:, 0]], len(nodes.counts))))

    def _nodes(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Nodes:
        counts = [len(own) for own in boxes]
        box_features = self.detector.box_features(features, boxes)
        return Nodes(counts, image_index(counts, box_features.device), torch.cat(boxes), box_features,
                     self.detector.roi_heads.box_predictor.cls_score(box_features))

    def _relate(self, features: dict[str, Tensor], nodes: Nodes, pairs: Tensor) -> tuple[Tensor, Tensor]:
        unions = union_boxes(nodes.boxes[pairs[:, 0]], nodes.boxes[pairs[:, 1]])
        counts = _counts(nodes.image[pairs[:, 0]], len(nodes.counts))
        union_features = self.union_head(self.detector.pool(features, list(unions.split(counts))))
        return self.graph(nodes.features, union_features, nodes, pairs)

    def _infer(self, features: dict[str, Tensor], max_nodes: int, max_pairs: int, possible: Tensor | None = None
               ) -> tuple[Detections, Nodes, Tensor, Tensor, Tensor]:
        detections = self.detector.detect(features, max_nodes)
        nodes = self._nodes(features, detections.boxes)
        candidates = ordered_pairs(nodes.image)
        if possible is not None:  # before the choice, so that impossible pairs take nobody's place
            ends = torch.cat(detections.labels)[candidates] - 1  # (E, 2)
            allowed = possible[:, ends[:, 0], ends[:, 1]].T  # (E, P)
            candidates, allowed = candidates[allowed.any(1)], allowed[allowed.any(1)]
        scores = self.proposal(nodes.class_logits.softmax(1), nodes.boxes, candidates)
        chosen = top_pairs(scores, _counts(nodes.image[candidates[:, 0]], len(nodes.counts)), max_pairs)
        pairs = candidates[chosen]
        _, predicates = self._relate(features, nodes, pairs)
        if possible is not None:
            predicates = predicates.masked_fill(~allowed[chosen], -torch.inf)
        return detections, nodes, pairs, scores[chosen], predicates


def _counts(image: Tensor, images: int) -> list[int]:
    return torch.bincount(image, minlength=images).tolist()


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _init_normal(layer: nn.Linear, bias: float = 0.0) -> nn.Linear:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, bias)
    return layer
