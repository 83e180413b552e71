"""The 3-D scene, and the spatial predicates as a pure function of 3-D positions."""
from dataclasses import asdict, dataclass

import numpy as np

from sim2sg_lib.camera import Camera


PATTERNS = ("noise", "checks", "wood", "brick", "asphalt", "grass")


@dataclass(frozen=True)
class Texture:
    """A procedural pattern in an object's own space that blends in a second colour.

    pattern: one of PATTERNS.    colour: linear RGB.    scale_m: size of the pattern's cells, metres.
    amount:  0 is plain, 1 is full contrast.    seed: of what is random in it.
    """

    pattern: str
    colour: tuple[float, float, float]
    scale_m: float = 1.0
    amount: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """colour: linear RGB reflectance in [0, 1].    metallic: 0 (rubber) to 1 (metal).    roughness: (0, 1]."""

    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    metallic: float = 0.0
    roughness: float = 0.7
    texture: Texture | None = None


@dataclass(frozen=True)
class SceneObject:
    """One object, standing upright.

    label:          category index.
    asset:          name of a unit mesh of the environment: x and y in [-0.5, 0.5], z in [0, 1].
    position_world: centre of the footprint, metres; z is 0 on the ground.
    size_m:         full extents along the asset's own x, y, z.
    yaw_rad:        rotation about world z.
    """

    label: int
    asset: str
    position_world: tuple[float, float, float]
    size_m: tuple[float, float, float]
    yaw_rad: float
    material: Material = Material()


@dataclass(frozen=True)
class Light:
    """A lamp, or with `directional` a sun.

    position_world: metres; of a sun the direction towards it.
    intensity:      linear RGB: a lamp's irradiance at one metre, which falls with the square of the distance; a sun's
                    irradiance everywhere.
    """

    position_world: tuple[float, float, float]
    intensity: tuple[float, float, float]
    directional: bool = False


@dataclass(frozen=True)
class Sky:
    """Light from everywhere above, and what is seen above the horizon: linear RGB overhead and at the horizon."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything an image depends on.

    ground:     material of the plane z = 0; its texture lies in world x, y.
    exposure:   factor before the display curve.
    style_seed: seed of the procedural stylisation of the finished image; None for none.
    """

    objects: tuple[SceneObject, ...]
    camera: Camera
    lights: tuple[Light, ...]
    sky: Sky
    ground: Material
    exposure: float = 1.0
    style_seed: int | None = None

    def to_json(self) -> dict:
        """One line of scenes.jsonl."""
        return {"objects": [asdict(o) for o in self.objects], "camera": self.camera.to_json(),
                "lights": [asdict(light) for light in self.lights], "sky": asdict(self.sky),
                "ground": asdict(self.ground), "exposure": self.exposure, "style_seed": self.style_seed}


def predicate_axes(camera: Camera) -> dict[str, np.ndarray]:
    """Unit (3,) world direction of each spatial predicate, in the camera's ground frame (never an object's heading)."""
    right, forward = camera.ground_axes()
    return {"left": -right, "right": right, "front": -forward, "behind": forward}


def relations(positions_world: np.ndarray, camera: Camera, predicates: tuple[str, ...], margin_m: float) -> np.ndarray:
    """All relations that hold between N positions, as CLEVR defines them (Johnson et al. 2017).

    <s, p, o> holds iff (position_s - position_o) . axis_p > margin_m, strictly; the axes are horizontal, so heights
    drop out. positions_world: (N, 3). Returns (R, 3) int64 rows (s, p, o), ordered by s, then o, then p.
    """
    axes = predicate_axes(camera)
    positions = np.asarray(positions_world, np.float64).reshape(-1, 3)
    offset = positions[:, None] - positions[None]  # (N, N, 3), from object to subject
    along = np.stack([offset @ axes[p] for p in predicates], -1)  # (N, N, P)
    s, o, p = np.nonzero(along > margin_m)
    return np.stack([s, p, o], 1).astype(np.int64)
