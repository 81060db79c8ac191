"""What the site does beyond Markdown: pages from other folders, pictures, tables of benchmarks, and mathematics."""

import html
import json
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[1]
# Files of the project's root that are pages of the site.
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
FILES = ("CITATION.cff",)
PICTURES = "experiments/results"
RESULTS = ROOT / "benchmarks" / "results"
PLACE_OF_NAMES = "<!-- table of public names -->"
PLACE_OF_BENCHMARKS = "<!-- tables of benchmarks/results -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the project's root, with their links as seen from the site, and the pictures."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text()
        text = re.sub(r"\]\(docs/", "](", text)
        for other, name in PAGES.items():
            text = text.replace(f"]({name})", f"]({other})")
        files.append(File.generated(config, page, content=text))
    for name in FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for picture in sorted((ROOT / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Leads pictures to their copies on the site, and writes the tables of public names and of benchmarks."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(rf"\]\((?:\.\./)*{PICTURES}/([^)]+\.png)", rf"]({up}pictures/\1", markdown)
    if PLACE_OF_NAMES in markdown:
        markdown = markdown.replace(PLACE_OF_NAMES, "\n".join(_public_names()))
    if PLACE_OF_BENCHMARKS in markdown:
        markdown = markdown.replace(PLACE_OF_BENCHMARKS, "\n\n".join(_benchmark_sections()))
    return markdown


def on_page_content(html: str, page: Page, files: Files, **_: Any) -> str:
    r"""Leads links of notebooks to pages, and turns LaTeX into MathML, which browsers draw themselves.

    `\tag{7}` numbers an equation, and names it eq-7.
    """
    if page.file.src_uri.endswith(".py"):
        return re.sub(r'href="([^":#]+\.(?:md|py))', lambda link: f'href="{_url(link[1], page, files)}', html)
    html = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _display, html, flags=re.DOTALL)
    page.present_anchor_ids = {*(page.present_anchor_ids or ()), *re.findall(r'id="(eq-\w+)"', html)}
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: _mathml(m[1], "inline"), html)


def _url(link: str, page: Page, files: Files) -> str:
    """Returns the address of a page, which MkDocs finds for the links of Markdown but not for those of notebooks."""
    target = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link)))
    if target is None:
        raise PluginError(f"Expected links of {page.file.src_uri} to name pages of docs, got {link}")
    return get_relative_url(target.url, page.url)


def _display(match: re.Match[str]) -> str:
    latex, *tag = re.split(r"\\tag\{(\w+)\}", match[1])
    math = _mathml(latex + "".join(tag[1:]), "block")
    return f'<div class="equation" id="eq-{tag[0]}">{math}<span>({tag[0]})</span></div>' if tag else math


def _mathml(latex: str, display: str) -> str:
    math = convert(html.unescape(latex).strip(), display=display)
    if unknown := re.search(r"<m[oi]>(\\\w+)", math):
        raise PluginError(f"Expected LaTeX that can be turned into MathML, got {unknown[1]} in {latex}")
    return math


def _public_names() -> Iterable[str]:
    """Yields a table of every public name: how users write it, with a link to its reference, and its first sentence."""
    package: Any = griffe.load("nngp_dag", search_paths=[ROOT])
    yield "| name | |"
    yield "|---|---|"
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for module in re.findall(r"^::: nngp_dag\.([\w.]+)", page.read_text(), re.MULTILINE):
            for name in sorted(package[module].exports, key=str.casefold):
                thing = package[module][name]
                summary = thing.docstring.value.partition("\n\n")[0].replace("\n", " ") if thing.docstring else ""
                place = module.removeprefix("graph.")  # the module `zoo` is a public name itself
                written = f"nd.{name}" if name in package.exports else f"nd.{place}.{name}"
                yield f"| [`{written}`][nngp_dag.{module}.{name}] | {summary.replace('|', chr(92) + '|')} |"


def _benchmark_sections() -> Iterable[str]:
    """Yields a section for every file of results: the claim, where it was measured, and all that was measured.

    Results that state what was asked come first.
    """
    results = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    for path, result in sorted(results.items(), key=lambda item: "findings" not in item[1]):
        result.pop("sha256", None)
        claim = result.pop("claim", path.stem)
        lines = [f"## {path.stem}", "", f"{claim[0].upper()}{claim[1:]}.", "", _where(result), ""]
        if findings := result.pop("findings", None):
            lines += ["| measured | value | asked | met |", "|---|---|---|---|"]
            for found in findings:
                met = {True: "yes", False: "**no**", None: ""}[found["met"]]
                lines.append(f"| {found['what']} | {found['measured']:.4g} | {found['asked'] or ''} | {met} |")
        else:
            tables = {name: result.pop(name) for name in list(result) if isinstance(result[name], list)}
            lines += ["| measured | value |", "|---|---|", *(f"| {name} | {_shown(x)} |" for name, x in _flat(result))]
            for rows in tables.values():
                rows = [dict(_flat(row)) for row in rows]
                names = list(dict.fromkeys(name for row in rows for name in row))
                lines += ["", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
                lines += [f"| {' | '.join(_shown(row.get(name, '')) for name in names)} |" for row in rows]
        yield "\n".join(lines)


def _where(result: dict[str, Any]) -> str:
    """Takes date, machine and versions out of a result, and returns them as a sentence."""
    machine = [str(result.pop(name)) for name in ("date", "device", "machine") if name in result]
    versions = {"Python": result.pop("python", None), **result.pop("versions", {})}
    return (
        f"{', '.join(machine)}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + "."
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        name = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}: ")
        elif value is not None:
            yield name, value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
