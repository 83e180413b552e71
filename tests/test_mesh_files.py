"""OBJ and GLB files: every encoding of a solid gives the same triangles.

Errors name the unsupported features.
"""
import base64
import json
import struct

import numpy as np
import pytest

from sim2sg_lib.cli import InputError
from sim2sg_lib.io import mesh_files
from sim2sg_lib.io.mesh_files import read_mesh

# a box 1 x 2 x 3, its faces counter-clockwise from outside
VERTS = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], np.float64)
QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4],
                  [1, 5, 7, 3]])
TRIANGLES = QUADS[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
IDENTITY = np.eye(3)


def triangles_of(path) -> np.ndarray:
    """(F, 3, 3) triangles of a file in its own axes, the bounding box starting at the origin."""
    mesh, extents = read_mesh(path)
    corners = (mesh.verts + [0.5, 0.5, 0])[mesh.faces] * extents
    return corners @ mesh_files.TO_WORLD[path.suffix]


def same_surface(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sets of triangles are equal up to order, first corner and translation."""
    def canonical(triangles):
        rounded = (triangles - triangles.min((0, 1))).round(4) + 0.0
        return sorted(min(tuple(map(tuple, np.roll(t, k, 0).tolist())) for k in range(3))
                      for t in rounded)
    return canonical(a) == canonical(b)


def volume(triangles: np.ndarray) -> float:
    return float(np.linalg.det(triangles).sum() / 6)


def obj(path, text: str | bytes):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(path) -> str:
    with pytest.raises(InputError) as error:
        read_mesh(path)
    assert "\n" not in error.value.format_message() and error.value.message.startswith(str(path))
    return error.value.format_message()


# --- OBJ ------------------------------------------------------------------------------------------

V_LINES = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in VERTS)
F_LINES = "".join("f " + " ".join(str(i + 1) for i in quad) + "\n" for quad in QUADS)


def relative(first: int = 8) -> str:
    return "".join("f " + " ".join(str(i - first) for i in quad) + "\n" for quad in QUADS)


@pytest.mark.parametrize("text", [
    (V_LINES + F_LINES).replace(" ", "\t"),
    (V_LINES + F_LINES).replace("\n", "\r\n"),
    (V_LINES + F_LINES).replace("\n", "\r"),
    "\ufeff" + V_LINES + F_LINES,
    (V_LINES + F_LINES).encode("utf-16"),
    "# Würfel\nmtllib größe.mtl\n".encode("latin-1")
    + (V_LINES + "usemtl für\n" + F_LINES).encode("latin-1"),
    # the last byte of the GBK name is a backslash
    "# 材质 誠\nusemtl 誠\n".encode("gbk") + (V_LINES + F_LINES).encode(),
    F_LINES + V_LINES,
    V_LINES + relative(),
    V_LINES + "g a\n" + relative().replace("f ", "o b\nf "),
    V_LINES.replace("\n", " 1.0 0.5 0.25\n") + F_LINES,  # vertex colors after the position
    V_LINES.replace("\n", " 1.0\n") + F_LINES,
    V_LINES.replace("v ", "v \\\n") + F_LINES.replace(" 1", " \\\r\n 1"),
    V_LINES + "vn 0 0 1\nvt 0 0\n" + F_LINES.replace(" ", "  ").replace("\n", "/1/1\n"),
    V_LINES + "".join("f " + " ".join(f"{i + 1}//1" for i in quad) + " # side\n" for quad in QUADS),
    V_LINES + "".join("f " + " ".join(f"{i + 1}/-1/" for i in quad) + "\n" for quad in QUADS),
    V_LINES + "".join("f " + " ".join(str(i + 1) for i in triple) + "\n" for triple in TRIANGLES)
    + "l 1 2\np 1\n",
    V_LINES
    + "".join(f"usemtl m{k}\n" + line for k, line in enumerate(F_LINES.splitlines(keepends=True))),
    "".join(f"v {x:g} {y:g} {z:g}\n" for quad in QUADS for x, y, z in VERTS[quad]) + "".join(
        f"f {k + 1} {k + 2} {k + 3} {k + 4}\n" for k in range(0, 24, 4)),
])
def test_a_box_is_a_box_however_an_obj_file_writes_it(tmp_path, text):
    read = triangles_of(obj(tmp_path / "a.obj", text))
    assert same_surface(read, VERTS[TRIANGLES]) and volume(read) == pytest.approx(6)


def test_relative_indices_count_from_where_they_stand(tmp_path):
    moved = "".join(f"v {x + 5:g} {y:g} {z:g}\n" for x, y, z in VERTS)
    read = triangles_of(obj(
        tmp_path / "a.obj", V_LINES + relative() + "o second\n" + moved + relative()))
    assert same_surface(read, np.concatenate([VERTS[TRIANGLES], VERTS[TRIANGLES] + [5, 0, 0]]))


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("turn", [1, -1])
def test_a_concave_face_covers_what_it_encloses(tmp_path, start, turn):
    """An arrow head, an L and a comb, starting at any corner and in either direction."""
    for outline, area in (([(0, 0), (4, -2), (1, 0), (4, 2)], 2 * 1 * 2 / 2),
                          ([(0, 0), (3, 0), (3, 1), (1, 1), (1, 2), (0, 2)], 4),
                          ([(0, 0), (5, 0), (5, 2), (4, 2), (4, 1), (1, 1), (1, 2), (0, 2)], 7)):
        points = np.roll(outline, start, 0)[::turn]
        lines = "".join(f"v {x} 0 {y}\n" for x, y in points)
        path = obj(tmp_path / "a.obj", lines + "f " + " ".join(map(str, range(1, len(points) + 1))))
        read = triangles_of(path)
        normals = np.cross(read[:, 1] - read[:, 0], read[:, 2] - read[:, 0]) / 2
        assert len(read) == len(points) - 2
        # no triangle lies outside the polygon
        assert np.linalg.norm(normals, axis=1).sum() == pytest.approx(area, abs=1e-3)
        np.testing.assert_allclose(normals.sum(0), [0, -turn * area, 0], atol=1e-3)


def test_materials_are_parts_and_objects_are_not(tmp_path):
    faces = F_LINES.splitlines(keepends=True)
    text = (V_LINES + "usemtl red\n" + "".join(faces[:2]) + "usemtl blue#1\no b\n"
            + "".join(faces[2:4]) + "usemtl red\n" + "".join(faces[4:]))
    mesh, _ = read_mesh(obj(tmp_path / "a.obj", text))
    assert mesh.face_part.tolist() == [0] * 8 + [1] * 4


@pytest.mark.parametrize("line, words", [
    ("f 1 2 x", "f: expected three or more corners"), ("f 1 2", "f: expected three or more"),
    ("f 1/a 2 3", "f: expected three"), ("f 1 2 3.5", "f: expected"),
    ("f 1/1/1/1 2 3", "f: expected"), ("f 1 2 9", "f: vertex 9 of 8"), ("f 0 1 2", "count from 1"),
    ("f -9 1 2", "back from -1, the latest of 8"), ("v 1 2", "v: expected three finite numbers"),
    ("v 1,5 2 3", "v: expected"), ("v nan 0 0", "v: expected"),
    ("surf 0 1 0 1 1 2", "free-form surfaces are not supported")])
def test_a_malformed_line_is_named(tmp_path, line, words):
    message = complaint(obj(tmp_path / "a.obj", f"# a box\n{V_LINES}{line}\n{F_LINES}"))
    assert message.startswith(f"{tmp_path}/a.obj:10: ") and words in message


# --- winding --------------------------------------------------------------------------------------

def write_triangles(path, triangles, parts=1):
    """Write an OBJ file divided into `parts` equal pieces with one material each."""
    size = len(triangles) // parts
    text = "".join("v {} {} {}\n".format(*corner) for corner in np.reshape(triangles, (-1, 3)))
    return obj(path, text + "".join(f"usemtl m{k // size}\nf {3 * k + 1} {3 * k + 2} {3 * k + 3}\n"
                                    for k in range(len(triangles))))


BOX = VERTS[TRIANGLES]
INNER = (BOX * 0.5 + [0.25, 0.5, 0.75])[:, ::-1]


@pytest.mark.parametrize("triangles", [
    BOX[2:], BOX[2:, ::-1], BOX[:2], BOX[:2, ::-1],  # a crate without a lid, a sheet
    np.concatenate([BOX, INNER]),  # a hollow box
    np.concatenate([BOX[2:], INNER[2:]]), np.concatenate([BOX[2:], INNER]),  # open hollow boxes
    np.concatenate([BOX, BOX[:2] + [0, 0, 9]])])
@pytest.mark.parametrize("parts", [1, 2])
def test_winding_in_the_file_counts(tmp_path, triangles, parts):
    assert same_surface(triangles_of(write_triangles(tmp_path / "a.obj", triangles, parts)),
                        triangles)


@pytest.mark.parametrize("turned", [[3], [0, 5, 6], list(range(7))])
@pytest.mark.parametrize("parts", [1, 6])
def test_a_closed_surface_whose_faces_disagree_is_repaired(tmp_path, turned, parts):
    pytest.importorskip("trimesh")
    broken = BOX.copy()
    broken[turned] = broken[turned, ::-1]
    assert same_surface(triangles_of(write_triangles(tmp_path / "a.obj", broken, parts)), BOX)
    beside = np.concatenate([broken, BOX[2:, ::-1] + [9, 0, 0]])  # an open piece is left unchanged
    read = triangles_of(write_triangles(tmp_path / "a.obj", beside))
    assert same_surface(read, np.concatenate([BOX, BOX[2:, ::-1] + [9, 0, 0]]))


def test_a_file_that_is_inside_out_as_a_whole_is_reversed(tmp_path):
    hollow = np.concatenate([BOX, INNER])
    assert same_surface(triangles_of(write_triangles(tmp_path / "a.obj", hollow[:, ::-1], 2)),
                        hollow)


# --- GLB ------------------------------------------------------------------------------------------

TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
CODES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}


class Writer:
    """Builds a GLB file by hand: arrays become accessors."""

    def __init__(self, **tree) -> None:
        self.data, self.tree = b"", {"asset": {"version": "2.0"}, "accessors": [],
                                     "bufferViews": [], "meshes": [], "nodes": []} | tree

    def view(self, values, **fields) -> int:
        self.data += bytes(-len(self.data) % 4)
        content = np.ascontiguousarray(values).tobytes()
        self.tree["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data),
                                         "byteLength": len(content)} | fields)
        self.data += content
        return len(self.tree["bufferViews"]) - 1

    def add(self, values, kind="f4", **fields) -> int:
        values = np.asarray(values).astype(f"<{kind}")
        columns = values.reshape(len(values), -1).shape[1]
        return self.accessor({"bufferView": self.view(values), "componentType": CODES[kind],
                              "count": len(values), "type": TYPES[columns]} | fields)

    def accessor(self, row) -> int:
        self.tree["accessors"].append(row)
        return len(self.tree["accessors"]) - 1

    def mesh(self, verts=VERTS, faces=TRIANGLES, attributes=(), **fields) -> int:
        position = verts if isinstance(verts, int) else self.add(verts)
        indices = {} if faces is None else {
            "indices": faces if isinstance(faces, int) else self.add(np.ravel(faces), "u2")}
        self.tree["meshes"].append(
            {"primitives": [{"attributes": {"POSITION": position} | dict(attributes)}
                            | indices | fields]})
        return len(self.tree["meshes"]) - 1

    def node(self, **fields) -> int:
        self.tree["nodes"].append(fields)
        return len(self.tree["nodes"]) - 1

    def save(self, path, roots=None, buffers=None):
        if roots is not None:
            self.tree |= {"scenes": [{"nodes": []}, {"nodes": roots}], "scene": 1}
        self.tree["buffers"] = buffers or [{"byteLength": len(self.data)}]
        text = json.dumps(self.tree).encode()
        text, data = text + b" " * (-len(text) % 4), self.data + bytes(-len(self.data) % 4)
        chunks = (struct.pack("<I4s", len(text), b"JSON") + text
                  + struct.pack("<I4s", len(data), b"BIN\0") + data)
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.glb"


def test_plain_and_strided_and_embedded_data(path):
    glb = Writer()
    glb.node(mesh=glb.mesh())
    assert same_surface(triangles_of(glb.save(path)), BOX)
    glb = Writer()
    mixed = np.zeros((8, 6), "<f4")
    mixed[:, 3:] = VERTS
    view = glb.view(mixed, byteStride=24)
    glb.node(mesh=glb.mesh(glb.accessor({"bufferView": view, "byteOffset": 12,
                                         "componentType": 5126, "count": 8, "type": "VEC3"})))
    assert same_surface(triangles_of(glb.save(path)), BOX)
    uri = "data:application/octet-stream;base64," + base64.b64encode(glb.data).decode()
    assert same_surface(
        triangles_of(glb.save(path, buffers=[{"uri": uri, "byteLength": len(glb.data)}])), BOX)


@pytest.mark.parametrize("kind, largest", [("i1", 127), ("u1", 255), ("i2", 32767), ("u2", 65535)])
def test_normalized_integers(path, kind, largest):
    """Quantized positions are fractions of the largest integer, in units of the node."""
    glb = Writer(extensionsUsed=["KHR_mesh_quantization"],
                 extensionsRequired=["KHR_mesh_quantization"])
    quantized = glb.add(np.minimum(VERTS, 1) * largest, kind, normalized=True)
    glb.node(mesh=glb.mesh(quantized), scale=[1, 2, 3])
    far = glb.add([[9, 9, 9]] * 3)  # an extra point that would reveal a wrong scale
    glb.node(mesh=glb.mesh(far, None, mode=0))
    assert same_surface(triangles_of(glb.save(path)), BOX)
    glb = Writer()
    glb.node(mesh=glb.mesh(glb.add(VERTS, kind)))
    assert same_surface(triangles_of(glb.save(path)), BOX)  # integers that are not normalized


def test_the_most_negative_integer_is_minus_one(path):
    glb = Writer()
    quantized = glb.add(np.where(VERTS > 0, 127, -128), "i1", normalized=True)
    glb.node(mesh=glb.mesh(quantized))
    glb.node(mesh=glb.mesh(), translation=[3, -1, -1])
    _, extents = read_mesh(glb.save(path))
    # z, x, y of the file: -1..2, -1..4, -1..1
    np.testing.assert_allclose(extents, [3, 5, 2], atol=1e-5)


def test_sparse_accessors(path):
    for base in (True, False):
        glb = Writer()
        rows = np.nonzero(VERTS.any(1))[0]
        sparse = {"count": len(rows),
                  "indices": {"bufferView": glb.view(rows.astype("<u2")), "componentType": 5123},
                  "values": {"bufferView": glb.view(VERTS[rows].astype("<f4"))}}
        row = {"componentType": 5126, "count": 8, "type": "VEC3", "sparse": sparse}
        glb.node(mesh=glb.mesh(glb.accessor(
            row | ({"bufferView": glb.view(np.zeros((8, 3), "<f4"))} if base else {}))))
        assert same_surface(triangles_of(glb.save(path)), BOX)


def test_strips_fans_and_missing_indices(path):
    outline = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    sheet = outline[[[0, 1, 2], [0, 2, 3]]]
    for order, mode in (([0, 1, 3, 2], 5), ([0, 1, 2, 3], 6)):
        glb = Writer()
        glb.node(mesh=glb.mesh(outline, order, mode=mode))
        indexed = triangles_of(glb.save(path))
        glb = Writer()
        glb.node(mesh=glb.mesh(outline[order], None, mode=mode))
        assert same_surface(triangles_of(glb.save(path)), indexed)
        normals = np.cross(indexed[:, 1] - indexed[:, 0], indexed[:, 2] - indexed[:, 0])
        np.testing.assert_allclose(normals, [[0, 0, 1]] * 2, atol=1e-4)
    assert same_surface(indexed, sheet)
    glb = Writer()
    glb.node(mesh=glb.mesh(BOX.reshape(-1, 3), None))
    glb.node(mesh=glb.mesh(mode=1))  # lines have no faces
    assert same_surface(triangles_of(glb.save(path)), BOX)


def test_nodes_move_turn_scale_and_mirror(path):
    """Node transforms are applied in order.

    A negative scale mirrors both the box and its winding, so that the faces still point outward.
    """
    glb = Writer()
    mesh = glb.mesh(VERTS / [1, 2, 3])
    half = 0.5 ** 0.5
    # about y: z -> x, x -> -z
    child = glb.node(mesh=mesh, scale=[3, 2, 1], rotation=[0, half, 0, half], translation=[5, 0, 0])
    matrix = np.diag([1, 1, -1, 1.0])
    matrix[:3, 3] = [0, 7, 0]
    parent = glb.node(children=[child], matrix=matrix.T.ravel().tolist())
    other = glb.node(mesh=mesh, scale=[1, 2, 3])
    glb.node(mesh=mesh, translation=[99, 0, 0])  # not in any scene
    read = triangles_of(glb.save(path, roots=[parent, other]))
    assert volume(read) == pytest.approx(12, rel=1e-4)
    # the child spans x 0..1 (z of the mesh), y 0..2, z -3..0 (x of the mesh), moved by 5; the
    # parent mirrors z and adds 7 to y
    assert same_surface(np.sort(read[:12].reshape(-1, 3), 0)[None],
                        np.sort((BOX + [5, 7, 0]).reshape(-1, 3), 0)[None])
    assert same_surface(read[12:], BOX)


def test_instances_of_a_node(path):
    for explicit in (True, False):
        glb = Writer()
        mesh = glb.mesh()
        if explicit:
            for at, scale in ((0, 1), (5, 2)):
                glb.node(mesh=mesh, translation=[at, 0, 0], scale=[1, scale, 1])
        else:
            attributes = {"TRANSLATION": glb.add([[0, 0, 0], [5, 0, 0]]),
                          "SCALE": glb.add([[1, 1, 1], [1, 2, 1]]),
                          "ROTATION": glb.add([[0, 0, 0, 127]] * 2, "i1", normalized=True)}
            glb.node(mesh=mesh, extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}})
            glb.tree["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
        assert same_surface(triangles_of(glb.save(path)),
                            np.concatenate([BOX, BOX * [1, 2, 1] + [5, 0, 0]]))


def test_morph_targets_and_skins(path):
    glb = Writer()
    target = glb.add(np.where(VERTS[:, :1] > 0, [[2, 0, 0]], 0))
    mesh = glb.mesh(targets=[{"POSITION": target}])
    glb.tree["meshes"][mesh]["weights"] = [0.5]
    glb.node(mesh=mesh)
    assert same_surface(triangles_of(glb.save(path)), BOX * [2, 1, 1])
    glb = Writer()
    joints = [glb.node(translation=[0, 0, 0]), glb.node(translation=[1, 0, 0])]
    bind = np.tile(np.eye(4), (2, 1, 1))
    bind[1, 3, 0] = -1  # column-major: the second joint was bound at its position, x = 1
    weights = np.eye(4)[(VERTS[:, 0] > 0).astype(int)]
    attributes = {"JOINTS_0": glb.add([[0, 1, 0, 0]] * 8, "u1"),
                  "WEIGHTS_0": glb.add(weights * 255, "u1", normalized=True)}
    glb.tree["skins"] = [{"joints": joints, "inverseBindMatrices": glb.add(bind.reshape(2, 16))}]
    # the node transform of a skinned mesh is ignored
    glb.node(mesh=glb.mesh(attributes=attributes), skin=0, translation=[0, 50, 0])
    assert same_surface(triangles_of(glb.save(path)), BOX)
    glb.tree["nodes"][1]["translation"] = [3, 0, 0]
    assert same_surface(triangles_of(glb.save(path)), BOX * [3, 1, 1])


@pytest.mark.parametrize("name",
                         ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "ACME_shape"])
def test_unknown_required_extensions_are_refused_by_name(path, name):
    glb = Writer(extensionsUsed=[name], extensionsRequired=["KHR_materials_unlit", name])
    glb.node(mesh=glb.mesh())
    assert complaint(glb.save(path)) == (
        f"{path}: requires the glTF extension {name}, which is not supported")
    # these two affect only the appearance
    glb.tree["extensionsRequired"] = ["KHR_materials_unlit", "KHR_texture_transform"]
    assert same_surface(triangles_of(glb.save(path)), BOX)


def test_data_that_are_not_in_the_file_are_refused(path):
    glb = Writer(extensionsUsed=["KHR_draco_mesh_compression"])
    glb.node(mesh=glb.mesh(glb.accessor({"componentType": 5126, "count": 8, "type": "VEC3"})))
    assert "accessors[0] has no data; the file uses KHR_draco_mesh_compression" in complaint(
        glb.save(path))
    glb = Writer()
    glb.node(mesh=glb.mesh())
    assert "its data are in another file, 'box.bin'" in complaint(
        glb.save(path, buffers=[{"uri": "box.bin", "byteLength": 9}]))
    glb.tree["bufferViews"][0]["buffer"] = 1
    assert "buffers[1] has no data" in complaint(
        glb.save(path, buffers=[{"byteLength": 9}, {"byteLength": 9}]))


def test_broken_glb_files_are_refused(path):
    glb = Writer()
    glb.node(mesh=glb.mesh(faces=[0, 1, 8]))
    assert "cannot be read as a GLB file (IndexError" in complaint(glb.save(path))
    glb = Writer()
    glb.tree["nodes"] = [{"children": [1]}, {"children": [0]}]
    assert "has two parents" in complaint(glb.save(path, roots=[0]))
    glb = Writer()
    glb.node()
    assert "no faces in it" in complaint(glb.save(path))
