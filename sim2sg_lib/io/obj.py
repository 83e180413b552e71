"""Wavefront OBJ files -> triangles.

Parsed here since trimesh 5.2 counts relative indices from the end of the file, fans concave faces,
refuses tabs, and needs an undeclared package for text that is not UTF-8.
"""
import codecs
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError

MAX_CONCAVE = 1000  # corners of a concave face: ear clipping takes quadratic time
CORNER = re.compile(rb"([+-]?\d{1,9})(/[+-]?\d*){0,2}")  # v, v/t, v//n or v/t/n


def read_obj(content: bytes, path: Path, max_faces: int) -> list[np.ndarray] | None:
    """The triangles (F, 3, 3) of each material; None if there are more than max_faces.

    Only `v`, `f` and `usemtl` count. Text is read as bytes: names and comments may have any
    encoding. Raises: InputError naming file and line.
    """
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        content = content.decode("utf-16").encode()
    verts, polygons, material = [], {}, b""
    for line, (keyword, *words) in statements(content.removeprefix(codecs.BOM_UTF8)):
        if keyword == b"v":
            try:
                verts.append([float(word) for word in words[:3]])
            except ValueError:
                verts.append([])
            if len(verts[-1]) < 3 or not all(map(math.isfinite, verts[-1])):
                raise InputError(f"{path}:{line}: v: expected three finite numbers")
        elif keyword == b"usemtl":
            material = b" ".join(words)
        elif keyword in (b"f", b"fo"):
            found = [CORNER.fullmatch(word) for word in words]
            if len(found) < 3 or not all(found):
                raise InputError(f"{path}:{line}: f: expected three or more corners v, v/t, v//n "
                                 "or v/t/n")
            numbers = [int(match[1]) for match in found]  # from 1, or back from -1
            corners = [i - 1 if i > 0 else len(verts) + i for i in numbers]
            if 0 in numbers or min(corners) < 0:
                raise InputError(f"{path}:{line}: f: vertices count from 1, or back from -1, the "
                                 f"latest of {len(verts)}")
            polygons.setdefault(material, []).append((line, corners))
        elif keyword == b"surf":
            raise InputError(f"{path}:{line}: surf: free-form surfaces are not supported, expected "
                             "faces")
    if sum(len(corners) - 2 for rows in polygons.values() for _, corners in rows) > max_faces:
        return None
    verts, pieces = np.array(verts).reshape(-1, 3), []
    for rows in polygons.values():
        triangles = []
        for line, corners in rows:
            if max(corners) >= len(verts):
                raise InputError(f"{path}:{line}: f: vertex {max(corners) + 1} of {len(verts)}")
            corners = np.array(corners)
            triangles.append(corners[triangulate(verts[corners], f"{path}:{line}: f")])
        pieces.append(verts[np.concatenate(triangles)])
    return pieces


def statements(content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yields (line number, words); `v` and `f` may have trailing comments and continuation lines.

    The last byte of a name or comment in GBK or Shift JIS may look like the backslash of a
    continuation.
    """
    lines = iter(enumerate(content.splitlines(), 1))
    for number, line in lines:
        words = line.split()
        if words and words[0] in (b"v", b"f", b"fo"):
            words = line.split(b"#")[0].split()
            while words[-1].endswith(b"\\"):
                words[-1:] = [words[-1][:-1]] if len(words[-1]) > 1 else []
                words += next(lines, (0, b""))[1].split(b"#")[0].split()
        if words:
            yield number, words


def triangulate(points: np.ndarray, where: str) -> list[tuple[int, int, int]]:
    """Triangles of a nearly flat polygon (N, 3) as N - 2 index triples: a fan, or ear clipping.

    Raises: InputError that starts with `where` for a concave polygon of more than MAX_CONCAVE
    corners.
    """
    count, spokes = len(points), points[1:] - points[0]
    areas = np.cross(spokes[:-1], spokes[1:])  # (N - 2, 3)
    normal = areas.sum(0)
    if count == 3 or (areas @ normal >= 0).all():
        return [(0, i, i + 1) for i in range(1, count - 1)]
    if count > MAX_CONCAVE:
        raise InputError(f"{where}: a concave face of {count} corners, expected {MAX_CONCAVE} at "
                         "most")
    axis = int(np.abs(normal).argmax())  # projected along it, the polygon runs counter-clockwise
    flat = np.delete(points, axis, 1)[:, ::1 if (normal[axis] > 0) == (axis != 1) else -1]
    rest, triples, at = list(range(count)), [], 0
    while len(rest) > 3:
        turns = [(at + k) % len(rest) for k in range(len(rest))]
        # a polygon that crosses itself may have no ear: any corner will do
        at = next((k for k in turns if is_ear(flat, corner_of(rest, k), rest)), turns[0])
        triples.append(corner_of(rest, at))
        del rest[at]
    return [*triples, tuple(rest)]


def corner_of(rest: list[int], k: int) -> tuple[int, int, int]:
    """A corner of the polygon `rest` between its neighbors."""
    return rest[k - 1], rest[k], rest[(k + 1) % len(rest)]


def is_ear(points: np.ndarray, corner: tuple[int, int, int], rest: list[int]) -> bool:
    """Whether a corner of the counter-clockwise polygon `rest` of points (N, 2) can be cut off."""
    triangle = points[list(corner)]
    sides = np.roll(triangle, -1, 0) - triangle
    if sides[0, 0] * sides[1, 1] - sides[0, 1] * sides[1, 0] <= 0:
        return False
    others = points[rest]
    others = others[(others[:, None] != triangle).any(2).all(1)]  # not at the same place
    offset = others[:, None] - triangle  # (M, 3, 2)
    return not (sides[:, 0] * offset[..., 1] - sides[:, 1] * offset[..., 0] >= 0).all(1).any()
