"""How good predicted scene graphs are: detection AP at IoU 0.5, triplet recall@K, and how two sets' contents differ.

Detection follows COCO (Lin et al. 2014; pycocotools gives the same number), difficulty levels follow KITTI (Geiger
et al. 2012), triplet recall follows Xu et al. 2017 and, without the graph constraint, Zellers et al. 2018.
Every overlap threshold here is inclusive: an IoU of exactly 0.5 matches.
"""
from dataclasses import dataclass, replace

import numpy as np

from sim2sg_lib.graph import SceneGraph, Vocabulary, select_objects

MIN_OVERLAP = 0.5
KITTI_ROWS = range(370, 377)     # heights of KITTI's own images, whose limits are in their pixels
MAX_DETECTIONS = 100            # per image and category, as COCO
RECALL_AT = (20, 50, 100)       # ranked triplets per image that count
NEVER = np.iinfo(np.int64).max  # rank of a relation that no prediction hits
RIGHT, WRONG, MISSED, UNJUDGED = "right", "wrong", "missed", "predicted"    # what is said of an object or a relation
# of what evaluate_graphs returns, the long lists behind curves: curves.json holds them, metrics.json the rest
CURVES = ("precision_at_recall", "recall_curve", "recall_curve_graph_constraint", "recall_per_image")


# --- boxes ------------------------------------------------------------------------------------------------------------

def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of boxes a (N, 4) and b (M, 4), x0 y0 x1 y1; areas are (x1 - x0)(y1 - y0)."""
    shared = box_intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)[None, :] - shared
    return shared / np.maximum(union, np.finfo(float).tiny)


def box_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) area shared by boxes a (N, 4) and b (M, 4), square pixels."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])    # (N, M, 2)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(high - low, 0.0), axis=2)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) area of boxes (N, 4), square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# --- difficulty levels ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Level:
    """Which objects count. KITTI's limits: heights in the pixels of its own images, in others the same share of the rows.

    min_height:    an object's box is taller than this, a detection's at least as tall; pixels of an image of 375 rows.
    min_visible:   least visible share; stands for KITTI's states fully visible, partly and largely occluded.
    max_truncated: greatest share outside the image, KITTI's numbers.
    """

    min_height: float
    min_visible: float
    max_truncated: float


LEVELS = {
    "easy": Level(40.0, 0.85, 0.15),
    "moderate": Level(25.0, 0.5, 0.30),
    "hard": Level(25.0, 0.2, 0.50),
    "all": Level(0.0, 0.0, 1.0),
}


def inside_level(graph: SceneGraph, level: Level) -> np.ndarray:
    """(N,) bool, the objects that satisfy all three limits of the level; a neighbor (visible 0) satisfies none."""
    return ((_heights(graph) > level.min_height) & (graph.visible >= level.min_visible) & (graph.visible > 0)
            & (graph.truncated <= level.max_truncated))


def _heights(graph: SceneGraph) -> np.ndarray:
    """(N,) box heights in the unit of Level.min_height."""
    rows = 375 if graph.height in KITTI_ROWS else graph.height
    return (graph.boxes_px[:, 3] - graph.boxes_px[:, 1]) * (375 / rows)


def apply_level(truth: SceneGraph, level: Level) -> SceneGraph:
    """The truth at a level: objects outside it become `ignore`, relations with an ignored end go."""
    ignore = truth.ignore | ~inside_level(truth, level)
    kept = ~(ignore[truth.relations[:, 0]] | ignore[truth.relations[:, 2]])
    return replace(truth, ignore=ignore, relations=truth.relations[kept],
                   relation_scores=truth.relation_scores[kept])


# --- detection --------------------------------------------------------------------------------------------------------

def match_detections(overlap: np.ndarray, ignored: np.ndarray, reusable: np.ndarray) -> np.ndarray:
    """COCO's greedy matching in one image and category.

    overlap:  (D, G), detections in falling score order by ground truth.
    ignored:  (G,) bool, taken only by a detection that no free valid ground truth suits, however well it overlaps.
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
            best = len(candidates) - 1 - np.argmax(candidates[::-1])    # of equals the last, as pycocotools
            if candidates[best] >= MIN_OVERLAP:
                matched[d] = best
                free[best] = reusable[best]
                break
    return matched


