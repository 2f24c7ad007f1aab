"""A drawn figure as an inline SVG element: text stays text, colours become CSS variables, marks get titles."""

from __future__ import annotations

import io
import json
import re
import zlib
from typing import Any
from xml.etree import ElementTree

from scalebench.reporting.end_labels import LEADER
from scalebench.reporting.quantities import printable
from scalebench.reporting.scales import scales_of
from scalebench.reporting.svg import CSS_COLORS, Marks, color_of

COLOR = re.compile(r"#[0-9a-f]{6}\b")
DECIMALS = re.compile(r"-?\d+\.\d{3,}")
FONT_FAMILY = re.compile(r"font-family:[^;]*;? ?|(?<=px) [^;]*'DejaVu[^;]*")
FAR_LEFT = 100  # points: a name of the y axis beyond is that of a second one
PAIR = re.compile(r"(-?[0-9.]+) (-?[0-9.]+)")
TICK = re.compile("([xy])tick_[0-9]+")
REFERENCE = re.compile(r"(?:url\(#|^#)([^)]+)\)?")


def to_svg(marks: Marks, name: str, title: str, description: str) -> str:
    """Return the figure as an inline SVG element; its ids depend on ``name`` alone, which differs within a page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    marks.thin()
    buffer = io.StringIO()
    # With every entry empty, matplotlib writes no date, version or address.
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(marks.figure).print_svg(buffer, metadata=empty)  # type: ignore[no-untyped-call]
    root = ElementTree.fromstring(printable(buffer.getvalue()).encode())  # noqa: S314 - written two lines above
    _strip_namespaces(root)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    _drop_shared_style(root)
    _add_titles(root, marks.titles)
    _place_areas(root)
    _classify(root)
    _rename_ids(root, name)
    _restyle(root)
    _flatten(root)
    _join_definitions(root)
    _share_styles(root)
    _strip_spaces(root)
    data = {"data-series": _series(marks), "data-axes": scales_of(marks)}
    return _labelled(root, name, title, description, data)


def _series(marks: Marks) -> dict[str, str]:
    """Return the CSS variable of each label of the legend that alone has its colour, as a script shows and hides it.

    Empty for a single series.
    """
    handles, labels = marks.axes.get_legend_handles_labels()
    labels_of: dict[str, list[str]] = {}
    for handle, label in zip(handles, labels, strict=True):
        variable = CSS_COLORS.get(color_of(handle) or "", "")
        if variable.startswith(("--s", "--r")):
            labels_of.setdefault(variable, []).append(label)
    alone = {texts[0]: variable for variable, texts in labels_of.items() if len(texts) == 1}
    return alone if len(alone) > 1 else {}


def _place_areas(root: ElementTree.Element) -> None:
    """Replace each use of a path at x = 0 by the path itself: matplotlib writes a filled area that way, once."""
    for parent in [*root.iter()]:
        for use in parent.findall("use"):
            holder, path = next(
                ((defs, path) for defs in root.iter("defs") for path in defs.findall("path")
                 if use.get("href") == f"#{path.get('id')}" and float(use.get("x", 1)) == 0), (None, None),
            )  # fmt: skip
            if holder is None or path is None:
                continue
            moved = _moved_down(path.get("d", ""), float(use.get("y", 0)))
            use.tag, use.attrib = "path", {"d": moved, "style": use.get("style", "")}
            holder.remove(path)


def _moved_down(path: str, by: float) -> str:
    return PAIR.sub(lambda pair: f"{pair[1]} {float(pair[2]) + by}", path)


def _classify(root: ElementTree.Element) -> None:
    """Mark what a script redraws when an axis becomes linear or logarithmic (ticks, leaders of labels); the y name."""
    for group in root.iter("g"):
        tick, leader = TICK.fullmatch(group.get("id", "")), group.get("id", "").startswith(LEADER)
        for part in group.iter() if tick or leader else ():
            if part.tag in ("path", "use", "text"):
                part.set("class", f"t{tick.group(1)}" if tick else LEADER)
        for name in group.findall("g/text") if group.get("id", "").startswith("matplotlib.axis_") else ():
            if "rotate(-90" in name.get("transform", ""):
                name.set("class", "yname" if float(name.get("x", 0)) < FAR_LEFT else "yname right")


def _strip_namespaces(root: ElementTree.Element) -> None:
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}


def _drop_shared_style(root: ElementTree.Element) -> None:
    """Drop the one rule that matplotlib writes into each drawing: the page's style sheet has it for all of them."""
    for defs in root.findall("defs"):
        for style in defs.findall("style"):
            defs.remove(style)


