"""The configuration of Sphinx, which make_site.py runs."""

import lebm_kernels

project = "lebm_kernels"
author = "The lebm_kernels developers"
version = release = lebm_kernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_heading_anchors = 3
# The docstring of a class documents its arguments, and its fields as attributes.
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
napoleon_use_rtype = False
# References to our own names must resolve. Those to other projects are ignored, because they would
# need the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!lebm_kernels\.).*"), ("py:.*", r".*\._\w+")]

html_theme = "furo"
html_title = f"lebm_kernels {version}"
html_show_copyright = False
html_show_sphinx = False
