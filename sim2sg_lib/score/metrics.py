"""Metrics of predicted scene graphs: detection AP at IoU 0.5 and triplet recall@K.

Detection follows COCO (Lin et al. 2014), difficulty levels follow KITTI (Geiger et al. 2012),
triplet recall follows Xu et al. 2017 and, without the graph constraint, Zellers et al. 2018.
Overlap thresholds are inclusive: an IoU of exactly 0.5 matches. pycocotools gives the same AP, but
is compiled and needs difficulty levels encoded in `area`.
"""
from dataclasses import dataclass, replace

import numpy as np

from sim2sg_lib.graph import SceneGraph, Vocabulary, select_objects

MIN_OVERLAP = 0.5
MAX_DETECTIONS = 100            # per image and category, as in COCO
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's: AP is the mean precision at these recalls
RECALL_AT = (20, 50, 100)       # K of recall@K
NEVER = np.iinfo(np.int64).max  # rank of a relation that no prediction hits
# how an object or a relation is matched; PREDICTED: of an image without labels
TP, FP, FN = "true positive", "false positive", "missed (false negative)"
PREDICTED = "predicted"
# results of evaluate_graphs that go to curves.json, not to metrics.json
CURVES = ("precision_at_recall", "recall_curve", "recall_curve_graph_constraint",
          "recall_per_image")


# --- boxes ----------------------------------------------------------------------------------------

def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of boxes a (N, 4) and b (M, 4), x0 y0 x1 y1 in pixels."""
    intersection = box_intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    return intersection / np.maximum(union, np.finfo(float).tiny)


def box_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) area of the intersection of boxes a (N, 4) and b (M, 4), square pixels."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(high - low, 0.0), axis=2)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) area of boxes (N, 4), square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# --- difficulty levels ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Level:
    """A difficulty level: limits that an object must satisfy to count as ground truth.

    min_height_px: ground truth must be taller; detections must be at least as tall.
    min_visible:   least visible fraction; stands for max_occluded where KITTI's state is unknown.
    max_occluded:  greatest occlusion state of KITTI; used by kitti_ap.py only.
    max_truncated: greatest fraction outside the image.
    scaled:        whether heights are first scaled to an image of KITTI_HEIGHT_PX rows; False for
                   KITTI's own images, whose heights vary by a few rows.
    """

    min_height_px: float
    min_visible: float
    max_occluded: int
    max_truncated: float
    scaled: bool = True


KITTI_HEIGHT_PX = 375
LEVELS = {"easy": Level(40.0, 0.85, 0, 0.15), "moderate": Level(25.0, 0.5, 1, 0.30),
          "hard": Level(25.0, 0.2, 2, 0.50), "all": Level(0.0, 0.0, 3, 1.0)}


def inside_level(graph: SceneGraph, level: Level) -> np.ndarray:
    """(N,) bool, objects within the level's limits; ignored objects (visible 0) never are."""
    return ((_heights(graph, level) > level.min_height_px) & (graph.visible >= level.min_visible)
            & (graph.visible > 0) & (graph.truncated <= level.max_truncated))


def _heights(graph: SceneGraph, level: Level) -> np.ndarray:
    """(N,) box heights in the unit of level.min_height_px."""
    heights_px = graph.boxes_px[:, 3] - graph.boxes_px[:, 1]
    return heights_px * (KITTI_HEIGHT_PX / graph.height) if level.scaled else heights_px


def apply_level(truth: SceneGraph, level: Level) -> SceneGraph:
    """The labels with `ignore` set for objects outside the level, without their relations."""
    ignore = truth.ignore | ~inside_level(truth, level)
    kept = ~(ignore[truth.relations[:, 0]] | ignore[truth.relations[:, 2]])
    return replace(truth, ignore=ignore, relations=truth.relations[kept],
                   relation_scores=truth.relation_scores[kept])


# --- detection ------------------------------------------------------------------------------------

def match_detections(overlap: np.ndarray, ignored: np.ndarray, reusable: np.ndarray) -> np.ndarray:
    """COCO's greedy matching in one image and category.

    overlap:  (D, G), detections in decreasing order of score by ground truth.
    ignored:  (G,) bool, matched only by a detection for which no valid ground truth is left.
    reusable: (G,) bool, may be matched many times; all others once.
    Returns (D,) int64, the ground truth of each detection, -1 for none.
    """
    matched = np.full(len(overlap), -1)
    free = np.ones(len(ignored), bool)
    if not len(ignored):
        return matched
    for d in range(len(overlap)):
        for group in (~ignored, ignored):
            candidates = np.where(free & group, overlap[d], -1.0)
            best = len(candidates) - 1 - np.argmax(candidates[::-1])  # ties: the last, as in COCO
            if candidates[best] >= MIN_OVERLAP:
                matched[d] = best
                free[best] = reusable[best]
                break
    return matched


