"""Signals while a run is put in order, and a cluster that is lost under its driver."""

import os
import signal
import socket
import threading
import time

import pytest

from ssl_ray.errors import ClusterLost, UserError
from ssl_ray.training import head
from ssl_ray.training.stops import held, sigterm_as_ctrl_c


def press(number: int = signal.SIGINT) -> None:
    """As a terminal does it; Python answers before the next line."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_puts_things_in_order_is_not_interrupted_but_by_the_second_signal(number: int) -> None:
    done = []
    before = signal.getsignal(number)
    with held():
        press(number)
        done.append("first")
    with pytest.raises(KeyboardInterrupt), held():  # noqa: PT012
        press(number)
        done.append("second")
        press(number)
        done.append("never")
    assert done == ["first", "second"]
    assert signal.getsignal(number) is before


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            for _ in range(3):
                press()
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        press(signal.SIGTERM)


def part(answers: bool, patience: float = 0.0) -> head.Part:
    return head.Part("the cluster's head", lambda: answers, patience)


def test_a_lost_cluster_interrupts_whatever_the_main_thread_waits_for() -> None:
    began = time.monotonic()
    lost = pytest.raises(ClusterLost, match=r"^the cluster's head is gone; come back$")
    with lost, head.watched("come back", [part(False, patience=1.0)]):
        threading.Event().wait(60)
    assert 1.0 < time.monotonic() - began < 20


def test_a_cluster_that_is_there_changes_nothing() -> None:
    before = threading.active_count()
    with pytest.raises(UserError, match="mend it"), head.watched("come back", [part(True)]):
        raise UserError("mend it")
    assert threading.active_count() == before, "nobody watches any longer"


def test_an_error_of_ray_s_is_the_lost_cluster_s() -> None:
    import ray

    lost = pytest.raises(ClusterLost, match="the cluster's head is gone")
    with lost, head.watched("come back", [part(False, patience=60)]):
        raise ray.exceptions.RayActorError
    with pytest.raises(UserError, match="mend it"), head.watched("come back", [part(False, patience=60)]):
        raise UserError("mend it")


def test_who_is_busy_is_present_and_who_refuses_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        assert head.present(f"{host}:{port}")
        assert head.listens(f"{host}:{port}")
    assert not head.present(f"{host}:{port}")
    assert not head.listens(f"{host}:{port}")
