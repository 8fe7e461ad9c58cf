"""Sphinx, offline: pages in Markdown, the reference from docstrings, and every reference must resolve."""

import sys
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "reversible_hypergrad"
copyright = "the reversible_hypergrad authors, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
html_copy_source = False

# Links to a heading of another page, as in [..](arithmetic.md#the-rate).
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes in the class's own text, so that a dataclass's fields do not appear twice

# Strict: `make docs` turns warnings into errors. What lies in other packages is not looked up, since that needs the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|nn|collections|os|pathlib|abc|typing)\..*"),
    ("py:.*", r"Path|ArrayLike|NDArray|Tensor|Module|Generator|ABC|array"),
    ("py:(exc|class|obj)", r"\w*(Error|Warning)"),
]


def resolve_by_last_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: Element) -> Element | None:
    """An annotation names the file that a class is written in, a docstring the bare class; the reference has it where users
    import it from."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or ("." in target and not target.startswith(project + ".")):
        return None
    domain = env.domains["py"]
    last = target.rsplit(".", 1)[-1]
    named = [
        (name, kind)
        for name, _, kind, _, _, priority in domain.get_objects()
        if name.rsplit(".", 1)[-1] == last and kind != "module" and priority >= 0  # below 0: another name for the same
    ]
    # A function comes before a method of the same name.
    found = [name for name, kind in named if kind != "method"] or [name for name, _ in named]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contents)


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", resolve_by_last_name)
