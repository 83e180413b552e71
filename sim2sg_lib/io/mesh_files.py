"""Meshes from OBJ and GLB files as assets (`synthesize.py --assets`)."""
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sim2sg_lib.cli import InputError, log_info
from sim2sg_lib.env import Env
from sim2sg_lib.io.glb import Unsupported, read_glb
from sim2sg_lib.io.obj import read_obj
from sim2sg_lib.io.reading import read_bytes, safe_join
from sim2sg_lib.scene import Mesh
from sim2sg_lib.sim.meshes import to_unit

MAX_FACES = 20_000
# rows: our x (ahead), y (left) and z (up) in the file's axes. Both formats are y up; models look
# along +z in glTF 2.0 and along -z in ShapeNet
TO_WORLD = {".glb": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0.0]]),
            ".obj": np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0.0]])}


def replace_assets(env: Env, folder: Path) -> Env:
    """The environment with the source's assets replaced, in categories that `folder` has files of.

    Files: folder/<category>/*.obj or *.glb, and
    folder/<category>/<model>/models/model_normalized.obj as in ShapeNet. A file's unit is unknown:
    each model gets the sizes (lengths of the diagonal) of the category's median asset. Models of
    more than MAX_FACES triangles are left out. Raises: InputError.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one of OBJ or GLB files by category")
    world = env.world
    assets, sizes_m = dict(world.assets), dict(world.asset_sizes_m)
    names = list(world.category_assets)
    for label, category in enumerate(env.vocabulary.categories):
        paths = asset_files(folder / category)
        if not paths:
            continue
        diagonals_m = sorted(
            [np.linalg.norm(world.asset_sizes_m[name], axis=1) for name in names[label]], key=max)
        relative = [str(path.relative_to(folder)) for path in paths]
        found = {name: read_mesh(safe_join(folder, name)) for name in relative}
        names[label] = tuple(name for name in found if found[name])
        if not names[label]:
            raise InputError(f"{folder / category}: every model has more than {MAX_FACES} faces, "
                             "expected one of fewer")
        if len(names[label]) < len(found):
            log_info(f"{folder / category}: left out {len(found) - len(names[label])} of "
                     f"{len(found)} models, of more than {MAX_FACES} faces")
        for name in names[label]:
            assets[name], extents = found[name]
            shape = np.array(extents) / np.linalg.norm(extents)
            sizes_m[name] = tuple(tuple(map(float, length * shape))
                                  for length in diagonals_m[len(diagonals_m) // 2])
    if tuple(names) == world.category_assets:
        raise InputError(f"{folder}: no OBJ or GLB file in a folder named "
                         f"{', '.join(env.vocabulary.categories)}")
    world = replace(world, assets=assets, asset_sizes_m=sizes_m, category_assets=tuple(names))
    return replace(env, world=world)


def asset_files(folder: Path) -> list[Path]:
    """The mesh files of one category, sorted, without hidden ones (a Mac's `._chair.obj`)."""
    files = [path for path in folder.glob("*")
             if path.suffix.lower() in TO_WORLD and path.name[0] != "." and path.is_file()]
    return sorted([*files, *folder.glob("*/models/model_normalized.obj")])


def read_mesh(path: Path) -> tuple[Mesh, tuple[float, float, float]] | None:
    """One file as a unit mesh with flat normals, x ahead and z up, and its extents before.

    Each OBJ material, and each primitive of a GLB node, is a part. None for more than MAX_FACES
    triangles. Raises: InputError naming the file and, in an OBJ file, the line.
    """
    content, suffix = read_bytes(path, "an OBJ or GLB file"), path.suffix.lower()
    try:
        pieces = (read_glb(content, MAX_FACES) if suffix == ".glb"
                  else read_obj(content, path, MAX_FACES))
    except InputError:
        raise
    except Unsupported as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # parsers raise all kinds of errors on a broken file
        kind, reason = suffix[1:].upper(), " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: cannot be read as a {kind} file ({reason[:100]})") from None
    if pieces is None:
        return None
    triangles = np.concatenate([np.zeros((0, 3, 3)), *pieces]) @ TO_WORLD[suffix].T  # (F, 3, 3)
    part = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    if not np.isfinite(triangles).all():
        raise InputError(f"{path}: a position is not a finite number")
    solid = np.linalg.norm(flat_normals(triangles), axis=1) > 0
    if not solid.any():
        raise InputError(f"{path}: no faces in it")
    triangles, part = repair_winding(triangles[solid]), part[solid]
    normals = flat_normals(triangles)
    return to_unit(triangles.reshape(-1, 3), normals.repeat(3, 0),
                   np.arange(3 * len(part)).reshape(-1, 3), part)


