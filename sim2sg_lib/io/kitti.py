"""The file formats and coordinate frames of KITTI's object benchmark (Geiger et al. 2012).

    ROOT/image_2/000000.png      left color images; ROOT is the folder itself or its training/
    ROOT/calib/000000.txt        projection matrices P0..P3, of which P2 is image_2's
    ROOT/label_2/000000.txt      one object per line; absent for an unlabeled target
    ROOT/label_2_extra/          House and Vegetation, which KITTI does not label; may be absent

KITTI's frame is the rectified reference camera 0: x right, y down, z forward, its origin
CAMERA_HEIGHT_M above a flat ground. The world has z up: x is KITTI's x, y is KITTI's z, and z is
CAMERA_HEIGHT_M - KITTI's y. rotation_y turns about y, from z to x: yaw_rad = -rotation_y.
Pixels: KITTI counts from the center of the first pixel, this project from its corner. KITTI's
numbers are kept, so that projections and scores are KITTI's; half a pixel is within label noise.
"""
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, make_graph
from sim2sg_lib.io.cameras import check_pose
from sim2sg_lib.io.graphs import MAX_OBJECTS
from sim2sg_lib.io.images import kitti_root
from sim2sg_lib.io.reading import read_text, safe_join
from sim2sg_lib.scene import SceneObject, relations

CAMERA_HEIGHT_M = 1.65
CAMERA_FROM_WORLD = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
CALIB_FILE = "a KITTI calibration file, or --camera paper, which needs none"
EXTRA_TYPES = ("House", "Vegetation")
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc",
         "DontCare") + EXTRA_TYPES
# KITTI type -> category that it resembles: its objects are ignored objects of that category
IGNORED_AS = {"Van": "car", "Person_sitting": "pedestrian"}
# occlusion state -> a visible fraction within the same metrics.LEVELS
VISIBLE = {-1: 1.0, 0: 1.0, 1: 0.675, 2: 0.35, 3: 0.1}
COLUMNS = ("type", "truncated", "occluded", "alpha", "left", "top", "right", "bottom", "height",
           "width", "length", "x", "y", "z", "rotation_y", "score")


@dataclass(frozen=True)
class KittiObject:
    """One line of a label or result file, in KITTI's own frame and units.

    type:           one of TYPES.
    truncated:      fraction outside the image in [0, 1]; -1 if unknown.
    occluded:       0 fully visible, 1 partly, 2 largely occluded, 3 unclear; -1 if unknown.
    alpha_rad:      observation angle, rotation_y less the direction to the object; -10 if unknown.
    box_px:         left, top, right, bottom in pixels from the center of the first.
    size_m:         height, width, length, meters; -1 if unknown.
    bottom_camera:  x, y, z of the bottom's center in rectified camera 0, meters; -1000 if unknown.
    rotation_y_rad: about that camera's y axis; 0 faces right, -pi/2 away; -10 if unknown.
    score:          of a detection; None for a label.
    where:          file and line it was read from.
    """

    type: str
    truncated: float
    occluded: int
    alpha_rad: float
    box_px: tuple[float, float, float, float]
    size_m: tuple[float, float, float]
    bottom_camera: tuple[float, float, float]
    rotation_y_rad: float
    score: float | None = None
    where: str = field(default="", compare=False)

    @property
    def placed(self) -> bool:
        """Whether the 3-D part is known, unlike that of DontCare and of 2-D detections."""
        return self.bottom_camera[2] > -1000 and min(self.size_m) > 0


# --- files ----------------------------------------------------------------------------------------

def written_by_export(folder: Path) -> bool:
    """Whether this is the kitti/ of `synthesize.py --export kitti` beside a dataset.json."""
    root = (kitti_root(folder) or Path(folder)).resolve()  # its training/
    return root.parent.name == "kitti" and os.path.exists(root.parents[1] / "dataset.json")


def read_objects(path: Path, results: bool = False) -> list[KittiObject]:
    """The objects of a label file (15 columns) or a result file (16). Raises: InputError."""
    kind = "result" if results else "label"
    lines = read_text(path, f"a KITTI {kind} file").splitlines()
    if len(lines) > MAX_OBJECTS:
        raise InputError(f"{path}: {len(lines)} lines, expected {MAX_OBJECTS} at most")
    return [_parse_object(line, f"{path}:{number}", COLUMNS[:16 if results else 15])
            for number, line in enumerate(lines, 1) if line.strip()]


