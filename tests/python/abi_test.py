# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""The package is what kvtrie.h and kvtrie_device.h are: each constant, struct and call, as the C compiler sees them.

A call or field that comes new into a header makes this fail until it has its Python face and its row in docs/python.md;
the last tests show that.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import re
import shutil
import subprocess
from typing import Dict, List, Tuple

import pytest
import support

import kvtrie
from kvtrie import _abi, _errors

HEADERS = ("kvtrie.h", "kvtrie_device.h")
# The table for dlopen repeats the calls; ctypes finds them by name.
NOT_WRAPPED = {"kvtrie_api"}


def code_of(*names: str) -> str:
    """The headers without comments."""
    text = ""
    for name in names or HEADERS:
        with open(os.path.join(support.SOURCE_DIR, "worker_plugin", name)) as header:
            text += header.read()
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.S)


def enumerators_of(code: str) -> List[str]:
    bodies = re.findall(r"enum\s*\w*\s*\{(.*?)\}", code, flags=re.S)
    return [name for body in bodies for name in re.findall(r"\b(KVTRIE_\w+)\s*=", body)]


def fields_of(code: str) -> Dict[str, List[str]]:
    """The structs and their fields in order."""
    found = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", code, flags=re.S):
        names = []
        for member in body.split(";"):
            for declarator in member.split(","):
                words = re.sub(r"\[\d+\]", "", declarator).replace("*", " ").split()
                if words and "(" not in member:
                    names.append(words[-1])
        found[name] = names
    return found


def functions_of(code: str) -> Dict[str, Tuple[str, List[str]]]:
    """name: (result, argument types), as C spells them."""
    found = {}
    for result, name, arguments in re.findall(r"KVTRIE_API ([\w\s*]+?)(kvtrie_\w+)\(([^)]*)\)", code):
        types = []
        for argument in arguments.split(","):
            spelled = " ".join(argument.replace("*", " * ").split())
            if spelled != "void":
                types.append(re.sub(r" \w+$", "", spelled))
        found[name] = (" ".join(result.replace("*", " * ").split()), types)
    return found


def kind(c_type: str) -> object:
    """What ctypes has for a C type; address: some pointer."""
    plain = c_type.replace("const ", "")
    if plain == "char *":
        return ctypes.c_char_p
    if plain.endswith("*"):
        pointed = plain[:-1].strip()
        struct = _abi.STRUCTS.get(pointed)
        scalar = {"uint32_t": ctypes.c_uint32, "uint64_t": ctypes.c_uint64, "int": ctypes.c_int}.get(pointed)
        scalar = scalar or {"size_t": ctypes.c_size_t, "void *": ctypes.c_void_p}.get(pointed)
        of = struct or scalar
        return {ctypes.c_void_p} | ({ctypes.POINTER(of)} if of else set())
    if plain in _abi.STRUCTS:
        return _abi.STRUCTS[plain]
    return {
        "kvtrie_code": ctypes.c_int,
        "uint32_t": ctypes.c_uint32,
        "uint64_t": ctypes.c_uint64,
        "size_t": ctypes.c_size_t,
    }[plain]


def wrong_functions(code: str) -> List[str]:
    wrong = []
    headers = functions_of(code)
    wrong += [f"{name} is not wrapped" for name in headers if name not in _abi.FUNCTIONS]
    wrong += [f"{name} is in no header" for name in _abi.FUNCTIONS if name not in headers]
    for name, (result, arguments) in headers.items():
        if name not in _abi.FUNCTIONS:
            continue
        has_result, has = _abi.FUNCTIONS[name]
        if len(has) != len(arguments):
            wrong.append(f"{name} has {len(arguments)} arguments")
            continue
        for c_type, mine in zip([result] + arguments, [has_result] + has):
            expected = kind(c_type)
            if mine not in expected if isinstance(expected, set) else mine is not expected:
                wrong.append(f"{name}: {c_type} is {mine}")
    return wrong


