"""Reading disassembled loops: exponentials beside products in flight, and registers that products still read."""

from __future__ import annotations

import pytest
import sass

LOOP = """
.L_x_1:
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0 ;
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R88, R152, gdesc[UR16].tnspB, R88, gsb0 ;
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0030*/                   MUFU.EX2 R8, R24 ;
        /*0040*/                   MUFU.EX2 R9, R25 ;
        /*0050*/                   MUFU.EX2 R10, R26 ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0070*/                   F2FP.BF16.F32.PACK_AB R152, R8, R9 ;
        /*0080*/              @P1 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R4], R5 ;
        /*00b0*/                   BRA `(.L_x_1) ;
"""
EARLY_WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x1", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
EXPONENTIAL = "        /*0030*/                   MUFU.EX2 R8, R24 ;\n"


def moved(text: str, line: str, before: str) -> str:
    return text.replace(line, "").replace(before, line + before)


def test_overlap_counts_exponentials_while_a_product_is_in_flight():
    assert sass.overlap(*sass.parsed(LOOP)) == 1.0
    assert sass.overlap(*sass.parsed(LOOP.replace(*EARLY_WAIT))) == 0.0
    late = moved(LOOP, EXPONENTIAL, "        /*0070*/")
    assert sass.overlap(*sass.parsed(late)) == pytest.approx(2 / 3)
    assert sass.overlap(*sass.parsed(LOOP.replace("MUFU.EX2", "MUFU.RCP"))) == 0.0


def test_the_way_back_from_a_spinning_wait_is_no_loop():
    (body,) = sass.main_loops(*sass.parsed(LOOP))
    assert len(body) == 9


@pytest.mark.parametrize(
    ("old", "new", "register"),
    [
        ("MUFU.EX2 R8, R24", "MUFU.EX2 R153, R24", "R153"),
        ("MUFU.EX2 R8, R24", "@!P0 LDS.128 R152, [R4]", "R152"),
        ("MUFU.EX2 R8, R24", "IMAD.WIDE R151, R4, R5, R6", "R151"),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1", "R152"),
    ],
)
def test_a_register_written_while_a_product_reads_it_is_found(old, new, register):
    assert sass.overwritten(*sass.parsed(LOOP)) == []
    problems = sass.overwritten(*sass.parsed(LOOP.replace(old, new)))
    assert problems
    assert all(register in line for line in problems)


def test_a_write_after_the_jump_back_is_found():
    text = LOOP.replace(
        "R152, R8, R9 ;", "R152, R8, R9 ;\n        /*0078*/  HGMMA.64x128x16 R88, R160, gdesc[UR16], R88, gsb0 ;"
    )
    text = text.replace(EXPONENTIAL, "").replace(".L_x_1:\n", ".L_x_1:\n        /*0002*/  MUFU.EX2 R161, R24 ;\n")
    assert any("R161" in line for line in sass.overwritten(*sass.parsed(text)))


def test_stores_and_comparisons_write_no_register():
    for line in (
        "STS [R4], R152",
        "ISETP.GE.AND P0, PT, R152, R3, PT",
        "BAR.SYNC.DEFER_BLOCKING 0x1",
        "@P0 BRA `(.L_x_1)",
    ):
        assert not list(sass.written(line))
    assert list(sass.written("SHFL.BFLY PT, R8, R7, 0x1, 0x1f")) == [8]
