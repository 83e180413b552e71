"""The 3-D scene, and the spatial predicates as a pure function of 3-D positions."""
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import numpy as np

from sim2sg_lib.camera import Camera

PATTERNS = ("noise", "checks", "wood", "brick", "asphalt", "grass")


@dataclass(frozen=True)
class Texture:
    """A procedural pattern in the space of an object that blends in a second color."""

    pattern: str  # one of PATTERNS
    color: tuple[float, float, float]  # linear RGB
    scale_m: float = 1.0  # size of the cells
    amount: float = 1.0  # 0 is plain, 1 is full contrast
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """color: linear RGB reflectance in [0, 1].    metallic: in [0, 1].    roughness: in (0, 1]."""

    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    metallic: float = 0.0
    roughness: float = 0.7
    texture: Texture | None = None


def linear(display_rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """Display values 0..255 -> linear reflectance."""
    return tuple((value / 255) ** 2.2 for value in display_rgb)


@dataclass(frozen=True)
class Mesh:
    """One asset in its unit box: x and y in [-0.5, 0.5], z in [0, 1]."""

    verts: np.ndarray  # (V, 3) float64
    normals: np.ndarray  # (V, 3) float64, unit, outward
    faces: np.ndarray  # (F, 3) int64, counter-clockwise from outside
    face_part: np.ndarray | None = None  # (F,) int64, index of each face's material; None for all 0


@dataclass(frozen=True)
class SceneObject:
    """One object, standing upright."""

    label: int  # category index
    asset: str  # name of a unit mesh of the environment
    position_world: tuple[float, float, float]  # center of the footprint, m; z is 0 on the ground
    size_m: tuple[float, float, float]  # full extents along x, y, z of the asset
    yaw_rad: float  # rotation about world z; at 0 the x axis of the asset is that of the world
    material: Material = Material()  # of the asset's first part, and of parts beyond part_materials
    part_materials: tuple[Material, ...] = ()  # of its further parts, in order


@dataclass(frozen=True)
class Light:
    """A lamp, or with `directional` a sun.

    intensity: linear RGB; irradiance of a lamp at one meter, which falls with the square of the
               distance, or of a sun everywhere.
    """

    position_world: tuple[float, float, float]  # meters; of a sun, the direction towards it
    intensity: tuple[float, float, float]
    directional: bool = False


@dataclass(frozen=True)
class Sky:
    """Light from all directions above, and what is seen above the horizon.

    clouds: cloudiness from 0 to 1: 0.3 covers an eighth of the sky, 0.5 half, 0.7 seven eighths.
            Clouds are seen and give no light.
    """

    zenith: tuple[float, float, float]  # linear RGB overhead
    horizon: tuple[float, float, float]  # linear RGB at the horizon
    clouds: float = 0.0
    seed: int = 0  # of the shapes of the clouds


@dataclass(frozen=True)
class Strip:
    """A rectangle painted on the ground: a road, a mark on it, a carpet."""

    position_world: tuple[float, float]  # center (x, y), meters
    size_m: tuple[float, float]  # extents along and across it
    yaw_rad: float  # of its long axis, about world z
    material: Material
    dash_m: float = 0.0  # length of dashes and of the gaps between them; 0 for a solid strip


@dataclass(frozen=True)
class Room:
    """Four walls around the ground, below the sky."""

    low_m: tuple[float, float]  # corner (x, y) in the world
    high_m: tuple[float, float]
    height_m: float  # of the walls
    wall: Material


@dataclass(frozen=True)
class Scene:
    """Everything an image depends on."""

    objects: tuple[SceneObject, ...]
    camera: Camera
    lights: tuple[Light, ...]
    sky: Sky
    ground: Material  # of the plane z = 0; its texture lies in x, y relative to origin_world
    exposure: float = 1.0  # factor before tone mapping
    style_seed: int | None = None  # of the stylization of the finished image, if any
    strips: tuple[Strip, ...] = ()  # later ones are painted over earlier ones
    room: Room | None = None  # None outdoors
    shadow_texels: int = 192  # width of each lamp's shadow map; equal for all scenes of a batch
    # the point (x, y) that is rendered as the origin: single precision is not enough far from it
    origin_world: tuple[float, float] = (0.0, 0.0)

    def moved(self, offset_m: Sequence[float]) -> "Scene":
        """The scene (2,) meters farther along x and y of the world; it looks the same."""
        dx, dy = map(float, offset_m)
        if dx == dy == 0:
            return self

        def move(point):
            return (point[0] + dx, point[1] + dy, *point[2:])

        def move_item(item):
            return replace(item, position_world=move(item.position_world))

        lights = (light if light.directional else move_item(light) for light in self.lights)
        room = self.room and replace(self.room, low_m=move(self.room.low_m),
                                     high_m=move(self.room.high_m))
        return replace(
            self, objects=tuple(map(move_item, self.objects)), camera=self.camera.moved((dx, dy)),
            lights=tuple(lights), strips=tuple(map(move_item, self.strips)), room=room,
            origin_world=move(self.origin_world))

    def to_json(self) -> dict:
        """One line of scenes.jsonl."""
        row = plain(self)
        if self.origin_world == (0.0, 0.0):
            del row["origin_world"]
        return row


def plain(value):
    """Nested dataclasses and tuples for JSON; scenes.jsonl keeps an earlier spelling of "color"."""
    if isinstance(value, Camera):
        return value.to_json()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if not is_dataclass(value):
        return value
    return {"colour" if entry.name == "color" else entry.name: plain(getattr(value, entry.name))
            for entry in fields(value)}


def scene_from_json(row: dict, camera: Camera) -> Scene:
    """The scene of a `to_json`, which leaves the camera's pixels out."""
    return from_plain(Scene, row | {"camera": camera})


def from_plain(kind, value):
    """The inverse of `plain`, of a value of this type."""
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        rows = {"color" if name == "colour" else name: row for name, row in value.items()}
        return kind(**{name: from_plain(hints[name], row) for name, row in rows.items()})
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(map(from_plain, kinds, value))
    if get_origin(kind) is UnionType and value is not None:
        return from_plain(get_args(kind)[0], value)  # X | None
    return value


def predicate_axes(camera: Camera) -> dict[str, np.ndarray]:
    """Predicate -> its unit world direction (3,), in the ground frame of the camera."""
    right, forward = camera.ground_axes()
    return {"left": -right, "right": right, "front": -forward, "behind": forward}


@dataclass(frozen=True)
class RelationRules:
    """When the predicates of an environment hold."""

    margins_m: dict[str, float]  # minimum distance along a predicate's axis; of `on`, maximum gap
    required_category: int | None = None  # of one end of every spatial relation; None for any pair
    supports: dict[int, int] = field(default_factory=dict)  # category -> what it may stand `on`
    reach_m: float = math.inf  # objects farther ahead of the camera have no relations

    def allowed_predicates(self, categories: int, predicates: tuple[str, ...]) -> np.ndarray:
        """(P, C, C) bool, whether a predicate may hold between categories of subject and object."""
        table = np.ones((len(predicates), categories, categories), bool)
        if self.required_category is not None:
            table[:] = np.arange(categories)[:, None] == self.required_category
            table |= table.transpose(0, 2, 1)
        if "on" in predicates:
            table[predicates.index("on")] = [[self.supports.get(s) == o for o in range(categories)]
                                             for s in range(categories)]
        return table


def relations(objects: Sequence[SceneObject], camera: Camera, predicates: tuple[str, ...],
              rules: RelationRules) -> np.ndarray:
    """All relations between N objects: (R, 3) int64 rows (s, p, o), ordered by s, then o, then p.

    As in CLEVR (Johnson et al. 2017), <s, p, o> if (position_s - position_o) . axis_p > margin.
    """
    axes = predicate_axes(camera)
    positions = np.array([o.position_world for o in objects], np.float64).reshape(-1, 3)
    labels = np.array([o.label for o in objects], np.int64)
    offset = positions[:, None] - positions[None]  # (N, N, 3), from object to subject
    near = (positions - camera.position_world) @ axes["behind"] <= rules.reach_m
    related = near[:, None] & near[None]
    allowed = rules.allowed_predicates(labels.max(initial=-1) + 1, predicates)
    holds = allowed[:, labels[:, None], labels].transpose(1, 2, 0)  # (N, N, P)
    for p, name in enumerate(predicates):
        if name == "on":
            for s, o in np.argwhere(holds[..., p]):
                holds[s, o, p] = stands_on(objects[s], objects[o], rules.margins_m[name])
        else:
            holds[..., p] &= related & (offset @ axes[name] > rules.margins_m[name])
    s, o, p = np.nonzero(holds)
    return np.stack([s, p, o], 1).astype(np.int64)


def stands_on(upper: SceneObject, lower: SceneObject, gap_allowed_m: float) -> bool:
    """Whether the center of the upper footprint is over the lower one, at the height of its top."""
    gap_m = upper.position_world[2] - lower.position_world[2] - lower.size_m[2]
    x, y = to_footprint(lower, upper.position_world)
    inside = abs(x) <= lower.size_m[0] / 2 and abs(y) <= lower.size_m[1] / 2
    return inside and abs(gap_m) <= gap_allowed_m


def to_footprint(item: SceneObject | Strip, point_world):
    """x and y of world points (floats or tensors) in the frame of a footprint, from its center."""
    dx, dy = point_world[0] - item.position_world[0], point_world[1] - item.position_world[1]
    cos, sin = math.cos(item.yaw_rad), math.sin(item.yaw_rad)
    return cos * dx + sin * dy, cos * dy - sin * dx


def from_footprint(item: SceneObject, x: float, y: float) -> tuple[float, float]:
    """World x and y of a point in the frame of an object: the inverse of to_footprint."""
    cos, sin = math.cos(item.yaw_rad), math.sin(item.yaw_rad)
    return (float(item.position_world[0] + (cos * x - sin * y)),
            float(item.position_world[1] + (sin * x + cos * y)))
