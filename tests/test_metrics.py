"""The metrics against numbers worked out by hand, pycocotools, and slow twins in plain loops."""
import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from envs.drive import ENV as DRIVE
from sim2sg_lib.graph import SceneGraph, Vocabulary, make_graph
from sim2sg_lib.score import labeled_set
from sim2sg_lib.score.content import content, content_gap, mix_weights
from sim2sg_lib.score.metrics import (
    LEVELS, NEVER, Level, apply_level, box_iou, detection_scores, evaluate_graphs, first_hits,
    ideal_hits, lifting_iou, mean_recall, pooled_recall, precision_at_recall, rank_relations,
    recall_scores)

VOCABULARY = Vocabulary(("cube", "ball"), ("left", "right", "front", "behind"))
LEFT, RIGHT, FRONT, BEHIND = range(4)


def graph(labels, boxes, relations=(), **columns) -> SceneGraph:
    return make_graph("images/000000.png", 100, 100, labels, boxes, relations, **columns)


EMPTY = graph([], [])


# --- boxes ----------------------------------------------------------------------------------------

def test_iou_by_hand():
    a = np.array([[0, 0, 10, 20], [0, 0, 10, 10]], float)
    b = np.array([[0, 0, 10, 9.8], [5, 5, 15, 15], [10, 0, 20, 10], [0, 0, 0, 0]], float)
    # touching boxes: 0
    assert np.allclose(box_iou(a, b), [[0.49, 50 / 250, 0, 0], [0.98, 25 / 175, 0, 0]])
    assert box_iou(a, a)[0, 0] == 1
    assert box_iou(a, a + 30).max() == 0  # apart in x and in y
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0
    assert box_iou(np.zeros((0, 4)), a).shape == (0, 2)


# --- average precision ----------------------------------------------------------------------------

@pytest.mark.parametrize("hits, positives, ap", [
    ([1, 0, 1, 0, 1], 4, 0.570957), ([1], 2, 0.504950), ([0, 1], 1, 0.5), ([1], 1, 1), ([], 3, 0),
    ([0, 0], 3, 0)])
def test_interpolation_by_hand(hits, positives, ap):
    precision = precision_at_recall(np.array(hits, bool), positives)
    assert precision.shape == (101,) and precision.mean() == pytest.approx(ap, abs=1e-6)


def test_coco_takes_the_best_ground_truth_that_is_still_free():
    truth = graph([0, 0], [(0, 0, 10, 10), (3, 0, 13, 10)])
    predicted = graph([0, 0], [(0, 0, 10, 10), (1, 0, 11, 10)], scores=[0.9, 0.8])
    iou = box_iou(predicted.boxes_px, truth.boxes_px)
    assert np.allclose(iou, [[1, 0.538], [0.818, 0.667]], atol=5e-4)
    scores = detection_scores([truth], [predicted], VOCABULARY)
    assert scores["ap50"]["cube"] == 1 == scores["map50"]  # Pascal VOC would say 0.5


def test_ignore_regions_give_neither_false_negatives_nor_false_positives():
    boxes = [(0, 0, 10, 10), (50, 0, 60, 10)]
    predicted = graph([0, 0, 0], [boxes[1], boxes[0], (0, 80, 10, 90)], scores=[0.9, 0.8, 0.7])
    ignoring = graph([0, 0], boxes, ignore=[False, True])
    assert detection_scores([ignoring], [predicted], VOCABULARY)["ap50"]["cube"] == 1
    without = graph([0], boxes[:1])  # FP, TP, FP
    assert detection_scores([without], [predicted], VOCABULARY)["ap50"]["cube"] == 0.5


def test_a_valid_object_is_preferred_to_an_ignored_one_that_fits_better():
    truth = graph([0, 0], [(0, 0, 10, 10), (0, 0, 10, 6)], ignore=[False, True])
    predicted = graph([0], [(0, 0, 10, 6)], scores=[0.9])
    assert detection_scores([truth], [predicted], VOCABULARY)["ap50"]["cube"] == 1


def test_a_region_matches_any_number_of_detections_inside_it():
    truth = graph([0, 0], [(0, 0, 10, 10), (20, 0, 90, 50)], ignore=[False, True])
    inside = [(20, 0, 30, 10), (30, 0, 40, 10), (15, 0, 25, 10)]  # the last lies half inside
    predicted = graph([0] * 4, inside + [(0, 0, 10, 10)], scores=[0.9, 0.8, 0.7, 0.6])
    assert detection_scores([truth], [predicted], VOCABULARY)["ap50"]["cube"] == 1
    # 0.4 inside: a false positive
    outside = graph([0] * 2, [(14, 0, 24, 10), (0, 0, 10, 10)], scores=[0.9, 0.6])
    assert detection_scores([truth], [outside], VOCABULARY)["ap50"]["cube"] == 0.5
    other_category = graph([1, 0], [(20, 0, 30, 10), (0, 0, 10, 10)])
    ball = graph([0, 0, 1], [(0, 0, 10, 10), (20, 0, 90, 50), (0, 50, 10, 60)],
                 ignore=[False, True, False])
    assert detection_scores([ball], [other_category], VOCABULARY)["ap50"] == {"cube": 1, "ball": 0}


