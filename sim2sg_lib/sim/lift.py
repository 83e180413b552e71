"""Label alignment: a predicted SceneGraph becomes 3-D objects (Prakash et al. 2021, 4.1 and A.2).

The camera is known and the ground is flat. The ray through the bottom center of a box meets the
ground where the nearest edge of the object stands, not its center. So the asset itself is
projected, and the aim is corrected until the bottom center of its projection is that of the box;
size and yaw are those whose projection fits the box best.
"""
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.scene import SceneObject, from_footprint, predicate_axes, to_footprint
from sim2sg_lib.sim.meshes import pose_mesh

YAW_DRAWS = 12            # random yaws tried per size: boxes say little about yaw, so it stays random
AIM_STEPS = 4             # projections per asset; all but the last reduce the error tenfold
NEAREST_M = 1.0           # an object nearer to the camera is a false detection
RELATION_SWEEPS = 50      # maximum rounds of corrections by the relations
LARGEST_SHIFT = 0.25      # by relations, a fraction of an object's longer side: boxes say more
DUPLICATE_FRACTION = 0.5  # minimum distance of two solids as a fraction of the sum of their radii
CONTACT_M = 1e-6          # overlap that counts as contact


def lift(graph: SceneGraph, camera: Camera, env: Env,
         rng: np.random.Generator) -> tuple[list[SceneObject], SceneGraph]:
    """Objects without appearance, in the world of the camera, and the sub-graph of these objects.

    graph:  boxes in pixels of graph.width x graph.height; no threshold is applied. Ignore regions
            and ignored objects (`visible` 0) are left out, as in training and scoring.
    camera: its view, of any pixel size.
    """
    graph = select_objects(graph, graph.is_ground_truth)
    camera = camera.resized(graph.width, graph.height)
    objects = [lift_box(int(label), box_px, camera, env, rng)
               for label, box_px in zip(graph.labels, graph.boxes_px)]
    support = find_supports(graph, env)
    for i in bottom_up(support):
        lower, label = objects[support[i]], int(graph.labels[i])
        objects[i] = lift_onto(lower, label, graph.boxes_px[i], camera, env, rng)
    keep = plausible(graph, objects, support, camera)
    support = np.where(support[keep] >= 0, np.cumsum(keep)[support[keep]] - 1, -1)
    graph, objects = select_objects(graph, keep), [o for o, kept in zip(objects, keep) if kept]
    return refine_by_relations(objects, graph, support, predicate_axes(camera), env), graph


# --- boxes ----------------------------------------------------------------------------------------

def lift_box(label: int, box_px: np.ndarray, camera: Camera, env: Env, rng: np.random.Generator,
             height_m: float = 0.0) -> SceneObject:
    """The object whose projection fits a box (4,) best, of all sizes and random yaws."""
    asset = str(rng.choice(env.world.category_assets[label]))
    best, best_error = None, np.inf
    for size_m in env.world.asset_sizes_m[asset]:
        yaws_rad = env.world.yaws_rad[label]
        for yaw_rad in rng.uniform(0, 2 * np.pi, YAW_DRAWS) if yaws_rad is None else yaws_rad:
            verts_m = pose_mesh(env.world.assets[asset], (0, 0, 0), size_m, yaw_rad).verts
            position, projected_px = aim(verts_m, box_px, camera, height_m)
            error = np.abs(projected_px - box_px).sum()
            if error < best_error:
                best_error = error
                best = SceneObject(label, asset, tuple(map(float, position)), size_m, float(yaw_rad))
    return weigh_depths(best, box_px, camera, env) if env.world.pitch_spread_rad else best


def weigh_depths(item: SceneObject, box_px: np.ndarray, camera: Camera, env: Env) -> SceneObject:
    """Move an object along its ray to the mean of two depths, from bottom and height of its box.

    Weighted by inverse variances: where the ground is not level, the error of the first grows with
    the square of the depth; that of the second is the spread of sizes.
    """
    if box_px[1] <= 1 or box_px[3] >= camera.height - 1:  # cut off by the image
        return item
    position, eye = np.array(item.position_world), camera.position_world
    mesh = pose_mesh(env.world.assets[item.asset], position, item.size_m, item.yaw_rad)
    projected_px = projected_box(mesh.verts, camera)
    depth_m, eye_m = camera.project(position[None])[1][0], eye[2]
    near_m = radius_m(item)  # the edges of a box are those of the nearest part of the object
    projected_height_px, height_px = projected_px[3] - projected_px[1], box_px[3] - box_px[1]
    depth_by_height_m = (depth_m - near_m) * projected_height_px / height_px + near_m
    ground_weight = (eye_m / (depth_m ** 2 * env.world.pitch_spread_rad)) ** 2
    height_weight = 1 / (depth_by_height_m * env.world.size_spreads[item.label]) ** 2
    mean_m = ground_weight * depth_m + height_weight * depth_by_height_m
    mean_m = mean_m / (ground_weight + height_weight)
    x, y = eye[:2] + (position - eye)[:2] * (mean_m / depth_m)
    return replace(item, position_world=(float(x), float(y), item.position_world[2]))


