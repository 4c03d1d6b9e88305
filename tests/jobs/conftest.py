"""What tests of warm kernels need."""

import os

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    "ipykernel does not look at file descriptors while this variable is set; warm kernels refuse such a client."
    if "warm" in pyfuncitem.fixturenames:
        os.environ.pop("PYTEST_CURRENT_TEST", None)