def detection_overlap(detections: np.ndarray, boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(D, G) IoU of detections (D, 4) with ground truth (G, 4); with a region (G,) bool the share of the detection inside."""
    share_inside = box_intersection(detections, boxes) / np.maximum(box_area(detections), np.finfo(float).tiny)[:, None]
    return np.where(region, share_inside, box_iou(detections, boxes))


def match_class(truth: SceneGraph, predicted: SceneGraph, category: int, level: Level
                ) -> tuple[np.ndarray, np.ndarray, int]:
    """Judge one image's detections of one category.

    Two kinds of ground truth are neither missed nor punished for. Objects outside the level, as neighbors are outside
    every level, match one detection, by IoU. Objects marked `ignore` are regions: they match any number of detections
    that lie at least half inside, which is COCO's rule for crowds and KITTI's for DontCare. A region only excuses
    detections of its own category. Detections below the level's height that match nothing are left out too.
    Returns scores (D,) and true_positive (D,) bool of the detections that count, and the number of valid objects.
    """
    boxes = truth.boxes_px[truth.labels == category]
    region = truth.ignore[truth.labels == category]
    ignored = region | ~inside_level(truth, level)[truth.labels == category]

    rows = np.flatnonzero(predicted.labels == category)
    rows = rows[np.argsort(-predicted.scores[rows], kind="stable")][:MAX_DETECTIONS]
    matched = match_detections(detection_overlap(predicted.boxes_px[rows], boxes, region), ignored, reusable=region)
    found = matched >= 0
    on_ignored = found.copy()
    on_ignored[found] = ignored[matched[found]]
    counts = ~on_ignored & (found | (_heights(predicted) >= level.min_height)[rows])
    return predicted.scores[rows][counts], found[counts], int(np.sum(~ignored))


RECALL_POINTS = {
    "coco101": np.linspace(0, 1, 101),
    "kitti40": np.arange(1, 41) / 40,   # Simonelli et al. 2019; KITTI's own tool samples at scores instead
    "voc11": np.arange(11) / 10,        # Pascal VOC 2007
}


def average_precision(true_positive: np.ndarray, positives: int, interpolation: str = "coco101") -> float:
    """Area under the precision-recall curve.

    true_positive: (D,) bool, detections in falling score order; false is a false positive.
    positives:     valid ground-truth objects, at least 1.
    interpolation: a name of RECALL_POINTS, mean of the precision at those recalls; or "all_point" (Pascal VOC 2010),
                   the exact area. Precision at a recall is the best reached there or beyond, 0 where none is.
    """
    if interpolation == "all_point":
        recall, precision = precision_recall(true_positive, positives)
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return float(np.mean(precision_at(RECALL_POINTS[interpolation], true_positive, positives)))


def precision_recall(true_positive: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """(D,) recall after each detection, and (D,) the best precision reached there or beyond; see average_precision."""
    hits = np.cumsum(true_positive)
    precision = hits / np.arange(1, len(hits) + 1)
    return hits / positives, np.maximum.accumulate(precision[::-1])[::-1]


def precision_at(points: np.ndarray, true_positive: np.ndarray, positives: int) -> np.ndarray:
    """The precision at each recall of `points`, 0 where it is never reached: the curve whose mean is the AP."""
    recall, precision = precision_recall(true_positive, positives)
    return np.append(precision, 0.0)[np.searchsorted(recall, points)]


def detection_scores(truth: list[SceneGraph], predicted: list[SceneGraph], vocabulary: Vocabulary,
                     level: Level = LEVELS["all"]) -> dict:
    """AP at IoU 0.5 over a set of images, truth[i] and predicted[i] being of the same one.

    Returns ap50 {category: AP, None without valid ground truth}, map50 (its mean over the categories that have one,
    None if none has), both by COCO's 101 points, and map50_all_point, map50_kitti40, map50_voc11; and
    precision_at_recall {category: the 101 precisions whose mean ap50 is, None as there}.
    """
    names = ("coco101", "all_point", "kitti40", "voc11")
    by_category = {name: {category: None for category in vocabulary.categories} for name in (*names, "curve")}
    for index, category in enumerate(vocabulary.categories):
        judged = [match_class(t, p, index, level) for t, p in zip(truth, predicted, strict=True)]
        positives = sum(count for _, _, count in judged)
        if positives == 0:
            continue
        order = np.argsort(-np.concatenate([scores for scores, _, _ in judged]), kind="stable")
        true_positive = np.concatenate([hits for _, hits, _ in judged])[order]
        for name in names:
            by_category[name][category] = average_precision(true_positive, positives, name)
        by_category["curve"][category] = precision_at(RECALL_POINTS["coco101"], true_positive, positives).tolist()
    means = {name: _mean([ap for ap in by_category[name].values() if ap is not None]) for name in names}
    return {"map50": means["coco101"], "ap50": by_category["coco101"], "map50_all_point": means["all_point"],
            "map50_kitti40": means["kitti40"], "map50_voc11": means["voc11"], "precision_at_recall": by_category["curve"]}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


# --- relations --------------------------------------------------------------------------------------------------------
# Recall in one image is told by one array: for each true relation, the rank of the first prediction that hits it.

def distinct_relations(graph: SceneGraph) -> np.ndarray:
    """(G, 3) the graph's relation rows (s, p, o), each once, sorted."""
    return np.unique(graph.relations, axis=0)


def rank_relations(graph: SceneGraph, graph_constraint: bool) -> np.ndarray:
    """Indices of the relation rows by falling triplet score: subject score x object score x predicate score.

    Equal triplet scores are ordered by predicate score, then as they stand in the graph. With the graph constraint
    only the most probable predicate of each ordered pair (s, o) remains.
    """
    s, _, o = graph.relations.T
    triplet_score = graph.scores[s] * graph.scores[o] * graph.relation_scores
    order = np.lexsort((-graph.relation_scores, -triplet_score))
    if graph_constraint:
        _, first = np.unique((s * len(graph) + o)[order], return_index=True)
        order = order[np.sort(first)]
    return order


def first_hits(truth: SceneGraph, predicted: SceneGraph, graph_constraint: bool) -> np.ndarray:
    """(G,) int64, per distinct_relations(truth) the rank from 0 of the first prediction that hits it, or NEVER.

    A hit has the same three labels and IoU >= 0.5 for subject and for object. One prediction may hit several true
    relations; hitting one twice gains nothing and costs a rank. Only the first 100 ranks are looked at.
    """
    ranked = rank_relations(predicted, graph_constraint)[:max(RECALL_AT)]
    hit = relation_hits(truth, predicted, ranked)
    ranks = np.full(hit.shape[1], NEVER)
    rank, which = np.nonzero(hit)
    np.minimum.at(ranks, which, rank)
    return ranks


def relation_hits(truth: SceneGraph, predicted: SceneGraph, rows: np.ndarray) -> np.ndarray:
    """(len(rows), G) bool, whether these rows of predicted.relations hit each of distinct_relations(truth), see first_hits."""
    true_s, true_p, true_o = distinct_relations(truth).T
    s, p, o = predicted.relations[rows].T
    same = box_iou(predicted.boxes_px, truth.boxes_px) >= MIN_OVERLAP
    same &= predicted.labels[:, None] == truth.labels[None, :]
    return same[np.ix_(s, true_s)] & same[np.ix_(o, true_o)] & (p[:, None] == true_p[None, :])


def ideal_hits(truth: SceneGraph, graph_constraint: bool) -> np.ndarray:
    """(G,) the first_hits of a perfect prediction that finds each object once: the ceiling of recall.

    Without the graph constraint every rank hits; with it one predicate per ordered pair can be hit.
    """
    relations = distinct_relations(truth)
    ranks = np.arange(len(relations))
    if graph_constraint:
        ranks[len(np.unique(relations[:, [0, 2]], axis=0)):] = NEVER
    return ranks


def mean_recall(ranks: list[np.ndarray], k: int) -> float | None:
    """Recall of the first k ranks, averaged over the images that have relations; None if no image has any.

    ranks: per image the (G,) array of first_hits. An image with relations and no prediction has recall 0.
    """
    return _mean([float(np.mean(r < k)) for r in ranks if len(r)])


def pooled_recall(ranks: list[np.ndarray], k: int) -> float | None:
    """Recall of the first k ranks over the relations of all images together; None if there is no relation."""
    return mean_recall([np.concatenate(ranks)], k) if ranks else None


def recall_by_predicate(truth: list[SceneGraph], ranks: list[np.ndarray], vocabulary: Vocabulary) -> dict:
    """{predicate: {"20": ..}}, mean recall over the images that contain the predicate; None where no image does.

    ranks: per image the (G,) array of first_hits, in the order of truth.
    """
    by_predicate = {}
    for index, predicate in enumerate(vocabulary.predicates):
        of_predicate = [r[distinct_relations(t)[:, 1] == index] for t, r in zip(truth, ranks, strict=True)]
        by_predicate[predicate] = {str(k): mean_recall(of_predicate, k) for k in RECALL_AT}
    return by_predicate


def recall_scores(truth: list[SceneGraph], predicted: list[SceneGraph], vocabulary: Vocabulary) -> dict:
    """Triplet recall {"20", "50", "100"} in every reading, truth[i] and predicted[i] being of the same image.

    recall is the mean over images without the graph constraint; the suffixes _graph_constraint and _pooled say what
    differs; recall_ceiling.. is what a perfect prediction reaches; mean_recall averages recall_per_predicate.
    recall_curve and recall_curve_graph_constraint are lists of recall@1, @2, .. @100; recall_per_image {"20": ..} has a
    list in the order of truth, None for an image without relations.
    """
    scores = {}
    for suffix, constraint in (("", False), ("_graph_constraint", True)):
        found = [first_hits(t, p, constraint) for t, p in zip(truth, predicted, strict=True)]
        ideal = [ideal_hits(t, constraint) for t in truth]
        for name, ranks in (("recall", found), ("recall_ceiling", ideal)):
            scores[name + suffix] = {str(k): mean_recall(ranks, k) for k in RECALL_AT}
            scores[name + suffix + "_pooled"] = {str(k): pooled_recall(ranks, k) for k in RECALL_AT}
        scores["recall_curve" + suffix] = [mean_recall(found, k) for k in range(1, max(RECALL_AT) + 1)]
        if not constraint:
            scores["recall_per_image"] = {str(k): [mean_recall([r], k) for r in found] for k in RECALL_AT}
            scores["recall_per_predicate"] = recall_by_predicate(truth, found, vocabulary)
    per_predicate = scores["recall_per_predicate"].values()
    scores["mean_recall"] = {str(k): _mean([row[str(k)] for row in per_predicate if row[str(k)] is not None])
                             for k in RECALL_AT}
    return scores


@dataclass(frozen=True)
class Judged:
    """A graph and RIGHT, WRONG, MISSED or UNJUDGED for each of its objects (N,) and relations (R,), lists of str."""

    graph: SceneGraph
    objects: list[str]
    relations: list[str]


def unjudged(graph: SceneGraph) -> Judged:
    """A prediction without labels to compare it with."""
    return Judged(graph, [UNJUDGED] * len(graph), [UNJUDGED] * len(graph.relations))


def compare(truth: SceneGraph, predicted: SceneGraph) -> tuple[Judged, Judged]:
    """What is RIGHT and WRONG of a prediction, and what of the labels was found (RIGHT) and what MISSED.

    truth, predicted: of one image; every predicted relation counts, so drop those below the threshold first.
    Objects are judged as for AP, one detection an object, and relations as for recall, where one prediction is enough.
    Regions, neighbors and the detections that they excuse are left out of the two graphs.
    """
    overlap = np.where(predicted.labels[:, None] == truth.labels[None, :],
                       detection_overlap(predicted.boxes_px, truth.boxes_px, truth.ignore), -1.0)
    by_score = np.argsort(-predicted.scores, kind="stable")
    matched = np.full(len(predicted), -1)
    matched[by_score] = match_detections(overlap[by_score], ~truth.is_ground_truth, reusable=truth.ignore)
    found = np.isin(np.arange(len(truth)), matched)
    excused = np.isin(matched, np.flatnonzero(~truth.is_ground_truth))

    predicted, truth, found = select_objects(predicted, ~excused), select_objects(truth, truth.is_ground_truth), found[truth.is_ground_truth]
    truth = replace(truth, relations=distinct_relations(truth), relation_scores=np.ones(len(distinct_relations(truth))))
    hits = relation_hits(truth, predicted, np.arange(len(predicted.relations)))
    return (Judged(predicted, np.where(matched[~excused] >= 0, RIGHT, WRONG).tolist(),
                   np.where(hits.any(1), RIGHT, WRONG).tolist()),
            Judged(truth, np.where(found, RIGHT, MISSED).tolist(), np.where(hits.any(0), RIGHT, MISSED).tolist()))


# --- sets of graphs ---------------------------------------------------------------------------------------------------

def content(graphs: list[SceneGraph], vocabulary: Vocabulary) -> dict[str, list[float] | None]:
    """What a set of graphs is filled with; regions, neighbors and their relations do not count.

    Returns normalized histograms: of objects_per_image (from 0 to the most there are), of categories and of predicates (in
    the vocabulary's order); None where there is nothing to count.
    """
    graphs = [select_objects(graph, graph.is_ground_truth) for graph in graphs]
    values = {"objects_per_image": [[len(graph)] for graph in graphs], "categories": [graph.labels for graph in graphs],
              "predicates": [graph.relations[:, 1] for graph in graphs]}
    bins = {"objects_per_image": 0, "categories": len(vocabulary.categories), "predicates": len(vocabulary.predicates)}
    histograms = {}
    for name, lists in values.items():
        count = np.bincount(np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64), minlength=bins[name])
        histograms[name] = (count / count.sum()).tolist() if count.any() else None
    return histograms


