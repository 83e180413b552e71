"""The rasterizer, in pure torch: which faces a pixel sees, how deep, and how far from their edges.

Pairs of face and pixel are enumerated row by row between each face's (blurred) edges, so that work
and memory grow with the area that faces cover and never with faces x pixels. Which pairs count is
decided without gradient; what they contribute is computed once more, with gradient. Fragments mean
what PyTorch3D's mean (Ravi et al. 2020). The rows of the batch are processed in bands that fit a
memory budget; its size changes no bit of the result. Soft images are in soft.py.

A face with corners q_i = z_i (u_i, v_i, 1), z depth and u, v pixels, covers the pixel h = (u, v, 1)
with barycentrics b_i / sum(b), b = h M^-1, M the matrix of rows q_i, at depth 1 / sum(b) (Olano and
Greer 1997). b is affine in the pixel and needs no division by a corner's depth, so faces that cross
the camera's plane need no special case.
"""
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sim2sg_lib.camera import Cameras
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.tensor_ops import pick, ragged_arange

NEAR_M = 0.05      # near plane: nothing nearer is drawn, faces that cross it are clipped
PAIR_BYTES = 200   # peak memory per pair of face and pixel
FRESH_MB = 256     # memory budget without gradient: beyond this, more bands are faster
TINY = 1e-12       # squared length in pixels below which an edge is a point


@dataclass(frozen=True)
class Fragments:
    """What each pixel of B images sees, nearest first; all fields are -1 where it sees fewer faces.

    bary_coords: perspective-correct barycentric coordinates, clipped to the face beyond its edges.
    dists:       squared distance to the nearest edge of the face on the screen, negative inside, in
                 NDC (the short side of the image is 2 long).
    """

    pix_to_face: Tensor  # (B, H, W, K) int64, the K nearest faces, counted through the whole batch
    zbuf: Tensor  # (B, H, W, K) float, depth in meters
    bary_coords: Tensor  # (B, H, W, K, 3) float
    dists: Tensor  # (B, H, W, K) float


def scale_cameras(cameras: Cameras, factor: int) -> Cameras:
    """The same views on a grid `factor` times as fine."""
    K = cameras.K * cameras.K.new_tensor([factor, factor, 1.0])[:, None]
    return Cameras(K, cameras.R, cameras.t, cameras.width * factor, cameras.height * factor)


@dataclass(frozen=True)
class ScreenFaces:
    """F faces as their cameras see them. Offsets: pixels from the center of a face's first pixel.

    inverse: inverse[:, :, i] . (x, y, 1) is the unnormalized barycentric of corner i.
    ends:    offsets of both ends of the three edges and, if any face of the batch crosses the near
             plane, of the cut along it.
    """

    face: Tensor  # (F,) int64, index into Meshes.faces
    depth_m: Tensor  # (F, 3) of the corners, negative behind the camera
    first: Tensor  # (F, 2) int64, column and row of the first pixel; the row is scene * H + row
    span: Tensor  # (F, 2) int64, columns and rows of the blurred box inside the image, at least 1
    inverse: Tensor  # (F, 3, 3)
    ends: Tensor  # (F, E, 2, 2)
    drawn: Tensor  # (F, E) bool, whether any part of the edge is beyond the near plane


# --- faces on the screen --------------------------------------------------------------------------

def screen_faces(meshes: Meshes, cameras: Cameras, blur_px: float, cull_backfaces: bool) -> ScreenFaces:
    """All faces with a pixel within `blur_px`, except those without area on the screen.

    In single precision, these are faces smaller than the rounding of their corners, 1e-5 pixels.
    """
    verts = cameras.homogeneous_px(meshes.verts_world, meshes.vert_scene)  # (V, 3): z u, z v, z
    with torch.no_grad():
        first, span = pixel_boxes(verts, meshes.faces, blur_px, cameras)
        near = (span > 0).all(1).nonzero()[:, 0]
    corners = verts.index_select(0, meshes.faces.index_select(0, near).reshape(-1)).view(-1, 3, 3)
    # relative to the first pixels, against cancellation
    corners = torch.cat([corners[..., :2] - corners[..., 2:] * (first[near] + 0.5)[:, None],
                         corners[..., 2:]], -1)  # (F, 3, 3)
    inverse, volume = invert(corners)
    with torch.no_grad():
        keep = volume < 0 if cull_backfaces else volume != 0
    face = near
    if not keep.all():
        face, corners, inverse = pick(keep.nonzero()[:, 0], near, corners, inverse)
    ends, drawn = edges_px(corners)
    scene = meshes.object_scene[meshes.face_object[face]]
    column, row = first[face].long().unbind(1)
    first = torch.stack([column, scene * cameras.height + row], 1)
    return ScreenFaces(face, corners[..., 2], first, span[face].long(), inverse, ends, drawn)


