"""Meshes from files in the place of an environment's own: OBJ and GLB, ShapeNet's folders among them."""
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError, log_info
from sim2sg_lib.env import Env
from sim2sg_lib.io.reading import read_bytes, safe_join
from sim2sg_lib.scene import Mesh
from sim2sg_lib.sim.meshes import to_unit

MAX_FACES = 20_000
# rows: our x (ahead), y (left) and z (up) in the file's axes. Both are y up; glTF 2.0 looks along +z, ShapeNet along -z
TO_WORLD = {".glb": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0.0]]), ".obj": np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0.0]])}


def replace_assets(env: Env, folder: Path) -> Env:
    """The environment with the source's assets of every category that `folder` has files of replaced by those.

    Files: folder/<category>/*.obj or *.glb, and folder/<category>/<model>/models/model_normalized.obj as in ShapeNet.
    Each comes in the sizes of the category's middle asset, as long from corner to corner: a file's own unit may be anything.
    Those of more than MAX_FACES are left out. Errors: InputError for a folder without any of them, a category of which none
    is left, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one of OBJ or GLB files by category")
    assets, sizes_m, names = dict(env.world.assets), dict(env.world.asset_sizes_m), list(env.world.category_assets)
    for label, category in enumerate(env.vocabulary.categories):
        paths = asset_files(folder / category)
        if not paths:
            continue
        rows = sorted([np.linalg.norm(env.world.asset_sizes_m[name], axis=1) for name in env.world.category_assets[label]], key=max)
        lengths_m = rows[len(rows) // 2]
        found = {name: read_mesh(safe_join(folder, name)) for name in (str(path.relative_to(folder)) for path in paths)}
        names[label] = tuple(name for name in found if found[name])
        if not names[label]:
            raise InputError(f"{folder / category}: every model has more than {MAX_FACES} faces, expected one of fewer")
        if len(names[label]) < len(found):
            log_info(f"{folder / category}: left out {len(found) - len(names[label])} of {len(found)} models, of more than "
                f"{MAX_FACES} faces")
        for name in names[label]:
            assets[name], extents = found[name]
            shape = np.array(extents) / np.linalg.norm(extents)
            sizes_m[name] = tuple(tuple(map(float, length * shape)) for length in lengths_m)
    if tuple(names) == env.world.category_assets:
        raise InputError(f"{folder}: no OBJ or GLB file in a folder named {', '.join(env.vocabulary.categories)}")
    world = replace(env.world, assets=assets, asset_sizes_m=sizes_m, category_assets=tuple(names))
    return replace(env, world=world)


def asset_files(folder: Path) -> list[Path]:
    """A category's files in the order of their names."""
    return sorted([path for path in folder.glob("*") if path.suffix.lower() in TO_WORLD]
                  + list(folder.glob("*/models/model_normalized.obj")))


def read_mesh(path: Path) -> tuple[Mesh, tuple[float, float, float]] | None:
    """One file as a unit mesh, x ahead and z up, and its extents in the file's unit; None for more than MAX_FACES.

    Every piece of the file is a part; one that winds inward as a whole is turned over. Faces are flat.
    """
    try:
        import trimesh
    except ImportError:
        raise InputError("--assets reads files with trimesh, which is not installed: pip install trimesh") from None
    content = io.BytesIO(read_bytes(path, "an OBJ or GLB file"))  # no path: a file that names others opens none
    try:
        scene = trimesh.load(content, path.suffix.lower()[1:], force="scene", process=False)
        pieces = [(np.asarray(piece.vertices) @ TO_WORLD[path.suffix.lower()].T)[piece.faces]  # (f, 3, 3)
                  for piece in scene.dump() if hasattr(piece, "faces")]
    except Exception as error:  # trimesh passes on whatever its readers stumble over
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:100]})") from None
    if sum(map(len, pieces)) > MAX_FACES:
        return None
    corners = [turn_outward(piece) for piece in pieces]
    triangles = np.concatenate([np.zeros((0, 3, 3)), *corners])  # (F, 3, 3)
    part = np.repeat(np.arange(len(corners)), [len(piece) for piece in corners])
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    solid = np.linalg.norm(normals, axis=1) > 0
    if not solid.any() or not np.isfinite(triangles).all():
        raise InputError(f"{path}: no faces in it")
    triangles, normals, part = triangles[solid], normals[solid], part[solid]
    return to_unit(triangles.reshape(-1, 3), normals.repeat(3, 0), np.arange(3 * len(part)).reshape(-1, 3), part)


def turn_outward(triangles: np.ndarray) -> np.ndarray:
    """Triangles (F, 3, 3), their corners in the order that gives the solid they bound a positive volume."""
    a, b, c = (triangles - triangles.mean((0, 1)) if len(triangles) else triangles).transpose(1, 0, 2)
    return triangles[:, ::-1] if (np.cross(a, b) * c).sum() < 0 else triangles