def content_gap(a: list[SceneGraph], b: list[SceneGraph], vocabulary: Vocabulary) -> dict[str, float | None]:
    """How differently two sets of graphs are filled.

    Returns the total variation distance (half the L1 distance, 0 same to 1 disjoint) of each histogram of `content`; None
    where one of the two has nothing to count.
    """
    first, second = content(a, vocabulary), content(b, vocabulary)
    return {name: _total_variation(first[name], second[name]) for name in first}


def _total_variation(p: list[float] | None, q: list[float] | None) -> float | None:
    if p is None or q is None:
        return None
    bins = max(len(p), len(q))
    return float(np.abs(np.pad(p, (0, bins - len(p))) - np.pad(q, (0, bins - len(q)))).sum() / 2)


def lifting_iou(predicted: list[SceneGraph], rendered: list[SceneGraph]) -> dict[str, float] | None:
    """How well lifted scenes show what they were lifted from: IoU of each predicted box with the best rendered one.

    Best of the same category in the same image, 0 where there is none; images may differ in size. Returns the median, the
    10th percentile and the mean over all predicted boxes; None without a box.
    """
    if not any(map(len, predicted)):
        return None
    fits = []
    for p, r in zip(predicted, rendered, strict=True):
        scale = np.array([r.width / p.width, r.height / p.height] * 2)
        same = p.labels[:, None] == r.labels[None, :]
        fits.append(np.where(same, box_iou(p.boxes_px * scale, r.boxes_px), 0.0).max(1, initial=0.0))
    every = np.concatenate(fits)
    return {"median": float(np.median(every)), "p10": float(np.quantile(every, 0.1)), "mean": float(every.mean())}