def detection_overlap(detections: np.ndarray, boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(D, G) IoU; for ignore regions, region (G,) bool, the fraction of the detection inside."""
    area = np.maximum(box_area(detections), np.finfo(float).tiny)[:, None]
    inside = box_intersection(detections, boxes) / area
    return np.where(region, inside, box_iou(detections, boxes))


def match_class(truth: SceneGraph, predicted: SceneGraph, category: int, level: Level
                ) -> tuple[np.ndarray, np.ndarray, int]:
    """Match one image's detections of one category.

    Two kinds of ground truth cause neither false negatives nor false positives: objects outside the
    level and ignored objects match one detection, by IoU; ignore regions match all detections of
    their category that lie at least half inside (COCO's rule for crowds, KITTI's for DontCare).
    Unmatched detections below the level's height do not count either. Returns scores (D,) and
    true_positive (D,) bool of the detections that count, and the number of valid objects.
    """
    of_category = truth.labels == category
    boxes, region = truth.boxes_px[of_category], truth.ignore[of_category]
    ignored = region | ~inside_level(truth, level)[of_category]
    rows = np.flatnonzero(predicted.labels == category)
    rows = rows[np.argsort(-predicted.scores[rows], kind="stable")][:MAX_DETECTIONS]
    overlap = detection_overlap(predicted.boxes_px[rows], boxes, region)
    matched = match_detections(overlap, ignored, reusable=region)
    found = matched >= 0
    on_ignored = np.append(ignored, False)[matched]  # -1, the last, for unmatched detections
    tall = (_heights(predicted, level) >= level.min_height_px)[rows]
    counts = ~on_ignored & (found | tall)
    return predicted.scores[rows][counts], found[counts], int(np.sum(~ignored))


def precision_at_recall(true_positive: np.ndarray, positives: int) -> np.ndarray:
    """(101,) interpolated precision at COCO's RECALL_POINTS; its mean is the AP.

    true_positive: (D,) bool, detections in decreasing order of score; False is a false positive.
    positives:     number of valid ground-truth objects, at least 1.
    The precision at a recall is the best at that recall or above, 0 where that is not reached.
    """
    hits = np.cumsum(true_positive)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(hits / positives, RECALL_POINTS)]


def detection_scores(truth: list[SceneGraph], predicted: list[SceneGraph], vocabulary: Vocabulary,
                     level: Level = LEVELS["all"]) -> dict:
    """AP at IoU 0.5 over a set of images; truth[i] and predicted[i] belong to one image.

    Returns ap50 {category: AP, None without valid ground truth}, map50 (their mean; None if there
    are none) and precision_at_recall {category: the 101 precisions whose mean is the AP}.
    """
    ap50, curves = {}, {}
    for index, category in enumerate(vocabulary.categories):
        ap50[category] = curves[category] = None
        per_image = [match_class(t, p, index, level) for t, p in zip(truth, predicted, strict=True)]
        positives = sum(count for _, _, count in per_image)
        if positives > 0:
            order = np.argsort(-np.concatenate([row[0] for row in per_image]), kind="stable")
            true_positive = np.concatenate([row[1] for row in per_image])[order]
            precision = precision_at_recall(true_positive, positives)
            ap50[category], curves[category] = float(precision.mean()), precision.tolist()
    map50 = _mean([ap for ap in ap50.values() if ap is not None])
    return {"map50": map50, "ap50": ap50, "precision_at_recall": curves}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


# --- relations ------------------------------------------------------------------------------------
# Recall in one image follows from one array: per true relation, the rank of its first hit.

def distinct_relations(graph: SceneGraph) -> np.ndarray:
    """(G, 3) the graph's relation rows (s, p, o) without duplicates, sorted."""
    return np.unique(graph.relations, axis=0)


def rank_relations(graph: SceneGraph, graph_constraint: bool) -> np.ndarray:
    """Indices of the relation rows in decreasing order of triplet score.

    The triplet score is subject score x object score x predicate probability. Ties are ordered by
    predicate probability, then by row. With the graph constraint only the most probable predicate
    of each ordered pair (s, o) remains.
    """
    s, _, o = graph.relations.T
    triplet_score = graph.scores[s] * graph.scores[o] * graph.relation_scores
    order = np.lexsort((-graph.relation_scores, -triplet_score))
    if graph_constraint:
        _, first = np.unique((s * len(graph) + o)[order], return_index=True)
        order = order[np.sort(first)]
    return order


def first_hits(truth: SceneGraph, predicted: SceneGraph, graph_constraint: bool) -> np.ndarray:
    """(G,) int64, for each of distinct_relations(truth) the rank of its first hit, or NEVER.

    Ranks count from 0, up to 100. A hit has the same three labels and IoU >= 0.5 for subject and
    object. One prediction may hit several true relations; a second hit of one still takes a rank.
    """
    ranked = rank_relations(predicted, graph_constraint)[:max(RECALL_AT)]
    hit = relation_hits(truth, predicted, ranked)
    ranks = np.full(hit.shape[1], NEVER)
    rank, which = np.nonzero(hit)
    np.minimum.at(ranks, which, rank)
    return ranks


def relation_hits(truth: SceneGraph, predicted: SceneGraph, rows: np.ndarray) -> np.ndarray:
    """(len(rows), G) bool: which predicted.relations[rows] hit which distinct_relations(truth)."""
    true_s, true_p, true_o = distinct_relations(truth).T
    s, p, o = predicted.relations[rows].T
    same = box_iou(predicted.boxes_px, truth.boxes_px) >= MIN_OVERLAP
    same &= predicted.labels[:, None] == truth.labels[None, :]
    return same[np.ix_(s, true_s)] & same[np.ix_(o, true_o)] & (p[:, None] == true_p[None, :])


def ideal_hits(truth: SceneGraph, graph_constraint: bool) -> np.ndarray:
    """(G,) the first_hits of a perfect prediction that finds each object once: recall's ceiling.

    Without the graph constraint every rank hits; with it one predicate per ordered pair can be hit.
    """
    relations = distinct_relations(truth)
    ranks = np.arange(len(relations))
    if graph_constraint:
        ranks[len(np.unique(relations[:, [0, 2]], axis=0)):] = NEVER
    return ranks


def mean_recall(ranks: list[np.ndarray], k: int) -> float | None:
    """Recall@k, averaged over the images that have relations; None if no image has any.

    ranks: the (G,) first_hits of each image.
    """
    return _mean([float(np.mean(r < k)) for r in ranks if len(r)])


def pooled_recall(ranks: list[np.ndarray], k: int) -> float | None:
    """Recall@k over the relations of all images together; None if there is no relation."""
    return mean_recall([np.concatenate(ranks)], k) if ranks else None


def recall_by_predicate(truth: list[SceneGraph], ranks: list[np.ndarray],
                        vocabulary: Vocabulary) -> dict:
    """{predicate: {"20": ..}}, the mean_recall of each predicate's relations."""
    by_predicate = {}
    for index, predicate in enumerate(vocabulary.predicates):
        selected = [r[distinct_relations(t)[:, 1] == index] for t, r in zip(truth, ranks)]
        by_predicate[predicate] = {str(k): mean_recall(selected, k) for k in RECALL_AT}
    return by_predicate


def recall_scores(truth: list[SceneGraph], predicted: list[SceneGraph],
                  vocabulary: Vocabulary) -> dict:
    """Triplet recall {"20", "50", "100"}; truth[i] and predicted[i] belong to one image.

    Returns
        recall                mean over images, without the graph constraint
        recall..              the suffixes _graph_constraint and _pooled say what differs
        recall_ceiling..      what a perfect prediction reaches
        recall_per_predicate  see recall_by_predicate; mean_recall is its average
        recall_curve..        lists of recall@1, @2, .. @100
        recall_per_image      {"20": ..}, lists in the order of truth, None without relations
    """
    scores = {}
    for suffix, constraint in (("", False), ("_graph_constraint", True)):
        found = [first_hits(t, p, constraint) for t, p in zip(truth, predicted, strict=True)]
        ideal = [ideal_hits(t, constraint) for t in truth]
        for name, ranks in (("recall" + suffix, found), ("recall_ceiling" + suffix, ideal)):
            scores[name] = {str(k): mean_recall(ranks, k) for k in RECALL_AT}
            scores[name + "_pooled"] = {str(k): pooled_recall(ranks, k) for k in RECALL_AT}
        every_k = range(1, max(RECALL_AT) + 1)
        scores["recall_curve" + suffix] = [mean_recall(found, k) for k in every_k]
        if not constraint:
            scores["recall_per_image"] = {str(k): [mean_recall([r], k) for r in found]
                                          for k in RECALL_AT}
            scores["recall_per_predicate"] = recall_by_predicate(truth, found, vocabulary)
    per_predicate = scores["recall_per_predicate"].values()
    scores["mean_recall"] = {
        k: _mean([row[k] for row in per_predicate if row[k] is not None]) for k in scores["recall"]}
    return scores


def evaluate_graphs(truth: list[SceneGraph], predicted: list[SceneGraph], vocabulary: Vocabulary,
                    level: Level = LEVELS["all"]) -> dict:
    """Everything that metrics.json and curves.json say about predicted graphs.

    truth, predicted: the same images in the same order. A predicted graph lists every candidate
    relation, with predicate probabilities as relation_scores; no thresholding is applied here.
    Returns detection_scores and recall_scores, and the numbers of objects and relations that count.
    Raises: ValueError for images that do not correspond.
    """
    if [graph.image for graph in truth] != [graph.image for graph in predicted]:
        raise ValueError("the labels and the predictions are not of the same images")
    at_level = [apply_level(graph, level) for graph in truth]
    return {
        "objects": sum(int(np.sum(~graph.ignore)) for graph in at_level),
        "relations": sum(len(distinct_relations(graph)) for graph in at_level),
        # the original labels: at_level turns objects outside the level into ignore regions
        **detection_scores(truth, predicted, vocabulary, level),
        **recall_scores(at_level, predicted, vocabulary),
    }


# --- one image ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class MatchedGraph:
    """A graph and how each of its objects and relations was matched: TP, FP, FN or PREDICTED."""

    graph: SceneGraph
    objects: list[str]
    relations: list[str]


def without_labels(graph: SceneGraph) -> MatchedGraph:
    """A prediction on an image without labels."""
    return MatchedGraph(graph, [PREDICTED] * len(graph), [PREDICTED] * len(graph.relations))


def match_graphs(truth: SceneGraph, predicted: SceneGraph) -> tuple[MatchedGraph, MatchedGraph]:
    """True and false positives of a prediction; found (TP) and missed (FN) parts of the labels.

    truth, predicted: of one image; every predicted relation counts, so apply the threshold first.
    Objects are matched as for AP, relations as for recall. Both graphs are returned without ignore
    regions, ignored objects and the detections matched to them.
    """
    overlap = detection_overlap(predicted.boxes_px, truth.boxes_px, truth.ignore)
    overlap = np.where(predicted.labels[:, None] == truth.labels[None, :], overlap, -1.0)
    order = np.argsort(-predicted.scores, kind="stable")
    ignored = ~truth.is_ground_truth
    matched = np.full(len(predicted), -1)
    matched[order] = match_detections(overlap[order], ignored, reusable=truth.ignore)
    found = np.isin(np.arange(len(truth)), matched)[~ignored]
    counts = ~np.isin(matched, np.flatnonzero(ignored))

    predicted, truth = select_objects(predicted, counts), select_objects(truth, ~ignored)
    relations = distinct_relations(truth)
    truth = replace(truth, relations=relations, relation_scores=np.ones(len(relations)))
    hits = relation_hits(truth, predicted, np.arange(len(predicted.relations)))
    return (MatchedGraph(predicted, np.where(matched[counts] >= 0, TP, FP).tolist(),
                         np.where(hits.any(1), TP, FP).tolist()),
            MatchedGraph(truth, np.where(found, TP, FN).tolist(),
                         np.where(hits.any(0), TP, FN).tolist()))


def lifting_iou(predicted: list[SceneGraph], rendered: list[SceneGraph]) -> dict[str, float] | None:
    """How well rendered scenes match the predictions they were lifted from.

    For each predicted box, the best IoU with a rendered box of the same category or 0; the images
    may differ in size. Returns median, 10th percentile and mean over all boxes; None without boxes.
    Ignore regions and ignored objects, which are not lifted, do not count.
    """
    predicted = [select_objects(graph, graph.is_ground_truth) for graph in predicted]
    if not any(map(len, predicted)):
        return None
    best = []
    for p, r in zip(predicted, rendered, strict=True):
        iou = box_iou(p.resized(r.width, r.height).boxes_px, r.boxes_px)
        same = p.labels[:, None] == r.labels[None, :]
        best.append(np.where(same, iou, 0.0).max(1, initial=0.0))
    ious = np.concatenate(best)
    return {"median": float(np.median(ious)), "p10": float(np.quantile(ious, 0.1)),
            "mean": float(ious.mean())}
