"""Launch configurations: found by device and size, refused by name, and the same for any batch in a fixed order."""

import re

import pytest
import torch
from kernels import DEVICE

from optimized.launch import DEFAULT, FOLDER, files, fixed_order, launch_for, read
from optimized.ops.experts import experts
from optimized.ops.linear import linear

CPU = torch.device("cpu")


def test_the_first_entry_that_holds_is_taken():
    few, many = (launch_for("linear", CPU, T=count, dtype="bfloat16").options["BLOCK_T"] for count in (16, 17))
    assert few < many


def test_a_configuration_says_where_it_comes_from():
    assert launch_for("linear", CPU, T=1).origin.startswith("generic_cpu.toml: ")


def test_an_unknown_device_gets_the_default_and_says_so():
    assert launch_for("linear", torch.device("meta"), T=1).origin.startswith("default.toml: ")


def test_a_kernel_without_an_entry_is_named():
    with pytest.raises(LookupError, match=r"no-such-kernel.*default\.toml"):
        launch_for("no-such-kernel", CPU)


@pytest.mark.parametrize("file", files())
def test_every_file_covers_all_sizes_of_its_kernels(file: str):
    entries, _ = read(file)
    default, _ = read(DEFAULT)
    assert set(entries) <= set(default), "a kernel that only one device has an entry for runs nowhere else"
    for kernel in default:
        last = default[kernel][-1]
        assert not [key for key in last if key.startswith("max_")], f"{kernel}: the last entry must hold for any size"


def test_in_a_fixed_order_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it():
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 520, generator=random), torch.randn(70, 520, generator=random)
    x, weight = x.to(DEVICE, torch.bfloat16), weight.to(DEVICE, torch.bfloat16)
    with fixed_order():
        whole = linear(x, weight)
        pieces = torch.cat([linear(x[start : start + size], weight) for start, size in ((0, 1), (1, 4), (5, 35))])
    assert torch.equal(whole, pieces)


def test_in_a_fixed_order_the_bits_of_a_token_do_not_depend_on_the_tokens_beside_it():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(24, 136, generator=random)
    gate, up, down = (torch.randn(7, *size, generator=random) / 12 for size in ((40, 136), (40, 136), (136, 40)))
    tensors = [tensor.to(DEVICE, torch.bfloat16) for tensor in (x, gate, up, down)]
    ids = torch.stack([torch.randperm(7, generator=random)[:3] for _ in range(24)]).to(DEVICE)
    weights = torch.rand(24, 3, generator=random).to(DEVICE)
    with fixed_order():
        whole = experts(tensors[0], ids, weights, *tensors[1:], 7.0)
        pieces = [
            experts(tensors[0][rows], ids[rows], weights[rows], *tensors[1:], 7.0)
            for rows in (slice(0, 1), slice(1, 6), slice(6, 24))
        ]
    assert torch.equal(whole, torch.cat(pieces))


OLDER = {"weight", "bias", "frequencies", "positions", "slots", "context_lens", "table"}  # than the kernel before


def test_before_begin_kernel_a_kernel_reads_only_what_is_older_than_the_kernel_before() -> None:
    """Launched early or not, a kernel waits for the one ahead before it reads what that one wrote, or writes."""
    seen = 0
    for path in [*FOLDER.parent.glob("ops/*.py"), *FOLDER.parent.glob("fused/*.py")]:
        text = f"{path.read_text(encoding='utf-8')}\n\n"
        bodies = dict(re.findall(r"^@triton\.jit\ndef (\w+)\(.*?\):\n(.*?\n)\n\n", text, re.M | re.S))
        waiting = [f"{name}(" for name, body in bodies.items() if "begin_kernel(" in body and "_kernel" not in name]
        for name in (name for name in bodies if name.endswith("_kernel")):
            starts = [bodies[name].find(call) for call in ("begin_kernel(", *waiting) if call in bodies[name]]
            assert starts, f"{path.name}: {name} never waits"
            before = bodies[name][: min(starts)]
            assert not re.search(r"tl\.(store|atomic)|arrived_last", before), f"{path.name}: {name} writes before"
            read = set(re.findall(r"tl\.load\(\s*(\w+)_ptr", before))
            assert read <= OLDER, f"{path.name}: {name} reads {read - OLDER} before"
            seen += 1
    assert seen > 20
