"""The layers of csrc: every #include points to a lower layer, or stays in its own (csrc/README.md shows the map).

Kernels know nothing of torch or of the operators, so they build and pass their tests without either.
"""

import re

import pytest

from support.paths import ROOT

# A folder -> the folders that it may include, itself not named. The longest matching folder counts.
MAY_INCLUDE = {
    "core": [],
    "cpu/simd": ["core"],
    "cpu/sampler": ["core", "cpu/simd"],
    "cpu/product": ["core", "cpu/simd", "cpu/sampler"],
    "cpu": ["cpu/sampler", "cpu/product"],  # dispatch.cpp
    "cuda/sampler": ["core"],
    "cuda/one_pass": ["core", "cuda/sampler"],
    "operators": ["core"],
    "cpu/torch": ["core", "cpu/sampler", "cpu/product", "operators"],
    "cuda/torch": ["core", "cuda/sampler", "cuda/one_pass", "operators"],
    "python": ["core", "cpu/sampler"],
}
WITHOUT_TORCH = [folder for folder in MAY_INCLUDE if folder != "operators" and not folder.endswith("/torch")]
SOURCES = (".h", ".inl", ".cpp", ".cu")


def layer(path: str) -> str:
    """The folder of MAY_INCLUDE that holds a file; an error for a folder that the map does not know."""
    return max((folder for folder in MAY_INCLUDE if path.startswith(folder + "/")), key=len)


def wrong_includes(path: str, text: str) -> list[str]:
    """The #include lines of a file that break the rule. path: relative to csrc."""
    own, wrong = layer(path), []
    for bracket, name in re.findall(r'^\s*#\s*include\s+(["<])([^">]+)[">]', text, re.MULTILINE):
        if bracket == "<":
            if own in WITHOUT_TORCH and re.match(r"(torch|c10|ATen)/", name):
                wrong.append(f"{path} includes <{name}>, and {own} is below torch")
        elif name.startswith(".") or "/" not in name:
            wrong.append(f'{path} includes "{name}": write the path from csrc')
        elif layer(name) not in [own, *MAY_INCLUDE[own]]:
            wrong.append(f'{path} includes "{name}", which is no lower layer of {own}')
    return wrong


def files():
    csrc = ROOT / "csrc"
    found = [p for p in csrc.rglob("*") if p.suffix in SOURCES]
    return {str(p.relative_to(csrc)): p.read_text() for p in found if p.relative_to(csrc).parts[0] != "tests"}


def test_includes_point_to_lower_layers():
    sources = files()
    assert len(sources) > 40
    assert {layer(path) for path in sources} == set(MAY_INCLUDE), "the map names every folder that exists, and no other"
    assert [line for path, text in sources.items() for line in wrong_includes(path, text)] == []


def test_layers_form_no_circle():
    def below(folder):
        return {folder}.union(*[below(lower) for lower in MAY_INCLUDE[folder]])

    for folder in MAY_INCLUDE:
        assert all(folder not in below(lower) for lower in MAY_INCLUDE[folder])


@pytest.mark.parametrize(
    "path, text",
    [
        ("core/philox.h", '#include "cpu/simd/lanes.h"'),
        ("cpu/simd/lanes.h", '#include "cpu/sampler/sampler.h"'),
        ("cpu/sampler/chunk.h", '#include "operators/aten.h"'),
        ("cpu/product/multiply.h", "#include <torch/csrc/stable/tensor.h>"),
        ("cuda/one_pass/tile.h", '#include "cuda/torch/operands.h"'),
        ("operators/linear.h", '#include "cpu/torch/program.h"'),
        ("cpu/torch/program.h", '#include "cuda/torch/operands.h"'),
        ("cpu/sampler/chunk.h", '#include "draws.h"'),
        ("cpu/sampler/chunk.h", '  #  include "../simd/lanes.h"'),
    ],
)
def test_the_check_finds_wrong_includes(path, text):
    assert len(wrong_includes(path, text)) == 1


def test_the_check_accepts_right_ones():
    names = ("operators/linear.h", "cpu/sampler/sampler.h", "cpu/torch/program.h")
    text = "#include <vector>\n" + "".join(f'#include "{name}"\n' for name in names)
    assert wrong_includes("cpu/torch/operators_cpu.cpp", text) == []
