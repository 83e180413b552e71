"""Rendering many scenes: in chunks that fit in memory, side by side on the cores of a CPU."""
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNK, CHUNK_PIXELS = 16, 16 * 320 * 240  # largest chunk: images, and pixels if more than one image


def cut_into_chunks(indices: range, size: tuple[int, int]) -> list[range]:
    """The indices of images of (width, height) pixels in chunks to be rendered at once."""
    count = max(1, min(CHUNK, CHUNK_PIXELS // (size[0] * size[1])))
    return [indices[start:start + count] for start in range(0, len(indices), count)]


def in_parallel(work: Callable, chunks: list[range], device: torch.device) -> Iterator:
    """Yields work(chunk) in the chunks' order; on a CPU as many at once as torch has threads.

    Rendering is many small operations: whole chunks side by side use the cores better than each
    operation split up. One thread per chunk, so that results do not depend on their number.
    """
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, chunks)
    finally:  # without an error there is nothing left to cancel
        pool.shutdown(cancel_futures=True)
