"""Extract figures from PTX: matrix instructions, load widths, stores, and how wgmma products are pipelined."""

from __future__ import annotations

import re

_VECTOR_LOAD = re.compile(r"ld\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[busf](\d+)\b")
_ASYNC_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global\s*\[[^\]]*\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)")
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned[^;]*;")
_EVENTS = re.compile(
    r"^(?P<label>\$L\w+):|\bbra(?:\.uni)?\s+(?P<target>\$L\w+);|(?P<mma>wgmma\.mma_async)"
    r"|(?P<commit>wgmma\.commit_group)|wgmma\.wait_group\.sync\.aligned\s+(?P<wait>\d+)",
    re.MULTILINE,
)
_STORE = re.compile(r"\b(?:st\.global|atom\.|red\.|cp\.async\.bulk\.tensor\S*\.global\.shared|st\.async)")


def stores(ptx: str) -> int:
    """Count instructions that write to global memory."""
    return len(_STORE.findall(ptx))


def matrix_instructions(ptx: str) -> dict[str, int]:
    """Count matrix instructions by kind; a wgmma with two register lists has its first operand in registers (RS)."""
    wgmma = [statement.count("{") for statement in _WGMMA.findall(ptx)]
    counts = {
        "wgmma SS": sum(lists == 1 for lists in wgmma),
        "wgmma RS": sum(lists > 1 for lists in wgmma),
        "mma.sync": ptx.count("mma.sync.aligned"),
        "tcgen05": len(re.findall(r"tcgen05\.mma\b", ptx)),
    }
    return {name: count for name, count in counts.items() if count}


def plain_products(ttgir: str) -> int:
    """Count products that run as scalar multiply-adds: their result has no matrix layout."""
    layouts = re.findall(r"= tt\.dot .*->\s*tensor<[^>#]*#(\w+)", ttgir)
    return sum(not layout.startswith("mma") for layout in layouts)


def widest_load(ptx: str) -> int:
    """Return the bytes of the widest load from global memory per instruction and thread; TMA counts as 16."""
    loads = [int(count or 1) * int(bits) // 8 for count, bits in _VECTOR_LOAD.findall(ptx)]
    copies = [int(size, 0) for size in _ASYNC_COPY.findall(ptx)]
    bulk = [16] if "cp.async.bulk.tensor" in ptx else []
    return max([*loads, *copies, *bulk], default=0)


def pipelining(ptx: str) -> tuple[int, int]:
    """Return the groups of wgmma in innermost loops, and how many of them are awaited before the next is issued."""
    events = list(_EVENTS.finditer(ptx))
    labels = {event["label"]: index for index, event in enumerate(events) if event["label"]}
    jumps = [(labels.get(event["target"], index), index) for index, event in enumerate(events) if event["target"]]
    loops = [(start, stop) for start, stop in jumps if start < stop and any(e["commit"] for e in events[start:stop])]
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    products = drained = 0
    for start, stop in innermost:
        body = [event for event in events[start:stop] if event["mma"] or event["commit"] or event["wait"]]
        for index, event in enumerate(body):
            if event["commit"]:
                products += 1
                after = next((e for e in body[index + 1 :] + body if e["mma"] or e["wait"]), None)
                drained += after is not None and after["wait"] == "0"
    return products, drained
