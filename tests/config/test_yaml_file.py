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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: é".encode("latin-1"), "x.yaml: not UTF-8: unexpected end of data at byte 3"),
        ("a: 1".encode("utf-16"), "x.yaml: not UTF-8: invalid start byte at byte 0"),
        (b"a: b\0", "x.yaml: not valid YAML: unacceptable character #x0000"),
        (b"? [a]\n: 1", "x.yaml: not valid YAML: found ['a'] as a key (line 1)"),
        (b"b: 1\na: 2020-13-45", "'2020-13-45' is no valid timestamp, text needs quotes (line 2)"),
        (b"a: &a {b: *a}", "x.yaml: an entry holds itself"),
        (b"a: {b: [1, .inf]}", "x.yaml: a.b.1: found inf, expected a finite number"),
        (b"a: {b: .nan}", "x.yaml: a.b: found nan, expected a finite number"),
        (b"a: {b: 2020-01-02}", "x.yaml: a.b: found the date 2020-01-02, expected text"),
        (b"on: 1", "x.yaml: found the key True, expected text: put it in quotes"),
        (b"a: {~: 1}", "x.yaml: a: found the key None, expected text: put it in quotes"),
        (b"a: {b: 1, 5: 2}", "x.yaml: a: found the keys 'b' and 5, expected all"),
    ],
)
def test_what_identities_cannot_be_made_of_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_may_all_be_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("1: {2: é}\n")
    assert read_yaml(path) == {1: {2: "é"}}


def test_merge_replaces_lists_and_merges_mappings():
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2]}
    assert merge(base, {"a": {"y": 3}, "b": [4]}) == {"a": {"x": 1, "y": 3}, "b": [4]}
    assert base == {"a": {"x": 1, "y": 2}, "b": [1, 2]}
