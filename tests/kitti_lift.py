"""Label alignment on real streets, as in the paper's Figure 14: KITTI frames and lifted labels.

    python tests/kitti_lift.py KITTI_FOLDER --out lifted.png

The graphs are KITTI's labels (cars and pedestrians), so that the figure shows lifting alone. The
depths of the lifted cars are compared with the 3-D positions in label_2. KITTI's license does not
allow redistribution of its images or of this figure.
"""
import sys
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.drive import CAR, ENV  # noqa: E402
from sim2sg_lib.dataset import open_images, read_labels  # noqa: E402
from sim2sg_lib.io.images import read_image  # noqa: E402
from sim2sg_lib.io.kitti import frame_objects, kitti_root  # noqa: E402
from sim2sg_lib.sim.lift import lift  # noqa: E402
from sim2sg_lib.viz.drawings import contact_sheet  # noqa: E402
from sim2sg_lib.sim.render import render_scenes  # noqa: E402

TILE_PX = 620, 187  # wide enough to see a car


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="kitti_lift.png", show_default=True)
@click.option("--frames", default=12, show_default=True, help="How many, from the first.")
def main(folder: Path, out: Path, frames: int) -> None:
    images = open_images(folder, ENV)
    rows, depths = [], []
    for name, camera, graph in list(
            zip(images.names, images.cameras, read_labels(images, ENV)))[:frames]:
        rng = np.random.default_rng(len(rows))
        lifted, kept = lift(graph, camera, ENV, rng)
        depths += matched_depths(
            frame_objects(kitti_root(folder), Path(name).stem), lifted, kept, camera
        )
        snapped = ENV.world.snap_to_context(lifted, kept.boxes_px, camera, rng)
        scene = ENV.world.sample_appearance(snapped, camera, "source", "paper", rng)
        photo = read_image(images.folder / name, camera.width, camera.height)
        rows.append((Path(name).stem, [tile(photo), tile(draw(scene))]))
    contact_sheet(rows, TILE_PX[0]).save(out)
    if not depths:
        print(f"{len(rows)} frames, no car in them -> {out}")
        return
    truth, plain, aligned = np.array(depths).T
    medians, biases = (
        [np.median(of(depth - truth)) for depth in (plain, aligned)] for of in (abs, np.asarray)
    )
    print(
        f"{len(rows)} frames, {len(truth)} cars: median depth error {medians[0]:.2f} m where the "
        f"bottom edge of the box meets the ground, {medians[1]:.2f} m lifted; "
        f"bias {biases[0]:.2f} m and {biases[1]:.2f} m -> {out}"
    )


def matched_depths(labels, lifted, kept, camera) -> list[tuple[float, float, float]]:
    """Per lifted car: depth of the label, of the box's bottom center on the ground, and lifted."""
    rows = []
    for item, box in zip(lifted, kept.boxes_px):
        label = min(labels, key=lambda other: np.abs(np.array(other.box_px) - box).sum())
        if item.label == CAR and label.placed:
            ground = camera.ground_point([(box[0] + box[2]) / 2, box[3]])
            rows.append((label.bottom_camera[2], float(ground[1]), item.position_world[1]))
    return rows


def draw(scene) -> np.ndarray:
    """(H, W, 3) uint8 at the camera's own size."""
    size = scene.camera.width, scene.camera.height
    return render_scenes(ENV, [scene], ["x.png"], size, torch.device("cpu")).images[0]


def tile(pixels: np.ndarray) -> Image.Image:
    """Resized to TILE_PX."""
    return Image.fromarray(pixels).resize(TILE_PX, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
