"""Sphinx settings of this folder; `make docs` builds the site into build/docs."""

import re

from docutils import nodes
from sphinx.domains.python import PyXRefRole

from nft_ext.version import __version__

project = "nft_ext"
copyright = "2026, the nft_ext authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"

html_theme = "furo"
html_title = f"nft_ext {version}"
highlight_language = "none"  # a block says which language it is in, or is plain text
smartquotes = False

myst_heading_anchors = 3  # [text](page.md#heading) works as it does on GitHub

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100  # beyond, one argument per line
napoleon_numpy_docstring = False
napoleon_preprocess_types = False
napoleon_use_rtype = False

# Every reference must have a target, except types of other projects: an offline build cannot read their pages.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|nn|collections|os|pathlib|typing|inspect|contextlib)\b.*"),
    # classes that a signature names and users never construct
    ("py:class", r"nft_ext\..*\.(NoisyLayer|SnapshotModel|Kind|VGG8|ResNet18|Row|Group|BuiltIn|Metrics)"),
    # pieces of types that autodoc cuts at a comma
    ("py:class", r"(list|dict)\[.*"),
]

# `name` in a docstring is code, and a link where it is a public name.
default_role = "py:name"


class Name(PyXRefRole):
    """The text as code, looked up as it stands in nft_ext."""

    def process_link(self, env, refnode, has_explicit_title, title, target):
        refnode["py:module"], refnode["py:class"] = "nft_ext", env.ref_context.get("py:class")
        return title, re.sub(r"^nft\.", "nft_ext.", target)


def code_without_link(app, env, node, contnode):
    """A `name` that is no public name stays code."""
    return contnode if node.get("reftype") == "name" else None


def plain_text(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`: outside of code no character means anything, and an indented block after a
    line that ends in a colon is code."""
    parts = "\n".join(lines).split("`")
    parts[::2] = [re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    text = "`".join(parts)
    text = re.sub(r"^( *)(\S.*):\n\n(?=\1 +\S)", r"\1\2::\n\n", text, flags=re.MULTILINE)
    lines[:] = text.split("\n")


def readable(app, what, name, obj, options, signature, returned):
    """Writes a dataclass's default factory as ..., which Sphinx can break into lines."""
    return (signature or "").replace("<factory>", "...") or None, returned


def short_types(app, doctree):
    """The type of an attribute without its module."""
    for field in doctree.findall(nodes.field):
        for text in list(field.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(re.sub(r"\bnft_ext\.(?:[a-z_]+\.)+(?=[A-Z])", "", text)))


def setup(app):
    app.add_role_to_domain("py", "name", Name())
    app.connect("missing-reference", code_without_link)
    app.connect("autodoc-process-signature", readable)
    app.connect("doctree-read", short_types)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon
