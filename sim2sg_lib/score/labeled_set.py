"""A test set with its labels, and the scores of predictions on it.

The only module that reads labels of a target.
"""
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError
from sim2sg_lib.dataset import ImageFolder, has_labels, open_images, read_labels
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.io.graphs import read_graphs
from sim2sg_lib.io.images import kitti_root
from sim2sg_lib.io.reading import read_json, resolve_recorded
from sim2sg_lib.score.content import content, content_gap, mix_weights
from sim2sg_lib.score.metrics import CURVES, LEVELS, Level, evaluate_graphs


@dataclass(frozen=True)
class TestSet:
    """Images and their labels.

    truth:     the labels; None without labels.
    unlabeled: categories without labels in this folder; nothing is scored for them.
    kitti:     in a KITTI folder, the KittiObjects of each image's label files; empty otherwise.
    """

    images: ImageFolder
    truth: list[SceneGraph] | None
    unlabeled: tuple[str, ...] = ()
    kitti: list[list] = field(default_factory=list)


def find_test_set(checkpoint: Path, options: dict, env: Env) -> Path:
    """The data that a checkpoint was evaluated on before, else the test set of its target.

    That is test/ or val/ beside the target (by default the stand-in target of synthesize.py), else
    the target itself if it has labels. options: of the training. Raises: InputError.
    """
    metrics = checkpoint.parent / "metrics.json"
    if metrics.exists():
        data = read_json(metrics).get("data")
        if not isinstance(data, str):
            raise InputError(f"{metrics}: data: {data!r}, expected a folder; give --data")
        return shorter(resolve_recorded(data, metrics))
    target = Path("data") / env.name / "target" / "train"
    if options["target"]:
        target = shorter(resolve_recorded(options["target"], checkpoint))
    # a stand-in for KITTI is the folder kitti/ in each split of a data set
    exported = target.name == "kitti" and os.path.exists(target.parent / "dataset.json")
    parent, inside = (target.parent.parent, "kitti") if exported else (target.parent, ".")
    for name in ("test", "val"):
        if os.path.isdir(parent / name / inside):
            return parent / name / inside
    if os.path.isdir(target) and has_labels(target):
        return target
    raise InputError(f"no test set beside {target}: give --data")


def shorter(path: Path) -> Path:
    """The path relative to the working directory, if it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def open_test_set(data: Path, env: Env, van: str | None, camera: str | None) -> TestSet:
    """Open images and, if there are any, labels. van, camera: for KITTI. Raises: InputError."""
    images, root = open_images(data, env, camera), kitti_root(data)
    if not has_labels(data) and not van:
        return TestSet(images, None)
    if not root:
        return TestSet(images, read_labels(images, env, van))
    from sim2sg_lib.io.kitti import frame_labels, to_graph, unlabeled_categories
    objects = frame_labels(root, images.names, env)
    truth = [to_graph(name, items, view, env, van or "ignore")
             for name, items, view in zip(images.names, objects, images.cameras)]
    return TestSet(images, truth, unlabeled_categories(root, env), objects)


def score(test_set: TestSet, predicted: list[SceneGraph], newest: float | None,
          sources: list[list[SceneGraph] | None], env: Env, split: str) -> tuple[dict, dict]:
    """The scores of a labeled test set for metrics.json, and the curves for curves.json.

    newest: as for `mix_weights`. sources: labels of each data set that the network was trained on,
    the newest last; None for one that is gone.
    """
    level, truth, kitti_scores = LEVELS[split], test_set.truth, {}
    levels = {name: LEVELS[name] for name in ("easy", "moderate", "hard")}
    if test_set.kitti:
        from sim2sg_lib.score.kitti_ap import folder_scores, has_kitti_size
        if has_kitti_size(truth):
            level = replace(level, scaled=False)
            levels = {name: replace(one, scaled=False) for name, one in levels.items()}
            kitti_scores = {"kitti": folder_scores(test_set.kitti, predicted, env.vocabulary)}
    predicted = without_categories(predicted, test_set.unlabeled, env)
    scores = evaluate_graphs(truth, predicted, env.vocabulary, level)
    curves = {name: scores.pop(name) for name in CURVES}
    if test_set.kitti:
        scores["levels"] = {name: level_scores(truth, predicted, env, one)
                            for name, one in levels.items()}
    target = content(truth, env.vocabulary)
    scores["content_gap"] = scores["content_gap_mix"] = None
    curves["content"] = {"source": None, "target": target}
    if sources[-1] is not None:
        newest_set = without_categories(sources[-1], test_set.unlabeled, env)
        curves["content"]["source"] = content(newest_set, env.vocabulary)
        scores["content_gap"] = content_gap(curves["content"]["source"], target)
    if None not in sources:
        together = [graph for graphs in sources for graph in graphs]
        mix = without_categories(together, test_set.unlabeled, env)
        weights = mix_weights(list(map(len, sources)), newest)
        scores["content_gap_mix"] = content_gap(content(mix, env.vocabulary, weights), target)
    return scores | kitti_scores, curves


def level_scores(truth: list[SceneGraph], predicted: list[SceneGraph], env: Env,
                 level: Level) -> dict:
    """The main scores at one of KITTI's difficulties, for `levels` in metrics.json."""
    scores = evaluate_graphs(truth, predicted, env.vocabulary, level)
    return {name: scores[name] for name in ("map50", "ap50", "recall", "recall_ceiling")}


def read_sources(sources: list[str], checkpoint: Path, env: Env) -> list[list[SceneGraph] | None]:
    """The labels of each --source of a checkpoint's training; None for one that is gone."""
    paths = [resolve_recorded(source, checkpoint) / "graphs.jsonl" for source in sources]
    return [read_graphs(path, env.vocabulary) if os.path.exists(path) else None for path in paths]


def without_categories(graphs: list[SceneGraph], names: tuple[str, ...],
                       env: Env) -> list[SceneGraph]:
    """The graphs without the objects of some categories."""
    kept = np.array([name not in names for name in env.vocabulary.categories])
    return [select_objects(graph, kept[graph.labels]) for graph in graphs] if names else graphs


def notes(test_set: TestSet, env: Env) -> list[str]:
    """Remarks on scores of a folder in KITTI's format, one line each."""
    lines = []
    if test_set.unlabeled:
        labeled = [name for name in env.vocabulary.categories if name not in test_set.unlabeled]
        lines.append(f"no labels of {' and '.join(test_set.unlabeled)} (label_2_extra/): scores "
                     f"are for {' and '.join(labeled)} only")
    if test_set.kitti:
        from sim2sg_lib.io.kitti import written_by_export
        from sim2sg_lib.score.kitti_ap import has_kitti_size
        if has_kitti_size(test_set.truth) and written_by_export(test_set.images.folder):
            lines.append(f"{test_set.images.folder} is one of our data sets in KITTI's format: "
                         "its AP11 and AP40 are no scores on KITTI")
    return lines
