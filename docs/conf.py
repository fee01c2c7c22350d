"""Settings of the documentation: `sphinx-build -W docs build/docs`."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from dilated_affinity.version import __version__

project = "dilated_affinity"
release = version = __version__
copyright = "the authors of dilated_affinity, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["equations.css"]
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
    """Equations as MathML, which browsers draw without a script from the network."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_displayed_math, None))
    # Before Napoleon reads the docstrings.
    app.connect("autodoc-process-docstring", _keep_bars, priority=1)


def _inline_math(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _displayed_math(translator, node):
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def _keep_bars(app, what, name, obj, options, lines):
    """|R|, the number of rates, is no substitution of reStructuredText."""
    lines[:] = [line.replace("|R|", r"\|R\|") for line in lines]
