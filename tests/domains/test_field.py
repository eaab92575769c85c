"""A prime field as the numbers of a graph: arithmetic, what floats stand for, parameters and their ties."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from normfold.domains.field import Elements, Field, Unknown
from normfold.domains.numbers import Surd, recognised
from normfold.domains.residues import PrimeField, suitable_primes
from normfold.ir import capture
from normfold.ir.evaluation import Evaluator
from normfold.ops.arithmetic import HIDDEN, NoMeaning

F = PrimeField(suitable_primes(1)[0])
P = F.prime


def test_the_ring_is_that_of_integers() -> None:
    x, y = F.random((1000,), "x"), F.random((1000,), "y")
    pairs = list(zip(map(int, x), map(int, y), strict=True))
    assert F.add(x, y).tolist() == [(a + b) % P for a, b in pairs]
    assert F.sub(x, y).tolist() == [(a - b) % P for a, b in pairs]
    assert F.mul(x, y).tolist() == [a * b % P for a, b in pairs]
    assert F.inverse(x).tolist() == [pow(a, -1, P) if a else 0 for a, _ in pairs]
    assert F.element(torch.tensor([-1, P, P + 2])).tolist() == [P - 1, 0, 2]


def test_the_sign_is_multiplicative() -> None:
    x, y = F.random((1000,), "x"), F.random((1000,), "y")
    assert torch.equal(F.sign(F.mul(x, y)), F.sign(x) * F.sign(y))
    assert int(F.sign(F.element(-1))) == -1
    assert all(int(F.sign(F.element(n))) == 1 for n in range(1, 41))
    assert abs(int(F.sign(torch.arange(P).double()).sum())) == 0


@pytest.mark.parametrize("prime", suitable_primes(3))
def test_roots(prime: int) -> None:
    f = PrimeField(prime)
    x = torch.arange(prime).double()
    root, sign = f.root(x), f.sign(x)
    assert torch.equal(f.mul(root, root)[sign == 1], x[sign == 1])
    assert bool((f.sign(root)[x > 0] == 1).all())


def test_primes_are_chosen_for_roots() -> None:
    wanted = Fraction(767, 768)
    for prime in suitable_primes(3, [wanted], [Fraction(1, 197)]):
        assert prime % 4 == 3
        assert prime < 2**20
        for number in (767 * 768, 197, 2, 3, 5, 7):
            assert pow(number, (prime - 1) // 2, prime) == 1
    assert len(set(suitable_primes(3))) == 3


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (3.0, Fraction(3)),
        (1e-5, Fraction(1, 10**5)),
        (1e-12, Fraction(1, 10**12)),
        (1 / 3, Fraction(1, 3)),
        (-0.485 / 0.229, Fraction(-485, 229)),
        (1e-6 * 768 / 767, Fraction(768, 767 * 10**6)),
        (1 / 49, Fraction(1, 49)),
        (64**-0.5, Fraction(1, 8)),
        (48**-0.5, Surd("root", Fraction(1), Fraction(1, 48))),
        (-(2**0.5), Surd("root", Fraction(-1), Fraction(2))),
        (48**-0.25, Surd("fourth", Fraction(1), Fraction(1, 48))),
        (1 - 768**-0.5, Surd("rest", Fraction(1), Fraction(1, 768))),
        (1 / (768**0.5 + 1), Surd("share", Fraction(1), Fraction(768))),
        ((768 / 767) ** 0.5, Surd("root", Fraction(1), Fraction(768, 767))),
        (torch.finfo(torch.float32).eps, Fraction(1, 2**23)),
        (float(torch.tensor(0.1)), Fraction(13421773, 2**27)),
        (2.718281828459045, None),
        (0.7978845608028654, None),
    ],
)
def test_numbers(x: float, wanted: Fraction | Surd | None) -> None:
    assert recognised(x) == wanted


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (2 / (96**0.5 + 1), Surd("rest", Fraction(-2, 95), Fraction(96))),
        (-1.001 / (96**0.5 + 1), Surd("rest", Fraction(1001, 95000), Fraction(96))),
        (1.001 * 24**-0.5, Surd("root", Fraction(1001, 1000), Fraction(1, 24))),
        (1.25 * (1 - 24**-0.5), Surd("rest", Fraction(5, 4), Fraction(1, 24))),
        (1.001 * 12**-0.25, Surd("fourth", Fraction(1001, 1000), Fraction(1, 12))),
        (2 / (48**0.5 + 1), None),
        (1 / 3, Fraction(1, 3)),
    ],
)
def test_multiples_of_what_is_written_beside_them(x: float, wanted: Fraction | Surd | None) -> None:
    radicands = Fraction(1, 24), Fraction(1, 12), Fraction(96)
    assert recognised(x, radicands) == wanted
    assert recognised(x) == (wanted if isinstance(wanted, Fraction) else None)


def test_multiples_are_the_products() -> None:
    radicands = Fraction(24), Fraction(1, 24)
    f = PrimeField(suitable_primes(1, radicands, [Fraction(1001, 1000)])[0], radicands=radicands)
    gamma = 1 / (24**0.5 + 1)
    for factor, unit in ((1.001, gamma), (-2.0, gamma), (1.001, 24**-0.5), (0.75, 1 - 24**-0.5)):
        assert f.element(factor * unit) == f.mul(f.element(factor), f.element(unit))
    assert not f.opaque


@pytest.mark.slow
def test_random_numbers_are_rarely_read_as_something() -> None:
    """1 in 200 as a rational, 1 in 10,000 as a root and 1 in 200,000 as a multiple of each of the radicands."""
    numbers = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radicands = tuple(Fraction(1, width) for width in range(2, 12))
    found = [recognised(x, radicands) for x in numbers.tolist()]
    assert sum(isinstance(read, Surd) for read in found) <= 3
    assert sum(isinstance(read, Fraction) for read in found) <= 40


def test_numbers_as_elements() -> None:
    f = PrimeField(suitable_primes(1, [Fraction(1, 768)])[0])
    third, root = f.element(1 / 3), f.element(768**-0.5)
    assert int(f.mul(third, f.element(3))) == 1
    assert int(f.mul(f.mul(root, root), f.element(768))) == 1
    gamma = f.element(1 / (768**0.5 + 1))
    assert int(f.mul(gamma, f.add(f.element(768**0.5), f.element(1)))) == 1
    assert not f.opaque
    e = f.element(-2.718281828459045)
    assert int(f.sign(e)) == -1
    assert f.opaque == {-2.718281828459045}
    assert torch.equal(e, f.element(-2.718281828459045))
    assert float(f.element(-float("inf"))) == HIDDEN
    with pytest.raises(NoMeaning):
        f.element(float("inf"))


def _elements(field: Field, value: Tensor) -> Tensor:
    found = field.parameter("", value)
    assert isinstance(found, Elements)
    return found.value


def test_parameters_have_the_signs_and_zeros_of_the_real_ones() -> None:
    value = torch.randn(20, 30)
    value[3] = 0
    found = _elements(Field(F), value)
    assert torch.equal(F.sign(found), value.sign().to(torch.int8))
    assert len(found.unique()) > 500


def test_tensors_that_share_memory_share_elements() -> None:
    field, value = Field(F), torch.randn(6, 8)
    whole = _elements(field, value)
    assert torch.equal(_elements(field, value.t()), whole.t())
    assert torch.equal(_elements(field, value[2:, ::2]), whole[2:, ::2])
    assert not torch.equal(_elements(field, value.clone()), whole)
    assert torch.equal(_elements(Field(F), value), whole)
    assert not torch.equal(_elements(Field(PrimeField(P, seed=1)), value), whole)


def test_constants_of_small_integers_are_what_they_are() -> None:
    field = Field(F)
    assert torch.equal(_elements(field, torch.eye(4)), torch.eye(4).double())
    assert _elements(field, torch.tensor([-1.0, 0.0, 64.0])).tolist() == [P - 1, 0, 64]
    mask = torch.tensor([0.5, -torch.inf, torch.finfo(torch.float32).min])
    assert torch.equal(_elements(field, mask) == HIDDEN, torch.tensor([False, True, True]))
    rationals = torch.tensor([1 / 0.229, -0.485 / 0.229], dtype=torch.float64)
    assert torch.equal(_elements(field, rationals), F.exact(rationals))


class Order(nn.Module):
    """The best three of a row, a table by their numbers, and dropout that is left on."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        best = x.topk(3, -1).indices
        noise = torch.nn.functional.dropout(x, 0.5, training=True)
        ruled = torch.special.bessel_j0(x)
        return self.table(best), x + 1, noise * 2, ruled, torch.arange(4) * 0.25 + x.shape[0]


def test_ops_without_a_meaning() -> None:
    graph = capture(Order(), (torch.randn(2, 10),), dynamic=None)
    field = Field(F)
    x = field.random_input(torch.zeros(2, 10), "x")
    table, plain, noise, ruled, numbers = Evaluator(graph.module, field)(x)
    assert isinstance(table, Elements)
    assert table.value.shape == (2, 3, 4)
    assert torch.equal(plain.value, F.add(x.value, F.element(1)))
    assert isinstance(noise, Unknown)
    assert "random" in noise.why
    assert isinstance(ruled, Elements)
    assert torch.equal(numbers, torch.arange(4) * 0.25 + 2)
    marks = {str(node.target) for node in field.uninterpreted}
    assert {"aten.topk.default", "aten.special_bessel_j0.default"} <= marks
    again = Evaluator(graph.module, field)(x)[3]
    other = Evaluator(graph.module, field)(field.random_input(torch.zeros(2, 10), "y"))[3]
    assert torch.equal(again.value, ruled.value)
    assert not torch.equal(other.value, ruled.value)
