"""The parts of Graph R-CNN behind the detector: relation proposals, graph network, their targets.

Source: Yang et al. 2018, "Graph R-CNN for Scene Graph Generation". All images of a batch form one
graph of unconnected parts, so that nothing here loops over nodes or pairs. Letters in shapes: N
nodes (object boxes), E ordered pairs of nodes and K pairs that the proposal network keeps, all of
the whole batch; D graph width, C categories, P predicates. A pair (i, j) is ordered: subject i,
object j. Boxes are in pixels of the network input.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.detector import MATCH_IOU

PROPOSAL_WIDTH = 64  # width of the relation proposal network's embeddings


@dataclass(frozen=True)
class Nodes:
    """The object boxes of a batch, image after image."""

    counts: list[int]  # nodes of each image
    image: Tensor  # (N,) int64, index of each node's image
    boxes: Tensor  # (N, 4) px
    features: Tensor  # (N, head_width) box-head features
    class_logits: Tensor  # (N, C + 1) of the detector, background first


def image_index(counts: list[int], device: torch.device) -> Tensor:
    """[2, 1] -> [0, 0, 1]."""
    return torch.repeat_interleave(torch.tensor(counts)).to(device)


# --- geometry -------------------------------------------------------------------------------------

def box_geometry(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes (N, 4) px -> (N, 6): x0/W, y0/H, x1/W, y1/H, area/(W H), h/(w + 1)."""
    w, h = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    scaled = boxes / boxes.new_tensor([width, height, width, height])
    return torch.cat([scaled, (w * h / (width * height))[:, None], (h / (w + 1))[:, None]], 1)


def pair_geometry(subjects: Tensor, objects: Tensor, width: int, height: int) -> Tensor:
    """What the union box does not show, which end is where: boxes (K, 4) px twice -> (K, 18).

    box_geometry of both; of the subject relative to the object, center offsets (x/W, y/H), offset
    of the bottom edge (y1/H, a depth cue on a ground plane), log size ratios (w, h); and the IoU.
    """
    sizes_s, sizes_o = subjects[:, 2:] - subjects[:, :2], objects[:, 2:] - objects[:, :2]  # (K, 2)
    centers = (subjects[:, :2] + subjects[:, 2:] - objects[:, :2] - objects[:, 2:]) / 2
    scale = subjects.new_tensor([width, height, height])
    offsets = torch.cat([centers, (subjects - objects)[:, 3:]], 1) / scale
    low, high = torch.maximum(subjects, objects)[:, :2], torch.minimum(subjects, objects)[:, 2:]
    intersection = (high - low).clamp(min=0).prod(1)
    iou = intersection / (sizes_s.prod(1) + sizes_o.prod(1) - intersection)
    positions = [box_geometry(boxes, width, height) for boxes in (subjects, objects)]
    return torch.cat([*positions, offsets, (sizes_s / sizes_o).log(), iou[:, None]], 1)


def union_boxes(subjects: Tensor, objects: Tensor) -> Tensor:
    """Smallest boxes around both: (K, 4), (K, 4) -> (K, 4)."""
    low, high = torch.minimum(subjects, objects)[:, :2], torch.maximum(subjects, objects)[:, 2:]
    return torch.cat([low, high], 1)


# --- relation proposal network --------------------------------------------------------------------

def ordered_pairs(image: Tensor) -> Tensor:
    """All (i, j), i != j, of nodes in one image, sorted: image (N,) -> (E, 2)."""
    same_image = image[:, None] == image[None, :]
    return same_image.fill_diagonal_(False).nonzero()


