"""Procedural unit meshes, and a batch of scenes packed into one."""
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sim2sg_lib.scene import Mesh, PATTERNS, Material, Scene, Texture


@dataclass(frozen=True)
class Part:
    """One piece of an asset that is made of several, in the asset's frame: x ahead, y left, z up, meters.

    mesh:       unit mesh.    size_m: its extents.    position_m: of its footprint's center.
    turn_rad:   rotations about x, y and z, in this order, around that point.
    number:     which of the object's materials it wears.
    """

    mesh: Mesh
    size_m: tuple[float, float, float]
    position_m: tuple[float, float, float]
    number: int = 0
    turn_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)


def compose(parts: list[Part]) -> tuple[Mesh, tuple[float, float, float]]:
    """One unit mesh of several pieces, and the extents (x, y, z) in meters that give them their own sizes back."""
    verts, normals, faces, numbers, first = [], [], [], [], 0
    for part in parts:
        turn = Rotation.from_euler("xyz", part.turn_rad).as_matrix()
        verts.append(part.mesh.verts * part.size_m @ turn.T + part.position_m)
        normals.append(part.mesh.normals / part.size_m @ turn.T)
        faces.append(part.mesh.faces + first)
        numbers.append(np.full(len(part.mesh.faces), part.number))
        first += len(part.mesh.verts)
    return to_unit(np.concatenate(verts), np.concatenate(normals), np.concatenate(faces), np.concatenate(numbers))


def to_unit(verts: np.ndarray, normals: np.ndarray, faces: np.ndarray,
            face_part: np.ndarray | None = None) -> tuple[Mesh, tuple[float, float, float]]:
    """Any vertices (V, 3) in meters with normals (V, 3) of any length as a unit mesh, and their extents in meters."""
    low, high = verts.min(0), verts.max(0)
    size = np.maximum(high - low, 1e-6)  # a flat asset keeps a thickness to divide by
    unit = (verts - [*(low + high)[:2] / 2, low[2]]) / size
    normals = normals * size
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(unit, normals, faces.astype(np.int64), face_part), tuple(map(float, size))


def box_mesh() -> Mesh:
    """The unit box: 24 vertices, so that each side has its own flat normal; 12 faces."""
    verts, normals, faces = [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            u, v = np.roll(np.eye(3), 1, 0)[axis], np.roll(np.eye(3), 2, 0)[axis]
            # u x v is +-axis: pick the order of corners that winds counter-clockwise seen from outside
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            if np.dot(np.cross(u, v), normal) < 0:
                corners = corners[::-1]
            first = len(verts)
            verts += [0.5 * (normal + a * u + b * v) + [0, 0, 0.5] for a, b in corners]
            normals += [normal] * 4
            faces += [[first, first + 1, first + 2], [first, first + 2, first + 3]]
    return Mesh(np.array(verts), np.array(normals), np.array(faces, np.int64))


def sphere_mesh(subdivisions: int = 3) -> Mesh:
    """An icosphere of 20 * 4**subdivisions faces with smooth normals."""
    golden = (1 + 5 ** 0.5) / 2
    verts = [(-1, golden, 0), (1, golden, 0), (-1, -golden, 0), (1, -golden, 0), (0, -1, golden), (0, 1, golden),
             (0, -1, -golden), (0, 1, -golden), (golden, 0, -1), (golden, 0, 1), (-golden, 0, -1), (-golden, 0, 1)]
    verts = [np.array(v) / np.linalg.norm(v) for v in verts]
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6),
             (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10),
             (8, 6, 7), (9, 8, 1)]
    for _ in range(subdivisions):
        faces = _subdivide(verts, faces)
    normals = np.array(verts)
    return Mesh(0.5 * normals + [0, 0, 0.5], normals, np.array(faces, np.int64))


def _subdivide(verts: list[np.ndarray], faces: list[tuple]) -> list[tuple]:
    """Split every face in four; the new vertices, on the unit sphere, are appended to `verts`."""
    middle: dict[tuple[int, int], int] = {}

    def midpoint(i, j):
        key = (min(i, j), max(i, j))
        if key not in middle:
            middle[key] = len(verts)
            point = verts[i] + verts[j]
            verts.append(point / np.linalg.norm(point))
        return middle[key]

    split = []
    for a, b, c in faces:
        ab, bc, ca = midpoint(a, b), midpoint(b, c), midpoint(c, a)
        split += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    return split


