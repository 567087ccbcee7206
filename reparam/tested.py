"""Which constants a user's code compares a value with by identity, as its bytecode says.

`x is None` calls nothing that a stand-in could answer.
"""

import dis
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from types import CodeType, FrameType
from typing import Any

Constants = frozenset[Any]

NOTHING: Constants = frozenset()

PASSED_OVER = ("CACHE", "COPY", "EXTENDED_ARG", "FOR_ITER", "NOP", "NOT_TAKEN")
"""Instructions that may stand between a value and the test or the variable that it goes to."""

WITHIN = ("torch.fx.", "reparam.tracer.", "jaxtyping.", "beartype.")
"""What calls a module in between, while a forward is traced."""


def tested(frame: FrameType) -> Constants:
    """What a frame compares the result of its current instruction with, at once or by a variable.

    Tensors, lists and the like are left out: nothing but a constant of Python's is one by identity.
    """
    first = next(_following(frame), None)
    if first is not None and first.opname == "RETURN_VALUE":
        return tested_result(frame.f_back, None)
    return _tested(frame.f_code, _following(frame))


def caller_tests(method: Any) -> Callable[[], Constants]:
    """The same of the code that calls a method, by the frame of the method; read when asked for."""
    return partial(tested, method.f_back)


def tested_part(frame: FrameType, number: int) -> Constants:
    """The same of one of the parts into which a frame is unpacking a value."""
    return _tested_part(frame, _following(frame), number)


def tested_arguments(forward: Any) -> dict[int | str, Constants]:
    """What a forward compares its arguments with, by position behind `self` and by name."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    if code is None:
        return {}
    variables = _variables(code)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    found: dict[int | str, Constants] = {n: variables[n] for n in names if n in variables}
    return found | {p - 1: found[n] for p, n in enumerate(names[: code.co_argcount]) if n in found}


def tested_result(frame: FrameType | None, number: int | None) -> Constants:
    """What the code that calls a module, or a function in a frame, compares its result with.

    Args:
        frame: what runs within the call.
        number: of the part of a tuple that is asked about; the whole result, if there is none.
    """
    while frame is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(WITHIN):
        frame = frame.f_back
    if frame is None or number is None:
        return NOTHING if frame is None else tested(frame)
    following = _following(frame)
    first = next(following, None)
    unpacked = first is not None and first.opname == "UNPACK_SEQUENCE"
    return _tested_part(frame, following, number) if unpacked else NOTHING


def _tested_part(frame: FrameType, following: Iterator[dis.Instruction], number: int) -> Constants:
    for _ in range(number):
        list(_next_target(following))
    return _tested(frame.f_code, following)


def _tested(code: CodeType, following: Iterator[dis.Instruction]) -> Constants:
    """What is asked of a value on the stack, or of the variables that it is stored to."""
    found, kept = NOTHING, False
    for instruction, after in itertools.pairwise(following):
        constants = _test(instruction, after)
        if constants:
            return found | constants
        if instruction.opname.startswith(("STORE_FAST", "STORE_DEREF")):
            found |= _variables(code).get(instruction.argval, NOTHING)
            if not kept:
                return found
        elif instruction.opname not in PASSED_OVER:
            return found
        kept = instruction.opname == "COPY"
    return found


def _test(instruction: dis.Instruction, after: dis.Instruction) -> Constants:
    """What an instruction, with the one behind it, compares the value before it with."""
    if instruction.opname.endswith(("IF_NONE", "IF_NOT_NONE")):
        return frozenset((None,))
    if after.opname == "IS_OP" and instruction.opname == "LOAD_CONST":
        return frozenset((instruction.argval,))
    return NOTHING


def _following(frame: FrameType) -> Iterator[dis.Instruction]:
    """The instructions behind the current one, in the order that they run if none branches."""
    instructions, places = _instructions(frame.f_code)
    here = frame.f_lasti
    while here not in places:  # in the cache of an instruction, which calls Python's own code
        here -= 2
    place = places[here]
    # Python 3.11 calls what is not Python's by the first of two instructions.
    place += 2 if instructions[place].opname == "PRECALL" else 1
    while place < len(instructions):
        instruction = instructions[place]
        if instruction.opname == "JUMP_FORWARD":
            place = places[instruction.argval]
        else:
            yield instruction
            place += 1


def _next_target(following: Iterator[dis.Instruction]) -> Iterator[dis.Instruction]:
    """The instructions by which the next part of what is unpacked is stored."""
    for instruction in following:
        if instruction.opname == "UNPACK_SEQUENCE":  # of which the parts are asked later
            for _ in range(instruction.arg or 0):
                list(_next_target(following))
            return
        yield instruction
        if instruction.opname.startswith("STORE"):
            return


@lru_cache(maxsize=1024)
def _instructions(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    """The instructions of a code, and where each offset stands among them."""
    found = [part for one in dis.get_instructions(code) for part in _single(one)]
    places: dict[int, int] = {}
    for place, instruction in enumerate(found):
        places.setdefault(instruction.offset, place)
    return found, places


def _single(instruction: dis.Instruction) -> Iterable[dis.Instruction]:
    """One instruction for each variable: Python 3.13 loads and stores two at a time."""
    names = _names(instruction)
    if len(names) < 2:
        return (instruction,)
    kinds = [f"{kind}_FAST" for kind in instruction.opname.split("_") if kind in ("LOAD", "STORE")]
    return [
        instruction._replace(opname=kind, argval=name)
        for kind, name in zip(kinds, names, strict=True)
    ]


def _names(instruction: dis.Instruction) -> tuple[Any, ...]:
    several = "_FAST" in instruction.opname and not isinstance(instruction.argval, str)
    return tuple(instruction.argval) if several else (instruction.argval,)


@lru_cache(maxsize=1024)
def _variables(code: CodeType) -> dict[str, Constants]:
    """What a code compares its variables with, by their names."""
    found: dict[str, Constants] = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            asked = _variables(inner)
            found |= {name: asked[name] for name in inner.co_freevars if name in asked}
    instructions = [i for i in _instructions(code)[0] if i.opname not in ("CACHE", "EXTENDED_ARG")]
    for at in reversed(range(len(instructions) - 2)):  # a variable is copied before it is asked
        instruction, after = instructions[at], instructions[at + 1]
        if instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            constants = _test(after, instructions[at + 2])
            if after.opname == "IS_OP" and instructions[at - 1].opname == "LOAD_CONST":
                constants = frozenset((instructions[at - 1].argval,))
            if after.opname.startswith(("STORE_FAST", "STORE_DEREF")):
                constants = found.get(after.argval, NOTHING)
            name = instruction.argval
            found[name] = found.get(name, NOTHING) | constants
    return {name: constants for name, constants in found.items() if constants}