def test_of_two_equal_overlaps_the_last_is_taken_as_in_pycocotools():
    truth = graph([0, 0], [(0, 0, 10, 10), (4, 0, 14, 10)])
    predicted = graph([0, 0], [(2, 0, 12, 10), (6, 0, 16, 10)], scores=[0.9, 0.8])
    iou = box_iou(predicted.boxes_px, truth.boxes_px)
    assert iou[0, 0] == iou[0, 1] > 0.5 > iou[1, 0]
    ap = detection_scores([truth], [predicted], VOCABULARY)["ap50"]["cube"]
    # the second finds nothing left
    assert ap == pytest.approx(51 / 101) == coco_ap50([truth], [predicted], 1)[0]


def test_iou_of_exactly_one_half_matches():
    truth = graph([0], [(0, 0, 10, 10)])
    exact = graph([0], [(0, 0, 10, 5)], scores=[0.9])
    below = graph([0], [(0, 0, 10, 4.99)], scores=[0.9])
    assert detection_scores([truth], [exact], VOCABULARY)["map50"] == 1
    assert detection_scores([truth], [below], VOCABULARY)["map50"] == 0


def test_at_most_100_detections_per_image_and_category():
    truth = graph([0, 1], [(0, 0, 10, 10), (0, 0, 10, 10)])
    labels = [0] * 100 + [1] * 100
    wrong, right = [(50, 50, 60, 60)] * 99, [(0, 0, 10, 10)]
    scores = np.linspace(1, 0.5, 200)
    at_100 = graph(labels, (wrong + right) * 2, scores=scores)
    assert detection_scores([truth], [at_100],
                            VOCABULARY)["ap50"] == pytest.approx({"cube": 0.01, "ball": 0.01})
    at_101 = graph([0] * 101, wrong + wrong[:1] + right, scores=scores[:101])
    assert detection_scores([truth], [at_101], VOCABULARY)["ap50"]["cube"] == 0


def test_a_category_without_valid_ground_truth_has_no_ap():
    truth = graph([0, 1], [(0, 0, 10, 10)] * 2, ignore=[False, True])
    predicted = graph([0, 1], [(0, 0, 10, 10), (50, 0, 60, 10)])
    scores = detection_scores([truth], [predicted], VOCABULARY)
    assert scores["ap50"] == {"cube": 1, "ball": None} and scores["map50"] == 1
    assert detection_scores([EMPTY], [predicted], VOCABULARY)["map50"] is None
    assert detection_scores([truth], [EMPTY], VOCABULARY)["ap50"] == {"cube": 0, "ball": None}


# --- average precision against pycocotools --------------------------------------------------------

def coco_ap50(truth: list[SceneGraph], predicted: list[SceneGraph], categories: int,
              area_range=(0, 1e10), areas=None
              ) -> np.ndarray:
    """(categories,) AP50 of pycocotools, NaN without valid ground truth.

    `ignore` becomes iscrowd. areas: of each image's objects, by default those of the boxes.
    """
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    annotations, detections = [], []
    for image, (t, p) in enumerate(zip(truth, predicted), 1):
        for j in range(len(t)):
            x0, y0, x1, y1 = t.boxes_px[j].tolist()
            annotations.append({"id": len(annotations) + 1, "image_id": image,
                                "category_id": int(t.labels[j]) + 1,
                                "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(t.ignore[j]),
                                "area": (x1 - x0) * (y1 - y0) if areas is None
                                else areas[image - 1][j]})
        for (x0, y0, x1, y1), label, score in zip(p.boxes_px.tolist(), p.labels, p.scores):
            detections.append({"image_id": image, "category_id": int(label) + 1,
                               "score": float(score),
                               "bbox": [x0, y0, x1 - x0, y1 - y0]})
    return run_coco(coco.COCO, COCOeval, {
        "images": [{"id": i + 1} for i in range(len(truth))], "annotations": annotations,
        "info": {},
        "categories": [{"id": c + 1} for c in range(categories)]}, detections, area_range)


def run_coco(coco_class, evaluator_class, dataset: dict, detections: list[dict],
             area_range) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_class()
        coco.dataset = dataset
        coco.createIndex()
        evaluator = evaluator_class(coco, coco.loadRes(detections), "bbox")
        evaluator.params.iouThrs = np.array([0.5])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [list(area_range)], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][0, :, :, 0, -1]  # (101, categories)
    return np.where(precision[0] < 0, np.nan, precision.mean(0))


