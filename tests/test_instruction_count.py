"""Instructions per element, read off machine code, and that too many of them fail."""

from __future__ import annotations

import dataclasses
import os

import compile_ahead
import machine_code
import ptx_code
import pytest
import sass
import tuning_optimizer

SASS = """
.L_x_1:
        /*0010*/                   LDG.E.128 R8, desc[UR8][R16.64] ;
        /*0020*/              @!P1 FADD R8, R8, R8 ;
.L_x_2:
        /*0030*/                   LDG.E.EF.128 R8, desc[UR8][R16.64] ;
        /*0040*/                   FADD R8, R8, R8 ;
        /*0050*/              @P1 BRA `(.L_x_2) ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   LDG.E R8, desc[UR8][R16.64] ;
        /*0080*/                   FADD R8, R8, R8 ;
        /*0090*/                   FADD R8, R8, R8 ;
        /*00a0*/                   STG.E.128 desc[UR8][R16.64], R8 ;
        /*00b0*/              @!P0 BRA `(.L_x_3) ;
        /*00c0*/                   EXIT ;
.L_x_4:
        /*00d0*/                   BRA `(.L_x_4);
"""


def test_the_innermost_loop_with_wide_loads_is_counted() -> None:
    assert sass.wide_loop_instructions(*sass.parsed(SASS)) == 3
    assert sass.wide_loop_instructions(*sass.parsed(SASS.replace(".128", ""))) == 0


def test_loads_with_hints_for_the_caches_are_seen() -> None:
    for hints in ("", ".L1::evict_last.L2::cache_hint", ".nc.L1::no_allocate"):
        assert ptx_code.widest_load(f"ld.global{hints}.v4.b32 {{ %r1, %r2, %r3, %r4 }}, [ %rd1 + 0 ];") == 16
        assert ptx_code.widest_load(f"ld.global{hints}.b16 {{ %rs1 }}, [ %rd1 + 0 ];") == 2


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
def test_adam_with_eight_bit_state_keeps_its_limit_and_a_lower_one_is_missed() -> None:
    from scalekernels.optimizer import compilations

    (adam,) = [configuration for configuration in compilations(90) if configuration.label == "adam bfloat16 state int8"]
    assert adam.most_instructions == 70
    code = compile_ahead.figures(adam, 90, compile_ahead.CACHE)
    assert machine_code.failures(adam, 90, code) == []
    strict = dataclasses.replace(adam, most_instructions=50)
    (failure,) = machine_code.failures(strict, 90, code)
    assert "instructions per element in the main loop; 50 allowed" in failure
    lost = dataclasses.replace(code, loop_instructions=0)  # a loop that is not found is not a loop of no instructions
    assert machine_code.failures(adam, 90, lost)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(("name", "blocks_ahead"), [("2 stages", 1), ("3 stages", 2)])
def test_adam_with_copies_ahead_has_room_for_them_and_does_not_spill(name: str, blocks_ahead: int) -> None:
    from scalekernels.optimizer import compilations

    (adam,) = [configuration for configuration in compilations(90) if configuration.label == "adam bfloat16 state int8"]
    constants = {key: value for key, value in tuning_optimizer.SHAPES[name].items() if key.isupper()}
    options = {key: value for key, value in tuning_optimizer.SHAPES[name].items() if key not in constants}
    changed = dataclasses.replace(adam, constants=adam.constants | constants, options={**adam.options, **options})
    code = compile_ahead.figures(changed, 90, compile_ahead.CACHE)
    assert (code.spill_store_bytes, code.spill_load_bytes, code.stack_bytes) == (0, 0, 0)
    block_bytes = 1024 * (2 + 2 + 1 + 1) + 1024 // 256 * (4 + 4)  # parameters, gradients, both states, their scales
    assert code.shared_bytes == 2 * blocks_ahead * block_bytes  # of each of the two roundings, one of which runs
    assert code.registers * 128 * 6 <= 65536  # six programs on a multiprocessor


def wide_loops(cubin: bytes) -> list[list[str]]:
    """The instructions of each loop with 16-byte loads, in order."""
    instructions, labels = sass.disassembled(cubin)
    jumps = ((at, sass._JUMP.search(text)) for at, text in enumerate(instructions))
    loops = sorted((labels[jump[1]], at + 1) for at, jump in jumps if jump and labels[jump[1]] < at)
    bodies = [instructions[first:last] for first, last in loops]
    return [body for body in bodies if any(sass._WIDE_LOAD.search(text) for text in body)]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("label", ["both bf16", "gradient bf16", "both fp32", "both bf16 classes weighed"])
def test_the_loss_reduces_once_a_row_and_keeps_the_row_for_the_second_pass(label: str) -> None:
    """Threads exchange nothing in the loops over a row; its first pass asks the caches to keep it, its second does not.

    Each pass has a loop over whole tiles and one over the rest.
    """
    from scalekernels.cross_entropy import compilations

    (loss,) = [configuration for configuration in compilations(90) if configuration.label == label]
    compiled, _ = machine_code.compile_for(loss, 90)
    loops = wide_loops(compiled.asm["cubin"])
    assert len(loops) == 4
    for body in loops:
        assert any("MUFU.EX2" in text for text in body)
        assert not any(text.startswith(("BAR", "SHFL", "REDUX", "STS", "LDS")) for text in body)
    for kept, bodies in ((".EL.", loops[:2]), (".EF.", loops[2:])):
        for body in bodies:
            loads = [text for text in body if sass._WIDE_LOAD.search(text)]
            assert any(kept in text for text in loads)
            assert not any({".EL.": ".EF.", ".EF.": ".EL."}[kept] in text for text in loads)
            assert any(text.startswith("STG") or " STG" in text for text in body) == (kept == ".EF.")
