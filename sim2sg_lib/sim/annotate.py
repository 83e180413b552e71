"""Exact labels of rendered scenes: boxes and visibility from the pixels, relations from 3-D."""
import numpy as np
import torch

from sim2sg_lib.camera import Cameras
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, make_graph, select_objects
from sim2sg_lib.scene import Scene, relations
from sim2sg_lib.sim.large_images import is_large
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.rasterizer import Fragments, edges_px, object_pixels, scale_cameras


def annotate(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], env: Env,
             images: list[str]) -> tuple[list[SceneGraph], list[list[int]]]:
    """The graphs of B rendered scenes, and for each graph which objects of its scene its rows are.

    fragments: of the same views, finer by a whole factor; boxes are in the pixels of the cameras.
    `visible` is the fraction of an object's pixels that nothing hides, `truncated` the fraction of
    its projected box outside the image.
    """
    width, height = cameras.width, cameras.height
    fine = fragments.pix_to_face.shape[2] // width
    boxes, shown = visible_boxes(fragments, meshes)
    labeled = shown >= env.world.min_visible_fraction * (fine * width) * (fine * height)
    coarse = 1 if is_large(cameras) else fine
    alone = object_pixels(meshes, scale_cameras(cameras, coarse))
    alone = alone.cpu().numpy() * (fine / coarse) ** 2
    visible = np.clip(shown / np.maximum(alone, 1), 0, 1)
    truncated = truncated_fractions(meshes, cameras)
    graphs, object_rows, first = [], [], 0
    for scene, image in zip(scenes, images):
        rows = slice(first, first + len(scene.objects))
        first = rows.stop
        found = relations(scene.objects, scene.camera, env.vocabulary.predicates, env.world.rules)
        labels = [o.label for o in scene.objects]
        graph = make_graph(image, width, height, labels, boxes[rows] / fine, found,
                           visible=visible[rows], truncated=truncated[rows])
        graphs.append(select_objects(graph, labeled[rows]))
        object_rows.append(np.flatnonzero(labeled[rows]).tolist())
    return graphs, object_rows


def visible_boxes(fragments: Fragments, meshes: Meshes) -> tuple[np.ndarray, np.ndarray]:
    """Tight boxes (O, 4) float64 in pixels of the fragments, and pixel counts (O,)."""
    b, row, column = torch.nonzero(fragments.pix_to_face[..., 0] >= 0, as_tuple=True)
    object_index = meshes.face_object[fragments.pix_to_face[b, row, column, 0]]
    count = len(meshes.object_scene)
    shown = torch.bincount(object_index, minlength=count)
    blank = torch.zeros(count, dtype=torch.int64, device=object_index.device)
    sides = (column, "amin"), (row, "amin"), (column + 1, "amax"), (row + 1, "amax")
    boxes = torch.stack([blank.scatter_reduce(0, object_index, values, which, include_self=False)
                         for values, which in sides], 1)
    return boxes.cpu().numpy().astype(np.float64), shown.cpu().numpy()


def truncated_fractions(meshes: Meshes, cameras: Cameras) -> np.ndarray:
    """(O,) fraction of each object's projected box outside the image, as KITTI's `truncated`."""
    corners = cameras.homogeneous_px(meshes.verts_world, meshes.vert_scene)[meshes.faces]
    ends, drawn = edges_px(corners)  # (F, E, 2, 2), clipped at the near plane
    seen, index = drawn[..., None, None], meshes.face_object[:, None].expand(-1, 2)
    low = torch.where(seen, ends, torch.inf).amin((1, 2))
    high = torch.where(seen, ends, -torch.inf).amax((1, 2))
    blank = ends.new_zeros(len(meshes.object_scene), 2)
    low = blank.scatter_reduce(0, index, low, "amin", include_self=False)
    high = blank.scatter_reduce(0, index, high, "amax", include_self=False)
    size = ends.new_tensor([cameras.width, cameras.height])
    inside = (high.minimum(size) - low.clamp(min=0)).clamp(min=0).prod(1)
    outside = 1 - inside / (high - low).prod(1).clamp(min=1e-9)
    fraction = torch.where(low[:, 0] < high[:, 0], outside, 1.0).clamp(0, 1)
    return fraction.cpu().numpy().astype(np.float64)
