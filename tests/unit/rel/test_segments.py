"""Products of rows with the matrix of their type, against a loop over rows in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gnnsys._core import SegmentArrays, SegmentProducts, SegmentRows, isas
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError, UnsupportedError
from gnnsys.rel.segments import available_backends, segment_matmul

ROUNDED = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_by_one(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    """In float64; differentiated by torch."""
    index = torch.arange(len(x)) if index is None else index
    kind = torch.repeat_interleave(torch.arange(len(weight)), ptr.diff())
    rows, matrices = x.double()[index].unsqueeze(-2), weight.double()[kind]
    return (rows @ matrices).squeeze(-2)


def random_case(
    shape: tuple[int, ...], sizes: list[int], columns: int, rows: int = 23, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (rows, *shape), weight, ptr, and an index that reads some rows often, others never."""
    torch.manual_seed(seed)
    x = torch.randn(rows, *shape, dtype=torch.float64)
    weight = torch.randn(len(sizes), *shape, columns, dtype=torch.float64)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    return x, weight, ptr, (rows * torch.rand(sum(sizes)) ** 2).long()


def ascending(index: Tensor, ptr: Tensor) -> Tensor:
    """Within each type."""
    return torch.cat([index[a:b].sort()[0] for a, b in itertools.pairwise(ptr.tolist())])


def check_rounding(found: Tensor, exact: Tensor, most: Tensor, by_x: bool = False) -> None:
    """That sums of up to 200 products were rounded to the type once, after they were made.

    ``most`` is their sum of magnitudes. A derivative by x is rounded before it is folded, too.
    """
    in_sums = ROUNDED[torch.promote_types(found.dtype, torch.float32)]
    bound = ROUNDED[found.dtype] * (exact.abs() + by_x * most) + 200 * in_sums * most
    assert ((found.double() - exact.double()).abs() <= bound).all()


def with_gradients(
    f: Callable[..., Tensor], x: Tensor, weight: Tensor, grad: Tensor
) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = f(x, weight)
    return [out.detach(), *torch.autograd.grad(out, (x, weight), grad.to(out.dtype))]


CASES: dict[str, tuple[tuple[int, ...], list[int], int]] = {
    "one type": ((64,), [150], 64),
    "empty types": ((8,), [0, 70, 0, 1, 0], 16),
    "no rows": ((5,), [0, 0], 3),
    "odd widths": ((7,), [9, 30], 37),
    "one column": ((33,), [20, 5], 1),
    "blocks": ((4, 8), [40, 0, 17], 8),
    "odd blocks": ((3, 5), [40, 65], 9),
    "no columns": ((2, 0), [3], 4),
}


