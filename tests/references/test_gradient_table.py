"""Our column of the table in docs/gradients.md, made anew."""

import numpy as np
import pytest

from benchmarks import gradient_table

pytestmark = pytest.mark.usefixtures("float64_on_the_cpu")

TASKS = dict(gradient_table.tasks())


@pytest.mark.parametrize("key", TASKS, ids=", ".join)
def test_below_1e_7(key):
    task = TASKS[key]
    _, gradient, curvature = gradient_table.pinvnn_worker()
    if key[0] == "gradient":
        got, want = gradient(task), gradient_table.true_gradient(task)
    else:
        got, want = [np.array(curvature(task))], [np.array(gradient_table.true_curvature(task))]
    assert gradient_table.relative(got, want) < 1e-7
