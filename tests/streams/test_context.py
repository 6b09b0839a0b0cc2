"""Context fields as columns, by kind; what cannot be read is zeros."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from headrace.streams.context import ContextEncoder
from headrace.streams.sections import SOURCES
from headrace.streams.settings import Settings


def encode(fields, *contexts, placements=None):
    encoder = ContextEncoder(Settings(context=fields, placements=placements or {}))
    rows = encoder.encode([(context, "default") for context in contexts])
    assert rows.shape == (len(contexts), encoder.size) and np.isfinite(rows).all()
    return rows


def test_a_category_has_a_column_a_value():
    field = {"device": {"kind": "category", "values": ["mobile", "desktop"]}}
    rows = encode(field, {"device": "desktop"}, {"device": "watch"}, {}, {"device": 3})
    assert rows.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_a_number_is_scaled_and_what_is_none_is_zero():
    rows = encode({"basket": {"kind": "number", "scale": 50}}, {"basket": 25}, {"basket": "25"}, {"basket": math.inf})
    assert rows[:, 0].tolist() == [0.5, 0, 0]


def test_a_number_out_of_all_bounds_counts_as_the_largest_that_is_learned_from():
    rows = encode({"price": {"scale": 2}}, {"price": 1e300}, {"price": -1e39}, {"price": 250.0}, {"price": 150.0})
    assert rows[:, 0].tolist() == [100, -100, 100, 75]


def test_midnight_lies_beside_half_past_eleven():
    rows = encode({"time": {"kind": "hour"}}, *({"time": hour} for hour in (23.5, 0, 0.5, 12)))[:, :2]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    late, midnight, early, noon = rows
    assert np.allclose(midnight @ late, midnight @ early) and midnight @ late > 0.99
    assert np.allclose(midnight @ noon, -1)


@pytest.mark.parametrize("hour", [-1, 24.5, math.nan, "12", True, None])
def test_an_hour_that_is_none_is_zeros(hour):
    assert not encode({"time": {"kind": "hour"}}, {"time": hour})[:, :2].any()


def test_weekdays_go_round_in_seven_whichever_is_the_first():
    rows = encode({"day": {"kind": "weekday"}}, {"day": 0}, {"day": 7}, {"day": 3.5}, {"day": 8})[:, :2]
    assert np.allclose(rows[0], rows[1], atol=1e-6) and np.allclose(rows[0], -rows[2], atol=1e-6)
    assert not rows[3].any()


def test_fields_without_a_kind_have_the_columns_they_had():
    fields = {"a": {"values": ["x", "y"]}, "b": {"scale": 2.0}}
    said = {"a": {"kind": "category", "values": ["x", "y"]}, "b": {"kind": "number", "scale": 2.0}}
    context = {"a": "y", "b": 5}
    assert encode(fields, context).tolist() == encode(said, context).tolist() == [[0, 1, 2.5, 1]]


def test_placements_have_the_last_columns():
    encoder = ContextEncoder(Settings(context={"time": {"kind": "hour"}}, placements={"home": {}, "cart": {}}))
    assert encoder.encode([({}, "cart"), ({}, "default")]).tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"context": {"device": {"kind": "category"}}}, "a category needs its values"),
        ({"context": {"time": {"kind": "hour", "values": ["1"]}}}, "hour has no values"),
        ({"context": {"time": {"kind": "minute"}}}, "category"),
        ({"placements": {"home": {"sources": ["populer"]}}}, f"unknown source 'populer'; choose among {SOURCES[0]}"),
        ({"placements": {"home": {"sources": {"own": 0.7, "random": 0.5}}}}, "at most 1 together"),
        ({"placements": {"home": {"sources": {"own": -0.1}}}}, "between 0 and 1"),
        ({"placements": {"home": {"policy": "linuc"}}}, "unknown policy 'linuc'; choose one of"),
        ({"placements": {"home": {"policy": "actor"}}}, "placements.home.policy: actor learns nothing"),
        ({"placements": {"home": {"arms": ["email"]}}}, "placements.home names the arm 'email': give it a share"),
        ({"placements": {"home": {"arms": ["popular"], "policy": "linucb"}}}, "is for the arm 'policy'"),
        ({"placements": {"home": {"diversity": -1}}}, "greater than or equal to 0"),
        ({"placements": {"m": {"policy": "neural_linear"}}, "policy": {"name": "linucb", "discount": 0.9}}, "neither"),
    ],
)
def test_what_does_not_go_together_is_told(settings, says):
    with pytest.raises(ValidationError, match=says):
        Settings(**settings)
