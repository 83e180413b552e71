"""The rasterizer, in pure torch: which faces a pixel sees, how deep, and how far it is from their edges.

Pairs of face and pixel are enumerated row by row between each face's (blurred) edges, so that work and memory grow with
the area that faces cover and never with faces x pixels. Which pairs count is decided without gradient; what counts is
computed once more, with it. Fragments mean what PyTorch3D's mean (Ravi et al. 2020), the soft silhouette is SoftRas' (Liu
et al. 2019). Rows of the batch are worked off in bands that fit a memory budget; a band's size changes no bit of the result.

A face with corners q_i = z_i (u_i, v_i, 1), z depth and u, v pixels, covers the pixel h = (u, v, 1) with barycentrics
b_i / sum(b), b = h M^-1, M the matrix of rows q_i, at depth 1 / sum(b) (Olano and Greer 1997). b is affine in the pixel and
needs no division by a corner's depth: a face that crosses the camera's plane is as good as any other.
"""
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sim2sg_lib.camera import Cameras
from sim2sg_lib.sim.meshes import Meshes

NEAR_M = 0.05       # nothing nearer than this is drawn; faces that cross it are clipped
PAIR_BYTES = 200    # of one pair of face and pixel at the widest point
FRESH_MB = 256      # of pairs at once where none needs a gradient: more bands take less time than more memory
TINY = 1e-12        # squared pixels below which an edge is a point
OPAQUE = 1e-4       # a face adds less than this to a silhouette beyond the distance where it is cut off


@dataclass(frozen=True)
class Fragments:
    """What each pixel of B images sees, nearest first; faces count through the whole batch.

    pix_to_face: (B, H, W, K) int64, the K nearest faces; -1 where there are fewer.
    zbuf:        (B, H, W, K) float, depth in meters; -1 where empty.
    bary_coords: (B, H, W, K, 3) float, perspective-correct barycentric coordinates in the face, clipped to it beyond
                 its edges; -1 where empty.
    dists:       (B, H, W, K) float, squared distance to the face's nearest edge on the screen, negative inside, in NDC
                 (the image's short side is 2 long); -1 where empty.
    """

    pix_to_face: torch.Tensor
    zbuf: torch.Tensor
    bary_coords: torch.Tensor
    dists: torch.Tensor


def scale_cameras(cameras: Cameras, factor: int) -> Cameras:
    """The same views on a grid `factor` times as fine."""
    scale = torch.tensor([factor, factor, 1.0], dtype=cameras.K.dtype, device=cameras.K.device)
    return Cameras(cameras.K * scale[:, None], cameras.R, cameras.t, cameras.width * factor, cameras.height * factor)


@dataclass(frozen=True)
class ScreenFaces:
    """F faces as their cameras see them. Offsets are in pixels from the center of a face's first pixel.

    face:    (F,) int64, index into Meshes.faces.
    depth_m: (F, 3) of the corners, behind the camera negative.
    first:   (F, 2) int64, column and row of the first pixel; rows count through the whole batch: scene * H + row.
    span:    (F, 2) int64, columns and rows of the blurred bounding box inside the image, at least 1 by 1.
    inverse: (F, 3, 3), barycentrics of corner i before normalization: inverse[:, :, i] dotted with (x, y, 1).
    ends:    (F, E, 2, 2), offsets of both ends of three edges and, where any face has one, of the cut along the near plane.
    drawn:   (F, E) bool, whether an edge has any part before the near plane.
    """

    face: torch.Tensor
    depth_m: torch.Tensor
    first: torch.Tensor
    span: torch.Tensor
    inverse: torch.Tensor
    ends: torch.Tensor
    drawn: torch.Tensor


# --- faces on the screen ----------------------------------------------------------------------------------------------

