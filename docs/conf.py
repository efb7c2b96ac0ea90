"""The site: Sphinx with MyST, which reads the Markdown that is tested as documents, and furo. See CONTRIBUTING.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from checks import refuse_network, report_missing  # noqa: E402
from generate import write_pages  # noqa: E402
from link_names import LinkNames, targets  # noqa: E402
from signatures import name_types, prepare  # noqa: E402
from typeset import typeset  # noqa: E402

import pinvnn  # noqa: E402

HERE = Path(__file__).parent
project, author, copyright = "pinvnn", "The pinvnn authors", "The pinvnn authors"
release = version = pinvnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax and its fonts in the build
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["_build"]
nitpicky = False
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape"]

smartquotes_action = "qD"  # without ellipses: ... stands in paths and commands

html_theme = "furo"
html_title = f"pinvnn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

write_pages(HERE)


def setup(app):
    """Formulas (typeset.py), links from names to the API reference (link_names.py), its signatures (signatures.py)."""

    def read(app, name, source):
        if name == "math":
            source[0] = typeset(source[0])
        if name == "evidence":  # a number and its standard error stay on one line
            source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")

    app.connect("source-read", read)
    app.add_config_value("pinvnn_names", targets(), "")
    app.add_transform(LinkNames)
    app.connect("env-check-consistency", report_missing)
    app.connect("build-finished", refuse_network)
    app.connect("autodoc-process-signature", name_types)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # before napoleon
