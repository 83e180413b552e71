"""Procedural unit meshes, and the objects of a batch of scenes packed and posed as tensors."""
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from sim2sg_lib.scene import PATTERNS, Material, Mesh, Scene, Texture
from sim2sg_lib.sim.tensor_ops import rows_of


@dataclass(frozen=True)
class Part:
    """One piece of a composed asset, in the asset's frame: x ahead, y left, z up, meters."""

    mesh: Mesh  # unit mesh
    size_m: tuple[float, float, float]
    position_m: tuple[float, float, float]  # center of its footprint
    number: int = 0  # index of its material among those of the object
    turn_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)  # about x, y, z, around position_m


def compose(parts: list[Part]) -> tuple[Mesh, tuple[float, float, float]]:
    """One unit mesh of several parts, and its extents (x, y, z) in meters."""
    verts, normals, faces, numbers, first = [], [], [], [], 0
    for part in parts:
        turn = Rotation.from_euler("xyz", part.turn_rad).as_matrix()
        verts.append(part.mesh.verts * part.size_m @ turn.T + part.position_m)
        normals.append(part.mesh.normals / part.size_m @ turn.T)
        faces.append(part.mesh.faces + first)
        numbers.append(np.full(len(part.mesh.faces), part.number))
        first += len(part.mesh.verts)
    return to_unit(*map(np.concatenate, (verts, normals, faces, numbers)))


def to_unit(verts: np.ndarray, normals: np.ndarray, faces: np.ndarray,
            face_part: np.ndarray | None = None) -> tuple[Mesh, tuple[float, float, float]]:
    """Vertices (V, 3) with normals (V, 3) of any length -> a unit mesh, its extents in meters."""
    low, high = verts.min(0), verts.max(0)
    size = np.maximum(high - low, 1e-6)  # a flat asset keeps a minimal thickness
    unit = (verts - [*(low + high)[:2] / 2, low[2]]) / size
    normals = normals * size
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(unit, normals, faces.astype(np.int64), face_part), tuple(map(float, size))


def box_mesh() -> Mesh:
    """The unit box: 24 vertices, four per side for flat normals; 12 faces."""
    sides = []
    for axis in range(3):
        u, v = np.roll(np.eye(3), 1, 0)[axis], np.roll(np.eye(3), 2, 0)[axis]
        for sign in (-1.0, 1.0):
            normal = sign * np.eye(3)[axis]
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            if np.dot(np.cross(u, v), normal) < 0:  # counter-clockwise from outside
                corners = corners[::-1]
            sides.append([0.5 * (normal + a * u + b * v) + [0, 0, 0.5] for a, b in corners])
    return flat_mesh(sides)


def sphere_mesh(subdivisions: int = 3) -> Mesh:
    """An icosphere of 20 * 4**subdivisions faces with smooth normals."""
    golden = (1 + 5 ** 0.5) / 2
    verts = [(-1, golden, 0), (1, golden, 0), (-1, -golden, 0), (1, -golden, 0),
             (0, -1, golden), (0, 1, golden), (0, -1, -golden), (0, 1, -golden),
             (golden, 0, -1), (golden, 0, 1), (-golden, 0, -1), (-golden, 0, 1)]
    verts = [np.array(v) / np.linalg.norm(v) for v in verts]
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11),
             (1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6), (7, 1, 8),
             (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9),
             (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)]
    for _ in range(subdivisions):
        faces = _subdivide(verts, faces)
    normals = np.array(verts)
    return Mesh(0.5 * normals + [0, 0, 0.5], normals, np.array(faces, np.int64))


