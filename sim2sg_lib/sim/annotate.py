"""Exact labels of rendered scenes: boxes and visibility from what the pixels show, relations from 3-D."""
import numpy as np
import torch

from sim2sg_lib.camera import Cameras
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, make_graph, select_objects
from sim2sg_lib.scene import Scene, relations
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.rasterizer import Fragments, edges_px, object_pixels, scale_cameras

COUNTED_FROM = 200_000  # in images of so many pixels, what an object would show alone is counted once a pixel


def annotate(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], env: Env,
             images: list[str]) -> list[SceneGraph]:
    """Label B rendered scenes: the graphs of `annotate_objects`."""
    return annotate_objects(fragments, meshes, cameras, scenes, env, images)[0]


def annotate_objects(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], env: Env,
                     images: list[str]) -> tuple[list[SceneGraph], list[list[int]]]:
    """Label B rendered scenes; returns their graphs, and of each graph's rows which of the scene's objects they are.

    `fragments` may be finer than the cameras' size; boxes are in the cameras' pixels.
    Objects that show less than env.world.min_visible_fraction of the image are left out, with their relations.
    `visible` compares the pixels an object shows with those it would show alone; `truncated` is the share of its
    projected box outside the image.
    """
    width, height = cameras.width, cameras.height
    fine = fragments.pix_to_face.shape[2] // width
    boxes, shown = visible_boxes(fragments, meshes)
    labeled = shown >= env.world.min_visible_fraction * (fine * width) * (fine * height)
    coarse = 1 if width * height >= COUNTED_FROM else fine
    alone = object_pixels(meshes, scale_cameras(cameras, coarse), cull_backfaces=True).cpu().numpy() * (fine / coarse) ** 2
    truncated = truncated_share(meshes, cameras)
    graphs, kept, first = [], [], 0
    for scene, image in zip(scenes, images):
        rows = slice(first, first + len(scene.objects))
        first = rows.stop
        graph = make_graph(
            image, width, height, [o.label for o in scene.objects], boxes[rows] / fine,
            relations(scene.objects, scene.camera, env.vocabulary.predicates, env.world.rules),
            visible=np.clip(shown[rows] / np.maximum(alone[rows], 1), 0, 1), truncated=truncated[rows])
        graphs.append(select_objects(graph, labeled[rows]))
        kept.append(np.flatnonzero(labeled[rows]).tolist())
    return graphs, kept


def visible_boxes(fragments: Fragments, meshes: Meshes) -> tuple[np.ndarray, np.ndarray]:
    """(O, 4) float64 tight boxes in the fragments' pixels and (O,) pixel counts of what each object shows."""
    b, row, column = torch.nonzero(fragments.pix_to_face[..., 0] >= 0, as_tuple=True)
    thing = meshes.face_object[fragments.pix_to_face[b, row, column, 0]]
    count = len(meshes.object_scene)
    shown = torch.bincount(thing, minlength=count)
    boxes = torch.zeros(count, 4, dtype=torch.int64, device=thing.device)
    for axis, value in ((0, column), (1, row)):
        boxes[:, axis] = boxes[:, axis].scatter_reduce(0, thing, value, "amin", include_self=False)
        boxes[:, axis + 2] = boxes[:, axis + 2].scatter_reduce(0, thing, value + 1, "amax", include_self=False)
    return boxes.cpu().numpy().astype(np.float64), shown.cpu().numpy()


def truncated_share(meshes: Meshes, cameras: Cameras) -> np.ndarray:
    """(O,) share of each object's projected box that lies outside the image, as KITTI's `truncated`.

    What reaches behind the camera is cut off at the near plane first.
    """
    ends, drawn = edges_px(cameras.homogeneous_px(meshes.verts_world, meshes.vert_scene)[meshes.faces])  # (F, E, 2, 2)
    seen, index = drawn[..., None, None], meshes.face_object[:, None].expand(-1, 2)
    blank = ends.new_zeros(len(meshes.object_scene), 2)
    low = blank.scatter_reduce(0, index, torch.where(seen, ends, torch.inf).amin((1, 2)), "amin", include_self=False)
    high = blank.scatter_reduce(0, index, torch.where(seen, ends, -torch.inf).amax((1, 2)), "amax", include_self=False)
    size = ends.new_tensor([cameras.width, cameras.height])
    inside = (high.minimum(size) - low.clamp(min=0)).clamp(min=0).prod(1)
    share = 1 - inside / (high - low).prod(1).clamp(min=1e-9)
    return torch.where(low[:, 0] < high[:, 0], share, 1.0).clamp(0, 1).cpu().numpy().astype(np.float64)