class RelationProposal(nn.Module):
    """RePN (Yang et al. 2018): logit that two objects are related, s_ij = <Phi(x_i), Psi(x_j)>.

    Of class probabilities and, with a second pair of kernels, of boxes; the products are added.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.height, width = config.width, config.height, PROPOSAL_WIDTH
        self.class_subject, self.class_object = (
            mlp(config.categories + 1, width, width) for _ in range(2))
        self.box_subject, self.box_object = (mlp(6, width, width) for _ in range(2))

    def forward(self, class_probs: Tensor, boxes: Tensor, pairs: Tensor) -> Tensor:
        """class_probs (N, C + 1), boxes (N, 4), pairs (E, 2) -> logits (E,)."""
        position = box_geometry(boxes, self.width, self.height)
        # the sum of two dot products is the dot product of the concatenations
        subject = torch.cat([self.class_subject(class_probs), self.box_subject(position)], 1)
        object_ = torch.cat([self.class_object(class_probs), self.box_object(position)], 1)
        return (subject @ object_.T)[pairs[:, 0], pairs[:, 1]]


def sample_pairs(scores: Tensor, positive: Tensor, counts: list[int], limit: int) -> Tensor:
    """Training pairs of each image: random positives up to limit / 2, then the highest negatives.

    Scores alone would choose no positive at first. scores (E,), positive (E,) bool, counts: E of
    each image. Returns indices (K,) into E, image after image.
    """
    chosen, start = [], 0
    for count in counts:
        own = positive[start:start + count]
        positives = own.nonzero()[:, 0]
        order = torch.randperm(len(positives), device=own.device)
        positives = positives[order[:limit // 2]]
        negatives = scores[start:start + count].masked_fill(own, -torch.inf)
        wanted = min(limit - len(positives), count - int(own.sum()))
        chosen += [start + positives, start + negatives.topk(wanted).indices]
        start += count
    return torch.cat(chosen)


def top_pairs(scores: Tensor, counts: list[int], limit: int) -> Tensor:
    """Indices (K,) of each image's `limit` highest scores; scores (E,), counts: E of each image."""
    chosen, start = [], 0
    for count in counts:
        chosen.append(start + scores[start:start + count].topk(min(limit, count)).indices)
        start += count
    return torch.cat(chosen)


# --- graph network --------------------------------------------------------------------------------

