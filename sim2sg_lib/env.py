"""What an environment must say about itself. Each file in envs/ declares one `Env`; the library never imports them."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.scene import RelationRules, Scene, SceneObject
from sim2sg_lib.sim.meshes import Mesh

DOMAINS = {  # those of the paper: name -> whose content, whose appearance; the two mixed ones are its ablations
    "source": ("source", "source"), "target": ("target", "target"),
    "target-content": ("target", "source"), "target-appearance": ("source", "target")}


@dataclass(frozen=True)
class Env:
    """One environment. Errors: InputError for fields that do not go together.

    name:               as in `--env`, that of its file.
    vocabulary:         its categories and predicates.
    rules:              when the predicates hold.
    image_sizes:        preset -> (width, height) in pixels of synthetic images and of the network's input.
    camera:             the nominal view, used where a data set brings no cameras.jsonl.
    assets:             asset name -> unit mesh.
    asset_sizes_m:      asset name -> the sizes (x, y, z extents) that it comes in.
    category_assets:    per category, the names of the source's assets.
    yaws_rad:           per category, the yaws that lifted objects may have; None for any.
    pitch_spread_rad:   how far the ground is out of level as a target's camera sees it, standard deviation; 0 where it is
                        flat: then an object's place comes from its box's bottom edge alone, else from its height, too.
    size_spreads:       per category, how much its height varies, standard deviation over mean; above 0 where pitch_spread_rad is.
    min_visible_share:  objects with less of the image than this share are left out of the labels.
    threshold:          default confidence below which predictions are not lifted (tau).
    adaptive:           whether that is a share of what the network is sure of, see `lift.thresholds`.
    domains:            names for `--domain` -> whose content and whose appearance: "source" and what else there is.
    layout:             (this Env, domain, generator) -> objects without appearance, and the camera: the content of a
                        scene; of the Env it takes the source's assets, which --assets may have replaced.
    settle:             (lifted objects, their boxes (N, 4) px, camera, generator) -> objects: what else is known of
                        where things stand (lanes, for instance), and one box's several objects; None for nothing.
    dress:              (objects, camera, domain, randomise, generator) -> Scene: its appearance; randomise is
                        "paper" or "strong".
    """

    name: str
    vocabulary: Vocabulary
    rules: RelationRules
    image_sizes: dict[str, tuple[int, int]]
    camera: Camera
    assets: dict[str, Mesh]
    asset_sizes_m: dict[str, tuple[tuple[float, float, float], ...]]
    category_assets: tuple[tuple[str, ...], ...]
    yaws_rad: tuple[tuple[float, ...] | None, ...]
    pitch_spread_rad: float
    size_spreads: tuple[float, ...]
    min_visible_share: float
    threshold: float
    adaptive: bool
    domains: dict[str, tuple[str, str]]
    layout: Callable[["Env", str, np.random.Generator], tuple[list[SceneObject], Camera]]
    settle: Callable[[list[SceneObject], np.ndarray, Camera, np.random.Generator], list[SceneObject]] | None
    dress: Callable[[list[SceneObject], Camera, str, str, np.random.Generator], Scene]

    def __post_init__(self) -> None:
        for category, spread in zip(self.vocabulary.categories, self.size_spreads):
            if self.pitch_spread_rad > 0 and not spread > 0:  # the depth from a height is weighed by the spread's inverse
                raise InputError(f"envs/{self.name}.py: ENV: size_spreads: {spread} of {category}, expected more than 0 where "
                                 "pitch_spread_rad is")