def _parse_object(line: str, where: str, columns: tuple[str, ...]) -> KittiObject:
    words = line.split()
    if len(words) != len(columns):
        names = ", ".join(columns)
        raise InputError(f"{where}: {len(words)} columns, expected {len(columns)} ({names})")
    if words[0].lower() not in _TYPE_BY_NAME:
        raise InputError(f"{where}: type: {words[0]!r}, expected one of {', '.join(TYPES)}")
    row = {name: _number(word, f"{where}: {name}") for name, word in zip(columns[1:], words[1:])}
    left, top, right, bottom = (row[name] for name in COLUMNS[4:8])
    if row["truncated"] != -1 and not 0 <= row["truncated"] <= 1:
        raise InputError(f"{where}: truncated: {words[1]}, expected a fraction from 0 to 1, or -1")
    if row["occluded"] not in VISIBLE:
        raise InputError(f"{where}: occluded: {words[2]}, expected 0, 1, 2, 3 or -1")
    for low, high in (("left", "right"), ("top", "bottom")):
        if row[low] >= row[high]:
            limit = f"{low}, {row[low]:g}"
            raise InputError(f"{where}: {high}: {row[high]:g}, expected more than {limit}")
    return KittiObject(
        _TYPE_BY_NAME[words[0].lower()], row["truncated"], int(row["occluded"]), row["alpha"],
        (left, top, right, bottom), tuple(row[name] for name in COLUMNS[8:11]),
        tuple(row[name] for name in COLUMNS[11:14]), row["rotation_y"], row.get("score"), where)


_TYPE_BY_NAME = {name.lower(): name for name in TYPES}  # KITTI's evaluator ignores case


def _number(word: str, where: str) -> float:
    try:
        # Python reads 1_0 as ten
        value = float(word) if word.isascii() and "_" not in word else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:  # false for NaN, too
        raise InputError(f"{where}: {word!r}, expected a finite number")
    return value


def format_object(item: KittiObject) -> str:
    """One line of a label file, or of a result file if there is a score, without the newline."""
    numbers = (item.alpha_rad, *item.box_px, *item.size_m, *item.bottom_camera, item.rotation_y_rad)
    columns = " ".join(f"{round(number, 2) + 0.0:.2f}" for number in numbers)  # + 0.0: never -0.00
    line = f"{item.type} {item.truncated:.2f} {item.occluded} {columns}"
    return line if item.score is None else f"{line} {item.score:.4f}"


def read_calib(path: Path) -> np.ndarray:
    """(3, 4) float64 P2, from rectified camera 0 to pixels of image_2. Raises: InputError."""
    for number, line in enumerate(read_text(path, CALIB_FILE).splitlines(), 1):
        name, *words = line.split() or [""]
        if name != "P2:":
            continue
        if len(words) != 12:
            raise InputError(f"{path}:{number}: P2: {len(words)} numbers, expected 12")
        P2 = np.array([_number(word, f"{path}:{number}: P2") for word in words]).reshape(3, 4)
        K = P2[:, :3]
        if min(K[0, 0], K[1, 1]) < 1 or K[0, 1] or K[1, 0] or K[2].tolist() != [0, 0, 1]:
            raise InputError(f"{path}:{number}: P2: expected rows f 0 cx tx, 0 f cy ty, 0 0 1 tz "
                             "with f >= 1")
        return P2
    raise InputError(f"{path}: no line P2:, expected one with 12 numbers")


def frame_objects(root: Path, stem: str) -> list[KittiObject]:
    """A frame's labels, with label_2_extra's last. Raises: InputError, also for misplaced types."""
    objects = []
    for folder in ("label_2", "label_2_extra"):
        if folder == "label_2_extra" and not (root / folder).is_dir():
            continue
        for item in read_objects(safe_join(root, f"{folder}/{stem}.txt")):
            # the folders say what is labeled, so each type belongs in one of them
            if (item.type in EXTRA_TYPES) != (folder == "label_2_extra"):
                raise InputError(f"{item.where}: type: {item.type!r}, expected House and "
                                 "Vegetation in label_2_extra/, all others in label_2/")
            objects.append(item)
    return objects


def unlabeled_categories(root: Path, env: Env) -> tuple[str, ...]:
    """The categories without labels here: house and vegetation if label_2_extra/ is missing."""
    known = [name for name in TYPES if name not in EXTRA_TYPES or (root / "label_2_extra").is_dir()]
    return tuple(name for name in env.vocabulary.categories if name not in map(str.lower, known))


# --- frames ---------------------------------------------------------------------------------------

def camera_of(P2: np.ndarray, width: int, height: int) -> Camera:
    """The camera that projects like P2 (3, 4) of read_calib, from the world frame."""
    K = P2[:, :3]
    # camera 2 stands a few centimeters beside camera 0: P2 says so in its fourth column
    t = np.array([0, CAMERA_HEIGHT_M, 0]) + np.linalg.solve(K, P2[:, 3])
    return Camera(K, CAMERA_FROM_WORLD, t, width, height)