def random_detections(rng: np.random.Generator, images: int, categories: int, crowds: bool
                      ) -> tuple[list[SceneGraph], list[SceneGraph]]:
    """Small integer boxes: many overlaps, equal ones and exactly one half, and equal scores."""
    truth, predicted = [], []
    for i in range(images):
        n, d = rng.integers(0, 7), rng.integers(1, 12)
        corners = rng.integers(0, 12, (n + d, 2))
        boxes = np.concatenate([corners, corners + rng.integers(2, 9, (n + d, 2))], 1).astype(float)
        if n:  # half of the detections are a true box moved by up to one pixel
            copies = rng.random(d) < 0.5
            originals = boxes[rng.integers(0, n, copies.sum())]
            boxes[n:][copies] = originals + rng.integers(0, 2, (copies.sum(), 4))
        labels = rng.integers(0, categories, n + d)
        ignore = rng.random(n) < (0.3 if crowds else 0)
        truth.append(make_graph(f"{i}.png", 30, 30, labels[:n], boxes[:n], ignore=ignore))
        predicted.append(make_graph(f"{i}.png", 30, 30, labels[n:], boxes[n:],
                                    scores=rng.integers(1, 9, d) / 10))
    return truth, predicted


@pytest.mark.parametrize("crowds", [False, True])
def test_random_sets_agree_with_pycocotools(crowds):
    vocabulary = Vocabulary(("a", "b", "c"), ())
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth, predicted = random_detections(rng, int(rng.integers(1, 8)), 3, crowds)
        expected = coco_ap50(truth, predicted, 3)
        got = detection_scores(truth, predicted, vocabulary)
        ap50 = np.array([np.nan if ap is None else ap for ap in got["ap50"].values()])
        np.testing.assert_allclose(ap50, expected, atol=1e-9, err_msg=f"seed {seed}")
        if np.isfinite(expected).any():
            assert got["map50"] == pytest.approx(np.nanmean(expected), abs=1e-9)


def test_objects_outside_the_level_are_ignored_as_pycocotools_ignores_areas():
    """Objects outside the level are COCO's objects outside the area range; regions are crowds."""
    vocabulary = Vocabulary(("a", "b"), ())
    for seed in range(50):
        rng = np.random.default_rng(1000 + seed)
        truth, predicted = random_detections(rng, int(rng.integers(1, 8)), 2, crowds=True)
        hidden = [rng.random(len(t)) < 0.4 for t in truth]
        areas = [np.where(h, 0.0, 10.0).tolist() for h in hidden]
        truth = [make_graph(t.image, 30, 1000, t.labels, t.boxes_px, ignore=t.ignore,
                            visible=np.where(h, 0.1, 1.0))
                 for t, h in zip(truth, hidden)]
        level = Level(min_height_px=0.0, min_visible=0.5, max_occluded=3, max_truncated=1.0)
        got = detection_scores(truth, predicted, vocabulary, level)
        ap50 = np.array([np.nan if ap is None else ap for ap in got["ap50"].values()])
        expected = coco_ap50(truth, predicted, 2, (0.5, 1e10), areas)
        np.testing.assert_allclose(ap50, expected, atol=1e-9, err_msg=f"seed {seed}")


def test_coco_sample(real_data):
    coco_sample = real_data("coco_sample100")
    truth_file, found_file, published = (json.loads((coco_sample / name).read_text())
                                         for name in ("gts_coco.json", "dets_coco.json",
                                                      "expected.json"))
    annotations, detections = truth_file["annotations"], found_file["annotations"]
    # a crowd would be an ignore region here; the random sets above have some
    assert not any(a["iscrowd"] for a in annotations)
    category = {c["id"]: i for i, c in enumerate(truth_file["categories"])}
    vocabulary = Vocabulary(tuple(c["name"] for c in truth_file["categories"]), ())

    def graphs(rows: list[dict]) -> list[SceneGraph]:
        of_image = {image["id"]: []
                    for image in sorted(truth_file["images"], key=lambda image: image["id"])}
        for row in rows:
            of_image[row["image_id"]].append(row)
        return [make_graph(str(image), 1000, 1000, [category[row["category_id"]] for row in rows],
                           [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)],
                           scores=[row.get("score", 1.0) for row in rows])
                for image, rows in of_image.items()]

    truth, predicted = graphs(annotations), graphs(detections)
    scores = detection_scores(truth, predicted, vocabulary)
    assert scores["map50"] == pytest.approx(published["AP50"], abs=1e-6)
    expected = coco_ap50(truth, predicted, len(category))
    assert scores["map50"] == pytest.approx(np.nanmean(expected), abs=1e-6)
    ap50 = np.array([np.nan if ap is None else ap for ap in scores["ap50"].values()])
    np.testing.assert_allclose(ap50, expected, atol=1e-6)


