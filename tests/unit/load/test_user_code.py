from __future__ import annotations

import contextlib
import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import ExitCode, UsageError
from edgeq.load.user_code import check_arguments, load_function, load_metric
from edgeq.verify.metrics import SetMetric


def test_a_file_is_imported_and_called(script):
    function = load_function(script("def twice(x):\n    return 2 * x\n") + ":twice", "metric")
    assert function(21) == 42
    assert function.module.__name__ in sys.modules
    assert function.function.__name__ == "twice"


def test_neighbours_can_be_imported_during_import_and_call(script, tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 7\n")
    path = script("def late():\n    import neighbour\n    return neighbour.value\n")
    assert load_function(f"{path}:late", "data function")() == 7


def test_nothing_is_left_beside_the_file(script, tmp_path):
    load_function(script("def f(): ...\n") + ":f", "metric")
    assert [path.name for path in tmp_path.iterdir()] == ["user.py"]


def test_a_changed_file_is_loaded_again_and_an_equal_one_is_not(script):
    first = load_function(script("def f():\n    return 1\n") + ":f", "metric")
    same = load_function(script("def f():\n    return 1\n") + ":f", "metric")
    changed = load_function(script("def f():\n    return 2\n") + ":f", "metric")
    assert first.module is same.module
    assert (first(), changed()) == (1, 2)


def test_a_file_called_like_a_module_hides_nothing(tmp_path):
    (tmp_path / "random.py").write_text("from dataclasses import dataclass\n@dataclass\nclass Data:\n    x: int = 3\n")
    make = load_function(f"{tmp_path}/random.py:Data", "model factory")
    assert dataclasses.asdict(make()) == {"x": 3}
    import random

    assert hasattr(random, "randint")


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "userpkg").mkdir()
    (tmp_path / "userpkg" / "__init__.py").write_text("")
    (tmp_path / "userpkg" / "data.py").write_text("def f():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_function("userpkg.data:f", "data function")() == 1
    del sys.modules["userpkg"]


def test_an_installed_module_is_found_and_one_of_pythons_own():
    assert load_function("math:hypot", "metric")(3, 4) == 5.0
    assert load_function("_operator:truth", "metric")(3) is True  # built into every Python, without a file


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("def score(): ...", "scor", "Did you mean 'score'?"),
        ("score = 3", "score", "to be a function, got int"),
        ("1 / 0", "f", "raised ZeroDivisionError at user.py:1: division by zero"),
        ("x = 1\ndef f(:", "f", "raised SyntaxError at user.py:2"),
        ("import no_such_module", "f", "raised ModuleNotFoundError at user.py:1"),
        ("import sys\nsys.exit(3)", "f", "raised SystemExit at user.py:2"),
        ("\0", "f", "null bytes"),
        ("raise ValueError", "f", "raised ValueError at user.py:1: ValueError"),
    ],
)
def test_says_what_is_wrong_with_a_file(script, text, name, reason):
    before = set(sys.modules)
    with pytest.raises(UsageError) as caught:
        load_function(f"{script(text)}:{name}", "metric")
    assert reason in caught.value.what
    assert caught.value.exit_code == ExitCode.USAGE
    left = [name for name in set(sys.modules) - before if name.startswith("_edgeq_user_")]
    assert not left or "raised" not in reason


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("user.py", "expected file.py:function"),
        (":f", "expected file.py:function"),
        ("user.py:", "expected file.py:function"),
        ("user.py:a b", "expected file.py:function"),
        ("/nowhere/user.py:f", "cannot read /nowhere/user.py: No such file"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("math.nothing:f", "math"),
        ("a b:f", "not a module name"),
        (".relative:f", "not a module name"),
        ("a/\0/b.py:f", "not a module name"),
        ("/" + "a" * 300 + "/b.py:f", "File name too long"),
    ],
)
def test_says_what_is_wrong_with_the_name(spec, reason):
    with pytest.raises(UsageError) as caught:
        load_function(spec, "metric")
    assert reason in caught.value.what


@given(st.text())
def test_any_name_gives_a_function_or_a_usage_error(spec):
    with contextlib.suppress(UsageError):
        assert callable(load_function(spec, "metric"))


def test_a_call_that_raises_names_the_line_of_the_file(script, tmp_path):
    (tmp_path / "neighbour.py").write_text("def fail():\n    raise KeyError('lost')\n")
    function = load_function(script("import neighbour\n\ndef f():\n    neighbour.fail()\n") + ":f", "data function")
    with pytest.raises(UsageError, match=r"data function .*user\.py:f raised KeyError at user\.py:4: 'lost'") as caught:
        function()
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_built_in_that_raises_names_no_line_of_ours():
    with pytest.raises(UsageError, match=r"metric math:sqrt raised ValueError: "):
        load_function("math:sqrt", "metric")(-1)


