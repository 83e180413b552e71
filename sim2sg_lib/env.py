"""What an environment must say about itself. Each file in envs/ declares one `Env`; the library never imports them."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.meshes import Mesh
from sim2sg_lib.scene import Scene, SceneObject


@dataclass(frozen=True)
class Env:
    """One environment.

    name:               as in `--env`.
    vocabulary:         its categories and predicates.
    image_sizes:        preset -> (width, height) in pixels of synthetic images and of the network's input.
    camera:             the nominal view, used where a data set brings no cameras.jsonl.
    assets:             asset name -> unit mesh.
    category_assets:    per category, the names of its assets.
    category_sizes_m:   per category, the sizes (x, y, z extents) that its assets come in.
    relation_margin_m:  smallest distance along an axis for a spatial predicate to hold.
    min_visible_share:  objects with less of the image than this share are left out of the labels.
    threshold:          default confidence below which predictions are not lifted (tau).
    domains:            names for `--domain`: "source", "target", and whatever else there is.
    layout:             (domain, generator) -> objects without appearance, and the camera: the content of a scene.
    dress:              (objects, camera, domain, randomise, generator) -> Scene: its appearance; randomise is
                        "paper" or "strong".
    """

    name: str
    vocabulary: Vocabulary
    image_sizes: dict[str, tuple[int, int]]
    camera: Camera
    assets: dict[str, Mesh]
    category_assets: tuple[tuple[str, ...], ...]
    category_sizes_m: tuple[tuple[tuple[float, float, float], ...], ...]
    relation_margin_m: float
    min_visible_share: float
    threshold: float
    domains: tuple[str, ...]
    layout: Callable[[str, np.random.Generator], tuple[list[SceneObject], Camera]]
    dress: Callable[[list[SceneObject], Camera, str, str, np.random.Generator], Scene]
