"""The network: values by hand, symmetries of the graph network, gradient routes, overfitting."""
import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.ops import box_iou

from envs.clevr import ENV
from sim2sg_lib import checkpoint
from sim2sg_lib.adapt.sim2sg import triplet_features
from sim2sg_lib.dataset import open_images
from sim2sg_lib.graph import Vocabulary, make_graph
from sim2sg_lib.net.backbone import (
    ModelConfig, edge_window, local_edges, paper_config, quick_config)
from sim2sg_lib.net.detector import drop_ignored, in_ignore_region, pyramid_anchors, roi_align
from sim2sg_lib.cli import InputError
from sim2sg_lib.net.predict import confident_graphs, predict_folder, to_graph
from sim2sg_lib.net.network import Outputs, Prediction, SceneGraphNet
from sim2sg_lib.net.relations import (
    GraphConvolution, Nodes, balanced_bce, box_geometry, image_index, match_nodes, object_edges,
    ordered_pairs, pair_geometry, relation_targets, sample_pairs, scatter_softmax, top_pairs,
    union_boxes)

TINY = dataclasses.replace(
    quick_config(3, 4, 96, 72, imagenet=False), fpn_channels=32, head_width=64, graph_width=32,
    rois_per_image=32, proposals_train=64, proposals_test=32)
LEFT, RIGHT, FRONT, BEHIND = range(4)


def make_target(boxes, labels, relations, ignore=()) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "ignore_boxes": torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "relations": torch.tensor(relations, dtype=torch.int64).reshape(-1, 3)}