# --- triplet recall -------------------------------------------------------------------------------

def three_objects() -> tuple[SceneGraph, SceneGraph]:
    truth = graph([0, 1, 0], [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)],
                  [(0, LEFT, 1), (0, BEHIND, 1), (1, RIGHT, 0), (1, FRONT, 0), (1, LEFT, 2)])
    # IoU with the truth: 1, .8, .49 (a miss) and .9 (the first object again)
    boxes = [(0, 0, 10, 10), (20, 0, 30, 8), (40, 0, 50, 4.9), (0, 0, 10, 9)]
    probabilities = {(0, 1): [0.9, 0, 0.1, 0.8], (1, 0): [0.1, 0.7, 0.6, 0],
                     (1, 2): [0.95, 0, 0, 0.1],
                     (3, 1): [0.85, 0, 0, 0.3]}
    rows = [(s, p, o) for s, o in probabilities for p in range(4)]
    return truth, graph([0, 1, 0, 0], boxes, rows, scores=[0.9, 0.8, 0.7, 0.4],
                        relation_scores=[probabilities[s, o][p] for s, p, o in rows])


def test_recall_without_graph_constraint():
    truth, predicted = three_objects()
    order = rank_relations(predicted, False)
    s, _, o = predicted.relations[order[:6]].T
    triplet = predicted.scores[s] * predicted.scores[o] * predicted.relation_scores[order[:6]]
    assert triplet == pytest.approx([0.648, 0.576, 0.532, 0.504, 0.432, 0.272])
    assert predicted.relations[order[:6]].tolist() == [
        [0, LEFT, 1], [0, BEHIND, 1], [1, LEFT, 2], [1, RIGHT, 0], [1, FRONT, 0], [3, LEFT, 1]]
    ranks = [first_hits(truth, predicted, False)]
    assert [mean_recall(ranks, k) for k in (1, 2, 3, 4, 5, 16)] == [0.2, 0.4, 0.4, 0.6, 0.8, 0.8]


def test_recall_with_graph_constraint():
    truth, predicted = three_objects()
    order = rank_relations(predicted, True)
    assert predicted.relations[order].tolist() == [[0, LEFT, 1], [1, LEFT, 2], [1, RIGHT, 0],
                                                   [3, LEFT, 1]]
    ranks = [first_hits(truth, predicted, True)]
    assert [mean_recall(ranks, k) for k in (1, 2, 3, 20)] == [0.2, 0.2, 0.4, 0.4]


def test_mean_and_pooled_recall():
    two_of_four, one_of_one = np.array([0, 3, NEVER, NEVER]), np.array([0])
    assert mean_recall([two_of_four, one_of_one], 20) == 0.75
    assert pooled_recall([two_of_four, one_of_one], 20) == 0.6
    truth = graph([0, 1], [(0, 0, 10, 10), (20, 0, 30, 10)],
                  [(0, LEFT, 1), (1, RIGHT, 0), (0, BEHIND, 1)])
    no_prediction = first_hits(truth, EMPTY, False)
    no_relation = first_hits(graph([0], [(0, 0, 10, 10)]), three_objects()[1], False)
    for ranks in ([two_of_four, one_of_one, no_prediction],
                  [no_relation, two_of_four, no_prediction, one_of_one]):
        assert mean_recall(ranks, 20) == 0.5 and pooled_recall(ranks, 20) == 0.375
    assert mean_recall([no_relation], 20) is None and pooled_recall([no_relation], 20) is None
    assert mean_recall([], 20) is None and pooled_recall([], 20) is None


def test_one_prediction_may_hit_several_and_duplicates_count_once():
    truth = graph([0, 0, 1], [(0, 0, 10, 10), (0, 0, 10, 9), (20, 0, 30, 10)],
                  [(0, LEFT, 2), (1, LEFT, 2), (0, LEFT, 2)])
    # the ball at IoU exactly one half
    predicted = graph([0, 1], [(0, 0, 10, 10), (20, 0, 30, 5)], [(0, LEFT, 1)])
    assert first_hits(truth, predicted, False).tolist() == [0, 0]


def test_the_three_labels_and_the_direction_must_agree():
    truth = graph([0, 1], [(0, 0, 10, 10), (20, 0, 30, 10)], [(0, LEFT, 1)])
    wrong = [([1, 1], (0, LEFT, 1)), ([0, 0], (0, LEFT, 1)), ([0, 1], (0, RIGHT, 1)),
             ([0, 1], (1, LEFT, 0))]
    for labels, row in wrong:
        assert first_hits(truth, graph(labels, truth.boxes_px, [row]), False).tolist() == [NEVER]


