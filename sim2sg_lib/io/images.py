"""PNG and JPEG files, and folders of them."""
import io
import itertools
import os
import re
import unicodedata
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from sim2sg_lib.cli import InputError, log_info
from sim2sg_lib.io.files import write_bytes
from sim2sg_lib.io.reading import (
    MAX_PIXELS, MAX_SIDE, NOT_IN_NAMES, check_file, read_bytes, safe_join)

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif")
OTHER_SUFFIXES = (".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")  # not read
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG: no stuffed byte, restart or filling
# Photos have a dozen scans; each is decoded as an image, so scans x pixels are bounded
MAX_SCANS, MAX_SCANNED = 100, 2**30
MAX_STEM_BYTES = 255 - len(".png.tmp")  # file systems allow names of 255 bytes
# metadata are ignored, but Pillow decompresses them and refuses more than 1 MiB by default
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 * 2**20


# --- folders --------------------------------------------------------------------------------------

def kitti_root(folder: Path) -> Path | None:
    """The folder around KITTI's image_2/, `folder` or its training/; None for other folders."""
    roots = (Path(folder), Path(folder) / "training")
    return next((root for root in roots if os.path.isdir(root / "image_2")), None)


def image_names(folder: Path) -> list[str]:
    """Paths relative to `folder`, sorted, of files named as PNG or JPEG, except hidden ones.

    They lie in a KITTI folder's image_2/ or a data set's images/; any other folder may have images
    on its top level, in images/ or in both. Raises: InputError if there are none.
    """
    folder, kitti = Path(folder), kitti_root(folder)
    inner = [folder / "images"] if os.path.isdir(folder / "images") else []
    is_data_set = any(os.path.lexists(folder / name)
                      for name in ("dataset.json", "graphs.jsonl", "cameras.jsonl"))
    roots = inner if inner and is_data_set else [folder, *inner]
    if kitti:
        roots = [kitti / "image_2"]
    names = []
    for root in roots:
        safe_join(folder, str(root.relative_to(folder)))
        try:
            entries = list(root.iterdir())
        except OSError as error:
            raise InputError(f"{root}: cannot be listed ({error.strerror})") from None
        names += [str(path.relative_to(folder)) for path in entries
                  if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    labels = [path for name in ("label_2", "calib")
              for path in (folder / name, folder / "training" / name) if path.is_dir()]
    if not names and labels and not kitti:
        raise InputError(f"{labels[0].parent}: has {labels[0].name}/ and no image_2/, expected "
                         "image_2/ with PNG or JPEG images")
    if not names:
        also = " or in its images/" if roots[0] == folder else ""
        raise InputError(f"{roots[0]}: no PNG or JPEG image in it{also}")
    return sorted(names)


def readable_images(folder: Path) -> dict[str, tuple[int, int]]:
    """The image_names of an unchecked folder -> (width, height) in pixels.

    Broken images, hidden files, other formats and subfolders are skipped; one line says how many.
    Raises: InputError if no image is left, or for a link that leads out of the folder.
    """
    folder, sizes, skipped = Path(folder), {}, []
    names, is_kitti = image_names(folder), kitti_root(folder) is not None
    for name in names:
        if re.search(NOT_IN_NAMES, name):
            skipped.append(f"{folder / name}: its name has characters that graphs.jsonl cannot hold")
            continue
        path = safe_join(folder, name)
        try:
            sizes[name] = open_image(path).size if is_kitti else check_image(path)
        except InputError as error:
            skipped.append(error.message)
    if not sizes:
        raise InputError(f"{skipped[0]}; {folder}: no readable PNG or JPEG image in it")
    if not is_kitti:
        skipped += [f"{folder / name}: {reason}" for name, reason in left_out(folder, set(names))]
    if skipped:
        log_info(f"{folder}: {len(sizes)} images are read, {len(skipped)} files are skipped; "
                 f"the first: {skipped[0]}")
    return sizes


def left_out(folder: Path, names: set[str]) -> list[tuple[str, str]]:
    """(path, reason) of images at a folder's top level and in subfolders, but not in `names`."""
    subfolders = sorted(path for path in folder.iterdir()
                        if path.is_dir() and not path.name.startswith("."))
    rows = []
    for place in [folder, *subfolders]:
        for name in sorted(os.listdir(place)) if os.access(place, os.R_OK | os.X_OK) else []:
            path = str((place / name).relative_to(folder))
            suffix = Path(name).suffix.lower()
            if path in names or suffix not in SUFFIXES + OTHER_SUFFIXES:
                continue
            if name.startswith("."):
                rows.append((path, "a hidden file"))
            elif suffix in OTHER_SUFFIXES:
                rows.append((path, "not PNG or JPEG"))
            else:
                rows.append((path, "in a folder that is not read"))
    return rows


# --- files ----------------------------------------------------------------------------------------

def open_image(path: Path) -> Image.Image:
    """The file's header, pixels not yet read. Raises: InputError."""
    check_file(path, "a PNG or JPEG image")
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
    except Exception as error:  # Pillow's readers raise all kinds of errors
        reason = type(error).__name__
        raise InputError(f"{path}: not a readable PNG or JPEG image ({reason})") from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise InputError(f"{path}: {image.width}x{image.height} pixels, expected 1 to {MAX_PIXELS}")
    if max(image.size) > MAX_SIDE:
        raise InputError(f"{path}: {image.width}x{image.height} pixels, expected {MAX_SIDE} at "
                         "most in either direction")
    return image


def check_image(path: Path) -> tuple[int, int]:
    """(width, height) px of an image that can be decoded, at less than the cost of decoding it.

    Raises: InputError.
    """
    image = open_image(path)
    try:
        if image.format == "PNG":
            image.verify()  # checksums
            return image.size
    except Exception:
        image = open_image(path)  # a broken checksum behind the pixels does no harm
    check_scans(path, image)
    try:
        image.draft("L", (1, 1))  # JPEG: an eighth of the size
        image.load()
    except Exception as error:
        raise InputError(f"{path}: truncated or broken image ({error})") from None
    return open_image(path).size


def check_scans(path: Path, image: Image.Image) -> None:
    """Raises: InputError for a JPEG of so many scans that decoding would take minutes."""
    scans = 0 if image.format == "PNG" else count_scans(read_bytes(path, "a JPEG image"))
    most = min(MAX_SCANS, MAX_SCANNED // (image.width * image.height))
    if scans > most:
        raise InputError(f"{path}: {scans} scans, expected a JPEG of this size to have {most} at "
                         "most")


def read_image(path: Path, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8, resized if necessary. Raises: InputError for a broken file.

    Gray, palette and CMYK become RGB, 16 bits become 8, alpha is dropped. Of an animation the first
    frame is read. EXIF orientation is ignored.
    """
    image = open_image(path)
    check_scans(path, image)
    try:
        if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        image = image.convert("RGB")
    except Exception as error:
        raise InputError(f"{path}: truncated or broken image ({error})") from None
    if image.size != (width, height):
        method = Image.Resampling.BOX if image.width > width else Image.Resampling.BILINEAR
        image = image.resize((width, height), method)
    return np.asarray(image)


def count_scans(jpeg: bytes) -> int:
    """The number of scans of a JPEG, up to its end: a phone's video may follow."""
    at, scans = 2, 0
    while found := MARKER.search(jpeg, at):
        kind, at = jpeg[found.end() - 1], found.end()
        if kind == 0xd9:  # the end
            break
        scans += kind == 0xda
        if kind != 0x01:  # the only marker here without content
            at += max(2, int.from_bytes(jpeg[at:at + 2], "big"))
    return scans


def write_image(path: Path, image: np.ndarray) -> int:
    """Write (H, W, 3) uint8 as PNG, lightly compressed for speed. Returns the file's CRC."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=1)
    # not synced: after a power cut the CRC tells whether the file is complete
    write_bytes(path, content.getvalue(), sync=False)
    return zlib.crc32(content.getvalue())


def output_names(paths: list[str]) -> list[str]:
    """A file name for each image's results: its own, made unique by _2, _3, ... after the stem.

    Stems count as equal if they differ only in case or in Unicode normalization. Characters that
    graphs.jsonl cannot hold become underscores, and stems are cut to MAX_STEM_BYTES.
    """
    names, taken = [], set()
    for path in (Path(re.sub(NOT_IN_NAMES, "_", Path(path).name)) for path in paths):
        for number in itertools.count(1):
            ending = f"_{number}" if number > 1 else ""
            start = path.stem.encode()[:MAX_STEM_BYTES - len(ending)].decode(errors="ignore")
            key = unicodedata.normalize("NFC", (start + ending).casefold())
            if key not in taken:
                break
        taken.add(key)
        names.append(start + ending + path.suffix)
    return names