def _add_titles(root: ElementTree.Element, titles: dict[str, list[str]]) -> None:
    """Give each mark its title; matplotlib writes one <use> per point of a line without a line, in order."""
    groups = {group.get("id"): group for group in root.iter("g")}
    for gid, texts in titles.items():
        for use, text in zip(groups[gid].iter("use"), texts, strict=True):
            ElementTree.SubElement(use, "title").text = text


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Make ids unique within the page, and short, as each mark refers to one; drop those that nothing refers to."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {match.group(1) for value in values if (match := REFERENCE.search(value))}
    prefix = f"f{zlib.crc32(name.encode()):08x}"
    short = {old: f"{prefix}-{i}" for i, old in enumerate(sorted(used))}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id" and value not in used:
                del element.attrib[key]
            elif key == "id":
                element.set(key, short[value])
            elif key != "style" and (match := REFERENCE.search(value)) and match.group(1) in short:
                element.set(key, value.replace(match.group(1), short[match.group(1)]))


def _restyle(root: ElementTree.Element) -> None:
    """Replace colours by CSS variables, leave the font to the page, drop digits finer than a hundredth of a point."""
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "style":
                colored = COLOR.sub(lambda match: f"var({CSS_COLORS.get(match.group(), match.group())})", value)
                element.set(key, FONT_FAMILY.sub("", colored))
            elif key in ("d", "x", "y", "transform", "points"):
                if key == "transform" and value.startswith("rotate(-0 "):  # of a text that is not turned
                    del element.attrib[key]
                    continue
                element.set(key, DECIMALS.sub(lambda match: f"{float(match.group()):.2f}", " ".join(value.split())))


def _flatten(parent: ElementTree.Element) -> None:
    """Replace groups that carry nothing by their content: they are half of the elements that matplotlib writes."""
    flat: list[ElementTree.Element] = []
    for child in parent:
        _flatten(child)
        empty = child.tag in ("g", "defs") and not len(child)
        flat += [] if empty else list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = flat


def _join_definitions(root: ElementTree.Element) -> None:
    """Move what marks refer to into one element at the head: matplotlib writes one beside each group of marks."""
    head = ElementTree.Element("defs")
    for parent in [*root.iter()]:
        for defs in parent.findall("defs"):
            head.extend(defs)
            parent.remove(defs)
    if len(head):
        root.insert(0, head)


def _share_styles(root: ElementTree.Element) -> None:
    """Give marks of one style that fill a group their style there, once."""
    for group in root.iter("g"):
        styles = {child.get("style", "") for child in group}
        if (
            len(group) > 1
            and len(styles) == 1
            and all(child.tag == "use" for child in group)
            and "style" not in group.attrib
        ):
            group.set("style", styles.pop())
            for child in group:
                child.attrib.pop("style", None)


def _strip_spaces(root: ElementTree.Element) -> None:
    """Drop the line breaks and spaces between elements."""
    for element in root.iter():
        if not (element.text or "").strip():
            element.text = None
        element.tail = None


def _labelled(root: ElementTree.Element, name: str, title: str, description: str, data: dict[str, Any]) -> str:
    """Name and describe the drawing, and give it ``data`` for scripts, what is not empty."""
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = text
        root.insert(position, element)
    box = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    root.attrib = box | {key: json.dumps(value, separators=(",", ":")) for key, value in data.items() if value}
    return printable(ElementTree.tostring(root, encoding="unicode"))
