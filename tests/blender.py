"""The same scenes rendered by Blender Cycles and by us: `python tests/blender.py FOLDER OUT.png`.

FOLDER holds images/ and scenes.json: per image its objects (category, size, color, location of the
center, yaw in degrees), relations, and Blender's camera matrices. Lamps are CLEVR's nominal ones,
since the file does not contain their jitter.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from envs.clevr import APPEARANCE, CATEGORIES, ENV, GROUND_RGB, LAMPS, size_m
from sim2sg_lib.camera import Camera
from sim2sg_lib.viz.drawings import contact_sheet, to_tile
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.scene import Light, Material, Scene, SceneObject, Sky, linear

RADIUS_M = {"small": 0.35, "medium": 0.5, "large": 0.7}
COLORS = dict(zip(("pink", "brown", "white"), APPEARANCE["target"][0]))


def read_camera(item: dict) -> Camera:
    """Our camera from Blender's matrices; Blender's camera looks along -z, with y up."""
    pose, projection = (np.array(item["camera"]["matrix_world"]),
                        np.array(item["camera"]["projection"]))
    R, width, height = (pose[:3, :3] * [1, -1, -1]).T, item["width"], item["height"]
    K = np.array(
        [
            [projection[0, 0] * width / 2, 0, width / 2],
            [0, projection[1, 1] * height / 2, height / 2],
            [0, 0, 1],
        ]
    )
    return Camera(K, R, -R @ pose[:3, 3], width, height)


def read_scenes(folder: Path) -> list[tuple[dict, Scene]]:
    """Entry and scene of each image in the file; in the target's appearance, not stylized."""
    metallic, roughness = APPEARANCE["target"][1]
    lights = tuple(Light(position, (power,) * 3) for position, power in LAMPS)
    result = []
    for item in json.loads((folder / "scenes.json").read_text()):
        objects = []
        for o in item["objects"]:
            label = CATEGORIES.index(o["category"])
            objects.append(SceneObject(
                label, o["category"], (*o["location"][:2], 0.0),
                size_m(label, RADIUS_M[o["size"]]), np.radians(o["yaw"]),
                Material(linear(COLORS[o["color"]]), metallic, roughness)))
        result.append((item, Scene(
            tuple(objects), read_camera(item), lights, Sky((0.35,) * 3, (0.35,) * 3),
            Material(GROUND_RGB, roughness=1.0))))
    return result


def main(folder: Path, out: Path) -> None:
    chosen = read_scenes(folder)[:6]
    scenes = [scene for _, scene in chosen]
    names = [item["file"] for item, _ in chosen]
    ours = render_scenes(ENV, scenes, names, (320, 240), torch.device("cpu")).images
    theirs = [np.array(Image.open(folder / item["file"]).convert("RGB")) for item, _ in chosen]
    contact_sheet([("Blender Cycles", [to_tile(image) for image in theirs]),
                   ("rendered here", [to_tile(image) for image in ours])]).save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
