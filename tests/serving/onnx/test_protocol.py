"""The table of gRPC messages, held to the ones that `tritonclient` brings."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from penstock.serving.runtimes.onnx import protocol


def theirs(name: str) -> Any:
    outer, _, inner = name.partition(".")
    found = getattr(service_pb2, outer, None) or getattr(model_config_pb2, outer)
    return (getattr(found, inner) if inner else found).DESCRIPTOR


@pytest.mark.parametrize("name", list(protocol._TABLE))
def test_every_field_is_where_theirs_is(name: str) -> None:
    known = theirs(name).fields_by_name
    for field in protocol.message(name).DESCRIPTOR.fields:
        other = known[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)


def test_types_have_their_numbers() -> None:
    assert list(protocol.DATA_TYPES) == model_config_pb2.DataType.keys()
