from __future__ import annotations

import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput, TooLarge
from penstock.cost import prices
from penstock.cost.spec import Prices
from tests.system.house import PENSTOCK

GOOD = """
currency: EUR
cpu_hour: 0.04
memory_gib_hour: 0.005
gpu_hour:
  default: 1.5
  A100: 2
  A100 80GB: 2.5
  H100: 4
"""


def test_the_shipped_file_is_whole_and_names_its_sources() -> None:
    found = prices.load(None)
    assert found.currency == "USD"
    assert min(found.cpu_hour, found.memory_gib_hour, found.gpu_hour, *found.gpu_models.values()) > 0
    text = (Path(prices.__file__).parent / "prices.yaml").read_text()
    assert "as_of: 20" in text
    for model in found.gpu_models:
        assert model in text.split("cpu_hour: ")[0], f"{model} has no source"
    assert len(list(prices.describe(found))) == 3 + len(found.gpu_models)


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", "2.5"),
        ("NVIDIA A100-PCIE-40GB", "2"),
        ("NVIDIA H100 80GB HBM3", "4"),
        ("nvidia h100", "4"),
        ("NVIDIA A1000", "1.5"),
        ("", "1.5"),
        ("unknown", "1.5"),
    ],
)
def test_which_price_a_model_has(model: str, rate: str) -> None:
    assert prices.parse(GOOD).gpu(model) == Decimal(rate)


def test_every_error_of_a_file_comes_at_once_with_its_line() -> None:
    text = """\
currency: euro
cpu_hour: -1
memory_gib_hour: cheap
gpu_hour:
  A100: .nan
  A100: 2
  H100: [1]
colour: blue
"""
    with pytest.raises(InvalidInput) as caught:
        prices.parse(text)
    assert [(problem.path, problem.line) for problem in caught.value.details] == [
        ("colour", 8),
        ("currency", 1),
        ("cpu_hour", 2),
        ("memory_gib_hour", 3),
        ("gpu_hour.A100", 6),
        ("gpu_hour.H100", 7),
        ("gpu_hour.default", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "a: b: c",
        "currency: [",
        "{}",
        "&a [*a]",
        "!!python/object:os.system x",
        "\x00",
        "? [a]\n: b",
        "[" * 5000,
    ],
)
def test_what_is_no_price_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        prices.parse(text)


def test_a_file_that_is_missing_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        prices.load(str(tmp_path / "none.yaml"))
    (tmp_path / "large.yaml").write_text("# " + "x" * prices.MAX_BYTES)
    with pytest.raises(TooLarge):
        prices.load(str(tmp_path / "large.yaml"))
    (tmp_path / "good.yaml").write_text(GOOD)
    assert prices.load(str(tmp_path / "good.yaml")).cpu_hour == Decimal("0.04")


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: raw.decode("utf-8", "replace")))
def test_any_text_is_prices_or_a_clear_refusal(text: str) -> None:
    assert outcome(text)


def outcome(text: str) -> Prices | str:
    try:
        return prices.parse(text)
    except TooLarge as error:
        return str(error)
    except InvalidInput as error:
        return "; ".join(map(str, error.details))


@given(
    st.dictionaries(
        st.sampled_from(["currency", "cpu_hour", "memory_gib_hour", "gpu_hour", "x"]),
        st.integers() | st.text(max_size=5),
    )
)
def test_any_mapping_is_prices_or_a_clear_refusal(values: dict[str, Any]) -> None:
    assert outcome(yaml.safe_dump(values))


def test_a_server_reads_it_before_anything_is_made(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("currency: euro\n")
    folder = tmp_path / "new"
    words = [PENSTOCK, "up", "--data-dir", str(folder), "--port", "0", "--prices", str(bad)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "three capital letters" in done.stderr) == (2, True)
    assert not folder.exists()
