"""Nothing in float64 lands on a default GPU: it is emulated by tests/support/emulated_gpu.py."""

import pytest

from pinvnn.heads import Head, atlas


@pytest.mark.parametrize(("folder", "l2"), [("topics", [0.5, 1.0, 2.0]), ("lengths", [0.0, 1.0])])
def test_an_atlas_and_its_head(gpu, request, loaded, tmp_path, folder, l2):
    result = atlas(loaded, request.getfixturevalue(folder), l2=l2, output=tmp_path)
    # One factorization of each of the five layers serves the whole grid, except for a penalty of zero.
    assert gpu.calls["eigh"] == 5 or 0.0 in l2
    head = Head.load(tmp_path / "head", loaded)
    assert len(head(["the cat", "a dog and a bird"])) == 2
    assert head.config == result.head().config