def flat_normals(triangles: np.ndarray) -> np.ndarray:
    """(F, 3) normals of counter-clockwise triangles (F, 3, 3), twice as long as the area."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


# --- winding --------------------------------------------------------------------------------------

def repair_winding(triangles: np.ndarray) -> np.ndarray:
    """Triangles (F, 3, 3) as wound in the file, except where this is certainly wrong.

    A closed connected surface whose neighboring faces disagree is repaired. If the file as a whole
    is closed, consistent and of negative volume, it is inside out and all of it is reversed. Open
    pieces and inner walls stay as they are.
    """
    extent = np.ptp(triangles, axis=(0, 1)).max()
    _, faces = np.unique((triangles.reshape(-1, 3) / (1e-6 * extent)).round(), axis=0,
                         return_inverse=True)
    faces = faces.reshape(-1, 3)  # corners welded by position
    # (3 F, 2), edges k of face i at 3 i + k
    directed = np.concatenate([faces, np.roll(faces, -1, 1)]).reshape(2, -1).T
    edges, edge = np.unique(np.sort(directed, 1), axis=0, return_inverse=True)
    edge = edge.reshape(-1)
    uses = np.bincount(edge)
    # 0 where the neighbors agree
    balance = np.bincount(edge, np.where(directed[:, 0] < directed[:, 1], 1, -1))
    owner = np.repeat(np.arange(len(faces)), 3)
    count = len(faces) + len(edges)
    links = coo_matrix((np.ones(len(edge)), (owner, len(faces) + edge)), (count, count))
    _, component = connected_components(links, directed=False)
    face_component, edge_component = component[:len(faces)], component[len(faces):]
    closed = np.bincount(edge_component, uses != 2) == 0
    wrong = closed & (np.bincount(edge_component, balance != 0) > 0)
    triangles = triangles.copy()
    for index in np.nonzero(wrong)[0]:
        chosen = np.nonzero(face_component == index)[0]
        turned = turned_by_repair(triangles[chosen].reshape(-1, 3), faces[chosen])
        triangles[chosen[turned]] = triangles[chosen[turned], ::-1]
    volume = np.linalg.det((triangles - triangles[0, 0]) / extent).sum() / 6
    whole = (uses % 2 == 0).all() and not balance[~wrong[edge_component]].any()
    return triangles[:, ::-1] if whole and volume < -1e-9 else triangles


def turned_by_repair(corners: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F,) bool, the faces of one closed surface that trimesh reverses to wind all outward.

    corners: (3 F, 3) positions, three per face. faces: their numbers after welding.
    """
    try:
        import trimesh
    except ImportError:
        raise InputError("--assets: a model's faces are wound inconsistently, which trimesh "
                         "repairs, and trimesh is not installed: pip install trimesh") from None
    _, first, number = np.unique(faces, return_index=True, return_inverse=True)
    number = number.reshape(-1, 3)
    mesh = trimesh.Trimesh(corners[first], number, process=False)
    trimesh.repair.fix_winding(mesh)
    trimesh.repair.fix_inversion(mesh)
    # where a face's first edge ends, before and after
    following = (np.argmax(mesh.faces == number[:, :1], 1) + 1) % 3
    return mesh.faces[np.arange(len(number)), following] != number[:, 1]
