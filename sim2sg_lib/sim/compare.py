"""Render and compare: the judge of a detection is the render, not the network's confidence.

Every box of a predicted graph is lifted as every category, at a few yaws, and rendered with the
colors, light and shadows that explain the pixels around it best (explain.py). The category with the
smallest residual wins. An object that explains its pixels no better than the ground does, or than
the objects that explain more, is dropped. The network's scores are not looked at.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import progress
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.io.files import add_line, open_growing
from sim2sg_lib.io.graphs import from_json, to_json
from sim2sg_lib.io.images import read_image
from sim2sg_lib.scene import Scene, SceneObject
from sim2sg_lib.sim.chunks import in_parallel
from sim2sg_lib.sim.explain import (MARGIN, Crops, Explained, cut_crops, draw_templates, explain,
                                    explain_by_ground, paste, pick_cells)
from sim2sg_lib.sim.lift import aim
from sim2sg_lib.sim.meshes import pose_mesh

YAWS = 24          # of an object that may turn freely; those that look the same count once
PER_CATEGORY = 8   # objects that are rendered for each box
SAME_SHAPE = 0.07  # of its extent: turned vertices that are all this near to others look the same
CLIPPED = 0.6      # residuals count up to this sum over channels: what is not modeled is no evidence
MIN_GAIN = 0.45    # share of the residual of its pixels that an object must explain to be kept
MIN_LEFT = 0.5     # share of a dropped box that kept objects leave, for a second look
MIN_SEEN = 0.25    # share of its pixels that others do not explain, on which it may be judged alone


@dataclass(frozen=True)
class Report:
    """What render_and_compare changed in some graphs."""

    objects: int  # that were compared
    relabeled: int
    dropped: int

    def __add__(self, other: "Report") -> "Report":
        return Report(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


@dataclass(frozen=True)
class Shapes:
    """What is the same for all images of an environment."""

    yaws_rad: dict[str, list[float]]  # of each asset, those at which it looks different
    light: Scene  # without objects, in the light of the source's first random look

    @staticmethod
    def of(env: Env) -> "Shapes":
        generator = np.random.default_rng(0)
        light = env.world.sample_appearance([], env.world.camera, "source", "paper", generator)
        return Shapes({asset: distinct_yaws(asset, label, env)
                       for label, assets in enumerate(env.world.category_assets) for asset in assets}, light)


@torch.no_grad()
def render_and_compare(graph: SceneGraph, image: Tensor, camera: Camera, env: Env,
                       shapes: Shapes | None = None) -> tuple[SceneGraph, Report]:
    """The graph with the categories whose renders explain the image best, without empty boxes.

    image:  (3, H, W) display values, of the size of the graph; on its device everything is computed.
    camera: its view, of any pixel size.

    Ignore regions, ignored objects and boxes thinner than a pixel stay as they are. Relations that
    the rules exclude for new categories are left out.
    """
    boxes_px = graph.boxes_px.clip(0, [graph.width, graph.height] * 2)
    judged = np.flatnonzero(graph.is_ground_truth & (boxes_px[:, 2:] - boxes_px[:, :2] >= 1).all(1))
    if len(judged) == 0:
        return graph, Report(0, 0, 0)
    camera = camera.resized(graph.width, graph.height)
    camera = camera.moved(-camera.offset_from(env.world.camera))  # lamps are placed relative to it
    labels, kept = compare_boxes(boxes_px[judged], image, camera, env, shapes or Shapes.of(env))
    changed = graph.labels.copy()
    changed[judged] = labels
    report = Report(len(judged), int((changed != graph.labels)[judged[kept]].sum()), int((~kept).sum()))
    keep = np.ones(len(graph), bool)
    keep[judged] = kept
    allowed = env.world.rules.allowed_predicates(len(env.vocabulary.categories), env.vocabulary.predicates)
    s, p, o = graph.relations.T
    valid = allowed[p, changed[s], changed[o]]
    graph = replace(graph, labels=changed, relations=graph.relations[valid],
                    relation_scores=graph.relation_scores[valid])
    return select_objects(graph, keep), report


def compare_folder(graphs: list[SceneGraph], paths: list[Path], cameras: list[Camera], env: Env,
                   device: torch.device, kept: Path) -> tuple[list[SceneGraph], Report]:
    """render_and_compare of graphs with their images; graphs beyond the paths stay as they are.

    kept: file of the results so far; after an interruption they are not computed again.
    Raises: InputError for an image that cannot be read.
    """
    def compare(chunk: range) -> list[tuple[SceneGraph, Report]]:
        made = []
        for i in chunk:
            pixels = read_image(paths[i], graphs[i].width, graphs[i].height)
            image = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1).float() / 255
            made.append(render_and_compare(graphs[i], image, cameras[i], env, shapes))
        return made

    shapes = Shapes.of(env)
    file, done = open_growing(kept)
    rows = [(from_json(row["graph"], env.vocabulary), Report(**row["report"])) for row in done]
    left = [range(i, i + 1) for i in range(len(rows), len(paths))]
    with file, progress(len(paths), "compare", "image", done=len(rows)) as bar:
        for made in in_parallel(compare, left, device):
            for graph, report in made:
                row = to_json(graph, env.vocabulary)
                add_line(file, {"graph": row, "report": vars(report)})
                # read back, so that an interruption changes no digit
                rows.append((from_json(row, env.vocabulary), report))
            bar.update(len(made))
    return ([graph for graph, _ in rows] + graphs[len(rows):],
            sum((report for _, report in rows), Report(0, 0, 0)))


def compare_boxes(boxes_px: np.ndarray, image: Tensor, camera: Camera, env: Env, shapes: Shapes
                  ) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes (N, 4) in an image (3, H, W): the best category (N,) and whether to keep it (N,)."""
    seen = [clear_of(i, boxes_px, image) for i in range(len(boxes_px))]
    crops = cut_crops(image, boxes_px, seen)
    lifted = [lift_as_all(box_px, camera, env, shapes) for box_px in boxes_px]
    found = Candidates.of(lifted, crops, camera, env, shapes.light)
    labels, (kept, explained) = found.labels(), worth_keeping(found, crops, image)
    # what hides others is in their boxes: a second look at the dropped ones without those pixels
    seen = [pixels & ~explained for pixels in seen]
    rows = [i for i in np.flatnonzero(~kept) if enough_left(boxes_px[i], explained)]
    if kept.any() and rows:
        crops = cut_crops(image, boxes_px[rows], [seen[i] for i in rows])
        found = Candidates.of([lifted[i] for i in rows], crops, camera, env, shapes.light)
        labels[rows], kept[rows] = found.labels(), worth_keeping(found, crops, image)[0]
    return labels, kept


