import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ssl_ray.evaluation import logistic
from ssl_ray.evaluation.logistic import fit_logistic
from tests.evaluation.test_probe import blobs


@pytest.fixture
def rows_and_labels() -> tuple[Tensor, Tensor]:
    rows, labels = blobs(0, 300, dim=6)
    return torch.from_numpy(StandardScaler().fit_transform(rows.double().numpy())), labels


def test_fitted_weights_equal_scikit_learn(rows_and_labels: tuple[Tensor, Tensor]) -> None:
    rows, labels = rows_and_labels
    weight, bias = fit_logistic(rows, labels, 5, penalty=0.01)
    reference = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=5000).fit(rows.numpy(), labels.numpy())
    np.testing.assert_allclose(weight.T.numpy(), reference.coef_, atol=1e-5)
    found = (rows @ weight + bias).softmax(1)
    np.testing.assert_allclose(found.numpy(), reference.predict_proba(rows.numpy()), atol=1e-5)


def test_pieces_do_not_change_the_answer(
    rows_and_labels: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_logistic(*rows_and_labels, 5, penalty=0.01)
    monkeypatch.setattr(logistic, "_CHUNK_ELEMENTS", 35)  # 7 rows at a time
    torch.testing.assert_close(fit_logistic(*rows_and_labels, 5, penalty=0.01), whole, atol=1e-6, rtol=0)


def test_a_good_start_is_kept(rows_and_labels: tuple[Tensor, Tensor]) -> None:
    whole = fit_logistic(*rows_and_labels, 5, penalty=0.01, tolerance=1e-8)
    nothing_left = fit_logistic(*rows_and_labels, 5, penalty=0.01, start=whole, iterations=1)
    torch.testing.assert_close(nothing_left, whole, atol=1e-7, rtol=0)
    cold = fit_logistic(*rows_and_labels, 5, penalty=0.01, iterations=1)
    assert (cold[0] - whole[0]).abs().max() > 0.1
