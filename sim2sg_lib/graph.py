"""Scene graphs: what the network predicts and what the renderer labels, and their JSON Lines files.

A box is `x0, y0, x1, y1` in float pixels, half-open: x right, y down, the centre of the first pixel at (0.5, 0.5).
A relation row (s, p, o) reads "object s is predicate p of object o": <laptop, on, table>. Several predicates may
hold for one ordered pair. Numbers are numpy, so that reading a graph never needs torch.

Whatever opens a file of the user's checks it here first: files from elsewhere may be anything.
"""
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim2sg_lib.files import write_json_lines
from sim2sg_lib.terminal import InputError

MAX_FILE_BYTES = 256 * 2**20  # of an image, a mesh or a text, which is read whole
MAX_LINE = 8 * 2**20          # characters of JSON Lines, which in memory take forty times as much
MAX_PIXELS = 64 * 2**20       # of an image, beyond which it is not decoded
MAX_SIDE = 65535              # pixels, of an image in either direction
NOT_IN_NAMES = "[\0\\\\\ud800-\udfff]"  # a pattern: what the name of a file may not hold, a backslash for one
MAX_DEPTH = 16                # of lists and objects inside one another in JSON
MAX_OBJECTS = 1000            # of an image: relations grow with their square


@dataclass(frozen=True)
class Vocabulary:
    """The names behind the integers.

    categories: object categories; label i means categories[i] (no background entry).
    predicates: relation predicates; predicate p means predicates[p].
    """

    categories: tuple[str, ...]
    predicates: tuple[str, ...]


@dataclass(frozen=True)
class SceneGraph:
    """One image's objects and relations. N objects, R relations; both may be 0.

    image:           path of the image, relative to the data set's folder.
    width, height:   image size in pixels.
    labels:          (N,) int64, index into Vocabulary.categories.
    boxes_px:        (N, 4) float64, x0 y0 x1 y1, inside the image.
    scores:          (N,) float64 in [0, 1]; 1 for exact labels.
    visible:         (N,) float64 in [0, 1], share of the object's in-image pixels that nothing hides; 1 if unknown.
                     0 marks a neighbour (KITTI's Van beside car): one detection that finds it is neither right nor wrong.
    truncated:       (N,) float64 in [0, 1], share of the object's full box outside the image; 0 if unknown.
    ignore:          (N,) bool, a region neither to be found nor to be punished for, however many detections lie in it
                     (KITTI's DontCare).
    relations:       (R, 3) int64, subject index, predicate, object index.
    relation_scores: (R,) float64 in [0, 1]; 1 for exact labels.
    """

    image: str
    width: int
    height: int
    labels: np.ndarray
    boxes_px: np.ndarray
    scores: np.ndarray
    visible: np.ndarray
    truncated: np.ndarray
    ignore: np.ndarray
    relations: np.ndarray
    relation_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counted(self) -> np.ndarray:
        """(N,) bool, the objects that are there to be found: neither regions nor neighbours."""
        return ~self.ignore & (self.visible > 0)


def make_graph(image: str, width: int, height: int, labels, boxes_px, relations=(), scores=None, visible=None,
               truncated=None, ignore=None, relation_scores=None) -> SceneGraph:
    """A SceneGraph from any array-likes; what is left out takes its default (see SceneGraph)."""
    labels = np.asarray(labels, np.int64).reshape(-1)
    relations = np.asarray(relations, np.int64).reshape(-1, 3)

    def column(values, default, count, dtype=np.float64):
        return np.full(count, default, dtype) if values is None else np.asarray(values, dtype).reshape(count)

    n, r = len(labels), len(relations)
    return SceneGraph(
        image, int(width), int(height), labels, np.asarray(boxes_px, np.float64).reshape(n, 4), column(scores, 1.0, n),
        column(visible, 1.0, n), column(truncated, 0.0, n), column(ignore, False, n, bool),
        relations, column(relation_scores, 1.0, r))


def select_objects(graph: SceneGraph, keep: np.ndarray) -> SceneGraph:
    """The sub-graph of the objects where keep (N,) bool holds; relations with a lost end go, indices are renumbered."""
    new_index = np.cumsum(keep) - 1
    s, o = graph.relations[:, 0], graph.relations[:, 2]
    kept = keep[s] & keep[o]
    relations = graph.relations[kept]
    relations = np.stack([new_index[relations[:, 0]], relations[:, 1], new_index[relations[:, 2]]], 1)
    return SceneGraph(graph.image, graph.width, graph.height, graph.labels[keep], graph.boxes_px[keep],
                      graph.scores[keep], graph.visible[keep], graph.truncated[keep], graph.ignore[keep],
                      relations, graph.relation_scores[kept])


