"""Inference on folders of images, and every confidence threshold of the project."""
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sim2sg_lib.cli import progress
from sim2sg_lib.data_loading import load_tensor
from sim2sg_lib.dataset import ImageFolder
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, make_graph, select_objects
from sim2sg_lib.io.files import add_line, open_growing
from sim2sg_lib.net.network import Prediction, SceneGraphNet

BATCH, BATCH_PIXELS = 16, 2**22  # largest batch: images, and input pixels if more than one image
MIN_THRESHOLD = 0.05  # lowest adaptive threshold: detections below this score are noise
SURE_QUANTILE = 0.9


def to_graph(prediction: Prediction, image: str, width: int, height: int, object_threshold: float,
             predicate_threshold: float) -> SceneGraph:
    """The prediction as a SceneGraph of an image of width x height pixels.

    Keeps objects with score >= object_threshold, and relations between them with probability >=
    predicate_threshold and above 0. Boxes are scaled from network input to image pixels and
    clipped; boxes thinner than 0.01 px are then dropped.
    """
    scale = np.array([width / prediction.width, height / prediction.height] * 2)
    boxes_px = prediction.boxes_px.cpu().numpy() * scale  # (N, 4)
    boxes_px = boxes_px.clip(0, [width, height, width, height])
    scores = prediction.scores.cpu().numpy()
    probs = prediction.predicate_probs.cpu().numpy()  # (K, P)
    pair, predicate = np.nonzero((probs >= predicate_threshold) & (probs > 0))
    subject, object_ = prediction.pairs.cpu().numpy()[pair].T
    relations = np.stack([subject, predicate, object_], 1)
    graph = make_graph(image, width, height, prediction.labels.cpu().numpy(), boxes_px, relations,
                       scores, relation_scores=probs[pair, predicate])
    thick_enough = (boxes_px[:, 2:] - boxes_px[:, :2] > 0.01).all(1)
    return select_objects(graph, (scores >= object_threshold) & thick_enough)


def predict_folder(model: SceneGraphNet, images: ImageFolder, env: Env, object_threshold: float,
                   predicate_threshold: float, kept: Path | None = None) -> list[SceneGraph]:
    """The predicted scene graph of every image, in order; boxes in the image's own pixels.

    In a 3-D world, relations that the environment's rules exclude are left out.

    kept: file that collects the graphs batch by batch; after an interruption, the graphs found
    there are not predicted again.

    Raises: InputError for an image that cannot be read.
    """
    device = next(model.parameters()).device
    width, height = model.config.width, model.config.height
    batch = max(1, min(BATCH, BATCH_PIXELS // (width * height)))
    allowed = None
    if env.world:
        table = env.world.rules.allowed_predicates(len(env.vocabulary.categories),
                                                   env.vocabulary.predicates)
        allowed = torch.from_numpy(table).to(device)
    file, rows = open_growing(kept) if kept else (None, [])
    graphs = [make_graph(**graph) for row in rows for graph in row["graphs"]]
    bar = progress(len(images.names), "predict", "image", leave=False, done=len(graphs))
    with bar, file or nullcontext():
        for start in range(len(graphs), len(images.names), batch):
            names = images.names[start:start + batch]
            pixels = torch.stack([load_tensor(images.folder / n, width, height) for n in names])
            with torch.no_grad():
                features = model.features(pixels.to(device).float() / 255)
                predictions = model.predict(features, allowed)
            new = [to_graph(prediction, name, *images.sizes[name], object_threshold,
                            predicate_threshold)
                   for name, prediction in zip(names, predictions)]
            if file:
                add_line(file, {"graphs": [_unrounded(graph) for graph in new]})
            graphs += new
            bar.update(len(names))
    return graphs


def _unrounded(graph: SceneGraph) -> dict:
    """For JSON; unlike `graph.to_json` nothing is rounded."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(graph).items()}


# --- thresholds -----------------------------------------------------------------------------------

def confident_graphs(graphs: list[SceneGraph], env: Env, threshold: float
                     ) -> tuple[list[SceneGraph], list[float]]:
    """What `--threshold` keeps of predicted graphs, and the resulting threshold per category.

    This is the meaning of a threshold (tau of the paper) on every command line. Objects: a score,
    or in an adaptive environment a fraction, see `thresholds`. Relations: a probability.
    """
    by_category = thresholds(graphs, env, threshold)
    return [confident(graph, by_category, threshold) for graph in graphs], by_category


def thresholds(graphs: list[SceneGraph], env: Env, threshold: float) -> list[float]:
    """Per category, the score below which detections are dropped.

    A network new to a category never scores it high. In an adaptive environment, `threshold` is
    therefore a fraction of the 0.9 quantile, over the images in which the category is detected, of
    its best score per image.
    """
    by_category = []
    for label in range(len(env.vocabulary.categories)):
        best = [graph.scores[graph.labels == label].max()
                for graph in graphs if (graph.labels == label).any()]
        sure = float(np.quantile(best, SURE_QUANTILE)) if best and env.adaptive else 1.0
        by_category.append(max(threshold * sure, min(threshold, MIN_THRESHOLD)))
    return by_category


def confident(graph: SceneGraph, object_thresholds: list[float], relation_threshold: float
              ) -> SceneGraph:
    """The graph without objects below their category's threshold and relations below theirs."""
    graph = select_objects(graph, graph.scores >= np.array(object_thresholds)[graph.labels])
    scores = graph.relation_scores
    kept = scores >= relation_threshold
    return replace(graph, relations=graph.relations[kept], relation_scores=scores[kept])
