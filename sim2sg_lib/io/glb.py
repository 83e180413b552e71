"""Binary glTF 2.0 files (GLB) -> triangles in the file's world frame.

Parsed here since trimesh 5.2 silently ignores normalized integers, sparse accessors, GPU instances,
triangle fans, morph targets, skins and required extensions.
"""
import base64
import json
import re
import struct

import numpy as np
from scipy.spatial.transform import Rotation

from sim2sg_lib.io.reading import MAX_FILE_BYTES

# by componentType
DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
# what a node's or an instance's matrix is made of, with defaults
REST = {"translation": (0, 0, 0), "rotation": (0, 0, 0, 1), "scale": (1, 1, 1)}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}  # by accessor type
# required extensions that are read, or that do not change the geometry
SUPPORTED = re.compile(
    "KHR_mesh_quantization|EXT_mesh_gpu_instancing|(KHR|EXT)_(materials|texture|lights)_.*")


class Unsupported(ValueError):
    """A part of the glTF format that is not read; the message says which."""


def read_glb(content: bytes, max_faces: int) -> list[np.ndarray] | None:
    """The triangles (F, 3, 3) of each node's primitives, in the file's world frame.

    None if there are more than max_faces. Raises: Unsupported; any exception for a broken file.
    """
    glb = Glb(content)
    world, pieces, total = glb.world_matrices(), [], 0
    for index, matrix in world.items():
        node = glb.tree["nodes"][index]
        if "mesh" not in node:
            continue
        mesh = glb.tree["meshes"][node["mesh"]]
        weights = node.get("weights", mesh.get("weights", []))
        bones = glb.bones(node["skin"], world) if "skin" in node else None
        matrices = np.eye(4)[None] if bones is not None else matrix @ glb.instances(node)
        for primitive in mesh["primitives"]:
            triangles = glb.triangles(primitive, weights, bones)
            total += len(matrices) * len(triangles)
            if total > max_faces:
                return None
            if not len(triangles):
                continue
            placed = []
            for to_world in matrices:
                turn = to_world[:3, :3]
                order = -1 if np.linalg.det(turn) < 0 else 1  # mirrored
                placed.append(triangles[:, ::order] @ turn.T + to_world[:3, 3])
            pieces.append(np.concatenate(placed))
    return pieces