def screen_faces(meshes: Meshes, cameras: Cameras, blur_px: float, cull_backfaces: bool) -> ScreenFaces:
    """Every face with any pixel within `blur_px` of it; those without area on the screen have none.

    In single precision a face smaller than its corners' rounding, some 1e-5 pixels, is without area.
    """
    verts = cameras.homogeneous_px(meshes.verts_world, meshes.vert_scene)  # (V, 3): z u, z v, z
    with torch.no_grad():
        first, span = pixel_boxes(verts, meshes.faces, blur_px, cameras)
        near = (span > 0).all(1).nonzero()[:, 0]
    corners = verts.index_select(0, meshes.faces.index_select(0, near).reshape(-1)).view(-1, 3, 3)
    corners = shift(corners, first.index_select(0, near) + 0.5)  # (F, 3, 3)
    inverse, volume = invert(corners)
    with torch.no_grad():
        keep = volume < 0 if cull_backfaces else volume != 0
    face = near
    if not keep.all():
        keep = keep.nonzero()[:, 0]
        face, corners, inverse = near[keep], corners.index_select(0, keep), inverse.index_select(0, keep)
    ends, drawn = edges_px(corners)
    scene = meshes.object_scene[meshes.face_object[face]]
    column, row = first[face].long().unbind(1)
    return ScreenFaces(face, corners[..., 2], torch.stack([column, scene * cameras.height + row], 1), span[face].long(),
                       inverse, ends, drawn)