# --- JSON Lines -------------------------------------------------------------------------------------------------------

def to_json(graph: SceneGraph, vocabulary: Vocabulary) -> dict:
    """The graph as one line's JSON object; optional fields are written where they differ from their default."""
    objects = []
    for i in range(len(graph)):
        row = {"category": vocabulary.categories[graph.labels[i]],
               "box": [round(float(v), 3) for v in graph.boxes_px[i]], "score": round(float(graph.scores[i]), 5)}
        if graph.visible[i] != 1.0:
            row["visible"] = round(float(graph.visible[i]), 4)
        if graph.truncated[i] != 0.0:
            row["truncated"] = round(float(graph.truncated[i]), 4)
        if graph.ignore[i]:
            row["ignore"] = True
        objects.append(row)
    relations = [[int(s), vocabulary.predicates[p], int(o), round(float(score), 5)]
                 for (s, p, o), score in zip(graph.relations, graph.relation_scores)]
    return {"image": graph.image, "width": graph.width, "height": graph.height, "objects": objects,
            "relations": relations}


def write_graphs(path: Path, graphs: list[SceneGraph], vocabulary: Vocabulary) -> None:
    """Write one graph a line."""
    write_json_lines(path, [to_json(graph, vocabulary) for graph in graphs])


def read_graphs(path: Path, vocabulary: Vocabulary, folder: Path | None = None) -> list[SceneGraph]:
    """Read and validate a graphs.jsonl. Errors: InputError naming file, line and field.

    folder: where each graph's image must lie, one graph an image; None if the images do not matter.
    """
    graphs, seen = [], set()
    for line_number, row in read_json_lines(path):
        try:
            graph = from_json(row, vocabulary)
            if folder and graph.image in seen:
                raise ValueError(f"image: {graph.image} has a graph already")
            if folder and not os.path.isfile(safe_join(folder, graph.image, f"{path}:{line_number}: image")):
                raise ValueError(f"image: {graph.image} is not in {folder}")
        except ValueError as error:
            raise InputError(f"{path}:{line_number}: {error}") from None
        graphs.append(graph)
        seen.add(graph.image)
    return graphs


def read_json_lines(path: Path) -> list[tuple[int, dict]]:
    """Every non-empty line of a JSON Lines file as (line number from 1, object). Errors: InputError."""
    rows = []
    for line_number, line in enumerate(read_text(path, "JSON Lines").split("\n"), 1):
        if len(line) > MAX_LINE:
            raise InputError(f"{path}:{line_number}: {len(line)} characters, expected {MAX_LINE} a line at most")
        if line.strip():
            rows.append((line_number, load_json(line, f"{path}:{line_number}")))
    return rows


def read_text(path: Path, expected: str) -> str:
    """A file's text. Errors: InputError if it is missing or too large, which says what was `expected`, or is no UTF-8."""
    content = read_bytes(path, expected)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: cannot be read as UTF-8 text, expected {expected}") from None


def read_bytes(path: Path, expected: str) -> bytes:
    """A file's bytes. Errors: those of check_file; InputError if it cannot be read."""
    check_file(path, expected)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected {expected}") from None


def check_file(path: Path, expected: str, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Errors: InputError unless there is a file of at most max_bytes; a pipe or a device might never end."""
    if not os.path.isfile(path):  # which, unlike Path's, takes any name
        raise InputError(f"{path}: {'not a regular' if os.path.exists(path) else 'no such'} file, expected {expected}")
    if os.path.getsize(path) > max_bytes:
        raise InputError(f"{path}: {os.path.getsize(path)} bytes, expected {expected}, of {max_bytes} at most")


def safe_join(root: Path, name: str, where: str = "") -> Path:
    """root / name, for a `name` that somebody else wrote or linked; `root` itself may be anywhere.

    Errors: InputError, starting with `where` or else the path, if the name or a link on its way leads out of root.
    """
    path = Path(root) / name
    if not _stays_inside(name) or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise InputError(f"{where or path}: {name!r} leads out of {root}, expected a path inside it")
    return path


def _stays_inside(name: str) -> bool:
    """Whether a name is relative and without "..", backslash, NUL, or what is no character."""
    return not re.search(NOT_IN_NAMES, name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def load_json(text: str, where: str) -> dict:
    """Parse one JSON object. Errors: InputError starting with `where`.

    Refused is also what Python reads and others do not: NaN, infinity, a name twice in an object, half a character, more
    than MAX_DEPTH levels.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_without_twins)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    if _deeper(value, MAX_DEPTH):
        raise InputError(f"{where}: expected at most {MAX_DEPTH} lists and objects inside one another")
    return value