# --- candidates -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Candidates:
    """H objects that may be behind N boxes, explained."""

    objects: list[SceneObject]
    row: Tensor  # (H,) int64, the box of each
    explained: Explained
    cost: Tensor  # (H,) mean residual around the box
    best: Tensor  # (N,) int64, of each box the object with the lowest cost

    @staticmethod
    def of(lifted: list[list[SceneObject]], crops: Crops, camera: Camera, env: Env,
           light: Scene) -> "Candidates":
        """Those of each of N boxes, explained in its crop."""
        row = torch.tensor([i for i, items in enumerate(lifted) for _ in items])
        objects = [item for items in lifted for item in items]
        explained = explain(draw_templates(objects, row, crops, camera, env, light), row, crops)
        weight = crops.weight[row]
        total = weight.sum((1, 2)).clamp(min=1e-6)
        cost = (explained.residual.clamp(max=CLIPPED) * weight).sum((1, 2)) / total
        best = [int(cost[row == i].argmin() + (row < i).sum()) for i in range(len(lifted))]
        return Candidates(objects, row, explained, cost, torch.tensor(best))

    def labels(self) -> np.ndarray:
        """(N,) int64 categories of the best objects."""
        return np.array([self.objects[i].label for i in self.best], np.int64)


def lift_as_all(box_px: np.ndarray, camera: Camera, env: Env, shapes: Shapes) -> list[SceneObject]:
    """Per category the objects that fit a box (4,) best, of all assets, sizes and distinct yaws."""
    items = []
    for label, assets in enumerate(env.world.category_assets):
        fitting = []
        for asset in assets:
            for yaw_rad in shapes.yaws_rad[asset]:
                tried = []
                for size_m in env.world.asset_sizes_m[asset]:
                    verts_m = pose_mesh(env.world.assets[asset], (0, 0, 0), size_m, yaw_rad).verts
                    position, projected_px = aim(verts_m, box_px, camera)
                    error = np.abs(projected_px - box_px).sum()
                    tried.append((error, size_m, tuple(map(float, position))))
                error, size_m, position = min(tried)
                fitting.append((error, SceneObject(label, asset, position, size_m, yaw_rad)))
        fitting.sort(key=lambda pair: pair[0])
        items += [item for _, item in fitting[:PER_CATEGORY]]
    return items