def cylinder_mesh(segments: int = 48, top: float = 1.0) -> Mesh:
    """An upright cylinder with flat caps and smooth sides; 4 * segments - 4 faces.

    top: width of its upper end as a share of the lower; 0 for a cone.
    """
    angle = np.arange(segments) * 2 * np.pi / segments
    side = np.stack([np.cos(angle), np.sin(angle), np.zeros(segments)], 1)  # (S, 3)
    lower, upper = 0.5 * side, 0.5 * top * side + [0, 0, 1]
    down, up = np.tile([0, 0, -1.0], (segments, 1)), np.tile([0, 0, 1.0], (segments, 1))
    outward = (side + [0, 0, (1 - top) / 2]) / np.hypot(1, (1 - top) / 2)
    verts = np.concatenate([lower, upper, lower, upper])  # the sides' two rings, then the caps' own
    normals = np.concatenate([outward, outward, down, up])
    i, j = np.arange(segments), (np.arange(segments) + 1) % segments
    sides = np.concatenate([np.stack([i, j, j + segments], 1), np.stack([i, j + segments, i + segments], 1)])
    fan = np.arange(1, segments - 1)
    cap = np.stack([np.zeros_like(fan), fan, fan + 1], 1)
    faces = np.concatenate([sides, 2 * segments + cap[:, ::-1], 3 * segments + cap])
    return Mesh(verts, normals, faces.astype(np.int64))


def prism_mesh(outline: list[tuple[float, float]], top: float = 1.0) -> Mesh:
    """A side view drawn across: outline (N, 2) of points (x, z), drawn out along y, with flat sides.

    The outline runs counter-clockwise when x points right and z up, and all of it is seen from its middle.
    top: width across at the upper end as a share of the lower.
    """
    points = np.array(outline, np.float64)
    low, high = points.min(0), points.max(0)
    points = (points - [(low[0] + high[0]) / 2, low[1]]) / (high - low)

    def at(point, side):
        return point[0], side * (0.5 - (1 - top) / 2 * point[1]), point[1]

    middle, following = points.mean(0), np.roll(points, -1, 0)
    polygons = [[at(middle, side), *(at(p, side) for p in pair)] for side in (-1, 1)
                for pair in (zip(points, following) if side < 0 else zip(following, points))]
    polygons += [[at(a, -1), at(a, 1), at(b, 1), at(b, -1)] for a, b in zip(points, following)]
    return flat_mesh(polygons)


def flat_mesh(polygons: list[list[tuple[float, float, float]]]) -> Mesh:
    """Convex polygons with flat normals, each counter-clockwise from outside; the vertices as they are given."""
    verts, normals, faces = [], [], []
    for polygon in polygons:
        first, corners = len(verts), np.array(polygon, np.float64)
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        verts += list(corners)
        normals += [normal / max(np.linalg.norm(normal), 1e-12)] * len(corners)
        faces += [(first, first + i, first + i + 1) for i in range(1, len(corners) - 1)]
    return Mesh(np.array(verts), np.array(normals), np.array(faces, np.int64))


@dataclass(frozen=True)
class Textures:
    """N textures. pattern: (N,) int64 into scene.PATTERNS, -1 for none.    color: (N, 3).    scale_m, amount: (N,).

    seed: (N,) int64.
    """

    pattern: torch.Tensor
    color: torch.Tensor
    scale_m: torch.Tensor
    amount: torch.Tensor
    seed: torch.Tensor

    def select(self, index: torch.Tensor) -> "Textures":
        """One for each of an index (N,)."""
        return Textures(*(rows_of(getattr(self, field.name), index) for field in fields(self)))


