"""What `.ci/run` runs."""

from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_under_jax_runs_where_jax_is_installed():
    """The everyday tests run without JAX and skip them."""
    script = (TESTS.parent / ".ci" / "run").read_text(encoding="utf-8")
    _, with_jax = script.split("jax]")
    needing_it = {
        path.relative_to(TESTS.parent).as_posix()
        for path in TESTS.rglob("test_*.py")
        if "@needs_jax" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert len(needing_it) >= 5
    assert not {path for path in needing_it if path not in with_jax}


def test_every_path_exists():
    script = (TESTS.parent / ".ci" / "run").read_text(encoding="utf-8")
    words = [word.strip('"').split("::")[0] for word in script.replace("\\\n", " ").split()]
    paths = [word for word in words if word.startswith("tests/")]
    assert paths and all((TESTS.parent / path).is_file() for path in paths)