def aim(verts_m: np.ndarray, box_px: np.ndarray, camera: Camera,
        height_m: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Move vertices (V, 3) on the plane z = height_m to the bottom center of a box (4,).

    Returns the position (3,) in the world and the projected box (4,), clipped to the image.
    """
    wanted_px = np.array([(box_px[0] + box_px[2]) / 2, box_px[3]])
    aim_px = wanted_px.copy()
    for _ in range(AIM_STEPS):
        position = camera.ground_point(aim_px, height_m)
        projected_px = projected_box(verts_m + position, camera)
        aim_px += wanted_px - [(projected_px[0] + projected_px[2]) / 2, projected_px[3]]
    return position, projected_px


def projected_box(verts_world: np.ndarray, camera: Camera) -> np.ndarray:
    """(4,) box of projected points (V, 3), clipped to the image; depths are at least 1 cm."""
    points_camera = verts_world @ camera.R.T + camera.t
    depth_m = np.maximum(points_camera[:, 2:], 1e-2)
    points_px = points_camera[:, :2] / depth_m * np.diag(camera.K)[:2] + camera.K[:2, 2]
    size = (camera.width, camera.height)
    return np.concatenate([points_px.min(0).clip(0, size), points_px.max(0).clip(0, size)])


# --- supports -------------------------------------------------------------------------------------

def find_supports(graph: SceneGraph, env: Env) -> np.ndarray:
    """(N,) int64, what each object stands on by its most certain `on` relation, -1 for the ground.

    In a cycle, such as two books on each other, the least certain relation does not count.
    """
    support, predicates = np.full(len(graph), -1), env.vocabulary.predicates
    allowed = env.world.rules.allowed_predicates(len(env.vocabulary.categories), predicates)
    for row in np.argsort(-graph.relation_scores, kind="stable"):
        s, p, o = graph.relations[row]
        stands = predicates[p] == "on" and allowed[p, graph.labels[s], graph.labels[o]]
        stands = stands and graph.relation_scores[row] > 0 and support[s] < 0
        if stands and s not in support_chain(o, support):
            support[s] = o
    return support


def bottom_up(support: np.ndarray) -> list[int]:
    """The objects that stand on another, each after its support; support (N,): see find_supports."""
    held = np.flatnonzero(support >= 0).tolist()
    return sorted(held, key=lambda i: len(support_chain(i, support)))


def support_chain(i: int, support: np.ndarray) -> list[int]:
    """An object and those under it, down to the ground; support (N,): see find_supports."""
    chain = [i]
    while support[chain[-1]] >= 0:
        chain.append(support[chain[-1]])
    return chain


def lift_onto(lower: SceneObject, label: int, box_px: np.ndarray, camera: Camera, env: Env,
              rng: np.random.Generator) -> SceneObject:
    """An object on the top of the lower one, where its box (4,) says, but never beyond the edge.

    The ray of a box on a table meets the ground far behind it; its own plane is the table's top.
    """
    height_m = lower.position_world[2] + lower.size_m[2]
    upper = lift_box(label, box_px, camera, env, rng, height_m)
    limit = np.maximum(np.array(lower.size_m[:2]) / 2 - radius_m(upper) / 2, 0)
    x, y = np.clip(to_footprint(lower, upper.position_world), -limit, limit)
    return replace(upper, position_world=(*from_footprint(lower, x, y), height_m))


# --- solids ---------------------------------------------------------------------------------------

def plausible(graph: SceneGraph, objects: list[SceneObject], support: np.ndarray,
              camera: Camera) -> np.ndarray:
    """(N,) bool: not at the camera, and not the less certain of two solids in one place."""
    keep = np.zeros(len(objects), bool)
    for i in np.argsort(-graph.scores, kind="stable"):
        item = objects[i]
        apart = all(np.linalg.norm(np.subtract(item.position_world, objects[j].position_world))
                    >= DUPLICATE_FRACTION * (radius_m(item) + radius_m(objects[j]))
                    for j in np.flatnonzero(keep) if side_by_side(item, objects[j]))
        depth_m = camera.project(np.array([item.position_world]))[1][0]
        keep[i] = apart and depth_m > NEAREST_M + radius_m(item)
    for i in bottom_up(support):  # nothing floats
        keep[i] &= keep[support[i]]
    return keep


def side_by_side(a: SceneObject, b: SceneObject) -> bool:
    """Whether two objects share a range of heights, unlike an object and what stands on it."""
    low = max(a.position_world[2], b.position_world[2])
    high = min(o.position_world[2] + o.size_m[2] for o in (a, b))
    return high - low > 1e-3


def radius_m(item: SceneObject) -> float:
    """Half the mean width of the footprint."""
    return (item.size_m[0] + item.size_m[1]) / 4


def footprint_corners(item: SceneObject) -> list[tuple[float, float]]:
    """The four corners (x, y) of a footprint in the world."""
    half_m = np.array(item.size_m[:2]) / 2
    return [from_footprint(item, *half_m * sign) for sign in product((-1, 1), repeat=2)]


def overlapping(a: SceneObject, b: SceneObject, gap_m: float = -CONTACT_M) -> bool:
    """Whether two boxes are nearer than gap_m, by the separating axes of their footprints."""
    if not side_by_side(a, b):
        return False
    for item, other in ((a, b), (b, a)):
        corners_m = np.array([to_footprint(item, corner) for corner in footprint_corners(other)])
        reach_m = np.array(item.size_m[:2]) / 2 + gap_m
        if ((corners_m.min(0) > reach_m) | (corners_m.max(0) < -reach_m)).any():
            return False
    return True


# --- relations ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Constraint:
    """A relation on the ground: (position of s - position of o) . axis > margin_m."""

    s: int
    o: int
    axis: np.ndarray
    margin_m: float
    score: float

    def missing_m(self, positions: np.ndarray, slack: float = 1.0) -> float:
        """How far the positions (N, 3) are from satisfying it with `slack` times the margin."""
        return self.margin_m * slack - (positions[self.s] - positions[self.o]) @ self.axis


def refine_by_relations(objects: list[SceneObject], graph: SceneGraph, support: np.ndarray,
                        axes: dict[str, np.ndarray], env: Env) -> list[SceneObject]:
    """Move objects along the ground until the relations of their graph hold.

    No two solids are moved into each other. Relations that cannot hold together, or not without an
    overlap, or that would take an object away from its box, are dropped, the least certain first.
    Objects move with their support (N,).
    """
    start = np.array([o.position_world for o in objects]).reshape(-1, 3)
    constraints = ground_constraints(graph, support, axes, env)
    moved = satisfy(start, constraints, support)
    if not is_consistent(objects, moved, constraints):
        moved, kept = start, []
        for constraint in sorted(constraints, key=lambda c: -c.score):
            candidate = satisfy(moved, [*kept, constraint], support)
            if is_consistent(objects, candidate, [*kept, constraint]):
                moved, kept = candidate, [*kept, constraint]
    return move_to(objects, moved)


def ground_constraints(graph: SceneGraph, support: np.ndarray, axes: dict[str, np.ndarray],
                       env: Env) -> list[Constraint]:
    """Relations between objects on the ground; of contradictions on a pair, the most certain."""
    chosen = {}
    for row in np.argsort(graph.relation_scores, kind="stable"):
        s, p, o = graph.relations[row]
        name = env.vocabulary.predicates[p]
        if name == "on" or support[s] >= 0 or support[o] >= 0:
            continue
        # <s, left, o> and <o, right, s> say the same and share a key
        line = int(np.argmax([abs(axes[name] @ other) for other in axes.values()]))
        chosen[min(s, o), max(s, o), line] = Constraint(
            s, o, axes[name], env.world.rules.margins_m[name], graph.relation_scores[row])
    return list(chosen.values())


def satisfy(start: np.ndarray, constraints: list[Constraint], support: np.ndarray) -> np.ndarray:
    """Positions (N, 3) after rounds in which both ends of each violated constraint move by half."""
    positions = start.copy()
    for _ in range(RELATION_SWEEPS):
        done = True
        for constraint in constraints:
            missing_m = constraint.missing_m(positions, slack=1.01)
            if missing_m > 0:
                positions[constraint.s] += constraint.axis * missing_m / 2
                positions[constraint.o] -= constraint.axis * missing_m / 2
                done = False
        if done:
            break
    for i in bottom_up(support):
        positions[i] += (positions - start)[support[i]]
    return positions


def is_consistent(objects: list[SceneObject], positions: np.ndarray,
                  constraints: list[Constraint]) -> bool:
    """Whether all constraints hold at positions (N, 3), near the boxes, without further overlap."""
    far = any(np.hypot(*np.subtract(positions[i], objects[i].position_world)[:2])
              > LARGEST_SHIFT * max(objects[i].size_m[:2])
              for constraint in constraints for i in (constraint.s, constraint.o))
    if far or any(constraint.missing_m(positions) > 0 for constraint in constraints):
        return False
    moved = move_to(objects, positions)
    for i in range(len(objects)):
        for j in range(i):
            if overlapping(moved[i], moved[j]):
                gap_m, before_m = (np.hypot(*np.subtract(row[i].position_world, row[j].position_world)[:2])
                                   for row in (moved, objects))
                if gap_m < before_m - CONTACT_M or not overlapping(objects[i], objects[j]):
                    return False
    return True


def move_to(objects: list[SceneObject], positions: np.ndarray) -> list[SceneObject]:
    """The objects at positions (N, 3)."""
    return [replace(o, position_world=tuple(position)) for o, position in zip(objects, positions.tolist())]
