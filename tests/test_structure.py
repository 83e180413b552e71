"""The structure of the project: imports, numbers of lines, line width and spelling."""
import ast
import json
import re
import subprocess
import sys
import tokenize

import pytest
from conftest import ENVIRONMENT, ROOT

from sim2sg_lib import IMPORT_ORDER

LIBRARY = sorted((ROOT / "sim2sg_lib").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
ENVS = sorted((ROOT / "envs").rglob("*.py"))
PRODUCT = LIBRARY + ENVS + SCRIPTS + sorted((ROOT / "examples").glob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
NOT_FOR_TEACHING = ("io.kitti", "io.export", "io.mesh_files", "score.kitti_ap", "viz.report")
BRITISH = re.compile(
    r"\w*(?:colour|optimis(?!t)|rasteris|neighbour|centre|metre|labelled|normalis|randomis)\w*",
    re.I)
FILE_FIELDS = ("randomise", "colour")  # fields of data files that keep the spelling of format 1
FORMER_OPTIONS = ("--randomise",)      # command-line options of the first version


def name_of(path):
    return str(path.relative_to(ROOT))


def lines_of(path):
    return path.read_text().count("\n")


def code_lines_of(path):
    """Lines of code: neither blank, nor comments, nor docstrings."""
    text = path.read_text()
    left = {number for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node):
            left -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(left)


def module_of(path):
    """sim2sg_lib/sim/lift.py -> sim.lift; sim2sg_lib/adapt/__init__.py -> adapt."""
    parts = path.relative_to(ROOT / "sim2sg_lib").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_project(name):
    return name.split(".")[0] in ("sim2sg_lib", "envs", *(script.stem for script in SCRIPTS))


def imports(nodes):
    """Full names of the project's modules that the import statements among the nodes import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if is_project(alias.name)}
        elif isinstance(node, ast.ImportFrom) and is_project(node.module or "."):
            for alias in node.names:
                path = ROOT / node.module.replace(".", "/") / alias.name
                is_module = path.is_dir() or path.with_suffix(".py").exists()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def at_import(node):
    """Statements that run when the module is imported, i.e. all outside functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from at_import(child)


# --- imports --------------------------------------------------------------------------------------

def test_imports_are_read_as_python_reads_them():
    tree = ast.parse("import numpy\nfrom sim2sg_lib.sim import lift\n"
                     "from sim2sg_lib.graph import Vocabulary\n"
                     "if True:\n    import envs.clevr\n"
                     "def function():\n    from sim2sg_lib.io import kitti\n")
    assert imports(at_import(tree)) == {"sim2sg_lib.sim.lift", "sim2sg_lib.graph", "envs.clevr"}
    assert imports(ast.walk(tree)) - imports(at_import(tree)) == {"sim2sg_lib.io.kitti"}


@pytest.mark.parametrize("path", LIBRARY, ids=module_of)
def test_modules_import_only_from_earlier_ones(path):
    module = module_of(path)
    names = imports(at_import(ast.parse(path.read_text())))
    found = {name.removeprefix("sim2sg_lib").lstrip(".") for name in names}
    if path.name == "__init__.py" and module not in IMPORT_ORDER:
        assert not found, "a room's __init__.py says what the room is for and imports nothing"
        return
    assert module in IMPORT_ORDER, "name it in sim2sg_lib.IMPORT_ORDER"
    earlier = {"", *IMPORT_ORDER[:IMPORT_ORDER.index(module)]}
    assert found <= earlier, f"not before it in sim2sg_lib.IMPORT_ORDER: {found - earlier}"


def test_the_import_order_names_existing_modules_once():
    assert len(set(IMPORT_ORDER)) == len(IMPORT_ORDER)
    assert set(IMPORT_ORDER) <= {module_of(path) for path in LIBRARY}


def test_library_environments_and_scripts_do_not_import_upwards():
    scripts = {script.stem for script in SCRIPTS}
    for path in LIBRARY + ENVS + SCRIPTS:
        found = imports(ast.walk(ast.parse(path.read_text())))
        assert not found & scripts, path
        assert path not in LIBRARY or all(name.startswith("sim2sg_lib") for name in found), path


# --- numbers of lines -----------------------------------------------------------------------------

TOY_LOOP = """
import json, sys
import torch
import synthesize, train, evaluate
torch.set_num_threads(1)
graphs = sys.argv[1]
for script, line in (
        (synthesize, "--num 4 --out data/sdr -q"),
        (synthesize, "--domain target --num 4 --out data/target -q"),
        (train, "--source data/sdr --steps 1 --out runs/0 -q"),
        (synthesize, f"--graphs {graphs} --num 2 --out data/1 -q"),
        (train, "--source data/1 --target data/target/train --align appearance,prediction "
                "--init runs/0/model.pt --steps 1 --out runs/1 -q"),
        (evaluate, "--checkpoint runs/1/model.pt --data data/target/test -q")):
    script.main(line.split(), standalone_mode=False)
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps({name: file for name, file in files.items() if file}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Module name -> file of all modules that one iteration of Algorithm 1 on CLEVR imports."""
    graphs, cwd = ROOT / "docs/tutorial/graphs.jsonl", tmp_path_factory.mktemp("loop")
    done = subprocess.run([sys.executable, "-c", TOY_LOOP, str(graphs)], cwd=cwd, text=True,
                          capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NOT_FOR_TEACHING)
def test_algorithm_1_on_clevr_does_not_load(loaded, name):
    # the loop ran all parts of Algorithm 1
    assert "sim2sg_lib.sim.lift" in loaded and "sim2sg_lib.adapt.sim2sg" in loaded
    assert f"sim2sg_lib.{name}" not in loaded


def test_lines_of_code_leave_out_blanks_comments_and_docstrings(tmp_path):
    path = tmp_path / "example.py"
    path.write_text('"""Module."""\nimport os\n\n# why\n'
                    'def f():\n    """Of f,\n    long."""\n    return os\n')
    assert (lines_of(path), code_lines_of(path)) == (8, 3)


def test_algorithm_1_on_clevr_is_at_most_5000_lines_of_code(loaded):
    apart = ("sim2sg_lib.io", "sim2sg_lib.viz", "sim2sg_lib.score")  # of the scores, metrics alone
    names = [name for name in loaded if is_project(name) and not name.startswith(apart)]
    names.append("sim2sg_lib.score.metrics")
    files = {ROOT / loaded[name] for name in names}
    assert set(SCRIPTS) <= files
    assert sum(map(code_lines_of, [*files, ROOT / "loop.sh"])) <= 5000


def test_the_product_is_at_most_10000_lines_of_code():
    assert sum(map(code_lines_of, PRODUCT)) <= 10_000


@pytest.mark.parametrize("path", LIBRARY + ENVS + SCRIPTS, ids=name_of)
def test_no_file_is_over_400_lines(path):
    assert lines_of(path) <= 400


# --- line width and spelling ----------------------------------------------------------------------

def test_lines_are_at_most_110_wide():
    wide = [f"{name_of(path)}:{number}" for path in PRODUCT + TESTS
            for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 110]
    assert not wide, f"{len(wide)} lines: {' '.join(wide[:20])}"


@pytest.mark.parametrize("files", [PRODUCT, TESTS], ids=["product", "tests"])
def test_fewer_than_3_percent_of_lines_are_over_100_wide(files):
    widths = [len(line) for path in files for line in path.read_text().splitlines()]
    assert sum(width > 100 for width in widths) < 0.03 * len(widths)


def test_docstrings_say_raises():
    found = []
    for path in PRODUCT + TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and "Errors:" in (ast.get_docstring(node) or ""):
                found.append(f"{name_of(path)}: {getattr(node, 'name', 'module')}")
    assert not found, f"{len(found)} docstrings say Errors: instead of Raises:, {found[:20]}"


def british(tokens):
    """Words in British spelling in Python's tokens, other than file fields and former options."""
    kinds = {"STRING", "NAME", "COMMENT", "FSTRING_MIDDLE"}
    texts = [token.string for token in tokens if tokenize.tok_name[token.type] in kinds]
    prose = [text for text in texts if text.strip("\"'") not in FILE_FIELDS + FORMER_OPTIONS]
    return [word for text in prose for word in BRITISH.findall(text)]


def test_british_spellings_are_found():
    code = [b"colours = 1  # the centre\n", b'parameter = {"randomise": f"{x} labelled"}\n',
            b"x.optimistic()\n"]
    tokens = list(tokenize.tokenize(iter(code).__next__))
    assert british(tokens) == ["colours", "centre", "labelled"]


def test_python_is_written_in_us_spelling():
    found = {}
    for path in [path for path in PRODUCT + TESTS if path.name != "test_structure.py"]:
        with path.open("rb") as file:
            words = british(tokenize.tokenize(file.readline))
        if words:
            found[name_of(path)] = sorted(set(words))
    assert not found, found


def test_documents_are_written_in_us_spelling():
    documents = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("*.sh")]
    documents += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "sim2sg_lib").rglob("*.jinja")]
    fields, found = "|".join(f"`{field}`" for field in FILE_FIELDS), {}
    for path in documents:
        text = re.sub(fields, "", path.read_text())
        if words := BRITISH.findall(text):
            found[name_of(path)] = sorted(set(words))
    assert not found, found
