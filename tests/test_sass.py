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


# --- integer divisions and 64-bit addresses ---------------------------------------------------------------------------

SPIN = "        /*00b0*/                   BRA `(.L_x_1) ;\n"


def count(text: str) -> tuple[int, int]:
    """Return the numbers of instructions of divisions and of 64-bit addresses."""
    listing = sass.parsed(text)
    return len(sass.divisions(*listing)), len(sass.addresses(*listing))


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        ("I2F.RP R15, R18", (1, 0)),
        ("I2F.U32.RP R10, UR24", (1, 0)),
        ("F2I.FTZ.U32.TRUNC.NTZ R13, R12", (1, 0)),
        ("IMAD.HI.U32 R13, R13, R5, RZ", (1, 0)),
        ("CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)", (1, 0)),
        ("IMAD.WIDE.U32 R4, R5, 0x2, R6", (0, 1)),
        ("UIMAD.WIDE.U32 UR6, UR7, UR14, URZ", (0, 1)),
        ("IMAD.X R17, RZ, RZ, R13, P1", (0, 1)),
        ("IADD3.X R5, R5, R7, RZ, P0, !PT", (0, 1)),
        ("LEA.HI.X.SX32 R13, R13, R5, 0x1, P1", (0, 1)),
        ("SHF.L.U64.HI R5, R4, 0x1, R5", (0, 1)),
        ("@!P1 LDG.E.64 R4, desc[UR16][R12.64+0x80]", (0, 1)),
        ("LDGSTS.E.BYPASS.128 [R23+0x800], desc[UR16][R12.64], !P0", (0, 1)),
        ("ST.E.128 [R12.64], R4", (0, 1)),
        ("LDG.E R4, desc[UR4][R2.U32+UR8]", (0, 1)),
        ("@P0 RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4", (0, 1)),
        ("UBLKRED.G.S.ADD.F32.RN [UR8], [UR6], UR4", (0, 1)),
        # What the loops of shipped kernels have: descriptors, 32-bit indices, shared memory, conversions for masks.
        ("UIADD3.X UR19, UR11, 0x40000040, URZ, UP0, !UPT", (0, 0)),
        ("UIADD3.64 UR26, UR18, 0x2, URZ", (0, 0)),
        ("IMAD R4, R4, 0x2000, R5", (0, 0)),
        ("ULEA UR11, UR9, UR14, 0x3", (0, 0)),
        ("LEA R4, R5, UR6, 0x1", (0, 0)),
        ("LDS.64 R4, [R2+UR11+0x14000]", (0, 0)),
        ("STSM.16.M88.4 [R4+UR8], R8", (0, 0)),
        ("STS.64 [R2+UR4+0x1c000], R4", (0, 0)),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR11+0x14730], R11", (0, 0)),
        ("I2FP.F32.S32 R4, R5", (0, 0)),
        ("MUFU.RCP R4, R5", (0, 0)),
    ],
)
def test_divisions_and_64_bit_addresses_count_in_loops_with_products_only(line, counted):
    added = f"        /*0084*/                   {line} ;\n"
    assert count(LOOP) == (0, 0)
    assert count(LOOP.replace(EXPONENTIAL, EXPONENTIAL + added)) == counted
    assert count(added + LOOP) == (0, 0)  # before the loop
    assert count(LOOP.replace(SPIN, added + SPIN)) == (0, 0)  # apart, where the loop does not jump to
    jump = "        /*0086*/              @!P0 BRA `(.L_x_2) ;\n"
    assert count(LOOP.replace(EXPONENTIAL, EXPONENTIAL + jump).replace(SPIN, added + SPIN)) == counted
    assert count(LOOP.replace("HGMMA", "HMMA").replace(EXPONENTIAL, EXPONENTIAL + added)) == (0, 0)


def test_code_after_a_loop_is_no_part_of_it():
    leaving = LOOP.replace(EXPONENTIAL, "        /*0030*/              @P2 BRA `(.L_x_2) ;\n")
    back_to_an_outer_loop = leaving.replace(
        SPIN, "        /*00b0*/  CALL.REL `(division) ;\n        /*00c0*/  EXIT ;\n"
    )
    assert count(back_to_an_outer_loop) == (0, 0)
