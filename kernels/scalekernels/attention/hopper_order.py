"""Keep ptxas from moving a wait for a product above the exponentials that are to run beside it."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


def _held(registers: int) -> str:
    """Return PTX that copies registers, and has a volatile load of shared memory depend on all of them.

    The load is skipped but where two halves' exclusive ors are complements, which they are not if all are 0; it is
    harmless, and its result is not used. 0x96 is the exclusive or of three, 0x69 its complement.
    """
    given = [f"${registers + at}" for at in range(registers)]
    text = "{ .reg .pred q; .reg .b32 a, b; "
    for name, of_half in (("a", given[: registers // 2 + 1]), ("b", given[registers // 2 + 1 :])):
        for at in range(1, len(of_half), 2):
            first = of_half[0] if at == 1 else name
            table = "0x69" if name == "b" and at == len(of_half) - 2 else "0x96"
            text += f"lop3.b32 {name}, {first}, {of_half[at]}, {of_half[at + 1]}, {table}; "
    text += "setp.eq.b32 q, a, b; mov.b32 b, 0; @q ld.volatile.shared.b32 a, [b]; "
    return text + "".join(f"mov.b32 ${at}, {source}; " for at, source in enumerate(given)) + "}"


# A thread's registers of (64 queries, 32 keys) and (64, 64) in 16 bits.
_HELD_32 = gl.constexpr(_held(8))
_HELD_64 = gl.constexpr(_held(16))
_PLACES_32 = gl.constexpr(",".join(["=&r"] * 8 + ["r"] * 8))
_PLACES_64 = gl.constexpr(",".join(["=&r"] * 16 + ["r"] * 16))


@gluon.jit
def hold_differences(ds):
    """Return 16-bit ds (64 queries, 32 or 64 keys), which the next operations on memory and waits cannot overtake."""
    gl.static_assert(ds.shape[1] == 32 or ds.shape[1] == 64)
    if ds.shape[1] == 64:
        ds = gl.inline_asm_elementwise(_HELD_64, _PLACES_64, [ds], dtype=ds.dtype, is_pure=False, pack=32)
    else:
        ds = gl.inline_asm_elementwise(_HELD_32, _PLACES_32, [ds], dtype=ds.dtype, is_pure=False, pack=16)
    return ds