@pytest.mark.parametrize("ascends", [False, True])
@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("case", CASES)
def test_products_and_derivatives_are_those_of_each_row(
    case: str, backend: str, ascends: bool
) -> None:
    x, weight, ptr, index = random_case(*CASES[case])
    if ascends:
        index = ascending(index, ptr)
    grad = torch.randn(len(index), *x.shape[1:-1], weight.size(-1), dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        if backend == "grouped_mm" and dtype == torch.float64:
            continue
        x, weight, grad = x.to(dtype), weight.to(dtype), grad.to(dtype)

        def ours(x: Tensor, weight: Tensor) -> Tensor:
            return segment_matmul(x, weight, ptr, index, backend=backend)

        found = with_gradients(ours, x, weight, grad)
        given = [each.double() for each in (x, weight, grad)]
        exact, most = (
            with_gradients(lambda x, w: one_by_one(x, w, ptr, index), *inputs)
            for inputs in (given, [each.abs() for each in given])
        )
        for name, a, b, c in zip(("result", "by x", "by weight"), found, exact, most, strict=True):
            assert a.dtype == dtype, (dtype, name)
            check_rounding(a, b, c, by_x=name == "by x")


def test_rows_are_read_in_their_order_without_an_index() -> None:
    x, weight, ptr, _ = random_case((6,), [20, 3], 5)
    for backend in ("native", "ref"):
        found = segment_matmul(x, weight, ptr, backend=backend)
        torch.testing.assert_close(found, one_by_one(x, weight, ptr, None), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_first_and_second_derivatives_are_those_of_finite_differences(
    shape: tuple[int, ...],
) -> None:
    x, weight, ptr, index = random_case(shape, [3, 0, 4], 2, rows=4)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    for order in (index, ascending(index, ptr), None):
        ptr = torch.tensor([0, 3, 3, 4 if order is None else 7])

        def f(x: Tensor, weight: Tensor, ptr: Tensor = ptr, order: Tensor | None = order) -> Tensor:
            return segment_matmul(x, weight, ptr, order)

        assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["native", "grouped_mm"])
def test_tensors_in_any_strides_give_the_same(backend: str) -> None:
    x, weight, ptr, index = (
        a if a.dtype == torch.int64 else a.float() for a in random_case((2, 12), [30, 41], 16)
    )
    strided = (
        torch.stack([x, x], 1)[:, 1],
        weight.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([ptr, ptr], 1)[:, 0],
        torch.stack([index, index], 1)[:, 0],
    )

    def run(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor, grad: Tensor) -> list[Tensor]:
        return with_gradients(
            lambda x, w: segment_matmul(x, w, ptr, index, backend=backend), x, weight, grad
        )

    one = torch.ones((), dtype=torch.float32)
    found = run(*strided, one.expand(71, 2, 16))
    for a, b in zip(found, run(x, weight, ptr, index, torch.ones(71, 2, 16)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    x, weight, ptr, index = random_case((100,), [5000, 3, 0, 9000, 2000], 40, rows=3000)
    x, weight = x.to(dtype), weight.to(dtype)
    grad = torch.randn(len(index), 40).to(dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([])
        for order in (index, ascending(index, ptr)):
            results[-1] += with_gradients(
                lambda x, w, order=order: segment_matmul(x, w, ptr, order), x, weight, grad
            )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("isa", isas())
def test_every_instruction_set_gives_the_same_but_for_rounding(isa: str) -> None:
    x, weight, ptr, index = random_case((2, 19), [70, 2, 129], 53)
    segments = SegmentArrays(ptr.data_ptr(), 3, index.data_ptr())
    for dtype, name in ((torch.float64, "float64"), (torch.bfloat16, "bfloat16")):
        x, weight, out = x.to(dtype), weight.to(dtype), torch.empty(201, 2, 53, dtype=dtype)
        rows = SegmentRows(name, x.data_ptr(), len(x), 2, 19, 53)
        address, strides = weight.data_ptr(), weight.stride()
        products = SegmentProducts(1, isa)
        assert products.matmul(segments, rows, address, strides, out.data_ptr()) == -1
        exact, most = (
            one_by_one(x, weight, ptr, index),
            one_by_one(x.abs(), weight.abs(), ptr, index),
        )
        check_rounding(out, exact, most)


def test_many_types_of_few_rows_each() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(0, 4, (100_000,), generator=generator).tolist()
    x, weight, ptr, index = random_case((3,), sizes, 2)
    found = with_gradients(
        lambda x, w: segment_matmul(x, w, ptr, index), x, weight, torch.ones(len(index), 2)
    )
    expected = with_gradients(
        lambda x, w: one_by_one(x, w, ptr, index), x, weight, torch.ones(len(index), 2)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["native", "grouped_mm"])
def test_is_traced_by_compile(backend: str) -> None:
    x, weight, ptr, index = random_case((4,), [9, 0, 6], 8)
    x, weight, grad = x.float(), weight.float(), torch.randn(15, 8)

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return segment_matmul(x, weight, ptr, index, backend=backend).relu()

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        with_gradients(compiled, x, weight, grad), with_gradients(f, x, weight, grad), strict=True
    ):
        assert torch.equal(a, b)
    torch.library.opcheck(
        torch.ops.gnnsys.segment_matmul,
        (x.unsqueeze(1).requires_grad_(), weight.unsqueeze(1), ptr, index, backend),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_computes_in_the_element_type_of_autocast() -> None:
    x, weight, ptr, index = random_case((4,), [9, 6], 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = segment_matmul(x.float(), weight.float(), ptr, index)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, segment_matmul(x.bfloat16(), weight.bfloat16(), ptr, index))
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(DTypeError, match=r"torch\.autocast is of torch\.float16, not of"),
    ):
        segment_matmul(x.float(), weight.float(), ptr, index)


X, WEIGHT, PTR, INDEX = torch.zeros(4, 3), torch.zeros(2, 3, 5), torch.tensor([0, 1, 3]), [0, 3, 1]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"ptr": [0, 4, 3]}, ArgumentError, "ptr: expected to ascend from 0 to 3"),
        ({"ptr": [1, 2, 3]}, ArgumentError, "ptr: expected to ascend from 0 to 3"),
        ({"ptr": [0, 1, 2]}, ArgumentError, "ptr: expected to ascend from 0 to 3"),
        ({"ptr": [0, 3]}, ArgumentError, "ptr: of 2, expected 3"),
        ({"ptr": [0.0, 1.0, 3.0]}, DTypeError, "ptr: torch.float32"),
        ({"index": [0, 4, 1]}, RowIndexError, "index: 4, expected from 0 to 3"),
        ({"index": [0, -1, 1]}, RowIndexError, "index: -1, expected from 0 to 3"),
        ({"index": [[0, 3, 1]]}, DTypeError, r"index: torch.int64 of \(1, 3\)"),
        ({"x": torch.zeros(4, 2)}, ArgumentError, r"x of \(4, 2\) and weight of \(2, 3, 5\)"),
        ({"x": torch.zeros(4, 1, 3)}, ArgumentError, "expected"),
        ({"x": torch.zeros(4, 3).double()}, DTypeError, "x of torch.float64 and weight of"),
        ({"x": torch.zeros(4, 3, device="meta")}, ArgumentError, "weight: is on cpu, but x is on"),
        ({"ptr": torch.zeros(3, dtype=torch.int64, device="meta")}, ArgumentError, "ptr.cpu()"),
        ({"backend": "cublas"}, ArgumentError, "backend: 'cublas', expected one of auto, native"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["native", "grouped_mm", "ref"])
def test_bad_arguments_are_named(
    backend: str, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"x": X, "weight": WEIGHT, "ptr": PTR, "index": INDEX, "backend": backend} | given
    for name in ("ptr", "index"):
        arguments[name] = torch.as_tensor(arguments[name])
    with pytest.raises(error, match=message):
        segment_matmul(**arguments)


@pytest.mark.parametrize("backend", ["native", "ref"])
def test_operators_that_derivatives_call_refuse_rows_that_do_not_fit(backend: str) -> None:
    x, weight, index = X.unsqueeze(1), WEIGHT.unsqueeze(1), torch.tensor(INDEX)
    with pytest.raises(ArgumentError, match="index: 2 rows, expected 3"):
        torch.ops.gnnsys.segment_matmul_sum(x[:3], weight, PTR, index[:2], 4, backend)
    for given in (index, None):
        with pytest.raises(ArgumentError, match="grad: 2 rows, expected 3"):
            torch.ops.gnnsys.segment_outer(
                x if given is not None else x[:3], torch.ones(2, 1, 5), PTR, given, backend
            )


def test_a_backend_that_cannot_says_so() -> None:
    double = X.double(), WEIGHT.double(), PTR, torch.tensor(INDEX)
    with pytest.raises(UnsupportedError, match="'grouped_mm' has no float64"):
        segment_matmul(*double, backend="grouped_mm")
    if "pyg_lib" not in available_backends():
        with pytest.raises(UnsupportedError, match="'pyg_lib' is not installed"):
            segment_matmul(*double, backend="pyg_lib")