def distinct_yaws(asset: str, label: int, env: Env) -> list[float]:
    """Yaws of lifted objects, without those at which the asset looks as at an earlier one."""
    yaws_rad = env.world.yaws_rad[label]
    distinct, trees = [], []
    for yaw_rad in np.arange(YAWS) * 2 * np.pi / YAWS if yaws_rad is None else yaws_rad:
        size_m = env.world.asset_sizes_m[asset][0]
        verts_m = pose_mesh(env.world.assets[asset], (0, 0, 0), size_m, yaw_rad).verts
        if all(tree.query(verts_m)[0].max() > SAME_SHAPE * max(size_m) for tree in trees):
            distinct.append(float(yaw_rad))
            trees.append(cKDTree(verts_m))
    return distinct


# --- which to keep --------------------------------------------------------------------------------

def around(box_px: np.ndarray, margin_px: float, image: Tensor) -> Tensor:
    """(H, W) bool, the pixels of an image (..., H, W) in a box (4,) and a margin around it."""
    x = torch.arange(image.shape[-1], device=image.device) + 0.5
    y = torch.arange(image.shape[-2], device=image.device)[:, None] + 0.5
    x0, y0, x1, y1 = box_px.tolist()
    return ((x > x0 - margin_px) & (x < x1 + margin_px)) & ((y > y0 - margin_px) & (y < y1 + margin_px))


def clear_of(i: int, boxes_px: np.ndarray, image: Tensor) -> Tensor:
    """(H, W) bool, the pixels in and around box i that are in no other box, unless also in box i."""
    margin_px = MARGIN * float((boxes_px[i, 2:] - boxes_px[i, :2]).max()) + 2
    own, clear = around(boxes_px[i], 0, image), around(boxes_px[i], margin_px, image)
    for j in range(len(boxes_px)):
        if j != i:
            clear &= ~around(boxes_px[j], 1, image) | own
    return clear


def enough_left(box_px: np.ndarray, explained: Tensor) -> bool:
    """Whether kept objects leave enough of a box (4,) to look again, and do take a part of it."""
    left = (~explained)[around(box_px, 0, explained)].float().mean()
    return MIN_LEFT <= float(left) < 1


def worth_keeping(found: Candidates, crops: Crops, image: Tensor) -> tuple[np.ndarray, Tensor]:
    """Which of the best objects explain their pixels better than what is there without them.

    Returns (N,) bool, and (H, W) bool, the pixels that the kept ones cover.

    One object after the other, first those that explain most: without it there are the ground and
    the objects kept before. Where those explain the pixels, it is judged on the others, if enough.
    """
    ground, masks = explain_by_ground(crops), found.explained.coverage[found.best] > 0.5
    residual = found.explained.residual[found.best]
    gain = ((ground - residual) * crops.weight * masks).sum((1, 2)).cpu()
    gain *= torch.from_numpy(crops.cell_px) ** 2
    kept = np.zeros(len(masks), bool)
    blank = image.new_full(image.shape[1:], -1.0)  # the residual of kept objects, -1 elsewhere
    for i in gain.argsort(descending=True, stable=True).tolist():
        before = pick_cells(blank, crops.corner_px[i], crops.cell_px[i])
        taken = before >= 0
        weight = crops.weight[i] * masks[i]
        without = torch.where(taken, before, ground[i])
        alone = weight * ~taken
        judged = [weight] + [alone] * bool(alone.sum() >= MIN_SEEN * weight.sum())
        shares = [((without - residual[i]) * part).sum() / (without * part).sum().clamp(min=1e-6)
                  for part in judged]
        kept[i] = max(map(float, shares)) >= MIN_GAIN
        if kept[i]:
            painted = torch.where(masks[i], residual[i], before)
            blank = paste(painted, crops.corner_px[i], crops.cell_px[i], blank)
    return kept, blank >= 0
