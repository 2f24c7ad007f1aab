"""Instructions per element, read off machine code, and that too many of them fail."""

from __future__ import annotations

import dataclasses
import os

import instruction_count
import pytest

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
    assert instruction_count.wide_loop_instructions(SASS) == 3
    assert instruction_count.wide_loop_instructions(SASS.replace(".128", "")) == 0


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
def test_adam_with_eight_bit_state_keeps_its_limit_and_a_lower_one_is_missed() -> None:
    import machine_code
    from scalekernels.optimizer import compilations

    (adam,) = [one for one in compilations(90) if one.label == "adam bfloat16 state int8"]
    assert adam.most_instructions == 70
    code = machine_code.inspect_code(adam, 90)
    assert machine_code.failures(adam, 90, code) == []
    strict = dataclasses.replace(adam, most_instructions=50)
    (failure,) = machine_code.failures(strict, 90, code)
    assert "instructions per element in the main loop; 50 allowed" in failure
    lost = dataclasses.replace(code, loop_instructions=0)  # a loop that is not found is not a loop of no instructions
    assert machine_code.failures(adam, 90, lost)
