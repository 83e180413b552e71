"""PNG and JPEG files."""
import io
import re
import unicodedata
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from sim2sg_lib.cli import InputError
from sim2sg_lib.io.files import write_bytes
from sim2sg_lib.io.reading import MAX_PIXELS, NOT_IN_NAMES, check_file, read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg")
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG: no stuffed byte, restart or filling
# of a JPEG; real ones have a dozen scans, and each takes as long as the whole image: so also of scans times pixels
MAX_SCANS, MAX_SCANNED = 100, 2**30
MAX_STEM_BYTES = 255 - len(".png.tmp")  # file systems allow names of 255 bytes


def output_names(paths: list[str]) -> list[str]:
    """A file name for the results of each image: its own name, made unique by _2, _3, ... behind the stem.

    Stems count as equal if they differ only in case or in Unicode normalization. Characters that graphs.jsonl cannot
    hold become underscores, and stems are cut to MAX_STEM_BYTES.
    """
    names, taken = [], set()
    for path in (Path(re.sub(NOT_IN_NAMES, "_", Path(path).name)) for path in paths):
        ending, number = "", 1
        while True:
            stem = path.stem.encode()[:MAX_STEM_BYTES - len(ending)].decode(errors="ignore") + ending
            key = unicodedata.normalize("NFC", stem.casefold())
            if key not in taken:
                break
            number += 1
            ending = f"_{number}"
        taken.add(key)
        names.append(stem + path.suffix)
    return names


def open_image(path: Path) -> Image.Image:
    """The file's header, pixels not yet read. Errors: InputError."""
    check_file(path, "a PNG or JPEG image")
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
    except Exception as error:  # Pillow passes on whatever its readers stumble over
        raise InputError(f"{path}: not a readable PNG or JPEG image ({error.__class__.__name__})") from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise InputError(f"{path}: {image.width}x{image.height} pixels, expected 1 to {MAX_PIXELS}")
    return image


def read_image(path: Path, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8, resized if need be. Errors: InputError for a truncated or broken file.

    Gray, palette and CMYK become RGB, 16 bits become 8, alpha is dropped, an animation is its first picture; pixels are
    where the file stores them, whatever EXIF says.
    """
    image = open_image(path)
    scans = 0 if image.format == "PNG" else count_scans(read_bytes(path, "a JPEG image"))
    most = min(MAX_SCANS, MAX_SCANNED // (image.width * image.height))
    if scans > most:
        raise InputError(f"{path}: {scans} scans, expected a JPEG of this size to have {most} at most")
    try:
        if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would cut off at 255
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        image = image.convert("RGB")
    except Exception as error:
        raise InputError(f"{path}: truncated or broken image ({error})") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BOX if image.width > width else Image.Resampling.BILINEAR)
    return np.asarray(image)


def count_scans(jpeg: bytes) -> int:
    """How many scans a JPEG has; what follows its end, as a phone's video does, is no part of it."""
    at, scans = 2, 0
    while found := MARKER.search(jpeg, at):
        kind, at = jpeg[found.end() - 1], found.end()
        if kind == 0xd9:  # the end
            break
        scans += kind == 0xda
        at += max(2, int.from_bytes(jpeg[at:at + 2], "big")) * (kind != 0x01)  # which alone has no content
    return scans


def write_image(path: Path, image: np.ndarray) -> int:
    """(H, W, 3) uint8 -> PNG; the lightest compression, since writing costs more than rendering. Returns the file's CRC."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=1)
    write_bytes(path, content.getvalue(), sync=False)  # a power cut before the set is whole is found out by the CRC
    return zlib.crc32(content.getvalue())
