"""Inference, and every confidence threshold."""
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sim2sg_lib.cli import progress
from sim2sg_lib.dataset import ImageFolder, load_tensor
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, make_graph, select_objects
from sim2sg_lib.io.files import add_line, open_growing
from sim2sg_lib.net.relations import Prediction, SceneGraphNet

BATCH, BATCH_PIXELS = 16, 2**22  # most images read at once, and most pixels of the network's input of more than one
LEAST_SURE = 0.05      # no adaptive threshold falls below it: that is noise


def to_graph(prediction: Prediction, image: str, width: int, height: int, object_threshold: float,
             predicate_threshold: float) -> SceneGraph:
    """The prediction as a SceneGraph of an image of width x height pixels.

    Keeps objects with score >= object_threshold and relations with probability >= predicate_threshold, but not 0, whose
    two objects are kept. Boxes are scaled from network input to image pixels and clipped; what is thinner than 0.01 px then goes.
    """
    scale = np.array([width / prediction.width, height / prediction.height] * 2)
    boxes_px = prediction.boxes_px.cpu().numpy() * scale  # (N, 4)
    boxes_px = boxes_px.clip(0, [width, height, width, height])
    scores = prediction.scores.cpu().numpy()
    probs = prediction.predicate_probs.cpu().numpy()  # (K, P)
    pair, predicate = np.nonzero((probs >= predicate_threshold) & (probs > 0))
    subject, object_ = prediction.pairs.cpu().numpy()[pair].T
    graph = make_graph(image, width, height, prediction.labels.cpu().numpy(), boxes_px,
                       np.stack([subject, predicate, object_], 1), scores, relation_scores=probs[pair, predicate])
    return select_objects(graph, (scores >= object_threshold) & (boxes_px[:, 2:] - boxes_px[:, :2] > 0.01).all(1))


def predict_folder(model: SceneGraphNet, images: ImageFolder, env: Env, object_threshold: float, predicate_threshold: float,
                   kept: Path | None = None) -> list[SceneGraph]:
    """The network's scene graph of every image, in order; boxes in the pixels of the image's camera.

    Relations that the environment's rules exclude (a chair beside a chair, where one end must be a table) are left out.

    kept: a file for the graphs so far, batch by batch: after an interruption those are not predicted again.
    """
    device, vocabulary = next(model.parameters()).device, env.vocabulary
    batch = max(1, min(BATCH, BATCH_PIXELS // (model.config.width * model.config.height)))
    possible = torch.from_numpy(env.world.rules.allowed_predicates(len(vocabulary.categories), vocabulary.predicates)).to(device)
    file, rows = open_growing(kept) if kept else (None, [])
    graphs = [make_graph(**graph) for row in rows for graph in row["graphs"]]
    with progress(len(images.names), "predict", "image", leave=False, done=len(graphs)) as bar, file or nullcontext():
        for start in range(len(graphs), len(images.names), batch):
            names, cameras = images.names[start:start + batch], images.cameras[start:start + batch]
            pixels = torch.stack([load_tensor(images.folder / n, model.config.width, model.config.height) for n in names])
            with torch.no_grad():
                predictions = model.predict(model.features(pixels.to(device).float() / 255), possible)
            new = [to_graph(prediction, name, camera.width, camera.height, object_threshold, predicate_threshold)
                   for name, camera, prediction in zip(names, cameras, predictions)]
            if file:
                add_line(file, {"graphs": [_every_digit(graph) for graph in new]})
            graphs += new
            bar.update(len(names))
    return graphs


def _every_digit(graph: SceneGraph) -> dict:
    """For JSON; unlike `graph.to_json` nothing is rounded."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(graph).items()}


def thresholds(graphs: list[SceneGraph], env: Env, threshold: float) -> list[float]:
    """Per category the confidence below which its objects are not lifted (tau of the paper).

    Of an adaptive environment: a network new to a category is never sure of it, so `threshold` is a share of the
    confidence that the surest tenth of the images reaches with its best object of the category. No labels are needed.
    """
    levels = []
    for label in range(len(env.vocabulary.categories)):
        best = [graph.scores[graph.labels == label].max() for graph in graphs if (graph.labels == label).any()]
        sure = float(np.quantile(best, 0.9)) if best and env.adaptive else 1.0
        levels.append(max(threshold * sure, min(threshold, LEAST_SURE)))
    return levels


def confident(graph: SceneGraph, object_thresholds: list[float], relation_threshold: float) -> SceneGraph:
    """The graph without objects below their category's threshold and relations below theirs."""
    graph = select_objects(graph, graph.scores >= np.array(object_thresholds)[graph.labels])
    sure = graph.relation_scores >= relation_threshold
    return replace(graph, relations=graph.relations[sure], relation_scores=graph.relation_scores[sure])