def _finite(word: str) -> float:
    if not math.isfinite(float(word)):
        raise ValueError(f"{word} is not a finite number")
    return float(word)


def _without_twins(pairs: list[tuple]) -> dict:
    row = {}
    for name, value in pairs:
        if name in row:
            raise ValueError(f"{name!r} is there twice")
        row[name] = value
    return row


def _deeper(value, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in inner if isinstance(item, (dict, list)))


_OBJECT_FIELDS = {"category", "box", "score", "visible", "truncated", "ignore"}


def from_json(row: dict, vocabulary: Vocabulary) -> SceneGraph:
    """The graph of one line's JSON object. Errors: ValueError that names the field."""
    unknown = set(row) - {"image", "width", "height", "objects", "relations"}
    _expect(not unknown, f"{', '.join(sorted(unknown))}: unknown field")
    image = row.get("image")
    _expect(isinstance(image, str) and image != "", "image: expected a path")
    _expect(_stays_inside(image), "image: expected a path inside the data set")
    for name in ("width", "height"):
        _expect(is_int(row.get(name)) and 0 < row[name] <= MAX_SIDE, f"{name}: expected 1..{MAX_SIDE} pixels")
    objects, relations = row.get("objects"), row.get("relations", [])
    _expect(isinstance(objects, list), "objects: expected a list")
    _expect(len(objects) <= MAX_OBJECTS, f"objects: {len(objects)}, expected {MAX_OBJECTS} at most")
    _expect(isinstance(relations, list), "relations: expected a list")
    for i, item in enumerate(objects):
        _check_object(item, f"objects[{i}]", row["width"], row["height"], vocabulary)
    seen = set()
    for i, item in enumerate(relations):
        _check_relation(item, f"relations[{i}]", len(objects), vocabulary)
        _expect(tuple(item[:3]) not in seen, f"relations[{i}]: {item[:3]} is there twice")
        seen.add(tuple(item[:3]))
    triples = [(s, vocabulary.predicates.index(p), o) for s, p, o, *_ in relations]
    return make_graph(
        image, row["width"], row["height"], [vocabulary.categories.index(o["category"]) for o in objects],
        [o["box"] for o in objects], triples, [o.get("score", 1.0) for o in objects],
        [o.get("visible", 1.0) for o in objects], [o.get("truncated", 0.0) for o in objects],
        [o.get("ignore", False) for o in objects], [r[3] if len(r) > 3 else 1.0 for r in relations])


def _check_object(item, where: str, width: int, height: int, vocabulary: Vocabulary) -> None:
    _expect(isinstance(item, dict), f"{where}: expected an object")
    unknown = set(item) - _OBJECT_FIELDS
    _expect(not unknown, f"{where}.{', '.join(sorted(unknown))}: unknown field")
    _expect(item.get("category") in vocabulary.categories,
            f"{where}.category: {item.get('category')!r} is not one of {', '.join(vocabulary.categories)}")
    box = item.get("box")
    _expect(isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box),
            f"{where}.box: expected four finite numbers x0, y0, x1, y1, found {box}")
    x0, y0, x1, y1 = box
    _expect(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height,
            f"{where}.box: {box} expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}")
    for name in ("score", "visible", "truncated"):
        value = item.get(name, 1.0)
        _expect(is_number(value) and 0 <= value <= 1, f"{where}.{name}: {value} expected a number from 0 to 1")
    _expect(isinstance(item.get("ignore", False), bool), f"{where}.ignore: expected true or false")


def _check_relation(item, where: str, count: int, vocabulary: Vocabulary) -> None:
    _expect(isinstance(item, list) and len(item) in (3, 4), f"{where}: expected [subject, predicate, object, score]")
    s, predicate, o = item[:3]
    for name, value in (("subject", s), ("object", o)):
        _expect(is_int(value) and 0 <= value < count,
                f"{where}: {name} {value} is not an index below {count}, the number of objects")
    _expect(s != o, f"{where}: subject and object are both {s}")
    _expect(predicate in vocabulary.predicates,
            f"{where}: {predicate!r} is not one of {', '.join(vocabulary.predicates)}")
    score = item[3] if len(item) > 3 else 1.0
    _expect(is_number(score) and 0 <= score <= 1, f"{where}: score {score} expected a number from 0 to 1")


def is_int(value) -> bool:
    """Whether a value of JSON is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value of JSON is a number below 1e9, beyond which nothing here is meant."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
