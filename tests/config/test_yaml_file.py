import pytest

from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError


def test_exponents_without_a_point_are_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-3\nb: 2E+4\nc: 1.5e2\nd: v1e3\ne: 12e\n")
    assert read_yaml(path) == {"a": 1e-3, "b": 2e4, "c": 150.0, "d": "v1e3", "e": "12e"}


def test_a_repeated_key_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("lr: 1\nlr: 2\n")
    with pytest.raises(
        UserError, match=r"x\.yaml: not valid YAML: key 'lr' appears twice \(line 2"
    ):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1, 2", "not valid YAML"), ("- 1", "found list, expected a mapping")]
)
def test_what_is_not_a_mapping_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_merge_replaces_lists_and_merges_mappings():
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2]}
    assert merge(base, {"a": {"y": 3}, "b": [4]}) == {"a": {"x": 1, "y": 3}, "b": [4]}
    assert base == {"a": {"x": 1, "y": 2}, "b": [1, 2]}
