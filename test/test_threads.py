"""Waiting threads sleep soon, so that operations of two threads and other processes get on."""

import os

import pytest
from vlm_depth_ros.core.threads import nap_between_operations, WAITING


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ({}, WAITING),
        ({'GOMP_SPINCOUNT': '7'}, WAITING | {'GOMP_SPINCOUNT': '7'}),
        ({'OMP_WAIT_POLICY': 'ACTIVE'}, {'OMP_WAIT_POLICY': 'ACTIVE'}),
    ],
    ids=['by default', 'other count', 'other policy'],
)
def test_threads_nap_unless_the_user_wants_otherwise(before, after, monkeypatch):
    environment = dict(before)
    monkeypatch.setattr(os, 'environ', environment)
    nap_between_operations()
    assert environment == after