def evaluate_graphs(truth: list[SceneGraph], predicted: list[SceneGraph], vocabulary: Vocabulary, split: str = "all"
                    ) -> dict:
    """Everything that metrics.json and curves.json hold about predicted graphs.

    truth, predicted: the same images in the same order. A predicted graph lists every candidate relation, its
    relation_scores being predicate probabilities; nothing is thresholded here.
    split: a name of LEVELS. Errors: ValueError for an unknown split or images that do not correspond.
    Returns detection_scores and recall_scores with split, images, objects and relations (how many count).
    """
    if split not in LEVELS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(LEVELS)}")
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} labeled images but {len(predicted)} predicted graphs")
    for i, (t, p) in enumerate(zip(truth, predicted)):
        if t.image != p.image:
            raise ValueError(f"image {i}: labels are of {t.image}, the prediction is of {p.image}")
    at_level = [apply_level(t, LEVELS[split]) for t in truth]
    return {
        "split": split,
        "images": len(truth),
        "objects": sum(int(np.sum(~t.ignore)) for t in at_level),
        "relations": sum(len(distinct_relations(t)) for t in at_level),
        # the unchanged truth: only there do regions differ from objects outside the level
        **detection_scores(truth, predicted, vocabulary, LEVELS[split]),
        **recall_scores(at_level, predicted, vocabulary),
    }
