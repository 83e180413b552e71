"""Label alignment's geometry: a predicted SceneGraph becomes 3-D objects (Prakash et al. 2021, sections 4.1 and A.2).

Known camera, flat ground: the ray through the bottom centre of a box meets the ground where the object's nearest edge
stands, not its centre. So the asset itself is projected, and the aim is corrected until the projection's bottom centre
is the box's; the asset's size and yaw are those whose projection fits the box best.
"""
import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.meshes import place
from sim2sg_lib.scene import SceneObject, predicate_axes

YAW_DRAWS = 12         # random yaws tried for each size: a box says little about yaw, so it stays random
AIM_STEPS = 4          # projections of an asset; each but the last corrects the aim about tenfold
NEAREST_M = 1.0        # an object nearer to the camera than this is a false detection
RELATION_SWEEPS = 50   # most rounds of corrections by the relations
DUPLICATE_SHARE = 0.5  # two solids cannot stand closer than this share of their two radii


def lift(graph: SceneGraph, camera: Camera, env: Env, threshold: float,
         rng: np.random.Generator) -> tuple[list[SceneObject], SceneGraph]:
    """Objects without appearance, ready for env.dress, and what is left of the graph: its objects in the same order.

    graph: as predicted, boxes in pixels of graph.width x graph.height; camera: its view, of any pixel size.
    threshold: objects and relations below it are dropped (tau of the paper).
    """
    graph = select_objects(graph, graph.scores >= threshold)
    camera = camera.resized(graph.width, graph.height)
    objects = [lift_box(int(label), box, camera, env, rng) for label, box in zip(graph.labels, graph.boxes_px)]
    graph, objects = drop_impossible(graph, objects, camera)
    confident = graph.relation_scores >= threshold
    positions = refine_by_relations(
        np.array([o.position_world for o in objects]).reshape(-1, 3), graph.relations[confident],
        graph.relation_scores[confident], predicate_axes(camera), env)
    placed = [SceneObject(o.label, o.asset, tuple(map(float, position)), o.size_m, o.yaw_rad)
              for o, position in zip(objects, positions)]
    return placed, graph


def lift_box(label: int, box_px: np.ndarray, camera: Camera, env: Env, rng: np.random.Generator) -> SceneObject:
    """The asset, size, yaw and ground position whose projection fits one box (4,) best, among random yaws."""
    asset = str(rng.choice(env.category_assets[label]))
    best, best_error = None, np.inf
    for size_m in env.category_sizes_m[label]:
        for yaw_rad in rng.uniform(0, 2 * np.pi, YAW_DRAWS):
            verts_m = place(env.assets[asset], (0, 0, 0), size_m, yaw_rad).verts
            position, projected_px = aim(verts_m, box_px, camera)
            error = np.abs(projected_px - box_px).sum()
            if error < best_error:
                best, best_error = SceneObject(label, asset, tuple(map(float, position)), size_m, float(yaw_rad)), error
    return best


def aim(verts_m: np.ndarray, box_px: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Move an asset (V, 3) over the ground until its projected box has the bottom centre of `box_px` (4,).

    Returns its position (3,) in the world and the projected box (4,), clipped to the image.
    """
    wanted_px = np.array([(box_px[0] + box_px[2]) / 2, box_px[3]])
    aim_px = wanted_px.copy()
    for _ in range(AIM_STEPS):
        position = camera.ground_point(aim_px)
        projected_px = projected_box(verts_m + position, camera)
        aim_px += wanted_px - [(projected_px[0] + projected_px[2]) / 2, projected_px[3]]
    return position, projected_px


def projected_box(verts_world: np.ndarray, camera: Camera) -> np.ndarray:
    """(4,) the box of projected points (V, 3), clipped to the image; points behind the camera count as just before it."""
    points_camera = verts_world @ camera.R.T + camera.t
    depth_m = np.maximum(points_camera[:, 2:], 1e-2)
    points_px = points_camera[:, :2] / depth_m * np.diag(camera.K)[:2] + camera.K[:2, 2]
    size = (camera.width, camera.height)
    return np.concatenate([points_px.min(0).clip(0, size), points_px.max(0).clip(0, size)])


def drop_impossible(graph: SceneGraph, objects: list[SceneObject],
                    camera: Camera) -> tuple[SceneGraph, list[SceneObject]]:
    """Drop objects at the lens, and the less certain of two that would stand inside one another."""
    keep = np.zeros(len(objects), bool)
    for i in np.argsort(-graph.scores, kind="stable"):
        position = np.array(objects[i].position_world)
        apart = all(np.linalg.norm(position - objects[j].position_world)
                    >= DUPLICATE_SHARE * (radius_m(objects[i]) + radius_m(objects[j])) for j in np.flatnonzero(keep))
        keep[i] = apart and camera.project(position[None])[1][0] > NEAREST_M + radius_m(objects[i])
    return select_objects(graph, keep), [o for o, kept in zip(objects, keep) if kept]


def radius_m(item: SceneObject) -> float:
    """Half the mean width of the footprint."""
    return (item.size_m[0] + item.size_m[1]) / 4


def refine_by_relations(positions: np.ndarray, relations: np.ndarray, scores: np.ndarray, axes: dict[str, np.ndarray],
                        env: Env) -> np.ndarray:
    """Move objects along the ground until the relations (R, 3) hold, where the positions (N, 3) contradict them.

    Each violated relation moves its two ends apart by half of what is missing, in rounds. Of two relations that
    contradict one another, the one with the higher score counts.
    """
    positions = positions.copy()
    wanted = {}
    for (s, p, o), _ in sorted(zip(map(tuple, relations), scores), key=lambda row: row[1]):
        axis = axes[env.vocabulary.predicates[p]]
        # <s, left, o> and <o, right, s> say the same and share a key: the last written, most certain, wins
        line = int(np.argmax([abs(axis @ other) for other in axes.values()]))
        wanted[min(s, o), max(s, o), line] = (s, o, axis)
    for _ in range(RELATION_SWEEPS):
        moved = False
        for s, o, axis in wanted.values():
            missing = env.relation_margin_m * 1.01 - (positions[s] - positions[o]) @ axis
            if missing > 0:
                positions[s] += axis * missing / 2
                positions[o] -= axis * missing / 2
                moved = True
        if not moved:
            break
    return positions
