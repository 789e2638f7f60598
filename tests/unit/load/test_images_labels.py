from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import UsageError
from edgeq.load.images import check_classes, few, index_classes, read_labels, repeated_names


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("l.txt", "cat\ndog\n\n", ("cat", "dog")),
        ("l.txt", "\ufeffcat\r\nsea lion\r\n", ("cat", "sea lion")),
        ("l.json", '["cat", "dog"]', ("cat", "dog")),
        ("l.json", '{"dog": 2, "cat": 0}', ("cat", "", "dog")),
        ("l.txt", '{"dog": 0}', ("dog",)),
        ("l.txt", "crane\ncrane", ("crane", "crane")),
    ],
)
def test_reads_every_form(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.txt", "", "empty file"),
        ("l.txt", "cat\n\ndog", "line 2 is empty"),
        ("l.json", "{", "not valid JSON"),
        ("l.json", "[" * 100_000, "not valid JSON"),
        ("l.json", "3", "expected class names"),
        ("l.json", "[]", "expected class names"),
        ("l.json", "{}", "at least one class"),
        ("l.json", '["cat", 3]', "expected class names"),
        ("l.json", '[{"cat": 3}]', "expected class names"),
        ("l.json", '{"cat": "3"}', "'cat': expected an output index"),
        ("l.json", '{"cat": true}', "expected an output index"),
        ("l.json", '{"cat": -1}', "expected an output index"),
        ("l.json", '{"cat": 1.0}', "expected an output index"),
        ("l.json", '{"cat": NaN}', "expected an output index"),
        ("l.json", '{"cat": 99999999999}', "expected an output index"),
        ("l.json", '{"cat": {"dog": 1}}', "expected an output index"),
        ("l.json", '{"cat": 1, "dog": 1, "eel": 2}', "index given twice: 1"),
        ("l.json", '{"cat": 1, "cat": 2}', "name given twice: 'cat'"),
    ],
)
def test_says_what_is_wrong(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_labels(tmp_path / name)
    assert reason in caught.value.what
    assert str(tmp_path / name) in caught.value.what
    assert "\n" not in caught.value.what


def test_names_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_labels(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="expected UTF-8"):
        read_labels(tmp_path / "bytes.txt")


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 50), max_size=9))
def test_an_object_maps_each_name_to_its_index(tmp_path_factory, mapping):
    path = tmp_path_factory.getbasetemp() / "labels.json"
    path.write_text(json.dumps(mapping))
    if not mapping or len(set(mapping.values())) < len(mapping):
        with pytest.raises(UsageError):
            read_labels(path)
    else:
        names = read_labels(path)
        assert index_classes(list(mapping), names, "here") == mapping


def test_without_labels_the_sorted_order_counts():
    assert index_classes(["b", "a", "C"], None, "here") == {"C": 0, "a": 1, "b": 2}


def test_unknown_and_unclear_folders_are_named():
    with pytest.raises(UsageError, match=r"here: .*do not name: cot, d, e and 1 more\. Did you mean 'cat'\?"):
        index_classes(["f", "e", "d", "cot"], ("cat", "dog"), "here")
    with pytest.raises(UsageError, match="more than once: crane"):
        index_classes(["crane"], ("crane", "crane"), "here")
    assert index_classes(["dog"], ("crane", "crane", "dog"), "here") == {"dog": 2}


def test_classes_must_fit_the_model():
    check_classes(("a", "b"), 2, from_file=False)
    check_classes((), 2, from_file=False)
    check_classes(("a", "b"), 3, from_file=True)
    with pytest.raises(UsageError, match="has 3 outputs, but the data has 2 class folders"):
        check_classes(("a", "b"), 3, from_file=False)
    with pytest.raises(UsageError, match=r"larger indices: d \(3\)") as caught:
        check_classes(("a", "b", "", "d"), 2, from_file=True)
    assert "--labels" in caught.value.fix


def test_few_names_three():
    assert few(["a"]) == "a"
    assert few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_names_that_stand_for_more_than_one_output_are_counted():
    assert repeated_names(("cat", "dog", "cat", "", "", "cat")) == ("'cat' (3 outputs)",)
    assert repeated_names(("cat", "dog", "")) == ()
