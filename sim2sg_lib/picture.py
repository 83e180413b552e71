"""Pictures of the results: boxes on images, and contact sheets with a caption a row."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sim2sg_lib.graph import SceneGraph, Vocabulary

# colour-blind safe (Okabe and Ito), one a category, repeated if there are more
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
TILE_WIDTH = 240  # pixels
CAPTION_WIDTH = 150
GAP = 4


def draw_boxes(image: np.ndarray, graph: SceneGraph, vocabulary: Vocabulary, threshold: float = 0.0) -> Image.Image:
    """The image (H, W, 3) uint8, scaled to a tile, with the boxes of all objects at or above the threshold."""
    tile = to_tile(image)
    scale_x, scale_y = tile.width / graph.width, tile.height / graph.height
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    for label, box, score in zip(graph.labels, graph.boxes_px, graph.scores):
        if score < threshold:
            continue
        colour = COLOURS[label % len(COLOURS)]
        x0, y0, x1, y1 = box * (scale_x, scale_y, scale_x, scale_y)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
        text = vocabulary.categories[label] + ("" if score == 1 else f" {score:.2f}")
        place = (min(x0, tile.width - draw.textlength(text, font)), max(y0 - 13, 0))
        draw.text(place, text, fill=colour, font=font, stroke_width=2, stroke_fill="black")
    return tile


def to_tile(image: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> a picture TILE_WIDTH pixels wide."""
    picture = Image.fromarray(image)
    return picture.resize((TILE_WIDTH, round(TILE_WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)


def contact_sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of tiles, each with its caption on the left; tiles of a sheet share one size."""
    columns = max(len(tiles) for _, tiles in rows)
    width, height = TILE_WIDTH + GAP, max(tile.height for _, tiles in rows for tile in tiles) + GAP
    sheet = Image.new("RGB", (CAPTION_WIDTH + columns * width, len(rows) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for r, (caption, tiles) in enumerate(rows):
        draw.multiline_text((10, r * height + height / 2), caption, fill="black", font=font, anchor="lm", spacing=6)
        for c, tile in enumerate(tiles):
            sheet.paste(tile, (CAPTION_WIDTH + c * width, r * height))
    return sheet
