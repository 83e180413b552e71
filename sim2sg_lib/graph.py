"""Scene graphs: what the network predicts and what the renderer labels, and their JSON Lines files.

A box is `x0, y0, x1, y1` in float pixels, half-open: x right, y down, the centre of the first pixel at (0.5, 0.5).
A relation row (s, p, o) reads "object s is predicate p of object o": <laptop, on, table>. Several predicates may
hold for one ordered pair. Numbers are numpy, so that reading a graph never needs torch.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim2sg_lib.files import write_json_lines
from sim2sg_lib.terminal import InputError


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
            if folder and not (folder / graph.image).is_file():
                raise ValueError(f"image: {graph.image} is not in {folder}")
        except ValueError as error:
            raise InputError(f"{path}:{line_number}: {error}") from None
        graphs.append(graph)
        seen.add(graph.image)
    return graphs


def read_json_lines(path: Path) -> list[tuple[int, dict]]:
    """Every non-empty line of a JSON Lines file as (line number from 1, object). Errors: InputError."""
    rows = []
    for line_number, line in enumerate(read_text(path, "JSON Lines").splitlines(), 1):
        if line.strip():
            rows.append((line_number, load_json(line, f"{path}:{line_number}")))
    return rows


def read_text(path: Path, expected: str) -> str:
    """A file's text. Errors: InputError if it is missing, which says what was `expected`, or is no UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from None


def load_json(text: str, where: str) -> dict:
    """Parse one JSON object; NaN and infinity are refused. Errors: InputError starting with `where`."""
    def refuse(name):
        raise ValueError(f"{name} is not a JSON number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


_OBJECT_FIELDS = {"category", "box", "score", "visible", "truncated", "ignore"}


def from_json(row: dict, vocabulary: Vocabulary) -> SceneGraph:
    """The graph of one line's JSON object. Errors: ValueError that names the field."""
    unknown = set(row) - {"image", "width", "height", "objects", "relations"}
    _expect(not unknown, f"{', '.join(sorted(unknown))}: unknown field")
    image = row.get("image")
    _expect(isinstance(image, str) and image != "", "image: expected a path")
    # an absolute name, or one with "..", could read files outside the data set
    _expect(not Path(image).is_absolute() and ".." not in Path(image).parts, "image: expected a path inside the data set")
    for name in ("width", "height"):
        _expect(_is_int(row.get(name)) and 0 < row[name] <= 65535, f"{name}: expected 1..65535 pixels")
    objects, relations = row.get("objects"), row.get("relations", [])
    _expect(isinstance(objects, list), "objects: expected a list")
    _expect(isinstance(relations, list), "relations: expected a list")
    for i, item in enumerate(objects):
        _check_object(item, f"objects[{i}]", row["width"], row["height"], vocabulary)
    for i, item in enumerate(relations):
        _check_relation(item, f"relations[{i}]", len(objects), vocabulary)
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
    _expect(isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box),
            f"{where}.box: expected four finite numbers x0, y0, x1, y1, found {box}")
    x0, y0, x1, y1 = box
    _expect(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height,
            f"{where}.box: {box} expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}")
    for name in ("score", "visible", "truncated"):
        value = item.get(name, 1.0)
        _expect(_is_number(value) and 0 <= value <= 1, f"{where}.{name}: {value} expected a number from 0 to 1")
    _expect(isinstance(item.get("ignore", False), bool), f"{where}.ignore: expected true or false")


def _check_relation(item, where: str, count: int, vocabulary: Vocabulary) -> None:
    _expect(isinstance(item, list) and len(item) in (3, 4), f"{where}: expected [subject, predicate, object, score]")
    s, predicate, o = item[:3]
    for name, value in (("subject", s), ("object", o)):
        _expect(_is_int(value) and 0 <= value < count,
                f"{where}: {name} {value} is not an index below {count}, the number of objects")
    _expect(s != o, f"{where}: subject and object are both {s}")
    _expect(predicate in vocabulary.predicates,
            f"{where}: {predicate!r} is not one of {', '.join(vocabulary.predicates)}")
    score = item[3] if len(item) > 3 else 1.0
    _expect(_is_number(score) and 0 <= score <= 1, f"{where}: score {score} expected a number from 0 to 1")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
