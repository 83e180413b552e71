"""What a set of graphs contains, and how far two sets differ: the content gap."""
import numpy as np

from sim2sg_lib.graph import SceneGraph, Vocabulary, select_objects

HISTOGRAMS = ("objects_per_image", "categories", "predicates")


def content(graphs: list[SceneGraph], vocabulary: Vocabulary,
            weights: list[float] | None = None) -> dict[str, list[float] | None]:
    """Normalized histograms of a set of graphs, without ignore regions and ignored objects.

    weights: how often each graph counts, by default once.
    Returns histograms of objects per image (bins 0, 1, ..), categories and predicates; None where
    there is nothing to count.
    """
    graphs = [select_objects(graph, graph.is_ground_truth) for graph in graphs]
    values = ([[len(graph)] for graph in graphs], [graph.labels for graph in graphs],
              [graph.relations[:, 1] for graph in graphs])
    bins = (0, len(vocabulary.categories), len(vocabulary.predicates))
    weights, histograms = [1.0] * len(graphs) if weights is None else weights, {}
    for name, lists, least in zip(HISTOGRAMS, values, bins):
        joined = np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64)
        counts = np.bincount(joined, np.repeat(weights, list(map(len, lists))), least)
        histograms[name] = (counts / counts.sum()).tolist() if counts.any() else None
    return histograms


def mix_weights(sizes: list[int], newest: float | None) -> list[float]:
    """How often training sees each image of several data sets, the newest last, for `content`.

    newest: the fraction of its images that are of the newest set; None for all images alike.
    """
    others = sum(sizes[:-1])
    if newest is None or not others or not sizes[-1]:
        return [1.0] * sum(sizes)
    return [(1 - newest) / others] * others + [newest / sizes[-1]] * sizes[-1]


def content_gap(first: dict, second: dict) -> dict[str, float | None]:
    """Total variation distance (half the L1 distance, 0 to 1) between two results of `content`.

    None where one of the two has nothing to count.
    """
    return {name: _total_variation(first[name], second[name]) for name in HISTOGRAMS}


def _total_variation(p: list[float] | None, q: list[float] | None) -> float | None:
    if p is None or q is None:
        return None
    bins = max(len(p), len(q))
    return float(np.abs(np.pad(p, (0, bins - len(p))) - np.pad(q, (0, bins - len(q)))).sum() / 2)
