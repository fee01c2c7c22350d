"""Settings of the documentation: `sphinx-build -W docs build/docs`."""

from dilated_affinity.version import __version__

project = "dilated_affinity"
release = version = __version__
copyright = "the authors of dilated_affinity, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"dilated_affinity {release}"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give types with shapes
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Call arguments", "params_style")]
# Docstrings mark code with single backquotes, as Keras' do.
default_role = "code"


def setup(app):
    """Before Napoleon reads the docstrings."""
    app.connect("autodoc-process-docstring", _keep_bars, priority=1)


def _keep_bars(app, what, name, obj, options, lines):
    """|R|, the number of rates, is no substitution of reStructuredText."""
    lines[:] = [line.replace("|R|", r"\|R\|") for line in lines]
