"""`make bench`, second part: our rasterizer against another one, and growth of time and memory.

    python tests/bench_raster.py [OUT.png]     default of the plot: runs/bench.png

The other one ("peer") is PyTorch3D if it can be imported, otherwise a simple rasterizer that tests
every pixel for every face ("twin"). The scene has six spheres of 1,280 faces at 320x240. Time and
memory are also measured for more or fewer faces, pixels, scenes per batch, and faces per pixel; if
there is a GPU, on both CPU and GPU. Peak memory is that of a fresh process, less the memory in use
before the first call.
"""
import math
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
import torch

from sim2sg_lib.camera import look_at, stack_cameras
from sim2sg_lib.cli import InputError
from sim2sg_lib.sim.meshes import build, sphere_mesh
from sim2sg_lib.sim import pytorch3d
from sim2sg_lib.sim.rasterizer import rasterize
from sim2sg_lib.sim.soft import silhouette
from sim2sg_lib.scene import Material, Scene, SceneObject, Sky

SIGMA = 1e-4
BLUR_RADIUS = SIGMA * math.log(1e4 - 1)  # squared NDC distance at which a face adds 1e-4 to a pixel
SPHERES, ROUNDS = 6, 3


@dataclass(frozen=True)
class Case:
    """A batch of `scenes` scenes whose spheres have 20 * 4 ** subdivisions faces each.

    The soft rasterizers keep `faces_per_pixel` faces.
    """

    subdivisions: int = 3
    width: int = 320
    height: int = 240
    scenes: int = 1
    faces_per_pixel: int = 10

    @property
    def faces(self) -> int:
        """Number of faces of one scene."""
        return SPHERES * 20 * 4 ** self.subdivisions


GROWTH = {
    "faces": {Case(subdivisions=n).faces: Case(subdivisions=n) for n in (1, 2, 3, 4)},
    "pixels": {
        w * h: Case(width=w, height=h) for w, h in ((160, 120), (320, 240), (640, 480), (1242, 375))
    },
    "scenes per batch": {n: Case(scenes=n) for n in (1, 2, 8)},
    "faces per pixel": {n: Case(faces_per_pixel=n) for n in (1, 10, 50)},
}


def make_work(case: Case, device: str) -> dict:
    """Name of a measured operation -> function that runs it."""
    camera = look_at((0, -9, 5), (0, 0, 0), 1.1 * case.width, case.width, case.height)
    row = tuple(SceneObject(0, "sphere", (2.0 * (i - (SPHERES - 1) / 2), 0.0, 0.0), (1.6,) * 3, 0.0)
                for i in range(SPHERES))
    scene = Scene(row, camera, (), Sky((1.0,) * 3, (1.0,) * 3), Material())
    meshes = build([scene] * case.scenes, {"sphere": sphere_mesh(case.subdivisions)}, device)
    cameras = stack_cameras([camera] * case.scenes, case.width, case.height, device)
    moving = replace(meshes, verts_world=meshes.verts_world.clone().requires_grad_())

    def soft(rasterizer, shape):
        return lambda: rasterizer(shape, cameras, BLUR_RADIUS, case.faces_per_pixel)

    return {
        "hard": lambda: rasterize(meshes, cameras),
        "silhouette": lambda: silhouette(meshes, cameras, SIGMA),
        "silhouette, backward": lambda: silhouette(moving, cameras, SIGMA).sum().backward(),
        "soft": soft(rasterize, meshes),
        "soft, backward": lambda: soft(rasterize, moving)().dists.sum().backward(),
        "peer hard": lambda: pytorch3d.rasterize(meshes, cameras),
        "peer soft": soft(pytorch3d.rasterize, meshes),
        "peer soft, backward": lambda: soft(pytorch3d.rasterize, moving)().dists.sum().backward(),
        "twin": lambda: slow_rasterize(meshes, cameras),
    }


def slow_rasterize(meshes, cameras) -> np.ndarray:
    """The nearest face of every pixel, found by testing every pixel for every face."""
    found = cameras.homogeneous_px(meshes.verts_world, meshes.vert_scene)
    px, depth = found[:, :2] / found[:, 2:], found[:, 2]
    corners, zs = (px[meshes.faces].double().cpu().numpy(),
                   depth[meshes.faces].double().cpu().numpy())
    x, y = np.meshgrid(np.arange(cameras.width) + 0.5, np.arange(cameras.height) + 0.5)
    zbuf, nearest = np.full(x.shape, np.inf), np.full(x.shape, -1)
    for f, ((a, b, c), z) in enumerate(zip(corners, zs)):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        u = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
        v = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
        inverse = u / z[0] + v / z[1] + (1 - u - v) / z[2]
        closer = ((u >= 0) & (v >= 0) & (u + v <= 1)
                  & (1 / np.where(inverse > 0, inverse, 1e-12) < zbuf))
        zbuf[closer], nearest[closer] = 1 / inverse[closer], f
    return nearest


