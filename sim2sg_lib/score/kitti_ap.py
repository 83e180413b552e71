"""KITTI's official 2-D detection scores (Geiger et al. 2012; development kit of April 2017).

They differ from the AP@0.5 of metrics.py: overlaps must exceed the minimum, which is higher for
cars; detections below the height limit may still be matched; and precision is sampled at 41
thresholds taken from the scores of the matched objects. Because of that sampling even a perfect
detector scores below 1 with fewer than MIN_OBJECTS valid objects; no score is given then.
"""
from dataclasses import dataclass

import numpy as np

from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.io.kitti import IGNORED_AS, KittiObject
from sim2sg_lib.score.metrics import LEVELS, Level, box_area, box_intersection, box_iou

MIN_OVERLAP = {"car": 0.7, "pedestrian": 0.5, "cyclist": 0.5}  # a match overlaps more
DIFFICULTIES = {name: LEVELS[name] for name in ("easy", "moderate", "hard")}
KITTI_HEIGHTS_PX = range(370, 377)  # of KITTI's own images
SAMPLES = 41
MIN_OBJECTS = 41


def has_kitti_size(graphs: list[SceneGraph]) -> bool:
    """Whether all images are as high as KITTI's, whose limits on box heights are in pixels."""
    return all(graph.height in KITTI_HEIGHTS_PX for graph in graphs)


@dataclass(frozen=True)
class KittiScore:
    """The score of one class at one difficulty.

    objects:   number of valid ground truths, at least MIN_OBJECTS.
    precision: (41,) best precision at a recall of k / 40 or more; 0 where that is not reached.
    """

    objects: int
    precision: np.ndarray

    @property
    def ap11(self) -> float:
        """Mean precision at recalls 0, 0.1 .. 1: the benchmark until October 2019."""
        return float(self.precision[::4].mean())

    @property
    def ap40(self) -> float:
        """Mean precision at recalls 1/40 .. 1: the benchmark since."""
        return float(self.precision[1:].mean())


@dataclass(frozen=True)
class Frame:
    """One image, for one class and difficulty: G ground truths and D detections, in file order.

    overlap:     (G, D) IoU where it is above the class's minimum, else 0.
    valid:       (G,) bool, counts as ground truth; the others are too hard or ignored.
    scores:      (D,) float64.
    tall:        (D,) bool, not below the height limit.
    in_dontcare: (D,) bool, more than the minimum overlap of the detection lies in a DontCare box.
    """

    overlap: np.ndarray
    valid: np.ndarray
    scores: np.ndarray
    tall: np.ndarray
    in_dontcare: np.ndarray


def kitti_score(truth: list[list[KittiObject]], found: list[list[KittiObject]], category: str,
                difficulty: str) -> tuple[KittiScore | None, int]:
    """The score of one class, None below MIN_OBJECTS valid objects, and the number of these.

    truth, found: label and result lines of each image.
    """
    frames = [make_frame(t, f, category, DIFFICULTIES[difficulty])
              for t, f in zip(truth, found, strict=True)]
    objects = sum(int(frame.valid.sum()) for frame in frames)
    if objects < MIN_OBJECTS:
        return None, objects
    hit_scores = [score for frame in frames for score in match_by_score(frame)]
    counts = count_hits(frames, sample_thresholds(hit_scores, objects))  # (T, 2)
    precision = np.zeros(SAMPLES)
    # each threshold is the score of a hit, but in pass 2 that detection may not count: avoid 0 / 0
    precision[:len(counts)] = counts[:, 0] / np.maximum(counts.sum(1), 1)
    return KittiScore(objects, np.maximum.accumulate(precision[::-1])[::-1]), objects


def make_frame(truth: list[KittiObject], found: list[KittiObject], category: str,
               limits: Level) -> Frame:
    """What matching needs of one image's label and result lines."""
    min_overlap = MIN_OVERLAP[category]
    same = [item for item in truth if category in (item.type.lower(), IGNORED_AS.get(item.type))]
    valid = [item.type.lower() == category and item.occluded <= limits.max_occluded
             and item.truncated <= limits.max_truncated and height_px(item) > limits.min_height_px
             for item in same]
    # whole pixels, as in KITTI's program
    tall = [int(height_px(item)) >= limits.min_height_px for item in found]
    # KITTI's program tests the height before the class, so a low detection of any class may match
    rows = [i for i, item in enumerate(found) if not tall[i] or item.type.lower() == category]
    detections = _boxes([found[i] for i in rows])
    overlap = box_iou(_boxes(same), detections)
    regions = _boxes([item for item in truth if item.type == "DontCare"])
    inside = box_intersection(detections, regions) / box_area(detections)[:, None]
    return Frame(np.where(overlap > min_overlap, overlap, 0.0), np.array(valid, bool),
                 np.array([found[i].score for i in rows], np.float64),
                 np.array([tall[i] for i in rows], bool), (inside > min_overlap).any(1))


