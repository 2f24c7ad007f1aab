"""Keep ptxas from moving a wait for a product above the exponentials that are to run beside it."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def hold_weights(p):
    """Return p, which later operations cannot overtake: a volatile store that never happens, as no weight is negative.

    Eight weights share one store.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .pred q; .reg .b32 a, b; or.b32 a, $8, $9; or.b32 b, $10, $11; or.b32 a, a, b; or.b32 b, $12, $13; "
        "or.b32 a, a, b; or.b32 b, $14, $15; or.b32 a, a, b; mov.b32 b, 0; "
        "setp.lt.s32 q, a, 0; @q st.volatile.shared.b32 [b], a; mov.b32 $0, $8; mov.b32 $1, $9; mov.b32 $2, $10; "
        "mov.b32 $3, $11; mov.b32 $4, $12; mov.b32 $5, $13; mov.b32 $6, $14; mov.b32 $7, $15; }",
        "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r,r,r,r", [p], dtype=gl.float32, is_pure=False, pack=8,
    )  # fmt: skip
