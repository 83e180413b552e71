"""What a set of graphs contains, and how far two sets differ: the content gap."""
import numpy as np

from sim2sg_lib.graph import SceneGraph, Vocabulary, select_objects

HISTOGRAMS = ("objects_per_image", "categories", "predicates")


def content(graphs: list[SceneGraph], vocabulary: Vocabulary) -> dict[str, list[float] | None]:
    """Normalized histograms of a set of graphs, without ignore regions and ignored objects.

    Returns histograms of objects per image (bins 0, 1, ..), categories and predicates; None where
    there is nothing to count.
    """
    graphs = [select_objects(graph, graph.is_ground_truth) for graph in graphs]
    values = ([[len(graph)] for graph in graphs], [graph.labels for graph in graphs],
              [graph.relations[:, 1] for graph in graphs])
    bins = (0, len(vocabulary.categories), len(vocabulary.predicates))
    histograms = {}
    for name, lists, least in zip(HISTOGRAMS, values, bins):
        joined = np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64)
        count = np.bincount(joined, minlength=least)
        histograms[name] = (count / count.sum()).tolist() if count.any() else None
    return histograms


def content_gap(a: list[SceneGraph], b: list[SceneGraph],
                vocabulary: Vocabulary) -> dict[str, float | None]:
    """Total variation distance (half the L1 distance, 0 to 1) between histograms of two sets.

    None where one of the two sets has nothing to count.
    """
    first, second = content(a, vocabulary), content(b, vocabulary)
    return {name: _total_variation(first[name], second[name]) for name in HISTOGRAMS}


def _total_variation(p: list[float] | None, q: list[float] | None) -> float | None:
    if p is None or q is None:
        return None
    bins = max(len(p), len(q))
    return float(np.abs(np.pad(p, (0, bins - len(p))) - np.pad(q, (0, bins - len(q)))).sum() / 2)