def three_objects() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A gray image with a red, a green and a blue rectangle, and its 12 relations.

    Each ordered pair has one of left and right and one of front and behind.
    """
    boxes = [[8, 10, 28, 26], [40, 40, 64, 64], [66, 8, 88, 34]]
    image = torch.full((3, 72, 96), 0.5)
    relations = []
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        image[:, y0:y1, x0:x1] = torch.eye(3)[i][:, None, None]
        for j in range(3):
            if i != j:
                relations.append((i, LEFT if x0 + x1 < boxes[j][0] + boxes[j][2] else RIGHT, j))
                relations.append((i, FRONT if y1 > boxes[j][3] else BEHIND, j))
    return image, make_target(boxes, [1, 2, 3], relations)


def total_loss(net, image, target):
    return sum(net.losses(net(image[None]), [target]).values())


def make_nodes(counts: list[int], config: ModelConfig) -> Nodes:
    boxes = torch.rand(sum(counts), 4) * 30
    boxes[:, 2:] += boxes[:, :2] + 5
    return Nodes(counts, image_index(counts, torch.device("cpu")), boxes,
                 torch.randn(sum(counts), config.head_width),
                 torch.randn(sum(counts), config.categories + 1))


def gradient(module: torch.nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def blind(net: SceneGraphNet) -> SceneGraphNet:
    """Makes the network classify every box as background."""
    with torch.no_grad():
        net.detector.roi_heads.box_predictor.cls_score.bias[0] = 20
    return net


@pytest.fixture
def net() -> SceneGraphNet:
    torch.manual_seed(0)
    return SceneGraphNet(TINY)


@pytest.fixture(scope="module")
def overfitted() -> SceneGraphNet:
    """A network overfitted to the three-object image and to its left half."""
    torch.manual_seed(0)
    net = SceneGraphNet(TINY)
    image, target = three_objects()
    half = image.clone()
    half[:, :, 65:] = 0.5
    relations = target["relations"]
    half_target = {"boxes": target["boxes"][:2], "labels": target["labels"][:2],
                   "ignore_boxes": target["ignore_boxes"],
                   "relations": relations[(relations[:, 0] < 2) & (relations[:, 2] < 2)]}
    images = torch.stack([image, half])
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, 200)
    for _ in range(200):
        optimizer.zero_grad()
        loss = sum(net.losses(net(images), [target, half_target]).values())
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


# --- values computed by hand ----------------------------------------------------------------------

def test_scatter_softmax_by_hand():
    weights = scatter_softmax(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0, 0, 1]), 3)
    assert torch.allclose(weights, torch.tensor([0.2689, 0.7311, 1.0]), atol=1e-4)
    large = scatter_softmax(torch.tensor([1e4, 1e4]), torch.tensor([1, 1]), 2)
    assert torch.allclose(large, torch.tensor([0.5, 0.5]))


def test_pair_geometry_by_hand():
    subject = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # 20 wide, 40 high, center (20, 40)
    other = torch.tensor([[20.0, 40.0, 60.0, 60.0]])  # 40 wide, 20 high, center (40, 50)
    expected = [0.1, 0.4, 0.3, 1.2, 800 / 5000, 40 / 21, 0.2, 0.8, 0.6, 1.2, 800 / 5000, 20 / 41,
                -0.2, -0.2, 0.0, np.log(0.5), np.log(2), 200 / 1400]
    assert pair_geometry(subject, other, 100, 50)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(union_boxes(subject, other), torch.tensor([[10.0, 20.0, 60.0, 60.0]]))
    assert box_geometry(subject[:0], 100, 50).shape == (0, 6)


def test_message_passing_by_hand():
    """Object states 1, 2, 4 and a relation of state 8 from the first to the third object.

    Each type of message is scaled by its own power of ten.
    """
    step = GraphConvolution(1, 1)
    with torch.no_grad():
        for layer, scale in zip((*step.to_objects, *step.to_relations), (1, 10, 100, 1000, 10000)):
            layer.weight.fill_(scale)
    pairs = torch.tensor([[0, 2]])
    edges = object_edges(torch.zeros(3, dtype=torch.int64), pairs)
    weights = [torch.full((6,), 0.5), torch.ones(1), torch.ones(1)]
    states = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[8.0]])
    objects, relations = step(*states, pairs, edges, weights)
    assert objects[:, 0].tolist() == pytest.approx(
        [1 + (3 + 80) / 3, 2 + 2.5 / 3, 4 + (1.5 + 800) / 3])
    assert relations.tolist() == [[8 + (1000 * 1 + 10000 * 4) / 2]]


def test_balanced_bce_by_hand():
    # softplus(0) = .6931, softplus(2) = 2.1269, softplus(-1) = .3133
    logits, targets = (torch.tensor([[0.0], [2.0], [-1.0], [0.0]]),
                       torch.tensor([[1.0], [0.0], [0.0], [0.0]]))
    one = balanced_bce(logits[:3], targets[:3], torch.zeros(3, dtype=torch.int64), 1)
    assert float(one) == pytest.approx(0.5 * 0.6931 + 0.5 * (2.1269 + 0.3133) / 2, abs=1e-4)
    # the second image has no positive pair: only half of its negative term counts
    two = balanced_bce(logits, targets, torch.tensor([0, 0, 0, 1]), 2)
    assert float(two) == pytest.approx((float(one) + 0.5 * 0.6931) / 2, abs=1e-4)


def test_matching_and_multi_label_targets():
    targets = [make_target([[0, 0, 10, 10]], [1], []),
               make_target([[0, 0, 10, 10], [20, 0, 30, 10]], [1, 2],
                           [(0, 3, 1), (0, 1, 1), (1, 2, 0)])]
    boxes = torch.tensor([[0.0, 0, 10, 10],  # first image
                          [0.0, 0, 10, 6], [0.0, 0, 10, 9], [20.0, 0, 30, 10], [20.0, 0, 30, 4.9]])
    nodes = Nodes([1, 4], torch.tensor([0, 1, 1, 1, 1]), boxes, torch.zeros(5, 1),
                  torch.zeros(5, 1))
    matches = match_nodes(nodes, targets)
    assert matches.tolist() == [0, 1, 1, 2, -1]
    pairs = ordered_pairs(nodes.image)
    assert pairs.tolist() == [[i, j] for i in range(1, 5) for j in range(1, 5) if i != j]
    holds = {tuple(pair): row.nonzero()[:, 0].tolist()
             for pair, row in zip(pairs.tolist(), relation_targets(targets, matches, pairs, 4))
             if row.any()}
    # both nodes matched to object 1 relate to the node of object 2, but not to each other; the
    # unmatched node has no relations
    assert holds == {(1, 3): [1, 3], (2, 3): [1, 3], (3, 1): [2], (3, 2): [2]}


def test_pair_sampling():
    torch.manual_seed(0)
    scores = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.5, 0.6])
    positive = torch.tensor([True, False, True, False, True, False, False, False])
    first, second = sample_pairs(scores, positive, [6, 2], 4).split([4, 2])
    assert len(set(first[:2].tolist()) & {0, 2, 4}) == 2 and first[2:].tolist() == [1, 3]
    assert second.tolist() == [7, 6]
    assert top_pairs(scores, [6, 2], 3).tolist() == [1, 2, 3, 7, 6]
    assert len(sample_pairs(scores[:0], positive[:0], [0, 0], 4)) == 0
    # missing negatives are not replaced by positives
    assert sorted(
        sample_pairs(scores[:2], torch.tensor([True, True]), [2], 2).tolist()) in ([0], [1])


BORDER_BOXES = {  # on a map of 12 x 9 cells of 8 px
    "inside": [[3, 5, 61, 40], [10, 10, 12, 11], [40, 60, 44, 72]], "whole map": [[0, 0, 96, 72]],
    "thin, left": [[0, 20, 3, 50]], "thin, top": [[20, 0, 50, 3]],
    "thin, right": [[93, 20, 96, 50]], "thin, bottom": [[20, 69, 50, 72]],
    "corner": [[94, 70, 96, 72]], "outside": [[-30, -20, -2, 10], [100, 80, 120, 90]]}


@pytest.mark.parametrize("boxes", BORDER_BOXES.values(), ids=BORDER_BOXES)
def test_roi_align_equals_torchvision(boxes):
    torch.manual_seed(0)
    feature, boxes = (torch.randn(5, 9, 12, requires_grad=True),
                      torch.tensor(boxes, dtype=torch.float32))
    # (n, C, y, x)
    expected = torchvision.ops.roi_align(feature[None], [boxes], 7, 1 / 8, sampling_ratio=2)
    weight = torch.randn_like(expected)
    expected_gradient, = torch.autograd.grad((expected * weight).sum(), feature)
    pooled = roi_align(feature, boxes, 8).permute(0, 3, 2, 1)
    assert torch.allclose(pooled, expected, atol=1e-5)
    found_gradient, = torch.autograd.grad((pooled * weight).sum(), feature)
    assert torch.allclose(found_gradient, expected_gradient, atol=1e-5)


def slow_roi_align(feature: torch.Tensor, box: list[float], stride: int) -> torch.Tensor:
    """Reference for one box, sample by sample: (C, H, W) -> (7, 7, C), axes x, y, C."""
    channels, height, width = feature.shape
    x0, y0, x1, y1 = (value / stride for value in box)
    bin_w, bin_h = max(x1 - x0, 1) / 7, max(y1 - y0, 1) / 7
    out = torch.zeros(7, 7, channels)
    for i, j, u, v in np.ndindex(7, 7, 2, 2):
        x, y = x0 + (i + (u + 0.5) / 2) * bin_w, y0 + (j + (v + 0.5) / 2) * bin_h
        if not (-1 <= x <= width and -1 <= y <= height):
            continue  # counts as 0
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        left, top = int(x), int(y)
        for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            if column < width and row < height:
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                out[i, j] += share * feature[:, row, column] / 4
    return out


@pytest.mark.parametrize("box", [box for group in BORDER_BOXES.values() for box in group], ids=str)
def test_roi_align_equals_a_slow_twin(box):
    feature = torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(1))
    pooled = roi_align(feature, torch.tensor([box], dtype=torch.float32), 8)[0]
    assert torch.allclose(pooled, slow_roi_align(feature, box, 8), atol=1e-5)


@pytest.mark.parametrize("window, passes", [(31, 1), (7, 3)])
def test_local_edges_equal_a_slow_twin(window, passes):
    images = torch.rand(1, 3, 18, 40, generator=torch.Generator().manual_seed(0),
                        dtype=torch.float64)
    gray = np.pad(images[0].mean(0).numpy(), 1, mode="edge")
    dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
    norm, half = np.hypot(dx, dy), window // 2
    mean = norm ** 2
    for _ in range(passes):
        previous, mean = mean, np.empty_like(norm)
        for y, x in np.ndindex(norm.shape):
            around = previous[max(y - half, 0):y + half + 1, max(x - half, 0):x + half + 1]
            mean[y, x] = around.mean()
    assert np.allclose(local_edges(images, window, passes)[0].numpy(),
                       np.stack([abs(dx), abs(dy), norm]) / (np.sqrt(mean) + 0.05))
    # inverting the brightness does not matter
    assert torch.allclose(local_edges(1 - images, window, passes),
                          local_edges(images, window, passes))
    assert (local_edges(torch.full((1, 3, 40, 40), 0.3), window, passes) == 0).all()


def test_the_window_of_edges_is_a_share_of_the_width_without_halos():
    """Around a bright point, what an edge is divided by falls off smoothly in all directions."""
    assert edge_window(quick_config(3, 4, 160, 120, imagenet=False)) == (19, 3)
    assert edge_window(quick_config(4, 4, 640, 194, imagenet=False)) == (71, 3)
    assert edge_window(dataclasses.replace(TINY, edge_window=0.0)) == (31, 1)
    images = torch.full((1, 3, 101, 101), 0.5)
    images[..., 50] = 0.6  # a faint line far from the point shows how much the point weighs there
    images[:, :, 10, 50] = 1
    column = local_edges(images, 19, 3)[0, 0, :, 49]  # along the line
    steps = (column[20:] - column[19:-1]).abs()
    halo = local_edges(images, 31, 1)[0, 0, :, 49]
    assert steps.max() < 0.2 * (halo[20:] - halo[19:-1]).abs().max()


def test_objectness_is_the_best_anchor(net):
    outputs = net(torch.rand(2, 3, 72, 96))
    logits, _ = net.detector.rpn.head(list(outputs.features.values()))
    assert list(outputs.objectness) == list(outputs.features)
    best = logits[0][1].flatten(1)[:, 5].sigmoid().max()
    assert (torch.allclose(outputs.objectness["0"][1, 5], best)
            and not outputs.objectness["0"].requires_grad)


def test_boxes_are_pooled_from_the_level_of_their_size(net):
    """Boxes smaller than 224 px use the finer level (Lin et al. 2017, eq. 1).

    Each level is filled with its own number.
    """
    config = dataclasses.replace(TINY, width=640, height=480)
    net.detector.config = config
    features = {str(level): torch.full((2, 32, 60 // 2 ** level, 80 // 2 ** level), float(level))
                for level in range(2)}
    boxes = [torch.tensor([[0.0, 0, 223, 223], [0.0, 0, 224, 224], [5.0, 5, 20, 20]]),
             torch.tensor([[0.0, 0, 600, 400]])]
    assert net.detector.pool(features, boxes).mean(1).tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("numbers, nested", [
    ((64, 32), True), ((400, 200), False), ((32, 64), False)])
def test_proposals_of_test_time_are_shared_only_where_they_are_the_same(numbers, nested):
    torch.manual_seed(0)
    net = SceneGraphNet(
        dataclasses.replace(TINY, proposals_train=numbers[0], proposals_test=numbers[1]))
    outputs = net(torch.rand(2, 3, 72, 96))
    assert net.detector.nested_proposals == nested
    expected = net.detector.proposals(outputs.anchors, training=False)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs.proposals, expected))
    assert max(map(len, outputs.proposals)) <= numbers[1]


def test_anchors_know_the_strides():
    """120 rows give 8 rows of stride 16, not 8 rows of stride 15."""
    anchors = pyramid_anchors(quick_config(3, 4, 160, 120, imagenet=False))
    assert anchors.shape == (3 * (20 * 15 + 10 * 8 + 5 * 4), 4)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert (centers[3 * 300 - 1].tolist() == [152, 112]
            and centers[3 * 380 - 1].tolist() == [144, 112])
    assert centers[-1].tolist() == [128, 96]
    assert anchors[1].tolist() == [-6, -6, 6, 6]


# --- symmetries of the graph network --------------------------------------------------------------

def test_permuting_nodes_permutes_outputs():
    torch.manual_seed(1)
    graph, nodes = SceneGraphNet(TINY).graph.double(), make_nodes([5], TINY)
    nodes = dataclasses.replace(nodes, boxes=nodes.boxes.double())
    features, pairs = torch.randn(5, 64).double(), ordered_pairs(nodes.image)[::2]
    unions = torch.randn(len(pairs), 64).double()
    for p in graph.parameters():  # with the initial weights, messages have almost no effect
        torch.nn.init.normal_(p, std=0.3)
    classes, predicates = graph(features, unions, nodes, pairs)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = dataclasses.replace(nodes, boxes=nodes.boxes[order])
    shuffled = torch.randperm(len(pairs))
    moved_pairs = order.argsort()[pairs][shuffled]
    moved_classes, moved_predicates = graph(features[order], unions[shuffled], moved, moved_pairs)
    assert torch.allclose(moved_classes, classes[order])
    assert torch.allclose(moved_predicates, predicates[shuffled])
    assert not torch.allclose(moved_classes, classes)


def test_attention_sums_to_one():
    torch.manual_seed(2)
    graph, image = SceneGraphNet(TINY).graph, torch.tensor([0, 0, 0, 0, 1, 1, 2])
    pairs = torch.tensor([[0, 1], [0, 2], [1, 0], [3, 0], [4, 5]])
    edges = object_edges(image, pairs)
    weights = graph.attention_weights(torch.randn(7, 32), torch.randn(5, 32), edges)
    senders = [[3, 3, 3, 3, 1, 1, 0], [2, 1, 0, 1, 1, 0, 0], [2, 1, 1, 0, 0, 1, 0]]
    for edge, weight, expected in zip(edges, weights, senders):
        assert torch.bincount(edge[0], minlength=7).tolist() == expected
        total = torch.zeros(7).index_add(0, edge[0], weight)
        assert torch.allclose(total, (torch.tensor(expected) > 0).float())
    assert weights[0][:3].std() > 0.001


def test_batch_of_graphs_equals_single_graphs():
    torch.manual_seed(3)
    graph, nodes = SceneGraphNet(TINY).graph.double(), make_nodes([4, 3], TINY)
    for p in graph.parameters():
        torch.nn.init.normal_(p, std=0.3)
    nodes = dataclasses.replace(nodes, boxes=nodes.boxes.double())
    features, pairs = torch.randn(7, 64).double(), ordered_pairs(nodes.image)
    unions = torch.randn(len(pairs), 64).double()
    classes, predicates = graph(features, unions, nodes, pairs)
    for own, pair, count, start in ((slice(0, 4), slice(0, 12), 4, 0),
                                    (slice(4, 7), slice(12, 18), 3, 4)):
        single = dataclasses.replace(nodes, counts=[count], image=nodes.image[own] * 0,
                                     boxes=nodes.boxes[own])
        single_classes, single_predicates = graph(features[own], unions[pair], single,
                                                  pairs[pair] - start)
        assert torch.allclose(single_classes, classes[own])
        assert torch.allclose(single_predicates, predicates[pair])


def test_order_of_a_pair_enters_by_geometry():
    torch.manual_seed(4)
    graph, nodes, unions = SceneGraphNet(TINY).graph, make_nodes([2], TINY), torch.randn(1, 64)
    forward = graph.relation_states(unions, nodes.boxes[:1], nodes.boxes[1:])
    backward = graph.relation_states(unions, nodes.boxes[1:], nodes.boxes[:1])
    assert not torch.allclose(forward, backward, atol=1e-5)


# --- the whole network ----------------------------------------------------------------------------

def test_overfit_finds_every_triple(overfitted):
    """Recall at 20 without graph constraint is 1 on the training image."""
    image, target = three_objects()
    prediction, = overfitted.predict(overfitted.features(image[None]))
    scores = (prediction.scores[prediction.pairs].prod(1)[:, None]
              * prediction.predicate_probs).flatten()
    found = set()
    for k in scores.argsort(descending=True)[:20].tolist():
        ends, predicate = prediction.pairs[k // 4], k % 4
        overlap, match = box_iou(prediction.boxes_px[ends], target["boxes"]).max(1)
        if ((overlap >= 0.5).all()
                and torch.equal(prediction.labels[ends] + 1, target["labels"][match])):
            found.add((int(match[0]), predicate, int(match[1])))
    assert found >= {tuple(row) for row in target["relations"].tolist()}


def test_batch_prediction_equals_single_predictions(overfitted):
    image, _ = three_objects()
    half = image.clone()
    half[:, :, 65:] = 0.5
    batch = overfitted.predict(overfitted.features(torch.stack([image, half])))
    assert all(len(prediction.pairs) >= 2 for prediction in batch)
    for together, single_image in zip(batch, (image, half)):
        alone, = overfitted.predict(overfitted.features(single_image[None]))
        assert torch.equal(together.labels, alone.labels)
        assert ({tuple(p) for p in together.pairs.tolist()}
                == {tuple(p) for p in alone.pairs.tolist()})
        for name in ("boxes_px", "scores"):
            assert torch.allclose(getattr(together, name), getattr(alone, name), atol=1e-3)
        # rounding may swap pairs of nearly the same score
        probs = [own.predicate_probs[by_nodes(own)] for own in (together, alone)]
        assert torch.allclose(*probs, atol=1e-3)


def by_nodes(prediction: Prediction) -> torch.Tensor:
    return (prediction.pairs[:, 0] * 100 + prediction.pairs[:, 1]).argsort()


IMAGES = {"nothing": ([], [], []), "one object": ([[5, 5, 30, 30]], [1], []),
          "no relation": ([[5, 5, 30, 30], [50, 20, 80, 60]], [1, 2], []),
          "one relation": ([[5, 5, 30, 30], [50, 20, 80, 60]], [1, 2], [(0, 0, 1)])}


@pytest.mark.parametrize("detections", [True, False])
@pytest.mark.parametrize("batch", [["nothing"], ["one object"], ["no relation"], ["one relation"],
                                   ["nothing", "one relation", "one object"]])
def test_empty_images_have_finite_losses_and_gradients(net, batch, detections):
    net = net if detections else blind(net)
    targets = [make_target(*IMAGES[name]) for name in batch]
    losses = net.losses(net(torch.rand(len(batch), 3, 72, 96)), targets)
    assert sorted(losses) == ["loss_box_reg", "loss_classifier", "loss_obj", "loss_objectness",
                              "loss_rel", "loss_relpn", "loss_rpn_box_reg"]
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    if batch == ["nothing"] and not detections:
        assert losses["loss_relpn"] == losses["loss_obj"] == losses["loss_rel"] == 0


def test_no_detection_gives_an_empty_prediction_and_no_triplet(net):
    outputs = blind(net)(torch.rand(2, 3, 72, 96))
    for prediction in net.predict(outputs.features):
        assert prediction.boxes_px.shape == (0, 4) and prediction.pairs.shape == (0, 2)
        assert prediction.predicate_probs.shape == (0, 4)
        assert len(to_graph(prediction, "a.png", 96, 72, 0.05, 0.0)) == 0
    triplets = triplet_features(outputs)
    assert [t.shape for t in triplets] == [(0, 2 * (4 + 4) + 4)] * 2
    torch.cat(triplets).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_predict_leaves_the_mode_alone(overfitted):
    net = copy.deepcopy(overfitted)
    features = net.features(three_objects()[0][None])
    expected = net.predict(features)[0]
    net.train()
    found = net.predict(features)[0]
    assert all(module.training for module in net.modules())
    for field in dataclasses.fields(Prediction):
        ours, theirs = (torch.as_tensor(getattr(own, field.name)) for own in (found, expected))
        assert torch.equal(ours, theirs)
    assert not found.predicate_probs.requires_grad
    assert net.losses(Outputs(net, features), [three_objects()[1]])["loss_rel"].requires_grad


def test_relation_losses_reach_the_encoder_but_not_the_detector(net):
    image, target = three_objects()
    heads = net.detector.roi_heads
    net.losses(net(image[None]), [target])["loss_rel"].backward()
    assert gradient(heads) == 0 and gradient(net.detector.rpn) == 0 and gradient(net.proposal) == 0
    assert (gradient(net.detector.backbone) > 0 and gradient(net.union_head) > 0
            and gradient(net.graph) > 0)
    net.zero_grad(set_to_none=True)
    net.losses(net(image[None]), [target])["loss_relpn"].backward()
    assert gradient(net.proposal) > 0 and gradient(net.detector) == 0 and gradient(net.graph) == 0


def test_gradient_of_triplet_features_reaches_everything(net):
    triplets, = triplet_features(net(three_objects()[0][None]))
    assert triplets.shape == (64, 20)
    predictor, head = net.detector.roi_heads.box_predictor, net.detector.roi_heads.box_head
    by_class, = torch.autograd.grad((triplets[:, :4] * torch.randn(4)).sum(), head.fc6.weight,
                                    retain_graph=True)
    # class probabilities are not detached: they have a gradient of their own, beside the boxes'
    assert by_class.abs().sum() > 0
    (triplets * torch.randn(20)).sum().backward()
    for module in (predictor.cls_score, predictor.bbox_pred, head, net.union_head, net.graph,
                   net.detector.backbone):
        assert gradient(module) > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_triplet_features_hold_what_was_predicted(overfitted):
    outputs = overfitted(three_objects()[0][None])
    prediction, triplets = overfitted.predict(outputs.features)[0], triplet_features(outputs)[0]
    assert torch.allclose(triplets[:, 16:], prediction.predicate_probs, atol=1e-5)
    for start, end in ((0, 0), (8, 1)):
        nodes = prediction.pairs[:, end]
        assert torch.equal(triplets[:, start:start + 4].argmax(1) - 1, prediction.labels[nodes])
        assert torch.allclose(triplets[:, start:start + 4].sum(1), torch.ones(len(triplets)))
        x, y, w, h = (triplets[:, start + 4:start + 8] * torch.tensor([96, 72, 96, 72])).unbind(1)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        assert torch.allclose(boxes, prediction.boxes_px[nodes], atol=1e-3)


def test_training_is_repeatable():
    image, target = three_objects()
    values = []
    for _ in range(2):
        torch.manual_seed(7)
        net = SceneGraphNet(TINY)
        loss = total_loss(net, image, target)
        loss.backward()
        values.append((float(loss.detach()), gradient(net)))
    assert values[0] == values[1]


# --- ignore regions -------------------------------------------------------------------------------

REGION = [40, 40, 80, 60]
BOXES = torch.tensor([[40.0, 40, 60, 60],   # inside the region
                      [30.0, 40, 50, 60],   # half of it inside
                      [29.0, 40, 49, 60],   # 9 of 20 columns inside
                      [0.0, 0, 96, 72],     # the region fills less than half of it
                      [5.0, 5, 30, 30]])    # far away


def test_boxes_in_an_ignore_region_by_hand():
    regions = torch.tensor([REGION], dtype=torch.float32)
    assert in_ignore_region(BOXES, regions).tolist() == [True, True, False, False, False]
    assert not in_ignore_region(BOXES, regions[:0]).any()
    # each of the first two regions covers half of the box, the third 9 of its 20 columns
    halves = torch.tensor([[0.0, 0, 10, 20], [10.0, 0, 20, 20], [0.0, 0, 9, 20]])
    assert in_ignore_region(torch.tensor([[0.0, 0, 20, 20]]), halves[:2]).tolist() == [True]
    assert in_ignore_region(torch.tensor([[0.0, 0, 20, 20]]), halves[2:]).tolist() == [False]


def test_detections_in_an_ignore_region_become_no_nodes_unless_they_match_an_object():
    nothing = make_target([], [], [], [REGION])
    assert drop_ignored(BOXES, nothing).tolist() == BOXES[2:].tolist()
    matched = make_target([[41, 41, 61, 61]], [1], [], [REGION])
    assert drop_ignored(BOXES, matched).tolist() == BOXES[[0, 2, 3, 4]].tolist()
    assert drop_ignored(BOXES, make_target([], [], [])).tolist() == BOXES.tolist()


def test_labels_of_anchors_and_rois_in_an_ignore_region(net, monkeypatch):
    """Background in the region is labeled -1; boxes that match the object keep their label."""
    target = make_target([[42, 40, 62, 60]], [2], [], [REGION])
    beside = target["boxes"] + torch.tensor([18.0, 0, 18, 0])
    boxes, seen = [torch.cat([BOXES, beside])], []
    monkeypatch.setattr(net.detector.roi_heads, "subsample",
                        lambda labels: seen.extend(labels) or [torch.arange(2)])
    net.detector._sample_rois(boxes, [target])
    # the last box is the ground truth, which torchvision adds to the proposals
    assert seen[0].tolist() == [2, -1, 0, 0, 0, -1, 2]

    def anchor_labels(ignore):
        found = []
        monkeypatch.setattr(net.detector.rpn, "fg_bg_sampler",
                            lambda labels: found.extend(labels) or sampler(labels))
        image_target = make_target([[42, 40, 62, 60]], [2], [], ignore)
        net.detector._rpn_losses(net(torch.zeros(1, 3, 72, 96)).anchors, [image_target])
        return found[0]

    sampler = net.detector.rpn.fg_bg_sampler
    plain, ignoring = anchor_labels([]), anchor_labels([REGION])
    inside = in_ignore_region(net.detector.anchors, torch.tensor([REGION], dtype=torch.float32))
    assert (plain == 1).any() and (inside & (plain == 0)).any() and (inside & (plain == 1)).any()
    assert torch.equal(ignoring, torch.where(inside & (plain == 0), -1.0, plain))


def test_no_gradient_from_an_ignored_object(net, monkeypatch):
    """An unlabeled object is trained as background, unless it is in an ignore region."""
    features = net.features(three_objects()[0][None])
    blob = torch.tensor([[66.0, 8, 88, 34]])
    monkeypatch.setattr(net.detector, "proposals", lambda anchors, training: [blob])
    gradients = {}
    for name, ignore in (("background", []), ("ignored", [[60, 0, 96, 40]])):
        net.zero_grad(set_to_none=True)
        losses = net.losses(Outputs(net, features), [make_target([], [], [], ignore)])
        names = ("loss_classifier", "loss_box_reg", "loss_obj", "loss_rel")
        sum(losses[key] for key in names).backward(retain_graph=True)
        gradients[name] = gradient(net.detector.roi_heads)
    assert gradients["background"] > 0 and gradients["ignored"] == 0


def test_an_image_that_is_one_ignore_region_has_finite_losses(net):
    everywhere = [[-200, -200, 300, 300]]
    losses = net.losses(net(torch.rand(1, 3, 72, 96)), [make_target([], [], [], everywhere)])
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()


# --- output and configuration ---------------------------------------------------------------------

def make_prediction() -> Prediction:
    boxes = torch.tensor([[10.0, 10, 40, 30], [-5.0, 50, 50, 90], [60.0, 20, 60, 40],
                          [70.0, 5, 90, 15]])
    return Prediction(100, 80, boxes, torch.tensor([2, 0, 1, 1]),
                      torch.tensor([0.9, 0.5, 0.8, 0.3]),
                      torch.tensor([[0, 1], [1, 0], [0, 2], [3, 0]]),
                      torch.tensor([[0.7, 0.2], [0.5, 0.9], [0.9, 0.9], [0.8, 0.8]]))


def test_to_graph_scales_clips_and_filters():
    graph = to_graph(make_prediction(), "images/7.png", 200, 240, 0.5, 0.5)
    assert (graph.image, graph.width, graph.height) == ("images/7.png", 200, 240)
    # the third box has no width, the fourth too low a score
    assert graph.labels.tolist() == [2, 0]
    assert graph.boxes_px.tolist() == [[20, 30, 80, 90], [0, 150, 100, 240]]
    assert np.allclose(graph.scores, [0.9, 0.5])
    assert graph.relations.tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert np.allclose(graph.relation_scores, [0.7, 0.5, 0.9])


def test_to_graph_keeps_everything_for_evaluation():
    graph = to_graph(make_prediction(), "images/7.png", 100, 80, 0.05, 0.0)
    assert len(graph) == 3 and len(graph.relations) == 3 * 2
    assert graph.relations[-1].tolist() == [2, 1, 0]


def graphs_of(scores: list[list[float]]):
    """One graph per list of scores: cubes in a row, each to the left of the next one."""
    return [make_graph("a.png", 100, 100, [0] * len(own),
                       [[10 * i, 0, 10 * i + 8, 9] for i in range(len(own))],
                       [(i, LEFT, i + 1) for i in range(len(own) - 1)], own,
                       relation_scores=own[1:]) for own in scores]


@pytest.mark.parametrize("adaptive, cube_threshold, left", [
    (False, 0.5, [[0.6], [], []]), (True, 0.5 * 0.56, [[0.6, 0.3], [0.4], []])])
def test_what_a_threshold_keeps(adaptive, cube_threshold, left):
    """The best scores are 0.6, 0.4 and 0.2; their 0.9 quantile is 0.4 + 0.8 * 0.2 = 0.56."""
    env = dataclasses.replace(ENV, adaptive=adaptive)
    graphs, thresholds = confident_graphs(graphs_of([[0.6, 0.3], [0.4, 0.1], [0.2]]), env, 0.5)
    assert thresholds == pytest.approx([cube_threshold, 0.5, 0.5])
    assert [graph.scores.tolist() for graph in graphs] == left
    assert [len(graph.relations) for graph in graphs] == [0, 0, 0]  # scores 0.3 and 0.1
    assert confident_graphs(graphs_of([[0.04]]), env, 0.5)[1][0] == (0.05 if adaptive else 0.5)
    assert confident_graphs([], env, 0.5) == ([], [0.5] * 3)


def test_an_environment_without_a_world_has_no_rules(net, tmp_path):
    """Every predicate is predicted for every pair, even where a 3-D world would exclude it."""
    Image.fromarray((three_objects()[0].permute(1, 2, 0) * 255).byte().numpy()).save(
        tmp_path / "a.png")
    net.detector.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([0.0, 1, 1, 1])
    images = open_images(tmp_path, ENV)
    flat = dataclasses.replace(ENV, world=None)
    strict = dataclasses.replace(ENV, world=dataclasses.replace(
        ENV.world, rules=dataclasses.replace(ENV.world.rules, required_category=0)))
    free, bound = (predict_folder(net, images, env, 0.0, 0.0)[0] for env in (flat, strict))
    assert len(free.relations) == 4 * min(len(free) * (len(free) - 1), TINY.pairs_test)
    assert (bound.labels[bound.relations[:, [0, 2]]] == 0).any(1).all()


def test_former_fields_of_the_configuration_are_read(net, tmp_path):
    env = dataclasses.replace(ENV, vocabulary=Vocabulary(("a", "b", "c"), ("p", "q", "r", "s")))
    options = {"source": ["data"], "target": None}
    checkpoint.save(tmp_path / "new.pt", net, env, options)
    content = checkpoint.read(tmp_path / "new.pt")
    former = {"attention": "softmax", "pair_geometry": True, "semantic": True}
    checkpoint.write(tmp_path / "old.pt", content | {"model": content["model"] | former})
    loaded = checkpoint.load(tmp_path / "old.pt", env)
    assert loaded.config == TINY
    assert all(torch.equal(loaded.state_dict()[name], value)
               for name, value in net.state_dict().items())
    checkpoint.write(tmp_path / "other.pt",
                     content | {"model": content["model"] | {"attention": "mean"}})
    with pytest.raises(InputError, match="other.pt: model: .*attention"):
        checkpoint.load(tmp_path / "other.pt", env)


@pytest.mark.parametrize("name", ["banana", "cuda:99", "xla", "meta", "", "cuda:x"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(
            InputError, match=f"device '{name}' is not available, expected auto, cpu or cuda"):
        checkpoint.pick_device(name)


def test_configuration_survives_a_checkpoint():
    for config in (TINY, paper_config(3, 4, 320, 240)):
        assert ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ValueError, match="2048x2048 enlarged 1 times, expected 2097152"):
        dataclasses.replace(TINY, width=2048, height=2048)
    assert paper_config(3, 4, 320, 240).anchor_sizes == (16, 32, 64, 128, 256)
    assert paper_config(4, 4, 1242, 375).anchor_sizes == (32, 64, 128, 256, 512)


@pytest.mark.parametrize("change, error", [
    ({"backbone": "vgg16"}, "backbone"), ({"input": "gray"}, "input"), ({"imagenet": 1}, "imagenet"),
    ({"enlarge": 3}, "enlarge"), ({"edge_window": 2}, "edge_window"),
    ({"backbone": "efficientnet_lite0"}, "not trained from scratch"),
    ({"anchor_sizes": (8, 16)}, "anchor_sizes")])
def test_wrong_configuration_is_refused(change, error):
    with pytest.raises(ValueError, match=error):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize("change", [{"gcn_steps": 0}, {"nodes_test": 2}, {"pairs_test": 3}])
def test_every_graph_option_changes_the_prediction(overfitted, change):
    net = SceneGraphNet(dataclasses.replace(TINY, **change))
    net.load_state_dict(overfitted.state_dict())
    features = overfitted.features(three_objects()[0][None])
    expected, found = overfitted.predict(features)[0], net.predict(features)[0]
    assert (found.predicate_probs.shape != expected.predicate_probs.shape
            or not torch.allclose(found.predicate_probs, expected.predicate_probs, atol=1e-5))


def test_wrong_image_size_is_refused(net):
    with pytest.raises(ValueError, match=r"expected \(B, 3, 72, 96\)"):
        net.features(torch.rand(1, 3, 96, 72))


def test_missing_imagenet_weights_are_one_line(monkeypatch):
    def offline(url, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    config = quick_config(3, 4, 96, 72, backbone="resnet18")
    with pytest.raises(InputError, match="resnet18") as error:
        SceneGraphNet(config)
    assert "\n" not in error.value.message
    # a checkpoint brings its own weights
    frozen = SceneGraphNet(config, pretrained=False).detector.backbone.body
    assert (not frozen.layer1[0].conv1.weight.requires_grad
            and frozen.layer2[0].conv1.weight.requires_grad)


def test_relations_that_the_rules_exclude_are_neither_predicted_nor_in_the_way(overfitted):
    """One of the three objects must be part of every relation, which leaves 4 of 6 ordered pairs.

    The fourth predicate is allowed for one pair of categories only.
    """
    net, image = copy.deepcopy(overfitted), three_objects()[0]
    features = net.features(image[None])
    free = net.predict(features)[0]
    hub = int(free.labels[0])
    possible = torch.zeros(4, 3, 3, dtype=torch.bool)
    possible[:, hub] = possible[:, :, hub] = True
    possible[3] = False
    possible[3, hub, (hub + 1) % 3] = True
    net.config = dataclasses.replace(net.config, pairs_test=len(free.pairs))
    bound = net.predict(features, possible)[0]
    ends = bound.labels[bound.pairs]
    assert 0 < len(bound.pairs) < len(free.pairs) and (ends == hub).any(1).all()
    kept = (free.labels[free.pairs] == hub).any(1)
    assert set(map(tuple, bound.pairs.tolist())) == set(map(tuple, free.pairs[kept].tolist()))
    holds = bound.predicate_probs[:, 3] > 0
    assert torch.equal(holds, (ends[:, 0] == hub) & (ends[:, 1] == (hub + 1) % 3))
    assert (bound.predicate_probs[:, :3] > 0).all()
    written = to_graph(bound, "a.png", image.shape[2], image.shape[1], 0.0, 0.0)
    assert len(written.relations) == 3 * len(bound.pairs) + int(holds.sum())
    net.config = dataclasses.replace(net.config, pairs_test=1)  # the only pair is an allowed one
    assert (free.labels[net.predict(features, possible)[0].pairs] == hub).any()