def pixel_boxes(verts: Tensor, faces: Tensor, blur_px: float, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """First pixels and sizes (F, 2), float (column, row), of blurred boxes inside the image."""
    size = verts.new_tensor([cameras.width, cameras.height])
    front = verts[:, 2] > NEAR_M
    px = verts[:, :2] / torch.where(front, verts[:, 2], 1.0)[:, None]
    corners = px.index_select(0, faces.reshape(-1)).view(-1, 3, 2)
    low = torch.minimum(torch.minimum(corners[:, 0], corners[:, 1]), corners[:, 2])
    high = torch.maximum(torch.maximum(corners[:, 0], corners[:, 1]), corners[:, 2])
    if not front.all():
        behind = (~front[faces].all(1)).nonzero()[:, 0]
        ends, drawn = edges_px(verts[faces[behind]])
        visible = drawn[..., None, None]
        low[behind] = torch.where(visible, ends, torch.inf).amin((1, 2))
        high[behind] = torch.where(visible, ends, -torch.inf).amax((1, 2))
    first = (low - (blur_px + 0.5)).ceil().clamp(min=0).minimum(size)
    end = ((high + (blur_px - 0.5)).floor() + 1).clamp(min=0).minimum(size)
    return first, (end - first).clamp(min=0)


def invert(corners: Tensor) -> tuple[Tensor, Tensor]:
    """(F, 3, 3) -> inverses, and signed volumes (F,) of the normalized corners, 0 if edge-on."""
    a, b, c = corners.double().unbind(1)  # in double, or thin faces lose their sign
    cross = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 2)
    determinant = (cross[..., 0] * a).sum(-1)
    with torch.no_grad():
        volume = determinant / (a.norm(dim=1) * b.norm(dim=1) * c.norm(dim=1)).clamp(min=1e-300)
        volume = torch.where(volume.abs() > 8 * torch.finfo(corners.dtype).eps ** 2, volume, 0.0)
    safe = torch.where(volume != 0, determinant, 1.0)
    return (cross / safe[:, None, None]).to(corners.dtype), volume


