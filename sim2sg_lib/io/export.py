"""A data set in two more formats, which other programs read.

    FOLDER/kitti/training/    image_2/, label_2/, calib/ of KITTI's object benchmark; types that
                              KITTI lacks, such as houses and vegetation, in label_2_extra/
    FOLDER/coco/              images/ and annotations.json of COCO detection, without relations

KITTI's boxes turn about the camera's y axis, and the format has no tilt, so only level cameras are
exported. Positions are in the camera's own frame (P2's fourth column is 0); its height above the
ground is not part of the format.
"""
import math
import os
import shutil
from pathlib import Path

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.io.files import write_json, write_text
from sim2sg_lib.io.kitti import EXTRA_TYPES, TYPES, KittiObject, format_object
from sim2sg_lib.scene import Scene, SceneObject
from sim2sg_lib.score.metrics import LEVELS


def export(folder: Path, formats: list[str], graphs: list[SceneGraph], scenes: list[Scene],
           object_rows: list[list[int]], vocabulary: Vocabulary) -> None:
    """Write a data set in some of the formats "kitti" and "coco"; its images are in FOLDER.

    object_rows: for KITTI, per graph the indices of its objects in its scene. Raises: InputError.
    """
    if "kitti" in formats:
        objects = [[scene.objects[i] for i in rows] for scene, rows in zip(scenes, object_rows)]
        write_kitti(folder, graphs, objects, [scene.camera for scene in scenes], vocabulary)
    if "coco" in formats:
        write_coco(folder, graphs, vocabulary)


def check_level(camera: Camera, name: str) -> None:
    """Raises: InputError if the camera's y axis is not the world's vertical."""
    tilt_degrees = math.degrees(math.acos(np.clip(-camera.R[1, 2], -1, 1)))
    if tilt_degrees > 0.01:  # less than the two decimals of KITTI's files
        tilt = f"{name} is tilted by {tilt_degrees:.1f} degrees"
        raise InputError(f"--export kitti: {tilt}, expected a level one, since KITTI's 3-D boxes "
                         "turn about the camera's own y axis; --export coco takes any")


def write_kitti(folder: Path, graphs: list[SceneGraph], objects: list[list[SceneObject]],
                cameras: list[Camera], vocabulary: Vocabulary) -> None:
    """Write FOLDER/kitti/training; the images of the graphs are in FOLDER.

    objects: per graph the 3-D objects behind its rows. cameras: per graph, of any pixel size.
    Raises: InputError for a camera that is not level.
    """
    root = Path(folder) / "kitti" / "training"
    shutil.rmtree(root, ignore_errors=True)  # left by an interruption
    extra = [name for name in map(str.capitalize, vocabulary.categories)
             if name not in TYPES or name in EXTRA_TYPES]
    label_folders = ["label_2", "label_2_extra"] if extra else ["label_2"]
    for name in ("image_2", "calib", *label_folders):
        (root / name).mkdir(parents=True)
    for graph, items, camera in zip(graphs, objects, cameras, strict=True):
        check_level(camera, f"the camera of {graph.image}")
        image = Path(graph.image)
        link_image(folder / image, root / "image_2" / image.name)
        rows = [kitti_object(graph, i, item, camera, vocabulary) for i, item in enumerate(items)]
        for name in label_folders:
            lines = [format_object(row) + "\n" for row in rows
                     if (row.type in extra) == (name == "label_2_extra")]
            write_text(root / name / f"{image.stem}.txt", "".join(lines))
        resized = camera.resized(graph.width, graph.height)
        write_text(root / "calib" / f"{image.stem}.txt", calib_text(resized))


def kitti_object(graph: SceneGraph, index: int, item: SceneObject, camera: Camera,
                 vocabulary: Vocabulary) -> KittiObject:
    """Row `index` of a graph and its 3-D object as a line of a label file, for a level camera."""
    length, width, height = item.size_m
    bottom = camera.R @ np.array(item.position_world) + camera.t
    heading = camera.R @ [math.cos(item.yaw_rad), math.sin(item.yaw_rad), 0]
    rotation_y_rad = math.atan2(-heading[2], heading[0])
    alpha_rad = math.remainder(rotation_y_rad - math.atan2(bottom[0], bottom[2]), 2 * math.pi)
    return KittiObject(
        vocabulary.categories[graph.labels[index]].capitalize(), float(graph.truncated[index]),
        occlusion_state(graph.visible[index]), alpha_rad, tuple(graph.boxes_px[index].tolist()),
        (height, width, length), tuple(bottom.tolist()), rotation_y_rad)


def occlusion_state(visible: float) -> int:
    """KITTI's occlusion state, 0 (fully visible) to 3, with the same levels as a visible fraction."""
    return sum(bool(visible < LEVELS[name].min_visible) for name in ("easy", "moderate", "hard"))


def calib_text(camera: Camera) -> str:
    """A calibration file: the camera is its own reference, without lidar and inertial unit."""
    rows = dict.fromkeys(("P0", "P1", "P2", "P3"), np.hstack([camera.K, np.zeros((3, 1))]))
    rows |= {"R0_rect": np.eye(3), "Tr_velo_to_cam": np.eye(3, 4), "Tr_imu_to_velo": np.eye(3, 4)}
    return "".join(f"{name}: {' '.join(f'{value:.12e}' for value in matrix.ravel())}\n"
                   for name, matrix in rows.items())


def write_coco(folder: Path, graphs: list[SceneGraph], vocabulary: Vocabulary) -> None:
    """Write FOLDER/coco; the images of the graphs are in FOLDER.

    Ids count from 1, boxes are x, y, width, height. Segmentations are the boxes as polygons, since
    pycocotools can neither draw nor mask annotations without one.
    """
    out = Path(folder) / "coco"
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    images, annotations = [], []
    for image_id, graph in enumerate(graphs, 1):
        name = Path(graph.image).name
        link_image(folder / graph.image, out / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": graph.width,
                       "height": graph.height})
        for label, (x0, y0, x1, y1) in zip(graph.labels.tolist(), graph.boxes_px.tolist()):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0,
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
    write_json(out / "annotations.json", {
        "info": {"description": "synthetic images of Sim2SG"}, "licenses": [], "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(vocabulary.categories, 1)]})


def link_image(source: Path, target: Path) -> None:
    """A hard link where the file system supports it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