def height_px(item: KittiObject) -> float:
    return item.box_px[3] - item.box_px[1]


def _boxes(items: list[KittiObject]) -> np.ndarray:
    return np.array([item.box_px for item in items], np.float64).reshape(-1, 4)


def match_by_score(frame: Frame) -> list[float]:
    """Pass 1: each ground truth takes the free detection of highest score. Returns hits' scores."""
    free, hits = np.ones(len(frame.scores), bool), []
    for overlap, valid in zip(frame.overlap, frame.valid):
        candidates = np.flatnonzero(free & (overlap > 0))
        if not len(candidates):
            continue
        best = candidates[np.argmax(frame.scores[candidates])]
        free[best] = False
        if valid and frame.tall[best]:
            hits.append(float(frame.scores[best]))
    return hits


def sample_thresholds(hit_scores: list[float], objects: int) -> list[float]:
    """At most 41 of the hits' scores, decreasing, with recalls nearest to 0, 1/40 .. 1."""
    ordered, kept, wanted = sorted(hit_scores, reverse=True), [], 0.0
    for i, score in enumerate(ordered):
        last = i + 1 == len(ordered)
        recall, next_recall = (i + 1) / objects, (i + 1 if last else i + 2) / objects
        if last or next_recall - wanted >= wanted - recall:
            kept.append(score)
            wanted += 1 / (SAMPLES - 1)
    return kept


def count_hits(frames: list[Frame], thresholds: list[float]) -> np.ndarray:
    """(T, 2) true and false positives over all images at each of T decreasing thresholds."""
    counts = np.zeros((len(thresholds), 2), np.int64)
    for frame in frames:
        kept = (frame.scores >= np.array(thresholds)[:, None]).sum(1)  # (T,) increasing
        for first in np.unique(kept, return_index=True)[1]:
            same = kept == kept[first]
            if kept[first]:
                counts[same] += match_by_overlap(frame, frame.scores >= thresholds[first])
    return counts


def match_by_overlap(frame: Frame, kept: np.ndarray) -> tuple[int, int]:
    """Pass 2, the detections kept (D,): each ground truth takes the free one that overlaps most.

    Returns true and false positives; a detection in a DontCare box is not a false positive. KITTI's
    program also matches low detections where there is no other. That only saves a false negative,
    which does not enter the precision, so low detections are left out here.
    """
    free, hits = kept & frame.tall, 0
    for overlap, valid in zip(frame.overlap, frame.valid):
        candidates = np.where(free, overlap, 0.0)
        if candidates.any():
            free[np.argmax(candidates)] = False
            hits += bool(valid)
    return hits, int(np.sum(free & ~frame.in_dontcare))


def to_results(graph: SceneGraph, vocabulary: Vocabulary) -> list[KittiObject]:
    """A predicted graph's objects as result lines, their 3-D part unknown."""
    return [KittiObject(vocabulary.categories[label].capitalize(), -1, -1, -10, tuple(box),
                        (-1, -1, -1), (-1000, -1000, -1000), -10, float(score))
            for label, box, score in zip(graph.labels, graph.boxes_px.tolist(), graph.scores)]


def folder_scores(truth: list[list[KittiObject]], predicted: list[SceneGraph],
                  vocabulary: Vocabulary) -> dict:
    """KITTI's scores of predictions on a labeled KITTI folder; truth: the labels of each image.

    Returns {category: {difficulty: {"objects", "ap11", "ap40"}}}, APs from 0 to 1, None below
    MIN_OBJECTS valid objects.
    """
    found = [to_results(graph, vocabulary) for graph in predicted]
    scores = {}
    for category in [name for name in vocabulary.categories if name in MIN_OVERLAP]:
        scores[category] = {}
        for difficulty in DIFFICULTIES:
            score, objects = kitti_score(truth, found, category, difficulty)
            ap11, ap40 = (score.ap11, score.ap40) if score else (None, None)
            scores[category][difficulty] = {"objects": objects, "ap11": ap11, "ap40": ap40}
    return scores