def edges_px(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of faces (F, 3, 3), clipped to the near plane: `ends` and `drawn` of ScreenFaces."""
    depth = corners[..., 2]
    front = depth > NEAR_M
    if front.all():
        px = corners[..., :2] / corners[..., 2:]
        return torch.stack([px, px.roll(-1, 1)], 2), front
    start, end = corners, corners.roll(-1, 1)
    crossing = front != front.roll(-1, 1)
    along = (NEAR_M - depth) / torch.where(crossing, depth.roll(-1, 1) - depth, 1.0)
    cut = torch.lerp(start, end, along[..., None])  # (F, 3, 3), each edge at the near plane
    ends = torch.stack([torch.where(front[..., None], start, cut),
                        torch.where(front.roll(-1, 1)[..., None], end, cut)], 2)  # (F, 3, 2, 3)
    drawn = front | crossing
    # the two cuts of a crossing face, in the order of its edges
    order = crossing.int().sort(dim=1, descending=True, stable=True).indices[:, :2]
    near = cut.gather(1, order[..., None].expand(-1, -1, 3))
    ends = torch.cat([ends, near[:, None]], 1)
    drawn = torch.cat([drawn, crossing.any(1, keepdim=True)], 1)
    return ends[..., :2] / torch.where(drawn[..., None], ends[..., 2], 1.0)[..., None], drawn


# --- pairs of face and pixel ----------------------------------------------------------------------

@dataclass(frozen=True)
class Pairs:
    """P pairs of face and pixel."""

    face: Tensor  # (P,) int64, index into ScreenFaces
    offset: Tensor  # (P, 2) float, pixels from the first pixel of the face
    pixel: Tensor  # (P,) int64, counted row by row from the start of the band
    inside: Tensor  # (P,) bool, whether the center of the pixel lies in the face

    def select(self, chosen: Tensor) -> "Pairs":
        """The pairs at an index."""
        return Pairs(*pick(chosen, self.face, self.offset, self.pixel, self.inside))


def row_bands(faces: ScreenFaces, rows: int, memory_mb: float = 512) -> list[tuple[int, int]]:
    """Split the rows of the batch into bands whose pairs fit the memory budget."""
    change = torch.zeros(rows + 1, dtype=torch.int64, device=faces.first.device)
    change.index_add_(0, faces.first[:, 1], faces.span[:, 0])
    change.index_add_(0, faces.first[:, 1] + faces.span[:, 1], -faces.span[:, 0])
    total = change.cumsum(0).cumsum(0)[:rows].cpu()  # pairs in the rows up to each one
    memory_mb = memory_mb if faces.inverse.requires_grad else min(memory_mb, FRESH_MB)
    budget, bands, start, before = memory_mb * 2 ** 20 / PAIR_BYTES, [], 0, 0
    while start < rows:
        end = max(int(torch.searchsorted(total, int(before + budget), right=True)), start + 1)
        bands.append((start, end))
        start, before = end, int(total[end - 1])
    return bands or [(0, 0)]


def covered(faces: ScreenFaces, band: tuple[int, int], width: int, blur_px: float) -> Pairs:
    """The pairs of a band of rows whose pixel is in the face or within `blur_px` of its edges.

    Ordered by octave of the size of the face, face, row and column: independent of the bands.
    """
    top = faces.first[:, 1].clamp(min=band[0])
    rows = ((faces.first[:, 1] + faces.span[:, 1]).clamp(max=band[1]) - top).clamp(min=0)
    order = faces.span.amax(1).float().log2().ceil().sort(stable=True).indices
    owner, line = ragged_arange(rows[order])
    face = order[owner]  # (R,), one entry per row of a face
    y = (line + (top - faces.first[:, 1])[face]).to(faces.inverse.dtype)
    begin, end = row_columns(faces, face, y, width, blur_px)
    first_pixel = (line + top[face] - band[0]) * width + faces.first[face, 0]
    row, column = ragged_arange((end - begin).clamp(min=0))
    column = column + begin.index_select(0, row)
    offset = torch.stack([column.to(y.dtype), y.index_select(0, row)], 1)
    pairs = Pairs(face.index_select(0, row), offset, column + first_pixel.index_select(0, row),
                  torch.ones_like(row, dtype=torch.bool))
    if blur_px == 0 and (faces.depth_m > 2 * NEAR_M).all():
        return pairs  # row_columns is exact
    a, b, c = barycentrics(faces, pairs)
    total = a + b + c
    # in the face and beyond the near plane
    inside = (torch.minimum(torch.minimum(a, b), c) >= 0) & (total > 0) & (total < 1 / NEAR_M)
    hit = inside | (squared_distance_px(faces, pairs) < blur_px ** 2) if blur_px > 0 else inside
    return replace(pairs, inside=inside).select(hit.nonzero()[:, 0])


def row_columns(faces: ScreenFaces, face: Tensor, y: Tensor, width: int, blur_px: float
                ) -> tuple[Tensor, Tensor]:
    """First column (R,) and the one after the last, of the pixels in rows y (R,) of the faces (R,).

    Without blur exactly the columns at which no barycentric is negative: even rounded, each is
    monotonic along a row, so two columns show where its sign changes. With blur, a superset.
    """
    begin, end = torch.zeros_like(y), faces.span[:, 0].to(y.dtype).index_select(0, face)
    affine = faces.inverse + 0.0  # turns negative zeros into positive ones
    gradient = (affine[:, 0] ** 2 + affine[:, 1] ** 2).sqrt()
    reach = (blur_px + 1) * gradient if blur_px > 0 else torch.zeros_like(gradient)
    for i in range(3):
        slope, down, rest = affine[..., i].index_select(0, face).unbind(1)
        rest = down * y + rest + reach[:, i].index_select(0, face)
        column = (-rest / slope).nan_to_num(0.0).clamp(-3, width + 1).floor()
        outside = (slope * column + rest < 0).to(y.dtype) + (slope * (column + 1) + rest < 0)
        begin = torch.where(slope >= 0, torch.maximum(begin, column + outside), begin)
        end = torch.where(slope < 0, torch.minimum(end, column + 2 - outside), end)
    return begin.long(), end.long()


def barycentrics(faces: ScreenFaces, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Three (P,): barycentrics divided by depth, positive inside a face in front of the camera."""
    x, y = pairs.offset.unbind(1)
    a, b, c, d, e, f, g, h, i = of_face(faces.inverse.flatten(1), pairs)
    return a * x + (d * y + g), b * x + (e * y + h), c * x + (f * y + i)


def of_face(values: Tensor, pairs: Pairs) -> list[Tensor]:
    """The C columns (P,) of values (F, C) at the faces of pairs: faster than rows."""
    return [column.index_select(0, pairs.face) for column in values.unbind(1)]


def squared_distance_px(faces: ScreenFaces, pairs: Pairs) -> Tensor:
    """(P,) squared pixels from each pixel to the nearest edge of its face."""
    nearest = torch.full_like(pairs.offset[:, 0], torch.inf)
    for edge in range(faces.ends.shape[1]):
        drawn = faces.drawn[:, edge]
        if not drawn.any():
            continue
        start, end = faces.ends[:, edge].unbind(1)
        along = end - start  # (F, 2)
        length = (along ** 2).sum(1, keepdim=True).clamp(min=TINY)
        sx, sy, ax, ay, tx, ty = of_face(torch.cat([start, along, along / length], 1), pairs)
        x, y = pairs.offset[:, 0] - sx, pairs.offset[:, 1] - sy
        t = (x * tx + y * ty).clamp(0, 1)
        squared = (x - t * ax) ** 2 + (y - t * ay) ** 2
        if not drawn.all():
            squared = torch.where(drawn[pairs.face], squared, torch.inf)
        nearest = torch.minimum(nearest, squared)
    return nearest


def depth_and_barycentrics(faces: ScreenFaces, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(P,) meters and (P, 3) of the face at each pixel, clipped to the face as in PyTorch3D."""
    bary = [values.clamp(min=0) for values in barycentrics(faces, pairs)]
    total = bary[0] + bary[1] + bary[2]
    bary = [values / total.clamp(min=1e-12) for values in bary]
    lost = total == 0  # beyond the vanishing line of the face: its farthest corner
    if lost.any():
        farthest = of_face(F.one_hot(faces.depth_m.argmax(1), 3).to(total.dtype), pairs)
        bary = [torch.where(lost, far, values) for far, values in zip(farthest, bary)]
    a, b, c = (values * depth_m for values, depth_m in zip(bary, of_face(faces.depth_m, pairs)))
    return (a + b + c).clamp(min=NEAR_M), torch.stack(bary, 1)


# --- which faces a pixel sees ---------------------------------------------------------------------

def rasterize(meshes: Meshes, cameras: Cameras, blur_radius: float = 0.0, faces_per_pixel: int = 1,
              cull_backfaces: bool = False, memory_mb: float = 512) -> Fragments:
    """The nearest `faces_per_pixel` faces that cover a pixel's center or are within the blur.

    blur_radius:    squared NDC distance up to which a face is seen beyond its edges.
    cull_backfaces: skip faces whose corners run clockwise, seen from the camera.
    memory_mb:      approximate memory of the pairs; affects gradients by the order of sums alone.
    """
    blur_px = math.sqrt(blur_radius) * min(cameras.width, cameras.height) / 2
    faces = screen_faces(meshes, cameras, blur_px, cull_backfaces)

    def rasterize_band(low: int, high: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            pairs = covered(faces, (low, high), cameras.width, blur_px)
            depth_m, bary = depth_and_barycentrics(faces, pairs)
            chosen, rank = k_nearest(pairs.pixel, depth_m, faces_per_pixel, (high - low) * cameras.width)
            pairs, (depth_m, bary) = pairs.select(chosen), pick(chosen, depth_m, bary)
        if faces.inverse.requires_grad:
            depth_m, bary = depth_and_barycentrics(faces, pairs)
        slot = (pairs.pixel + low * cameras.width) * faces_per_pixel + rank
        return slot, faces.face[pairs.face], depth_m, bary, signed_distance(faces, pairs, cameras)

    bands = row_bands(faces, meshes.scenes * cameras.height, memory_mb)
    parts = [in_band(rasterize_band, band, faces, len(bands)) for band in bands]
    slot, *columns = (torch.cat(column) for column in zip(*parts))
    shape = (meshes.scenes, cameras.height, cameras.width, faces_per_pixel)

    def image(values: Tensor) -> Tensor:
        blank = values.new_full((math.prod(shape), *values.shape[1:]), -1)
        return blank.index_put_((slot,), values).view(*shape, *values.shape[1:])

    return Fragments(*map(image, columns))


def in_band(work, band: tuple[int, int], faces: ScreenFaces, bands: int):
    """work(low, high); with gradients and several bands, recomputed in the backward pass."""
    if bands > 1 and faces.inverse.requires_grad:
        return checkpoint(work, *band, use_reentrant=False)
    return work(*band)


def k_nearest(pixel: Tensor, depth_m: Tensor, count: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Of P pairs the `count` nearest per pixel: indices, ranks from 0. Ties go to the first."""
    if depth_m.dtype == torch.float32:
        order = depth_m.view(torch.int32).long()  # the bits of positive floats sort like the floats
    else:
        order = torch.unique(depth_m, return_inverse=True)[1]
    if count == 1:
        empty = torch.iinfo(torch.int64).max
        first = torch.full((pixels,), empty, dtype=torch.int64, device=pixel.device)
        first.scatter_reduce_(0, pixel, (order << 32) | torch.arange(len(pixel), device=pixel.device), "amin")
        chosen = first[first != empty] & 0xFFFFFFFF
        return chosen, torch.zeros_like(chosen)
    key, chosen = ((pixel << 32) | order).sort(stable=True)
    pixel = key >> 32
    begin = torch.searchsorted(pixel, torch.arange(pixels, device=pixel.device))
    rank = torch.arange(len(pixel), device=pixel.device) - begin[pixel]
    return chosen[rank < count], rank[rank < count]


def signed_distance(faces: ScreenFaces, pairs: Pairs, cameras: Cameras) -> Tensor:
    """(P,) squared NDC distance to the nearest edge of the face, negative inside."""
    to_ndc = (2 / min(cameras.width, cameras.height)) ** 2
    squared = squared_distance_px(faces, pairs) * to_ndc
    return torch.where(pairs.inside, -squared, squared)


@torch.no_grad()
def depth_map(meshes: Meshes, cameras: Cameras) -> Tensor:
    """(B, H, W) meters to the nearest front face at each pixel's center, inf for none."""
    faces = screen_faces(meshes, cameras, 0.0, cull_backfaces=True)
    depth_m = faces.depth_m.new_full((meshes.scenes * cameras.height, cameras.width), torch.inf)
    for low, high in row_bands(faces, len(depth_m)):
        pairs = covered(faces, (low, high), cameras.width, 0.0)
        found_m, _ = depth_and_barycentrics(faces, pairs)
        depth_m[low:high].view(-1).scatter_reduce_(0, pairs.pixel, found_m, "amin")
    return depth_m.view(meshes.scenes, cameras.height, cameras.width)


@torch.no_grad()
def object_pixels(meshes: Meshes, cameras: Cameras) -> Tensor:
    """(O,) int64, the number of pixels whose center each object covers, ignoring occlusion."""
    faces = screen_faces(meshes, cameras, 0.0, cull_backfaces=True)
    count = torch.zeros(len(meshes.object_scene), dtype=torch.int64, device=faces.face.device)
    for low, high in row_bands(faces, meshes.scenes * cameras.height):
        pairs, pixels = covered(faces, (low, high), cameras.width, 0.0), (high - low) * cameras.width
        object_index = meshes.face_object[faces.face[pairs.face]]
        seen = (object_index * pixels + pairs.pixel).unique()
        count += torch.bincount(seen // pixels, minlength=len(count))
    return count