def compiled(code: str, tmp_path: object) -> Dict[str, int]:
    """Sizes, offsets and constants of the headers' code as the C compiler has them, by name."""
    lines = []
    for struct, names in fields_of(code).items():
        if struct in NOT_WRAPPED:
            continue
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        for name in names:
            lines.append(f'printf("{struct}.{name} %zu\\n", offsetof({struct}, {name}));')
            lines.append(f'printf("{struct}.{name}.size %zu\\n", sizeof((({struct}*)0)->{name}));')
    for name in enumerators_of(code) + ["KVTRIE_API_VERSION", "KVTRIE_NO_PAGE", "KVTRIE_CACHED"]:
        lines.append(f'printf("{name} %lld\\n", (long long){name});')
    source, program = os.path.join(tmp_path, "abi.c"), os.path.join(tmp_path, "abi")
    with open(source, "w") as file:
        file.write(code + "\n#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    subprocess.run([os.environ.get("KVTRIE_CC", "cc"), "-o", program, source], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: int(line.split()[1]) for line in said.splitlines()}


def declared() -> Dict[str, int]:
    """The same of the package."""
    numbers = {**_abi.CODES, **_abi.ENUMERATORS}
    numbers["KVTRIE_API_VERSION"] = _abi.API_VERSION
    numbers["KVTRIE_NO_PAGE"] = _abi.NO_PAGE
    numbers["KVTRIE_CACHED"] = _abi.CACHED
    for name, struct in _abi.STRUCTS.items():
        numbers[name] = ctypes.sizeof(struct)
        for field, *_ in struct._fields_:
            numbers[f"{name}.{field}"] = getattr(struct, field).offset
            numbers[f"{name}.{field}.size"] = getattr(struct, field).size
    return numbers


@pytest.fixture(scope="module")
def code() -> str:
    one = code_of("kvtrie.h")
    two = re.sub(r'#include "kvtrie.h"', "", code_of("kvtrie_device.h"))
    return one + two


def test_constants_and_structs_are_those_of_the_compiler(code, tmp_path):
    numbers = compiled(code, tmp_path)
    assert len(numbers) > 200  # the headers were read
    assert declared() == numbers


def test_functions_have_the_types_of_the_headers(code):
    assert len(functions_of(code)) >= 36
    assert wrong_functions(code) == []


def test_library_exports_nothing_else():
    listed = subprocess.run(["nm", "-D", "--defined-only", support.LIBRARY], check=True, capture_output=True, text=True)
    exported = set(re.findall(r" T (kvtrie_\w+)", listed.stdout))
    assert exported == set(_abi.FUNCTIONS)


def test_version_is_that_of_the_header(code):
    version = re.search(r'KVTRIE_VERSION "([^"]+)"', code).group(1)
    assert kvtrie.__version__ == version
    assert support.library.version() == f"kvtrie {version}"
    with open(os.path.join(support.PACKAGE_DIR, "pyproject.toml")) as file:
        assert f'version = "{version}"' in file.read()


def test_every_code_has_its_exception(code):
    names = [name for name in enumerators_of(code) if name.startswith("KVTRIE_E_")]
    assert {_abi.CODES[name] for name in names} == set(_errors.BY_CODE)
    assert len(set(_errors.BY_CODE.values())) == len(names)
    for number, error in _errors.BY_CODE.items():
        assert error.code == number and issubclass(error, kvtrie.Error) and getattr(kvtrie, error.__name__) is error
    assert type(_errors.make(99, "new")) is kvtrie.Error and _errors.make(99, "new").code == 99


def documented() -> Dict[str, str]:
    """C call: Python face, of the table in docs/python.md."""
    with open(os.path.join(support.SOURCE_DIR, "docs", "python.md")) as file:
        return dict(re.findall(r"^\| `(kvtrie_\w+)` \| `([\w.]+)", file.read(), flags=re.M))


def called() -> str:
    """The package's code that calls."""
    text = ""
    for name in os.listdir(os.path.join(support.PACKAGE_DIR, "kvtrie")):
        if name.endswith(".py") and name != "_abi.py":
            with open(os.path.join(support.PACKAGE_DIR, "kvtrie", name)) as file:
                text += file.read()
    return text


def faceless(code: str) -> List[str]:
    wrong = []
    table, text = documented(), called()
    for name in functions_of(code):
        if not re.search(rf"\.{name}\b", text):
            wrong.append(f"{name} is never called")
        thing: object = kvtrie
        for part in table.get(name, "-").split("."):
            thing = getattr(thing, part, None)
        if thing is None or not inspect.getdoc(thing):
            wrong.append(f"{name} has no row in docs/python.md with a documented Python face")
    return wrong


def test_every_call_has_a_documented_face(code):
    assert faceless(code) == []
    assert set(documented()) == set(functions_of(code))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_these_tests_can_fail(code, tmp_path):
    more = code + "\nKVTRIE_API kvtrie_code kvtrie_new_call(kvtrie_worker worker);\n"
    assert wrong_functions(more) == ["kvtrie_new_call is not wrapped"]
    assert len(faceless(more)) == 2
    assert wrong_functions(code.replace("kvtrie_evict(kvtrie_worker worker,", "kvtrie_evict(uint32_t worker,"))
    assert wrong_functions(code.replace("uint32_t time_ms,", "uint64_t time_ms,"))
    assert wrong_functions(code.replace("uint32_t* pages)", "uint64_t* pages)"))
    for change in (
        ("uint32_t role;", "uint32_t role; uint32_t more;"),
        ("uint64_t pages;", "uint32_t pages;"),
        ("KVTRIE_E_FLUSHED = 15", "KVTRIE_E_FLUSHED = 16"),
        ("KVTRIE_PARTIAL = 1u << 3", "KVTRIE_PARTIAL = 1u << 8"),
        ("lookups, tokens_asked", "tokens_asked, lookups"),
    ):
        assert change[0] in code
        assert compiled(code.replace(*change), tmp_path) != declared(), change