def median_ms(work, device: str, rounds: int = ROUNDS) -> float:
    """Median milliseconds of at least `rounds` calls and 0.2 seconds, without the first call."""
    values = []
    while len(values) <= rounds or sum(values[1:]) < 200:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        values.append(1000 * (time.perf_counter() - start))
    return statistics.median(values[1:])


def peak_mb(case: Case, device: str) -> float:
    """Peak memory of the calls to our own rasterizer."""
    if device == "cuda":
        work = make_work(case, device)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for name in ("hard", "silhouette, backward", "soft, backward"):
            work[name]()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(host_peak_mb, (case,))


def host_peak_mb(case: Case) -> float:
    """Peak growth (MB) of this process's resident memory, if it is fresh; NaN if not on Linux."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return math.nan
    work = make_work(case, "cpu")
    # a first call, since torch loads some of its parts lazily
    make_work(Case(subdivisions=0, width=16, height=12), "cpu")["soft, backward"]()

    def resident_kib(field: str) -> int:
        return int(next(line.split()[1] for line in status.read_text().splitlines()
                        if line.startswith(field)))

    reset.write_text("5")  # resets the peak
    before = resident_kib("VmRSS")
    for name in ("hard", "silhouette, backward", "soft, backward"):
        work[name]()
    return (resident_kib("VmHWM") - before) / 1024


def compare(device: str) -> None:
    """Our rasterizer and the peer on the standard scene."""
    work = make_work(Case(), device)
    try:
        work["peer hard"]()
        peer = "PyTorch3D"
        peers = {
            "hard": "peer hard",
            "silhouette": "peer soft",
            "silhouette, backward": "peer soft, backward",
            "soft": "peer soft",
            "soft, backward": "peer soft, backward",
        }
    except InputError:
        peer, peers = "plain twin", {"hard": "twin"}
    peer_ms = {name: median_ms(work[name], device, 1) for name in sorted(set(peers.values()))}
    print(f"rasterizer on {device}: {SPHERES} spheres, {Case().faces:,} faces, 320x240, "
          f"{Case().faces_per_pixel} faces per pixel where soft\n"
          f"{'':<24}{'ms':>9}{'images/s':>10}{peer + ' ms':>16}{'ratio':>8}")
    for name in ("hard", "silhouette", "silhouette, backward", "soft", "soft, backward"):
        ours, theirs = median_ms(work[name], device), peer_ms.get(peers.get(name))
        beside = f"{theirs:16.1f}{theirs / ours:7.0f}x" if theirs else f"{'-':>16}{'-':>8}"
        print(f"  {name:<22}{ours:9.1f}{1000 / ours:10.1f}{beside}")


def grow(device: str) -> dict[str, dict[int, dict[str, float]]]:
    """Milliseconds and MB of every case of GROWTH, printed one by one."""
    columns = ("hard", "silhouette", "soft", "soft, backward")
    print(
        f"{'growth on ' + device:<32}"
        + "".join(f"{name + ' ms':>19}" for name in columns)
        + f"{'peak MB':>11}"
    )
    found = {}
    for title, cases in GROWTH.items():
        for size, case in cases.items():
            work = make_work(case, device)
            row = {name: median_ms(work[name], device) for name in columns}
            row["peak MB"] = peak_mb(case, device)
            values = "".join(f"{row[name]:19.1f}" for name in columns)
            print(f"  {f'{size:,} {title}':<30}{values}{row['peak MB']:11.0f}", flush=True)
            found.setdefault(title, {})[size] = row
    return found


def plot(found: dict[str, dict], path: Path) -> None:
    """Growth on logarithmic axes: a panel per quantity, a line per operation, dashed for GPU."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(GROWTH), figsize=(14, 3.4), sharey=True, layout="constrained"
    )
    for panel, title in zip(panels, GROWTH):
        for device, growth in found.items():
            for number, name in enumerate(("hard", "silhouette", "soft", "soft, backward")):
                sizes = list(growth[title])
                panel.loglog(sizes, [growth[title][size][name] for size in sizes],
                             "--o" if device == "cuda" else "-o", color=f"C{number}", markersize=3,
                             label=f"{name}, {device}")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7, rotation=25)
        panel.minorticks_off()
        panel.set_xlabel(title)
        panel.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel("milliseconds per batch")
    panels[-1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path} shows it")


if __name__ == "__main__":
    measured = {}
    for place in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        compare(place)
        measured[place] = grow(place)
    plot(measured, Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench.png"))
