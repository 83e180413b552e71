"""Label alignment's geometry: a predicted SceneGraph becomes 3-D objects (Prakash et al. 2021, sections 4.1 and A.2).

Known camera, flat ground: the ray through the bottom center of a box meets the ground where the object's nearest edge
stands, not its center. So the asset itself is projected, and the aim is corrected until the projection's bottom center
is the box's; the asset's size and yaw are those whose projection fits the box best.
"""
from dataclasses import replace

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.scene import SceneObject, from_footprint, predicate_axes, to_footprint
from sim2sg_lib.sim.meshes import place

YAW_DRAWS = 12         # random yaws tried for each size: a box says little about yaw, so it stays random
AIM_STEPS = 4          # projections of an asset; each but the last corrects the aim about tenfold
NEAREST_M = 1.0        # an object nearer to the camera than this is a false detection
RELATION_SWEEPS = 50   # most rounds of corrections by the relations
DUPLICATE_SHARE = 0.5  # two solids cannot stand closer than this share of their two radii


def lift(graph: SceneGraph, camera: Camera, env: Env, rng: np.random.Generator) -> tuple[list[SceneObject], SceneGraph]:
    """Objects without appearance, ready for env.world.snap_to_context and env.world.sample_appearance, and what is left of the graph: its objects in the
    same order.

    graph: boxes in pixels of graph.width x graph.height, all of it is believed; camera: its view, of any pixel size.
    """
    camera = camera.resized(graph.width, graph.height)
    objects = [lift_box(int(label), box, camera, env, rng) for label, box in zip(graph.labels, graph.boxes_px)]
    below = find_supports(graph, env)
    for upper in bottom_up(below):
        objects[upper] = lift_onto(objects[below[upper]], int(graph.labels[upper]), graph.boxes_px[upper], camera, env, rng)
    keep = possible(graph, objects, below, camera)
    below = np.where(below[keep] >= 0, np.cumsum(keep)[below[keep]] - 1, -1)
    graph, objects = select_objects(graph, keep), [o for o, kept in zip(objects, keep) if kept]
    positions = np.array([o.position_world for o in objects]).reshape(-1, 3)
    moved = refine_by_relations(positions, graph.relations, graph.relation_scores, below, predicate_axes(camera), env)
    return [replace(o, position_world=tuple(map(float, position))) for o, position in zip(objects, moved)], graph


def lift_box(label: int, box_px: np.ndarray, camera: Camera, env: Env, rng: np.random.Generator,
             height_m: float = 0.0) -> SceneObject:
    """The asset, size, yaw and position at a height whose projection fits one box (4,) best, among random yaws."""
    asset = str(rng.choice(env.world.category_assets[label]))
    best, best_error = None, np.inf
    for size_m in env.world.asset_sizes_m[asset]:
        yaws_rad = env.world.yaws_rad[label]
        for yaw_rad in rng.uniform(0, 2 * np.pi, YAW_DRAWS) if yaws_rad is None else yaws_rad:
            verts_m = place(env.world.assets[asset], (0, 0, 0), size_m, yaw_rad).verts
            position, projected_px = aim(verts_m, box_px, camera, height_m)
            error = np.abs(projected_px - box_px).sum()
            if error < best_error:
                best, best_error = SceneObject(label, asset, tuple(map(float, position)), size_m, float(yaw_rad)), error
    return weigh_depths(best, box_px, camera, env) if env.world.pitch_spread_rad else best


def weigh_depths(item: SceneObject, box_px: np.ndarray, camera: Camera, env: Env) -> SceneObject:
    """Move an object along its line of sight, between the depth its box's bottom edge says and the one its height says.

    The first errs with the square of the depth where the ground is not level, the second with the spread of sizes:
    inverse variances weigh them. A box cut off by the image says nothing of the height.
    """
    if box_px[1] <= 1 or box_px[3] >= camera.height - 1:
        return item
    position, eye = np.array(item.position_world), camera.position_world
    projected_px = projected_box(place(env.world.assets[item.asset], position, item.size_m, item.yaw_rad).verts, camera)
    depth_m, eye_m = camera.project(position[None])[1][0], eye[2]
    near_m = radius_m(item)  # a box's edges belong to what of the object is nearest
    depth_by_height_m = (depth_m - near_m) * (projected_px[3] - projected_px[1]) / (box_px[3] - box_px[1]) + near_m
    ground_weight = (eye_m / (depth_m ** 2 * env.world.pitch_spread_rad)) ** 2
    height_weight = 1 / (depth_by_height_m * env.world.size_spreads[item.label]) ** 2
    weighed_m = (ground_weight * depth_m + height_weight * depth_by_height_m) / (ground_weight + height_weight)
    x, y = eye[:2] + (position - eye)[:2] * (weighed_m / depth_m)
    return replace(item, position_world=(float(x), float(y), item.position_world[2]))