def rows_of(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[index] of values (K, ...) and an index (N,): (N, ...); of a single row a view, nothing is copied."""
    return values.expand(len(index), *values.shape[1:]) if len(values) == 1 else values.index_select(0, index)


@dataclass(frozen=True)
class Meshes:
    """The objects of B scenes, O in all with M materials, packed. Indices count through the whole batch.

    verts_world, normals_world: (V, 3) float.    faces: (F, 3) int64 into verts.
    verts_object: (V, 3) float, meters in the object's own frame, where its texture lives.
    face_object, face_material: (F,) int64.      vert_scene: (V,) int64.
    object_scene: (O,) int64, ascending.         scenes: B; a scene may have no object.
    color: (M, 3) float, linear RGB.            metallic, roughness: (M,) float.
    texture: of each material.
    """

    verts_world: torch.Tensor
    verts_object: torch.Tensor
    normals_world: torch.Tensor
    faces: torch.Tensor
    face_object: torch.Tensor
    face_material: torch.Tensor
    vert_scene: torch.Tensor
    object_scene: torch.Tensor
    scenes: int
    color: torch.Tensor
    metallic: torch.Tensor
    roughness: torch.Tensor
    texture: Textures

    def vert_object(self) -> torch.Tensor:
        """(V,) int64, the object that each vertex belongs to."""
        owner = torch.zeros(len(self.verts_world), dtype=torch.int64, device=self.verts_world.device)
        owner[self.faces.reshape(-1)] = self.face_object.repeat_interleave(3)
        return owner


def pack_textures(materials: list[Material], device: torch.device | str, dtype: torch.dtype) -> Textures:
    """One entry a material."""
    plain = Texture(PATTERNS[0], (0.0, 0.0, 0.0), amount=0.0)
    textures = [material.texture or plain for material in materials]
    pattern = [PATTERNS.index(m.texture.pattern) if m.texture else -1 for m in materials]

    def floats(values, *shape):
        return torch.tensor(values, dtype=torch.float64).to(device, dtype).view(-1, *shape)

    return Textures(torch.tensor(pattern, dtype=torch.int64, device=device), floats([t.color for t in textures], 3),
                    floats([t.scale_m for t in textures]), floats([t.amount for t in textures]),
                    torch.tensor([t.seed for t in textures], dtype=torch.int64, device=device))


def build(scenes: list[Scene], assets: dict[str, Mesh], device: torch.device | str = "cpu",
          dtype: torch.dtype = torch.float32) -> Meshes:
    """Place every object's asset in its scene's world and pack them all."""
    objects = [(b, o) for b, scene in enumerate(scenes) for o in scene.objects]
    placed = [place(assets[o.asset], o.position_world, o.size_m, o.yaw_rad) for _, o in objects]
    materials = [material for _, o in objects for material in (o.material, *o.part_materials)]
    first_material = np.cumsum([0] + [1 + len(o.part_materials) for _, o in objects])
    worn = [np.where(m.parts() <= len(o.part_materials), m.parts(), 0) + first
            for m, (_, o), first in zip(placed, objects, first_material)]
    counts = [len(mesh.verts) for mesh in placed]
    first_vert = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def pack(arrays, shape, kind):
        stacked = np.concatenate([np.asarray(a).reshape(-1, *shape) for a in arrays] + [np.zeros((0, *shape))])
        return torch.from_numpy(stacked).to(device, kind)

    object_scene = [b for b, _ in objects]
    return Meshes(
        pack([m.verts for m in placed], (3,), dtype),
        pack([assets[o.asset].verts * o.size_m for _, o in objects], (3,), dtype),
        pack([m.normals for m in placed], (3,), dtype),
        pack([m.faces + first for m, first in zip(placed, first_vert)], (3,), torch.int64),
        pack([np.full(len(m.faces), i) for i, m in enumerate(placed)], (), torch.int64),
        pack(worn, (), torch.int64),
        pack([np.full(n, b) for b, n in zip(object_scene, counts)], (), torch.int64),
        pack([object_scene], (), torch.int64), len(scenes),
        pack([m.color for m in materials], (3,), dtype), pack([[m.metallic for m in materials]], (), dtype),
        pack([[m.roughness for m in materials]], (), dtype), pack_textures(materials, device, dtype))


def place(mesh: Mesh, position_world, size_m, yaw_rad: float) -> Mesh:
    """The unit asset scaled to `size_m` (3,), turned by yaw about z and moved to `position_world` (3,)."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    normals = mesh.normals / np.asarray(size_m) @ turn.T
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(mesh.verts * np.asarray(size_m) @ turn.T + np.asarray(position_world), normals, mesh.faces, mesh.face_part)