def pixel_boxes(verts: torch.Tensor, faces: torch.Tensor, blur_px: float, cameras: Cameras
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """First pixel and number of pixels (F, 2), float columns and rows, of each face's blurred box inside the image."""
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


def shift(corners: torch.Tensor, origin_px: torch.Tensor) -> torch.Tensor:
    """(F, 3, 3) corners z (u, v, 1) seen from another origin (F, 2) of the pixels: no large numbers cancel later."""
    return torch.cat([corners[..., :2] - corners[..., 2:] * origin_px[:, None], corners[..., 2:]], -1)


def invert(corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(F, 3, 3) -> inverse matrices (F, 3, 3), and (F,) signed volumes of the unit corners: 0 for a face seen edge-on.

    In double precision: thin faces would lose their sign.
    """
    a, b, c = corners.double().unbind(1)
    cross = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 2)
    determinant = (cross[..., 0] * a).sum(-1)
    with torch.no_grad():
        volume = determinant / (a.norm(dim=1) * b.norm(dim=1) * c.norm(dim=1)).clamp(min=1e-300)
        volume = torch.where(volume.abs() > 8 * torch.finfo(corners.dtype).eps ** 2, volume, 0.0)
    safe = torch.where(volume != 0, determinant, 1.0)
    return (cross / safe[:, None, None]).to(corners.dtype), volume


def edges_px(corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Three edges, clipped to the near plane, and, if any face crosses it, the cuts: (F, 3, 3) -> (F, E, 2, 2) px, (F, E)."""
    depth = corners[..., 2]
    front = depth > NEAR_M
    if front.all():
        px = corners[..., :2] / corners[..., 2:]
        return torch.stack([px, px.roll(-1, 1)], 2), front
    start, end = corners, corners.roll(-1, 1)
    crossing = front != front.roll(-1, 1)
    along = (NEAR_M - depth) / torch.where(crossing, depth.roll(-1, 1) - depth, 1.0)
    cut = torch.lerp(start, end, along[..., None])  # (F, 3, 3) where each edge meets the near plane
    ends = torch.stack([torch.where(front[..., None], start, cut),
                        torch.where(front.roll(-1, 1)[..., None], end, cut)], 2)  # (F, 3, 2, 3)
    drawn = front | crossing
    # the two cuts of a crossing face, in the order of its edges
    order = crossing.int().sort(dim=1, descending=True, stable=True).indices[:, :2]
    near = cut.gather(1, order[..., None].expand(-1, -1, 3))
    ends = torch.cat([ends, near[:, None]], 1)
    drawn = torch.cat([drawn, crossing.any(1, keepdim=True)], 1)
    return ends[..., :2] / torch.where(drawn[..., None], ends[..., 2], 1.0)[..., None], drawn


# --- pairs of face and pixel ------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Pairs:
    """P pairs of face and pixel.

    face:   (P,) int64, index into ScreenFaces.
    offset: (P, 2) float, pixels from the face's first pixel.
    pixel:  (P,) int64, counted row by row from the band's first.
    inside: (P,) bool, whether the pixel's center lies in the face.
    """

    face: torch.Tensor
    offset: torch.Tensor
    pixel: torch.Tensor
    inside: torch.Tensor

    def select(self, chosen: torch.Tensor) -> "Pairs":
        """Those of an index."""
        return Pairs(*(values.index_select(0, chosen) for values in (self.face, self.offset, self.pixel, self.inside)))


def row_bands(faces: ScreenFaces, rows: int, memory_mb: float) -> list[tuple[int, int]]:
    """Cut the batch's rows where the pairs so far would no longer fit the budget; a band has at least one row."""
    change = torch.zeros(rows + 1, dtype=torch.int64, device=faces.first.device)  # pairs that begin or end at a row
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
    """The pairs of a band's rows whose pixel lies in the face or nearer than `blur_px` to its edges.

    Small faces come first, by octaves, then the faces' order, rows and columns: the order depends on the faces alone, not on
    the band.
    """
    top = faces.first[:, 1].clamp(min=band[0])
    rows = ((faces.first[:, 1] + faces.span[:, 1]).clamp(max=band[1]) - top).clamp(min=0)
    order = faces.span.amax(1).float().log2().ceil().sort(stable=True).indices
    owner, line = spread(rows[order])
    face = order[owner]  # (R,), one entry a row of a face
    y = (line + (top - faces.first[:, 1])[face]).to(faces.inverse.dtype)
    begin, end = row_columns(faces, face, y, width, blur_px)
    first_pixel = (line + top[face] - band[0]) * width + faces.first[face, 0]
    row, column = spread((end - begin).clamp(min=0))
    column = column + begin.index_select(0, row)
    pairs = Pairs(face.index_select(0, row), torch.stack([column.to(y.dtype), y.index_select(0, row)], 1),
                  column + first_pixel.index_select(0, row), torch.ones_like(row, dtype=torch.bool))
    if blur_px == 0 and (faces.depth_m > 2 * NEAR_M).all():
        return pairs  # whole rows, as they are
    a, b, c = barycentrics(faces, pairs)
    total = a + b + c
    # in the face, and no nearer than the near plane
    inside = (torch.minimum(torch.minimum(a, b), c) >= 0) & (total > 0) & (total < 1 / NEAR_M)
    hit = inside | (squared_distance_px(faces, pairs) < blur_px ** 2) if blur_px > 0 else inside
    return replace(pairs, inside=inside).select(hit.nonzero()[:, 0])


def spread(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) counts -> of each of their sum the index of its owner, and its number among the owner's."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts).index_select(0, owner)


def row_columns(faces: ScreenFaces, face: torch.Tensor, y: torch.Tensor, width: int, blur_px: float
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """First column (R,) and the one after the last, of the pixels of rows y (R,) that lie in the faces (R,).

    To the bit those at which no barycentric is negative: rounded, too, each only grows or only falls along a row, so
    two columns tell where it changes its sign. With a blur, all that may be near enough and some more.
    """
    begin, end = torch.zeros_like(y), faces.span[:, 0].to(y.dtype).index_select(0, face)
    affine = faces.inverse + 0.0  # which leaves no negative zero
    reach = (blur_px + 1) * (affine[:, 0] ** 2 + affine[:, 1] ** 2).sqrt() if blur_px > 0 else torch.zeros_like(affine[:, 0])
    for i in range(3):
        slope, down, rest = affine[..., i].index_select(0, face).unbind(1)
        rest = down * y + rest + reach[:, i].index_select(0, face)
        column = (-rest / slope).nan_to_num(0.0).clamp(-3, width + 1).floor()
        outside = (slope * column + rest < 0).to(y.dtype) + (slope * (column + 1) + rest < 0)
        begin = torch.where(slope >= 0, torch.maximum(begin, column + outside), begin)
        end = torch.where(slope < 0, torch.minimum(end, column + 2 - outside), end)
    return begin.long(), end.long()


def barycentrics(faces: ScreenFaces, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three (P,), barycentric coordinates over depth: positive inside a face that lies before the camera."""
    x, y = pairs.offset.unbind(1)
    a, b, c, d, e, f, g, h, i = of_face(faces.inverse.flatten(1), pairs)
    return a * x + (d * y + g), b * x + (e * y + h), c * x + (f * y + i)


def of_face(values: torch.Tensor, pairs: Pairs) -> list[torch.Tensor]:
    """The columns of values (F, C) at each pair's face, C times (P,): alone each is gathered and worked with faster."""
    return [column.index_select(0, pairs.face) for column in values.unbind(1)]


def squared_distance_px(faces: ScreenFaces, pairs: Pairs) -> torch.Tensor:
    """(P,) squared distance of each pixel to the nearest edge of its face."""
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
        share = (x * tx + y * ty).clamp(0, 1)
        squared = (x - share * ax) ** 2 + (y - share * ay) ** 2
        if not drawn.all():
            squared = torch.where(drawn[pairs.face], squared, torch.inf)
        nearest = torch.minimum(nearest, squared)
    return nearest


def depth_and_barycentrics(faces: ScreenFaces, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) meters and (P, 3), of the face's point seen at the pixel; beyond the face clipped to it, as PyTorch3D does."""
    bary = [values.clamp(min=0) for values in barycentrics(faces, pairs)]
    total = bary[0] + bary[1] + bary[2]
    bary = [values / total.clamp(min=1e-12) for values in bary]
    lost = total == 0  # beyond the line where a face that reaches behind the camera vanishes: farthest away
    if lost.any():
        farthest = of_face(F.one_hot(faces.depth_m.argmax(1), 3).to(total.dtype), pairs)
        bary = [torch.where(lost, far, values) for far, values in zip(farthest, bary)]
    a, b, c = (values * depth_m for values, depth_m in zip(bary, of_face(faces.depth_m, pairs)))
    return (a + b + c).clamp(min=NEAR_M), torch.stack(bary, 1)


# --- which faces a pixel sees -----------------------------------------------------------------------------------------

def rasterize(meshes: Meshes, cameras: Cameras, blur_radius: float = 0.0, faces_per_pixel: int = 1,
              cull_backfaces: bool = False, memory_mb: float = 512) -> Fragments:
    """The nearest `faces_per_pixel` faces at every pixel's center, of those in it or within the blur radius.

    blur_radius: squared NDC distance up to which a face is seen beyond its edges.
    cull_backfaces: skip faces whose corners run clockwise, seen from the camera.
    memory_mb: what the enumeration of pairs may take, about, the result and what its gradient keeps aside; the result does
    not depend on it, the gradient but for the order of its sums.
    """
    blur_px = math.sqrt(blur_radius) * min(cameras.width, cameras.height) / 2
    faces = screen_faces(meshes, cameras, blur_px, cull_backfaces)

    def rasterize_band(low: int, high: int) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            pairs = covered(faces, (low, high), cameras.width, blur_px)
            depth_m, bary = depth_and_barycentrics(faces, pairs)
            chosen, rank = nearest(pairs.pixel, depth_m, faces_per_pixel, (high - low) * cameras.width)
            pairs, depth_m, bary = pairs.select(chosen), depth_m.index_select(0, chosen), bary.index_select(0, chosen)
        if faces.inverse.requires_grad:
            depth_m, bary = depth_and_barycentrics(faces, pairs)
        place = (pairs.pixel + low * cameras.width) * faces_per_pixel + rank
        return place, faces.face[pairs.face], depth_m, bary, signed_distance(faces, pairs, cameras)

    bands = row_bands(faces, meshes.scenes * cameras.height, memory_mb)
    parts = [in_band(rasterize_band, band, faces, len(bands)) for band in bands]
    place, *columns = (torch.cat(column) for column in zip(*parts))
    shape = (meshes.scenes, cameras.height, cameras.width, faces_per_pixel)

    def image(values: torch.Tensor) -> torch.Tensor:
        blank = values.new_full((math.prod(shape), *values.shape[1:]), -1)
        return blank.index_put_((place,), values).view(*shape, *values.shape[1:])

    return Fragments(*map(image, columns))


def in_band(work, band: tuple[int, int], faces: ScreenFaces, bands: int):
    """work(low, high); with gradients and several bands, what a band computed is computed again in the backward pass."""
    if bands > 1 and faces.inverse.requires_grad:
        return checkpoint(work, *band, use_reentrant=False)
    return work(*band)


def nearest(pixel: torch.Tensor, depth_m: torch.Tensor, count: int, pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of pairs (P,) the `count` nearest of every pixel: their indices, and their ranks from 0. A tie goes to the first."""
    if depth_m.dtype == torch.float32:
        order = depth_m.view(torch.int32).long()  # a positive float's bits sort like the float
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


def signed_distance(faces: ScreenFaces, pairs: Pairs, cameras: Cameras) -> torch.Tensor:
    """(P,) squared NDC distance to the nearest edge, negative inside."""
    to_ndc = (2 / min(cameras.width, cameras.height)) ** 2
    squared = squared_distance_px(faces, pairs) * to_ndc
    return torch.where(pairs.inside, -squared, squared)


@torch.no_grad()
def depth_map(meshes: Meshes, cameras: Cameras, cull_backfaces: bool = False, memory_mb: float = 512) -> torch.Tensor:
    """(B, H, W) meters to the nearest face at each pixel's center, inf where there is none; without gradient."""
    faces = screen_faces(meshes, cameras, 0.0, cull_backfaces)
    depth_m = faces.depth_m.new_full((meshes.scenes * cameras.height, cameras.width), torch.inf)
    for low, high in row_bands(faces, len(depth_m), memory_mb):
        pairs = covered(faces, (low, high), cameras.width, 0.0)
        depth_m[low:high].view(-1).scatter_reduce_(0, pairs.pixel, depth_and_barycentrics(faces, pairs)[0], "amin")
    return depth_m.view(meshes.scenes, cameras.height, cameras.width)


def object_pixels(meshes: Meshes, cameras: Cameras, cull_backfaces: bool = False, memory_mb: float = 512) -> torch.Tensor:
    """(O,) int64, the pixels whose center each object covers in the image, whatever stands before it."""
    faces = screen_faces(meshes, cameras, 0.0, cull_backfaces)
    count = torch.zeros(len(meshes.object_scene), dtype=torch.int64, device=faces.face.device)
    with torch.no_grad():
        for low, high in row_bands(faces, meshes.scenes * cameras.height, memory_mb):
            pairs = covered(faces, (low, high), cameras.width, 0.0)
            pixels = (high - low) * cameras.width
            thing = meshes.face_object[faces.face[pairs.face]]
            count += torch.bincount((thing * pixels + pairs.pixel).unique() // pixels, minlength=len(count))
    return count


# --- soft images ------------------------------------------------------------------------------------------------------

def silhouette(meshes: Meshes, cameras: Cameras, sigma: float, memory_mb: float = 512) -> torch.Tensor:
    """(B, H, W) share of each pixel that the objects cover: 1 - prod(1 - D) over ALL faces (Liu et al. 2019, eq. 1, 3).

    D = sigmoid(-d / sigma), d the face's signed squared NDC distance. Its limit for sigma -> 0 is the hard mask.
    """
    blur_px = math.sqrt(sigma * math.log(1 / OPAQUE - 1)) * min(cameras.width, cameras.height) / 2
    faces = screen_faces(meshes, cameras, blur_px, cull_backfaces=False)

    def silhouette_band(low: int, high: int) -> torch.Tensor:
        with torch.no_grad():
            pairs = covered(faces, (low, high), cameras.width, blur_px)
        clear = F.logsigmoid(signed_distance(faces, pairs, cameras) / sigma)  # log(1 - D)
        return clear.new_zeros((high - low) * cameras.width).index_add(0, pairs.pixel, clear)

    bands = row_bands(faces, meshes.scenes * cameras.height, memory_mb)
    clear = torch.cat([in_band(silhouette_band, band, faces, len(bands)) for band in bands])
    return (0.0 - torch.expm1(clear)).view(meshes.scenes, cameras.height, cameras.width)


def soft_blend(colors: torch.Tensor, fragments: Fragments, background: torch.Tensor, sigma: float, gamma: float,
               near_m: float = 1.0, far_m: float = 100.0) -> torch.Tensor:
    """Colors weighted by closeness and depth (Liu et al. 2019, eq. 2; PyTorch3D's softmax_rgb_blend): -> (B, H, W, 3).

    colors: (B, H, W, K, 3) of the fragments' faces. background: broadcastable to (B, H, W, 3).
    """
    seen = fragments.pix_to_face >= 0
    share = torch.sigmoid(-fragments.dists / sigma) * seen
    closeness = torch.where(seen, (far_m - fragments.zbuf) / (far_m - near_m), 0.0)
    closest = closeness.amax(-1, keepdim=True).clamp(min=1e-10)
    weight = share * torch.exp((closeness - closest) / gamma)  # (B, H, W, K)
    behind = torch.exp((1e-10 - closest) / gamma).clamp(min=1e-10)  # (B, H, W, 1)
    return ((weight[..., None] * colors).sum(-2) + behind * background) / (weight.sum(-1, keepdim=True) + behind)