def test_an_interrupt_passes(script):
    function = load_function(script("def f():\n    raise KeyboardInterrupt\n") + ":f", "metric")
    with pytest.raises(KeyboardInterrupt):
        function()


def test_an_error_of_edgeq_passes(script):
    text = "from edgeq.core.errors import UnsupportedError\ndef f():\n    raise UnsupportedError('a', 'b')\n"
    with pytest.raises(Exception, match="a\nb") as caught:
        load_function(script(text) + ":f", "metric")()
    assert caught.value.exit_code == ExitCode.UNSUPPORTED


def test_arguments_are_checked_before_the_call(script):
    function = load_function(script("def f(a): ...\n") + ":f", "data function")
    with pytest.raises(UsageError, match=r"expected the signature f\(\), got f\(a\)"):
        check_arguments(function, 0, "")
    check_arguments(function, 1, "a")


def test_a_metric_scores_a_sample(script):
    path = script("def score(outputs, label):\n    return (outputs[0] == label).mean()\n")
    score = load_metric(f"{path}:score")
    assert score((np.array([1, 2]),), np.array([1, 3])) == 0.5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return float('nan')", "expected a finite number, got nan"),
        ("return float('-inf')", "expected a finite number, got -inf"),
        ("return None", "got NoneType"),
        ("return [1, 2]", "got list"),
        ("return 'good'", "got str"),
        ("return outputs[1]", "raised IndexError at user.py:2"),
    ],
)
def test_a_metric_must_give_a_finite_number(script, body, reason):
    score = load_metric(script(f"def score(outputs, label):\n    {body}\n") + ":score")
    with pytest.raises(UsageError) as caught:
        score((np.zeros(2),), 0)
    assert reason in caught.value.what


def test_a_metric_must_take_two_arguments(script):
    with pytest.raises(UsageError, match=r"the signature score\(outputs, label\), got score\(outputs\)"):
        load_metric(script("def score(outputs): ...\n") + ":score")


WORDS = """
class Words:
    def row(self, outputs, label):
        return {row}

    def score(self, rows):
        return {score}
"""


def test_a_metric_of_the_whole_set(script):
    score = "1 - rows[:, 0].sum() / rows[:, 1].sum()"
    metric = load_metric(script(WORDS.format(row="(outputs[0] != label).sum(), len(label)", score=score)) + ":Words")
    rows = [metric.row((np.array(got),), np.array(want)) for got, want in (([1, 2], [1, 3]), ([4, 4], [4, 4]))]
    assert rows == [(1.0, 2.0), (0.0, 2.0)]
    assert metric.score(np.array(rows)) == 0.75


def test_a_sample_may_give_any_number_of_lines(script):
    metric = load_metric(script(WORDS.format(row="label", score="rows.mean()")) + ":Words")
    rows = [metric.row((), label) for label in ([[1, 0], [1, 1]], [], np.zeros((1, 2)))]
    assert [np.shape(row) for row in rows] == [(2, 2), (0,), (1, 2)]
    assert SetMetric(row=metric.row, score=metric.score).of(rows) == 0.5


@pytest.mark.parametrize(
    ("row", "score", "said"),
    [
        ("3", "0", "Words.row: expected numbers for each sample, got int"),
        ("1, float('nan')", "0", "Words.row: expected finite numbers"),
        ("label", "0", "Words.row: expected 1 numbers as for the samples before, got 2"),
        ("[label]", "0", "Words.row: expected 1 numbers as for the samples before, got 2"),
        ("[[1, 2], [3]]", "0", "Words.row: expected numbers for each sample, got list"),
        ("[[1, float('inf')]]", "0", "Words.row: expected finite numbers"),
        ("[1]", "None", "Words.score: expected a number for the set, got NoneType"),
        ("[1]", "float('inf')", "Words.score: expected a finite number, got inf"),
        ("[1]", "rows[3]", "raised IndexError at user.py:7"),
    ],
)
def test_a_metric_of_the_set_must_give_finite_numbers(script, row, score, said):
    metric = load_metric(script(WORDS.format(row=row, score=score)) + ":Words")

    def judged():
        metric.score(np.array([metric.row((), [1]), metric.row((), [1, 2])]))

    with pytest.raises(UsageError) as caught:
        judged()
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "def row(self): ...\n    def score(self, rows): ...",
            r"expected the signature Words\.row\(outputs, label\), got Words\.row\(\)",
        ),
        ("def __init__(self, size): ...", r"expected the signature Words\(\), got Words\(size\)"),
        ("def row(self, outputs, label): ...", "but score is missing"),
    ],
)
def test_the_methods_of_a_metric_of_the_set_take_their_arguments(script, body, said):
    with pytest.raises(UsageError, match=said):
        load_metric(script(f"class Words:\n    {body}\n") + ":Words")
