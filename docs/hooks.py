"""What the site is made of beside the pages in this folder: the notebooks, the pages outside, the
sources for the API reference, mathematics, and links out of the folder."""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)"
)
BAR = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")
"""Code with a bar in a table: GitHub knows that its backslash is not meant."""
FENCE = re.compile(r"^(```.*?^```)", flags=re.DOTALL | re.MULTILINE)


OUTSIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that lie beside this folder."""

SOURCES = ROOT / "build/docs"
"""Where the API reference looks for the package."""


def on_startup(**_: Any) -> None:
    """Before mkdocstrings looks for folders of sources."""
    SOURCES.mkdir(parents=True, exist_ok=True)


def on_pre_build(config: Any) -> None:
    """A copy of the package as it is imported: ``problems/`` is ``sciml_snr.problems``."""
    package = SOURCES / "sciml_snr"
    shutil.rmtree(package, ignore_errors=True)
    unseen = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sciml_snr", package, ignore=unseen)
    shutil.copytree(ROOT / "problems", package / "problems", ignore=unseen)


def on_files(files: Files, config: Any) -> Files:
    """Adds the notebooks, as they were executed last, and the pages outside."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, resources = MarkdownExporter().from_filename(str(path))
        for name, content in resources["outputs"].items():
            text = text.replace(f"({name})", f"({path.stem}/{name})")
            source = f"tutorials/{path.stem}/{name}"
            files.append(File.generated(config, source, content=content))
        text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL)  # of pandas' tables
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
    for page, path in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them, and the mathematics of GitHub as that of arithmatex."""
    source = page.file.src_uri
    at = OUTSIDE.get(source, f"docs/{source}")
    if source.startswith("tutorials/0"):
        at = source.replace("tutorials", "notebooks", 1)

    def link(match: re.Match[str]) -> str:
        image, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if source.startswith("tutorials/0") and image:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        path = re.sub(r"^notebooks/(.*)\.ipynb$", r"docs/tutorials/\1.md", path)
        inside = {to: f"docs/{page}" for page, to in OUTSIDE.items()}
        path = {**inside, "README.md": "docs/index.md"}.get(path, path)
        if path.startswith("docs/"):
            to = posixpath.relpath(path[len("docs/") :], posixpath.dirname(source) or ".")
            return f"{image}[{words}]({to}{anchor})"
        if config.repo_url:
            return f"{image}[{words}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return words if path in words else f"{words} (`{path}` in the sources)"

    parts = FENCE.split(markdown)
    for i, part in enumerate(parts):
        if part.startswith("```math"):
            parts[i] = f"$$\n{part[len('```math') : -len('```')].strip()}\n$$"
        elif not part.startswith("```"):
            part = BAR.sub(lambda m: f"<code>{m[1].replace(chr(92) + '|', '&#124;')}</code>", part)
            part = re.sub(r"\$`(.+?)`\$", r"$\1$", part, flags=re.DOTALL)
            parts[i] = LINK.sub(link, part)
    return "".join(parts)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Formulas in MathML, which browsers show by themselves."""

    def formula(match: re.Match[str]) -> str:
        opening, text = match[1], match[2]
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            text = text.replace(entity, character)
        if re.search(r"\\\\|(?<!\\)&", text) and r"\begin" not in text:
            text = rf"\begin{{split}}{text}\end{{split}}"
        return convert(text, display="block" if opening == "[" else "inline")

    return re.sub(
        r'<(?:span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</(?:span|div)>',
        formula,
        html,
        flags=re.DOTALL,
    )
