"""Places that cannot be are refused in one line that names the key."""

import pytest

from harness.data.locations import locate
from harness.errors import UserError

KEY = r"^datasets\.yaml: x\.source\.root: "


def test_the_home_of_no_user_is_named(monkeypatch):
    with pytest.raises(UserError, match=rf"{KEY}found '~nouser/x', .*'~nouser' is the home of no"):
        locate("~nouser/x", "datasets.yaml: x.source.root")
    monkeypatch.setenv("HARNESS_DATA", "~nouser")
    with pytest.raises(UserError, match=r"^HARNESS_DATA: found '~nouser', expected a path"):
        locate("x", "datasets.yaml: x.source.root")


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(path, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{KEY}'{tmp_path}/{path}' cannot be made a folder \("):
        locate(str(tmp_path / path), "datasets.yaml: x.source.root", create=True)