def paper_camera(width: int, height: int) -> Camera:
    """The camera that Prakash et al. 2021 assume: 90 degrees wide, its axis at the center."""
    K = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]])
    return Camera(K, CAMERA_FROM_WORLD, np.array([0, CAMERA_HEIGHT_M, 0]), width, height)


def world_of(bottom_camera: np.ndarray) -> np.ndarray:
    """(..., 3) positions in rectified camera 0 -> world, meters."""
    x, y, z = np.moveaxis(np.asarray(bottom_camera, np.float64), -1, 0)
    return np.stack([x, z, CAMERA_HEIGHT_M - y], -1)


def yaw_of(rotation_y_rad: float) -> float:
    """KITTI's rotation_y -> yaw about world z, in [-pi, pi]; x is the direction of the length."""
    return math.remainder(-rotation_y_rad, 2 * math.pi)


def frame_cameras(root: Path, names: list[str], sizes: list[tuple[int, int]],
                  camera: str | None) -> list[Camera]:
    """Each image's camera: "calib" (or None) from its calibration, "paper" as the paper assumes.

    Raises: InputError for a calibration that is missing, broken, or below the ground.
    """
    if camera == "paper":
        return [paper_camera(*size) for size in sizes]
    cameras = []
    for name, size in zip(names, sizes):
        path = safe_join(root, f"calib/{Path(name).stem}.txt")
        cameras.append(camera_of(read_calib(path), *size))
        check_pose(cameras[-1], f"{path}: P2")
    return cameras


# --- graphs ---------------------------------------------------------------------------------------

def to_graph(image: str, objects: list[KittiObject], camera: Camera, env: Env,
             van: str = "ignore") -> SceneGraph:
    """A frame's labels as a scene graph; relations are between objects with 3-D labels.

    DontCare becomes an ignore region of every category. A Van and a Person_sitting become ignored
    objects (visible 0, see SceneGraph) of car and pedestrian, unless `van` is "car". Types without
    a category in the environment are left out.

    Raises: InputError for a box outside the image.
    """
    categories = env.vocabulary.categories
    rows = []  # (label, box, visible, truncated, ignore, the object where it may have relations)
    for item in objects:
        box = np.clip(item.box_px, 0, (camera.width, camera.height) * 2)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(f"{item.where or image}: box {item.box_px} lies outside the image of "
                             f"{camera.width}x{camera.height} pixels")
        kind = "Car" if (item.type, van) == ("Van", "car") else item.type
        if kind == "DontCare":
            rows += [(label, box, 1.0, 0.0, True, None) for label in range(len(categories))]
        elif IGNORED_AS.get(kind) in categories:
            rows.append((categories.index(IGNORED_AS[kind]), box, 0.0, 0.0, False, None))
        elif kind.lower() in categories:
            rows.append((categories.index(kind.lower()), box, VISIBLE[item.occluded],
                         max(item.truncated, 0.0), False, item))
    labels, boxes_px, visible, truncated, ignore, items = zip(*rows) if rows else [()] * 6
    placed = np.array([i for i, item in enumerate(items) if item and item.placed], np.int64)
    things = [to_object(labels[i], items[i]) for i in placed]
    found = relations(things, camera, env.vocabulary.predicates, env.world.rules)
    found[:, [0, 2]] = placed[found[:, [0, 2]]]  # from rows among the placed to rows of the graph
    return make_graph(image, camera.width, camera.height, labels, boxes_px, found, visible=visible,
                      truncated=truncated, ignore=ignore)


def frame_labels(root: Path, names: list[str], env: Env) -> list[list[KittiObject]]:
    """Each image's objects in label_2/ and, if it is there, label_2_extra/.

    Raises: InputError, also for labels without an image or an environment without KITTI's types.
    """
    if not set(map(str.lower, TYPES)) & set(env.vocabulary.categories):
        raise InputError(f"{root}: KITTI labels {', '.join(TYPES)}, the environment {env.name} has "
                         f"only {', '.join(env.vocabulary.categories)}")
    stems = [Path(name).stem for name in names]
    known = set(stems)
    for folder in ("label_2", "label_2_extra"):
        for path in sorted(safe_join(root, folder).glob("[!.]*.txt")):
            if path.stem not in known:
                raise InputError(f"{path}: no image {path.stem} in {root / 'image_2'}")
    return [frame_objects(root, stem) for stem in stems]


def to_object(label: int, item: KittiObject) -> SceneObject:
    """A labeled 3-D box in the world; it has no asset."""
    height, width, length = item.size_m
    position = world_of(np.array(item.bottom_camera))
    return SceneObject(label, "", tuple(map(float, position)), (length, width, height),
                       yaw_of(item.rotation_y_rad))