def test_only_the_first_100_ranks_count():
    truth = graph([0, 1], [(0, 0, 10, 10), (20, 0, 30, 10)], [(0, LEFT, 1)])
    for wrong, rank in ((99, 99), (100, NEVER)):
        predicted = graph([0, 1], truth.boxes_px, [(0, RIGHT, 1)] * wrong + [(0, LEFT, 1)],
                          relation_scores=[0.9] * wrong + [0.8])
        assert first_hits(truth, predicted, False).tolist() == [rank]


def slow_ranking(g: SceneGraph, graph_constraint: bool) -> list[tuple[int, int, int]]:
    rows = []
    for index, (s, p, o) in enumerate(g.relations.tolist()):
        probability = g.relation_scores[index]
        rivals = [r for r in range(len(g.relations)) if g.relations[r][0] == s
                  and g.relations[r][2] == o]
        best = max(rivals, key=lambda r: (g.relation_scores[r], -r))
        if not graph_constraint or best == index:
            rows.append((-(g.scores[s] * g.scores[o] * probability), -probability, index,
                         (s, p, o)))
    return [row[-1] for row in sorted(rows)]


def slow_recall(truth: SceneGraph, predicted: SceneGraph, k: int, graph_constraint: bool) -> float:
    def same(i: int, j: int) -> bool:
        (a0, b0, a1, b1), (c0, d0, c1, d1) = predicted.boxes_px[i], truth.boxes_px[j]
        shared = max(0, min(a1, c1) - max(a0, c0)) * max(0, min(b1, d1) - max(b0, d0))
        union = (a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - shared
        return predicted.labels[i] == truth.labels[j] and 2 * shared >= union

    wanted, hit = set(map(tuple, truth.relations.tolist())), set()
    for s, p, o in slow_ranking(predicted, graph_constraint)[:k]:
        for ts, tp, to in wanted:
            if p == tp and same(s, ts) and same(o, to):
                hit.add((ts, tp, to))
    return len(hit) / len(wanted)


def random_graph(rng: np.random.Generator, n: int, density: float,
                 like: SceneGraph = EMPTY) -> SceneGraph:
    """Overlapping integer boxes and scores of few values: ties everywhere, some rows twice.

    Most objects are those of `like`, moved by up to one pixel.
    """
    corners = rng.integers(0, 4, (n, 2)) * 2
    boxes = np.concatenate([corners, corners + rng.integers(2, 6, (n, 2))], 1).astype(float)
    labels = rng.integers(0, 2, n)
    for i in range(n):
        if len(like) and rng.random() < 0.8:
            original = rng.integers(len(like))
            boxes[i] = like.boxes_px[original] + rng.integers(0, 2, 4)
            labels[i] = like.labels[original]
    rows = [(s, p, o) for s in range(n) for o in range(n) for p in range(4) if s != o
            and rng.random() < density]
    rows += rows[:2]
    return graph(labels, boxes, rows, scores=rng.integers(1, 4, n) / 4,
                 relation_scores=rng.integers(0, 5, len(rows)) / 4)


def test_recall_equals_its_slow_twin():
    compared = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        truth = random_graph(rng, int(rng.integers(2, 7)), 0.3)
        predicted = random_graph(rng, int(rng.integers(0, 7)), 0.7, truth)
        if not len(truth.relations):
            continue
        for constraint in (False, True):
            ranks = [first_hits(truth, predicted, constraint)]
            for k in (1, 3, 10, 20, 50, 100):
                expected = slow_recall(truth, predicted, k, constraint)
                assert mean_recall(ranks, k) == pytest.approx(expected), seed
                compared += 0 < mean_recall(ranks, k) < 1
    assert compared > 500  # recalls that are neither 0 nor 1: the random graphs do meet


@pytest.mark.parametrize("n, count, ceiling_20, ceiling_50", [
    (2, 4, 1, 1), (3, 12, 1, 1), (4, 24, 0.8333, 1), (7, 84, 0.2381, 0.5952)])
def test_ceilings(n, count, ceiling_20, ceiling_50):
    rows = [(i, p, j) for i in range(n) for j in range(n) if i != j
            for p in ((LEFT, FRONT) if i < j else (RIGHT, BEHIND))]
    truth = graph([0] * n, [(10 * i, 0, 10 * i + 8, 8) for i in range(n)], rows)
    assert len(truth.relations) == count
    free, one = [ideal_hits(truth, False)], [ideal_hits(truth, True)]
    assert mean_recall(free, 20) == pytest.approx(ceiling_20, abs=5e-5)
    assert mean_recall(free, 50) == pytest.approx(ceiling_50, abs=5e-5)
    assert mean_recall(one, 20) == pytest.approx(min(0.5, 20 / count))
    assert mean_recall(one, 50) == pytest.approx(min(0.5, 50 / count))
    # a perfect prediction reaches its ceiling
    for constraint, ideal in ((False, free), (True, one)):
        for k in (20, 50, 100):
            assert mean_recall([first_hits(truth, truth, constraint)], k) == mean_recall(ideal, k)


def test_recall_by_predicate_and_pooled_ceilings():
    boxes = [(0, 0, 10, 10), (20, 0, 30, 10)]
    first = graph([0, 1], boxes, [(0, LEFT, 1), (1, RIGHT, 0), (0, BEHIND, 1)])
    second = graph([0, 1], boxes, [(0, LEFT, 1), (1, LEFT, 0)])
    found = graph([0, 1], boxes, [(0, LEFT, 1), (0, BEHIND, 1)])
    scores = recall_scores([first, second], [found, found], VOCABULARY)
    assert {name: row["20"] for name, row in scores["recall_per_predicate"].items()} == {
        "left": (1 + 1 / 2) / 2, "right": 0, "front": None, "behind": 1}
    assert scores["mean_recall"]["100"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert scores["recall"]["20"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["recall_pooled"]["20"] == pytest.approx(3 / 5)
    # one of the two rows remains
    assert scores["recall_graph_constraint_pooled"]["20"] == pytest.approx(2 / 5)
    assert scores["recall_ceiling"]["20"] == scores["recall_ceiling_pooled"]["20"] == 1
    assert scores["recall_ceiling_graph_constraint"]["20"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["recall_ceiling_graph_constraint_pooled"]["20"] == pytest.approx(4 / 5)


# --- levels ---------------------------------------------------------------------------------------

def kitti_graph(heights: list[float], **columns) -> SceneGraph:
    boxes = [(100.0 * i, 100, 100 * i + 50, 100 + h) for i, h in enumerate(heights)]
    return make_graph("000000.png", 1242, 375, [0] * len(heights), boxes, **columns)


def test_levels_by_hand():
    #                    40.1 px 40  25.1  25   partly  largely  hidden  cut .15  .3   .5   .51
    truth = kitti_graph([40.1, 40, 25.1, 25, 50, 50, 50, 50, 50, 50, 50],
                        visible=[0.85, 1, 0.5, 1, 0.84, 0.2, 0.19, 1, 1, 1, 1],
                        truncated=[0, 0, 0, 0, 0, 0, 0, 0.15, 0.3, 0.5, 0.51])
    kept = {name: np.flatnonzero(~apply_level(truth, level).ignore).tolist()
            for name, level in LEVELS.items()}
    assert kept == {"easy": [0, 7], "moderate": [0, 1, 2, 4, 7, 8],
                    "hard": [0, 1, 2, 4, 5, 7, 8, 9],
                    "all": list(range(11))}


@pytest.mark.parametrize("rows, scaled, limit_px", [
    (370, False, 40), (376, False, 40), (375, True, 40), (750, True, 80), (120, True, 12.8)])
def test_height_limits_are_pixels_in_kitti_s_images_and_fractions_in_others(rows, scaled, limit_px):
    """As in KITTI's evaluator, objects must be taller than the limit, detections at least as tall."""
    easy = replace(LEVELS["easy"], scaled=scaled)

    def upright(*heights):
        boxes = [(20 * i, 0, 20 * i + 10, h) for i, h in enumerate(heights)]
        return make_graph("x.png", 1242, rows, [0] * len(heights), boxes,
                          scores=1 - 0.1 * np.arange(len(heights)))

    truth = upright(limit_px, limit_px + 0.01)
    assert apply_level(truth, easy).ignore.tolist() == [True, False]
    # a hit and, elsewhere, a false positive before it: left out below the limit alone
    found = replace(upright(limit_px, limit_px + 0.01),
                    boxes_px=truth.boxes_px + [[500, 0, 500, 0], [0, 0, 0, 0]])
    lower = replace(found, boxes_px=found.boxes_px - [[0, 0, 0, 0.01], [0, 0, 0, 0]])
    ap = [detection_scores([truth], [p], VOCABULARY, easy)["ap50"]["cube"] for p in (found, lower)]
    assert ap == [0.5, 1]


def test_an_ignored_object_matches_one_detection_at_every_level():
    truth = kitti_graph([50, 50], visible=[1, 0], relations=[(0, LEFT, 1)])
    for name, level in LEVELS.items():
        at_level = apply_level(truth, level)
        assert at_level.ignore.tolist() == [False, True] and len(at_level.relations) == 0, name
        hit, beside = (0, 100, 50, 150), (100, 100, 150, 150)
        once = kitti_graph([50, 50], scores=[0.8, 0.9])
        twice = make_graph("000000.png", 1242, 375, [0] * 3, [hit, beside, beside],
                           scores=[0.7, 0.9, 0.8])
        inside = make_graph("000000.png", 1242, 375, [0] * 2, [hit, (110, 100, 124, 150)],
                            scores=[0.7, 0.9])
        ap = [detection_scores([truth], [p], VOCABULARY, level)["ap50"]["cube"]
              for p in (once, twice, inside)]
        # a second detection of it, and a part of it, are false positives
        assert ap == [1, 0.5, 0.5], name
    assert gap([truth], [kitti_graph([50])])["objects_per_image"] == 0


def test_relations_need_both_ends_inside_the_level():
    truth = kitti_graph([50, 30, 50, 50], ignore=[False, False, False, True],
                        relations=[(0, LEFT, 1), (1, LEFT, 0), (0, LEFT, 2), (3, LEFT, 0)],
                        relation_scores=[1, 1, 0.5, 1])
    easy = apply_level(truth, LEVELS["easy"])
    assert easy.relations.tolist() == [[0, LEFT, 2]] and easy.relation_scores.tolist() == [0.5]
    assert easy.ignore.tolist() == [False, True, False, True]
    assert len(apply_level(truth, LEVELS["all"]).relations) == 3


def test_a_level_ignores_small_detections_and_objects_outside_it():
    truth = kitti_graph([50, 30], visible=[1, 1])
    x = 500.0
    predicted = make_graph("000000.png", 1242, 375, [0] * 3,
                           [(x, 0, x + 20, 39), (100, 100, 150, 130), (0, 100, 50, 150)],
                           scores=[0.9, 0.8, 0.7])
    ap = {split: evaluate_graphs([truth], [predicted], VOCABULARY, LEVELS[split])["map50"]
          for split in ("easy", "moderate")}
    # easy: too small, on an ignored object, hit; moderate (25 px): a false positive, then two hits
    assert ap["easy"] == 1 and ap["moderate"] == pytest.approx(2 / 3)
    # one that is too small but hits a valid object is a hit all the same
    low = make_graph("000000.png", 1242, 375, [0], [(0, 100, 50, 139)])
    assert evaluate_graphs([truth], [low], VOCABULARY, LEVELS["easy"])["map50"] == 1
    # unlike a region, an object outside the level matches one detection only
    twice = make_graph("000000.png", 1242, 375, [0] * 3,
                       [(100, 90, 150, 131), (100, 90, 150, 131), (0, 100, 50, 150)],
                       scores=[0.9, 0.8, 0.7])
    assert evaluate_graphs([truth], [twice], VOCABULARY, LEVELS["easy"])["map50"] == 0.5


def test_a_folder_in_kitti_s_format_is_scored_at_all_levels_at_once():
    """Of cars as high as 50 and 30 pixels of KITTI's, the higher one is easy, and is found."""
    high, low = (0, 0, 40, 50 * 97 / 375), (100, 0, 140, 30 * 97 / 375)
    truth = make_graph("x.png", 320, 97, [0, 0], [high, low], [(0, 0, 1)])
    found = make_graph("x.png", 320, 97, [0], [high])
    kitti = labeled_set.TestSet(None, [truth], kitti=[[None]])
    scores, curves = labeled_set.score(kitti, [found], None, [[truth], None], DRIVE, "all")
    assert {name: level["ap50"]["car"] for name, level in scores["levels"].items()} == {
        "easy": 1, "moderate": pytest.approx(51 / 101), "hard": pytest.approx(51 / 101)}
    assert scores["levels"]["easy"]["recall"]["20"] is None  # both ends of a relation are easy
    assert scores["levels"]["hard"]["recall"]["20"] == 0
    # the newest data set is gone, and so is the mix
    assert scores["content_gap"] is scores["content_gap_mix"] is curves["content"]["source"] is None
    two = replace(truth, image="y.png")
    scores, _ = labeled_set.score(kitti, [found], 0.25, [[found], [two]], DRIVE, "all")
    assert scores["content_gap"]["objects_per_image"] == 0
    assert scores["content_gap_mix"]["objects_per_image"] == 0.75
    plain = labeled_set.TestSet(None, [truth])
    scores, _ = labeled_set.score(plain, [found], None, [[truth]], DRIVE, "all")
    assert "levels" not in scores


# --- sets of graphs -------------------------------------------------------------------------------

def gap(a: list[SceneGraph], b: list[SceneGraph]) -> dict:
    return content_gap(content(a, VOCABULARY), content(b, VOCABULARY))


def test_content_gap_by_hand():
    boxes = [(0, 0, 10, 10)] * 3
    a = [graph([0, 1], boxes[:2], [(0, LEFT, 1)]), graph([0, 0], boxes[:2], [(0, LEFT, 1)])]
    b = [graph([0, 1], boxes[:2], [(0, LEFT, 1), (1, RIGHT, 0)]),
         graph([1, 1, 1], boxes, [(0, FRONT, 1), (0, LEFT, 1)])]
    # objects per image {2: 1} and {2: .5, 3: .5}; cube .75 and .2; left 1 and .5
    assert gap(a, b) == pytest.approx({"objects_per_image": 0.5, "categories": 0.55,
                                      "predicates": 0.5})
    assert gap(a, a) == {"objects_per_image": 0, "categories": 0,
                                             "predicates": 0}
    assert gap(a, [EMPTY]) == {"objects_per_image": 1, "categories": None,
                                                   "predicates": None}
    assert set(gap(a, []).values()) == {None}
    ignoring = graph([0, 1, 1], boxes, [(0, LEFT, 1), (2, RIGHT, 0)], ignore=[False, False, True])
    assert gap([ignoring], a[:1]) == {"objects_per_image": 0, "categories": 0,
                                                          "predicates": 0}


def test_content_of_a_mix_counts_images_as_training_sees_them():
    boxes = [(0, 0, 10, 10)] * 2
    one, two = graph([0], boxes[:1]), graph([1, 1], boxes, [(0, LEFT, 1)])
    assert mix_weights([1, 3], None) == [1, 1, 1, 1]
    assert mix_weights([1, 1, 3], 0.75) == [0.125, 0.125, 0.25, 0.25, 0.25]
    assert mix_weights([3], 0.5) == [1, 1, 1]
    assert mix_weights([2, 0], 0.5) == [1, 1]  # emptied since
    # three times as many images of one object as of two: of 5 objects 3 are cubes
    mixed = content([one, two], VOCABULARY, [0.75, 0.25])
    assert mixed["objects_per_image"] == [0, 0.75, 0.25]
    assert mixed["categories"] == pytest.approx([0.6, 0.4]) and mixed["predicates"] == [1, 0, 0, 0]
    assert mixed == content([one, one, one, two], VOCABULARY)


# --- everything together --------------------------------------------------------------------------

def test_a_perfect_prediction_reaches_every_ceiling():
    truth, _ = three_objects()
    metrics = evaluate_graphs([truth], [truth], VOCABULARY)
    assert (metrics["objects"], metrics["relations"]) == (3, 5)
    assert metrics["map50"] == 1 and metrics["ap50"] == {"cube": 1, "ball": 1}
    for name in ("recall", "recall_graph_constraint", "recall_pooled",
                 "recall_graph_constraint_pooled"):
        assert metrics[name] == metrics[name.replace("recall", "recall_ceiling", 1)]
    assert metrics["recall_graph_constraint"] == {"20": 0.6, "50": 0.6, "100": 0.6}


def test_the_level_applies_to_counts_and_recall():
    truth = kitti_graph([50, 50, 30], relations=[(0, LEFT, 1), (0, LEFT, 2)])
    predicted = kitti_graph([50, 50], relations=[(0, LEFT, 1)])
    for split, objects, relations, recall in (("easy", 2, 1, 1), ("moderate", 3, 2, 0.5)):
        metrics = evaluate_graphs([truth], [predicted], VOCABULARY, LEVELS[split])
        assert (metrics["objects"], metrics["relations"]) == (objects, relations)
        assert metrics["recall"]["20"] == metrics["recall_graph_constraint_pooled"]["20"] == recall


def test_empty_inputs_give_numbers_or_none_and_valid_json():
    truth, predicted = three_objects()
    for pair in (([], []), ([EMPTY], [EMPTY]), ([truth], [EMPTY]), ([EMPTY], [predicted]),
                 ([truth], [predicted])):
        json.dumps(evaluate_graphs(*pair, VOCABULARY), allow_nan=False)
    missed = evaluate_graphs([truth], [EMPTY], VOCABULARY, LEVELS["hard"])
    assert missed["map50"] == 0 and missed["recall"]["100"] == 0
    nothing = evaluate_graphs([EMPTY], [predicted], VOCABULARY)
    assert nothing["map50"] is None and nothing["recall"]["20"] is None
    assert nothing["recall_ceiling"]["20"] is None


def test_images_must_correspond():
    other = make_graph("images/000001.png", 100, 100, [], [])
    for truth, predicted in (([EMPTY], [other]), ([EMPTY, EMPTY], [EMPTY])):
        with pytest.raises(ValueError, match="not of the same images"):
            evaluate_graphs(truth, predicted, VOCABULARY)


def test_lifting_iou_by_hand():
    wanted = graph([0, 1, 1], [[0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 70, 70]])
    # twice the size: box 0 is met by half, box 1 wholly, box 2 by a box of the other category alone
    shown = make_graph("a.png", 200, 200, [0, 1, 0],
                       [[0, 0, 20, 10], [40, 40, 80, 80], [120, 120, 140, 140]])
    fit = lifting_iou([wanted, EMPTY], [shown, shown])
    assert fit == pytest.approx({"median": 0.5, "p10": 0.1, "mean": 0.5})
    assert lifting_iou([EMPTY], [shown]) is None
    assert lifting_iou([wanted], [EMPTY]) == {"median": 0, "p10": 0, "mean": 0}
