"""Scene graphs: what the network predicts and what the renderer labels.

A box is `x0, y0, x1, y1` in float pixels, half-open: x right, y down, the center of the first pixel
at (0.5, 0.5). A relation (s, p, o) reads "object s is predicate p of object o", for instance
<laptop, on, table>. Several predicates may hold for one ordered pair. Arrays are numpy.
"""
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Vocabulary:
    """The names behind the integers.

    categories: object categories; label i means categories[i] (no background entry).
    predicates: relation predicates; predicate p means predicates[p].
    """

    categories: tuple[str, ...]
    predicates: tuple[str, ...]


@dataclass(frozen=True)
class SceneGraph:
    """One image's objects and relations. N objects, R relations; both may be 0.

    image:           path of the image, relative to the data set's folder.
    width, height:   image size in pixels.
    labels:          (N,) int64, index into Vocabulary.categories.
    boxes_px:        (N, 4) float64, x0 y0 x1 y1, inside the image.
    scores:          (N,) float64 in [0, 1]; 1 for exact labels.
    visible:         (N,) float64 in [0, 1], visible fraction of the object's in-image pixels; 1 if
                     unknown. 0 marks an ignored object (KITTI's Van beside car): one detection of
                     it counts neither as a true nor as a false positive.
    truncated:       (N,) float64 in [0, 1], fraction of the object's full box outside the image; 0
                     if unknown.
    ignore:          (N,) bool, an ignore region (KITTI's DontCare): it counts neither as false
                     negative nor, however many detections lie in it, as false positive.
    relations:       (R, 3) int64, subject index, predicate, object index.
    relation_scores: (R,) float64 in [0, 1]; 1 for exact labels.
    """

    image: str
    width: int
    height: int
    labels: np.ndarray
    boxes_px: np.ndarray
    scores: np.ndarray
    visible: np.ndarray
    truncated: np.ndarray
    ignore: np.ndarray
    relations: np.ndarray
    relation_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_ground_truth(self) -> np.ndarray:
        """(N,) bool, the objects that count as ground truth: neither ignore regions nor ignored."""
        return ~self.ignore & (self.visible > 0)

    def resized(self, width: int, height: int) -> "SceneGraph":
        """The same graph for its image resized to (width, height) pixels."""
        scale = np.array([width / self.width, height / self.height] * 2)
        return replace(self, width=width, height=height, boxes_px=self.boxes_px * scale)


def make_graph(image: str, width: int, height: int, labels, boxes_px, relations=(), scores=None,
               visible=None, truncated=None, ignore=None, relation_scores=None) -> SceneGraph:
    """A SceneGraph from any array-likes; columns that are left out get their defaults."""
    labels = np.asarray(labels, np.int64).reshape(-1)
    relations = np.asarray(relations, np.int64).reshape(-1, 3)

    def column(values, default, count, dtype=np.float64):
        full = np.full(count, default, dtype)
        return full if values is None else np.asarray(values, dtype).reshape(count)

    n, r = len(labels), len(relations)
    return SceneGraph(
        image, int(width), int(height), labels, np.asarray(boxes_px, np.float64).reshape(n, 4),
        column(scores, 1.0, n), column(visible, 1.0, n), column(truncated, 0.0, n),
        column(ignore, False, n, bool), relations, column(relation_scores, 1.0, r))


def select_objects(graph: SceneGraph, keep: np.ndarray) -> SceneGraph:
    """The sub-graph of the objects where keep (N,) bool holds, with renumbered relations."""
    new_index = np.cumsum(keep) - 1
    s, p, o = graph.relations.T
    kept = keep[s] & keep[o]
    return replace(
        graph, labels=graph.labels[keep], boxes_px=graph.boxes_px[keep], scores=graph.scores[keep],
        visible=graph.visible[keep], truncated=graph.truncated[keep], ignore=graph.ignore[keep],
        relations=np.stack([new_index[s], p, new_index[o]], 1)[kept],
        relation_scores=graph.relation_scores[kept])
