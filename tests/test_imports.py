"""Imports point one way, and the numeric modules can be taken alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import retrieval_jax

PACKAGE = Path(retrieval_jax.__file__).parent
NUMERIC = ["models", "objectives", "kmeans", "ranking", "ranking.cells", "metrics", "numerics"]

# Each module may import from the layers before its own, and from its own.
LAYERS = [
    {"numerics", "runtime"},
    {"data", "models", "kmeans", "metrics", "ranking"},
    {"objectives", "sharded", "sklearn", "report"},
    {"embedder", "evaluation", "baselines", "probes", "caveats"},
    {"training"},
    {"experiment", "sweep", "photos"},
    {"pipeline"},
    {"config", "build"},
    {"main", "__main__"},
]


def own_imports(path):
    """Top-level names of this package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "retrieval_jax" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1]


@pytest.mark.fast
def test_imports_point_one_way():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        for imported in own_imports(path):
            assert level[imported] <= level[module], f"{path} imports {imported}"


@pytest.mark.fast
def test_a_config_is_known_to_those_who_build_of_it_alone():
    for path in PACKAGE.rglob("*.py"):
        imports = ast.walk(ast.parse(path.read_text()))
        names = [a.name for i in imports if isinstance(i, ast.Import) for a in i.names]
        imports = ast.walk(ast.parse(path.read_text()))
        names += [i.module for i in imports if isinstance(i, ast.ImportFrom)]
        if any(name.startswith("ml_collections") for name in names):
            assert path.relative_to(PACKAGE).as_posix() in ("config.py", "build.py", "main.py")


@pytest.mark.fast
def test_no_private_or_foreign_frameworks():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "jax._src" not in text and "import tensorflow\n" not in text, path
        assert "pickle.load" not in text and "allow_pickle=True" not in text, path


@pytest.mark.parametrize("name", NUMERIC)
def test_numeric_modules_import_alone(name):
    code = f"import sys, retrieval_jax.{name}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert f"retrieval_jax.{name}" in loaded
    foreign = {"sklearn", "matplotlib", "tensorflow", "tensorflow_datasets", "grain", "PIL"}
    assert not loaded & (foreign | {"ml_collections", "tqdm", "orbax", "tensorboardX"})
    if name != "metrics":
        assert "scipy.optimize" not in loaded  # half a second, for what few call
    layers = {"config", "pipeline", "data", "report", "training", "runtime"}
    assert not loaded & {f"retrieval_jax.{layer}" for layer in layers}


def test_a_query_imports_little():
    """Each of these takes as long to import as a query may take in all."""
    code = "import sys, retrieval_jax.main, retrieval_jax.photos.command; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "retrieval_jax.photos.index" in loaded
    assert not loaded & {"flax", "grain", "orbax", "optax", "pyarrow", "ml_collections", "sklearn"}
