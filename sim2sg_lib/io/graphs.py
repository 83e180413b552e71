"""Scene graphs as JSON Lines, one graph per line, validated when read."""
import os
from pathlib import Path

from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import SceneGraph, Vocabulary, make_graph
from sim2sg_lib.io.files import write_json_lines
from sim2sg_lib.io.reading import (
    MAX_SIDE, is_int, is_number, read_json_lines, safe_join, stays_inside)

MAX_OBJECTS = 1000  # per image: relations grow with their square
GRAPH_FIELDS = {"image", "width", "height", "objects", "relations"}
OBJECT_FIELDS = {"category", "box", "score", "visible", "truncated", "ignore"}


def to_json(graph: SceneGraph, vocabulary: Vocabulary) -> dict:
    """The graph as one line's JSON object, without `visible`, `truncated` and `ignore` at defaults."""
    objects = []
    for i in range(len(graph)):
        row = {"category": vocabulary.categories[graph.labels[i]],
               "box": [round(float(v), 3) for v in graph.boxes_px[i]],
               "score": round(float(graph.scores[i]), 5)}
        if graph.visible[i] != 1.0:
            row["visible"] = round(float(graph.visible[i]), 4)
        if graph.truncated[i] != 0.0:
            row["truncated"] = round(float(graph.truncated[i]), 4)
        if graph.ignore[i]:
            row["ignore"] = True
        objects.append(row)
    relations = [[int(s), vocabulary.predicates[p], int(o), round(float(score), 5)]
                 for (s, p, o), score in zip(graph.relations, graph.relation_scores)]
    return {"image": graph.image, "width": graph.width, "height": graph.height,
            "objects": objects, "relations": relations}


def write_graphs(path: Path, graphs: list[SceneGraph], vocabulary: Vocabulary) -> None:
    """One graph per line."""
    write_json_lines(path, [to_json(graph, vocabulary) for graph in graphs])


def read_graphs(path: Path, vocabulary: Vocabulary, folder: Path | None = None) -> list[SceneGraph]:
    """Read and validate a graphs.jsonl. Raises: InputError naming file, line and field.

    folder: where each graph's image must lie, one graph per image; None to ignore the images.
    """
    graphs, seen = [], set()
    for line_number, row in read_json_lines(path):
        where = f"{path}:{line_number}"
        try:
            graph = from_json(row, vocabulary)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if folder and graph.image in seen:
            raise InputError(f"{where}: image: {graph.image} has a second graph")
        if folder and not os.path.isfile(safe_join(folder, graph.image, f"{where}: image")):
            raise InputError(f"{where}: image: {graph.image} is not in {folder}")
        graphs.append(graph)
        seen.add(graph.image)
    return graphs


def from_json(row: dict, vocabulary: Vocabulary) -> SceneGraph:
    """The graph of one line's JSON object. Raises: ValueError naming the field."""
    unknown = set(row) - GRAPH_FIELDS
    _expect(not unknown, f"{', '.join(sorted(unknown))}: unknown field")
    image = row.get("image")
    _expect(isinstance(image, str) and image != "", "image: expected a path")
    _expect(stays_inside(image), "image: expected a path inside the data set")
    for name in ("width", "height"):
        is_size = is_int(row.get(name)) and 0 < row[name] <= MAX_SIDE
        _expect(is_size, f"{name}: expected 1..{MAX_SIDE} pixels")
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
    return make_graph(
        image, row["width"], row["height"],
        [vocabulary.categories.index(o["category"]) for o in objects], [o["box"] for o in objects],
        [(s, vocabulary.predicates.index(p), o) for s, p, o, *_ in relations],
        [o.get("score", 1.0) for o in objects], [o.get("visible", 1.0) for o in objects],
        [o.get("truncated", 0.0) for o in objects], [o.get("ignore", False) for o in objects],
        [r[3] if len(r) > 3 else 1.0 for r in relations])


def _check_object(item, where: str, width: int, height: int, vocabulary: Vocabulary) -> None:
    _expect(isinstance(item, dict), f"{where}: expected an object")
    unknown = set(item) - OBJECT_FIELDS
    _expect(not unknown, f"{where}.{', '.join(sorted(unknown))}: unknown field")
    category, box = item.get("category"), item.get("box")
    _expect(category in vocabulary.categories, f"{where}.category: {category!r} is not one of "
                                               f"{', '.join(vocabulary.categories)}")
    _expect(isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box),
            f"{where}.box: expected four finite numbers x0, y0, x1, y1, found {box}")
    x0, y0, x1, y1 = box
    _expect(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height,
            f"{where}.box: {box} expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}")
    for name in ("score", "visible", "truncated"):
        value = item.get(name, 1.0)
        _expect(is_number(value) and 0 <= value <= 1,
                f"{where}.{name}: {value} expected a number from 0 to 1")
    _expect(isinstance(item.get("ignore", False), bool), f"{where}.ignore: expected true or false")


def _check_relation(item, where: str, count: int, vocabulary: Vocabulary) -> None:
    _expect(isinstance(item, list) and len(item) in (3, 4),
            f"{where}: expected [subject, predicate, object, score]")
    s, predicate, o = item[:3]
    for name, value in (("subject", s), ("object", o)):
        _expect(is_int(value) and 0 <= value < count,
                f"{where}: {name} {value} is not an index below {count}, the number of objects")
    _expect(s != o, f"{where}: subject and object are both {s}")
    _expect(predicate in vocabulary.predicates,
            f"{where}: {predicate!r} is not one of {', '.join(vocabulary.predicates)}")
    score = item[3] if len(item) > 3 else 1.0
    _expect(is_number(score) and 0 <= score <= 1,
            f"{where}: score {score} expected a number from 0 to 1")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