def scatter_softmax(logits: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over entries of equal index: logits (E,), index (E,) in 0..size-1 -> (E,)."""
    peak = logits.new_full((size,), -torch.inf)
    peak = peak.scatter_reduce(0, index, logits.detach(), "amax")
    exp = (logits - peak[index]).exp()
    return exp / exp.new_zeros(size).index_add(0, index, exp)[index]


class Attention(nn.Module):
    """a_i. = softmax over the neighbors j of i of w^T relu(W [z_i, z_j]) (Yang et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, width // 2)  # W [z_i, z_j] = W_1 z_i + W_2 z_j
        self.sender = nn.Linear(width, width // 2, bias=False)
        self.score = nn.Linear(width // 2, 1, bias=False)

    def forward(self, receivers: Tensor, senders: Tensor, edges: Tensor) -> Tensor:
        """receivers (N, D), senders (M, D), edges (2, E): index of receiver, of sender -> (E,)."""
        hidden = self.receiver(receivers)[edges[0]] + self.sender(senders)[edges[1]]  # (E, D / 2)
        return scatter_softmax(self.score(hidden.relu())[:, 0], edges[0], len(receivers))


def object_edges(image: Tensor, pairs: Tensor) -> list[Tensor]:
    """Messages to objects by edge type, each (2, E): index of the receiving object, of the sender.

    From the other objects of the image, and from the relations whose subject, or object, the object
    is. A relation receives from one subject and one object, so its attention would always be 1.
    """
    relations = torch.arange(len(pairs), device=pairs.device)
    ends = [torch.stack([pairs[:, end], relations]) for end in (0, 1)]
    return [ordered_pairs(image).T, *ends]


class GraphConvolution(nn.Module):
    """One message-passing step of the attentional GCN (Yang et al. 2018).

    z_i' = z_i + 1/3 sum over edge types of sum_j a_ij relu(W z_j);
    r_k' = r_k + 1/2 (relu(W_s z_s) + relu(W_o z_o)).
    Averaging over edge types follows the authors' code; with small initial weights the step starts
    close to the identity.
    """

    def __init__(self, object_width: int, relation_width: int) -> None:
        super().__init__()
        senders = (object_width, relation_width, relation_width)
        self.to_objects = nn.ModuleList(nn.Linear(width, object_width) for width in senders)
        self.to_relations = nn.ModuleList(nn.Linear(object_width, relation_width) for _ in range(2))
        for layer in (*self.to_objects, *self.to_relations):
            init_normal(layer)

    def forward(self, objects: Tensor, relations: Tensor, pairs: Tensor, edges: list[Tensor],
                weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Updated objects (N, D_o), relations (K, D_r); pairs (K, 2), weights (E,) by edge type."""
        received = torch.zeros_like(objects)
        senders = (objects, relations, relations)
        for layer, states, edge, weight in zip(self.to_objects, senders, edges, weights):
            messages = layer(states).relu()[edge[1]] * weight[:, None]  # (E, D_o)
            received = received.index_add(0, edge[0], messages)
        sent = [layer(objects).relu()[pairs[:, end]] for end, layer in enumerate(self.to_relations)]
        return objects + received / 3, relations + (sent[0] + sent[1]) / 2


class GraphNetwork(nn.Module):
    """Node and relation features in, class and predicate logits out (Yang et al. 2018).

    The feature level passes messages between states of width D; the semantic level then passes them
    between the logits, with the last attention weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        classes, width = config.categories + 1, config.graph_width
        self.geometry = nn.Sequential(mlp(18, 64, width // 2), nn.ReLU())
        self.embed_object = mlp(config.head_width, width, width)
        self.embed_relation = mlp(config.head_width + width // 2, width, width)
        self.feature_step = GraphConvolution(width, width)
        self.attentions = nn.ModuleList(Attention(width) for _ in range(3))
        self.semantic_step = GraphConvolution(classes, config.predicates)
        self.object_logits = init_normal(nn.Linear(width, classes))
        # most pairs lack most predicates: start at a probability of 0.1
        self.predicate_logits = init_normal(nn.Linear(width, config.predicates), bias=-2.2)

    def forward(self, object_features: Tensor, union_features: Tensor, nodes: Nodes, pairs: Tensor
                ) -> tuple[Tensor, Tensor]:
        """Logits (N, C + 1) and (K, P); features (N, head_width), (K, head_width), pairs (K, 2)."""
        objects = self.embed_object(object_features)  # (N, D)
        ends = nodes.boxes[pairs[:, 0]], nodes.boxes[pairs[:, 1]]
        relations = self.relation_states(union_features, *ends)  # (K, D)
        edges = object_edges(nodes.image, pairs)
        for _ in range(self.config.gcn_steps):
            weights = self.attention_weights(objects, relations, edges)
            objects, relations = self.feature_step(objects, relations, pairs, edges, weights)
        classes, predicates = self.object_logits(objects), self.predicate_logits(relations)
        for _ in range(self.config.gcn_steps):
            classes, predicates = self.semantic_step(classes, predicates, pairs, edges, weights)
        return classes, predicates

    def relation_states(self, union_features: Tensor, subjects: Tensor, objects: Tensor) -> Tensor:
        """x_rel of union_features (K, head_width) and boxes (K, 4) of both ends: (K, D)."""
        geometry = pair_geometry(subjects, objects, self.config.width, self.config.height)
        return self.embed_relation(torch.cat([union_features, self.geometry(geometry)], 1))

    def attention_weights(self, objects: Tensor, relations: Tensor, edges: list[Tensor]
                          ) -> list[Tensor]:
        """Weights (E,) of each edge type; they sum to 1 over the senders to one object."""
        senders = (objects, relations, relations)
        return [attention(objects, states, edge)
                for attention, states, edge in zip(self.attentions, senders, edges)]


# --- targets and losses ---------------------------------------------------------------------------

def match_nodes(nodes: Nodes, targets: list[dict[str, Tensor]]) -> Tensor:
    """The object each node overlaps most, at IoU >= 0.5: (N,), an index into all objects, or -1."""
    boxes = torch.cat([target["boxes"] for target in targets])  # (G, 4)
    image = image_index([len(target["boxes"]) for target in targets], boxes.device)
    iou = box_iou(nodes.boxes, boxes) * (nodes.image[:, None] == image)  # (N, G)
    best, index = F.pad(iou, (0, 1)).max(1)  # the extra column allows G = 0
    return torch.where(best >= MATCH_IOU, index, -1)


def relation_targets(targets: list[dict[str, Tensor]], matches: Tensor, pairs: Tensor,
                     predicates: int) -> Tensor:
    """Which predicates hold for each pair of nodes: matches (N,), pairs (E, 2) -> (E, P) in {0, 1}.

    Every pair of nodes that match the two ends of a ground-truth relation is positive.
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
    """Half the mean loss of positive rows plus half that of negative rows, averaged over images.

    logits, targets (E, P), image (E,) -> scalar; a row is positive if any predicate holds.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)  # (E,)
    group = 2 * image + targets.any(1)
    sizes = torch.bincount(group, minlength=2 * images)
    return (0.5 * losses / sizes[group]).sum() / images


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def init_normal(layer: nn.Linear, bias: float = 0.0) -> nn.Linear:
    """The layer with weights from N(0, 0.01^2) and a constant bias."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, bias)
    return layer