def aim(verts_m: np.ndarray, box_px: np.ndarray, camera: Camera, height_m: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Move an asset (V, 3) over the plane z = height_m until its projected box has the bottom center of `box_px` (4,).

    Returns its position (3,) in the world and the projected box (4,), clipped to the image.
    """
    wanted_px = np.array([(box_px[0] + box_px[2]) / 2, box_px[3]])
    aim_px = wanted_px.copy()
    for _ in range(AIM_STEPS):
        position = camera.ground_point(aim_px, height_m)
        projected_px = projected_box(verts_m + position, camera)
        aim_px += wanted_px - [(projected_px[0] + projected_px[2]) / 2, projected_px[3]]
    return position, projected_px


def find_supports(graph: SceneGraph, env: Env) -> np.ndarray:
    """(N,) int64, the object that each one stands on as its most certain `on` relation says, -1 for the ground.

    Of relations that lead in a circle, two books on one another, the least certain does not count.
    """
    below, predicates = np.full(len(graph), -1), env.vocabulary.predicates
    allowed = env.world.rules.allowed_predicates(len(env.vocabulary.categories), predicates)
    for row in np.argsort(-graph.relation_scores, kind="stable"):
        s, p, o = graph.relations[row]
        stands = predicates[p] == "on" and allowed[p, graph.labels[s], graph.labels[o]] and graph.relation_scores[row] > 0
        if stands and below[s] < 0 and s not in pile(o, below):
            below[s] = o
    return below


def bottom_up(below: np.ndarray) -> list[int]:
    """Those of N objects that stand on another, each after the one it stands on; below (N,) as find_supports gives it."""
    return sorted(np.flatnonzero(below >= 0).tolist(), key=lambda i: len(pile(i, below)))


def pile(i: int, below: np.ndarray) -> list[int]:
    """An object and those under it, down to the ground; below (N,) as find_supports gives it."""
    objects = [i]
    while below[objects[-1]] >= 0:
        objects.append(below[objects[-1]])
    return objects


def lift_onto(lower: SceneObject, label: int, box_px: np.ndarray, camera: Camera, env: Env,
              rng: np.random.Generator) -> SceneObject:
    """What stands on the lower object's top, where its box (4,) says, but never over the edge.

    A box's ray meets the ground far behind what stands on a table: until the table's height is known it says little.
    """
    height_m = lower.position_world[2] + lower.size_m[2]
    upper = lift_box(label, box_px, camera, env, rng, height_m)
    limit = np.maximum(np.array(lower.size_m[:2]) / 2 - radius_m(upper) / 2, 0)
    x, y = np.clip(to_footprint(lower, upper.position_world), -limit, limit)
    return replace(upper, position_world=(*from_footprint(lower, x, y), height_m))


def projected_box(verts_world: np.ndarray, camera: Camera) -> np.ndarray:
    """(4,) the box of projected points (V, 3), clipped to the image; points behind the camera count as just before it."""
    points_camera = verts_world @ camera.R.T + camera.t
    depth_m = np.maximum(points_camera[:, 2:], 1e-2)
    points_px = points_camera[:, :2] / depth_m * np.diag(camera.K)[:2] + camera.K[:2, 2]
    size = (camera.width, camera.height)
    return np.concatenate([points_px.min(0).clip(0, size), points_px.max(0).clip(0, size)])


def possible(graph: SceneGraph, objects: list[SceneObject], below: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,) bool: not at the lens, and not the less certain of two that would stand inside one another."""
    keep = np.zeros(len(objects), bool)
    for i in np.argsort(-graph.scores, kind="stable"):
        item = objects[i]
        apart = all(np.linalg.norm(np.subtract(item.position_world, objects[j].position_world))
                    >= DUPLICATE_SHARE * (radius_m(item) + radius_m(objects[j]))
                    for j in np.flatnonzero(keep) if side_by_side(item, objects[j]))
        depth_m = camera.project(np.array([item.position_world]))[1][0]
        keep[i] = apart and depth_m > NEAREST_M + radius_m(item)
    for upper in bottom_up(below):  # nothing is left in the air
        keep[upper] &= keep[below[upper]]
    return keep


def side_by_side(a: SceneObject, b: SceneObject) -> bool:
    """Whether two objects share a height, as those do not of which one stands on the other."""
    low, high = max(a.position_world[2], b.position_world[2]), min(o.position_world[2] + o.size_m[2] for o in (a, b))
    return high - low > 1e-3


def radius_m(item: SceneObject) -> float:
    """Half the mean width of the footprint."""
    return (item.size_m[0] + item.size_m[1]) / 4


def refine_by_relations(positions: np.ndarray, relations: np.ndarray, scores: np.ndarray, below: np.ndarray,
                        axes: dict[str, np.ndarray], env: Env) -> np.ndarray:
    """Move objects along the ground until the relations (R, 3) hold, where the positions (N, 3) contradict them.

    Each violated relation moves its two ends apart by half of what is missing, in rounds. Of two relations that
    contradict one another, the one with the higher score counts. What stands on another object, below (N,), moves with it.
    """
    start, positions, wanted = positions, positions.copy(), {}
    for (s, p, o), _ in sorted(zip(map(tuple, relations), scores), key=lambda row: row[1]):
        name = env.vocabulary.predicates[p]
        if name == "on" or below[s] >= 0 or below[o] >= 0:
            continue
        # <s, left, o> and <o, right, s> say the same and share a key: the last written, most certain, wins
        line = int(np.argmax([abs(axes[name] @ other) for other in axes.values()]))
        wanted[min(s, o), max(s, o), line] = (s, o, axes[name], env.world.rules.margins_m[name] * 1.01)
    for _ in range(RELATION_SWEEPS):
        moved = False
        for s, o, axis, margin_m in wanted.values():
            missing = margin_m - (positions[s] - positions[o]) @ axis
            if missing > 0:
                positions[s] += axis * missing / 2
                positions[o] -= axis * missing / 2
                moved = True
        if not moved:
            break
    held = below >= 0
    positions[held] += (positions - start)[below[held]]
    return positions