class Glb:
    """A binary glTF 2.0 file (Khronos specification, sections 3.6, 3.7 and 4.4).

    tree: its JSON. buffer: its binary chunk.
    """

    def __init__(self, content: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", content)
        if magic != b"glTF" or version != 2:
            raise ValueError("no glTF header of version 2")
        chunks, at = {}, 12
        while at + 8 <= min(length, len(content)):
            size, kind = struct.unpack_from("<I4s", content, at)
            chunks.setdefault(kind, content[at + 8:at + 8 + size])
            at += 8 + size
        self.tree, self.buffer = json.loads(chunks[b"JSON"]), chunks.get(b"BIN\0", b"")
        unknown = [name for name in self.tree.get("extensionsRequired", [])
                   if not SUPPORTED.fullmatch(name)]
        if unknown:
            raise Unsupported(f"requires the glTF extension {', '.join(unknown)}, which is not "
                              "supported")

    def world_matrices(self) -> dict[int, np.ndarray]:
        """Node index -> (4, 4) matrix to the world frame, of all nodes of the default scene."""
        nodes = self.tree.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [index for index in range(len(nodes)) if index not in children]
        if "scenes" in self.tree:
            roots = self.tree["scenes"][self.tree.get("scene", 0)].get("nodes", [])
        world, waiting = {}, [(root, np.eye(4)) for root in reversed(roots)]
        while waiting:
            index, parent = waiting.pop()
            if index in world:
                raise ValueError(f"nodes[{index}] has two parents")
            node = nodes[index]
            if "matrix" in node:
                local = np.reshape(node["matrix"], (4, 4)).T
            else:
                parts = ([node.get(name, value)] for name, value in REST.items())
                local = compose_matrices(*parts)[0]
            world[index] = parent @ local
            waiting += [(child, world[index]) for child in reversed(node.get("children", []))]
        return world

    def instances(self, node: dict) -> np.ndarray:
        """(K, 4, 4) of a node's instances in its frame (EXT_mesh_gpu_instancing); K = 1 if none."""
        if "EXT_mesh_gpu_instancing" not in node.get("extensions", {}):
            return np.eye(4)[None]
        attributes = node["extensions"]["EXT_mesh_gpu_instancing"]["attributes"]
        found = {name.lower(): self.numbers(index) for name, index in attributes.items()}
        count = len(next(iter(found.values())))
        whole = {name: np.tile(value, (count, 1)) for name, value in REST.items()} | found
        return compose_matrices(*(whole[name] for name in REST))

    def bones(self, index: int, world: dict[int, np.ndarray]) -> np.ndarray:
        """(J, 4, 4) from a skinned mesh's frame to the world, per joint, in the file's pose."""
        skin = self.tree["skins"][index]
        joints = np.stack([world[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" not in skin:
            return joints
        inverses = self.numbers(skin["inverseBindMatrices"]).reshape(-1, 4, 4)  # column by column
        return joints @ inverses.transpose(0, 2, 1)

    def triangles(self, primitive: dict, weights: list, bones: np.ndarray | None) -> np.ndarray:
        """(F, 3, 3), morphed by `weights` and skinned by `bones`; none of points and lines."""
        attributes, mode = primitive["attributes"], primitive.get("mode", 4)
        if mode < 4 or "POSITION" not in attributes:
            return np.zeros((0, 3, 3))
        verts = self.numbers(attributes["POSITION"])
        for weight, target in zip(weights, primitive.get("targets", [])):
            if "POSITION" in target:
                verts = verts + weight * self.numbers(target["POSITION"])
        if bones is not None:
            verts = self.skinned(verts, attributes, bones)
        order = np.arange(len(verts))
        if "indices" in primitive:
            order = self.numbers(primitive["indices"]).astype(np.int64).reshape(-1)
        i = np.arange(max(len(order) - 2, 0))
        # triangles, a strip, a fan
        faces = {4: lambda: order[:len(order) // 3 * 3].reshape(-1, 3),
                 5: lambda: np.stack([order[i], order[i + 1 + i % 2], order[i + 2 - i % 2]], 1),
                 6: lambda: np.stack([order[i + 1], order[i + 2], order[0 * i]], 1)}[mode]()
        if len(faces) and faces.min() < 0:
            raise ValueError("a negative index")
        return verts[faces]

    def skinned(self, verts: np.ndarray, attributes: dict, bones: np.ndarray) -> np.ndarray:
        """(V, 3) in the world: each vertex moved by the weighted mean of its joints' bones."""
        mean, total = np.zeros((len(verts), 4, 4)), np.zeros(len(verts))
        for k in range(sum(name.startswith("JOINTS_") for name in attributes)):
            joints = self.numbers(attributes[f"JOINTS_{k}"]).astype(int)
            weights = self.numbers(attributes[f"WEIGHTS_{k}"])
            for joint, weight in zip(joints.T, weights.T):
                mean += weight[:, None, None] * bones[joint]
                total += weight
        return (np.einsum("vij,vj->vi", mean[:, :3, :3], verts) + mean[:, :3, 3]) / total[:, None]

    def numbers(self, index: int) -> np.ndarray:
        """(count, columns) float64, the elements of an accessor: strided, normalized, sparse."""
        accessor = self.tree["accessors"][index]
        count, columns = accessor["count"], COLUMNS[accessor["type"]]
        sparse = accessor.get("sparse")
        dtype = np.dtype(DTYPES[accessor["componentType"]])
        if "bufferView" in accessor:
            values = self.elements(accessor, count, columns, dtype)
        elif sparse and 8 * count * columns <= MAX_FILE_BYTES:
            values = np.zeros((count, columns), dtype)
        else:
            used = ", ".join(self.tree.get("extensionsUsed", [])) or "no extension"
            raise Unsupported(f"accessors[{index}] has no data; the file uses {used}")
        values = values.astype(np.float64)
        if sparse:
            where = np.dtype(DTYPES[sparse["indices"]["componentType"]])
            rows = self.elements(sparse["indices"], sparse["count"], 1, where)[:, 0]
            values[rows] = self.elements(sparse["values"], sparse["count"], columns, dtype)
        if accessor.get("normalized") and dtype.kind != "f":
            values = np.maximum(values / np.iinfo(dtype).max, -1)
        return values

    def elements(self, place: dict, count: int, columns: int, dtype: np.dtype) -> np.ndarray:
        """(count, columns) of `dtype` at the bufferView and byteOffset of `place`."""
        view = self.tree["bufferViews"][place["bufferView"]]
        buffer = self.tree["buffers"][view["buffer"]]
        start, stride = view.get("byteOffset", 0), view.get("byteStride", columns * dtype.itemsize)
        uri = buffer.get("uri", "")
        if "uri" in buffer and not uri.startswith("data:"):
            raise Unsupported(f"its data are in another file, {uri[:80]!r}, expected a GLB file "
                              "that holds all of them")
        if "uri" not in buffer and view["buffer"] != 0:
            raise Unsupported(f"buffers[{view['buffer']}] has no data")
        data = base64.b64decode(uri.partition(",")[2]) if "uri" in buffer else self.buffer
        if min(start, stride - columns * dtype.itemsize) < 0:
            raise ValueError("a negative offset or a stride shorter than an element")
        return np.ndarray((count, columns), dtype, data[start : start + view["byteLength"]],
                          place.get("byteOffset", 0), (stride, dtype.itemsize))


def compose_matrices(translations, rotations, scales) -> np.ndarray:
    """(K, 4, 4) that scale (K, 3), turn by quaternions x y z w (K, 4), then move (K, 3)."""
    matrices = np.tile(np.eye(4), (len(translations), 1, 1))
    turns = Rotation.from_quat(rotations).as_matrix()
    matrices[:, :3, :3] = turns * np.asarray(scales, np.float64)[:, None]
    matrices[:, :3, 3] = translations
    return matrices
