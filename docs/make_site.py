"""Build the site: the repository's pages, a gallery of figures, and the reference of the modules.

    make docs        # or, with Sphinx installed: python docs/make_site.py

Sphinx reads copies of the pages and of the files that they link to, in a temporary folder with the
layout of the repository, so that relative links still work. The figures of the gallery are drawn
during the build. Warnings of Sphinx are errors.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

GUIDES = (
    "installing",
    "models",
    "practicum",
    "command_line",
    "promises",
    "accuracy",
    "bad_input",
    "peers",
)
OTHERS = (
    "bench/README.md",
    "bench/results/cpu-2-core-avx2/README.md",
    "bench/results/nvidia-h200.md",
    "CONTRIBUTING.md",
    "csrc/README.md",
    "csrc/cuda/README.md",
    "tests/simt/README.md",
    "CHANGELOG.md",
)

#: The public modules, in the order of the reference.
MODULES = {
    "lebm_kernels": "The functions",
    "lebm_kernels.models.grids": "Latent grids",
    "lebm_kernels.models.decoders": "Decoders",
    "lebm_kernels.models.regularisers": "Regularisers",
    "lebm_kernels.models.latent_model": "Models",
    "lebm_kernels.training.losses": "Losses",
    "lebm_kernels.training.negatives": "Contrastive samples",
    "lebm_kernels.training.likelihood": "Likelihood",
    "lebm_kernels.models.inference": "Inference",
    "lebm_kernels.models.descent": "Descent",
    "lebm_kernels.training.datasets": "Data",
    "lebm_kernels.training.loop": "Training",
    "lebm_kernels.training.schedules": "Schedules",
    "lebm_kernels.training.curves": "Learning curves",
    "lebm_kernels.practicum.recipes": "Recipes",
    "lebm_kernels.models.gtm": "Topographic mapping",
    "lebm_kernels.figures": "Figures",
    "lebm_kernels.practicum": "The practicum's figures",
    "lebm_kernels.backends": "Backends",
    "lebm_kernels.backends.contract": "The contract of a backend",
}


def main() -> None:
    """Build the site into the folder --output."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "docs")
    output = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write_sources(source)
        sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "auto"]
        sphinx += ["-c", str(DOCS), "-d", str(Path(folder) / "doctrees")]
        shutil.rmtree(output, ignore_errors=True)
        done = subprocess.run([*sphinx, str(source), str(output)], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    print(f"wrote {output / 'index.html'}")


def write_sources(source: Path) -> None:
    """Write everything that Sphinx reads to the folder ``source``."""
    pages = ["README.md", *(f"docs/{name}.md" for name in GUIDES), *OTHERS]
    for name in [*pages, *linked(pages)]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "README.md").rename(source / "index.md")
    with (source / "index.md").open("a", encoding="utf-8") as index:
        index.write(contents("Guides", pages[1 : 1 + len(GUIDES)]))
        index.write(contents("Reference", ["gallery.md", *map(reference, MODULES)]))
        index.write(contents("The rest", OTHERS))
    for name, title in MODULES.items():
        page = source / reference(name)
        page.parent.mkdir(exist_ok=True)
        # The function `backends` has the name of a module, whose page documents it.
        exclude = "\n   :exclude-members: backends" if name == "lebm_kernels" else ""
        directive = f"```{{eval-rst}}\n.. automodule:: {name}{exclude}\n```\n"
        page.write_text(f"# {title}\n\n{directive}", encoding="utf-8")
    write_gallery(source)


def linked(pages: Iterable[str]) -> set[str]:
    """The files that the pages link to or show, except the pages themselves."""
    found = set()
    for name in pages:
        page = ROOT / name
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target.is_file() and target.is_relative_to(ROOT):
                found.add(target.relative_to(ROOT).as_posix())
    return found - set(pages)


def reference(module: str) -> str:
    """The path of a module's reference page."""
    return f"reference/{module}.md"


def contents(caption: str, pages: Iterable[str]) -> str:
    """A section of the site's table of contents."""
    lines = [name.removesuffix(".md") for name in pages]
    options = f":hidden:\n:caption: {caption}\n"
    return "\n".join(["", "```{toctree}", options, *lines, "```", ""])


def write_gallery(source: Path) -> None:
    """Draw all figures with `lebm figures`, and write a page that shows them."""
    command = [sys.executable, "-m", "lebm_kernels", "figures", "--output", str(source / "gallery")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    caption_of = captions((DOCS / "practicum.md").read_text(encoding="utf-8"))
    lines = [
        "# Gallery",
        "",
        "The figures of `lebm figures`, drawn when this page was built. The",
        "[practicum](docs/practicum.md) explains them.",
    ]
    names = [path.stem for path in (source / "gallery").glob("*.png")]
    if missing := set(names) - caption_of.keys():
        raise SystemExit(f"docs/practicum.md must have captions of {', '.join(sorted(missing))}")
    for name in sorted(names, key=list(caption_of).index):
        lines += ["", f"## `{name}`", "", caption_of[name], "", f"![{name}](gallery/{name}.png)"]
    (source / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def captions(text: str) -> dict[str, str]:
    """The captions of the figures, in order: the paragraphs that start with a figure's name.

    A caption ends with its last complete sentence. The rest, which ends in a colon, introduces a
    formula that the gallery does not show.
    """
    found = re.findall(r"^\*\*`([\w-]+)`\*\*: (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()).rpartition(".")[0] + "." for name, text in found}


if __name__ == "__main__":
    main()