def _subdivide(verts: list[np.ndarray], faces: list[tuple]) -> list[tuple]:
    """Split every face in four; the new vertices on the unit sphere are appended to `verts`."""
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
    """An upright cylinder with flat caps; `top`: width of its upper end over that of the lower."""
    angle = np.arange(segments) * 2 * np.pi / segments
    side = np.stack([np.cos(angle), np.sin(angle), np.zeros(segments)], 1)  # (S, 3)
    lower, upper = 0.5 * side, 0.5 * top * side + [0, 0, 1]
    down, up = np.tile([0, 0, -1.0], (segments, 1)), np.tile([0, 0, 1.0], (segments, 1))
    outward = (side + [0, 0, (1 - top) / 2]) / np.hypot(1, (1 - top) / 2)
    verts = np.concatenate([lower, upper, lower, upper])  # two rings of the sides, two of the caps
    normals = np.concatenate([outward, outward, down, up])
    i, j = np.arange(segments), (np.arange(segments) + 1) % segments
    sides = np.concatenate([np.stack([i, j, j + segments], 1),
                            np.stack([i, j + segments, i + segments], 1)])
    fan = np.arange(1, segments - 1)
    cap = np.stack([np.zeros_like(fan), fan, fan + 1], 1)
    faces = np.concatenate([sides, 2 * segments + cap[:, ::-1], 3 * segments + cap])
    return Mesh(verts, normals, faces.astype(np.int64))


def prism_mesh(outline: list[tuple[float, float]], top: float = 1.0) -> Mesh:
    """A side view (x, z), extruded along y, with flat sides. `top`: as in cylinder_mesh.

    outline: (N, 2) points, counter-clockwise with z up, star-shaped around their mean.
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
    """Convex polygons with flat normals, each counter-clockwise from outside; vertices are kept."""
    verts, normals, faces = [], [], []
    for polygon in polygons:
        first, corners = len(verts), np.array(polygon, np.float64)
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        verts += list(corners)
        normals += [normal / max(np.linalg.norm(normal), 1e-12)] * len(corners)
        faces += [(first, first + i, first + i + 1) for i in range(1, len(corners) - 1)]
    return Mesh(np.array(verts), np.array(normals), np.array(faces, np.int64))


# --- batches of scenes ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Textures:
    """N textures, see scene.Texture."""

    pattern: Tensor  # (N,) int64 index into scene.PATTERNS, -1 for none
    color: Tensor  # (N, 3) linear RGB
    scale_m: Tensor  # (N,) float
    amount: Tensor  # (N,) float
    seed: Tensor  # (N,) int64

    def select(self, index: Tensor) -> "Textures":
        """The textures at an index (N,)."""
        return Textures(*(rows_of(getattr(self, field.name), index) for field in fields(self)))


@dataclass(frozen=True)
class Poses:
    """Of O objects: position_world (O, 3), size_m (O, 3), yaw_rad (O,); see scene.SceneObject."""

    position_world: Tensor
    size_m: Tensor
    yaw_rad: Tensor


@dataclass(frozen=True)
class Meshes:
    """The O objects of B scenes with M materials, packed. Indices count through the whole batch."""

    verts_unit: Tensor  # (V, 3) float64 in the unit boxes of the assets
    normals_unit: Tensor  # (V, 3) float64
    verts_object: Tensor  # (V, 3) float, meters in the object's frame, for its texture
    verts_world: Tensor  # (V, 3) float
    normals_world: Tensor  # (V, 3) float
    vert_object: Tensor  # (V,) int64
    faces: Tensor  # (F, 3) int64 into verts
    face_object: Tensor  # (F,) int64
    face_material: Tensor  # (F,) int64
    object_scene: Tensor  # (O,) int64, ascending
    scenes: int  # B; a scene may have no object
    color: Tensor  # (M, 3) float, linear RGB
    metallic: Tensor  # (M,) float
    roughness: Tensor  # (M,) float
    texture: Textures  # M textures

    @property
    def vert_scene(self) -> Tensor:
        """(V,) int64."""
        return self.object_scene[self.vert_object]


def build(scenes: list[Scene], assets: dict[str, Mesh], device: torch.device | str = "cpu",
          dtype: torch.dtype = torch.float32) -> Meshes:
    """Pack the assets (unit meshes by name) of all objects and place them in their worlds."""
    objects = [o for scene in scenes for o in scene.objects]
    units = [assets[o.asset] for o in objects]
    materials = [material for o in objects for material in (o.material, *o.part_materials)]
    first_vert = np.cumsum([0, *(len(mesh.verts) for mesh in units)])
    first_material = np.cumsum([0, *(1 + len(o.part_materials) for o in objects)])
    # a part without a material takes that of the first part
    parts = [np.zeros(len(mesh.faces), np.int64) if mesh.face_part is None else mesh.face_part
             for mesh in units]
    parts = [np.where(part <= len(o.part_materials), part, 0) for part, o in zip(parts, objects)]

    def floats(rows, *shape, kind=dtype):
        stacked = np.concatenate([np.zeros((0, *shape)), *(np.reshape(row, (-1, *shape)) for row in rows)])
        return torch.from_numpy(stacked).to(device, kind)

    def indices(rows, *shape):
        return torch.from_numpy(np.concatenate([np.zeros((0, *shape), np.int64), *rows])).to(device)

    verts_unit = floats([mesh.verts for mesh in units], 3, kind=torch.float64)
    normals_unit = floats([mesh.normals for mesh in units], 3, kind=torch.float64)
    meshes = Meshes(
        verts_unit, normals_unit, verts_unit, verts_unit, normals_unit,
        vert_object=indices([np.full(len(mesh.verts), i) for i, mesh in enumerate(units)]),
        faces=indices([mesh.faces + first for mesh, first in zip(units, first_vert)], 3),
        face_object=indices([np.full(len(mesh.faces), i) for i, mesh in enumerate(units)]),
        face_material=indices([part + first for part, first in zip(parts, first_material)]),
        object_scene=indices([np.full(len(scene.objects), b) for b, scene in enumerate(scenes)]),
        scenes=len(scenes),
        color=floats([m.color for m in materials], 3),
        metallic=floats([m.metallic for m in materials]),
        roughness=floats([m.roughness for m in materials]),
        texture=pack_textures(materials, device, dtype))
    return place(meshes, object_poses(scenes, device))


def object_poses(scenes: list[Scene], device: torch.device | str = "cpu") -> Poses:
    """The poses of the objects of all scenes, float64."""
    rows = [(*o.position_world, *o.size_m, o.yaw_rad) for scene in scenes for o in scene.objects]
    values = torch.tensor(rows, dtype=torch.float64, device=device).view(-1, 7)
    return Poses(values[:, :3], values[:, 3:6], values[:, 6])


def place(meshes: Meshes, poses: Poses) -> Meshes:
    """Scale every object to its size, turn it about z by its yaw and move it to its position.

    Gradients reach the poses. Computed in float64; the result has the type of the materials.
    """
    owner, dtype = meshes.vert_object, meshes.color.dtype
    position, size_m = poses.position_world.double()[owner], poses.size_m.double()[owner]
    cos, sin = poses.yaw_rad.double().cos()[owner], poses.yaw_rad.double().sin()[owner]

    def turn(vectors: Tensor) -> Tensor:
        x, y, z = vectors.unbind(-1)
        return torch.stack([x * cos - y * sin, x * sin + y * cos, z], -1)

    verts_object = meshes.verts_unit * size_m
    normals = F.normalize(turn(meshes.normals_unit / size_m), dim=-1)
    return replace(meshes, verts_object=verts_object.to(dtype), normals_world=normals.to(dtype),
                   verts_world=(turn(verts_object) + position).to(dtype))


def pose_mesh(mesh: Mesh, position_world, size_m, yaw_rad: float) -> Mesh:
    """`place` of one asset in numpy, for lifting: size_m (3,), yaw about z, position_world (3,)."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    normals = mesh.normals / np.asarray(size_m) @ turn.T
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    verts_world = mesh.verts * np.asarray(size_m) @ turn.T + np.asarray(position_world)
    return Mesh(verts_world, normals, mesh.faces, mesh.face_part)


def pack_textures(materials: list[Material], device: torch.device | str, dtype: torch.dtype) -> Textures:
    """One texture per material; plain ones have pattern -1."""
    plain = Texture(PATTERNS[0], (0.0, 0.0, 0.0), amount=0.0)
    textures = [material.texture or plain for material in materials]
    patterns = [PATTERNS.index(m.texture.pattern) if m.texture else -1 for m in materials]

    def floats(values, *shape):
        return torch.tensor(values, dtype=torch.float64).to(device, dtype).view(-1, *shape)

    return Textures(
        torch.tensor(patterns, dtype=torch.int64, device=device), floats([t.color for t in textures], 3),
        floats([t.scale_m for t in textures]), floats([t.amount for t in textures]),
        torch.tensor([t.seed for t in textures], dtype=torch.int64, device=device))
